"""The two networks of random network distillation, the moments they are normalised by, and farthest points.

All in float64, and what is evaluated goes through the networks in multiples of ``ROWS``: training makes more of
differences in rounding, and the number of threads of the matrix products would decide a part of the choice.
"""

from __future__ import annotations

import numpy as np

from campaign.frames import Array
from campaign.science.compiled import available, compiled

#: Adam: step, decay of the averages of the gradient and of its square, what keeps a step finite. Five times the step
#: does not converge for more than some 40 frames.
RATE, FIRST, SECOND, EPSILON = 2e-3, 0.9, 0.99, 1e-8

#: Standard deviations from which a feature is stretched no further: the first frames may have next to no deviation.
FAR = 10.0

#: Rows by which a product of matrices may be split between threads without another rounding.
ROWS = 64


class Distillation:
    """A random fixed target network f, and a predictor g that learns it: ReLU perceptrons of the same shape.

    Parameters
    ----------
    dimension
        Length of a descriptor.
    seed
        Decides f, the first g and the minibatches.
    steps
        Most steps of Adam after each choice.
    batch
        Most frames of a step: the newest, and others drawn at random.
    tolerance
        g counts as fit when the worst frame of a step is this small a part of the mean of f^2.
    hidden, out
        Width of the two hidden layers, and of the space in which f and g are compared.

    Attributes
    ----------
    weights : (p,) float64
        Of g: matrix by rows and bias of each layer. Nothing else is carried from one training to the next.
    """

    def __init__(
        self,
        dimension: int,
        seed: int,
        steps: int = 100,
        batch: int = 48,
        tolerance: float = 1e-2,
        hidden: int = 64,
        out: int = 32,
    ) -> None:
        self.seed, self.steps, self.batch, self.tolerance = seed, steps, batch, tolerance
        self.shapes = [(dimension, hidden), (hidden, hidden), (hidden, out)]
        rng = np.random.default_rng([seed & (2**63 - 1), 0x524E44])
        self._target = self._random(rng)
        self.weights = self._random(rng)

    def target(self, x: Array) -> Array:
        """Return f at descriptors ``x`` (n, d), normalised or stretched (``Moments``): (n, out)."""
        return _evaluate(self._layers(self._target), x)

    def predict(self, x: Array) -> Array:
        """Return g at ``x``, (n, out)."""
        return _evaluate(self._layers(self.weights), x)

    def residual(self, x: Array) -> Array:
        """Return (n, out), f - g at ``x``: what g has not learned."""
        return np.asarray(self.target(x) - self.predict(x))

    def novelty(self, x: Array, target: Array | None = None) -> Array:
        """Return (n,), the mean squared difference of f and g at ``x``; f costs nothing where it is given."""
        apart = self.predict(x) - (self.target(x) if target is None else target)
        return np.asarray(_squares(apart) / apart.shape[1])

    def fit(self, x: Array, rate: float = RATE) -> int:
        """Train g on f over all of ``x`` (k, d), the newest frame last, until it fits or ``steps`` is reached.

        Adam starts afresh each time. Returns the steps taken.
        """
        x = np.asarray(x, dtype=np.float64)
        y = self.target(x)
        enough = self.tolerance * max(float(_squares(y).mean()), 1e-12)
        layers, gradient = self._layers(self.weights), np.empty_like(self.weights)
        slots = self._layers(gradient)
        first, second = np.zeros_like(gradient), np.zeros_like(gradient)
        draws = len(x) > self.batch  # rehearsal stays cheap: the newest frame, and others drawn at random
        if draws:
            rng = np.random.default_rng([self.seed & (2**63 - 1), len(x)])
            rows = rng.integers(len(x) - 1, size=(self.steps, self.batch))
            rows[:, -1] = len(x) - 1
        for step in range(1, self.steps + 1):
            some, wanted = (x[rows[step - 1]], y[rows[step - 1]]) if draws else (x, y)
            if _backward(layers, some, wanted, slots, enough):
                return step
            unbiased = rate / (1.0 - FIRST**step), 1.0 / (1.0 - SECOND**step)
            _adam(self.weights, first, second, gradient, *unbiased)
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


def _evaluate(layers: list[tuple[Array, Array]], x: Array) -> Array:
    """Return the output of the last layer."""
    rest = len(x) % ROWS
    if not rest:
        return _forward(layers, x)[-1]
    last = np.zeros((ROWS, x.shape[1]))
    last[:rest] = x[-rest:]
    out = _forward(layers, last)[-1][:rest]
    return np.concatenate([_forward(layers, x[:-rest])[-1], out]) if len(x) > rest else out


def _forward(layers: list[tuple[Array, Array]], x: Array) -> list[Array]:
    """Return the input and the output of every layer."""
    out = [np.asarray(x, dtype=np.float64)]
    for k, (matrix, bias) in enumerate(layers):
        y = out[-1] @ matrix
        y += bias
        out.append(np.maximum(y, 0.0, out=y) if k < len(layers) - 1 else y)
    return out


def _squares(x: Array) -> Array:
    """Return the sum of squares of each row."""
    return np.asarray(np.einsum("ij,ij->i", x, x))


def _backward(
    layers: list[tuple[Array, Array]], x: Array, y: Array, slots: list[tuple[Array, Array]], enough: float
) -> bool:
    """Write the gradient of the mean squared error into ``slots``, or return True: no frame's error reaches enough."""
    outputs = _forward(layers, x)
    apart = outputs[-1] - y
    if float(_squares(apart).max()) < enough:
        return True
    flow = 2.0 / len(x) * apart
    for k in range(len(layers) - 1, -1, -1):
        np.matmul(outputs[k].T, flow, out=slots[k][0])
        np.add.reduce(flow, axis=0, out=slots[k][1])
        if k:
            flow = flow @ layers[k][0].T
            flow *= outputs[k] > 0.0
    return False


def _adam(weights: Array, first: Array, second: Array, gradient: Array, rate: float, scale: float) -> None:
    """Take one step of Adam."""
    if available():
        compiled(_adam_loop)(weights, first, second, gradient, rate, scale)
        return
    first += (1.0 - FIRST) * (gradient - first)
    second += (1.0 - SECOND) * (gradient**2 - second)
    weights -= rate * first / (np.sqrt(second * scale) + EPSILON)


def _adam_loop(weights: Array, first: Array, second: Array, gradient: Array, rate: float, scale: float) -> None:
    for k in range(weights.shape[0]):
        first[k] += (1.0 - FIRST) * (gradient[k] - first[k])
        second[k] += (1.0 - SECOND) * (gradient[k] * gradient[k] - second[k])
        weights[k] -= rate * first[k] / (np.sqrt(second[k] * scale) + EPSILON)


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
        x -= block
        squares += np.einsum("ij,ij->j", x, x) + delta**2 * (self.count * n / total)
        mean += delta * (n / total)
        self.count = total

    def normalise(self, x: Array) -> Array:
        """Return ``x`` with zero mean and unit variance; a feature that never varies becomes 0."""
        mean, squares = self.values
        deviation = np.sqrt(squares / max(self.count, 1))
        return np.asarray((x - mean) / np.maximum(deviation, 1e-6 * np.abs(mean) + 1e-12))

    def stretch(self, x: Array) -> Array:
        """Return the normalised ``x``, each value times its size: a few features far out count for more than many.

        z becomes z |z| up to ``FAR`` standard deviations, and ``FAR`` z beyond; a feature that never varies is 0.
        What makes a frame worth labelling is a close contact of two of its atoms. It moves few features by many
        standard deviations, and drowns in the small differences of all others where every feature counts alike.
        """
        z = self.normalise(x)
        return np.asarray(z * np.minimum(np.abs(z), FAR))


def farthest(points: Array, count: int) -> Array:
    """Return ``count`` rows of (n, d) points: the farthest from the origin, then from that and those before."""
    columns = np.ascontiguousarray(points.T, dtype=np.float64)
    rows = np.empty(count, dtype=np.int64)
    if available():
        compiled(_farthest_loop)(columns, rows)
        return rows
    away = np.full(columns.shape[1], np.inf)
    at = np.zeros((len(columns), 1))
    for k in range(count):
        away = np.minimum(away, ((columns - at) ** 2).sum(axis=0))
        away[rows[:k]] = -1.0
        rows[k] = int(np.argmax(away))
        at = columns[:, rows[k], None]
    return rows


def _farthest_loop(columns: Array, rows: Array) -> None:
    width, n = columns.shape
    away, apart = np.full(n, np.inf), np.empty(n)
    at = np.zeros(width)
    for k in range(rows.shape[0]):
        apart[:] = 0.0
        for f in range(width):
            for i in range(n):
                step = columns[f, i] - at[f]
                apart[i] += step * step
        for i in range(n):
            away[i] = min(away[i], apart[i])
        if k:
            away[rows[k - 1]] = -1.0  # of points that are all alike none is taken twice
        best = 0
        for i in range(1, n):
            if away[i] > away[best]:
                best = i
        rows[k] = best
        at[:] = columns[:, best]
