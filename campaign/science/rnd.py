"""Random network distillation: the frames that a small network cannot yet predict are the new ones.

Source: S. Tovey et al., random network distillation for minimal training sets of molten salts (Fig. 1); the idea is
Burda et al., arXiv:1810.12894. A target network f is random and fixed; a predictor g learns f on the chosen frames;
novelty of a frame p is the distance of f(p) and g(p). ``rnd_batch`` is the published algorithm over a whole pool;
``RNDStream`` sees the pool once, in bounded memory.
"""

from __future__ import annotations

import numpy as np

from campaign.frames import Array
from campaign.science.selection import Offer


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
        return np.asarray(((self.target(x) - _forward(self._layers(self.weights), x)[-1]) ** 2).mean(axis=1))

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
    """Random network distillation in one pass.

    While frames come, the most novel of them wait as candidates, in bounded memory. Now and then the most novel
    candidate becomes final and g is trained on ALL final frames (rehearsal), so that frames like it lose their novelty
    and are crowded out. ``finish`` takes the rest from the candidates by the published algorithm.

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

    needs_descriptors = True

    def __init__(self, size: int, seed: int, candidates: int = 4, early: float = 0.5, steps: int = 100) -> None:
        if size < 1 or candidates < 1 or not 0.0 <= early <= 1.0:
            raise ValueError(
                "RND needs a size and candidates of at least 1 and early within 0 and 1, "
                f"got {size}, {candidates}, {early}."
            )
        self.size, self.seed, self.early, self.steps = size, seed, early, steps
        self.room = candidates * size
        self._waiting_ids: Array
        self._waiting: Array
        self._final_ids: Array
        self._final: Array
        self._begin(0)

    def offer(self, task: Array, index: Array, descriptors: Array | None, progress: float) -> Offer:
        """See ``n`` frames: task (n,) uint64, index (n,) int32, descriptors (n, d) float32; progress 0 to 1."""
        if descriptors is None:
            raise ValueError("RND chooses by descriptors, and none were given; offer them with the frames.")
        x = np.asarray(descriptors, dtype=np.float32)
        if not self._ready:
            self._begin(x.shape[1])
        good = np.isfinite(x).all(axis=1)
        self._moments.add(x[good])
        novelty = np.full(len(x), np.nan, dtype=np.float32)
        novelty[good] = self._score(x[good])
        ids = np.stack([np.asarray(task).astype(np.uint64), np.asarray(index).astype(np.uint64)], axis=1)
        self._waiting_ids = np.concatenate([self._waiting_ids, ids[good]])
        self._waiting = np.concatenate([self._waiting, x[good]])
        chosen = []
        quota = int(self.early * self.size * min(max(progress, 0.0), 1.0) + 1e-9)
        while len(self._final) < quota and len(self._waiting):
            chosen.append(self._choose())
        self._shrink()
        return Offer(novelty, chosen)

    def finish(self) -> Offer:
        """Choose the rest from the candidates; a second call chooses no more."""
        chosen = []
        while len(self._final) < self.size and len(self._waiting):
            chosen.append(self._choose())
        return Offer(np.zeros(0, dtype=np.float32), chosen)

    def state(self) -> dict[str, Array]:
        """Return 7 arrays: count, moments, weights of g, candidates and final frames with their ids."""
        return {
            "count": np.array([self._moments.count], dtype=np.int64),
            "moments": self._moments.values.copy(),
            "weights": self._networks.weights.copy() if self._ready else np.zeros(0),
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
        self._waiting_ids = np.zeros((0, 2), dtype=np.uint64)
        self._waiting = np.zeros((0, dimension), dtype=np.float32)
        self._final_ids = self._waiting_ids.copy()
        self._final = self._waiting.copy()

    def _score(self, x: Array) -> Array:
        return self._networks.novelty(self._moments.normalise(x)) if len(x) else np.zeros(0)

    def _choose(self) -> tuple[int, int]:
        """Make the most novel candidate final and train g on all final frames."""
        best = int(np.argmax(self._score(self._waiting)))
        task, index = (int(v) for v in self._waiting_ids[best])
        self._final_ids = np.concatenate([self._final_ids, self._waiting_ids[best : best + 1]])
        self._final = np.concatenate([self._final, self._waiting[best : best + 1]])
        self._waiting_ids = np.delete(self._waiting_ids, best, axis=0)
        self._waiting = np.delete(self._waiting, best, axis=0)
        self._networks.fit(self._moments.normalise(self._final))
        return task, index

    def _shrink(self) -> None:
        """Drop the least novel candidates above the room there is, keeping the others in order of arrival."""
        if len(self._waiting) > self.room:
            keep = np.sort(np.argsort(-self._score(self._waiting), kind="stable")[: self.room])
            self._waiting_ids, self._waiting = self._waiting_ids[keep], self._waiting[keep]


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
    x = np.asarray(descriptors, dtype=np.float64)
    moments = Moments(x.shape[1])
    moments.add(x)
    x = moments.normalise(x)
    networks = Distillation(x.shape[1], seed, steps=steps)
    chosen: list[int] = []
    free = np.ones(len(x), dtype=bool)
    while len(chosen) < min(size, len(x)):
        chosen.append(int(np.argmax(np.where(free, networks.novelty(x), -np.inf))))
        free[chosen[-1]] = False
        networks.fit(x[chosen])
    return np.array(chosen, dtype=np.int64)
