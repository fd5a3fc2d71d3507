"""The selectors by name: a new one is a class, a line here, and a class of the campaign file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from campaign.science.rnd import RNDStream
from campaign.science.selection import RandomSelector, Selector
from campaign.science.selectors_histogram import AtomicEnergy, Force, GlobalEnergy, Grid
from campaign.science.selectors_pool import FPS, REMatch, RNDBatch
from campaign.science.selectors_time import UniformTime

#: Name of ``select.method`` -> class.
SELECTORS: dict[str, type[Any]] = {
    "random": RandomSelector,
    "uniform_time": UniformTime,
    "global_energy": GlobalEnergy,
    "atomic_energy": AtomicEnergy,
    "force": Force,
    "grid": Grid,
    "fps": FPS,
    "rnd": RNDBatch,
    "rnd_stream": RNDStream,
    "rematch": REMatch,
}


def build_selector(method: str, size: int, seed: int, options: Mapping[str, Any]) -> Selector:
    """Return a selector.

    Parameters
    ----------
    method
        A name of ``SELECTORS``.
    size
        How many frames it chooses.
    seed
        Of its random numbers.
    options
        What else its class takes.
    """
    return cast(Selector, SELECTORS[method](size, seed, **options))
