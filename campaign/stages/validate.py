"""Validation: small tasks, each with a verdict against a stated threshold.

``errors`` on held-out frames; ``relax`` of crystals; ``stability`` of molecular dynamics driven by the model; and what
is read from such runs and those with the reference potential from the same start: ``rdf``, ``overlap``, ``rerun``, and
``density``, ``diffusion``, ``conductivity``. A run that several tests ask for is made once (``validate_runs``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from campaign.config.validations import OnRun
from campaign.stages import validate_md
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.reference import reference_of
from campaign.stages.validate_runs import ALONE, KEYS, Chain, runs_of
from campaign.stages.verdicts import publish
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign

VERSION = 5


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
        alone = test.method in ALONE or isinstance(_given(test), tuple)
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
        spec = self._tests[number].model_dump(mode="json", exclude={"reference"})
        spec["seed"] = self._campaign.seed
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
        if test.method == "density" and spec["reference"] == "potential":
            spec["reference"] = None
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

    def _names(self) -> list[str]:
        """Return the name of each test in the run directory: its method, and for a second of its kind its place."""
        methods = [t.method for t in self._tests]
        return [m if methods.index(m) == k else f"{m}-{k}" for k, m in enumerate(methods)]

    def results(self) -> list[tuple[str, str]]:
        """Return (name, task id) of every finished test, in the order of the campaign file."""
        tasks = [self._ids.get(self._what(number), "") for number in range(len(self._tests))]
        return [(n, t) for n, t in zip(self._names(), tasks, strict=True) if self._settled.get(t) == "done"]

    def compared_with(self) -> dict[str, dict[str, Json]]:
        """Return, of each test by its name that has one, the reference's ``file`` and whether it is that of the labels.

        A campaign of fakes has none: its toy crystal has no file.
        """
        potential = self._campaign.reference
        if potential is None:
            return {}
        engine = self._campaign.label.engine if self._campaign.label else "pool"
        own = engine == "lammps" or (engine == "pool" and all(s.method != "file" for s in self._campaign.sample))
        given = {n for n, t in zip(self._names(), self._tests, strict=True) if isinstance(_given(t), tuple)}
        without = {n for n, t in zip(self._names(), self._tests, strict=True) if t.method in ("errors", "stability")}
        found: dict[str, Json] = {"file": potential.lammps, "trained": own}
        return {name: found for name in self._names() if name not in given | without}

    def standing(self, board: Board) -> dict[str, Json]:
        """Return how many tests are ``asked`` for, which are ``left`` without a verdict, and whether it is ``over``."""
        done = {name for name, _ in self.results()}
        left = [name for name in self._names() if name not in done]
        return {"asked": len(self._tests), "left": left, "over": self.finished(board)}

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


def _given(test: Any) -> Any:
    """Return what a test's ``reference`` says: given values, ``potential``, or nothing."""
    return getattr(test, "reference", None)


def _start(board: Board) -> list[str]:
    """Return what runs may start from: frames that were chosen from the pool, not those that were learned."""
    return next(s.chosen for s in board.sets.values() if s.train)


def _all_trained(board: Board) -> bool:
    return all(s.name in board.trained for s in board.sets.values() if s.train)


def work(task: Task, context: Context) -> Outcome:
    """Do one test; the result is published as JSON, dynamics with their frames."""
    from campaign.stages import validate_errors, validate_physics, validate_rdf, validate_relax
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if "segment" in task.params:
        return validate_md.work_segment(task, context, store)
    if task.params["method"] in ("stability", "reference"):
        result, arrays = validate_md.verdict(task, store)
        return publish(result, arrays)
    return {
        "errors": validate_errors.work_errors,
        "rdf": validate_rdf.work_rdf,
        "relax": validate_relax.work_relax,
        "density": validate_physics.work_density,
        "diffusion": validate_physics.work_diffusion,
        "conductivity": validate_physics.work_conductivity,
        "rerun": validate_physics.work_rerun,
        "overlap": validate_physics.work_overlap,
    }[task.params["method"]](task, context, store)
