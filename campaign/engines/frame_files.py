"""Frames in files of other programs: extended XYZ, ASE trajectory and database, LAMMPS text dump.

A file is looked through once (``scan``), in constant memory and without parsing coordinates: how many atoms each frame
has, where in the file it begins, and whether its cell is one that campaign takes. Text is read in large blocks whose
line ends numpy finds. A worker then reads a few frames from the place that the scan named (``read``).

Every frame must be periodic in three directions with right-handed cell vectors. Labels that stand in the file under
ASE's names (energy, forces, stress; fx fy fz in a dump, which is taken to be in LAMMPS's units metal) are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.frame_format import (
    READER_ERRORS,
    Format,
    Found,
    Stretch,
    WrongFrames,
    check_cell,
    cut_short,
    see,
    unreadable,
)
from campaign.engines.frame_text import Dump, Xyz
from campaign.frames import Frames

if TYPE_CHECKING:
    from ase import Atoms


def scan(
    path: Path, elements: Sequence[str] = (), every: int = 1, seen: Callable[[bytes], object] = lambda block: None
) -> Iterator[Found]:
    """Yield every frame of a file, in order.

    Parameters
    ----------
    path
        The file; its name says which format it has.
    elements
        Of a LAMMPS dump without element column: the chemical symbols of the atom types.
    every
        Frames between those that will be read: only these are checked.
    seen
        Called with each block of the file, in order: a hash takes it in during the same pass.

    Raises
    ------
    WrongFrames
        The file is not of its format, is cut short, or holds a frame that cannot be taken.
    """
    yield from FORMATS[path.suffix.lower()].scan(path, tuple(elements), every, seen)


def read(path: Path, stretch: Stretch, elements: Sequence[str] = ()) -> Frames:
    """Read frames of one atom count.

    Returns
    -------
    Frames
        ``step`` is the file's own where it has one, else the frame's number in the file. Energy, forces and stress are
        the file's, NaN where it has none; so are the set points of temperature and pressure of a file that campaign
        exported.

    Raises
    ------
    WrongFrames
        A frame is damaged, has another number of atoms than the first, an unknown element, a number that is not
        finite, or a cell that cannot be taken.
    """
    images = FORMATS[path.suffix.lower()].read(path, stretch, tuple(elements))
    numbers = range(stretch.start, stretch.stop, stretch.every)
    if len(images) != len(numbers) or len({len(atoms) for atoms in images}) > 1:
        raise cut_short(path, numbers[min(len(images), len(numbers) - 1)])
    for number, atoms in zip(numbers, images, strict=True):
        check_cell(np.array(atoms.cell), atoms.pbc, number)
        _check_atoms(atoms, number)
    given = {
        "step": [int(_given(a, "step", k)) for k, a in zip(numbers, images, strict=True)],
        "temperature": [_given(a, "set_temperature", np.nan) for a in images],
        "pressure": [_given(a, "set_pressure", np.nan) for a in images],
    }
    return Frames.from_ase(images, **given)


def _check_atoms(atoms: Atoms, number: int) -> None:
    if (atoms.numbers < 1).any():
        symbol = atoms.get_chemical_symbols()[int(np.argmax(atoms.numbers < 1))]
        raise WrongFrames(f"frame {number} has an atom of no element", f"'{symbol}'", "write chemical symbols")
    results = atoms.calc.results if atoms.calc is not None else {}
    for name, value in {"positions": atoms.positions, **results}.items():
        if name == "positions" or name in ("energy", "forces", "stress"):
            values = np.asarray(value, dtype=float)
            bad = np.isinf(values) if name != "positions" else ~np.isfinite(values)
            if bad.any():
                got = f"{values[bad].flat[0]:g}"
                raise WrongFrames(f"the {name} of frame {number} are not finite", got, "remove that frame")


def _given(atoms: Atoms, name: str, default: float) -> float:
    value = atoms.info.get(name, default)
    return float(value) if isinstance(value, int | float | np.integer | np.floating) else default


class _Trajectory(Format):
    """ASE's binary trajectory."""

    def scan(
        self, path: Path, elements: tuple[str, ...], every: int, seen: Callable[[bytes], object]
    ) -> Iterator[Found]:
        see(path, seen)
        with self._open(path) as trajectory:
            for number in range(len(trajectory)):
                atoms = self._image(path, trajectory, number)
                if number % every == 0:
                    check_cell(np.array(atoms.cell), atoms.pbc, number)
                yield Found(len(atoms), 0)

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        from ase.io.trajectory import TrajectoryReader
        from ase.io.ulm import InvalidULMFileError

        with path.open("rb") as file:
            try:
                trajectory = TrajectoryReader(file)
            except (InvalidULMFileError, *READER_ERRORS) as error:
                remedy = "write it with ase.io.Trajectory of ASE 3.10 or later, or convert it to extxyz"
                raise WrongFrames("this is not an ASE trajectory", f"'{path.name}' ({error})", remedy) from error
            yield trajectory

    def _image(self, path: Path, trajectory: Any, number: int) -> Atoms:
        try:
            atoms: Atoms = trajectory[number]
        except READER_ERRORS as error:
            raise unreadable(path, range(number, number + 1), error) from error
        return atoms

    def read(self, path: Path, stretch: Stretch, elements: tuple[str, ...]) -> list[Atoms]:
        with self._open(path) as trajectory:
            stop = min(stretch.stop, len(trajectory))
            return [self._image(path, trajectory, k) for k in range(stretch.start, stop, stretch.every)]


class _Database(Format):
    """ASE's SQLite database; rows in the order of their ids."""

    def scan(
        self, path: Path, elements: tuple[str, ...], every: int, seen: Callable[[bytes], object]
    ) -> Iterator[Found]:
        see(path, seen)
        rows = self._rows(path, "natoms, cell, pbc", 0, None)
        for number, (atoms, cell, pbc) in enumerate(rows):
            if number % every == 0:
                vectors = np.frombuffer(cell, "<f8").reshape(3, 3) if cell else np.zeros((3, 3))
                check_cell(vectors, [bool((pbc or 0) & bit) for bit in (1, 2, 4)], number)
            yield Found(int(atoms), 0)

    def _rows(self, path: Path, columns: str, start: int, count: int | None) -> Iterator[Any]:
        """Yield columns of the rows from the one at place ``start`` on, without a lock or a write to the file."""
        import sqlite3
        from contextlib import closing
        from urllib.parse import quote

        limit = -1 if count is None else count
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
                query = f"SELECT {columns} FROM systems ORDER BY id LIMIT ? OFFSET ?"
                yield from connection.execute(query, (limit, start))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            remedy = "write it with ase.db.connect, or convert it to extxyz"
            raise WrongFrames("this is not an ASE database", f"'{path.name}' ({error})", remedy) from error

    def read(self, path: Path, stretch: Stretch, elements: tuple[str, ...]) -> list[Atoms]:
        """Return the images of a stretch, by their place in the database."""
        from ase.db import connect

        rows = self._rows(path, "id", stretch.start, stretch.stop - stretch.start)
        ids = [row[0] for row in rows][:: stretch.every]
        images = []
        try:
            database = connect(path, type="db", use_lock_file=False)
            for row_id in ids:
                row = database.get(id=row_id)
                atoms = row.toatoms()
                atoms.info = dict(row.key_value_pairs)
                images.append(atoms)
        except READER_ERRORS as error:
            raise unreadable(path, range(stretch.start, stretch.stop, stretch.every), error) from error
        return images


FORMATS: dict[str, Format] = {
    ".extxyz": Xyz(),
    ".xyz": Xyz(),
    ".traj": _Trajectory(),
    ".db": _Database(),
    ".lammpstrj": Dump(),
    ".dump": Dump(),
}
