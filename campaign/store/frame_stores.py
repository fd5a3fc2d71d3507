"""Frames in Zarr stores that campaign wrote: an export, or the run.zarr of another run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from campaign.errors import StoreError
from campaign.frames import ADDED, LAYOUT, Frames
from campaign.store import groups
from campaign.store.arrays import read as read_array
from campaign.store.store import Store

#: Bytes read at a time to hash a store.
BLOCK = 2**23


class Part(NamedTuple):
    """Frames of one atom count, in a row.

    Attributes
    ----------
    where
        A group of an export, or the task of a run that made the frames.
    digest
        What stands for their content: the hash of the export's files, or the task's id, which is the hash of all that
        decides its result. A run that goes on, or packs its store, changes nothing of that.
    atoms, frames
        Atoms of each frame, and how many frames.
    """

    where: str
    digest: str
    atoms: int
    frames: int


def scan(path: Path) -> list[Part]:
    """Return what frames a store holds.

    Those of an export are in the order of their number of atoms, as they stand in the file; those of a run are its
    whole pool, walker by walker and segment by segment.

    Raises
    ------
    StoreError
        It was not written by campaign, by a version that this one cannot read, or it is damaged.
    """
    if not (path / groups.META).exists():
        raise StoreError(f"{path.name} is not a Zarr store: it has no {groups.META}.")
    attributes = groups.attributes(path)
    if attributes.get("writer") != "campaign":
        raise StoreError(f"{path.name} was not written by campaign; convert its frames to extxyz or an ASE database.")
    return _run(path) if "schema" in attributes else _export(path)


def _run(path: Path) -> list[Part]:
    store = Store(path)
    parts = []
    records = [r for r in store.scan().values() if r["stage"] == "sample" and r["result"].get("frames", 1)]
    for record in sorted(records, key=lambda r: (_natural(r["name"]), r["task"])):
        place = store.locate("sample", record["task"])
        shape = json.loads((place.path / "numbers" / groups.META).read_bytes())["shape"]
        parts.append(Part(record["task"], record["task"], int(shape[1]), place.stop - place.start))
    return parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts walker 10 after walker 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _export(path: Path) -> list[Part]:
    content = hashlib.blake2b(digest_size=16)
    for file in _files(path):
        content.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(BLOCK):
                content.update(block)
    parts = []
    for group in sorted(groups.subgroups(path), key=lambda g: _natural(g.name)):
        if group.name.startswith("atoms-"):
            n, a = json.loads((group / "numbers" / groups.META).read_bytes())["shape"]
            parts.append(Part(group.name, content.hexdigest(), int(a), int(n)))
    return parts


def _files(path: Path) -> Iterator[Path]:
    return iter(sorted(p for p in path.rglob("*") if p.is_file()))


def stamp(path: Path) -> list[int]:
    """Return a mark that changes when an export is written anew: of its metadata alone, there are few of them."""
    found = [p.stat() for depth in ("", "*/", "*/*/") for p in path.glob(depth + groups.META)]
    return [sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)]


def is_run(path: Path) -> bool:
    """Tell whether a store is a run's: there frames are known by their tasks, whatever else changes."""
    return "schema" in groups.attributes(path)


def read(path: Path, where: str, rows: range) -> Frames:
    """Return frames of a part, with the provenance that they had.

    Raises
    ------
    StoreError
        They are not there any more.
    """
    if not (path / groups.META).exists():  # opening a run's store that is not there would make one
        raise StoreError(f"{path} is not there any more.")
    if is_run(path):
        return Store(path).frames("sample", where, list(rows))
    names = [n for n in LAYOUT if n not in ADDED or (path / where / n).is_dir()]  # an older version wrote fewer
    arrays = {n: read_array(path / where / n, rows.start, rows[-1] + 1)[:: rows.step] for n in names}
    frames = Frames.build(**arrays)
    if len(frames) != len(rows):
        raise StoreError(f"{path}/{where} holds fewer frames than it did.")
    return frames
