"""A trained model as LAMMPS's force field: through ``fix external``, which hands it the atoms and takes its forces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from campaign.engines.batched import Share
from campaign.engines.fast_forces import FastForces, Found, fast_forces
from campaign.errors import CampaignError, EngineError, MachineFault, Unphysical
from campaign.frames import Frames

if TYPE_CHECKING:
    from campaign.engines.guards import Watch
    from campaign.engines.lammps import Lammps

Array = npt.NDArray[Any]


class Forces(Protocol):
    """Anything that gives energy, forces and stress of a block of frames (a trained model)."""

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive."""


class ModelForces:
    """A model in place of the potential's lines (``fix external pf/callback``).

    What it adds are the physical forces: they are part of a frame, unlike those of an ``External``.

    Parameters
    ----------
    model
        Supplies energy, forces and stress; a ``Share`` of one where several walkers ask it at once.
    elements
        Chemical symbols in the order of the LAMMPS types.
    watch
        Sees every step.
    """

    def __init__(self, model: Forces | Share, elements: tuple[str, ...], watch: Watch | None = None) -> None:
        self._model = model
        self._elements = elements
        self._watch = watch
        self._error: Exception | None = None
        self._numbers: Array | None = None
        # made anew for every LAMMPS: its pairs begin where a checkpoint does
        self._fast: FastForces | Share | None = None
        self._lmp: Any = None

    def attach(self, lammps: Lammps) -> None:
        """Set the force field up in an instance that has its atoms."""
        lammps.command("pair_style zero 1.0")
        lammps.command("pair_coeff * *")
        lammps.command("comm_modify cutoff 2.0")
        lammps.command("fix model all external pf/callback 1 1")
        lammps.command("fix_modify model virial yes energy yes")
        self._lmp = lammps.library
        self._lmp.set_fix_external_callback("model", self._call)

    def _call(self, _caller: Any, step: int, nlocal: int, tag: Array, x: Array, f: Array) -> None:
        lmp = self._lmp
        try:
            from ase.data import atomic_numbers

            if nlocal != lmp.get_natoms():
                if lmp.extract_setting("world_size") > 1:
                    raise EngineError("Molecular dynamics with a model runs on one MPI rank; set ranks to 1.")
                raise Unphysical(f"Atoms were lost: {nlocal} of {lmp.get_natoms()} are left.")
            order = np.argsort(tag[:nlocal])
            if self._numbers is None:
                z = np.array([atomic_numbers[e] for e in self._elements])
                self._numbers = z[np.asarray(lmp.numpy.extract_atom("type"))[:nlocal][order] - 1]
                if isinstance(self._model, Share):
                    self._fast = self._model.begin(self._numbers)
                else:
                    self._fast = fast_forces(self._model, self._numbers)
            low, high, xy, yz, xz, _, _ = lmp.extract_box()
            cell = np.array([[high[0] - low[0], 0, 0], [xy, high[1] - low[1], 0], [xz, yz, high[2] - low[2]]])
            positions = x[order] - np.array(low)
            energy, forces, stress = self._evaluate(positions, cell)
            if self._watch is not None:
                found = {"positions": positions, "cell": cell, "energy": np.array(energy)}
                self._watch.step(step, {**found, "forces": forces, "stress": stress})
            if not all(np.isfinite(v).all() for v in (energy, forces, stress)):
                raise Unphysical("The model gave an energy, force or stress that is not finite.")
            f[order] = forces
            # LAMMPS wants the virial itself (eV, sum of r f): minus stress times volume.
            w = -stress * abs(np.linalg.det(cell))
            lmp.fix_external_set_energy_global("model", energy)
            lmp.fix_external_set_virial_global(
                "model", [float(w[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
            )
        except Exception as error:  # cannot pass through LAMMPS's C++ frames: kept for check()
            self._error = error
            f[:nlocal] = 0.0
            lmp.force_timeout()  # ends the run after this step

    def _evaluate(self, positions: Array, cell: Array) -> Found:
        """Return energy, forces (a, 3) and stress (3, 3) of one frame, the fast way where the model has one."""
        if self._fast is not None:
            return self._fast.evaluate(positions, cell)
        assert self._numbers is not None  # found at the first call
        assert not isinstance(self._model, Share)
        energy, forces, stress = self._model.evaluate(Frames.build(self._numbers, positions[None], cell))
        return float(energy[0]), forces[0], stress[0]

    def check(self) -> None:
        """Raise what went wrong in the model."""
        if isinstance(self._error, CampaignError | OSError | MemoryError):
            raise self._error
        if self._error is not None:
            kind = type(self._error).__name__
            if kind == "OutOfMemoryError":  # torch's, of a GPU that others use too
                raise MachineFault(f"The model found no memory: {self._error}") from self._error
            raise EngineError(f"The model failed in molecular dynamics: {kind}: {self._error}") from self._error
