"""Writing frames for other programs: extended XYZ, ASE's database, plain Zarr. One block in memory at a time."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import StoreError
from campaign.frames import Frames
from campaign.store.groups import translate

if TYPE_CHECKING:
    from ase import Atoms

Reasons = Mapping[str, str]

#: Id of a frame -> the frame of another run, or of a file, that it was made from.
Sources = Mapping[str, str]

#: Element -> reference energy of an atom, eV: the offset in the energies of labelled frames, written beside them.
References = Mapping[str, float]


def _extxyz(blocks: Iterator[Frames], to: Path, reasons: Reasons, references: References, sources: Sources) -> int:
    from ase.io import write

    count = 0
    with to.open("w") as file:
        for block in blocks:
            images = block.to_ase()
            for atoms in images:
                if atoms.info["frame"] in reasons:
                    atoms.info["reason"] = reasons[atoms.info["frame"]]
                if atoms.info["frame"] in sources:
                    atoms.info["source"] = sources[atoms.info["frame"]]
                if references:
                    atoms.info["reference_energies"] = " ".join(f"{e}:{x:.9g}" for e, x in references.items())
                    atoms.info["reference_energy"] = _offset(atoms, references)
            write(file, images, format="extxyz")
            count += len(block)
    return count


def _ase_db(blocks: Iterator[Frames], to: Path, reasons: Reasons, references: References, sources: Sources) -> int:
    from ase.db import connect

    count = 0
    with connect(to, type="db") as database:
        if references:
            database.metadata = {"reference_energies": dict(references), "units": "eV an atom"}
        for block in blocks:
            for atoms in block.to_ase():
                info = dict(atoms.info)
                frame = info.pop("frame")
                data: dict[str, Any] = {"frame": frame, **({"reason": reasons[frame]} if frame in reasons else {})}
                data |= {"source": sources[frame]} if frame in sources else {}
                if atoms.calc is not None and "energies" in atoms.calc.results:  # the database has no place for them
                    data["energies"] = atoms.calc.results["energies"]
                numbers = {k: v for k, v in info.items() if np.isfinite(v)}
                if references:
                    numbers["reference_energy"] = _offset(atoms, references)
                database.write(atoms, data=data, key_value_pairs=numbers)
            count += len(block)
    return count


def _zarr(blocks: Iterator[Frames], to: Path, reasons: Reasons, references: References, sources: Sources) -> int:
    """Write a group a number of atoms (``atoms-64``), each with the arrays of ``Frames``."""
    import zarr

    root = zarr.create_group(to, zarr_format=3, attributes={"writer": "campaign", "units": "eV, Å, K, bar"})
    count = 0
    written: dict[str, zarr.Array[Any]] = {}
    for block in blocks:
        for key, value in block.arrays():
            name = f"atoms-{block.n_atoms}/{key}"
            if name in written:
                written[name].append(value)
            else:
                rows = max(1, 2**22 // max(1, value[:1].nbytes))
                written[name] = root.create_array(
                    name, shape=value.shape, dtype=value.dtype, chunks=(rows, *value.shape[1:]), compressors=None
                )
                written[name][...] = value
        count += len(block)
    root.attrs["reasons"] = dict(reasons)
    if sources:
        root.attrs["sources"] = dict(sources)
    if references:
        root.attrs["reference_energies"] = dict(references)
    return count


def _offset(atoms: Atoms, references: References) -> float:
    """Return the sum of the reference energies of a frame's atoms, eV; its energy includes it."""
    return sum(references[symbol] for symbol in atoms.get_chemical_symbols())


def _aside(writer: Callable[[Iterator[Frames], Path, Reasons, References, Sources], int]) -> Callable[..., int]:
    """Make a writer write aside and rename, so that a file with the asked name is always whole."""

    def write(
        blocks: Iterator[Frames],
        to: Path,
        reasons: Reasons,
        references: References = MappingProxyType({}),
        sources: Sources = MappingProxyType({}),
    ) -> int:
        work = to.with_name(f".{uuid.uuid4().hex}{to.suffix}")
        try:
            count = writer(blocks, work, reasons, references, sources)
            if count:
                os.rename(work, to)
            return count
        except OSError as error:
            raise translate(error, to) from error
        except sqlite3.Error as error:
            raise StoreError(f"{to} cannot be written: {error}.") from error
        finally:
            _remove(work)

    return write


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


WRITERS = {".extxyz": _aside(_extxyz), ".db": _aside(_ase_db), ".zarr": _aside(_zarr)}
