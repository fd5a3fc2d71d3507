"""The loop's rules about the machine's faults: a lost node is not the end, a dead machine is, one bad task is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from campaign import flow as flow_module
from campaign.flow import MACHINE_FAULTS, Flow, History, TooManyFailures
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
    """A runner that answers by a rule: (task name, how often it was sent) -> done, lost, failed or nan."""

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
            if answer in ("lost", "failed"):
                record.update({"state": "failed", "transient": answer == "lost", "cause": f"It was {answer}."})
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


def test_a_summary_that_is_not_json_does_not_end_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = drive(tmp_path, 2, lambda name, sent: "nan", monkeypatch)
    assert stage.finished(Board())
    assert [r["result"] for r in read_ledger(tmp_path / "run" / "ledger.jsonl")] == [{}, {}]


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
