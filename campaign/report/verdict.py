"""The line that the report opens with, on whether the potential may be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Data = Mapping[str, Any]

#: Why there is no verdict, by the state of validation.
WHY = {
    "failed": "validation failed",
    "skipped": "the campaign asks for no validation",
    "partial": "validation ended with failures",
    "running": "validation is running",
}


def outcome(report: Data) -> bool | None:
    """Return whether a test passed; None where nothing was asked of it (``pass: null``)."""
    found = report.get("pass", False)
    return None if found is None else bool(found)


def verdict(reports: Sequence[Data], titles: Sequence[str], status: Data, tests: Data) -> dict[str, str]:
    """Return ``kind`` (pass, fail, open), ``text`` and ``detail`` of the verdict over all tests.

    Passed is what every test of the campaign file was asked and held: not a part of them, and not nothing.

    Parameters
    ----------
    reports, titles
        Of each finished test, what it found and what it is called.
    status
        ``Flow.status``.
    tests
        ``Validate.standing``: how many are ``asked`` for, which are ``left``, and whether it is ``over``. Where it is
        missing the stage's tasks say whether there is more to come.
    """
    stage = (status.get("stages") or {}).get("validate") or {}
    state = str(stage.get("state"))
    left = [str(name) for name in tests.get("left") or []]
    failed, done, total = (int(stage.get(k) or 0) for k in ("failed", "done", "total"))
    over = bool(tests.get("over", done + failed >= total))
    missing = max(len(left), failed if over else not tests)
    if not reports:
        why = WHY.get(state, "validation has not run yet")
        return {"kind": "open", "text": "Not validated", "detail": f"No verdict: {why}."}
    found = [outcome(r) for r in reports]
    passed = found.count(True)
    asked = max(int(tests.get("asked") or 0), len(reports))
    names = f": {', '.join(left)}" if left else ""
    detail = f"{passed} of {asked} validations within their limits."
    strange = dict.fromkeys(reference(r) for r in reports if not (r.get("compared_with") or {}).get("trained", True))
    if strange:
        detail += f" Compared with {', '.join(strange)}."
    if None in found:
        detail += f" Not judged, as nothing is asked: {_named(titles, found, None)}."
    if missing and over:
        detail += f" {missing} could not be done{names}."
    elif missing:
        detail += f" {missing if tests else 'Some'} still to be done{names}."
    if False in found:
        detail += f" Not within them: {_named(titles, found, False)}."
        return {"kind": "fail", "text": "Failed", "detail": detail}
    if missing and over:
        return {"kind": "fail", "text": "Not passed", "detail": detail}
    if missing:
        return {"kind": "open", "text": "Not finished", "detail": detail}
    if not passed:
        return {"kind": "open", "text": "Not validated", "detail": detail}
    return {"kind": "pass", "text": "Passed", "detail": detail}


def reference(report: Data) -> str:
    """Name what a test compared with; nothing where that is not known."""
    found: Data = report.get("compared_with") or {}
    if not found:
        return ""
    other = "" if found.get("trained") else ", which the labels are not made with"
    return f"{found.get('file')}{other}"


def _named(titles: Sequence[str], found: Sequence[bool | None], which: bool | None) -> str:
    return ", ".join(dict.fromkeys(t for t, f in zip(titles, found, strict=True) if f is which))
