"""Error bars of averages over a trajectory, whose values are not independent; and what two of them say together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from campaign.frames import Array

#: Fewest blocks from whose spread an error is taken.
FEWEST = 5
#: A difference is known where its standard error is at most its limit over this. Of five blocks on either side (eight
#: degrees of freedom) the 95 % interval is 2.3 standard errors (Student), so it is then narrower than the limit.
KNOWN, INTERVAL = 3.0, 2.3
#: Window of ``_correlated``, over the correlation time, and the largest part of a series that it may take.
WINDOW, ROOM = 5.0, 0.45
#: Fewest values that tell their memory.
LONG = 20
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

    It is the larger of two. That of the means of blocks of 1, 2, 4, ... values, the largest of all sizes that leave
    ``FEWEST`` blocks: it grows with the size until blocks are longer than the memory of the series (Flyvbjerg and
    Petersen, J. Chem. Phys. 91, 461, 1989). And that of the integrated autocorrelation, which blocks that are not
    much longer than the memory underestimate (``_correlated``).

    Parameters
    ----------
    values : (n,)
        In order of time, evenly spaced.

    Returns
    -------
    mean, error
        NaN for a mean of nothing; and for an error of fewer than ``FEWEST`` values, or of a series that is too short
        for its memory.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return np.nan, np.nan
    mean, error = float(values.mean()), np.nan
    blocks = values
    while len(blocks) >= FEWEST:
        error = np.fmax(error, error_of_blocks(blocks))
        blocks = blocks[: len(blocks) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(values) >= LONG and error > 0.0:
        error = np.maximum(error, _correlated(values))  # NaN if it is
    return mean, float(error)


def _correlated(values: Array) -> float:
    """Return the standard error of the mean from the integrated autocorrelation time.

    The sum of the autocorrelation ends where the lag is ``WINDOW`` times half of it (Sokal), and what the mean that was
    taken off took of every term is given back (Wolff, Comput. Phys. Commun. 156, 143, 2004, eq. 49). NaN where the
    window is over ``ROOM`` of the series: it still remembers its beginning, and nothing in it tells for how long.
    """
    n = len(values)
    x = values - values.mean()
    spectrum = np.fft.rfft(x, 2 * n)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:n] / np.arange(n, 0, -1)
    time = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    enough = np.arange(n) >= 0.5 * WINDOW * time
    window = int(np.argmax(enough)) if enough.any() else n
    if window > ROOM * n:
        return np.nan
    return float(np.sqrt(max(0.0, time[window]) * covariance[0] / n / (1.0 - (2 * window + 1) / n)))


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
        """Whether the trajectories are too short to tell; what is over its limit by far is told by any."""
        return not self.error <= self.most and not self.clear

    @property
    def clear(self) -> bool:
        """Whether the difference is over its limit even at the near end of its 95 % interval."""
        return abs(self.difference) > self.limit + INTERVAL * self.error

    @property
    def ok(self) -> bool:
        """Whether the model agrees, and that is known."""
        return abs(self.difference) <= self.limit and self.error <= self.most


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
