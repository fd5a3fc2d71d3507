"""Careful access to the raw data of a campaign or site file, for the checks that models cannot make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from campaign.config.yaml_lines import Document, Problem, join, show

Part = str | int


class View:
    """Careful access to a document: what is missing, of another type or already reported is None."""

    def __init__(self, document: Document, problems: Iterable[Problem]) -> None:
        self.document = document
        self.bad = {p.key for p in problems}

    def get(self, *parts: Part) -> Any:
        """Return the value at a key path."""
        value, path = self.document.data, ""
        for part in parts:
            path = join(path, part)
            if path in self.bad:
                return None
            if isinstance(part, str) and isinstance(value, dict):
                value = value.get(part)
            elif isinstance(part, int) and isinstance(value, list) and part < len(value):
                value = value[part]
            else:
                return None
        if any(key.startswith((path + ".", path + "[")) for key in self.bad) and not isinstance(value, dict | list):
            return None
        return value

    def text(self, *parts: Part) -> str | None:
        """Return a text."""
        value = self.get(*parts)
        return value if isinstance(value, str) else None

    def number(self, *parts: Part, default: float | None = None) -> float | None:
        """Return a positive number, or the default where the key is not written (and no other word stands for it)."""
        value = self.get(*parts)
        if value is None:
            beside = self.path(*parts[:-1]) + "."
            unsure = self.path(*parts) in self.document.lines or any(key.startswith(beside) for key in self.bad)
            return None if unsure else default
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None

    def items(self, *parts: Part) -> list[Any]:
        """Return a list; empty where there is none."""
        value = self.get(*parts)
        return value if isinstance(value, list) else []

    def mapping(self, *parts: Part) -> dict[str, Any]:
        """Return a mapping; empty where there is none."""
        value = self.get(*parts)
        return value if isinstance(value, dict) else {}

    def path(self, *parts: Part) -> str:
        """Return the key path as it is written in messages."""
        path = ""
        for part in parts:
            path = join(path, part)
        return path

    def problem(self, parts: tuple[Part, ...], what: str, got: Any, remedy: str) -> Problem:
        """Return a problem at a key, on its line; a ``got`` that is text stands as it is."""
        key = self.path(*parts)
        return Problem(self.document.line(key), key, what, got if isinstance(got, str) else show(got), remedy)


def present(view: View, stage: str) -> bool:
    """Tell whether a stage is written."""
    data = view.document.data
    return isinstance(data, dict) and bool(data.get(stage))
