"""Relaxation of a crystal, positions and cell, by ASE: the same route for a model and for what it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from campaign.engines.ase_calculator import calculator
from campaign.engines.lammps_model import Forces
from campaign.errors import EngineError
from campaign.frames import Frames
from campaign.tasks import Json

if TYPE_CHECKING:
    from ase import Atoms

#: So many times as far apart, atoms of a crystal are out of each other's reach.
APART = 4.0
#: eV/atom: a crystal that gains less by being one is none.
BINDING = 1e-3
#: Å: the first shell about an atom is sought so far at least.
SHELL = 4.0


def relax(start: Atoms, forces: Forces, limit: float, steps: int) -> tuple[Atoms, dict[str, Json]]:
    """Relax positions and cell at no pressure: ASE's BFGS on its ``FrechetCellFilter``.

    Symmetry is kept as far as the forces keep it; a structure that is no minimum may stay where its symmetry holds it.

    Parameters
    ----------
    start
        Where it begins; it is not changed.
    forces
        What gives energy, forces and stress.
    limit
        Largest force, and stress times volume over the atoms, that is left, eV/Å.
    steps
        Of the optimiser, at most.

    Returns
    -------
    tuple
        The relaxed atoms, and: ``energy`` (eV/atom), ``volume`` (Å^3/atom), ``lengths`` (of the cell vectors, Å),
        ``angles`` (degrees), ``bonds`` (shortest distance of each two elements, Å), ``steps`` and ``converged``.

    Raises
    ------
    EngineError
        The forces are no numbers, or the crystal came apart.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    atoms = start.copy()
    atoms.calc = calculator(forces)
    optimiser = BFGS(FrechetCellFilter(atoms), logfile=None)
    try:
        converged = bool(optimiser.run(fmax=limit, steps=steps))
        energy = float(atoms.get_potential_energy()) / len(atoms)
    except (ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        raise EngineError(f"The relaxation failed after {optimiser.nsteps} steps: {error}") from error
    if not np.isfinite(energy):
        raise EngineError(f"The energy is no number after {optimiser.nsteps} steps of the relaxation.")
    found: dict[str, Json] = {
        "energy": energy,
        "volume": float(atoms.get_volume()) / len(atoms),
        "lengths": atoms.cell.lengths().tolist(),
        "angles": atoms.cell.angles().tolist(),
        "bonds": bond_lengths(atoms),
        "steps": int(optimiser.nsteps),
        "converged": converged,
    }
    return atoms, found


def bound(atoms: Atoms, forces: Forces, energy: float) -> bool:
    """Tell whether relaxed atoms have less energy than the same ones ``APART`` times as far from each other.

    Parameters
    ----------
    atoms, energy
        As ``relax`` gives them, eV/atom.
    forces
        With which they were relaxed. Of a trained model this says nothing: it knows no atoms alone.
    """
    far = Frames.build(atoms.numbers, APART * atoms.positions[None], APART * np.array(atoms.cell))
    return energy < float(forces.evaluate(far)[0][0]) / len(atoms) - BINDING


def bond_lengths(atoms: Atoms) -> dict[str, float]:
    """Return the shortest distance of each two elements that have neighbours of each other, images included, Å."""
    from ase.data import chemical_symbols

    from campaign.science.neighbours import minimum_distance, neighbour_list

    frame = Frames.build(atoms.numbers, atoms.positions[None], np.array(atoms.cell))
    reach = max(SHELL, 2.0 * float(minimum_distance(frame)[0]))
    pairs = neighbour_list(frame, reach)
    distances = pairs.distances(frame.positions)
    z = frame.numbers[0]
    first, second = z[pairs.idx_i], z[pairs.idx_j]
    found = {}
    for a in np.unique(z):
        for b in np.unique(z[z >= a]):
            here = distances[(first == a) & (second == b)]
            if len(here):
                found[f"{chemical_symbols[a]}-{chemical_symbols[b]}"] = float(here.min())
    return found
