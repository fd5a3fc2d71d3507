"""The data files a campaign names, and the hashes by which they enter the tasks' ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded


def read_files(loaded: Loaded[Campaign]) -> dict[str, bytes]:
    """Return the content of every data file, those that a potential's lines name included, by relative path."""
    from campaign.engines.lammps_potential import named_files

    found = dict(loaded.files)
    for name, file in loaded.files.items():
        for other in named_files(file):
            found[str(Path(name).parent / other)] = file.parent / other
    return {name: file.read_bytes() for name, file in found.items()}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the hash of each data file; a potential's hash covers the files that its lines name."""
    every = {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in files.items()}
    return {name: _with_named(name, files[name], every) for name in files}


def _with_named(name: str, content: bytes, every: dict[str, str]) -> str:
    folder = Path(name).parent
    words = content.replace(b'"', b" ").split()  # a structure file names no other
    named = sorted({w for w in (str(folder / t.decode(errors="replace")) for t in words) if w in every and w != name})
    return "-".join([every[name], *(every[w][:8] for w in named)])
