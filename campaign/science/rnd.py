"""Random network distillation: the frames that a small network cannot yet predict are the new ones.

Source: S. Tovey et al., random network distillation for minimal training sets of molten salts (Fig. 1); the idea is
Burda et al., arXiv:1810.12894. A target network f is random and fixed; a predictor g learns f on the chosen frames;
novelty of a frame p is the distance of f(p) and g(p). ``rnd_batch`` is the published algorithm over a whole pool;
``RNDStream`` sees the pool once, in bounded memory.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from campaign.frames import Array
from campaign.science.selection import CHOSEN, PASSED, REFUSED, WAITING, Batch, Id, Offer, ended, judged


class Distillation:
    """The two networks: ReLU perceptrons of the same shape and different random weights (numpy, float64).

    Parameters
    ----------
    dimension
        Length of a descriptor.
    seed
        Decides f, the first g and the minibatches.
    hidden, out
        Width of the two hidden layers, and of the space in which f and g are compared.
    steps
        Most steps of Adam after each choice.
    tolerance
        g counts as fit when its worst frame is this small a part of the mean of f^2.
    """

    def __init__(
        self, dimension: int, seed: int, hidden: int = 64, out: int = 32, steps: int = 100, tolerance: float = 1e-3
    ) -> None:
        self.seed, self.steps, self.tolerance = seed, steps, tolerance
        self.shapes = [(dimension, hidden), (hidden, hidden), (hidden, out)]
        rng = np.random.default_rng([seed & (2**63 - 1), 0x524E44])
        self._target = self._random(rng)
        self.weights = self._random(rng)

    def novelty(self, x: Array) -> Array:
        """Return (n,) float64, the mean squared difference of f and g at the normalised descriptors ``x`` (n, d)."""
        return np.asarray((self.residual(x) ** 2).mean(axis=1))

    def residual(self, x: Array) -> Array:
        """Return (n, out), f - g at ``x``: what g has not learned."""
        return np.asarray(self.target(x) - _forward(self._layers(self.weights), x)[-1])

    def target(self, x: Array) -> Array:
        """Return f at ``x``, (n, out)."""
        return _forward(self._layers(self._target), x)[-1]

    def fit(self, x: Array, rate: float = 5e-3, batch: int = 48) -> int:
        """Train g on f over all of ``x`` (k, d), the newest frame last, until it fits or ``steps`` is reached.

        Adam starts afresh each time: nothing but ``weights`` is carried from call to call. Returns the steps taken.
        """
        y = self.target(x)
        enough = self.tolerance * max(float((y**2).mean()), 1e-12)
        layers, gradient = self._layers(self.weights), np.empty_like(self.weights)
        slots = self._layers(gradient)
        first, second = np.zeros_like(gradient), np.zeros_like(gradient)
        rng = np.random.default_rng([self.seed & (2**63 - 1), len(x)])
        for step in range(1, self.steps + 1):
            rows = np.arange(len(x))
            if len(x) > batch:  # rehearsal stays cheap: the newest frame and a random part of the others
                rows = np.append(rng.choice(len(x) - 1, batch - 1, replace=False), len(x) - 1)
            worst = _backward(layers, x[rows], y[rows], slots)
            if worst < enough:
                return step
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient**2 - second)
            size = rate / (1.0 - 0.9**step)
            self.weights -= size * first / (np.sqrt(second / (1.0 - 0.99**step)) + 1e-8)
        return self.steps

    def _layers(self, flat: Array) -> list[tuple[Array, Array]]:
        """Return views of one vector as (matrix, bias) of each layer."""
        layers, start = [], 0
        for rows, columns in self.shapes:
            end = start + rows * columns
            layers.append((flat[start:end].reshape(rows, columns), flat[end : end + columns]))
            start = end + columns
        return layers

    def _random(self, rng: np.random.Generator) -> Array:
        parts = []
        for rows, columns in self.shapes:
            parts += [rng.normal(0.0, np.sqrt(2.0 / rows), rows * columns), rng.normal(0.0, 0.1, columns)]
        return np.concatenate(parts)


def _forward(layers: list[tuple[Array, Array]], x: Array) -> list[Array]:
    """Return the input and the output of every layer."""
    out = [np.asarray(x, dtype=np.float64)]
    for k, (matrix, bias) in enumerate(layers):
        y = out[-1] @ matrix + bias
        out.append(np.maximum(y, 0.0) if k < len(layers) - 1 else y)
    return out


def _backward(layers: list[tuple[Array, Array]], x: Array, y: Array, slots: list[tuple[Array, Array]]) -> float:
    """Write the gradient of the mean squared error into ``slots``; return the error of the worst frame."""
    outputs = _forward(layers, x)
    difference = outputs[-1] - y
    flow = 2.0 / len(x) * difference
    for k in range(len(layers) - 1, -1, -1):
        slots[k][0][...] = outputs[k].T @ flow
        slots[k][1][...] = flow.sum(axis=0)
        if k:
            flow = (flow @ layers[k][0].T) * (outputs[k] > 0.0)
    return float((difference**2).mean(axis=1).max())


class Moments:
    """Running mean and variance of descriptors (Welford; blocks joined as in Chan et al. 1979)."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.values = np.zeros((2, dimension))  # mean, sum of squared deviations

    def add(self, x: Array) -> None:
        """Count the rows of ``x`` (n, d)."""
        if not len(x):
            return
        x = x.astype(np.float64)
        mean, squares = self.values
        block, n = x.mean(axis=0), len(x)
        delta, total = block - mean, self.count + n
        squares += ((x - block) ** 2).sum(axis=0) + delta**2 * (self.count * n / total)
        mean += delta * (n / total)
        self.count = total

    def normalise(self, x: Array) -> Array:
        """Return ``x`` with zero mean and unit variance; a feature that never varies becomes 0."""
        mean, squares = self.values
        deviation = np.sqrt(squares / max(self.count, 1))
        return np.asarray((x - mean) / np.maximum(deviation, 1e-6 * np.abs(mean) + 1e-12))


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
        The candidate set holds ``candidates * size`` frames.
    early
        At most ``floor(early * size * progress)`` frames are final at any time before ``finish``.
    steps
        Most steps of Adam after each choice.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"descriptors"})
    whole_pool: ClassVar[bool] = False
    measures_novelty: ClassVar[bool] = True

    #: Novelties of which the threshold is a quantile.
    RECENT = 4096

    def __init__(self, size: int, seed: int, candidates: float = 8, early: float = 0.5, steps: int = 100) -> None:
        if size < 1 or candidates < 1 or not 0.0 <= early <= 1.0:
            raise ValueError(
                "RND needs a size and candidates of at least 1 and early within 0 and 1, "
                f"got {size}, {candidates}, {early}."
            )
        self.size, self.seed, self.early, self.steps = size, seed, early, steps
        self.room = round(candidates * size)
        self._recent: Array
        self._waiting_ids: Array
        self._waiting: Array
        self._final_ids: Array
        self._final: Array
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
        self._moments.add(x[good])
        ids, x = batch.ids[good], x[good]
        scores = np.full(n, np.nan)
        scores[good] = novelty = self._score(x)
        free, why = self._take_early(x, ids, novelty, min(max(batch.progress, 0.0), 1.0))
        self._waiting_ids = np.concatenate([self._waiting_ids, ids[free]])
        self._waiting = np.concatenate([self._waiting, x[free]])
        old = len(self._waiting) - int(free.sum())
        kept = self._shrink(self.room)
        decisions = np.full(n, REFUSED, dtype=np.int8)
        found = np.full(len(x), CHOSEN, dtype=np.int8)
        found[free] = np.where(kept[old:], WAITING, PASSED)
        decisions[good] = found
        chosen: list[Id] = [(int(t), int(i)) for t, i in self._final_ids[len(self._final_ids) - len(why) :]]
        refused = {int(k): reason for k in np.flatnonzero(~good)}
        return Offer(scores.astype(np.float32), decisions, chosen, why, refused)

    def _take_early(self, x: Array, ids: Array, novelty: Array, progress: float) -> tuple[Array, list[str]]:
        """Take the frames of a block that are above the threshold, as the quota allows.

        Returns
        -------
        tuple
            (n,) bool, the frames not taken; and why each of the others was.
        """
        free, why = np.ones(len(x), dtype=bool), []
        threshold = self._threshold(novelty, progress)
        quota = int(self.early * self.size * progress + 1e-9)
        scores = novelty
        while len(self._final) < quota and free.any():
            best = int(np.argmax(np.where(free, scores, -np.inf)))
            if scores[best] < threshold:
                break
            free[best] = False
            why.append(f"novelty {scores[best]:.3g}, above the threshold of {threshold:.3g}")
            self._learn(ids[best : best + 1], x[best : best + 1])
            before, scores = scores, self._score(x)
            fall = float(scores.sum() / max(float(before.sum()), 1e-300))  # what was learned made all less novel
            self._recent = (self._recent * fall).astype(np.float32)
            threshold *= fall
        return free, why

    def _threshold(self, novelty: Array, progress: float) -> float:
        """Return the novelty above which a frame is taken early, and remember those of this block."""
        frames = max(self._moments.count * (1.0 / max(progress, 1e-9) - 1.0), 0.0) + len(novelty)
        wanted = max(self.early * self.size - len(self._final), 0.0)
        self._recent = np.concatenate([self._recent, novelty.astype(np.float32)])[-self.RECENT :]
        if not len(self._recent):
            return np.inf
        return float(np.quantile(self._recent, max(0.0, 1.0 - wanted / frames)))

    def finish(self) -> Offer:
        """Choose the rest from the candidates; a second call chooses no more."""
        chosen: list[Id] = []
        why = []
        self._shrink(self.room - self.room // 4)  # the latest have to pass what the others passed
        while len(self._final) < self.size and len(self._waiting):
            scores = self._score(self._waiting)
            best = int(np.argmax(scores))
            self._learn(self._waiting_ids[best : best + 1], self._waiting[best : best + 1])
            self._waiting_ids = np.delete(self._waiting_ids, best, axis=0)
            self._waiting = np.delete(self._waiting, best, axis=0)
            chosen.append((int(self._final_ids[-1, 0]), int(self._final_ids[-1, 1])))
            why.append(f"novelty {scores[best]:.3g}, the largest of the candidates")
        return ended(chosen, why)

    def state(self) -> dict[str, Array]:
        """Return 8 arrays: count, moments, weights of g, recent novelties, candidates and final frames with ids."""
        return {
            "count": np.array([self._moments.count], dtype=np.int64),
            "moments": self._moments.values.copy(),
            "weights": self._networks.weights.copy() if self._ready else np.zeros(0),
            "recent": self._recent.copy(),
            "candidate_ids": self._waiting_ids.copy(),
            "candidates": self._waiting.copy(),
            "final_ids": self._final_ids.copy(),
            "final": self._final.copy(),
        }

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._begin(int(state["moments"].shape[1]))
        self._moments.count = int(state["count"][0])
        self._moments.values = np.array(state["moments"], dtype=np.float64)
        if self._ready:
            self._networks.weights = np.array(state["weights"], dtype=np.float64)
        self._recent = np.array(state["recent"], dtype=np.float32)
        self._waiting_ids = np.array(state["candidate_ids"], dtype=np.uint64)
        self._waiting = np.array(state["candidates"], dtype=np.float32)
        self._final_ids = np.array(state["final_ids"], dtype=np.uint64)
        self._final = np.array(state["final"], dtype=np.float32)

    def _begin(self, dimension: int) -> None:
        """Set up for descriptors of this length; 0 while it is not known yet."""
        self._ready = dimension > 0
        self._moments = Moments(dimension)
        if self._ready:
            self._networks = Distillation(dimension, self.seed, steps=self.steps)
        self._recent = np.zeros(0, dtype=np.float32)
        self._waiting_ids = np.zeros((0, 2), dtype=np.uint64)
        self._waiting = np.zeros((0, dimension), dtype=np.float32)
        self._final_ids = self._waiting_ids.copy()
        self._final = self._waiting.copy()

    def _score(self, x: Array) -> Array:
        return self._networks.novelty(self._moments.normalise(x)) if len(x) else np.zeros(0)

    def _learn(self, ids: Array, x: Array) -> None:
        """Make a frame final and train g on all final frames."""
        self._final_ids = np.concatenate([self._final_ids, ids])
        self._final = np.concatenate([self._final, x])
        self._networks.fit(self._moments.normalise(self._final))

    def _shrink(self, room: int) -> Array:
        """Drop candidates where there are more than ``room``; return (n,) bool, those that stay.

        A quarter of the room is made at once, so that the cost of it, size times candidates, is shared by many frames.
        """
        kept = np.ones(len(self._waiting), dtype=bool)
        if len(kept) > max(room, self.size):
            left = self._networks.residual(self._moments.normalise(self._waiting))
            kept[:] = False
            kept[_spread(left, max(self.size, self.room - self.room // 4))] = True
            self._waiting_ids, self._waiting = self._waiting_ids[kept], self._waiting[kept]
        return kept


def _spread(points: Array, count: int) -> Array:
    """Return ``count`` rows of (n, d) points that are far from the origin and from each other: farthest points."""
    square = (points**2).sum(axis=1)
    away = square.copy()
    rows = np.zeros(count, dtype=np.int64)
    for k in range(count):
        best = rows[k] = int(np.argmax(away))
        away = np.minimum(away, square + square[best] - 2.0 * (points @ points[best]))
        away[rows[: k + 1]] = -np.inf  # the rounding of the line above leaves no order to trust at a distance of 0
    return rows


def rnd_batch(descriptors: Array, size: int, seed: int, steps: int = 100) -> Array:
    """Choose ``size`` of a whole pool by the published algorithm: argmax of the novelty, then train g, and again.

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
    x = np.asarray(descriptors, dtype=np.float64)
    moments = Moments(x.shape[1])
    moments.add(x)
    x = moments.normalise(x)
    networks = Distillation(x.shape[1], seed, steps=steps)
    chosen: list[int] = []
    found: list[float] = []
    free = np.ones(len(x), dtype=bool)
    while len(chosen) < min(size, len(x)):
        novelty = np.where(free, networks.novelty(x), -np.inf)
        chosen.append(int(np.argmax(novelty)))
        found.append(float(novelty[chosen[-1]]))
        free[chosen[-1]] = False
        networks.fit(x[chosen])
    return np.array(chosen, dtype=np.int64), np.array(found)
