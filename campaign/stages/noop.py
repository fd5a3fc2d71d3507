"""Tasks that do nothing: what campaign itself costs (``benchmarks/overhead.py``)."""

from __future__ import annotations

from campaign.tasks import Context, Outcome, Task


def work(task: Task, context: Context) -> Outcome:
    """Do nothing."""
    return Outcome({})
