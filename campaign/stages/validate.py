"""Validation: small tasks, each with a verdict against a stated threshold.

``errors`` on held-out frames; ``stability`` of molecular dynamics driven by the model; ``rdf`` of that run against one
with the reference potential from the same start. Runs are chains of segments (``validate_md``), as those of sampling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.models import Mean
from campaign.stages import validate_md
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.trained import load_models
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.store.store import Store

VERSION = 4

#: The runs of a test of stability: with the model, and with the reference potential where a later test asks for it.
RUNS = ("md", "reference")

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
        self._planned: set[str] = set()  # task ids
        self._segments: dict[str, list[str]] = {}  # run ("md 1", "reference 1") -> its segments so far
        self._ended: set[str] = set()  # segments at whose end the run had failed
        self._lost: set[str] = set()  # runs of which a segment could not be done

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the tests that became possible."""
        main = board.training()
        if main is None or board.learning:
            return
        run = -1
        for number, test in enumerate(self._tests):
            if test.method == "errors":
                yield from self._errors(number, main, board)
            elif test.method == "stability":
                run = number
                yield from self._stability(number, main, board)
            elif test.method == "rdf":
                yield from self._reference(run, main, board)
                yield from self._rdf(number, run)

    def _new(self, what: str, task: Task) -> Iterator[Task]:
        if what in self._ids:
            return
        self._ids[what] = task.id
        if task.id not in self._planned:  # a test that stands twice in the file is done once
            self._planned.add(task.id)
            yield task

    def _errors(self, number: int, main: FrameSet, board: Board) -> Iterator[Task]:
        from campaign.config import Errors

        what = f"errors {number}"
        if what in self._ids or not (_all_trained(board) and board.set_settled(HELD_OUT)):
            return
        test = self._tests[number]
        assert isinstance(test, Errors)
        trained = [main.name, *(s.name for s in board.sets.values() if s.train and s is not main)]
        models = {name: board.models[name] for name in trained if board.models.get(name)}
        labels = [str(board.labels[f]) for f in board.labelled(HELD_OUT)]
        if not labels or trained[0] not in models:  # without the set to compare with, the test still has its worth
            self._skipped.add(what)
            return
        params = {"method": "errors", "models": models, "threshold": test.threshold.model_dump(mode="json")}
        yield from self._new(what, Task("validate", "errors", params, tuple(labels), VERSION, priority=3))

    def _dynamics(self, number: int, board: Board) -> dict[str, Json]:
        """Return what is run; it starts from a frame that was chosen from the pool, not from one that was learned."""
        start = next(s.chosen for s in board.sets.values() if s.train)
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
        params = {"method": "stability", **self._dynamics(number, board)}
        params["models"] = models
        yield from self._run(number, Task("validate", "stability", params, (), VERSION, priority=3))

    def _reference(self, number: int, main: FrameSet, board: Board) -> Iterator[Task]:
        if not main.closed or not main.chosen:
            return
        params = {"method": "reference", **self._dynamics(number, board)}
        extra: dict[str, Json] = {}
        if self._campaign.system.potential is not None:
            path = self._campaign.system.potential.lammps
            params["potential"], extra["potential"] = self._digests[path], path
        yield from self._run(number, Task("validate", "reference", params, (), VERSION, priority=6, extra=extra))

    def _run(self, number: int, verdict: Task) -> Iterator[Task]:
        """Yield the next segment of a run of molecular dynamics, and after the last one the task that sums it up."""
        what = f"{'md' if verdict.name == 'stability' else 'reference'} {number}"
        if what in self._ids or what in self._lost:
            return
        done = self._segments.setdefault(what, [])
        lengths = _segments(self._tests[number])
        while not done or self._settled.get(done[-1]) is not None:
            k = len(done)
            if done and self._settled[done[-1]] != "done":
                self._lost.add(what)
                return
            if k == len(lengths) or (done and done[-1] in self._ended):
                yield from self._new(what, replace(verdict, inputs=tuple(done)))
                return
            params = {**verdict.params, "segment": k, "frames": lengths[k], "first": sum(lengths[:k])}
            before = (done[-1],) if done else ()
            task = replace(verdict, name=f"{verdict.name}/segment {k}", params=params, inputs=before)
            done.append(task.id)
            if task.id not in self._planned:
                self._planned.add(task.id)
                yield task

    def _rdf(self, number: int, run: int) -> Iterator[Task]:
        what = f"rdf {number}"
        if what in self._ids or f"md {run}" in self._skipped:
            self._skipped |= {what} - set(self._ids)
            return
        needs = [f"md {run}", f"reference {run}"]
        states = ["lost" if n in self._lost else self._settled.get(self._ids.get(n, "")) for n in needs]
        if None in states:
            return
        if states != ["done", "done"]:
            self._skipped.add(what)
            return
        spec = self._tests[number].model_dump(mode="json")
        task = Task("validate", "rdf", spec, tuple(self._ids[n] for n in needs), VERSION, priority=3)
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
        """Note that a test, or a segment of a run, is settled."""
        self._settled[record["task"]] = record["state"]
        if record["result"].get("failure"):
            self._ended.add(record["task"])

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
        return len(self._planned) + self._to_come() + sum(w not in self._ids for w in whats)

    def _to_come(self) -> int:
        """Return how many segments are still to be planned, as far as is known: none of a run that has failed."""
        count = 0
        runs = {f"{kind} {n}": n for n, t in enumerate(self._tests) if t.method == "stability" for kind in RUNS}
        for what in self._expected() & set(runs):
            planned = self._segments.get(what, [])
            ended = what in self._lost | self._skipped or (planned and planned[-1] in self._ended)
            count += 0 if ended else len(_segments(self._tests[runs[what]])) - len(planned)
        return count

    def finished(self, board: Board) -> bool:
        """Tell whether every test is settled, or cannot be done for want of a model."""
        whats = set(self._ids) | self._skipped | self._lost
        return self._expected() <= whats | self._idle() and all(i in self._settled for i in self._planned)

    def _idle(self) -> set[str]:
        """Return the reference runs that nobody waits for: they never began."""
        return {w for w in self._expected() if w.startswith("reference") and w not in self._segments}


def _segments(test: Any) -> list[int]:
    """Return the frames of each segment of a run; a short last one."""
    frames = max(1, round(test.time / (test.timestep * test.every)))
    return [min(test.segment, frames - k) for k in range(0, frames, test.segment)]


def _all_trained(board: Board) -> bool:
    return all(s.name in board.trained for s in board.sets.values() if s.train)


def work(task: Task, context: Context) -> Outcome:
    """Do one test; the result is published as JSON, dynamics with their frames."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if "segment" in task.params:
        return validate_md.work_segment(task, context, store)
    if task.params["method"] in ("stability", "reference"):
        result, arrays = validate_md.verdict(task, store)
        return _publish(result, arrays)
    return {"errors": _work_errors, "rdf": _work_rdf}[task.params["method"]](task, context, store)


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


def _work_rdf(task: Task, context: Context, store: Store) -> Outcome:
    from campaign.science.rdf import partial_rdf

    p = task.params
    found = []
    for run in task.inputs:
        frames = validate_md.frames_of(store, read_result(store, run)["segments"])
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
