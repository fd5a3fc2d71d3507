"""Error bars of averages over a trajectory, whose values are not independent; and what two of them say together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from campaign.frames import Array

#: Fewest blocks from whose spread an error is taken.
FEWEST = 5
#: Share at the beginning of a run that is its way from the start to equilibrium, and does not count.
SETTLING = 5


def settled(frames: int) -> int:
    """Return the first frame of a run that counts."""
    return frames // SETTLING


def whole(time: float) -> float:
    """Return how long a run is whose part that counts takes ``time``."""
    return time * SETTLING / (SETTLING - 1)


def mean_and_error(values: Array) -> tuple[float, float]:
    """Return the mean of a series and its standard error.

    The error is that of the means of blocks of 1, 2, 4, ... values, the largest of all sizes that leave ``FEWEST``
    blocks: it grows with the size until blocks are longer than the memory of the series (Flyvbjerg and Petersen,
    J. Chem. Phys. 91, 461, 1989).

    Parameters
    ----------
    values : (n,)
        In order of time, evenly spaced.

    Returns
    -------
    mean, error
        NaN for a mean of nothing, and for an error of fewer than ``FEWEST`` values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return np.nan, np.nan
    mean, error = float(values.mean()), np.nan
    while len(values) >= FEWEST:
        error = np.fmax(error, error_of_blocks(values))
        values = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return mean, float(error)


def error_of_blocks(means: Array) -> float:
    """Return the standard error of the mean of independent values: blocks longer than the memory of a series."""
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else np.nan


@dataclass(frozen=True)
class Agreement:
    """A value of the model against the reference's, in one unit: that of the limit.

    Attributes
    ----------
    difference, error
        Model less reference, and its standard error.
    limit
        Largest difference that passes.
    most
        Largest error with which the difference says anything.
    """

    difference: float
    error: float
    limit: float
    most: float

    @property
    def short(self) -> bool:
        """Whether the trajectories are too short to tell."""
        return not self.error <= self.most

    @property
    def ok(self) -> bool:
        """Whether the model agrees, and that is known."""
        return abs(self.difference) <= self.limit and not self.short


def compare(
    model: tuple[float, float], reference: tuple[float, float], limit: float, most: float, relative: bool
) -> Agreement:
    """Compare two values with their standard errors.

    Parameters
    ----------
    model, reference
        (value, standard error).
    limit, most
        As in ``Agreement``: of ``relative`` ones a percentage of the reference's value.
    """
    scale = 100.0 / abs(reference[0]) if relative and reference[0] else 1.0
    error = float(np.hypot(model[1], reference[1]))
    return Agreement(scale * (model[0] - reference[0]), scale * error, limit, most)


def bracketed(value: float, error: float) -> str:
    """Return a value with its standard error in the last digits, ``1.118(6)``; without one where it is not known.

    The error has one digit, two where the first is a 1.
    """
    if not math.isfinite(value):
        return "not known"
    if not math.isfinite(error) or error <= 0.0:
        return f"{value:.4g}"
    first, exponent = f"{error:.1e}".split("e")
    digits = (1 if first[0] == "1" else 0) - int(exponent)
    if digits <= 0:
        return f"{round(value, digits) + 0.0:.0f}({round(error, digits):.0f})"  # + 0.0: there is no -0
    return f"{round(value, digits) + 0.0:.{digits}f}({round(error * 10**digits)})"
