"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any


def number(value: Any) -> float | None:
    """Return a finite float, or None for what cannot be drawn."""
    try:
        x = float(value)
    except (TypeError, ValueError):
        return None
    return x if math.isfinite(x) else None


def significant(value: Any, digits: int = 3) -> str:
    """Return a number with so many significant digits, an en dash where there is none."""
    x = number(value)
    if x is None:
        return "–"
    if x == 0:
        return "0"
    if not 1e-3 <= abs(x) < 1e5:
        return f"{x:.{digits - 1}e}"
    text = f"{x:.{digits}g}"
    return f"{x:.0f}" if "e" in text else text


def cell(value: Any) -> str:
    """Return a number for a column of numbers: three significant digits, zeros kept."""
    x = number(value)
    plain = x is not None and 1e-3 <= abs(x) < 999.5
    return f"{x:#.3g}".rstrip(".") if plain else significant(x)


def count(value: Any) -> str:
    """Return a whole number with thin spaces between thousands."""
    x = number(value)
    return "–" if x is None else f"{x:,.0f}".replace(",", "\u2009")


def duration(seconds: Any) -> str:
    """Return seconds as people say them: ``48 s``, ``5 min 02 s``, ``3 h 07 min``, ``2 d 03 h``."""
    x = number(seconds)
    if x is None or x < 0 or x >= timedelta.max.total_seconds():
        return "–"
    if 0 < x < 10:
        return f"{x:.1f} s"
    s = round(x)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"
