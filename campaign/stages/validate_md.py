"""Molecular dynamics of validation, in segments: a run that was killed goes on from its last checkpoint.

A segment is a task with the one before it as its input. It leaves its frames; for the next one a LAMMPS restart and the
steps that a ``Watch`` remembers. A run with the model ends at the first sign of failure: its segment is done, with
``result["failure"]`` saying why, and the verdict is made of the segments up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.models import Mean
from campaign.errors import EngineError, Unphysical
from campaign.frames import Frames
from campaign.science import criteria
from campaign.stages.trained import load_models
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.engines.guards import Limits
    from campaign.engines.lammps_model import Forces
    from campaign.engines.lammps_potential import PotentialLines
    from campaign.store.store import Store

#: Frames near a run's temperature that stand for its equilibrium.
NEAR = 8

#: How LAMMPS's own words begin; of the errors that are not ``Unphysical``, all others say that the model could not run.
LAMMPS = "LAMMPS: "

#: Of the arrays of a segment, those of the steps before a failure; of a checkpoint, what the watch remembers.
BEFORE, WATCH = "before.", "watch."


def work_segment(task: Task, context: Context, store: Store) -> Outcome:
    """Run one segment with the model, or with the reference potential from the same start."""
    from campaign.engines import lammps
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.guards import FirstSign, Watch, heights

    p = task.params
    near = _nearest(store, p["start"], p["temperature"])
    numbers, cell = near.numbers[0], near.cell[0]
    before = store.checkpoint(task.inputs[0]) if p["segment"] else {}
    start: Start | bytes
    if before:
        start = before["restart"].tobytes()
    else:
        seed = int(np.random.SeedSequence(p["seed"]).generate_state(1)[0])
        start = Start(numbers, near.positions[0], cell, seed)
    x, y, z = heights(cell).tolist()
    pressure = p["pressure"] if p["ensemble"] == "npt" else None
    span = (float(p["temperature"]),) * 2
    segment = Segment(
        p["frames"], p["every"], p["first"] * p["every"], p["timestep"], span, pressure, heights=(x, y, z)
    )
    model, potential = _forces(task, context, store, near)
    watch = None
    if p["method"] == "stability":
        watch = Watch(numbers, _limits(near, p), _unpacked(before, WATCH) or None)
    failure, sign, restart = "", None, b""
    try:
        arrays, restart = run_segment(potential, segment, start, model, watch=watch)
    except EngineError as error:  # the failure is the finding, where it is of the dynamics
        if p["method"] == "reference" or not (isinstance(error, Unphysical) or str(error).startswith(LAMMPS)):
            raise
        arrays, failure = error.frames or {}, str(error)
        sign = error.sign if isinstance(error, FirstSign) else None
    kinetic = arrays.pop("kinetic", np.zeros(0))
    run = Frames.build(numbers, **arrays, task=task.number) if arrays else near[:0]
    found = {**dict(run.arrays()), "kinetic": kinetic}
    checkpoint: dict[str, Any] | None = {"restart": np.frombuffer(restart, dtype="uint8")}
    if failure:
        checkpoint = None
        found |= {BEFORE + name: value for name, value in (watch.frames() if watch is not None else {}).items()}
    elif watch is not None and checkpoint is not None:
        checkpoint |= {WATCH + name: value for name, value in watch.state().items()}
    summary: dict[str, Json] = {"method": p["method"], "frames": len(run), "failure": failure}
    summary |= {"sign": sign} if sign is not None else {}
    return Outcome(summary, found, checkpoint, lammps.versions())


def verdict(task: Task, store: Store) -> tuple[dict[str, Json], dict[str, Any]]:
    """Judge a run by its segments; the frames beside the verdict are the steps before a failure, the last the failed.

    They have the ids ``TASK:0`` and so on of this task, and can be labelled and added to a training set.
    """
    p = task.params
    last = store.locate("validate", task.inputs[-1]).record["result"]
    run = frames_of(store, task.inputs)
    kinetic = np.concatenate([store.arrays("validate", i, ("kinetic",))["kinetic"] for i in task.inputs])
    near = _nearest(store, p["start"], p["temperature"])
    result = criteria.judge(run, kinetic, near, p, last["failure"], last.get("sign"))
    result["method"] = p["method"]
    result["segments"] = list(task.inputs)
    arrays = _unpacked(store.arrays("validate", task.inputs[-1]), BEFORE) if last["failure"] else {}
    before = near[:0]
    if arrays:
        set_to = {"temperature": p["temperature"], "pressure": p["pressure"] if p["ensemble"] == "npt" else np.nan}
        before = Frames.build(near.numbers[0], **arrays, **set_to, task=task.number)
    result["before"] = before.ids
    if len(before) and result["first_bad"].get("step") == before.step[-1]:
        result["first_bad"]["frame"] = before.ids[-1]
    return result, dict(before.arrays())


def frames_of(store: Store, segments: Sequence[str]) -> Frames:
    """Return the frames of a run, in order."""
    return Frames.concat(store.frames("validate", task) for task in segments)


def _forces(task: Task, context: Context, store: Store, near: Frames) -> tuple[Forces | None, PotentialLines]:
    """Return the model that drives a run, None for a potential, and LAMMPS's lines."""
    from campaign.engines.fake import ToyCrystal
    from campaign.engines.lammps_potential import PotentialLines, load_potential

    if task.params["method"] == "reference" and "potential" in task.extra:
        return None, load_potential(context.run / task.extra["potential"])
    model: Forces = ToyCrystal()  # a campaign of fakes has no reference but the toy crystal
    if task.params["method"] == "stability":
        model = Mean(load_models(store, task.params["models"]))
    return model, PotentialLines(_elements(near), "")


def _limits(near: Frames, p: Mapping[str, Json]) -> Limits:
    from campaign.engines.guards import Limits

    guards = criteria.GUARDS | p.get("guards", {})
    volume = guards["volume"] * float(near.volume.mean())
    return Limits(guards["closest"], guards["force"], volume, guards["temperature"] * p["temperature"])


def _unpacked(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _nearest(store: Store, candidates: list[str], temperature: float) -> Frames:
    """Return, of some frames of the pool, the few whose thermostat was nearest to ``temperature``, nearest first."""
    block = store.collect("sample", candidates)[0]
    off = np.abs(block.temperature - temperature)
    return block[np.argsort(np.where(np.isnan(off), np.inf, off), kind="stable")[:NEAR]]


def _elements(frames: Frames) -> tuple[str, ...]:
    from ase.data import chemical_symbols

    return tuple(chemical_symbols[z] for z in np.unique(frames.numbers))
