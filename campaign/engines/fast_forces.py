"""SchNet for molecular dynamics: energy, forces and stress of one frame after another, as fast as a CPU core can.

One walker's frames, or those of several walkers at once (``evaluate_all``).

The filters of SchNet depend on the distance of a pair alone, and there are only ``features`` times ``interactions`` of
them. Here each is a cubic spline of the distance, made once from the network's own filters, so that a pair costs a few
multiplications for each filter instead of a small network. What is done for atoms is as it was. Pairs are kept with a
skin and found again only when atoms have moved through it (Verlet, Phys. Rev. 159, 98, 1967).

Forces are the exact derivative of the energy so tabulated, which differs from the network's by what float32 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from campaign.engines.models import Mean
from campaign.engines.schnetpack import Committee, Potential, require_species
from campaign.frames import Array, Frames
from campaign.science.compiled import available, compiled
from campaign.science.neighbours import neighbour_list

#: Å beyond the cutoff within which pairs are kept.
SKIN = 0.6
#: Energy, eV, forces (a, 3), eV/Å, and stress (3, 3), eV/Å^3, tension positive.
Found = tuple[float, Array, Array]
#: Spline intervals in an Å. The narrowest Gaussian of a filter is 0.3 Å wide: errors are those of float32.
INTERVALS = 128


def fast_forces(model: Any, numbers: Array) -> FastForces | None:
    """Return the fast way to a model's energy, forces and stress for atoms of these numbers; None if there is none.

    There is one for SchNet in float32 on a CPU, alone or as the mean of several.
    """
    members: list[Any] = list(model.members) if isinstance(model, Mean | Committee) else [model]
    if not available() or not all(_is_schnet(m) for m in members):
        return None
    return FastForces(members, numbers)


def _is_schnet(model: Any) -> bool:
    """Tell by its spec: the networks of other families have parts of the same names."""
    import torch

    if not isinstance(model, Potential) or model.device != "cpu" or model.spec.get("model", "schnet") != "schnet":
        return False
    return bool(model._model.representation.embedding.weight.dtype == torch.float32)


class FastForces:
    """Energy, forces and stress of frames that follow each other: the pairs of one serve the next.

    Parameters
    ----------
    members
        Potentials; the result is their mean.
    numbers : (a,)
        Atomic numbers.
    """

    def __init__(self, members: Sequence[Potential], numbers: Array) -> None:
        self._numbers = np.asarray(numbers)
        self._nets = [_Net(m, self._numbers) for m in members]
        self._cutoff = max(m.cutoff for m in members)
        self._pairs = self.begin()

    def begin(self) -> _Pairs:
        """Return the pairs of a new walker, for ``evaluate_all``."""
        return _Pairs(self._numbers, self._cutoff)

    def evaluate(self, positions: Array, cell: Array) -> Found:
        """Return energy, forces and stress of one frame.

        Parameters
        ----------
        positions : (a, 3) in Å
        cell : (3, 3) in Å

        Returns
        -------
        energy, eV, forces : (a, 3) eV/Å, stress : (3, 3) eV/Å^3, tension positive

        Raises
        ------
        Unphysical
            Positions or cell are not finite.
        """
        self._pairs.update(positions, cell)
        return self.evaluate_all([self._pairs])[0]

    def evaluate_all(self, walkers: Sequence[_Pairs]) -> list[Found]:
        """Return energy, forces and stress of each walker's last frame: its pairs alone, the layers of atoms for all.

        Which others are there changes no more than the rounding of the layers' float32.
        """
        slopes = [np.zeros(len(pairs.i)) for pairs in walkers]
        energies = sum((net.add(walkers, slopes) for net in self._nets), np.zeros(len(walkers))) / len(self._nets)
        found = []
        for energy, pairs, slope in zip(energies, walkers, slopes, strict=True):
            forces, virial = np.zeros((len(self._numbers), 3)), np.zeros((3, 3))
            compiled(_gather)(pairs.i, pairs.j, pairs.vectors, pairs.distances, slope, forces, virial)
            forces /= len(self._nets)
            virial /= len(self._nets) * abs(np.linalg.det(pairs.cell))
            found.append((float(energy), forces, 0.5 * (virial + virial.T)))
        return found


class _Pairs:
    """Each pair once, within cutoff and skin.

    Attributes
    ----------
    i, j : (E,) int64
    vectors : (E, 3) float64, distances : (E,) float64
        From i to j, Å, of the last frame.
    cell : (3, 3)
        Å, of the last frame.
    """

    def __init__(self, numbers: Array, cutoff: float) -> None:
        self._numbers, self._cutoff = numbers, cutoff
        self._last: tuple[Array, Array] | None = None
        self._crossed = np.zeros(3)  # cells that a pair within reach may cross along each axis
        self.i = self.j = np.zeros(0, np.int64)
        self._shifts = np.zeros((0, 3), np.int32)
        self.vectors, self.distances = np.zeros((0, 3)), np.zeros(0)
        self.cell = np.zeros((3, 3))

    def update(self, positions: Array, cell: Array) -> None:
        """Take the next frame."""
        positions, self.cell = np.ascontiguousarray(positions), np.ascontiguousarray(cell)
        cell = self.cell
        if not self._serves(positions, cell):
            frame = Frames.build(self._numbers, positions[None], cell)
            found = neighbour_list(frame, self._cutoff + SKIN, half=True)
            half = slice(None) if len(found) == 0 or found.half.all() else found.half
            self.i, self.j, self._shifts = found.idx_i[half], found.idx_j[half], found.shifts[half]
            self.vectors, self.distances = np.empty((len(self.i), 3)), np.empty(len(self.i))
            inverse = np.linalg.inv(cell)
            # of every pair there may be, kept or not: an image that is still too far crosses more cells than those near
            self._crossed = (self._cutoff + 4 * SKIN) * np.linalg.norm(inverse, axis=0)
            self._crossed += np.ptp(positions @ inverse, axis=0)
            self._last = (positions.copy(), cell.copy())
        compiled(_measure)(positions, cell, self.i, self.j, self._shifts, self.vectors, self.distances)

    def _serves(self, positions: Array, cell: Array) -> bool:
        """Tell whether no pair can have come from beyond the skin."""
        if self._last is None:
            return False
        before, box = self._last
        moved = 2.0 * float(np.sqrt(((positions - before) ** 2).sum(axis=1).max()))
        strained = float(self._crossed @ np.linalg.norm(cell - box, axis=1))
        return moved + strained < SKIN  # False where something is not finite: the search says so


class _Net:
    """One SchNet, its filters as splines."""

    def __init__(self, potential: Potential, numbers: Array) -> None:
        import torch

        frame = Frames.build(numbers, np.zeros((1, len(numbers), 3)), np.eye(3))
        require_species(frame, potential.species, "potential")
        model = potential._model
        inside = model.representation
        self._torch = torch
        self._cutoff, self._scale = potential.cutoff, potential.scale
        self._offset = float(potential._offsets[numbers].sum())
        self._start = inside.embedding(torch.as_tensor(numbers.astype(np.int64))).detach()
        self._outnet = model.output_modules[0].outnet
        self._blocks = [(b.in2f, b.f2out[0], b.f2out[1]) for b in inside.interactions]
        self._tables = [_table(inside, b, potential.cutoff) for b in inside.interactions]
        z = np.asarray(numbers, dtype=np.int64)
        if potential._core is None:
            self._core = np.zeros(len(z), np.int64), np.zeros((1, 1))
        else:
            self._core = z, potential._core.double().numpy()
        self._wall = potential.wall

    def add(self, walkers: Sequence[_Pairs], slopes: Sequence[Array]) -> Array:
        """Return each walker's energy (n,), eV, and add its derivative with each pair's distance to ``slopes``, eV/Å.

        ``slopes`` are (E,) for each walker. Its atoms are ``a`` consecutive rows of all that is done for atoms.
        """
        torch = self._torch
        functional = torch.nn.functional
        n, a = len(walkers), len(self._start)
        rows = [slice(k * a, (k + 1) * a) for k in range(n)]
        own = [np.zeros(len(slope), np.float32) for slope in slopes]
        forward, backward = compiled(_forward, True), compiled(_backward, True)
        ends = [(w.i, w.j, w.distances, np.float64(self._cutoff)) for w in walkers]
        with torch.no_grad():
            x = self._start if n == 1 else self._start.repeat(n, 1)
            kept = []
            for (into, first, second), table in zip(self._blocks, self._tables, strict=True):
                y = functional.linear(x, into.weight)
                sums = torch.zeros_like(y)
                sent, received = y.numpy(), sums.numpy()
                for k, row in enumerate(rows):
                    forward(*ends[k], table, sent[row], received[row])
                hidden = functional.linear(sums, first.weight, first.bias)
                x = x + functional.linear(functional.softplus(hidden) - _LOG2, second.weight, second.bias)
                kept.append((y, hidden))
        x.requires_grad_()
        energy = self._outnet(x)[:, 0]
        (gx,) = torch.autograd.grad(energy.sum(), x)
        with torch.no_grad():
            for (into, first, second), table, (y, hidden) in reversed(
                list(zip(self._blocks, self._tables, kept, strict=True))
            ):
                gs = (gx @ second.weight).mul_(torch.sigmoid(hidden)) @ first.weight
                gy = torch.zeros_like(y)
                sent, back, received = y.numpy(), gs.numpy(), gy.numpy()
                for k, row in enumerate(rows):
                    backward(*ends[k], table, sent[row], back[row], received[row], own[k])
                gx = gx + gy @ into.weight
        exact, found = energy.detach().double(), np.empty(n)
        for k, pairs in enumerate(walkers):
            slopes[k][:] += own[k] * self._scale
            wall = compiled(_wall)(pairs.i, pairs.j, pairs.distances, self._core, self._wall, slopes[k])
            found[k] = float(exact[rows[k]].sum()) * self._scale + self._offset + float(wall)
        return found


_LOG2 = float(np.log(2.0))


def _table(representation: Any, block: Any, cutoff: float) -> Array:
    """Return (intervals, 4, features) float32: the cubic on each interval, in powers of the share of it.

    Values and slopes at the knots are the network's, in float64: the spline is continuous with its derivative.
    """
    import copy

    import torch

    network = copy.deepcopy(block.filter_network).double()
    basis, window = (
        copy.deepcopy(representation.radial_basis).double(),
        copy.deepcopy(representation.cutoff_fn).double(),
    )
    count = round(INTERVALS * cutoff)
    step = cutoff / count
    r = torch.linspace(0.0, cutoff, count + 1, dtype=torch.float64)

    def filters(at: Any) -> Any:
        return network(basis(at)) * window(at)[:, None]

    with torch.enable_grad():
        value, slope = torch.func.jvp(filters, (r,), (torch.ones_like(r),))[:2]
    v, s = value.detach().numpy(), slope.detach().numpy() * step
    v[-1], s[-1] = 0.0, 0.0  # the cutoff function ends with both
    rise = v[1:] - v[:-1]
    table = np.stack([v[:-1], s[:-1], 3 * rise - 2 * s[:-1] - s[1:], s[:-1] + s[1:] - 2 * rise], axis=1)
    return np.ascontiguousarray(table, dtype=np.float32)


def _measure(x: Array, cell: Array, i: Array, j: Array, shifts: Array, vectors: Array, distances: Array) -> None:
    """Write the vectors and distances of pairs."""
    for e in range(i.shape[0]):
        square = 0.0
        for c in range(3):
            v = x[j[e], c] - x[i[e], c]
            for k in range(3):
                v += shifts[e, k] * cell[k, c]
            vectors[e, c] = v
            square += v * v
        distances[e] = np.sqrt(square)


def _forward(i: Array, j: Array, distances: Array, cutoff: float, table: Array, y: Array, sums: Array) -> None:
    """Add to each atom what its neighbours send: their features times the pair's filters."""
    count, features = table.shape[0], table.shape[2]
    for e in range(i.shape[0]):
        d = distances[e]
        if d >= cutoff:
            continue
        place = d / cutoff * count
        k = min(int(place), count - 1)
        t = np.float32(place - k)
        a, b = i[e], j[e]
        for f in range(features):
            w = table[k, 0, f] + t * (table[k, 1, f] + t * (table[k, 2, f] + t * table[k, 3, f]))
            sums[a, f] += w * y[b, f]
            sums[b, f] += w * y[a, f]


def _backward(
    i: Array, j: Array, distances: Array, cutoff: float, table: Array, y: Array, g: Array, gy: Array, slopes: Array
) -> None:
    """Take the derivative ``g`` with the sums of ``_forward`` back: to the features, and to the distances."""
    count, features = table.shape[0], table.shape[2]
    per = np.float32(count / cutoff)
    for e in range(i.shape[0]):
        d = distances[e]
        if d >= cutoff:
            continue
        place = d / cutoff * count
        k = min(int(place), count - 1)
        t = np.float32(place - k)
        a, b = i[e], j[e]
        total = np.float32(0.0)
        for f in range(features):
            c1, c2, c3 = table[k, 1, f], table[k, 2, f], table[k, 3, f]
            w = table[k, 0, f] + t * (c1 + t * (c2 + t * c3))
            slope = c1 + t * (np.float32(2.0) * c2 + t * (np.float32(3.0) * c3))
            total += slope * (g[a, f] * y[b, f] + g[b, f] * y[a, f])
            gy[a, f] += w * g[b, f]
            gy[b, f] += w * g[a, f]
        slopes[e] += total * per


def _wall(i: Array, j: Array, distances: Array, core: tuple[Array, Array], height: float, slopes: Array) -> float:
    """Return the energy of the walls between atoms (``schnetpack.Potential``) and add their slopes.

    ``core`` is the kind of each atom, and the shortest distance of each two kinds.
    """
    kind, shortest = core
    energy = 0.0
    for e in range(i.shape[0]):
        r0 = shortest[kind[i[e]], kind[j[e]]]
        if distances[e] < r0:
            inside = 1.0 - distances[e] / r0
            energy += height * inside**3
            slopes[e] -= 3.0 * height * inside**2 / r0
    return energy


def _gather(i: Array, j: Array, vectors: Array, distances: Array, slopes: Array, forces: Array, virial: Array) -> None:
    """Sum dE/dd of the pairs to forces and to the virial dE/dstrain."""
    for e in range(i.shape[0]):
        if slopes[e] == 0.0:
            continue
        for c in range(3):
            g = slopes[e] * vectors[e, c] / distances[e]
            forces[i[e], c] += g
            forces[j[e], c] -= g
            for k in range(3):
                virial[c, k] += g * vectors[e, k]
