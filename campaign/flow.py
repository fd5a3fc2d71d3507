"""The loop that drives the stages: plan what is possible, submit, take in what came back, retry or quarantine.

There is no barrier: every stage is asked for what it can do now, each time something was finished. A task whose result
is known from an earlier run is taken in without being run again, so a resume is nothing but the same loop.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from campaign.errors import DiskFull, TooManyFailures
from campaign.runtime.runner import Runner
from campaign.stages.board import Board, Stage
from campaign.store.rundir import FLUSH_EVERY, RunDirectory
from campaign.tasks import Context, Json, Record, Task, remember

S = TypeVar("S")

#: Tasks handed to the runner at once, at most: so many, or two for each worker where that is more.
IN_FLIGHT = 2000
#: How often a worker may be lost with a task before the task itself is suspected; twice as often for a whole node
#: (``Record.blame``). And how often one may be lost while nothing else is finished, before the machine is.
MACHINE_FAULTS = 5
#: Seconds between two looks at what the user sees.
LOOK = 0.5
#: Seconds without a task at work that do not count as time of the campaign: a pause between two runs.
PAUSE = 60.0


@dataclass
class Counts:
    """Progress of one stage: tasks, but for ``stopped``, the walkers that ended early in tasks that are done.

    ``stopped_share`` counts each of them as its share of its task, as a task of one walker counts when it fails.
    """

    done: int = 0
    failed: int = 0
    flying: int = 0
    seconds: float = 0.0
    stopped: int = 0
    stopped_share: float = 0.0


@dataclass
class History:
    """What earlier drivers left behind (``RunDirectory.recover``).

    ``tries`` is what is remembered of the attempts that ``attempts`` counts (``tasks.remember``).
    """

    done: dict[str, Record] = field(default_factory=dict)
    quarantined: dict[str, Record] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    tries: dict[str, list[dict[str, Json]]] = field(default_factory=dict)


class Flow:
    """Drives stages over a runner.

    Parameters
    ----------
    stages
        In the order of the campaign.
    history
        What is finished already.
    max_failed
        Fraction of a stage's tasks that may be quarantined before the run stops.
    workers
        How many tasks are done at once.
    """

    def __init__(self, stages: Sequence[Stage], history: History, max_failed: float = 0.2, workers: int = 1) -> None:
        self.stages = list(stages)
        self.board = Board()
        self.counts = {s.name: Counts() for s in stages}
        self.failures: list[Record] = []
        self._verdicts: dict[str, bool | None] = {}  # of finished validations, by task; None where nothing is asked
        self.ran = False
        self._spans: list[tuple[float, float]] = []  # when tasks were at work, apart by more than ``PAUSE``
        self.frames = 0
        self.fresh_frames = 0
        self.started = time.time()
        self.flying: dict[str, Task] = {}
        self._by_name = {s.name: s for s in stages}
        self._planned_by: dict[str, Stage] = {}  # of tasks that are another stage's kind of work: who asked for them
        self._history = history
        self._max_failed = max_failed
        self._workers = workers
        self._blame: dict[str, float] = {}  # of tasks the machine lost: how far they are to blame themselves
        self._reached: dict[str, float] = {}  # when their last checkpoint was written
        self._lost_since: Counter[str] = Counter()  # tasks the machine lost since it last finished one
        self._hopeless = False
        self._queue: list[tuple[int, int, Task]] = []
        self._later: list[tuple[float, int, Task]] = []
        self._count = itertools.count()

    # -- without running anything ----------------------------------------------------------------------------------

    def survey(self) -> None:
        """Take in everything that is finished, as far as that makes more known; run nothing."""
        while self._advance():
            pass

    def unfinished(self) -> bool:
        """Tell whether there is a task to run now (after ``survey``)."""
        return bool(self._queue)

    def _advance(self) -> bool:
        """Ask each stage once for what is possible; return whether a known result was taken in."""
        progress = False
        for stage in self.stages:
            for task in list(stage.plan(self.board)):
                if task.stage != stage.name:
                    self._planned_by[task.id] = stage
                known = self._history.done.get(task.id) or self._history.quarantined.get(task.id)
                if known is not None:
                    self._settle(known)
                    progress = True
                else:
                    heapq.heappush(self._queue, (task.priority, next(self._count), task))
        return progress

    def stage(self, kind: type[S]) -> S | None:
        """Return the stage of this kind; None where it is not driven."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    def _stage(self, task: str, stage: str) -> Stage:
        """Return the stage that asked for a task; most often the one whose work it is."""
        return self._planned_by.get(task) or self._by_name[stage]

    def _settle(self, record: Record) -> None:
        stage = self._stage(record["task"], record["stage"])
        counts = self.counts[stage.name]
        self._spans = _widened(self._spans, record["start"], record["start"] + record["seconds"])
        if record["state"] == "done":
            if "pass" in record["result"]:
                self._verdicts[record["task"]] = record["result"]["pass"]
            counts.done += 1
            counts.seconds += record["seconds"]
            if stage.name == "sample":
                self.frames += int(record["result"].get("frames", 0))
            for walker, cause in record["result"].get("stopped", {}).items():  # the frames it made are kept
                counts.stopped += 1
                counts.stopped_share += 1 / max(1, int(record["result"].get("walkers", 1)))
                self.failures.append({**record, "cause": f"Walker {walker} stopped: {cause}"})
        else:
            counts.failed += 1
            self.failures.append(record)
        stage.commit(record, self.board)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, runner: Runner, directory: RunDirectory, context: Context, look: Callable[[], None]) -> None:
        """Run until nothing is left to do.

        Parameters
        ----------
        runner
            Does the tasks.
        directory
            The run directory; its ledger gets a line for every attempt.
        context
            Where tasks run.
        look
            Called now and then, for the live view.

        Raises
        ------
        DiskFull, TooManyFailures
            The run stops cleanly; the same command continues it.
        """
        seen = 0.0
        self.ran = True
        self.survey()
        if self._queue:
            self._check_failures()  # the same command again must not labour on beyond the budget
        while True:
            self.survey()
            self._submit(runner, context)
            if not self.flying and not self._queue and not self._later:
                return
            records = runner.wait(0.05 if self._later and not self.flying else LOOK)
            if records:
                self._take(records, directory)
            directory.flush(FLUSH_EVERY)
            if time.time() - seen > LOOK:
                seen = time.time()
                look()

    def _submit(self, runner: Runner, context: Context) -> None:
        now = time.time()
        while self._later and self._later[0][0] <= now:
            _, _, task = heapq.heappop(self._later)
            heapq.heappush(self._queue, (task.priority, next(self._count), task))
        most = max(IN_FLIGHT, 2 * self._workers)
        while self._queue and len(self.flying) < most:
            _, _, task = heapq.heappop(self._queue)
            attempt = self._history.attempts.get(task.id, 0)
            runner.submit(task, Context(context.run, context.launch, attempt, context.token))
            self.flying[task.id] = task
            self.counts[self._stage(task.id, task.stage).name].flying += 1

    def _take(self, records: list[Record], directory: RunDirectory) -> None:
        """Take in what came back: first the ledger, then the stages."""
        settled, full = [], None
        for record in records:
            task = self.flying.pop(record["task"])
            stage = self._stage(task.id, task.stage)
            self.counts[stage.name].flying -= 1
            if record["state"] == "done":
                self._lost_since.clear()
                if stage.name == "sample":
                    self.fresh_frames += int(record["result"].get("frames", 0))
                settled.append(record)
            elif record.get("disk_full"):
                full = record["cause"]
            elif self._try_again(task, record, directory):
                continue
            else:
                record["state"] = "quarantined"
                tries = self._history.tries.pop(task.id, [])
                if tries:  # whoever looks at the last cause finds those before it
                    record["result"] = {**record["result"], "attempts": tries}
                directory.store.quarantine(record)
                settled.append(record)
        directory.keep(records)
        for record in settled:
            give_up = getattr(self._stage(record["task"], record["stage"]), "give_up", None)
            if record["state"] == "quarantined" and give_up is not None:
                give_up(record, directory.path)
            known = self._history.done if record["state"] == "done" else self._history.quarantined
            known[record["task"]] = record
            self._settle(record)
        if full is not None:
            raise DiskFull(full)
        self._check_failures(records[-1]["cause"])

    def _try_again(self, task: Task, record: Record, directory: RunDirectory) -> bool:
        """Schedule another attempt if the rules allow one."""
        if record["transient"]:
            return self._lost(task, record, directory)
        attempts = self._history.attempts
        attempts[task.id] = attempts.get(task.id, 0) + 1
        self._history.tries.setdefault(task.id, []).append(remember(record))
        if record.get("final") or attempts[task.id] >= getattr(self._stage(task.id, task.stage), "attempts", 1):
            return False
        heapq.heappush(self._queue, (task.priority, next(self._count), task))
        return True

    def _lost(self, task: Task, record: Record, directory: RunDirectory) -> bool:
        """Schedule a task again that the machine lost, unless it seems to be the task's doing, or all is in vain."""
        reached = directory.reached(task.id)
        if reached > self._reached.get(task.id, 0.0):  # it came further than before: longer than a node, not deadly
            self._reached[task.id] = reached
            self._blame.pop(task.id, None)
            self._lost_since.clear()
        self._lost_since[task.id] += 1
        self._blame[task.id] = blame = self._blame.get(task.id, 0.0) + record.get("blame", 1.0)
        # others would go on differently without it
        depends = getattr(self._stage(task.id, task.stage), "depends", lambda _: False)(task)
        in_a_row = self._lost_since[task.id]
        if in_a_row >= MACHINE_FAULTS and (len(self._lost_since) > 1 or depends or not blame):
            self._hopeless = True
        elif blame >= MACHINE_FAULTS:
            self._hopeless = depends
            return bool(depends)
        else:
            heapq.heappush(self._later, (time.time() + min(60.0, 0.5 * 2**in_a_row), next(self._count), task))
        return True

    def _check_failures(self, last: str = "") -> None:
        if self._hopeless:
            raise TooManyFailures(
                f"The machine lost {len(self._lost_since)} tasks, one of them {MACHINE_FAULTS} times; "
                f"the last cause: {last} Look into RUN/logs, mend the site file, and give the same "
                "command again."
            )
        for stage in self.stages:
            if self._over_budget(stage):
                raise TooManyFailures(
                    f"{self._overrun(stage)}. Everything finished is kept: see "
                    "campaign status. Mend what made them fail and give the same command with --retry-quarantined, or "
                    f"write a larger max_failed. The last cause: {_last_cause(self.failures, stage.name)}"
                )

    def _over_budget(self, stage: Stage) -> bool:
        """Tell whether more of a stage failed than the campaign allows."""
        counts = self.counts[stage.name]
        failed = counts.failed + counts.stopped_share
        return failed > 1 and failed > self._max_failed * stage.total(self.board)  # one is never too many

    def _overrun(self, stage: Stage) -> str:
        counts, total = self.counts[stage.name], stage.total(self.board)
        walkers = f" and {counts.stopped} walkers stopped" if counts.stopped else ""
        what = f"{counts.failed} tasks of stage {stage.name} failed for good{walkers}"
        return f"{what}, more than max_failed allows ({self._max_failed:g} of {total})"

    # -- what the user sees ----------------------------------------------------------------------------------------

    def complete(self) -> bool:
        """Tell whether every stage came to its end with nothing missing."""
        return not self.failures and all(s.finished(self.board) for s in self.stages)

    def status(self, name: str, all_stages: Sequence[str], live: bool, logs: Path | None = None) -> dict[str, Json]:
        """Return the state of the campaign, as ``campaign status --json`` prints it.

        Parameters
        ----------
        name
            The campaign's name.
        all_stages
            Every stage of the campaign; those that are not driven now are pending.
        live
            Whether a driver is at work.
        logs
            The folder of the tasks' own files, where a training in flight says how far it is.
        """
        stages: dict[str, Json] = {}
        for key in ("sample", "select", "distill", "transfer", "label", "train", "learn", "validate"):
            if key not in all_stages and key in ("distill", "transfer", "learn"):
                continue  # rare: they are named where they are asked for
            if key not in all_stages:
                stages[key] = {"state": "skipped", "done": 0, "total": 0, "failed": 0}
            elif key not in self._by_name:
                stages[key] = {"state": "pending", "done": 0, "total": 0, "failed": 0}
            else:
                stages[key] = self._stage_status(self._by_name[key], live)
        elapsed = max(time.time() - self.started, 1e-6)
        training = next((s for s in self.board.sets.values() if s.train), self.board.source)
        states = {s["state"] for s in stages.values()} - {"skipped"}
        if live:
            state = "running"
        elif states == {"done"}:
            state = "done"
        elif len(self.stages) == len(all_stages) and all(s.finished(self.board) for s in self.stages):
            state = "partial"
        else:
            asked = states == {"done", "pending"}  # what was begun is done: it stopped where it was asked to
            state = "pending" if states == {"pending"} else "stopped" if asked else "interrupted"
        retried = self._retried()
        return {
            "campaign": name,
            "state": state,
            "stages": stages,
            "frames": self.frames,
            "selected": len(training.chosen) if training is not None else 0,
            "labelled": sum(1 for t in self.board.labels.values() if t),
            "refused": self._refused(),
            "notes": [
                *(s.note for s in (self.board.source, *self.board.sets.values()) if s and s.note),
                *(note for s in self.stages for note in getattr(s, "notes", ())),
                *_note_of(retried),
                *(
                    f"Stopped: {self._overrun(s)}; mend what made them fail and give the same command with "
                    "--retry-quarantined, or write a larger max_failed."
                    for s in self.stages
                    if not live and state == "interrupted" and self._over_budget(s)
                ),
            ],
            "failures": [_failure(r) for r in self.failures],
            "retried": retried,
            "frames_per_second": self.fresh_frames / elapsed if live and self.fresh_frames else None,
            "eta": self._eta() if live else None,
            "loss": self._loss(logs) if logs is not None else None,
            "verdicts": self._named_verdicts(),
            "seconds": max(sum(end - start for start, end in self._spans), elapsed if self.ran else 0.0),
        }

    def _refused(self) -> int:
        """Return how many frames the bounds of selection and learning refused; one refused by two sets counts once."""
        sets = [s for s in (self.board.source, *self.board.sets.values()) if s is not None]
        frames = {r["frame"] for s in sets for r in s.refused}
        return len(frames) + sum(int(getattr(stage, "refused", 0)) for stage in self.stages)

    def _named_verdicts(self) -> dict[str, bool | None]:
        """Return the verdict of each finished test by its name in the run directory, so that none hides another."""
        tests = [test for stage in self.stages for test in getattr(stage, "results", list)()]
        return {name: self._verdicts[task] for name, task in tests if task in self._verdicts}

    def _retried(self) -> list[dict[str, Json]]:
        """Return what failed so far of tasks that are to be tried again: a user who stops the run looks for it."""
        if not self._history.tries:
            return []
        waiting = [*(task for *_, task in self._queue), *(task for *_, task in self._later), *self.flying.values()]
        found: list[dict[str, Json]] = []
        for task in waiting:
            if tries := self._history.tries.get(task.id):
                found.append({"task": task.id, "stage": task.stage, "cause": tries[-1]["cause"], "attempts": tries})
                found[-1] |= _of_frame(task.id, task.name) if task.stage == "label" else {}
        return found

    def _stage_status(self, stage: Stage, live: bool) -> dict[str, Json]:
        counts = self.counts[stage.name]
        total = max(stage.total(self.board), counts.done + counts.failed)
        if counts.done + counts.failed + counts.flying == 0:
            state = "pending"  # also where there was nothing to do it with
        elif stage.finished(self.board) and counts.flying == 0:
            missing = counts.failed or counts.stopped or counts.done < total or getattr(stage, "unmet", False)
            state = "partial" if missing else "done"
        else:
            state = "running" if live else "partial"
        return {"state": state, "done": counts.done, "total": total, "failed": counts.failed + counts.stopped}

    def _eta(self) -> float | None:
        """Return the seconds that the rest will take at the mean time of the tasks so far; None while unknown."""
        left = 0.0
        for stage in self.stages:
            counts = self.counts[stage.name]
            missing = stage.total(self.board) - counts.done - counts.failed
            if missing <= 0:
                continue
            if not counts.done:
                return None
            left += missing * counts.seconds / counts.done
        return left / self._workers

    def _loss(self, logs: Path) -> float | None:
        """Return the latest loss of a training in flight."""
        latest: tuple[float, float] | None = None
        for task in self.flying.values():
            path = logs / task.id / "epochs.jsonl"
            if task.stage in ("train", "distill") and path.exists():
                lines = path.read_text().splitlines()
                if lines and lines[-1].endswith("}"):
                    found = (path.stat().st_mtime, float(json.loads(lines[-1])["loss"]))
                    latest = max(latest or found, found)
        return latest[1] if latest else None


def _widened(spans: list[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """Return the times in which tasks were at work with one more; between runs they stay apart."""
    near = [span for span in spans if span[0] - PAUSE <= end and start - PAUSE <= span[1]]
    if len(near) == 1 and near[0][0] <= start and end <= near[0][1]:
        return spans
    apart = [span for span in spans if span not in near]
    return [*apart, (min([start, *(s for s, _ in near)]), max([end, *(e for _, e in near)]))]


def _failure(record: Record) -> dict[str, Json]:
    """Return what the status says of a failure; of a label also which frame, where its files are, and every attempt."""
    found: dict[str, Json] = {"task": record["task"], "stage": record["stage"], "cause": record["cause"]}
    if record["stage"] == "label":
        tries = record["result"].get("attempts") or [remember(record)]
        found |= _of_frame(record["task"], record["name"]) | {"attempts": tries}
    return found


def _of_frame(task: str, name: str) -> dict[str, Json]:
    """Return which frame a label is of, and where the files of its attempts are."""
    return {"frame": name.partition("/")[2], "folder": f"tasks/{task}"}


def _note_of(retried: Sequence[dict[str, Json]]) -> Iterator[str]:
    """Yield a sentence about tasks that failed at an attempt and are to be tried again."""
    if retried:
        one = max(retried, key=lambda task: len(task["attempts"]))
        what = f"{one['stage']} {one.get('frame', one['task'])} at attempt {len(one['attempts'])}"
        many = f"{len(retried)} tasks" if len(retried) > 1 else "1 task"
        yield f"{many} failed at an attempt and will be tried again (--json lists all); {what}: {one['cause']}"


def _last_cause(failures: Sequence[Record], stage: str) -> str:
    return next((r["cause"] for r in reversed(failures) if r["stage"] == stage), "")
