"""When an executor asks again for blocks that were refused, and when it gives up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from campaign.runtime import patience
from campaign.runtime.patience import FAILURES, REFUSALS, REFUSED, executor_class, give_up_late


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
        ([block("COMPLETED")] + [block("MISSING", "silent", "no python")] * FAILURES, "silent no python"),
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


def test_refused_blocks_are_asked_for_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked, taken = [100.0], [], []
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    kind = executor_class()
    monkeypatch.setattr(kind.__mro__[1], "scale_out_facade", lambda self, n: asked.append(clock[0]) or list(taken))
    executor = kind.__new__(kind)
    for second in range(100, 200):
        clock[0] = float(second)
        executor.scale_out_facade(1)
    assert asked == [100.0, 102.0, 106.0, 114.0, 130.0, 162.0]
    taken.append("1")
    clock[0] = 300.0
    assert executor.scale_out_facade(1) == ["1"]
    assert executor.scale_out_facade(1) == ["1"]
