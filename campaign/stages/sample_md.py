"""Sampling with a trained model: what drives the walkers, and what stops them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.frames import Array
from campaign.tasks import Context, Task

if TYPE_CHECKING:
    from ase import Atoms

    from campaign.engines.walkers import Stretch

#: Of a segment's arrays, those of the steps before a walker's failure: ``before.WALKER.positions`` and so on.
BEFORE = "before."


def driver(task: Task, context: Context, atoms: Atoms) -> dict[str, Any]:
    """Return what a job with a model has in place of a potential's lines: fields of ``walkers.Job``."""
    from campaign.engines.lammps_potential import PotentialLines

    p, guards = task.params, dict(task.params["guards"])
    elements = tuple(dict.fromkeys(sorted(atoms.get_chemical_symbols())))
    limits = {
        "closest": guards["closest"],
        "force": guards["force"],
        "volume": guards["volume"] * float(atoms.get_volume()),
        "temperature": guards["temperature"] * max(p["temperature"]),
        "energy": guards["energy"] if p["ensemble"] == "nve" else None,
    }
    return {
        "potential": PotentialLines(elements, ""),
        "model": str(context.run / task.extra["model"]),
        "limits": limits,
        "arrays": {"numbers": np.asarray(atoms.numbers)},
    }


def before(found: Mapping[int, Stretch]) -> dict[str, Array]:
    """Return the steps before each walker's failure, by names that no frame's array has; most often nothing."""
    return {
        f"{BEFORE}{number}.{name}": np.asarray(value)
        for number, stretch in found.items()
        if stretch.cause
        for name, value in stretch.extra.items()
    }
