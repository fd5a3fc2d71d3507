"""Relaxed crystals by LAMMPS: cell and atoms at no pressure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from campaign.engines.lammps import BAR, Lammps, to_lammps
from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import Unconverged
from campaign.frames import Frames

if TYPE_CHECKING:
    from ase import Atoms

#: bar: a cell with less pressure along each axis is relaxed. The lattice constant of a metal is then good to 1e-6.
PRESSURE = 1.0

#: bar, eV/Å: other stresses (xx less yy, shears) and forces that may be left. Those of a crystal whose edges and angles
#: are kept do not go away, and then it is not relaxed.
OTHER, FORCE = 100.0, 0.01

#: So many times as far apart, atoms of a crystal are out of each other's reach; eV/atom that it must gain by being one.
APART, BINDING = 4.0, 1e-3

#: How often the minimiser is started anew, at most: each time its measure of strain is that of the cell it starts from.
ROUNDS = 20

#: Largest change of the volume in one step of the minimiser, as a share of it.
STEP = 0.005


def relax_crystal(potential: PotentialLines, atoms: Atoms, uniaxial: bool = False) -> Frames:
    """Relax the cell and the atoms of a crystal, keeping the cell's angles.

    Parameters
    ----------
    potential
        LAMMPS lines.
    atoms
        Where it starts: within a tenth or so of the relaxed lengths.
    uniaxial
        Whether the edge along z may change by its own factor (hcp); otherwise all change alike.

    Returns
    -------
    Frames
        One frame with energy, forces and stress.

    Raises
    ------
    EngineError
        LAMMPS refused a command, or atoms were lost.
    Unconverged
        There was still pressure after ``ROUNDS`` minimisations, or other stresses or forces that this does not relax;
        or the atoms are no crystal, but out of each other's reach.
    """
    x, cell, _ = to_lammps(atoms.positions, np.array(atoms.cell))
    ends = "aniso 0.0 couple xy" if uniaxial else "iso 0.0"
    with Lammps(potential) as lmp:
        lmp.create(atoms.numbers, x, cell)
        lmp.command("min_style cg")
        for _ in range(ROUNDS):
            lmp.command(f"fix relax all box/relax {ends} vmax {STEP}")
            lmp.command("minimize 0.0 1e-8 1000 10000")
            lmp.command("unfix relax")
            lmp.command("run 0 post no")
            state = lmp.state()
            sides = -np.diag(state["stress"]) * BAR
            left = np.abs([sides[:2].mean(), sides[2]] if uniaxial else sides.mean()).max()
            if left < PRESSURE:
                break
    if left < PRESSURE:
        found = Frames.build(
            atoms.numbers,
            state["positions"][None],
            state["cell"],
            energy=state["energy"],
            forces=state["forces"][None],
            stress=state["stress"],
        )
        _require_crystal(potential, found)
        return found
    raise Unconverged(
        f"The crystal was not relaxed by {ROUNDS} minimisations: {left:.3g} bar are left. Start nearer to its lattice "
        "constant, or write the factor of 'scale' as a number."
    )


def _require_crystal(potential: PotentialLines, found: Frames) -> None:
    """Refuse atoms without pressure that are no relaxed crystal."""
    from campaign.engines.lammps import single_points

    far = found.with_(positions=APART * found.positions, cell=APART * found.cell)
    gained = float(single_points(potential, far)[0][0] - found.energy[0]) / found.n_atoms
    if not gained > BINDING:
        raise Unconverged(
            f"The atoms came apart: they have {1e3 * gained:.3g} meV/atom less energy than at {APART:g} times their "
            "distances. Start nearer to the lattice constant, or write the factor of 'scale' as a number."
        )
    stress = float(np.abs(found.stress).max()) * BAR
    force = float(np.abs(found.forces).max())
    if stress > OTHER or force > FORCE:
        raise Unconverged(
            f"The crystal has no pressure, but stresses up to {stress:.3g} bar and forces up to {force:.2g} eV/Å that "
            "changing its edges together does not relax. Name another crystal, or write the factor of 'scale' as a "
            "number."
        )
