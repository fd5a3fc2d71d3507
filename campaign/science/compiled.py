"""Loops over atoms and pairs, compiled by numba when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

#: What may be rearranged in sums of float32: fused multiply-add, no more; NaN and infinity keep their meaning.
_FUSED = {"contract"}
#: The same, and sums in any order, which lets a loop over features run several at once.
_REORDERED = {"contract", "reassoc", "nsz"}


def available() -> bool:
    """Return whether there is a compiler."""
    return find_spec("numba") is not None


@cache
def compiled(function: Callable[..., Any], reordered: bool = False) -> Callable[..., Any]:
    """Return ``function`` compiled; the result is kept on disk where that is possible.

    Other threads run on while it works. ``reordered`` allows sums in another order: always the same one.
    """
    import numba

    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": _REORDERED if reordered else _FUSED}
    try:
        found = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep compiled code in
        found = numba.njit(**options)(function)
    return cast(Callable[..., Any], found)
