"""Random network distillation: the frames that a small network cannot yet predict are the new ones.

Source: S. Tovey et al., random network distillation for minimal training sets of molten salts (Fig. 1); the idea is
Burda et al., arXiv:1810.12894. A target network f is random and fixed; a predictor g learns f on the chosen frames;
novelty of a frame p is the distance of f(p) and g(p). ``rnd_batch`` is the published algorithm over a whole pool;
``RNDStream`` sees the pool once, in bounded memory. What is not as published: both see descriptors that were normalised
and stretched (``Moments.stretch``).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from campaign.frames import Array
from campaign.science.distillation import Distillation, Moments, farthest
from campaign.science.selection import CHOSEN, PASSED, REFUSED, WAITING, Batch, Id, Offer, ended, judged


class RNDStream:
    """Random network distillation in one pass, in bounded memory and at a constant cost a frame.

    While frames come, those worth it wait as candidates. A frame is taken early, and g trained on ALL early ones
    (rehearsal), when it is more novel than a threshold that steers itself to the budget: the quantile of the last
    ``RECENT`` novelties above which as many frames are to be expected in the rest of the stream as are still to be
    taken early. Frames of one block are taken one at a time, each scored by what g learned from those before, so of
    near-duplicates only the first passes. Where the candidates are too many, those are dropped that are nearest to the
    final frames and to the other candidates in the space of f - g, where both networks' difference says what g has not
    learned: copies of a new state do not crowd the others out. ``finish`` takes the rest from the candidates by the
    published algorithm.

    Early frames have no advantage: the quota grows evenly along the stream, and what is taken comes from the newest
    block. The choice depends on the order of arrival and, weakly, on the blocks. The score is the novelty when offered.

    Parameters
    ----------
    size
        How many frames to choose.
    seed
        Decides both networks.
    candidates
        The candidate set holds ``candidates * size`` frames; half of them, but ``size`` at least, when it was thinned.
    early
        At most ``floor(early * size * progress)`` frames are final at any time before ``finish``.
    steps
        Most steps of Adam after each choice: what one choice costs, however long the stream is.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"descriptors"})
    whole_pool: ClassVar[bool] = False
    measures_novelty: ClassVar[bool] = True

    #: Novelties of which the threshold is a quantile.
    RECENT = 4096
    #: Frames of a step of Adam, and its length: a few longer steps learn as much as is needed to tell frames apart.
    BATCH, RATE = 32, 3e-3

    def __init__(self, size: int, seed: int, candidates: float = 8, early: float = 0.25, steps: int = 10) -> None:
        if size < 1 or candidates < 1 or not 0.0 <= early <= 1.0:
            raise ValueError(
                "RND needs a size and candidates of at least 1 and early within 0 and 1, "
                f"got {size}, {candidates}, {early}."
            )
        self.size, self.seed, self.early, self.steps = size, seed, early, steps
        self.room = round(candidates * size)
        self._recent: Array
        self._waiting: _Rows
        self._final: _Rows
        self._begin(0)

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames with descriptors."""
        n = len(batch)
        reason = "its descriptor is not finite"
        x = np.asarray(batch.column("descriptors") if n else np.zeros((0, 1)), dtype=np.float32)
        good = np.asarray(np.isfinite(x).all(axis=1))
        if not good.any():
            return judged(np.zeros(n), good, good, reason)
        if not self._ready:
            self._begin(x.shape[1])
        ids = batch.ids
        if not good.all():
            ids, x = ids[good], x[good]
        self._moments.add(x)
        scores = np.full(n, np.nan)
        scores[good], free, why = self._take_early(x, ids, min(max(batch.progress, 0.0), 1.0))
        old = len(self._waiting)
        self._waiting.add(ids[free], x[free])
        kept = self._shrink(self.room)
        decisions = np.full(n, REFUSED, dtype=np.int8)
        found = np.full(len(x), CHOSEN, dtype=np.int8)
        found[free] = np.where(kept[old:], WAITING, PASSED)
        decisions[good] = found
        chosen: list[Id] = [(int(t), int(i)) for t, i in self._final.ids[len(self._final) - len(why) :]]
        refused = {int(k): reason for k in np.flatnonzero(~good)}
        return Offer(scores.astype(np.float32), decisions, chosen, why, refused)

    def _take_early(self, x: Array, ids: Array, progress: float) -> tuple[Array, Array, list[str]]:
        """Take the frames of a block that are above the threshold, as the quota allows.

        Returns
        -------
        tuple
            (n,) float, the novelty of each when it came; (n,) bool, those not taken; and why each of the others was.
        """
        z = self._moments.stretch(x)
        target = self._networks.target(z)
        scores = novelty = self._networks.novelty(z, target)
        free, why = np.ones(len(x), dtype=bool), []
        self._recent = np.concatenate([self._recent, novelty.astype(np.float32)])[-self.RECENT :]
        quota = int(self.early * self.size * progress + 1e-9)
        threshold = self._threshold(len(x), progress) if len(self._final) < quota else np.inf
        while len(self._final) < quota and free.any():
            best = int(np.argmax(np.where(free, scores, -np.inf)))
            if scores[best] < threshold:
                break
            free[best] = False
            why.append(f"novelty {scores[best]:.3g}, above the threshold of {threshold:.3g}")
            self._learn(ids[best : best + 1], x[best : best + 1])
            before, scores = scores, self._networks.novelty(z, target)
            fall = float(scores.sum() / max(float(before.sum()), 1e-300))  # what was learned made all less novel
            self._recent = (self._recent * fall).astype(np.float32)
            threshold *= fall
        return novelty, free, why

    def _threshold(self, n: int, progress: float) -> float:
        """Return the novelty above which a frame of a block of ``n`` is taken early."""
        frames = max(self._moments.count * (1.0 / max(progress, 1e-9) - 1.0), 0.0) + n
        wanted = max(self.early * self.size - len(self._final), 0.0)
        return float(np.quantile(self._recent, max(0.0, 1.0 - wanted / frames)))

    def finish(self) -> Offer:
        """Choose the rest from the candidates; a second call chooses no more."""
        chosen: list[Id] = []
        why: list[str] = []
        if not self._ready:
            return ended(chosen, why)
        self._shrink(self._few)  # the latest have to pass what the others passed
        ids, x = self._waiting.ids, self._waiting.values
        z = self._moments.stretch(x)
        target = self._networks.target(z)
        free = np.ones(len(x), dtype=bool)
        while len(self._final) < self.size and free.any():
            scores = np.where(free, self._networks.novelty(z, target), -np.inf)
            best = int(np.argmax(scores))
            free[best] = False
            chosen.append((int(ids[best, 0]), int(ids[best, 1])))
            why.append(f"novelty {scores[best]:.3g}, the largest of the candidates")
            self._learn(ids[best : best + 1], x[best : best + 1])
        self._waiting.keep(free)
        return ended(chosen, why)

    def state(self) -> dict[str, Array]:
        """Return 8 arrays: count, moments, weights of g, recent novelties, candidates and final frames with ids."""
        return {
            "count": np.array([self._moments.count], dtype=np.int64),
            "moments": self._moments.values.copy(),
            "weights": self._networks.weights.copy() if self._ready else np.zeros(0),
            "recent": self._recent.copy(),
            "candidate_ids": self._waiting.ids.copy(),
            "candidates": self._waiting.values.copy(),
            "final_ids": self._final.ids.copy(),
            "final": self._final.values.copy(),
        }

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._begin(int(state["moments"].shape[1]))
        self._moments.count = int(state["count"][0])
        self._moments.values = np.array(state["moments"], dtype=np.float64)
        if self._ready:
            self._networks.weights = np.array(state["weights"], dtype=np.float64)
        self._recent = np.array(state["recent"], dtype=np.float32)
        self._waiting.add(state["candidate_ids"], state["candidates"])
        self._final.add(state["final_ids"], state["final"])

    def _begin(self, dimension: int) -> None:
        """Set up for descriptors of this length; 0 while it is not known yet."""
        self._ready = dimension > 0
        self._moments = Moments(dimension)
        if self._ready:
            self._networks = Distillation(dimension, self.seed, steps=self.steps, batch=self.BATCH)
        self._recent = np.zeros(0, dtype=np.float32)
        self._waiting, self._final = _Rows(dimension), _Rows(dimension)

    def _learn(self, ids: Array, x: Array) -> None:
        """Make a frame final and train g on all final frames."""
        self._final.add(ids, x)
        self._networks.fit(self._moments.stretch(self._final.values), self.RATE)

    @property
    def _few(self) -> int:
        """How many candidates stay when there were too many."""
        return max(self.size, self.room - self.room // 2)

    def _shrink(self, room: int) -> Array:
        """Drop candidates where there are more than ``room``; return (n,) bool, those that stay.

        Half of the room is made at once, so that the cost of it, size times candidates, is shared by many frames.
        """
        kept = np.ones(len(self._waiting), dtype=bool)
        if len(kept) > max(room, self.size):
            left = self._networks.residual(self._moments.stretch(self._waiting.values))
            kept[:] = False
            kept[farthest(left, self._few)] = True
            self._waiting.keep(kept)
        return kept


class _Rows:
    """Descriptors (n, d) float32 with ids (n, 2) uint64, in a buffer with room to grow."""

    def __init__(self, dimension: int) -> None:
        self._n = 0
        self._ids = np.empty((0, 2), dtype=np.uint64)
        self._values = np.empty((0, dimension), dtype=np.float32)

    def __len__(self) -> int:
        return self._n

    @property
    def ids(self) -> Array:
        """A view of the ids, good until rows are added or dropped."""
        return self._ids[: self._n]

    @property
    def values(self) -> Array:
        """A view of the descriptors, good until rows are added or dropped."""
        return self._values[: self._n]

    def add(self, ids: Array, values: Array) -> None:
        """Add rows at the end."""
        end = self._n + len(ids)
        if end > len(self._ids):
            more = max(end, self._n + self._n // 2) - self._n
            self._ids = np.concatenate([self.ids, np.empty((more, 2), dtype=np.uint64)])
            self._values = np.concatenate([self.values, np.empty((more, values.shape[1]), dtype=np.float32)])
        self._ids[self._n : end], self._values[self._n : end] = ids, values
        self._n = end

    def keep(self, kept: Array) -> None:
        """Drop the rows that are not ``kept``, (n,) bool."""
        n = int(kept.sum())
        self._ids[:n], self._values[:n] = self.ids[kept], self.values[kept]
        self._n = n


def rnd_batch(descriptors: Array, size: int, seed: int, steps: int = 100) -> Array:
    """Choose ``size`` of a whole pool by the published algorithm: argmax of the novelty, then train g, and again.

    The descriptors are normalised over the pool and stretched first.

    Parameters
    ----------
    descriptors : (n, d) float
        One row a frame.
    size
        How many to choose; all are returned if there are no more than that.
    seed
        Decides both networks.
    steps
        Most steps of Adam after each choice.

    Returns
    -------
    (size,) int64
        Rows, in the order in which they were chosen.
    """
    return rnd_order(descriptors, size, seed, steps)[0]


def rnd_order(descriptors: Array, size: int, seed: int, steps: int = 100) -> tuple[Array, Array]:
    """Choose as ``rnd_batch`` does; return the rows and the novelty that each had when it was chosen."""
    x = np.asarray(descriptors)
    moments = Moments(x.shape[1])
    for start in range(0, len(x), 4096):  # in parts: they are summed in float64
        moments.add(x[start : start + 4096])
    x = moments.stretch(x)
    networks = Distillation(x.shape[1], seed, steps=steps)
    target = networks.target(x)
    chosen: list[int] = []
    found: list[float] = []
    free = np.ones(len(x), dtype=bool)
    while len(chosen) < min(size, len(x)):
        novelty = np.where(free, networks.novelty(x, target), -np.inf)
        chosen.append(int(np.argmax(novelty)))
        found.append(float(novelty[chosen[-1]]))
        free[chosen[-1]] = False
        networks.fit(x[chosen])
    return np.array(chosen, dtype=np.int64), np.array(found)
