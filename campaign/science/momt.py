"""MOMT: sampling an extended ensemble in the enthalpy and an order parameter, so that one run sees solid and liquid.

A walker at temperature T0 and pressure P0 samples p ~ V^N exp(-S(H, Q)) in place of exp(-H / k T0), with

    S(H, Q) = S0(h) + B(h, Q) + wall(h),    h = H / N,    H = E + P0 V,

where S0 makes the temperature rise with the enthalpy across a window (``Window``: the multibaric-multithermal
ensemble), B is learned until (h, Q) is visited evenly (``Learning``), and Q tells the crystal from the liquid
(``Order``). What LAMMPS integrates is

    U_eff = k T0 S(H, Q),    lambda = k T0 dS/dH,    F = lambda F_physical - k T0 dS/dQ grad Q.

Q depends on scaled coordinates alone: its virial is exactly zero. Every average of the physical ensemble follows by
weighting a frame with exp(S - H / k T) (``log_weight``).

Units: eV, Å, K; the pressure in eV/Å^3. S, B and Q have none.

The scheme is that of the multi-order multi-thermal papers (arXiv:2308.08098) with a baseline that is linear in T(h)
and 1/t learning of the bias (Belardinelli and Pereyra, J. Chem. Phys. 127, 184105 (2007)).

The functions that a molecular dynamics step calls are compiled with numba where it is installed, and plain Python
where not: ``compiled``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

#: Boltzmann's constant, eV/K (CODATA 2018, exact).
BOLTZMANN = 8.617333262e-5

#: A deposit reaches this many widths.
REACH = 4.0

try:
    import numba as _numba
except ImportError:  # the pure Python fallback
    _numba = None

#: Whether there is a compiler.
COMPILED = _numba is not None


def compiled(function: Function) -> Function:
    """Compile a function with numba, keeping the result on disk where that is possible; as it is without numba."""
    if _numba is None:
        return function
    try:
        found = _numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep compiled code in
        found = _numba.njit(error_model="numpy")(function)
    return cast(Function, found)


# -- what is asked for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The stretch of enthalpy that is visited, and the temperatures at its ends.

    Attributes
    ----------
    low, high
        Enthalpy per atom, eV: that of the solid at ``cold`` and of the liquid at ``hot``.
    cold, hot
        K.
    stiffness
        Of the wall outside: it adds ``atoms * stiffness * d^2 / 2`` eV at d eV/atom from the nearer edge. ``of`` gives
        what suits a window of any width.
    """

    low: float
    high: float
    cold: float
    hot: float
    stiffness: float = 20.0

    @classmethod
    def of(cls, low: float, high: float, cold: float, hot: float) -> Window:
        """Return a window with a wall that adds 14 to lambda at one window's width outside: 20 eV for nickel's 0.7."""
        return cls(low, high, cold, hot, 14.0 / (high - low))


@dataclass(frozen=True)
class Learning:
    """How the bias is learned.

    Attributes
    ----------
    bins
        Nodes of the grid in h and in Q; one in Q where there is no order parameter.
    width
        Standard deviation of a deposit, in cells of the grid.
    height
        Of the first deposits (in units of S).
    hold
        How many deposits have that height.
    rate
        The n-th deposit after those is ``rate / n`` high, and never higher than the first.
    every
        MD steps between two deposits of a walker.
    """

    bins: tuple[int, int]
    width: float
    height: float
    hold: int
    rate: float
    every: int = 10

    def __post_init__(self) -> None:
        if self.bins[0] < 2 or self.bins[1] < 1:
            raise ValueError(f"The bias needs 2 bins in h at least, and 1 in Q, got {self.bins}.")

    @classmethod
    def of_size(cls, atoms: int, ordered: bool = True) -> Learning:
        """Return what suits a cell of so many atoms: finer and higher for larger ones, whose free energies are.

        Deposits of the first height are held ten times as long as ``rate / n`` would hold them, a fifth of a million
        steps: measured on nickel, the walker then comes to a tenth more of the bins. A rate that is three times as high
        does the same, but keeps pushing the walker so hard that averages at the window's ends are off by several
        standard errors.
        """
        size = atoms / 32
        bins = (round(24 * size**0.31), round(20 * size**0.185) if ordered else 1)
        width = 1.5 * size**-0.185
        deposits = bins[0] * (bins[1] / (2 * np.pi * width**2) if ordered else 1 / (np.sqrt(2 * np.pi) * width))
        height, rate = 0.1 * size**0.9, 7.0 * deposits
        return cls(bins, width, height, round(10 * rate / height), rate)


@dataclass(frozen=True)
class Ensemble:
    """The extended ensemble of one cell.

    Attributes
    ----------
    atoms
        In the cell.
    temperature
        T0 of the thermostat, K.
    pressure
        P0, eV/Å^3.
    window, learning
        See there.
    limits
        lambda is kept between these, so that a walker thrown far out of the window comes back in one piece.
    """

    atoms: int
    temperature: float
    pressure: float
    window: Window
    learning: Learning
    limits: tuple[float, float] = (0.05, 5.0)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> Ensemble:
        """Return what ``to_json`` wrote."""
        learning = Learning(**{**spec["learning"], "bins": tuple(spec["learning"]["bins"])})
        low, high = spec["limits"]
        return cls(**{**spec, "window": Window(**spec["window"]), "learning": learning, "limits": (low, high)})

    def parameters(self) -> Array:
        """Return the numbers that the compiled functions take, in the order of ``ATOMS``, ``KT``, ..."""
        w, learning = self.window, self.learning
        values = [self.atoms, BOLTZMANN * self.temperature, self.pressure, w.low, w.high, w.cold, w.hot, w.stiffness]
        return np.array(
            [*values, *self.limits, learning.width, learning.height, learning.rate, learning.hold], dtype="float64"
        )


#: Places in ``Ensemble.parameters``.
ATOMS, KT, PRESSURE, LOW, HIGH, COLD, HOT, STIFFNESS, LEAST, MOST, WIDTH, HEIGHT, RATE, HOLD = range(14)

#: Places in what ``effective`` gives: S, lambda, dS/dQ, B.
ENTROPY, LAMBDA, SLOPE, BIAS = range(4)


# -- the bias ---------------------------------------------------------------------------------------------------------


@compiled
def mirror(i: int, n: int) -> int:
    """Return the node that node ``i`` of a line of ``n`` is the mirror image of."""
    if n == 1:
        return 0
    i = abs(i)
    return 2 * (n - 1) - i if i > n - 1 else i


@compiled
def spline(t: float, out: Array) -> None:
    """Write the weights of four nodes, and their derivatives, of a uniform cubic B-spline at ``0 <= t < 1``.

    Parameters
    ----------
    t
        Distance from the second of the four nodes, in cells.
    out : (2, 4)
    """
    r = 1.0 - t
    out[0, 0] = r * r * r / 6.0
    out[0, 1] = (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0
    out[0, 2] = (4.0 - 6.0 * r * r + 3.0 * r * r * r) / 6.0
    out[0, 3] = t * t * t / 6.0
    out[1, 0] = -r * r / 2.0
    out[1, 1] = (3.0 * t * t - 4.0 * t) / 2.0
    out[1, 2] = -(3.0 * r * r - 4.0 * r) / 2.0
    out[1, 3] = t * t / 2.0


@compiled
def place(value: float, low: float, high: float, n: int) -> float:
    """Return where a value lies on a line of ``n`` nodes, in cells; at the nearer end where it lies outside."""
    return min(max((value - low) / (high - low), 0.0), 1.0) * (n - 1)


@compiled
def effective(h: float, q: float, p: Array, grid: Array, weights: Array, out: Array) -> None:
    """Evaluate the extended ensemble at (h, Q).

    Parameters
    ----------
    h, q
        Enthalpy per atom (eV), order parameter.
    p
        ``Ensemble.parameters()``.
    grid : (bins in h, bins in Q)
        Coefficients of the B-spline.
    weights : (2, 2, 4)
        Scratch.
    out : (4,)
        S, lambda, dS/dQ, B.
    """
    nh, nq = grid.shape
    u, v = place(h, p[LOW], p[HIGH], nh), place(q, 0.0, 1.0, nq)
    i, j = min(int(u), max(nh - 2, 0)), min(int(v), max(nq - 2, 0))
    spline(u - i, weights[0])
    spline(v - j, weights[1])
    b, b_u, b_v = 0.0, 0.0, 0.0
    for k in range(4):
        row = grid[mirror(i + k - 1, nh)]
        line, line_v = 0.0, 0.0
        for m in range(4):
            c = row[mirror(j + m - 1, nq)]
            line += weights[1, 0, m] * c
            line_v += weights[1, 1, m] * c
        b += weights[0, 0, k] * line
        b_u += weights[0, 1, k] * line
        b_v += weights[0, 0, k] * line_v
    n, kt, width = p[ATOMS], p[KT], p[HIGH] - p[LOW]
    gradient = (p[HOT] - p[COLD]) / width
    inside = min(max(h, p[LOW]), p[HIGH])
    t = p[COLD] + gradient * (inside - p[LOW])
    d = h - inside
    if gradient == 0.0:
        s0 = n * (inside - p[LOW]) / (BOLTZMANN * t)
    else:
        s0 = n / (BOLTZMANN * gradient) * np.log(t / p[COLD])
    s0 += n * d / (BOLTZMANN * t)
    slope = kt / (BOLTZMANN * t) + p[STIFFNESS] * d
    if d == 0.0:
        slope += kt / n * b_u * (nh - 1) / width
    out[ENTROPY] = s0 + b + n * p[STIFFNESS] * d * d / (2.0 * kt)
    out[LAMBDA] = min(max(slope, p[LEAST]), p[MOST])
    out[SLOPE] = b_v * (nq - 1)
    out[BIAS] = b


@compiled
def images(centre: float, n: int, width: float, out: Array) -> None:
    """Write a Gaussian on a line of nodes, with its mirror images at both ends: its slope there is zero."""
    if n == 1:
        out[0] = 1.0
        return
    for k in range(n):
        total = 0.0
        for image in (centre, -centre, 2.0 * (n - 1) - centre):
            d = (k - image) / width
            if abs(d) < REACH:
                total += np.exp(-0.5 * d * d)
        out[k] = total


@compiled
def deposit(grid: Array, u: float, v: float, height: float, width: float, lines: Array) -> None:
    """Add a Gaussian of ``height`` at (u, v), in cells, to the coefficients.

    Parameters
    ----------
    lines : (2, at least the larger side of the grid)
        Scratch.
    """
    nh, nq = grid.shape
    images(u, nh, width, lines[0])
    images(v, nq, width, lines[1])
    for i in range(nh):
        if lines[0, i] != 0.0:
            for j in range(nq):
                grid[i, j] += height * lines[0, i] * lines[1, j]


@compiled
def height_of(count: float, p: Array) -> float:
    """Return the height of the next deposit when there were ``count`` before it."""
    return float(p[HEIGHT] if count < p[HOLD] else min(p[HEIGHT], p[RATE] / (count + 1.0)))


@compiled
def take_in(deposits: Array, own: Array, others: Array, grid: Array, p: Array, lines: Array) -> float:
    """Add deposits to a bias, and return by how much the bias has grown as a whole: its mean where it was laid down.

    While it is learned, B rises everywhere; frames of different times can be weighted against each other only by what
    is left when that is taken off. Nodes lower than the first deposits were not visited.

    Parameters
    ----------
    deposits : (n, 3)
        Place in h and in Q, in cells, and height.
    own : (bins in h, bins in Q)
        What they are added to.
    others : (bins in h, bins in Q)
        What others laid down.
    grid : (bins in h, bins in Q)
        Becomes the sum of both.
    p
        ``Ensemble.parameters()``.
    lines
        Scratch, as of ``deposit``.
    """
    for k in range(deposits.shape[0]):
        deposit(own, deposits[k, 0], deposits[k, 1], deposits[k, 2], p[WIDTH], lines)
    total, seen = 0.0, 0
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            grid[i, j] = own[i, j] + others[i, j]
            if grid[i, j] > p[HEIGHT]:
                total += grid[i, j]
                seen += 1
    return total / seen if seen else 0.0


# -- the order parameter ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """Q = sqrt(1/K sum_k |rho_k|^2) / F, of the K shortest reciprocal vectors of a crystal with a strong reflection.

    rho_k = 1/N sum_i exp(2 pi i m_k . s_i), s the scaled coordinates; F is |rho_k| of the perfect crystal, so that
    this has Q = 1. K = 4 of {111} for fcc, 6 of {110} for bcc.

    Attributes
    ----------
    base : (3,) int64
        The largest |m| along each axis of the cell.
    signs : (K, 3) int64
        m / base: -1, 0 or 1.
    strength
        F.
    """

    base: Array
    signs: Array
    strength: float

    @property
    def vectors(self) -> Array:
        """(K, 3) the integers m: reciprocal vectors in units of those of the cell."""
        return self.signs * self.base

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able numbers."""
        return {"base": self.base.tolist(), "signs": self.signs.tolist(), "strength": self.strength}

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> Order:
        """Return what ``to_json`` wrote."""
        return cls(np.array(spec["base"], "int64"), np.array(spec["signs"], "int64"), float(spec["strength"]))

    @classmethod
    def of_crystal(cls, scaled: Array, repeats: tuple[int, int, int], metric: Array) -> Order:
        """Find the reflections of a crystal.

        Parameters
        ----------
        scaled : (basis, 3)
            Scaled coordinates in the unit cell.
        repeats
            How often it is repeated along each axis.
        metric : (3, 3)
            Cell vectors of the unit cell, Å, as rows.

        Raises
        ------
        ValueError
            It has no strong reflection within the second order.
        """
        reach = range(-2, 3)
        hkl = np.array([(a, b, c) for a in reach for b in reach for c in reach if (a, b, c) > (0, 0, 0)])
        lengths = np.linalg.norm(hkl @ np.linalg.inv(metric).T, axis=1)
        strengths = np.abs(np.exp(2j * np.pi * hkl @ scaled.T).mean(axis=1))
        for length in np.unique(lengths.round(6)):
            shell = np.abs(lengths - length) < 1e-5
            strong = shell & (strengths > 0.7)
            m = hkl[strong]
            largest = np.abs(m).max(axis=0, initial=0)
            if len(m) and np.linalg.matrix_rank(m) == 3 and ((m == 0) | (np.abs(m) == largest)).all():
                base = largest * np.array(repeats)
                return cls(base.astype("int64"), np.sign(m).astype("int64"), float(strengths[strong].min()))
        raise ValueError("The crystal has no shell of strong reflections.")


@compiled
def turns(cosines: Array, sines: Array) -> None:
    """Write cosine and sine of so many turns: the angle of ``cosines`` over 2 pi, which becomes the cosine.

    Taylor's series within an eighth of a turn, exact to rounding, in a loop that compilers make vectors of.

    Parameters
    ----------
    cosines, sines : (n,)
    """
    for i in range(cosines.size):
        t = cosines[i]
        quarters = np.floor(4.0 * t + 0.5)
        z = 2.0 * np.pi * (t - 0.25 * quarters)
        y = -z * z
        s = 1.0 + y * (1 / 110) * (1.0 + y * (1 / 156) * (1.0 + y * (1 / 210) * (1.0 + y * (1 / 272))))
        s = z * (1.0 + y * (1 / 6) * (1.0 + y * (1 / 20) * (1.0 + y * (1 / 42) * (1.0 + y * (1 / 72) * s))))
        c = 1.0 + y * (1 / 90) * (1.0 + y * (1 / 132) * (1.0 + y * (1 / 182) * (1.0 + y * (1 / 240))))
        c = 1.0 + y * (1 / 2) * (1.0 + y * (1 / 12) * (1.0 + y * (1 / 30) * (1.0 + y * (1 / 56) * c)))
        half = quarters * 0.5
        odd = 2.0 * (half - np.floor(half))  # 1 after an odd number of quarters
        sign = 1.0 - 4.0 * (0.5 * np.floor(half) - np.floor(0.5 * np.floor(half)))  # -1 after half a turn
        cosines[i] = sign * (c + odd * (-s - c))
        sines[i] = sign * (s + odd * (c - s))


@compiled
def structure_sums(x: Array, inverse: Array, base: Array, signs: Array, waves: Array, sums: Array) -> None:
    """Add the atoms' cosines and sines of every reciprocal vector to ``sums``.

    Parameters
    ----------
    x : (n, 3)
        Positions, Å.
    inverse : (3, 3)
        Inverse of the cell: ``x @ inverse`` are scaled coordinates.
    base, signs
        Of the ``Order``.
    waves : (2, 3 + K, n)
        Scratch: cosines and sines along each axis, then of every reciprocal vector. Atoms are last, so that every loop
        over them is one that compilers make vectors of.
    sums : (K, 2)
    """
    n = x.shape[0]
    for a in range(3):
        m0, m1, m2 = inverse[0, a] * base[a], inverse[1, a] * base[a], inverse[2, a] * base[a]
        turn = waves[0, a]
        for i in range(n):
            turn[i] = x[i, 0] * m0 + x[i, 1] * m1 + x[i, 2] * m2
        turns(turn, waves[1, a])
    for k in range(signs.shape[0]):
        c, s = waves[0, 3 + k], waves[1, 3 + k]
        c[:], s[:] = 1.0, 0.0
        for a in range(3):
            if signs[k, a] != 0:
                _times(c, s, waves[0, a], waves[1, a], float(signs[k, a]))
        sums[k, 0] += _total(c)
        sums[k, 1] += _total(s)


@compiled
def _times(c: Array, s: Array, cosines: Array, sines: Array, sign: float) -> None:
    """Multiply the complex numbers c + i s by cosine + i sign sine, in place."""
    for i in range(c.size):
        wc, ws = cosines[i], sign * sines[i]
        turned = c[i] * wc - s[i] * ws
        s[i] = c[i] * ws + s[i] * wc
        c[i] = turned


@compiled
def _total(values: Array) -> float:
    """Return the sum, taken four at a time: one chain of additions would be waited for."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    fours = values.size - values.size % 4
    for i in range(0, fours, 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    for i in range(fours, values.size):
        a += values[i]
    return float((a + b) + (c + d))


@compiled
def order_of(sums: Array, atoms: float, strength: float) -> float:
    """Return Q of the sums over all atoms."""
    total = 0.0
    for k in range(sums.shape[0]):
        total += sums[k, 0] * sums[k, 0] + sums[k, 1] * sums[k, 1]
    return float(np.sqrt(total / sums.shape[0]) / (atoms * strength))


@compiled
def order_forces(
    factor: float, inverse: Array, base: Array, signs: Array, waves: Array, sums: Array, forces: Array
) -> None:
    """Add the gradient of half the sum over k of (cosines^2 + sines^2), times ``factor``, to ``forces``.

    Parameters
    ----------
    factor
        ``X / (Q K F^2 N^2)`` gives X grad Q.
    inverse, base, signs, waves, sums
        As ``structure_sums`` took and left them, ``sums`` over all atoms; those of ``waves`` along the axes are lost.
    forces : (n, 3)
    """
    n = forces.shape[0]
    g0, g1, g2 = waves[0, 0], waves[0, 1], waves[0, 2]
    g0[:], g1[:], g2[:] = 0.0, 0.0, 0.0
    for k in range(signs.shape[0]):
        c, s = waves[0, 3 + k], waves[1, 3 + k]
        p, q = factor * sums[k, 1], factor * sums[k, 0]
        s0, s1, s2 = float(signs[k, 0]), float(signs[k, 1]), float(signs[k, 2])
        for i in range(n):
            turn = p * c[i] - q * s[i]
            g0[i] += s0 * turn
            g1[i] += s1 * turn
            g2[i] += s2 * turn
    m0, m1, m2 = 2.0 * np.pi * base[0], 2.0 * np.pi * base[1], 2.0 * np.pi * base[2]
    for i in range(n):
        for b in range(3):
            forces[i, b] += inverse[b, 0] * m0 * g0[i] + inverse[b, 1] * m1 * g1[i] + inverse[b, 2] * m2 * g2[i]


# -- what came of it --------------------------------------------------------------------------------------------------


@compiled
def phase_of(h: float, q: float, p: Array) -> int:
    """Return 1 for the liquid, 2 for the crystal, 0 between them.

    Low Q alone is no liquid: it may be a crystal that is turned, at low enthalpy.
    """
    share = (h - p[LOW]) / (p[HIGH] - p[LOW])
    if share > 3.0 / 7.0 and q < 0.3:
        return 1
    if share < 3.0 / 7.0 and q > 0.5:
        return 2
    return 0


def round_trips(h: Array, q: Array, ensemble: Ensemble) -> float:
    """Return how often a series went from one phase to the other and back; half a trip for one way.

    Parameters
    ----------
    h, q : (n,)
        Enthalpy per atom (eV) and order parameter along one walker.
    """
    p = ensemble.parameters()
    phases = np.array([phase_of(a, b, p) for a, b in zip(h, q, strict=True)])
    phases = phases[phases > 0]
    return float(np.count_nonzero(np.diff(phases))) / 2.0


def coverage(visits: Array) -> tuple[float, float]:
    """Return the share of bins that were visited, and the flatness: 10th percentile over mean of those visited."""
    seen = visits[visits > 0]
    if not len(seen):
        return 0.0, 0.0
    return len(seen) / visits.size, float(np.percentile(seen, 10) / seen.mean())


def log_weight(entropy: Array, enthalpy: Array, temperature: float) -> Array:
    """Return the logarithm of the weight of each frame in the ensemble at ``temperature`` (K) and P0.

    Parameters
    ----------
    entropy : (n,)
        S of each frame.
    enthalpy : (n,)
        H of the cell, eV.
    """
    return np.asarray(entropy - enthalpy / (BOLTZMANN * temperature))


def worth(log_weights: Array) -> float:
    """Return how many frames of equal weight so many weighted ones are worth (Kish 1965)."""
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum())


def reweighted(values: Array, log_weights: Array, blocks: int = 10) -> tuple[float, float]:
    """Return the weighted mean and its standard error from a jackknife over blocks.

    Parameters
    ----------
    values, log_weights : (n,)
        In the order in which they were sampled.
    """
    w = np.exp(log_weights - log_weights.max())
    parts_w = np.array([b.sum() for b in np.array_split(w, blocks)])
    parts = np.array([b.sum() for b in np.array_split(w * values, blocks)])
    mean = parts.sum() / parts_w.sum()
    left_out = (parts.sum() - parts) / (parts_w.sum() - parts_w)
    return float(mean), float(np.sqrt((blocks - 1) / blocks * ((left_out - left_out.mean()) ** 2).sum()))
