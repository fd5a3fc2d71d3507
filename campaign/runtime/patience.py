"""Executors that bear with their batch system: a submission that is refused is tried again, later and later."""

from __future__ import annotations

import time
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

#: Seconds after which a refused submission is tried again: twice as many each time, and at most ``LONGEST``.
FIRST, LONGEST = 2.0, 60.0

#: Submissions refused one after another, and jobs that ended badly one after another, before the executor gives up.
REFUSALS, FAILURES = 12, 3

#: How Parsl begins what it says of a block that could not be submitted.
REFUSED = "Failed to start block"


@lru_cache(maxsize=2)
def executor_class(whole_nodes: bool = False) -> Any:
    """Return Parsl's HighThroughputExecutor, or its MPIExecutor, with that patience; Parsl loads only here."""
    from parsl.executors import HighThroughputExecutor, MPIExecutor

    class PatientExecutor(MPIExecutor if whole_nodes else HighThroughputExecutor):  # type: ignore[misc]
        """Asks for blocks again, and not at once, where the batch system refused."""

        _wait = 0.0
        _again = 0.0

        def scale_out_facade(self, n: int) -> list[str]:
            """Ask for ``n`` blocks, unless that was refused a moment ago; return the ids of those that were taken."""
            if time.monotonic() < self._again:
                return []
            taken: list[str] = super().scale_out_facade(n)
            self._wait = 0.0 if len(taken) == n else min(LONGEST, max(FIRST, 2 * self._wait))
            self._again = time.monotonic() + self._wait
            return taken

        @property
        def workers_per_node(self) -> Any:
            """Of which Parsl reckons how many tasks a block takes: one of whole nodes has less than one on each."""
            each = super().workers_per_node
            return Fraction(self.max_workers_per_block, self.provider.nodes_per_block) if whole_nodes else each

    return PatientExecutor


def give_up_late(executor: Any, status: Mapping[str, Any]) -> None:
    """Fail the tasks of an executor only after many refusals, or several bad jobs, one after another.

    Never while a job of it runs; and not for refusals while one waits in the queue.

    Parameters
    ----------
    executor, status
        As Parsl's ``block_error_handler`` is called with: the executor, and the state of each of its blocks.
    """
    last = [status[block] for block in sorted(status, key=int)]
    bad = ("FAILED", "MISSING")
    refused = [s.state.name in bad and str(s.message).startswith(REFUSED) for s in last]
    failed = [s.state.name in bad for s in last]
    states = {s.state.name for s in last}
    if "RUNNING" in states:
        return
    # where jobs wait in the queue, more were refused because a user may have no more
    refusals = len(last) >= REFUSALS and all(refused[-REFUSALS:]) and "PENDING" not in states
    if refusals or (len(last) >= FAILURES and all(failed[-FAILURES:]) and not any(refused[-FAILURES:])):
        said = [str(s.message) for s in last[-1:]] + [str(s.stderr_summary or "") for s in last[-1:]]
        executor.set_bad_state_and_fail_all(RuntimeError(" ".join(" ".join(said).split())[:1000]))
