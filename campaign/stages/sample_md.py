"""Sampling with a trained model: what drives the walkers, and what stops them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.frames import Array
from campaign.tasks import Context, Task

if TYPE_CHECKING:
    from ase import Atoms

    from campaign.engines.walkers import Stretch
    from campaign.store.store import Store

#: Of a segment's arrays, those of the steps before a walker's failure: ``before.WALKER.positions`` and so on.
BEFORE = "before."


def driver(task: Task, context: Context, store: Store, atoms: Atoms) -> dict[str, Any]:
    """Return what a job with a model has in place of a potential's lines: fields of ``walkers.Job``.

    The model is a file that the campaign names, or one of its own trainings.
    """
    from campaign.engines.lammps_potential import PotentialLines

    p, guards = task.params, dict(task.params["guards"])
    elements = tuple(dict.fromkeys(sorted(atoms.get_chemical_symbols())))
    limits = {
        "closest": guards["closest"],
        "force": guards["force"],
        "volume": guards["volume"] * float(abs(np.linalg.det(first_cell(task, store, atoms)))),
        "temperature": guards["temperature"] * max(p["temperature"]),
        "energy": guards["energy"] if p["ensemble"] == "nve" else None,
    }
    return {
        "potential": PotentialLines(elements, ""),
        "model": str(_trained(task, context, store) if "trained" in p else context.run / task.extra["model"]),
        "device": task.extra.get("device", "cpu"),
        "limits": limits,
        "arrays": {"numbers": np.asarray(atoms.numbers)},
    }


def first_cell(task: Task, store: Store, atoms: Atoms) -> Array:
    """Return the cell that a walker's is compared with: its start's; in learning, that of its first round."""
    frame = task.params.get("volume_of")
    return np.array(atoms.cell) if frame is None else np.asarray(store.collect("sample", [frame])[0].cell[0])


def _trained(task: Task, context: Context, store: Store) -> Path:
    """Return the file of a training of this run; it is exported again where somebody has removed it."""
    from campaign.stages.trained import export_model, load_model

    training = task.params["trained"]
    file = next((context.run / "models").glob(f"*-{training}.pt"), None)
    if file is None:
        file = context.folder(task) / "model.pt"
        export_model(load_model(store, training), file)
    return file


def before(found: Mapping[int, Stretch]) -> dict[str, Array]:
    """Return the steps before each walker's failure, by names that no frame's array has; most often nothing."""
    return {
        f"{BEFORE}{number}.{name}": np.asarray(value)
        for number, stretch in found.items()
        if stretch.cause
        for name, value in stretch.extra.items()
    }


def last_steps(found: Mapping[int, Stretch]) -> dict[str, int]:
    """Return the last step that was watched of each walker that failed: that of the failure, if it has numbers."""
    ends = {str(number): stretch.extra["step"] for number, stretch in found.items() if stretch.cause and stretch.extra}
    return {number: int(steps[-1]) for number, steps in ends.items()}
