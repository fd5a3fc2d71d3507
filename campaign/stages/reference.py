"""The potential that a campaign's model is compared with, as a worker uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from campaign.engines.lammps_model import Forces
from campaign.tasks import Context, Json, Task

if TYPE_CHECKING:
    from campaign.config import Potential


def reference_forces(task: Task, context: Context) -> Forces:
    """Return what gives the reference's energy, forces and stress: ``task.extra["potential"]`` is its file.

    A campaign of fakes has no reference but the toy crystal.

    Raises
    ------
    InputError
        The file is no potential.
    """
    if "potential" in task.extra:
        from campaign.engines.ase_calculator import ClassicalForces
        from campaign.engines.lammps_potential import load_potential

        return ClassicalForces(load_potential(context.run / task.extra["potential"]))
    from campaign.engines.fake import ToyCrystal

    return ToyCrystal()


def reference_of(potential: Potential | None, digests: dict[str, str]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return what enters a task's parameters for the reference, and what its worker finds it by.

    Parameters
    ----------
    potential
        ``Campaign.reference``.
    digests
        Path of each data file to the hash of its content.
    """
    if potential is None:
        return {}, {}
    return {"potential": digests[potential.lammps]}, {"potential": potential.lammps}
