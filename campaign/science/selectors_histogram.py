"""Selection uniform over a histogram: of energies, of the energies or forces of atoms, of cells of a grid.

Sources: global energy, atomic energy and force selection as in MDSuite and the RND paper of Tovey et al. (the frames
are drawn so that the histogram of what was chosen is flat); grid-based distillation as in Jung et al., Data
Distillation for Neural Network Potentials (Fig. 2b).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from campaign.frames import Array
from campaign.science.selection import Batch, Id, Offer, by_hash, check_size, ended, frame_hash, judged

#: Two to this power is the width with which every histogram starts (eV, eV/Å, ...).
FINEST = -30

#: Coordinate of a value that a frame does not have.
ABSENT = np.iinfo(np.int64).min


class Histogram:
    """A sample of a stream that has ``room`` frames of every bin, over a range that grows with the stream.

    Bins lie on a lattice: their width is a power of two and their edges its multiples. Where the range of a dimension
    needs more than ``bins`` of them, neighbours are joined in pairs. A frame is kept as long as it is among the
    ``room`` smallest hashes of a bin in which it has a value. Both depend on the frames seen alone, not on their order
    or on the blocks in which they came. At most ``room`` times the number of bins are kept.

    Parameters
    ----------
    room
        Frames kept of each bin.
    bins
        Most bins in each dimension; between half of them and all are in use.

    Attributes
    ----------
    frames : (m, 3) uint64
        Hash, task and index of the frames kept, by rising hash.
    """

    def __init__(self, room: int, bins: tuple[int, ...]) -> None:
        self.room, self.bins = room, bins
        self.frames = np.zeros((0, 3), dtype=np.uint64)
        self._row = np.zeros(0, dtype=np.int64)  # an entry for each bin of each frame: the frame,
        self._count = np.zeros(0, dtype=np.int64)  # how many of its values are in the bin,
        self._place = np.zeros((0, len(bins)), dtype=np.int64)  # and the bin on the lattice
        self._range = np.tile([FINEST, 0, -1], (len(bins), 1)).astype(np.int64)  # width's power, lowest, highest bin

    def add(self, hashes: Array, ids: Array, values: Array) -> Array:
        """Add frames with (n, k, dimensions) values, NaN where there is none; return (n,) bool, which are kept."""
        n, k, _ = values.shape
        before = len(self.frames)
        flat = values.reshape(n * k, -1).astype(np.float64)
        place = np.stack([self._widen(d, flat[:, d]) for d in range(len(self.bins))], axis=1)
        frames = np.concatenate([self.frames, np.column_stack([hashes, ids]).astype(np.uint64)])
        order = by_hash(frames)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        self.frames = frames[order]
        self._row = rank[np.concatenate([self._row, np.repeat(np.arange(n) + before, k)])]
        self._place = np.concatenate([self._place, place])
        self._count = np.concatenate([self._count, np.ones(n * k, dtype=np.int64)])
        self._join()
        kept = self._trim()
        return np.asarray(kept[rank[before:]])

    def _widen(self, d: int, values: Array) -> Array:
        """Return the bins of values in one dimension, after making the range hold them."""
        there = np.isfinite(values)
        place = np.full(len(values), ABSENT, dtype=np.int64)
        if not there.any():
            return place
        power, low, high = (int(v) for v in self._range[d])
        large = int(np.frexp(np.abs(values[there]).max())[1]) - 45  # bins are counted in 64 bits
        while power < large:
            power, low, high = power + 1, low >> 1, high >> 1
        place[there] = np.floor(np.ldexp(values[there], -power)).astype(np.int64)
        empty = not (self._place[:, d] != ABSENT).any()
        low = int(place[there].min()) if empty else min(low, int(place[there].min()))
        high = int(place[there].max()) if empty else max(high, int(place[there].max()))
        shift = 0
        while (high >> shift) - (low >> shift) + 1 > self.bins[d]:
            shift += 1
        place[there] >>= shift
        self._coarsen(d, power + shift - int(self._range[d, 0]))
        self._range[d] = power + shift, low >> shift, high >> shift
        return place

    def _coarsen(self, d: int, shift: int) -> None:
        """Join bins of the entries in one dimension, ``shift`` times in pairs."""
        there = self._place[:, d] != ABSENT
        self._place[there, d] >>= shift

    def _join(self) -> None:
        """Make one entry of those of the same frame in the same bin; order entries by frame."""
        code, codes = self._codes()
        key, first, entry = np.unique(self._row * codes + code, return_index=True, return_inverse=True)
        self._count = np.bincount(entry, weights=self._count, minlength=len(key)).astype(np.int64)
        self._row, self._place = self._row[first], self._place[first]

    def _codes(self) -> tuple[Array, int]:
        """Return a number for the bin of each entry, and how many there can be."""
        code, codes = np.zeros(len(self._row), dtype=np.int64), 1
        for d, (_, low, high) in enumerate(self._range):
            width = int(max(high - low + 2, 1))
            code = code * width + np.where(self._place[:, d] == ABSENT, 0, self._place[:, d] - low + 1)
            codes *= width
        return code, codes

    def _trim(self) -> Array:
        """Drop the frames that are not needed for any bin; return which of them are kept."""
        code, _ = self._codes()
        order = np.lexsort((self._row, code))
        sorted_code = code[order]
        starts = np.flatnonzero(np.diff(sorted_code, prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        kept = np.zeros(len(self.frames), dtype=bool)
        kept[self._row[order][rank < self.room]] = True
        number = np.cumsum(kept) - 1
        entries = kept[self._row]
        self.frames = self.frames[kept]
        self._row, self._count = number[self._row[entries]], self._count[entries]
        self._place = self._place[entries]
        return kept

    def flat(self, size: int, coarsen: bool) -> list[tuple[int, tuple[float, ...], tuple[float, ...]]]:
        """Choose the ``size`` frames that make the histogram of what is chosen as flat as it can be.

        Greedily the frame that adds most to the sum over bins of log(1 + values chosen in the bin): rare bins count,
        full ones do not. With one value a frame this fills the bins evenly. Ties go to the smaller hash.

        Parameters
        ----------
        size
            How many.
        coarsen
            Join bins until there are no more than ``size``, so that few frames still lie evenly.

        Returns
        -------
        list
            For each the row of ``frames``, and the lower and upper edges of the bin for which it was taken.
        """
        while coarsen and int((self._range[:, 2] - self._range[:, 1]).max()) + 1 > size:
            for d in range(len(self.bins)):
                self._coarsen(d, 1)
                self._range[d] += [1, 0, 0]
                self._range[d, 1:] >>= 1
        self._join()
        code = np.unique(self._codes()[0], return_inverse=True)[1]
        covered = np.zeros(int(code.max(initial=-1)) + 1)
        free = np.ones(len(self.frames), dtype=bool)
        found = []
        for _ in range(min(size, len(self.frames))):
            gain = np.log1p(self._count / (1.0 + covered[code]))
            best = int(np.argmax(np.where(free, np.bincount(self._row, weights=gain, minlength=len(free)), -1.0)))
            free[best] = False
            mine = slice(*np.searchsorted(self._row, [best, best + 1]))
            covered[code[mine]] += self._count[mine]
            most = mine.start + int(np.argmax(gain[mine]))
            found.append((best, *self._edges(self._place[most])))
        return found

    def _edges(self, place: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
        there = place != ABSENT
        widths = [2.0 ** int(p) for p in self._range[:, 0]]
        low = [float(p) * w if ok else np.nan for p, w, ok in zip(place, widths, there, strict=True)]
        return tuple(low), tuple(a + w for a, w in zip(low, widths, strict=True))

    def state(self) -> dict[str, Array]:
        """Return the frames (m, 3), the entries (e, 2 + dimensions) and the range (dimensions, 3)."""
        entries = np.column_stack([self._row, self._count, self._place])
        return {"frames": self.frames.copy(), "entries": entries, "range": self._range.copy()}

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self.frames = np.array(state["frames"], dtype=np.uint64).reshape(-1, 3)
        entries = np.array(state["entries"], dtype=np.int64).reshape(-1, 2 + len(self.bins))
        self._row, self._count, self._place = entries[:, 0].copy(), entries[:, 1].copy(), entries[:, 2:].copy()
        self._range = np.array(state["range"], dtype=np.int64).reshape(-1, 3)


class _Flat:
    """What the selectors by a histogram share: one pass, nothing final before the end, no order that matters.

    Of each bin as many frames as are to be chosen wait, so the memory is bounded by bins times ``size``: about 50 bytes
    a frame and bin that it has values in.
    """

    needs: ClassVar[frozenset[str]]
    whole_pool: ClassVar[bool] = False
    measures_novelty: ClassVar[bool] = False
    #: What a frame must have, in words, and the words for the bins in the reasons.
    lacks: ClassVar[str]
    says: ClassVar[tuple[str, ...]]
    coarsen: ClassVar[bool] = False

    def __init__(self, size: int, seed: int, bins: tuple[int, ...] = (64,)) -> None:
        self.size, self.seed = check_size(size), seed
        self._histogram = Histogram(size, bins)
        self._finished = False

    def values(self, batch: Batch) -> Array:
        """Return (n, k, dimensions), the values of each frame that its bins are of."""
        raise NotImplementedError

    def score(self, values: Array) -> Array:
        """Return (n,) what a frame is judged by."""
        return np.asarray(values[:, :, 0].max(axis=1))

    def good(self, values: Array) -> Array:
        """Return (n,) bool, whether a frame has the values by which it is chosen."""
        return np.asarray(np.isfinite(values).all(axis=(1, 2)))

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames; none is final before ``finish``."""
        n = len(batch)
        if not n:
            return judged(np.zeros(0), np.zeros(0, bool), np.zeros(0, bool), "")
        values = self.values(batch)
        good = self.good(values) if values.shape[1] else np.zeros(n, dtype=bool)
        waiting, scores = np.zeros(n, dtype=bool), np.full(n, np.nan)
        if good.any():
            scores[good] = self.score(values[good])
            hashes = frame_hash(self.seed, batch.task[good], batch.index[good])
            waiting[good] = self._histogram.add(hashes, batch.ids[good], values[good])
        return judged(scores, good, waiting, self.lacks)

    def finish(self) -> Offer:
        """Choose; a second call chooses no more."""
        if self._finished:
            return ended([], [])
        self._finished = True
        found = self._histogram.flat(self.size, self.coarsen)
        chosen: list[Id] = [(int(t), int(i)) for t, i in self._histogram.frames[[row for row, _, _ in found], 1:]]
        return ended(chosen, [self._why(low, high) for _, low, high in found])

    def _why(self, low: tuple[float, ...], high: tuple[float, ...]) -> str:
        parts = zip(self.says, low, high, strict=True)
        return " and ".join(what.format(f"{a:.6g} to {b:.6g}") for what, a, b in parts if np.isfinite(a))

    def state(self) -> dict[str, Array]:
        """Return the arrays of the histogram, and ``finished`` (1,)."""
        return {**self._histogram.state(), "finished": np.array([self._finished], dtype=np.int64)}

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._histogram.load(state)
        self._finished = bool(state["finished"][0])


class GlobalEnergy(_Flat):
    """Uniform over the histogram of the energy per atom, whose score it is (eV/atom).

    As many bins as frames, at most 64, over the energies of the whole stream; frames of a bin are drawn at random.

    Parameters
    ----------
    size, seed
        How many frames; which of a bin's.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"energy"})
    lacks: ClassVar[str] = "its energy is not known"
    says: ClassVar[tuple[str, ...]] = ("energies of {} eV/atom",)
    coarsen: ClassVar[bool] = True

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)

    def values(self, batch: Batch) -> Array:
        """Return the energies."""
        return np.asarray(batch.column("energy")[:, None, None])


class AtomicEnergy(_Flat):
    """Uniform over the energies of single atoms: those of all chosen frames together have a flat histogram.

    The score is the frame's highest atomic energy, eV.

    Parameters
    ----------
    size, seed
        How many frames; which of a bin's.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"energies"})
    lacks: ClassVar[str] = "the energies of its atoms are not known"
    says: ClassVar[tuple[str, ...]] = ("atoms with energies of {} eV",)

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)

    def values(self, batch: Batch) -> Array:
        """Return the atomic energies."""
        return np.asarray(batch.column("energies")[:, :, None])


class Force(_Flat):
    """Uniform over the lengths of the forces on single atoms: those of all chosen frames have a flat histogram.

    The score is the frame's largest force, eV/Å.

    Parameters
    ----------
    size, seed
        How many frames; which of a bin's.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forces"})
    lacks: ClassVar[str] = "its forces are not known"
    says: ClassVar[tuple[str, ...]] = ("atoms with forces of {} eV/Å",)

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)

    def values(self, batch: Batch) -> Array:
        """Return the lengths of the forces."""
        return np.asarray(batch.column("forces")[:, :, None])


class Grid(_Flat):
    """Uniform over the cells of a grid: enthalpy per atom, and order Q (volume per atom for frames without Q).

    Every cell that holds a frame gives as many as every other, as far as they go. The score is the enthalpy, eV/atom.

    Parameters
    ----------
    size, seed
        How many frames; which of a cell's.
    bins
        Most cells along enthalpy, and along order or volume.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"enthalpy", "order", "volume"})
    lacks: ClassVar[str] = "its enthalpy, or both its order and its volume, are not known"
    says: ClassVar[tuple[str, ...]] = ("enthalpies of {} eV/atom", "orders of {}", "volumes of {} Å^3/atom")

    def __init__(self, size: int, seed: int, bins: tuple[int, int] = (16, 16)) -> None:
        super().__init__(size, seed, (bins[0], bins[1], bins[1]))

    def values(self, batch: Batch) -> Array:
        """Return enthalpy, order and volume; one of the last two is NaN."""
        order = batch.column("order").astype(np.float64)
        volume = np.where(np.isfinite(order), np.nan, batch.column("volume"))
        return np.stack([batch.column("enthalpy"), order, volume], axis=1)[:, None]

    def good(self, values: Array) -> Array:
        """Return whether a frame has an enthalpy, and an order or a volume."""
        there = np.isfinite(values[:, 0])
        return np.asarray(there[:, 0] & there[:, 1:].any(axis=1))
