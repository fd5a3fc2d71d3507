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
        There was still pressure after ``ROUNDS`` minimisations.
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
                return Frames.build(
                    atoms.numbers,
                    state["positions"][None],
                    state["cell"],
                    energy=state["energy"],
                    forces=state["forces"][None],
                    stress=state["stress"],
                )
    raise Unconverged(
        f"The crystal was not relaxed by {ROUNDS} minimisations: {left:.3g} bar are left. Start nearer to its lattice "
        "constant, or write the factor of 'scale' as a number."
    )
