"""Frames in text: extended XYZ and LAMMPS dumps. Large blocks are read, numpy finds their line ends."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from campaign.engines.frame_format import (
    BLOCK,
    READER_ERRORS,
    Format,
    Found,
    Stretch,
    WrongFrames,
    check_cell,
    cut_short,
    unreadable,
)

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

#: What a dump may call its positions, and whether they are scaled by the cell.
COORDINATES = {("x", "y", "z"): False, ("xu", "yu", "zu"): False, ("xs", "ys", "zs"): True, ("xsu", "ysu", "zsu"): True}


class Lines:
    """The lines of a file, in large blocks; lines that are skipped are only counted."""

    def __init__(self, file: BinaryIO, seen: Callable[[bytes], object]) -> None:
        self._file, self._seen = file, seen
        self._data, self._base = b"", 0  # a block with what was left of the one before it, and its place in the file
        self._ends: Array = np.zeros(0, dtype=np.int64)
        self._next = 0  # of the ends
        self._whole = False

    @property
    def offset(self) -> int:
        """Where the next line begins, in bytes from the start of the file."""
        return self._base + self._start

    @property
    def _start(self) -> int:
        return int(self._ends[self._next - 1]) + 1 if self._next else 0

    def _load(self) -> bool:
        """Read another block; return False at the end of the file."""
        if self._whole:
            return False
        block = self._file.read(BLOCK)
        self._seen(block)
        rest = self._data[self._start :]
        self._base += self._start
        if not block:
            self._whole = True
            block = b"\n" if rest and not rest.endswith(b"\n") else b""
        self._data, self._next = rest + block, 0
        self._ends = np.flatnonzero(np.frombuffer(self._data, dtype=np.uint8) == 10)
        return bool(block)

    def line(self) -> bytes | None:
        """Return the next line without its end, None after the last."""
        while self._next >= len(self._ends):
            if not self._load():
                return None
        start = self._start
        self._next += 1
        return self._data[start : int(self._ends[self._next - 1])]

    def skip(self, count: int) -> bool:
        """Pass over lines; return False where the file ends before."""
        while count > (left := len(self._ends) - self._next):
            self._next += left
            count -= left
            if not self._load():
                return False
        self._next += count
        return True


def _is_count(line: bytes) -> bool:
    """Tell whether a line is a number of atoms: at least 1, and no more digits than a file can have lines."""
    word = line.strip()
    return word.isdigit() and len(word) < 16 and int(word) > 0


class Xyz(Format):
    """Extended XYZ: number of atoms, a comment with the cell, a line for each atom."""

    LATTICE = re.compile(rb'\bLattice\s*=\s*["{]([^"}]*)["}]', re.IGNORECASE)
    PBC = re.compile(rb'\bpbc\s*=\s*["{]?\s*([TF01])\w*[\s,]+([TF01])\w*[\s,]+([TF01])', re.IGNORECASE)

    def scan(
        self, path: Path, elements: tuple[str, ...], every: int, seen: Callable[[bytes], object]
    ) -> Iterator[Found]:
        """Yield every frame, counting the atoms' lines without reading them."""
        with path.open("rb") as file:
            lines = Lines(file, seen)
            number = 0
            while True:
                offset, head = lines.offset, lines.line()
                if head is None or not head.strip():
                    break
                if not _is_count(head):
                    got = ascii(head[:40].decode(errors="replace").strip())
                    remedy = "each frame is a number of atoms, a comment line and a line for each atom; mend it there"
                    raise WrongFrames(f"frame {number} does not begin with a number of atoms", got, remedy)
                comment = lines.line()
                if comment is None or not lines.skip(int(head)):
                    raise cut_short(path, number)
                if number % every == 0:
                    self._check(comment, number)
                yield Found(int(head), offset)
                number += 1
            while (line := lines.line()) is not None:  # the rest must be empty: nothing is silently left out
                if line.strip():
                    remedy = "remove the empty line, or what follows it"
                    raise WrongFrames(f"after frame {number - 1} comes an empty line and more text", "text", remedy)

    def _check(self, comment: bytes, number: int) -> None:
        found = self.LATTICE.search(comment)
        if found is None and b"lattice" in comment.lower():
            return  # another way to write it: the reader sees
        try:
            cell = np.array(found[1].replace(b",", b" ").split() if found else [0] * 9, dtype=float).reshape(3, 3)
        except ValueError:
            got = ascii(comment[:60].decode(errors="replace"))
            raise WrongFrames(f"the cell of frame {number} is not nine numbers", got, 'write Lattice="..."') from None
        pbc = self.PBC.search(comment)
        check_cell(cell, [p in b"Tt1" for p in pbc.groups()] if pbc else True, number)

    def read(self, path: Path, stretch: Stretch, elements: tuple[str, ...]) -> list[Atoms]:
        """Return the frames of a stretch, parsed by ASE."""
        from ase.io import read

        text, frames = [], range(stretch.start, stretch.stop, stretch.every)
        with path.open("rb") as file:
            file.seek(stretch.offset)
            for number in range(stretch.start, frames[-1] + 1):
                head = file.readline()
                if not _is_count(head):
                    raise cut_short(path, number)
                block = [head, *(file.readline() for _ in range(int(head) + 1))]
                if number in frames:
                    text += block
        try:
            found = read(io.StringIO(b"".join(text).decode()), index=":", format="extxyz")
        except READER_ERRORS as error:
            raise unreadable(path, frames, error) from error
        return found if isinstance(found, list) else [found]


class Dump(Format):
    """LAMMPS's text dump: items, each a header and its lines.

    Source: LAMMPS documentation, "dump command" (box bounds of triclinic cells) and "Howto triclinic".
    """

    def scan(
        self, path: Path, elements: tuple[str, ...], every: int, seen: Callable[[bytes], object]
    ) -> Iterator[Found]:
        """Yield every frame, counting the atoms' lines without reading them."""
        with path.open("rb") as file:
            lines, number, columns = Lines(file, seen), 0, b""
            while True:
                offset, line = lines.offset, lines.line()
                if line is None or not line.strip():
                    break
                header = _header(path, line, lines.line, number)
                if header.columns != columns:
                    _check_columns(header.columns, elements, number)
                    columns = header.columns
                if number % every == 0:
                    check_cell(header.cell, header.pbc, number)
                if not lines.skip(header.atoms):
                    raise cut_short(path, number)
                yield Found(header.atoms, offset)
                number += 1
            while (line := lines.line()) is not None:
                if line.strip():
                    remedy = "remove the empty line, or what follows it"
                    raise WrongFrames(f"after frame {number - 1} comes an empty line and more text", "text", remedy)

    def read(self, path: Path, stretch: Stretch, elements: tuple[str, ...]) -> list[Atoms]:
        """Return the frames of a stretch, atoms in the order of their ids."""
        frames, images = range(stretch.start, stretch.stop, stretch.every), []
        with path.open("rb") as file:
            file.seek(stretch.offset)

            def line() -> bytes | None:
                return file.readline() or None

            for number in range(stretch.start, frames[-1] + 1):
                first = line()
                if first is None:
                    raise cut_short(path, number)
                header = _header(path, first, line, number)
                rows = [file.readline() for _ in range(header.atoms)]
                if number in frames:
                    images.append(_dumped(path, header, rows, elements, number))
        return images


class _Header(NamedTuple):
    """What stands above the atoms of a dump's frame."""

    step: int
    atoms: int
    origin: Array
    cell: Array
    pbc: list[bool]
    columns: bytes


def _header(path: Path, first: bytes, line: Callable[[], bytes | None], number: int) -> _Header:
    """Read the items of a frame up to its atoms."""
    items: dict[bytes, list[bytes]] = {}
    bounds, head = b"", first.strip()
    while not head.startswith(b"ITEM: ATOMS"):
        name = b"BOX" if head.startswith(b"ITEM: BOX BOUNDS") else head
        if name not in _ITEMS:
            got = ascii(head[:40].decode(errors="replace"))
            remedy = "write the dump with LAMMPS's dump custom; an item is 'ITEM: ' and its name"
            raise WrongFrames(f"frame {number} has a line that is no item of a dump", got, remedy)
        bounds = head if name == b"BOX" else bounds
        found = [line() for _ in range(_ITEMS[name])]
        following = line()
        if following is None or None in found:
            raise cut_short(path, number)
        items[name] = [row for row in found if row is not None]
        head = following.strip()
    units = b"".join(items.get(b"ITEM: UNITS", [b"metal"])).strip().decode(errors="replace")
    if units != "metal":
        raise WrongFrames(f"frame {number} is not in LAMMPS's units metal", f"units {units}", "convert it to extxyz")
    try:
        if not _is_count(items[b"ITEM: NUMBER OF ATOMS"][0]):
            raise ValueError(items[b"ITEM: NUMBER OF ATOMS"][0])
        atoms = int(items[b"ITEM: NUMBER OF ATOMS"][0])
        step = int(items.get(b"ITEM: TIMESTEP", [b"%d" % number])[0])
        box = np.array([row.split() for row in items[b"BOX"]], dtype=float)
        origin, cell, pbc = _box(bounds.split()[3:], box)
    except (KeyError, ValueError, IndexError) as error:
        what = f"frame {number} lacks its number of atoms or its box, or they are not numbers"
        raise WrongFrames(what, f"'{path.name}'", "write the dump with LAMMPS's dump custom") from error
    return _Header(step, atoms, origin, cell, pbc, head.removeprefix(b"ITEM: ATOMS").strip())


#: Lines below each item's header.
_ITEMS = {b"ITEM: TIMESTEP": 1, b"ITEM: NUMBER OF ATOMS": 1, b"ITEM: UNITS": 1, b"ITEM: TIME": 1, b"BOX": 3}


def _box(words: list[bytes], box: Array) -> tuple[Array, Array, list[bool]]:
    """Return origin (3,) and cell vectors (3, 3), Å, and periodicity, from the words and lines of BOX BOUNDS."""
    pbc = [w == b"pp" for w in words if w not in (b"xy", b"xz", b"yz", b"abc", b"origin")] or [True] * 3
    if len(pbc) != 3:
        raise ValueError(words)
    if words[:2] == [b"abc", b"origin"]:  # general triclinic: a vector and a coordinate of the origin in each line
        return box[:, 3], box[:, :3], pbc
    tilts = box[:, 2] if box.shape[1] > 2 else np.zeros(3)
    xy, xz, yz = tilts
    low = box[:, 0] - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high = box[:, 1] - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    lx, ly, lz = high - low
    return low, np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), pbc


def _check_columns(columns: bytes, elements: tuple[str, ...], number: int) -> None:
    """Refuse a dump without the columns that make a frame."""
    names, got = columns.decode(errors="replace").split(), f"'{columns.decode(errors='replace')}'"
    if "id" not in names or not any(set(c) <= set(names) for c in COORDINATES):
        remedy = "dump at least 'id type x y z' (or xu yu zu, xs ys zs)"
        raise WrongFrames(f"frame {number} lacks the atoms' id or positions", got, remedy)
    if "element" not in names and not ("type" in names and elements):
        remedy = (
            "write 'elements: [Na, Cl]' in the campaign file, in the order of the types, or dump the element column"
        )
        raise WrongFrames("the dump does not say which elements its atoms are", got, remedy)


def _dumped(path: Path, header: _Header, rows: list[bytes], elements: tuple[str, ...], number: int) -> Atoms:
    """Return the atoms of a dump's frame in the order of their ids, with its forces where it has them."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.data import atomic_numbers

    names = header.columns.decode(errors="replace").split()
    words = [row.split() for row in rows]
    if any(len(w) != len(names) for w in words):
        raise cut_short(path, number)
    table = dict(zip(names, zip(*words, strict=True), strict=True))
    try:
        order = np.argsort(np.array(table["id"], dtype=np.int64))
        axes = next(c for c in COORDINATES if set(c) <= set(names))
        places = np.array([table[a] for a in axes], dtype=float).T[order]
        if "element" in table:
            symbols = [table["element"][k].decode(errors="replace") for k in order]
        else:
            symbols = [elements[t - 1] for t in np.array(table["type"], dtype=int)[order]]
        forces = np.array([table[f] for f in ("fx", "fy", "fz")], dtype=float).T[order] if "fx" in table else None
    except (ValueError, KeyError) as error:
        raise unreadable(path, range(number, number + 1), error) from error
    except IndexError as error:
        most = max(int(t) for t in table["type"])
        what = f"frame {number} has atoms of type {most}"
        raise WrongFrames(what, f"elements: [{', '.join(elements)}]", f"name {most} elements") from error
    numbers = [atomic_numbers.get(s, 0) for s in symbols]
    positions = places @ header.cell if COORDINATES[axes] else places - header.origin
    atoms = Atoms(numbers, positions, cell=header.cell, pbc=header.pbc, info={"step": header.step})
    if forces is not None:
        atoms.calc = SinglePointCalculator(atoms, forces=forces)
    return atoms
