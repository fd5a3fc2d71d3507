"""Validation: small tasks, each with a verdict against a stated threshold.

``errors`` on held-out frames; ``stability`` of molecular dynamics driven by the model; ``rdf`` of that run against one
with the reference potential from the same start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.models import Mean
from campaign.errors import EngineError
from campaign.frames import Frames
from campaign.science import criteria
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.trained import load_models
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.engines.lammps_model import Forces
    from campaign.store.store import Store

VERSION = 2

#: Frames near a run's temperature that stand for its equilibrium.
NEAR = 8

#: Points of a parity plot that are kept for the report.
PARITY_POINTS = 2000


class Validate:
    """Plans every test as soon as what it needs is there.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file to the hash of its content.
    """

    name = "validate"

    def __init__(self, campaign: Campaign, digests: dict[str, str]) -> None:
        self._campaign = campaign
        self._digests = digests
        self._tests = campaign.validation
        self._ids: dict[str, str] = {}  # what ("errors 0", "md 1", "reference 1", "rdf 2") -> task id
        self._settled: dict[str, str] = {}  # task id -> state
        self._skipped: set[str] = set()

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the tests that became possible."""
        main = next((s for s in board.sets.values() if s.train), None)
        if main is None:
            return
        run = -1
        for number, test in enumerate(self._tests):
            if test.method == "errors":
                yield from self._errors(number, board)
            elif test.method == "stability":
                run = number
                yield from self._stability(number, main, board)
            elif test.method == "rdf":
                yield from self._reference(run, main)
                yield from self._rdf(number, run)

    def _new(self, what: str, task: Task) -> Iterator[Task]:
        if what in self._ids:
            return
        known = task.id in self._ids.values()  # a test that stands twice in the file is done once
        self._ids[what] = task.id
        if not known:
            yield task

    def _errors(self, number: int, board: Board) -> Iterator[Task]:
        from campaign.config import Errors

        what = f"errors {number}"
        if what in self._ids or not (_all_trained(board) and board.set_settled(HELD_OUT)):
            return
        test = self._tests[number]
        assert isinstance(test, Errors)
        trained = [s.name for s in board.sets.values() if s.train]
        models = {name: board.models[name] for name in trained if board.models.get(name)}
        labels = [str(board.labels[f]) for f in board.labelled(HELD_OUT)]
        if not labels or trained[0] not in models:  # without the set to compare with, the test still has its worth
            self._skipped.add(what)
            return
        params = {"method": "errors", "models": models, "threshold": test.threshold.model_dump(mode="json")}
        yield from self._new(what, Task("validate", "errors", params, tuple(labels), VERSION, priority=3))

    def _dynamics(self, number: int, start: list[str]) -> dict[str, Json]:
        test = self._tests[number]
        keys = ("ensemble", "temperature", "pressure", "time", "timestep", "every")
        spec = test.model_dump(mode="json")
        return {**{k: spec[k] for k in keys}, "seed": [self._campaign.seed, number], "start": start}

    def _stability(self, number: int, main: FrameSet, board: Board) -> Iterator[Task]:
        what = f"md {number}"
        if what in self._ids or main.name not in board.trained:
            return
        models = board.models.get(main.name, [])
        if not models:
            self._skipped.add(what)
            return
        params = {"method": "stability", **self._dynamics(number, main.chosen)}
        params["models"] = models
        yield from self._new(what, Task("validate", "stability", params, (), VERSION, priority=3))

    def _reference(self, number: int, main: FrameSet) -> Iterator[Task]:
        if not main.closed or not main.chosen:
            return
        params = {"method": "reference", **self._dynamics(number, main.chosen)}
        extra: dict[str, Json] = {}
        if self._campaign.system.potential is not None:
            path = self._campaign.system.potential.lammps
            params["potential"], extra["potential"] = self._digests[path], path
        task = Task("validate", "reference", params, (), VERSION, priority=6, extra=extra)
        yield from self._new(f"reference {number}", task)

    def _rdf(self, number: int, run: int) -> Iterator[Task]:
        what = f"rdf {number}"
        needs = [self._ids.get(f"md {run}"), self._ids.get(f"reference {run}")]
        if what in self._ids or f"md {run}" in self._skipped:
            self._skipped |= {what} - set(self._ids)
            return
        states = [self._settled.get(n) for n in needs if n is not None]
        if len(states) < 2 or None in states:
            return
        if states != ["done", "done"]:
            self._skipped.add(what)
            return
        spec = self._tests[number].model_dump(mode="json")
        task = Task("validate", "rdf", spec, tuple(n for n in needs if n is not None), VERSION, priority=3)
        yield from self._new(what, task)

    def results(self) -> list[tuple[str, str]]:
        """Return (name, task id) of every finished test, in the order of the campaign file."""
        found = []
        for number, test in enumerate(self._tests):
            task = self._ids.get(f"{'md' if test.method == 'stability' else test.method} {number}", "")
            if self._settled.get(task) == "done":
                first = [t.method for t in self._tests].index(test.method) == number
                found.append((test.method if first else f"{test.method}-{number}", task))
        return found

    def commit(self, record: Record, board: Board) -> None:
        """Note that a test is settled."""
        self._settled[record["task"]] = record["state"]

    def _expected(self) -> set[str]:
        """Return what the campaign file asks for, and the reference runs that this needs."""
        found, run = set(), -1
        for number, test in enumerate(self._tests):
            found.add(f"{'md' if test.method == 'stability' else test.method} {number}")
            if test.method == "stability":
                run = number
            elif test.method == "rdf":
                found.add(f"reference {run}")
        return found

    def total(self, board: Board) -> int:
        """Return the number of tasks, those that cannot be done included."""
        whats = self._expected()
        return len({self._ids[w] for w in whats if w in self._ids}) + sum(w not in self._ids for w in whats)

    def finished(self, board: Board) -> bool:
        """Tell whether every test is settled, or cannot be done for want of a model."""
        whats = set(self._ids) | self._skipped
        tests = {w for w in self._expected() if not w.startswith("reference")}
        return tests <= whats and all(i in self._settled for i in self._ids.values())


def _all_trained(board: Board) -> bool:
    return all(s.name in board.trained for s in board.sets.values() if s.train)


def work(task: Task, context: Context) -> Outcome:
    """Do one test; the result is published as JSON, dynamics with their frames."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    return {"errors": _work_errors, "rdf": _work_rdf, "stability": _work_dynamics, "reference": _work_dynamics}[
        task.params["method"]
    ](task, context, store)


def _publish(result: dict[str, Json], arrays: dict[str, Any] | None = None) -> Outcome:
    """Return an outcome whose record is the headline and whose arrays hold the whole result as JSON text."""
    result = _finite(result)
    text = json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
    headline: dict[str, Json] = {k: result[k] for k in ("method", "pass", "headline") if k in result}
    return Outcome(headline, {**(arrays or {}), "json": np.frombuffer(text, dtype="uint8")})


def _finite(value: Json) -> Json:
    """Return JSON with null for every number that is not finite: JSON has no other word for it."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(store: Store, task: str) -> dict[str, Json]:
    """Return a test's whole result."""
    found: dict[str, Json] = json.loads(store.arrays("validate", task, ("json",))["json"].tobytes())
    return found


def _work_errors(task: Task, context: Context, store: Store) -> Outcome:
    from ase.data import chemical_symbols

    from campaign.science.metrics import errors

    blocks = store.collect("label", [f"{i}:0" for i in task.inputs])
    sets: dict[str, Json] = {}
    parity: dict[str, Json] = {}
    for name, models in task.params["models"].items():
        model = Mean(load_models(store, models))
        found = [model.evaluate(b) for b in blocks]
        energy = _pairs([(b.energy / b.n_atoms, f[0] / b.n_atoms) for b, f in zip(blocks, found, strict=True)])
        forces = _pairs([(b.forces.reshape(-1, 3), f[1].reshape(-1, 3)) for b, f in zip(blocks, found, strict=True)])
        stress = _pairs([(b.stress, f[2]) for b, f in zip(blocks, found, strict=True)])
        numbers = np.concatenate([b.numbers.ravel() for b in blocks])
        sets[name] = {"energy": errors(*energy), "forces": errors(*forces), "stress": errors(*stress)}
        sets[name]["species"] = {
            chemical_symbols[z]: errors(forces[0][numbers == z], forces[1][numbers == z]) for z in np.unique(numbers)
        }
        parity[name] = {"energy": _thin(*energy), "forces": _thin(*forces)}
    limit = task.params["threshold"]["forces"]
    main = next(iter(sets))
    rmse = sets[main]["forces"]["rmse"]
    whole = all(math.isfinite(sets[main][k]["max"]) for k in ("energy", "forces", "stress"))
    return _publish(
        {
            "method": "errors",
            "pass": whole and (limit is None or rmse <= limit),
            "cause": "" if whole else "The model gave energies, forces or stresses that are not finite.",
            "headline": {n: {f"force_{k}": s["forces"][k] for k in ("rmse", "l4")} for n, s in sets.items()},
            "threshold": task.params["threshold"],
            "held_out": sum(len(b) for b in blocks),
            "sets": sets,
            "parity": parity,
        }
    )


def _pairs(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _thin(reference: Any, predicted: Any) -> list[list[float]]:
    """Return at most PARITY_POINTS evenly spaced points."""
    x, y = np.ravel(reference), np.ravel(predicted)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), PARITY_POINTS)).astype(int))
    return [np.round(x[keep], 5).tolist(), np.round(y[keep], 5).tolist()]


def _work_dynamics(task: Task, context: Context, store: Store) -> Outcome:
    """Run molecular dynamics with the model, or with the reference potential from the same start."""
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.fake import ToyCrystal
    from campaign.engines.lammps_potential import PotentialLines, load_potential

    p = task.params
    near = _nearest(store, p["start"], p["temperature"])
    start = near[:1]
    model: Forces | None = None
    if p["method"] == "stability":
        model = Mean(load_models(store, p["models"]))
    elif "potential" not in task.extra:  # a campaign of fakes has no reference but the toy crystal
        model = ToyCrystal()
    if model is None:
        potential = load_potential(context.run / task.extra["potential"])
    else:
        potential = PotentialLines(_elements(start), "")
    frames = max(1, round(p["time"] / (p["timestep"] * p["every"])))
    pressure = p["pressure"] if p["ensemble"] == "npt" else None
    span = (float(p["temperature"]),) * 2
    segment = Segment(frames, p["every"], 0, p["timestep"], span, pressure)
    seed = int(np.random.SeedSequence(p["seed"]).generate_state(1)[0])
    failure = ""
    try:
        begin = Start(start.numbers[0], start.positions[0], start.cell[0], seed)
        arrays, _checkpoint = run_segment(potential, segment, begin, model)
    except EngineError as error:  # the failure is the finding
        if p["method"] == "reference":
            raise
        arrays, failure = error.frames or {}, str(error)
    kinetic = arrays.pop("kinetic", np.zeros(0))
    run = Frames.build(start.numbers[0], **arrays, task=task.number) if arrays else start[:0]
    result = criteria.judge(run, kinetic, near, p, failure)
    result["method"] = p["method"]
    return _publish(result, {**dict(run.arrays()), "kinetic": kinetic})


def _nearest(store: Store, candidates: list[str], temperature: float) -> Frames:
    """Return, of some frames of the pool, the few whose thermostat was nearest to ``temperature``, nearest first."""
    block = store.collect("sample", candidates)[0]
    off = np.abs(block.temperature - temperature)
    return block[np.argsort(np.where(np.isnan(off), np.inf, off), kind="stable")[:NEAR]]


def _elements(frames: Frames) -> tuple[str, ...]:
    from ase.data import chemical_symbols

    return tuple(chemical_symbols[z] for z in np.unique(frames.numbers))


def _work_rdf(task: Task, context: Context, store: Store) -> Outcome:
    from campaign.science.rdf import partial_rdf

    p = task.params
    found = []
    for run in task.inputs:
        frames = store.frames("validate", run)
        if not len(frames):  # of the model: a reference without frames has failed
            return _publish(_no_structure(p))
        settled = frames[len(frames) // 5 :]  # the first fifth is the way from the start to equilibrium
        found.append(partial_rdf(settled, p["cutoff"], p["bins"]))
    model, reference = found
    pairs = {}
    for name, (r, g) in reference.items():
        difference = float(np.abs(model[name][1] - g).mean())
        pairs[name] = {
            "r": np.round(r, 4).tolist(),
            "model": np.round(model[name][1], 4).tolist(),
            "reference": np.round(g, 4).tolist(),
            "difference": difference,
        }
    worst = max(v["difference"] for v in pairs.values())
    return _publish(
        {
            "method": "rdf",
            "pass": worst <= p["threshold"],
            "headline": {"worst": worst},
            "threshold": p["threshold"],
            "pairs": pairs,
        }
    )


def _no_structure(p: dict[str, Json]) -> dict[str, Json]:
    """Return the verdict on a run of which no frame was kept."""
    cause = "The run with the model kept no frame to compare."
    headline = {"worst": None}
    return {
        "method": "rdf", "pass": False, "cause": cause, "headline": headline, "threshold": p["threshold"], "pairs": {},
    }  # fmt: skip
