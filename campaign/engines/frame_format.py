"""What every kind of file of frames has in common: how it is looked through and read, and which frames are taken."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from campaign.errors import EngineError

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

#: What ASE's readers and sqlite raise on a damaged file: it depends on where it is damaged (a length read from a wrong
#: place is more memory than there is).
READER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    sqlite3.Error,
)

#: Bytes read at a time when a file is looked through.
BLOCK = 2**23


class WrongFrames(EngineError):
    """A file's frames cannot be taken: ``what`` is wrong, what was ``got``, and the ``remedy``."""

    def __init__(self, what: str, got: str, remedy: str) -> None:
        super().__init__(f"{what}, got {got}; {remedy}.")
        self.what, self.got, self.remedy = what, got, remedy


class Found(NamedTuple):
    """A frame of a file: its atoms, and the byte at which it begins (0 where a format has its own index)."""

    atoms: int
    offset: int


class Stretch(NamedTuple):
    """Frames ``start``, ``start + every``, ... below ``stop`` of a file; the first begins at byte ``offset``."""

    start: int
    stop: int
    every: int = 1
    offset: int = 0


class Format:
    """How a kind of file is looked through and read."""

    def scan(
        self, path: Path, elements: tuple[str, ...], every: int, seen: Callable[[bytes], object]
    ) -> Iterator[Found]:
        """Yield every frame (``frame_files.scan``)."""
        raise NotImplementedError

    def read(self, path: Path, stretch: Stretch, elements: tuple[str, ...]) -> list[Atoms]:
        """Return the frames of a stretch as ASE atoms with the file's labels (``frame_files.read``)."""
        raise NotImplementedError


def check_cell(cell: Array, pbc: Sequence[bool] | Array | bool, number: int) -> None:
    """Refuse a frame whose cell (3, 3), Å, or periodicity campaign's engines do not take.

    Raises
    ------
    WrongFrames
        Naming the frame and the remedy.
    """
    rows = "[" + ", ".join(f"[{', '.join(f'{v:g}' for v in row)}]" for row in cell) + "]"
    if not np.isfinite(cell).all():
        raise WrongFrames(f"the cell of frame {number} is not finite", rows, "remove that frame or mend its cell")
    volume = np.linalg.det(cell)
    if not np.abs(cell).max() or abs(volume) < 1e-6 * np.prod(np.linalg.norm(cell, axis=1)):
        remedy = 'give it three cell vectors (Lattice="..." in extxyz; for a molecule, a box with vacuum around it)'
        raise WrongFrames(f"frame {number} has no cell, or one without volume", rows, remedy)
    if volume < 0:
        remedy = "exchange two of the vectors (and nothing else: the positions stay as they are)"
        raise WrongFrames(f"the cell vectors of frame {number} are left-handed", rows, remedy)
    if not np.all(pbc):
        got = "pbc " + " ".join("T" if p else "F" for p in np.broadcast_to(pbc, 3))
        remedy = 'make it periodic, with vacuum where there is a surface (pbc="T T T" in extxyz)'
        raise WrongFrames(f"frame {number} is not periodic in all three directions", got, remedy)


def cut_short(path: Path, number: int) -> WrongFrames:
    """Return the error of a file that ends within a frame."""
    remedy = "let the program that writes it finish, or remove what is left of that frame"
    return WrongFrames(f"frame {number} is cut short: the file ends in it or is damaged", f"'{path.name}'", remedy)


def unreadable(path: Path, frames: range, error: Exception) -> WrongFrames:
    """Return the error of a reader (``READER_ERRORS``)."""
    reason = str(error).partition("\n")[0][:80] or type(error).__name__
    where = f"frame {frames[0]}" if len(frames) == 1 else f"one of the frames {frames[0]} to {frames[-1]}"
    return WrongFrames(f"{where} cannot be read ({reason})", f"'{path.name}'", "check that ASE reads the file")


def see(path: Path, seen: Callable[[bytes], object]) -> None:
    """Show every block of a file that is read by another library."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            seen(block)
