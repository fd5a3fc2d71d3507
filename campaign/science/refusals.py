"""Frames that must never be labelled: they poison a training set, whatever else they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from campaign.errors import Unphysical
from campaign.frames import Array, Frames
from campaign.science.neighbours import closest_ratio


@dataclass(frozen=True)
class Limits:
    """What a frame must keep to.

    Attributes
    ----------
    min_distance
        Least distance of two atoms, as a fraction of the sum of their covalent radii.
    max_force
        Largest force on an atom, eV/Å; None for any.
    energy, volume
        Lowest and highest energy (eV/atom) and volume (Å^3/atom); None for any.
    """

    min_distance: float = 0.5
    max_force: float | None = None
    energy: Sequence[float] | None = None
    volume: Sequence[float] | None = None


def refusals(frames: Frames, limits: Limits) -> dict[int, str]:
    """Return which frames are refused: their row, and the first reason.

    Positions, cell and whatever is known of energy and forces must be numbers; what a limit is set for must be known.
    """
    if not len(frames):
        return {}
    found: dict[int, str] = {}

    def refuse(bad: Array, reason: str, values: Array | None = None) -> None:
        for k in np.flatnonzero(bad):
            found.setdefault(int(k), reason if values is None else reason.format(values[k]))

    finite = [np.isfinite(a).all(axis=(1, 2)) for a in (frames.positions, frames.cell)]
    sound = np.asarray(finite[0] & finite[1])
    volume = np.zeros(len(frames))
    volume[sound] = frames[sound].volume / frames.n_atoms
    refuse(~sound, "positions or cell are not finite")
    refuse(sound & (volume <= 0.0), "the cell has no volume")
    refuse(np.isinf(frames.energy) | np.isinf(frames.forces).any(axis=(1, 2)), "energy or forces are not finite")
    if limits.min_distance > 0.0:
        rows = np.array([k for k in range(len(frames)) if k not in found], dtype=np.int64)
        ratio = np.full(len(frames), np.inf)
        ratio[rows] = _ratios(frames[rows])
        refuse(np.isnan(ratio), "the cell is so flat that an atom has too many images of itself beside it")
        refuse(ratio < limits.min_distance, "two atoms at {:.2f} of the sum of their covalent radii", ratio)
    if limits.max_force is not None:
        force = np.linalg.norm(frames.forces, axis=2).max(axis=1)
        refuse(np.isnan(force), "its forces are not known, and there is a limit to them")
        refuse(force > limits.max_force, f"a force of {{:.3g}} eV/Å, over {limits.max_force:g}", force)
    if limits.energy is not None:
        low, high = limits.energy
        energy = frames.energy / frames.n_atoms
        refuse(np.isnan(energy), "its energy is not known, and there are limits to it")
        refuse(
            (energy < low) | (energy > high), f"an energy of {{:.4g}} eV/atom, not within {low:g} and {high:g}", energy
        )
    if limits.volume is not None:
        low, high = limits.volume
        refuse((volume < low) | (volume > high), f"{{:.3g}} Å^3/atom, not within {low:g} and {high:g}", volume)
    return dict(sorted(found.items()))


def beyond(limits: Limits, energy: float, force: float) -> str:
    """Return why a label is refused; empty where it keeps to the limits on force and energy.

    Parameters
    ----------
    limits
        What it must keep to.
    energy
        Of the frame, eV/atom.
    force
        The largest on an atom, eV/Å.
    """
    if limits.max_force is not None and not force <= limits.max_force:
        return f"its label has a force of {force:.3g} eV/Å, over {limits.max_force:g}"
    if limits.energy is not None and not limits.energy[0] <= energy <= limits.energy[1]:
        low, high = limits.energy
        return f"its label has an energy of {energy:.4g} eV/atom, not within {low:g} and {high:g}"
    return ""


def _ratios(frames: Frames) -> Array:
    """Return ``closest_ratio``, NaN for a frame in which it cannot be found."""
    if not len(frames):
        return np.zeros(0)
    try:
        return closest_ratio(frames)
    except Unphysical:
        if len(frames) == 1:
            return np.array([np.nan])
        return np.concatenate([_ratios(frames[k : k + 1]) for k in range(len(frames))])
