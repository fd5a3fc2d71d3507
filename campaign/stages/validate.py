"""Validation: small tasks, each with a verdict against a stated threshold.

``errors`` on held-out frames; ``relax`` of crystals; ``stability`` of molecular dynamics driven by the model; and what
is read from such runs and those with the reference potential from the same start: ``rdf``, ``overlap``, ``rerun``, and
``density``, ``diffusion``, ``conductivity``. A run that several tests ask for is made once (``validate_runs``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.config.validations import OnRun
from campaign.engines.models import Mean
from campaign.stages import validate_md
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.reference import reference_of
from campaign.stages.trained import load_models
from campaign.stages.validate_runs import ALONE, KEYS, Chain, runs_of
from campaign.stages.verdicts import publish, read_result
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.store.store import Store

VERSION = 4

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
        self._runs, self._needs = runs_of(self._tests, campaign.seed)
        self._chains = {what: Chain(run) for k, run in enumerate(self._runs) for what in (f"md {k}", f"reference {k}")}
        self._ids: dict[str, str] = {}  # what ("errors 0", "md 1", "reference 1", "rdf 2") -> task id
        self._settled: dict[str, str] = {}  # task id -> state
        self._skipped: set[str] = set()
        self._planned: set[str] = set()  # task ids

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the tests that became possible."""
        main = board.training()
        if main is None:
            return
        if board.learning:  # which models are tested is not known yet; the reference does not depend on them
            for what in dict.fromkeys(w for n in range(len(self._tests)) for w in self._runs_for(n)):
                if what.startswith("reference"):
                    yield from self._reference_run(what, main, board)
            return
        for number, test in enumerate(self._tests):
            if test.method == "errors":
                yield from self._errors(number, main, board)
            elif test.method == "relax":
                yield from self._relax(number, main, board)
            else:
                for what in self._runs_for(number):
                    if what.startswith("md"):
                        yield from self._model_run(what, main, board)
                    else:
                        yield from self._reference_run(what, main, board)
                if test.method != "stability":
                    yield from self._on_runs(number)

    def _runs_for(self, number: int) -> list[str]:
        """Return the runs that a test works on, those with the model first."""
        test, runs = self._tests[number], self._needs[number]
        alone = test.method in ALONE or getattr(test, "reference", None) is not None
        return [f"md {k}" for k in runs] + ([] if alone else [f"reference {k}" for k in runs])

    def _what(self, number: int) -> str:
        """Return the task that a test's verdict is."""
        method = self._tests[number].method
        return f"md {self._needs[number][0]}" if method == "stability" else f"{method} {number}"

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

    def _relax(self, number: int, main: FrameSet, board: Board) -> Iterator[Task]:
        what = f"relax {number}"
        if what in self._ids or main.name not in board.trained:
            return
        models = board.models.get(main.name, [])
        if not models:
            self._skipped.add(what)
            return
        spec = self._tests[number].model_dump(mode="json")
        spec["system"] = self._campaign.system.structure.model_dump(mode="json") if not spec["structures"] else {}
        for structure in (*spec["structures"], spec["system"]):
            structure["digest"] = self._digests.get(structure.get("file", ""), "")
        params, extra = reference_of(self._campaign.reference, self._digests)
        task = Task("validate", "relax", {**spec, **params, "models": models}, (), VERSION, priority=3, extra=extra)
        yield from self._new(what, task)

    def _model_run(self, what: str, main: FrameSet, board: Board) -> Iterator[Task]:
        if what in self._ids or main.name not in board.trained:
            return
        models = board.models.get(main.name, [])
        if not models:
            self._skipped.add(what)
            return
        run = self._chains[what].run
        params = {"method": "stability", **run.params(_start(board)), **run.guarded, "models": models}
        yield from self._run(what, Task("validate", "stability", params, (), VERSION, priority=3))

    def _reference_run(self, what: str, main: FrameSet, board: Board) -> Iterator[Task]:
        if not main.closed or not main.chosen:
            return
        params, extra = reference_of(self._campaign.reference, self._digests)
        params = {"method": "reference", **self._chains[what].run.params(_start(board)), **params}
        yield from self._run(what, Task("validate", "reference", params, (), VERSION, priority=6, extra=extra))

    def _run(self, what: str, whole: Task) -> Iterator[Task]:
        """Yield the next segment of a run of molecular dynamics, and after the last one the task that sums it up."""
        chain = self._chains[what]
        for task in chain.plan(whole, self._settled):
            if chain.whole == task.id:
                yield from self._new(what, task)
            else:
                self._planned.add(task.id)
                yield task

    def _on_runs(self, number: int) -> Iterator[Task]:
        test, what = self._tests[number], self._what(number)
        needs = self._runs_for(number)
        if what in self._ids:
            return
        if any(n in self._skipped for n in needs):
            self._skipped.add(what)
            return
        states = ["lost" if self._chains[n].lost else self._settled.get(self._ids.get(n, "")) for n in needs]
        if None in states:
            return
        if set(states) != {"done"}:
            self._skipped.add(what)
            return
        own = set(OnRun.model_fields) if isinstance(test, OnRun) else {*KEYS, "segment", "temperatures"}
        spec = test.model_dump(mode="json", exclude=own)
        extra: dict[str, Json] = {}
        if test.method != "rdf":
            spec["runs"] = [{k: self._runs[r].spec[k] for k in KEYS} for r in self._needs[number]]
        if test.method == "rerun":
            params, extra = reference_of(self._campaign.reference, self._digests)
            spec |= params
        elif test.method == "overlap":
            spec["seed"] = self._campaign.seed
        inputs = tuple(self._ids[n] for n in needs)
        yield from self._new(what, Task("validate", test.method, spec, inputs, VERSION, priority=3, extra=extra))

    def results(self) -> list[tuple[str, str]]:
        """Return (name, task id) of every finished test, in the order of the campaign file."""
        found = []
        for number, test in enumerate(self._tests):
            task = self._ids.get(self._what(number), "")
            if self._settled.get(task) == "done":
                first = [t.method for t in self._tests].index(test.method) == number
                found.append((test.method if first else f"{test.method}-{number}", task))
        return found

    def runs(self) -> list[str]:
        """Return the task that sums up each finished run with the model, whatever test asked for it."""
        found = [self._ids.get(f"md {k}", "") for k in range(len(self._runs))]
        return [task for task in found if self._settled.get(task) == "done"]

    def commit(self, record: Record, board: Board) -> None:
        """Note that a test, or a segment of a run, is settled."""
        self._settled[record["task"]] = record["state"]
        if record["result"].get("failure"):
            for chain in self._chains.values():
                chain.ended |= record["task"] in chain.segments

    def _expected(self) -> set[str]:
        """Return what the campaign file asks for, and the runs that this needs."""
        numbers = range(len(self._tests))
        return {self._what(n) for n in numbers} | {run for n in numbers for run in self._runs_for(n)}

    def total(self, board: Board) -> int:
        """Return the number of tasks, those that cannot be done included."""
        expected = self._expected()
        to_come = sum(self._chains[w].to_come for w in expected & set(self._chains) if w not in self._skipped)
        return len(self._planned) + to_come + sum(w not in self._ids for w in expected)

    def finished(self, board: Board) -> bool:
        """Tell whether every test is settled, or cannot be done for want of a model."""
        lost = {what for what, chain in self._chains.items() if chain.lost}
        whats = set(self._ids) | self._skipped | lost
        return self._expected() <= whats | self._idle() and all(i in self._settled for i in self._planned)

    def _idle(self) -> set[str]:
        """Return the reference runs that nobody waits for: they never began."""
        return {w for w, chain in self._chains.items() if w.startswith("reference") and not chain.segments}


def _start(board: Board) -> list[str]:
    """Return what runs may start from: frames that were chosen from the pool, not those that were learned."""
    return next(s.chosen for s in board.sets.values() if s.train)


def _all_trained(board: Board) -> bool:
    return all(s.name in board.trained for s in board.sets.values() if s.train)


def work(task: Task, context: Context) -> Outcome:
    """Do one test; the result is published as JSON, dynamics with their frames."""
    from campaign.stages import validate_physics, validate_relax
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if "segment" in task.params:
        return validate_md.work_segment(task, context, store)
    if task.params["method"] in ("stability", "reference"):
        result, arrays = validate_md.verdict(task, store)
        return publish(result, arrays)
    return {
        "errors": _work_errors,
        "rdf": _work_rdf,
        "relax": validate_relax.work_relax,
        "density": validate_physics.work_density,
        "diffusion": validate_physics.work_diffusion,
        "conductivity": validate_physics.work_conductivity,
        "rerun": validate_physics.work_rerun,
        "overlap": validate_physics.work_overlap,
    }[task.params["method"]](task, context, store)


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
    return publish(
        {
            "method": "errors",
            "judged": main,
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
            return publish(_no_structure(p))
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
    return publish(
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
