"""Segments of walkers: what all have in common that ask for molecular dynamics by the work of ``sample``."""

from __future__ import annotations

from typing import Any

#: Of the work of ``sample``, whoever asks for it.
VERSION = 2


def segments_of(frames: int, size: int) -> list[int]:
    """Return the frames of each segment; a short last one."""
    return [size] * (frames // size) + ([frames % size] if frames % size else [])


def set_points(temperature: Any, start: int, stop: int, total: int) -> list[float]:
    """Return the set points (K) at the start and the end of a segment."""
    if isinstance(temperature, int | float):
        return [float(temperature)] * 2
    low, high = temperature
    return [low + (high - low) * k / total for k in (start, stop)]
