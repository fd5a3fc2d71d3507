"""Anything that evaluates frames, as an ASE calculator; and a LAMMPS potential as something that evaluates frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import EngineError
from campaign.frames import Array, Frames

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from campaign.engines.lammps_model import Forces
    from campaign.engines.lammps_potential import PotentialLines


def calculator(model: Forces) -> Calculator:
    """Wrap anything with ``evaluate``; the class is made here because ASE is only imported where it is used.

    Its calculation raises ``EngineError`` for atoms that are not periodic in three directions.
    """
    from ase.calculators.calculator import Calculator, all_changes
    from ase.stress import full_3x3_to_voigt_6_stress

    class PotentialCalculator(Calculator):  # type: ignore[misc]
        implemented_properties = ("energy", "free_energy", "forces", "stress")

        def calculate(
            self, atoms: Any = None, properties: Sequence[str] = ("energy",), system_changes: Any = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            if not self.atoms.pbc.all():
                raise EngineError(
                    "The atoms are not periodic in three directions, and this potential takes every cell as periodic; "
                    "set atoms.pbc = True, in a cell so wide that nothing meets its own image where it should not."
                )
            frame = Frames.build(self.atoms.numbers, self.atoms.positions[None], np.array(self.atoms.cell))
            energy, forces, stress = model.evaluate(frame)
            self.results = {
                "energy": float(energy[0]),
                "free_energy": float(energy[0]),
                "forces": forces[0],
                "stress": full_3x3_to_voigt_6_stress(stress[0]),
            }

    return PotentialCalculator()


class ClassicalForces:
    """A LAMMPS potential with the interface of a model; every frame has a fresh LAMMPS.

    Parameters
    ----------
    potential
        Its lines.
    """

    def __init__(self, potential: PotentialLines) -> None:
        self._potential = potential

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive."""
        from campaign.engines.lammps import single_points

        return single_points(self._potential, frames)
