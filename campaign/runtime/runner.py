"""The protocol of a runner, and the simplest one: do the work here, one task after another."""

from __future__ import annotations

import heapq
import itertools
from typing import Protocol

from campaign.tasks import Context, Record, Task, Work, pack, unpack_record


class Runner(Protocol):
    """Takes tasks and hands back records, in whatever order they finish."""

    def submit(self, task: Task, context: Context) -> None:
        """Queue a task."""

    def wait(self, seconds: float) -> list[Record]:
        """Return the records that came in; wait up to ``seconds`` for the first."""

    def close(self) -> None:
        """Stop the workers. Tasks in flight are abandoned."""


class InlineRunner:
    """Runs each task in this process when its record is waited for, lowest priority number first.

    Parameters
    ----------
    work
        Does a task.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._queue: list[tuple[int, int, Task, Context]] = []
        self._count = itertools.count()

    def submit(self, task: Task, context: Context) -> None:
        """Queue a task."""
        heapq.heappush(self._queue, (task.priority, next(self._count), task, context))

    def wait(self, seconds: float) -> list[Record]:
        """Do the first task of the queue and return its record."""
        if not self._queue:
            return []
        _, _, task, context = heapq.heappop(self._queue)
        return [unpack_record(self._work(pack(task, context)))]

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
