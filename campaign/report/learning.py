"""What active learning adds to the verdict of a campaign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]


def cards(learning: Data) -> list[dict[str, Any]]:
    """Return the card of learning that has ended; none where there is none, or where it goes on.

    Parameters
    ----------
    learning
        What ``RUN/learning.json`` holds.
    """
    if learning.get("held") is None:
        return []
    note = str(learning.get("note") or "").removeprefix("learn: ")
    judged = learning.get("judged")
    lines = [note, *([f"judged: the models of {judged}"] if judged else [])]
    return [{"title": "Learning", "passed": bool(learning["held"]), "lines": lines}]


def with_learning(verdict: dict[str, str], learning: Data) -> dict[str, str]:
    """Return a verdict that does not pass where no model survived the dynamics that it was to learn."""
    if learning.get("held") is not False or verdict.get("kind") != "pass":
        return verdict
    detail = f"{verdict['detail']} Learning ended without a model that every walker survived with."
    return {**verdict, "kind": "fail", "text": "Not passed", "detail": detail}
