"""The loop's rules about the machine's faults: a lost node is not the end, a dead machine is, one bad task is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from campaign import flow as flow_module
from campaign.flow import MACHINE_FAULTS, PAUSE, Flow, History, TooManyFailures, _widened
from campaign.stages.board import Board
from campaign.store.ledger import read_ledger
from campaign.store.rundir import RunDirectory
from campaign.tasks import Context, Record, Task, new_record


class Some:
    """A stage of independent tasks."""

    name = "noop"

    def __init__(self, count: int) -> None:
        self.tasks = [Task("noop", str(k), {"k": k}) for k in range(count)]
        self.left = list(self.tasks)
        self.settled: dict[str, str] = {}

    def plan(self, board: Board) -> Iterator[Task]:
        while self.left:
            yield self.left.pop(0)

    def commit(self, record: Record, board: Board) -> None:
        self.settled[record["task"]] = record["state"]

    def total(self, board: Board) -> int:
        return len(self.tasks)

    def finished(self, board: Board) -> bool:
        return len(self.settled) == len(self.tasks)


class Scripted:
    """A runner that answers by a rule: (name, how often it was sent) -> done, lost, waiting, failed, final or nan."""

    def __init__(self, rule: Callable[[str, int], str]) -> None:
        self.rule = rule
        self.queue: list[tuple[Task, Context]] = []
        self.sent: dict[str, int] = {}

    def submit(self, task: Task, context: Context) -> None:
        self.queue.append((task, context))

    def wait(self, seconds: float) -> list[Record]:
        found = []
        for task, context in self.queue:
            self.sent[task.name] = self.sent.get(task.name, 0) + 1
            answer = self.rule(task.name, self.sent[task.name])
            record = new_record(task, context.attempt)
            if answer == "final":
                record["final"] = True
            if answer in ("lost", "waiting", "failed", "final"):
                lost = answer in ("lost", "waiting")
                record.update({"state": "failed", "transient": lost, "cause": f"It was {answer}."})
            if answer == "waiting":
                record["blame"] = 0.0
            if answer == "nan":
                record["result"] = {"value": float("nan")}
            found.append(record)
        self.queue.clear()
        return found

    def close(self) -> None: ...


def drive(tmp_path: Path, count: int, rule: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch) -> Some:
    now = [0.0]

    def clock() -> float:
        now[0] += 100.0  # back-off costs the test nothing
        return now[0]

    monkeypatch.setattr(flow_module.time, "time", clock)
    stage = Some(count)
    with RunDirectory(tmp_path / "run") as directory:
        Flow([stage], History()).run(Scripted(rule), directory, Context(directory.path), lambda: None)
    return stage


def test_a_node_that_dies_with_all_its_tasks_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = drive(tmp_path, 64, lambda name, sent: "lost" if sent <= 2 else "done", monkeypatch)
    assert set(stage.settled.values()) == {"done"}
    assert len(stage.settled) == 64


def test_a_machine_that_loses_everything_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooManyFailures, match="It was lost"):
        drive(tmp_path, 5, lambda name, sent: "lost", monkeypatch)
    assert not any(r["state"] == "quarantined" for r in read_ledger(tmp_path / "run" / "ledger.jsonl"))


@pytest.mark.parametrize("others", [0, 5])
def test_a_task_that_always_ends_its_worker_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    rule = lambda name, sent: "lost" if name == "0" else "done"  # noqa: E731
    stage = drive(tmp_path, 1 + others, rule, monkeypatch)
    assert sorted(stage.settled.values()) == ["done"] * others + ["quarantined"]
    lines = [r for r in read_ledger(tmp_path / "run" / "ledger.jsonl") if r["state"] != "done"]
    assert len(lines) == MACHINE_FAULTS


def test_tasks_that_waited_when_the_machine_failed_again_and_again_are_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time one task gets through before all others are lost: progress is possible, so it is no end."""
    rule = lambda name, sent: "done" if sent > int(name) else "waiting"  # noqa: E731
    stage = drive(tmp_path, 3 * MACHINE_FAULTS, rule, monkeypatch)
    assert set(stage.settled.values()) == {"done"}


@pytest.mark.parametrize("count", [1, 3])
def test_a_machine_that_never_begins_a_task_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with pytest.raises(TooManyFailures, match="It was waiting"):
        drive(tmp_path, count, lambda name, sent: "waiting", monkeypatch)


def test_a_task_longer_than_its_allocations_goes_on_as_long_as_its_checkpoint_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = Some(1).tasks
    checkpoint = tmp_path / "run" / "tasks" / task.id / "training.ckpt"

    def rule(name: str, sent: int) -> str:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        os.utime(checkpoint, (sent, sent))
        return "done" if sent > 3 * MACHINE_FAULTS else "lost"

    stage = drive(tmp_path, 1, rule, monkeypatch)
    assert list(stage.settled.values()) == ["done"]


def test_a_summary_that_is_not_json_does_not_end_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = drive(tmp_path, 2, lambda name, sent: "nan", monkeypatch)
    assert stage.finished(Board())
    assert [r["result"] for r in read_ledger(tmp_path / "run" / "ledger.jsonl")] == [{}, {}]


def stopped(count: int, walkers: int = 1) -> dict[str, Any]:
    causes = {str(k): "Two atoms met." for k in range(count)}
    return {"frames": 3, "walkers": walkers, "left": walkers - count, "stopped": causes}


class Sampling(Some):
    """Independent tasks of stage sample, whose store alone tells what they did."""

    name = "sample"

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.tasks = [Task("sample", str(k), {"k": k}) for k in range(count)]
        self.left = list(self.tasks)


def test_a_walker_that_stopped_is_a_failure_also_after_a_resume_from_the_store_alone(tmp_path: Path) -> None:
    stage = Sampling(4)
    with RunDirectory(tmp_path / "run") as directory:
        for k, task in enumerate(stage.tasks):
            record = new_record(task, 1)
            record["result"] = stopped(2, 3) if k == 1 else {"frames": 3}
            directory.store.publish(record, {"energy": np.zeros(3)})
    (tmp_path / "run" / "ledger.jsonl").unlink()
    with RunDirectory(tmp_path / "run") as directory:
        done, quarantined, attempts = directory.recover()
        assert (len(done), quarantined) == (4, {})
        flow = Flow([stage], History(done, quarantined, attempts))
        flow.survey()
    assert [f["cause"] for f in flow.failures] == [f"Walker {k} stopped: Two atoms met." for k in (0, 1)]
    assert {f["task"] for f in flow.failures} == {stage.tasks[1].id}
    assert not flow.complete()
    status = flow.status("x", ("sample",), live=False)
    assert status["state"] == "partial"
    assert status["stages"]["sample"] == {"state": "partial", "done": 4, "total": 4, "failed": 2}
    assert status["frames"] == 12
    assert [f["cause"] for f in status["failures"]] == [f["cause"] for f in flow.failures]
    json.dumps(status)


@pytest.mark.parametrize(("result", "stops"), [(stopped(1), True), (stopped(1, 10), False), (stopped(5, 10), True)])
def test_walkers_that_stop_count_for_max_failed_by_their_share(
    tmp_path: Path, result: dict[str, Any], stops: bool
) -> None:
    class Stopping(Scripted):
        def wait(self, seconds: float) -> list[Record]:
            return [{**r, "result": result} if r["task"] in bad else r for r in super().wait(seconds)]  # type: ignore[misc]

    stage = Sampling(10)
    bad = {t.id for t in stage.tasks[:5]}
    with RunDirectory(tmp_path / "run") as directory:
        flow = Flow([stage], History(), max_failed=0.2)
        drive = lambda: flow.run(Stopping(lambda *_: "done"), directory, Context(directory.path), lambda: None)  # noqa: E731
        if stops:
            with pytest.raises(TooManyFailures, match="walkers stopped, more than max_failed"):
                drive()
        else:
            drive()
            assert flow.counts["sample"].stopped == 5


def test_released_tasks_count_their_attempts_from_nothing(tmp_path: Path) -> None:
    task = Task("label", "frame", {"k": 1})
    failed, given_up = new_record(task, 0), new_record(task, 1)
    failed["state"], given_up["state"] = "failed", "quarantined"
    with RunDirectory(tmp_path / "run") as directory:
        directory.ledger.append([failed, given_up])
        directory.store.quarantine(given_up)
        _, quarantined, attempts = directory.recover()
        assert (list(quarantined), attempts) == ([task.id], {task.id: 1})
        directory.release(quarantined)
    with RunDirectory(tmp_path / "run") as directory:  # as after a kill: nothing is known but what is on the disk
        assert directory.recover() == ({}, {}, {})


@pytest.mark.parametrize(("answer", "sent"), [("failed", 3), ("final", 1)])
def test_what_no_other_attempt_can_mend_is_not_tried_again(
    answer: str, sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Some, "attempts", 3, raising=False)
    tries: dict[str, int] = {}

    def rule(name: str, count: int) -> str:
        tries[name] = count
        return answer if name == "4" else "done"

    stage = drive(tmp_path, 20, rule, monkeypatch)
    assert tries["4"] == sent
    assert stage.settled[stage.tasks[4].id] == "quarantined"


def test_the_time_at_work_leaves_out_pauses_between_runs() -> None:
    """Whatever the order in which tasks are taken in."""
    rng = np.random.default_rng(1)
    starts = np.concatenate([rng.uniform(0, 200, 30), rng.uniform(1000, 1200, 30), [5000.0]])
    tasks = [(float(s), float(s + rng.uniform(0, 30))) for s in 1e5 + starts]
    total, until = 0.0, 0.0
    for start, end in sorted(tasks):
        total += end - start if start > until + PAUSE else max(0.0, end - until)
        until = max(until, end)
    for _ in range(5):
        spans: list[tuple[float, float]] = []
        for k in rng.permutation(len(tasks)):
            spans = _widened(spans, *tasks[k])
        assert len(spans) == 3
        assert sum(end - start for start, end in spans) == pytest.approx(total)


def test_a_site_of_many_workers_is_kept_full(tmp_path: Path) -> None:
    class Counting(Scripted):
        most = 0

        def wait(self, seconds: float) -> list[Record]:
            self.most = max(self.most, len(self.queue))
            return super().wait(seconds)

    found = {}
    for workers in (1, 1500):
        runner = Counting(lambda name, sent: "done")
        with RunDirectory(tmp_path / str(workers)) as directory:
            flow = Flow([Some(4000)], History(), workers=workers)
            flow.run(runner, directory, Context(directory.path), lambda: None)
        found[workers] = runner.most
    assert found == {1: flow_module.IN_FLIGHT, 1500: 3000}
