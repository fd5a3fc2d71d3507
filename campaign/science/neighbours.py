"""Neighbour lists of periodic frames, and how close their atoms come. Å throughout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from campaign.errors import Unphysical
from campaign.frames import Array, Frames


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """All ordered pairs (i, j) closer than a cutoff, over every periodic image.

    Attributes
    ----------
    idx_i, idx_j : (E,) int64
        Atoms of each pair, numbered over the whole batch (frame ``k`` holds atoms ``k*a`` to ``(k+1)*a - 1``).
    shifts : (E, 3) int32
        Cells crossed on the way from i to j.
    offsets : (E, 3) float64
        ``shifts @ cell``, Å: the vector of a pair is ``positions[idx_j] - positions[idx_i] + offsets``.
    starts : (n + 1,) int64
        Pairs of frame ``k`` are ``starts[k]`` to ``starts[k + 1] - 1``.
    """

    idx_i: Array
    idx_j: Array
    shifts: Array
    offsets: Array
    starts: Array

    def __len__(self) -> int:
        return int(self.idx_i.shape[0])

    @property
    def half(self) -> Array:
        """(E,) mask of pairs that stand for both directions: i < j, or one of an atom's two mirror images."""
        a, b, c = self.shifts.T
        ahead = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
        return np.asarray((self.idx_i < self.idx_j) | ((self.idx_i == self.idx_j) & ahead))

    def vectors(self, positions: Array) -> Array:
        """Return (E, 3) vectors from i to j for ``positions`` of shape (n, a, 3) or (n*a, 3), Å."""
        x = np.asarray(positions).reshape(-1, 3)
        return np.asarray(x[self.idx_j] - x[self.idx_i] + self.offsets)

    def distances(self, positions: Array) -> Array:
        """Return (E,) distances, Å."""
        return np.asarray(np.linalg.norm(self.vectors(positions), axis=1))


def neighbour_list(frames: Frames, cutoff: float) -> Neighbours:
    """Find all pairs closer than ``cutoff``; it may exceed half the box, and atoms may lie outside the cell.

    Parameters
    ----------
    frames
        Periodic frames.
    cutoff
        Å.

    Raises
    ------
    Unphysical
        Positions or cell are not finite, or the cell has no volume.
    """
    from matscipy.neighbours import neighbour_list as search

    _check(frames)
    pairs_i, pairs_j, shifts, offsets = [], [], [], []
    starts = np.zeros(len(frames) + 1, dtype=np.int64)
    for k in range(len(frames)):
        i, j, s = search(
            "ijS", positions=frames.positions[k], cell=frames.cell[k], pbc=[True] * 3, cutoff=float(cutoff)
        )
        starts[k + 1] = starts[k] + len(i)
        pairs_i.append(i.astype(np.int64) + k * frames.n_atoms)
        pairs_j.append(j.astype(np.int64) + k * frames.n_atoms)
        shifts.append(s.astype(np.int32))
        offsets.append(s @ frames.cell[k])
    if not len(frames):
        none, triples = np.zeros(0, np.int64), np.zeros((0, 3))
        return Neighbours(none, none, triples.astype(np.int32), triples, starts)
    return Neighbours(
        np.concatenate(pairs_i), np.concatenate(pairs_j), np.concatenate(shifts), np.concatenate(offsets), starts
    )


def minimum_distance(frames: Frames) -> Array:
    """Return (n,) the shortest distance between two atoms (images included) of each frame, Å."""
    return _closest(frames, np.ones(frames.numbers.shape) * 0.5)


def closest_ratio(frames: Frames) -> Array:
    """Return (n,) the shortest distance of each frame over the sum of the two covalent radii (Cordero 2008, as in ASE).

    Pairs far below 1 are atoms on top of each other: a poisoned training frame or a collapsed run.
    """
    from ase.data import covalent_radii

    return _closest(frames, covalent_radii[frames.numbers.astype(int)])


def _closest(frames: Frames, radii: Array) -> Array:
    """Return the smallest d_ij / (r_i + r_j) of each frame, widening the search until it must have been seen."""
    out = np.full(len(frames), np.inf)
    todo = np.arange(len(frames))
    widest = 2.0 * float(radii.max()) if radii.size else 1.0
    reach = 1.25 if widest > 1.0 else 3.0  # in units of the widest sum of radii; only a first guess
    while len(todo):
        block = frames[todo]
        pairs = neighbour_list(block, reach * widest)
        r = radii[todo].ravel()
        ratio = pairs.distances(block.positions) / (r[pairs.idx_i] + r[pairs.idx_j])
        np.minimum.at(out, todo[pairs.idx_i // frames.n_atoms], ratio)
        # a pair outside the search is at least `reach`, so a smaller one found is the smallest
        todo = todo[out[todo] > reach]
        reach *= 2.0
    return out


def _check(frames: Frames) -> None:
    finite = np.array(
        [np.isfinite(x).all() and np.isfinite(c).all() for x, c in zip(frames.positions, frames.cell, strict=True)]
    )
    # the determinant of a cell that is not finite is never asked for: it would warn
    volume = np.linalg.det(np.where(finite.reshape(-1, 1, 1), frames.cell, 0.0))
    good = np.array([ok and v != 0.0 for ok, v in zip(finite, volume, strict=True)], dtype=bool)
    if not good.all():
        bad = frames[[int(np.argmin(good))]].ids[0]
        raise Unphysical(
            f"Frame {bad} has positions or a cell that are not finite, or a cell without volume, so its neighbours "
            "cannot be found; the run that made it has probably exploded: reject the frame or halve the time step."
        )
