"""A folder of labels that campaigns share: once a single point is there, nobody pays for it again.

One small file a label, named by the hash of the geometry and the method. It is written aside and renamed, so two
campaigns may fill one folder at once; a file that is damaged counts as absent, is set aside and said once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.frames import Frames
from campaign.store.groups import flush
from campaign.tasks import Json

Array = npt.NDArray[Any]

#: First line of every file: its format. Another format is another name, so that versions do not disturb each other.
FORMAT = b"campaign label 1\n"
ENDING = ".label"


def label_key(frame: Frames, method: str) -> str:
    """Return the name of a label: the hash of the geometry as it is, to the last bit, and of the method.

    Parameters
    ----------
    frame
        One frame.
    method
        What decides the result beside the geometry (hashes of templates, potentials, parameters).
    """
    name = hashlib.blake2b(digest_size=20)
    for array, kind in ((frame.numbers, "<i8"), (frame.positions, "<f8"), (frame.cell, "<f8")):
        part = np.ascontiguousarray(array[0], dtype=kind)
        name.update(f"{part.shape}".encode() + part.tobytes())
    name.update(method.encode())
    return name.hexdigest()


@dataclass(frozen=True)
class Cached:
    """A label that was found.

    Attributes
    ----------
    energy, forces, stress
        Shapes (1,) eV, (1, a, 3) eV/Å and (1, 3, 3) eV/Å^3.
    about
        What was said of the calculation: the record's summary, and ``versions`` (program -> version), which are those
        of the program that computed it, not of one that would now.
    """

    energy: Array
    forces: Array
    stress: Array
    about: dict[str, Json]


class LabelCache:
    """The folder.

    Parameters
    ----------
    folder
        Made when the first label is kept.

    Attributes
    ----------
    damaged
        A sentence about each file that could not be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []

    def path(self, key: str) -> Path:
        """Return where a label is kept."""
        return self.folder / key[:2] / f"{key}{ENDING}"

    def get(self, key: str, atoms: int) -> Cached | None:
        """Return the label of that name, None where there is none (or none that can be used)."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.damaged.append(f"The cached label {path} cannot be read ({error.strerror}); it is computed again.")
            return None
        try:
            return _unpack(content, key, atoms)
        except (ValueError, KeyError, TypeError) as error:
            self.damaged.append(f"The cached label {path} is damaged ({error}); it is set aside and computed again.")
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            return None

    def put(self, key: str, labelled: Frames, about: Mapping[str, Json]) -> str:
        """Keep the label of one frame; return a sentence where that cannot be done: the label itself is not lost."""
        path = self.path(key)
        aside = path.with_name(f".{key}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    file.write(_pack(key, labelled, about))
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(path)
            finally:
                aside.unlink(missing_ok=True)
            flush(path.parent)
        except OSError as error:
            return f"The label was not kept in {self.folder} ({error.strerror})."
        return ""


def _pack(key: str, labelled: Frames, about: Mapping[str, Json]) -> bytes:
    numbers = np.concatenate([np.ravel(a[0]) for a in (labelled.energy, labelled.forces, labelled.stress)])
    head = json.dumps({"key": key, "atoms": labelled.n_atoms, "about": dict(about)}, allow_nan=False)
    body = head.encode() + b"\n" + numbers.astype("<f8").tobytes()
    return FORMAT + hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b"\n" + body


def _unpack(content: bytes, key: str, atoms: int) -> Cached:
    digest, _, body = content.removeprefix(FORMAT).partition(b"\n")
    if not content.startswith(FORMAT) or digest.decode() != hashlib.blake2b(body, digest_size=16).hexdigest():
        raise ValueError("its checksum is wrong")
    head, _, payload = body.partition(b"\n")
    found = json.loads(head)
    values = np.frombuffer(payload, "<f8").astype("float64")
    if found["key"] != key or found["atoms"] != atoms or len(values) != 1 + 3 * atoms + 9:
        raise ValueError("it holds another frame")
    about = found["about"]
    versions = about.setdefault("versions", {}) if isinstance(about, dict) else None
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise ValueError("what it says of the program that computed it is no list of versions")
    forces, stress = values[1:-9].reshape(1, atoms, 3), values[-9:].reshape(1, 3, 3)
    return Cached(values[:1], forces, stress, dict(about))
