"""When an executor asks again for blocks that were refused, and when it gives up."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus

from campaign.runtime import patience
from campaign.runtime.patience import FAILURES, LATER_FAILURES, REFUSALS, REFUSED, executor_class, give_up_late


class Executor:
    """Notes why it was given up."""

    def __init__(self) -> None:
        self.cause = ""

    def set_bad_state_and_fail_all(self, error: Exception) -> None:
        self.cause = str(error)


def block(state: str, message: str | None = None, stderr: str | None = None) -> Any:
    return SimpleNamespace(state=SimpleNamespace(name=state), message=message, stderr_summary=stderr)


@pytest.mark.parametrize(
    ("blocks", "cause"),
    [
        ([block("FAILED", f"{REFUSED} 0: no")] * (REFUSALS - 1), ""),
        ([block("FAILED", f"{REFUSED} 0: no")] * REFUSALS, f"{REFUSED} 0: no"),
        ([block("COMPLETED")] + [block("FAILED", None, "no python")] * (FAILURES - 1), ""),
        ([block("MISSING", "silent", "no python")] * FAILURES, "silent no python"),
        ([block("COMPLETED")] + [block("MISSING", "silent")] * (LATER_FAILURES - 1), ""),
        ([block("COMPLETED")] + [block("MISSING", "silent")] * LATER_FAILURES, "silent"),
        ([block("RUNNING")] + [block("MISSING", "silent")] * LATER_FAILURES, ""),
        ([block("HELD")] + [block("FAILED", f"{REFUSED} 0: no")] * REFUSALS, ""),
        ([block("MISSING", "silent", "srun: Job step aborted: Waiting up to 7 seconds")] * 2 * FAILURES, ""),
        ([block("MISSING", "silent", "JOB 4 CANCELLED AT 12:00 DUE TO TIME LIMIT")] * FAILURES, "silent JOB 4"),
        ([block("FAILED")] * FAILURES + [block("RUNNING")], ""),
        ([block("FAILED")] * (FAILURES - 1) + [block("FAILED", f"{REFUSED} 2: no")], ""),
        ([block("RUNNING")] + [block("FAILED")] * FAILURES, ""),
        ([block("RUNNING")] * 2 + [block("FAILED", f"{REFUSED} 3: no")] * REFUSALS, ""),
        ([block("PENDING")] * 2 + [block("FAILED", f"{REFUSED} 3: QOSMaxSubmitJobPerUserLimit")] * REFUSALS, ""),
        ([], ""),
    ],
)
def test_it_gives_up_after_many_refusals_or_several_bad_jobs_in_a_row(blocks: list[Any], cause: str) -> None:
    executor = Executor()
    give_up_late(executor, {str(k): b for k, b in enumerate(blocks)})
    assert executor.cause.startswith(cause)
    assert bool(executor.cause) == bool(cause)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An executor whose clock and batch system are the test's: ``clock``, ``asked`` (when), ``taken`` (by rule)."""
    kind = executor_class()
    made = kind.__new__(kind)
    made.clock, made.asked, made.takes = 100.0, [], lambda: True
    made.launch_cmd = "process_worker_pool.py --drain_period=1000"
    made._asked, made._ends, made._lead, made._status = {}, {}, 0.0, {}
    made._provider, made.blocks_to_job_id = SimpleNamespace(resources={}), {}
    monkeypatch.setattr(patience.time, "monotonic", lambda: made.clock)
    monkeypatch.setattr(patience.time, "time", lambda: made.clock)

    def scale_out(self: Any, n: int) -> list[str]:
        assert n == 1
        name = str(len(made.asked))
        made.asked.append(made.clock)
        state = "PENDING" if made.takes() else "FAILED"
        made._status[name] = JobStatus(JobState[state], None if made.takes() else f"{REFUSED} {name}: no")
        return [name] if made.takes() else []

    monkeypatch.setattr(HighThroughputExecutor, "scale_out_facade", scale_out)
    monkeypatch.setattr(HighThroughputExecutor, "poll_facade", lambda self: None)
    return made


def test_refused_blocks_are_asked_for_again_later_and_later(executor: Any) -> None:
    executor.takes = lambda: False
    for second in range(100, 200):
        executor.clock = float(second)
        executor.scale_out_facade(4)  # one refusal is enough: the three others are not tried
    assert executor.asked == [100.0, 102.0, 106.0, 114.0, 130.0, 162.0]
    executor.takes = lambda: True
    executor.clock = 300.0
    assert len(executor.scale_out_facade(2)) == 2
    assert len(executor.scale_out_facade(1)) == 1


def test_blocks_that_end_badly_one_after_another_are_not_asked_for_at_full_speed(executor: Any) -> None:
    for second in range(100, 200):
        executor.clock = float(second)
        for block in executor.scale_out_facade(1):
            executor._status[block] = JobStatus(JobState.MISSING)
    assert executor.asked == [100.0, 101.0, 102.0, 104.0, 108.0, 116.0, 132.0, 164.0]


def test_the_next_block_is_asked_for_twice_as_long_before_the_end_of_one_as_that_one_took_to_come(
    executor: Any,
) -> None:
    executor.connected_blocks = lambda: ["0"] if executor.clock >= 150 else []
    executor.scale_out_facade(1)
    executor._status["0"] = JobStatus(JobState.RUNNING)
    seen = []
    for second in range(100, 1300):
        executor.clock = float(second)
        executor.poll_facade()
        seen.append(executor.status_facade["0"].state.name)
    assert executor._status["0"].state == JobState.RUNNING
    assert seen == ["RUNNING"] * 950 + ["HELD"] * 250  # it came after 50 s, and drains 1000 s later
    executor._status["0"] = JobStatus(JobState.COMPLETED)
    assert executor.status_facade["0"].state == JobState.COMPLETED


def test_the_time_of_a_block_counts_from_the_start_of_its_job(executor: Any, tmp_path: Path) -> None:
    """Not from when its workers were heard of, which on a busy node is much later."""
    said = tmp_path / "stdout"
    said.write_text("Found cores : 2")
    os.utime(said, (130.0, 130.0))
    executor.scale_out_facade(1)
    executor.blocks_to_job_id["0"] = "12"
    executor._provider.resources["12"] = {"job_stdout_path": str(said)}
    executor.connected_blocks = lambda: ["0"]
    executor.clock = 150.0
    executor.poll_facade()
    assert executor._ends == {"0": 1130.0}
