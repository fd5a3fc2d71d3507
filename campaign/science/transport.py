"""Self-diffusion and ionic conductivity from trajectories, with errors from blocks.

Displacements are those of scaled coordinates, so that neither the periodic box nor the breathing of a barostat counts
as motion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from campaign.frames import Array

#: e / (Å ps V) in S/cm: charges of a proton, lengths in Å, times in ps, energies in eV.
S_PER_CM = 16.02176634
#: k_B in eV/K.
BOLTZMANN = 8.617333262e-5
#: First lag of a straight line, ps: in a liquid what comes before is vibration.
FIRST = 0.5
#: The last lag is so many times the first one, where the blocks are long enough: at long lags there is mostly noise.
REACH = 10
#: A block is so many times the longest lag.
BLOCK = 2
#: Steps between frames over this part of a cell vector are suspicious: beyond a half the image is the wrong one. Of
#: normally distributed steps of which ``RARE`` are over it, 3 in 10^8 are over a half.
FAR, RARE = 0.35, 1e-4
#: Atoms transformed at a time: memory stays near that of the trajectory.
CHUNK = 32


class TooShort(ValueError):
    """A trajectory has no room for the lags that are asked for.

    Attributes
    ----------
    needed
        How long it would have to be, ps.
    """

    def __init__(self, needed: float) -> None:
        super().__init__(f"The trajectory is too short: {needed:.3g} ps are needed.")
        self.needed = needed


class TooCoarse(ValueError):
    """Frames are so far apart that atoms may have crossed half the cell between them: which way is not known."""

    def __init__(self, share: float, dt: float | None) -> None:
        every = "" if dt is None else f" are {dt:g} ps apart, and"
        super().__init__(
            f"The frames{every or ' are too far apart:'} {100 * share:.2g} % of the atoms' steps along a cell vector "
            f"are over {FAR:g} of it: which way an atom went is not known. Write a smaller 'every'."
        )


@dataclass(frozen=True)
class Plan:
    """How a trajectory is evaluated: blocks, and in each the lags of the straight line.

    Attributes
    ----------
    blocks, length
        How many, and the frames in each.
    first, last
        Lags between which the line is fitted, both included, in frames.
    dt
        Time between frames, ps.
    """

    blocks: int
    length: int
    first: int
    last: int
    dt: float

    def parts(self, frames: int) -> list[slice]:
        """Return the blocks of a trajectory; what is left over is left out at its beginning."""
        start = frames - self.blocks * self.length
        return [slice(start + k * self.length, start + (k + 1) * self.length) for k in range(self.blocks)]


def plan(frames: int, dt: float, blocks: int, window: tuple[float, float] | None = None) -> Plan:
    """Lay out blocks and lags.

    Parameters
    ----------
    frames
        In equilibrium.
    dt
        Time between them, ps.
    blocks
        How many; at least 2.
    window
        First and last lag, ps; None for 0.5 ps, and ten times that or half a block.

    Raises
    ------
    TooShort
        A block is not twice as long as the last lag, or there is not a fourfold of the first.
    """
    length = frames // blocks
    first = max(1, round((window[0] if window else FIRST) / dt))
    last = max(first + 1, round(window[1] / dt)) if window else min(REACH * first, (length - 1) // BLOCK)
    if length < BLOCK * last + 1 or last < 2 * first:
        needed = max(last, 2 * first) * BLOCK * blocks * dt
        raise TooShort(needed)
    return Plan(blocks, length, first, last, dt)


def unwrap(positions: Array, cells: Array, dt: float | None = None) -> Array:
    """Return where the atoms have gone, images and changes of the cell taken out: ``(n, a, 3)`` Å.

    Every step is the nearest image of the change of the scaled coordinates, in the mean of the two cells. Adding steps
    up, and not multiplying unwrapped scaled coordinates by a fluctuating cell, is what keeps diffusion at constant
    pressure right (von Bülow, Bullerjahn and Hummer, J. Chem. Phys. 153, 021101, 2020).

    Parameters
    ----------
    positions : (n, a, 3)
        Å, wrapped or not.
    cells : (n, 3, 3)
        Å, vectors as rows.
    dt
        Time between frames, ps, for the message.

    Raises
    ------
    TooCoarse
        More than ``RARE`` of the steps are over ``FAR`` of a cell vector: atoms may have moved by half of it.
    """
    scaled = np.einsum("nai,nij->naj", positions, np.linalg.inv(cells))
    step = np.diff(scaled, axis=0)
    step -= np.round(step)
    far = float((np.abs(step) > FAR).mean()) if step.size else 0.0
    if far > RARE:
        raise TooCoarse(far, dt)
    moved = np.einsum("nai,nij->naj", step, 0.5 * (cells[1:] + cells[:-1]))
    return np.asarray(np.concatenate([positions[:1], positions[:1] + np.cumsum(moved, axis=0)]))


def without_drift(positions: Array, masses: Array) -> Array:
    """Return positions relative to the centre of mass: (n, a, 3) Å, of masses (a,)."""
    return np.asarray(positions - (np.einsum("a,nai->ni", masses, positions) / masses.sum())[:, None])


def msd(positions: Array) -> Array:
    """Return the mean square displacement at each lag, over all atoms and all origins: (n,) Å^2.

    By Fourier transforms, exact: Calandrini et al., Collection SFN 12, 201 (2011).

    Parameters
    ----------
    positions : (n, a, 3)
        Å, unwrapped.
    """
    n, atoms = positions.shape[:2]
    total = np.zeros(n)
    for start in range(0, atoms, CHUNK):
        x = positions[:, start : start + CHUNK]
        x = x - x.mean(axis=0)  # smaller numbers lose less
        squares = (x**2).sum(axis=2)
        both = np.cumsum(squares, axis=0) + np.cumsum(squares[::-1], axis=0)  # at row k-1: over the first and last k
        origins = np.arange(n, 0, -1)[:, None]
        total += ((both[::-1] / origins) - 2.0 * _correlate(x)).sum(axis=1)
    return np.asarray(total / atoms)


def _correlate(x: Array) -> Array:
    """Return (n, a) the mean over origins of x(0) . x(t), of (n, a, 3)."""
    n = len(x)
    spectrum = np.fft.rfft(x, 2 * n, axis=0)
    found = np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=2), 2 * n, axis=0)[:n]
    return np.asarray(found / np.arange(n, 0, -1)[:, None])


def _slope(curve: Array, plan: Plan) -> float:
    lags = np.arange(plan.first, plan.last + 1)
    return float(np.polyfit(lags * plan.dt, curve[lags], 1)[0])


@dataclass(frozen=True)
class Measured:
    """A quantity with its standard error over blocks, and the curve that it was read from.

    Attributes
    ----------
    value, error
        Mean and standard error over the blocks.
    time, curve : (lags,)
        ps, and the mean over the blocks.
    exponent
        Of a mean square displacement: the power of time with which it grows between the lags of the fit, 1 where it
        is a straight line.
    """

    value: float
    error: float
    time: Array
    curve: Array
    exponent: float = np.nan


def _measured(values: list[float], curves: list[Array], dt: float) -> Measured:
    curve = np.mean(curves, axis=0)
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Measured(float(np.mean(values)), error, dt * np.arange(len(curve)), curve)


def diffusion(positions: Array, plan: Plan) -> Measured:
    """Return the self-diffusion coefficient, Å^2/ps (1e-8 m^2/s), by Einstein's relation: slope of the MSD over 6.

    Parameters
    ----------
    positions : (n, a, 3)
        Å, unwrapped and without drift, of the atoms of one species.
    plan
        Blocks and lags. The curve is the MSD, Å^2.
    """
    curves = [msd(positions[part])[: plan.last + 1] for part in plan.parts(len(positions))]
    found = _measured([_slope(c, plan) / 6.0 for c in curves], curves, plan.dt)
    return replace(found, exponent=_exponent(found.curve, plan))


def _exponent(curve: Array, plan: Plan) -> float:
    """Return the slope of log(curve) against log(lag), evenly weighted over the logarithms of the lags."""
    lags = np.unique(np.geomspace(plan.first, plan.last, 20).round().astype(int))
    if not (curve[lags] > 0.0).all():
        return 0.0
    return float(np.polyfit(np.log(lags), np.log(curve[lags]), 1)[0])


def dipole(positions: Array, charges: Array) -> Array:
    """Return the collective charge displacement sum of q r, (n, 3) e Å, of unwrapped positions and charges (a,)."""
    return np.asarray(np.einsum("a,nai->ni", charges, positions))


def einstein_conductivity(moment: Array, volume: float, temperature: float, plan: Plan) -> Measured:
    """Return the ionic conductivity, S/cm: slope of the collective displacement's square over 6 V k T.

    Parameters
    ----------
    moment : (n, 3)
        ``dipole``.
    volume, temperature
        Å^3, K.
    plan
        Blocks and lags. The curve is the mean square of the collective displacement, e^2 Å^2.
    """
    scale = S_PER_CM / (6.0 * volume * BOLTZMANN * temperature)
    curves = [msd(moment[part][:, None])[: plan.last + 1] for part in plan.parts(len(moment))]
    return _measured([scale * _slope(c, plan) for c in curves], curves, plan.dt)


def green_kubo_conductivity(
    moment: Array, volume: float, temperature: float, plan: Plan, plateau: tuple[float, float]
) -> Measured:
    """Return the ionic conductivity, S/cm: integral of the current's autocorrelation over 3 V k T.

    The current is the finite difference of the collective displacement: its integral over any lag that is long
    against the stride does not depend on the stride, because a sum of differences is a displacement.

    Parameters
    ----------
    moment : (n, 3)
        ``dipole``.
    volume, temperature
        Å^3, K.
    plan
        Blocks.
    plateau
        Times between which the running integral is averaged, ps. The curve is the running integral, S/cm.
    """
    scale = S_PER_CM / (3.0 * volume * BOLTZMANN * temperature)
    ends = [max(1, round(t / plan.dt)) for t in plateau]
    curves = []
    for part in plan.parts(len(moment)):
        current = np.diff(moment[part], axis=0) / plan.dt
        correlation = _correlate(current[:, None])[: ends[1] + 1, 0]
        steps = 0.5 * plan.dt * (correlation[1:] + correlation[:-1])
        curves.append(scale * np.concatenate([[0.0], np.cumsum(steps)]))
    return _measured([float(c[ends[0] :].mean()) for c in curves], curves, plan.dt)
