"""Groups that are joined into large ones: which fit together, and how many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from campaign.frames import LAYOUT
from campaign.tasks import Record

Array = npt.NDArray[Any]

#: How the names of packed groups begin.
PACK = "pack-"

#: Frames and bytes in a packed group, at most: packing holds twice that in memory.
PACK_FRAMES, PACK_BYTES = 65536, 2**28


@dataclass(frozen=True)
class Place:
    """Where a task's frames lie: rows ``start`` to ``stop`` of a group, and the attributes it was published with."""

    path: Path
    record: Record
    start: int
    stop: int
    packed: bool


class Batch:
    """Groups that go into one pack: the same arrays, and at most PACK_FRAMES rows and PACK_BYTES."""

    def __init__(self) -> None:
        self.arrays: list[dict[str, Array]] = []
        self.places: list[Place] = []
        self.rows = self.bytes = 0

    def takes(self, arrays: Mapping[str, Array]) -> bool:
        """Tell whether a group fits with those that are in."""
        if not self.arrays:
            return True
        first = self.arrays[0]
        same = first.keys() == arrays.keys() and all(
            first[k].shape[1:] == arrays[k].shape[1:] and first[k].dtype == arrays[k].dtype for k in first
        )
        return same and self.rows + frames_in(arrays) <= PACK_FRAMES and self.bytes + nbytes(arrays) <= PACK_BYTES

    def add(self, arrays: dict[str, Array], place: Place) -> None:
        """Take a group in."""
        self.arrays.append(arrays)
        self.places.append(place)
        self.rows += frames_in(arrays)
        self.bytes += nbytes(arrays)


def frames_in(arrays: Mapping[str, Array]) -> int:
    """Return how many frames a group holds, whatever else lies beside them; else the common length of its arrays."""
    frames = {name: a for name, a in arrays.items() if name in LAYOUT}
    lengths = {len(a) if a.ndim else -1 for a in (frames or arrays).values()}
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else 0


def even(arrays: Mapping[str, Array]) -> bool:
    """Tell whether all arrays have a row a frame: a group with others beside them is never packed."""
    return len({len(a) if a.ndim else -1 for a in arrays.values()}) == 1


def nbytes(arrays: Mapping[str, Array]) -> int:
    """Return the bytes of arrays."""
    return sum(a.nbytes for a in arrays.values())
