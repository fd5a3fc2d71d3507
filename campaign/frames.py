"""Frames: atomic configurations with their energies, forces and stresses, in blocks of equal size.

Units are ASE's: Å, eV, eV/Å, and virial stress in eV/Å^3 (tension positive, no kinetic part).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

#: Trailing shape ("a" = atoms a frame) and dtype of every per-frame array, in storage order.
LAYOUT: dict[str, tuple[tuple[int | str, ...], str]] = {
    "numbers": (("a",), "int16"),
    "positions": (("a", 3), "float64"),
    "cell": ((3, 3), "float64"),
    "energy": ((), "float64"),
    "forces": (("a", 3), "float64"),
    "stress": ((3, 3), "float64"),
    "task": ((), "uint64"),
    "index": ((), "int32"),
    "walker": ((), "int32"),
    "step": ((), "int64"),
    "temperature": ((), "float64"),
    "pressure": ((), "float64"),
    "energies": (("a",), "float64"),
    "order": ((), "float64"),
    "bias": ((), "float64"),
    "weight": ((), "float64"),
    "scale": ((), "float64"),
}

#: Arrays that a store may lack, and that then read as NaN.
ADDED = ("energies", "order", "bias", "weight", "scale")

#: What a frame of biased sampling has beside its physics.
BIASED = ("order", "bias", "weight", "scale")


@dataclass(frozen=True, eq=False, slots=True)
class Frames:
    """A block of ``n`` frames of ``a`` atoms each, periodic in three directions.

    Attributes
    ----------
    numbers : (n, a) int16
        Atomic numbers.
    positions : (n, a, 3) float64
        Cartesian positions, Å.
    cell : (n, 3, 3) float64
        Cell vectors as rows, Å.
    energy : (n,) float64
        Potential energy, eV; NaN where unknown.
    forces : (n, a, 3) float64
        eV/Å; NaN where unknown.
    stress : (n, 3, 3) float64
        Virial stress, eV/Å^3, tension positive as in ASE; NaN where unknown.
    task : (n,) uint64
        Id of the task that made the frame.
    index : (n,) int32
        Position of the frame within that task. (task, index) is the frame's id and never changes.
    walker, step : (n,) int
        Which walker, and at which MD step.
    temperature, pressure : (n,) float64
        Set points of the thermostat (K) and barostat (bar); NaN where there is none.
    energies : (n, a) float64
        Energies of the atoms, eV: they sum to ``energy`` less what no atom has (a long-range tail); NaN where the
        potential does not give them.
    order, bias, weight, scale : (n,) float64
        Of biased sampling (MOMT): the order parameter Q, the bias S~, both dimensionless; the logarithm of the weight
        that takes the frame to the set temperature; the factor lambda on the physical forces. NaN elsewhere.
    """

    numbers: Array
    positions: Array
    cell: Array
    energy: Array
    forces: Array
    stress: Array
    task: Array
    index: Array
    walker: Array
    step: Array
    temperature: Array
    pressure: Array
    energies: Array
    order: Array
    bias: Array
    weight: Array
    scale: Array

    def __post_init__(self) -> None:
        if self.numbers.ndim != 2:
            raise ValueError(f"Frames.numbers has shape {self.numbers.shape}; (n, a) is needed.")
        n, a = self.numbers.shape
        for name, (shape, _) in LAYOUT.items():
            want = (n, *(a if s == "a" else s for s in shape))
            if getattr(self, name).shape != want:
                raise ValueError(f"Frames.{name} has shape {getattr(self, name).shape}; {want} is needed.")

    def __len__(self) -> int:
        return int(self.numbers.shape[0])

    @property
    def n_atoms(self) -> int:
        """Atoms in each frame."""
        return int(self.numbers.shape[1])

    @property
    def volume(self) -> Array:
        """(n,) cell volumes, Å^3."""
        return np.asarray(np.abs(np.linalg.det(self.cell)))

    @property
    def ids(self) -> list[str]:
        """The id of each frame, ``task:index``."""
        return [frame_id(t, i) for t, i in zip(self.task, self.index, strict=True)]

    def __getitem__(self, key: slice | Sequence[int] | Array) -> Frames:
        """Return the frames at ``key`` (a slice, indices or a mask), as a block."""
        return Frames(*(getattr(self, f.name)[key] for f in fields(self)))

    def with_(self, **arrays: Array) -> Frames:
        """Return a copy with some arrays replaced."""
        return replace(self, **arrays)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) in storage order."""
        for name in LAYOUT:
            yield name, getattr(self, name)

    def to_ase(self) -> list[Atoms]:
        """Return ASE atoms, one a frame, results attached and provenance in ``info``."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        out = []
        for k in range(len(self)):
            atoms = Atoms(self.numbers[k], self.positions[k], cell=self.cell[k], pbc=True)
            results: dict[str, Any] = {}
            if np.isfinite(self.energy[k]):
                results["energy"] = float(self.energy[k])
            if np.isfinite(self.forces[k]).all():
                results["forces"] = self.forces[k]
            if np.isfinite(self.stress[k]).all():
                results["stress"] = full_3x3_to_voigt_6_stress(self.stress[k])
            if np.isfinite(self.energies[k]).all():
                results["energies"] = self.energies[k]
            if results:
                atoms.calc = SinglePointCalculator(atoms, **results)
            atoms.info.update(
                frame=frame_id(self.task[k], self.index[k]),
                walker=int(self.walker[k]),
                step=int(self.step[k]),
                set_temperature=float(self.temperature[k]),
                set_pressure=float(self.pressure[k]),
                **{name: float(v) for name in BIASED if np.isfinite(v := getattr(self, name)[k])},
            )
            out.append(atoms)
        return out

    @classmethod
    def concat(cls, blocks: Iterable[Frames]) -> Frames:
        """Join blocks of equal atom count, in order."""
        blocks = list(blocks)
        return cls(*(np.concatenate([getattr(b, name) for b in blocks]) for name in LAYOUT))

    @classmethod
    def build(cls, numbers: Array, positions: Array, cell: Array, **arrays: Any) -> Frames:
        """Build a block from the geometry, broadcasting or filling in what is not given.

        Parameters
        ----------
        numbers : (a,) or (n, a)
        positions : (n, a, 3) in Å
        cell : (3, 3) or (n, 3, 3) in Å
        **arrays
            Any other field; scalars are broadcast over the frames. Missing floats are NaN, missing ints 0,
            ``index`` counts from 0.
        """
        positions = np.asarray(positions, dtype="float64")
        n, a, _ = positions.shape
        given: dict[str, Any] = {"index": np.arange(n), "numbers": numbers, "cell": cell, **arrays}
        given["positions"] = positions
        full = {}
        for name, (shape, dtype) in LAYOUT.items():
            want = (n, *(a if s == "a" else s for s in shape))
            value = given.get(name, np.nan if dtype == "float64" else 0)
            full[name] = np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=dtype), want))
        return cls(**full)

    @classmethod
    def from_ase(cls, images: Sequence[Atoms], **arrays: Any) -> Frames:
        """Build a block from ASE atoms of equal length; calculator results are kept where present."""

        def result(atoms: Atoms, name: str, missing: Array) -> Array:
            found = atoms.calc.results.get(name) if atoms.calc is not None else None
            if name == "stress" and found is not None:
                from ase.stress import voigt_6_to_full_3x3_stress

                found = voigt_6_to_full_3x3_stress(found)
            return missing if found is None else np.asarray(found)

        a = len(images[0])
        return cls.build(
            np.array([i.numbers for i in images]),
            np.array([i.positions for i in images]),
            np.array([np.array(i.cell) for i in images]),
            energy=np.array([result(i, "energy", np.array(np.nan)) for i in images]),
            forces=np.array([result(i, "forces", np.full((a, 3), np.nan)) for i in images]),
            stress=np.array([result(i, "stress", np.full((3, 3), np.nan)) for i in images]),
            energies=np.array([result(i, "energies", np.full(a, np.nan)) for i in images]),
            **arrays,
        )


def frame_id(task: int | np.integer[Any], index: int | np.integer[Any]) -> str:
    """Return a frame's id as text, ``task:index`` with the task in 16 hex digits."""
    return f"{int(task):016x}:{int(index)}"


def parse_frame_id(text: str) -> tuple[str, int]:
    """Return (task id, index) of a frame's id."""
    task, _, index = text.partition(":")
    return task, int(index)
