"""Neighbour lists of periodic frames, and how close their atoms come. Å throughout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from campaign.errors import Unphysical
from campaign.frames import Array, Frames
from campaign.science.compiled import available, compiled

#: Atoms up to which a loop over all pairs is quicker than a cell list.
_FEW = 4000
#: Images of a cell, and neighbours of an atom, more than which only a collapsed cell has within the cutoff.
_MOST_IMAGES, _MOST_NEIGHBOURS = 1e6, 1e5


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """All ordered pairs (i, j) closer than a cutoff, over every periodic image; or only those of ``half``.

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
        return _stands_for_both(self.idx_i, self.idx_j, self.shifts)

    def vectors(self, positions: Array) -> Array:
        """Return (E, 3) vectors from i to j for ``positions`` of shape (n, a, 3) or (n*a, 3), Å."""
        x = np.asarray(positions).reshape(-1, 3)
        return np.asarray(x[self.idx_j] - x[self.idx_i] + self.offsets)

    def distances(self, positions: Array) -> Array:
        """Return (E,) distances, Å."""
        return np.asarray(np.linalg.norm(self.vectors(positions), axis=1))


def neighbour_list(frames: Frames, cutoff: float, half: bool = False) -> Neighbours:
    """Find all pairs closer than ``cutoff``; it may exceed the whole box, and atoms may lie outside the cell.

    Frames of up to four thousand atoms are searched by a loop over pairs that goes only through the images that can be
    near enough, all frames in one call; larger ones by the cell list of matscipy.

    Parameters
    ----------
    frames
        Periodic frames.
    cutoff
        Å.
    half
        Only the pairs of ``Neighbours.half``, in half the time.

    Raises
    ------
    Unphysical
        Positions or cell are not finite, or the cell has no volume, or is so small that an atom would have a hundred
        thousand neighbours.
    """
    require_sound(frames, cutoff)
    if not len(frames) or not frames.n_atoms:
        none, triples = np.zeros(0, np.int64), np.zeros((0, 3))
        return Neighbours(none, none, triples.astype(np.int32), triples, np.zeros(len(frames) + 1, np.int64))
    if frames.n_atoms <= _FEW and available():
        return _by_pairs(frames, float(cutoff), half)
    return _by_cells(frames, float(cutoff), half)


def _by_cells(frames: Frames, cutoff: float, half: bool) -> Neighbours:
    """Search each frame with matscipy: time is linear in the atoms."""
    from matscipy.neighbours import neighbour_list as search

    pairs_i, pairs_j, shifts, offsets = [], [], [], []
    starts = np.zeros(len(frames) + 1, dtype=np.int64)
    for k in range(len(frames)):
        i, j, s = search("ijS", positions=frames.positions[k], cell=frames.cell[k], pbc=[True] * 3, cutoff=cutoff)
        if half:
            keep = _stands_for_both(i, j, s)
            i, j, s = i[keep], j[keep], s[keep]
        starts[k + 1] = starts[k] + len(i)
        pairs_i.append(i.astype(np.int64) + k * frames.n_atoms)
        pairs_j.append(j.astype(np.int64) + k * frames.n_atoms)
        shifts.append(s.astype(np.int32))
        offsets.append(s @ frames.cell[k])
    return Neighbours(
        np.concatenate(pairs_i), np.concatenate(pairs_j), np.concatenate(shifts), np.concatenate(offsets), starts
    )


def _by_pairs(frames: Frames, cutoff: float, half: bool) -> Neighbours:
    """Search all frames in one compiled call: no work outside the loop, whatever the number of images."""
    x, cell = np.ascontiguousarray(frames.positions), np.ascontiguousarray(frames.cell)
    inverse = np.linalg.inv(cell)
    # spacing of lattice planes: how many cells the cutoff reaches along each axis
    reach = cutoff * np.linalg.norm(inverse, axis=1)
    size = frames.n_atoms * (frames.n_atoms / frames.volume).sum() * 2.0 * cutoff**3  # half of 4/3 pi c^3 n, about
    room = int(1.2 * size) + 64 * len(frames)
    while True:
        i, j = np.empty(room, np.int64), np.empty(room, np.int64)
        shifts, offsets = np.empty((room, 3), np.int32), np.empty((room, 3))
        starts = np.zeros(len(frames) + 1, np.int64)
        compiled(_search)(x, cell, inverse, reach, cutoff, i, j, shifts, offsets, starts)
        if starts[-1] <= room:
            break
        room = int(starts[-1])
    n = int(starts[-1])
    i, j, shifts, offsets = i[:n], j[:n], shifts[:n], offsets[:n]
    if half:
        return Neighbours(i, j, shifts, offsets, starts)
    both = np.empty((n, 2), np.int64)
    both[:, 0], both[:, 1] = i, j
    signs = np.array([1, -1])[None, :, None]
    return Neighbours(
        both.ravel(),
        both[:, ::-1].ravel(),
        (shifts[:, None, :] * signs).astype(np.int32).reshape(-1, 3),
        (offsets[:, None, :] * signs).reshape(-1, 3),
        2 * starts,
    )


def _search(
    positions: Array,
    cell: Array,
    inverse: Array,
    reach: Array,
    cutoff: float,
    idx_i: Array,
    idx_j: Array,
    shifts: Array,
    offsets: Array,
    starts: Array,
) -> None:
    """Write each pair once, i <= j; when there is no room left, count on.

    Two atoms a fraction f of an axis apart are closer than the cutoff only in images s with -reach <= f + s <= reach.
    """
    frames, atoms = positions.shape[0], positions.shape[1]
    room = idx_i.shape[0]
    square = cutoff * cutoff
    fraction = np.empty((atoms, 3))
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    count = 0
    for k in range(frames):
        h = cell[k]
        for i in range(atoms):
            for c in range(3):
                fraction[i, c] = (
                    positions[k, i, 0] * inverse[k, 0, c]
                    + positions[k, i, 1] * inverse[k, 1, c]
                    + positions[k, i, 2] * inverse[k, 2, c]
                )
        for i in range(atoms):
            for j in range(i, atoms):
                for c in range(3):
                    f = fraction[j, c] - fraction[i, c]
                    margin = reach[k, c] + 1e-9 * (1.0 + abs(f))
                    low[c] = np.int64(np.ceil(-margin - f))
                    high[c] = np.int64(np.floor(margin - f))
                dx = positions[k, j, 0] - positions[k, i, 0]
                dy = positions[k, j, 1] - positions[k, i, 1]
                dz = positions[k, j, 2] - positions[k, i, 2]
                for a in range(low[0], high[0] + 1):
                    for b in range(low[1], high[1] + 1):
                        for c in range(low[2], high[2] + 1):
                            if i == j and not (a > 0 or (a == 0 and (b > 0 or (b == 0 and c > 0)))):
                                continue
                            ox = a * h[0, 0] + b * h[1, 0] + c * h[2, 0]
                            oy = a * h[0, 1] + b * h[1, 1] + c * h[2, 1]
                            oz = a * h[0, 2] + b * h[1, 2] + c * h[2, 2]
                            if (dx + ox) ** 2 + (dy + oy) ** 2 + (dz + oz) ** 2 >= square:
                                continue
                            if count < room:
                                idx_i[count] = k * atoms + i
                                idx_j[count] = k * atoms + j
                                shifts[count, 0] = a
                                shifts[count, 1] = b
                                shifts[count, 2] = c
                                offsets[count, 0] = ox
                                offsets[count, 1] = oy
                                offsets[count, 2] = oz
                            count += 1
        starts[k + 1] = count


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


def _stands_for_both(i: Array, j: Array, shifts: Array) -> Array:
    """Return the mask of pairs with i < j, and of one of the two mirror images of an atom."""
    a, b, c = shifts.T
    ahead = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    return np.asarray((i < j) | ((i == j) & ahead))


def require_sound(frames: Frames, cutoff: float) -> None:
    """Raise ``Unphysical``, naming the first frame in which neighbours within ``cutoff`` (Å) cannot be found."""
    finite = np.asarray(np.isfinite(frames.positions).all(axis=(1, 2)) & np.isfinite(frames.cell).all(axis=(1, 2)))
    # the determinant of a cell that is not finite is never asked for: it would warn
    cells = np.where(finite[:, None, None], frames.cell, 0.0)
    volume = np.abs(np.linalg.det(cells))
    faces = np.linalg.norm(np.cross(cells[:, [1, 2, 0]], cells[:, [2, 0, 1]]), axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        images = np.prod(2.0 * cutoff * faces / volume[:, None] + 1.0, axis=1)
        neighbours = 4.2 * cutoff**3 * frames.n_atoms / volume
    good = finite & (volume > 0.0) & (images < _MOST_IMAGES) & (neighbours < _MOST_NEIGHBOURS)
    if not good.all():
        bad = frames[[int(np.argmin(good))]].ids[0]
        raise Unphysical(
            f"Frame {bad} has positions or a cell that are not finite, or a cell without volume or so small that "
            f"{_MOST_NEIGHBOURS:.0f} atoms are within {cutoff:g} Å of another, so its neighbours cannot be found; the "
            "run that made it has probably exploded: reject the frame or halve the time step."
        )
