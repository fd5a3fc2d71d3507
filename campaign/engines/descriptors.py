"""What a selector sees of a frame: features of its atoms' surroundings, pooled over the frame.

The features are those of an untrained SchNet (SchNetPack's own weights) or SOAP (dscribe, extra ``select``). On a CPU
SchNet runs as a loop over pairs: the filter of a pair is a function of its length alone, so it is tabulated once and
interpolated, instead of going through a network for every pair. That is as exact as float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from campaign.engines.schnetpack import require_species, schnet
from campaign.errors import EngineError, InputError
from campaign.frames import Array, Frames
from campaign.science.compiled import available, compiled
from campaign.science.neighbours import neighbour_list, require_sound

if TYPE_CHECKING:
    import torch

#: Ways of pooling.
POOLINGS = ("mean", "species", "species_std", "species_extremes")
#: Intervals in which the filters are tabulated: a 27th of the width of a Gaussian each.
_KNOTS = 512
#: Atoms and pairs (each once) of a chunk, which keep memory constant, on a CPU also the working set in the cache.
_CHUNK = {"cpu": (1024, 100_000), "cuda": (32_768, 500_000)}
#: Boxes of a cell list that dscribe may fill.
_MOST_BOXES = 1e6


class _Features(Protocol):
    """Features of atoms."""

    width: int
    cutoff: float
    device: str

    def __call__(self, frames: Frames) -> Array:
        """Return (n, a, width) float32 of a few frames."""


class Descriptor:
    """Features of atoms, pooled, as the descriptor of a frame.

    Source: random network distillation of molten salts (Tovey et al.) maps configurations by untrained SchNet
    representations. Plain means over atoms hide single close contacts; the spread within each species shows some of
    them, the extremes nearly all (``docs/selection.md`` has the figures).
    The result for a frame does not depend on the frames it comes with.

    Parameters
    ----------
    numbers_present
        Atomic numbers of the campaign, in any order.
    seed
        Decides the random weights of SchNet.
    model
        ``"schnet"`` or ``"soap"``.
    pooling
        ``"mean"``: mean over all atoms, d = ``width``. ``"species"``: mean over the atoms of each species,
        d = width times species. ``"species_std"``: mean and standard deviation over the atoms of each species,
        d = 2 width times species. ``"species_extremes"``: these and the smallest and largest value over the atoms of
        each species, d = 4 width times species. Zero for a species that a frame does not have.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"``: cuda if torch sees one. SOAP always uses the CPU.
    settings
        Of SchNet: ``features`` (64), ``interactions`` (3), ``cutoff`` (6.0 Å). Of SOAP: ``cutoff`` (6.0 Å), ``n_max``
        (8), ``l_max`` (6), ``sigma`` (0.5 Å).

    Raises
    ------
    InputError
        Unknown model, pooling or device; cuda without a GPU.
    EngineError
        SOAP without dscribe.
    """

    def __init__(
        self,
        numbers_present: Sequence[int],
        seed: int = 0,
        model: str = "schnet",
        pooling: str = "species_extremes",
        device: str = "auto",
        **settings: Any,
    ) -> None:
        if pooling not in POOLINGS:
            raise InputError(f'The pooling of a descriptor must be one of {", ".join(POOLINGS)}, got "{pooling}".')
        if model not in ("schnet", "soap"):
            raise InputError(f'The model of a descriptor must be schnet or soap, got "{model}".')
        self.species = sorted({int(z) for z in numbers_present})
        self.pooling = pooling
        self._features = _schnet(seed, device, **settings) if model == "schnet" else _Soap(self.species, **settings)
        self.cutoff = self._features.cutoff
        each = {"mean": 1, "species": 1, "species_std": 2, "species_extremes": 4}[pooling]
        #: Features of an atom, and of a frame.
        self.width = self._features.width
        self.dimension = each * self.width * (1 if pooling == "mean" else len(self.species))

    def __call__(self, frames: Frames) -> Array:
        """Return (n, d) float32; memory does not grow with the number of frames.

        Raises
        ------
        EngineError
            A species that the descriptor was not made for.
        Unphysical
            Neighbours cannot be found (see ``neighbour_list``).
        """
        out = np.zeros((len(frames), self.dimension), dtype=np.float32)
        for part, atoms in self.blocks(frames):
            out[part] = self.pool(frames.numbers[part], atoms)
        return out

    def atoms(self, frames: Frames) -> Array:
        """Return (n, a, width) float32, the features of each atom; :meth:`blocks` does not hold them all at once."""
        out = np.zeros((*frames.numbers.shape, self.width), dtype=np.float32)
        for part, atoms in self.blocks(frames):
            out[part] = atoms
        return out

    def blocks(self, frames: Frames) -> Iterator[tuple[slice, Array]]:
        """Yield slices of ``frames`` with the features of their atoms, (m, a, width) float32, a few frames at a time.

        With :meth:`pool`, atoms and frames are described in one go.
        """
        require_species(frames, self.species, "descriptor")
        for part in _chunks(frames, self.cutoff, self._features.device):
            yield part, self._features(frames[part])

    def pool(self, numbers: Array, atoms: Array) -> Array:
        """Return (n, d) of atomic numbers (n, a) and features (n, a, width)."""
        if self.pooling == "mean":
            return np.asarray(atoms.mean(axis=1))
        n, width = len(atoms), atoms.shape[2]
        of_kind = (numbers[:, None, :] == np.array(self.species)[None, :, None]).astype(atoms.dtype)
        shares = of_kind / np.maximum(of_kind.sum(axis=2, keepdims=True), 1.0)
        mean = shares @ atoms
        if self.pooling == "species":
            return np.asarray(mean.reshape(n, -1))
        apart = atoms - mean[np.arange(n)[:, None], np.searchsorted(self.species, numbers)]
        parts = [mean, np.sqrt(shares @ apart**2)]
        if self.pooling == "species_extremes":
            parts += [self._ends(of_kind, atoms, np.min), self._ends(of_kind, atoms, np.max)]
        return np.concatenate(parts, axis=2).reshape(n, len(parts) * len(self.species) * width)

    @staticmethod
    def _ends(of_kind: Array, atoms: Array, end: Any) -> Array:
        """Return (n, s, width) the smallest or largest features of each species; zero for one that is not there."""
        out = np.zeros((len(atoms), of_kind.shape[1], atoms.shape[2]), dtype=atoms.dtype)
        nothing = np.inf if end is np.min else -np.inf
        for k in range(of_kind.shape[1]):
            here: Array = of_kind[:, k] > 0
            found = end(atoms, axis=1, initial=nothing, where=here[:, :, None])
            out[:, k] = np.where(np.any(here, axis=1, keepdims=True), found, 0.0)
        return out


def _chunks(frames: Frames, cutoff: float, device: str) -> Iterator[slice]:
    """Yield slices with about as many atoms and pairs as fit (one frame at least)."""
    most_atoms, most_pairs = _CHUNK[device]
    with np.errstate(all="ignore"):  # cells that are not finite are refused where neighbours are searched
        pairs = frames.n_atoms**2 / frames.volume * 2.1 * cutoff**3  # 2 pi / 3 c^3 density, by frame
        cost = np.nan_to_num(np.maximum(frames.n_atoms / most_atoms, pairs / most_pairs), nan=1.0)
    start, total = 0, 0.0
    for k, one in enumerate(cost):
        if k > start and total + one > 1.0:
            yield slice(start, k)
            start, total = k, 0.0
        total += one
    if start < len(frames):
        yield slice(start, len(frames))


def _schnet(seed: int, device: str, features: int = 64, interactions: int = 3, cutoff: float = 6.0) -> _Features:
    """Return SchNet for the device: tables for a CPU, SchNetPack's network for others (and where numba is missing)."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f'The device of a descriptor must be auto, cpu or cuda, got "{device}".')
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("The descriptor was asked to run on cuda, and torch sees no GPU; write cpu or auto.")
    model = schnet(features, interactions, cutoff, seed).eval().requires_grad_(False)
    if device == "cuda" or (device == "auto" and found):
        return _Network(model, "cuda")
    return _Tables(model) if available() else _Network(model, "cpu")


# --- SchNet by tables


class _Tables:
    """SchNet on a CPU.

    Filters, with the cutoff's window in them, are cubic Hermite splines on equal intervals; their error is below 1e-7
    of the largest filter. Every frame has its own matrix products: the rounding does not depend on its company.
    """

    device = "cpu"

    def __init__(self, model: Any) -> None:
        self.cutoff = float(model.cutoff)
        self.width = int(model.n_atom_basis)
        self._embedding = _numpy(model.embedding.weight)
        self._tables = _tabulate(model)
        self._layers = [
            (
                _numpy(block.in2f.weight.T),
                _numpy(block.f2out[0].weight.T),
                _numpy(block.f2out[0].bias),
                _numpy(block.f2out[1].weight.T),
                _numpy(block.f2out[1].bias),
            )
            for block in model.interactions
        ]

    def __call__(self, frames: Frames) -> Array:
        n, a = frames.numbers.shape
        pairs = neighbour_list(frames, self.cutoff, half=True)
        i, j = pairs.idx_i, pairs.idx_j
        knots, weights = np.empty(len(i), np.int32), np.empty((len(i), 4), np.float32)
        where = np.ascontiguousarray(frames.positions).reshape(-1, 3)
        compiled(_weigh)(where, i, j, pairs.offsets, _KNOTS / self.cutoff, _KNOTS - 1, knots, weights)
        x = self._embedding[frames.numbers]
        for table, (into, hidden, hidden_bias, out, out_bias) in zip(self._tables, self._layers, strict=True):
            y = (x @ into).reshape(n * a, -1)
            v = np.zeros_like(y)
            compiled(_convolve)(i, j, knots, weights, table, y, v)
            v = _shifted_softplus(v.reshape(n, a, -1) @ hidden + hidden_bias)
            x = x + (v @ out + out_bias)
        return np.asarray(x)


def _numpy(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


def _shifted_softplus(x: Array) -> Array:
    """Return log(1 + e^x) - log 2, by torch: numpy is as quick on few processors only."""
    import torch

    out: Array = torch.nn.functional.softplus(torch.from_numpy(x)).numpy()
    out -= np.float32(np.log(2.0))
    return out


def _tabulate(model: Any) -> list[Array]:
    """Return, for each interaction, (knots + 1, 2 features) float32: filters and their slopes times the interval."""
    from copy import deepcopy

    import torch

    model = deepcopy(model).double()
    step = float(model.cutoff) / _KNOTS
    distances = torch.arange(_KNOTS + 1, dtype=torch.float64) * step

    def filters(block: Any, d: torch.Tensor) -> Any:
        return block.filter_network(model.radial_basis(d)) * model.cutoff_fn(d)[:, None]

    tables = []
    for block in model.interactions:
        small = 0.01 * step
        slopes = (filters(block, distances + small) - filters(block, distances - small)) / 0.02
        tables.append(_numpy(torch.cat([filters(block, distances), slopes], dim=1)))
    return tables


def _weigh(
    positions: Array,
    idx_i: Array,
    idx_j: Array,
    offsets: Array,
    inverse_step: float,
    last: int,
    knots: Array,
    weights: Array,
) -> None:
    """Write for each pair the knot below its distance, and the Hermite weights of the four numbers from there."""
    for p in range(idx_i.shape[0]):
        i, j = idx_i[p], idx_j[p]
        x = positions[j, 0] - positions[i, 0] + offsets[p, 0]
        y = positions[j, 1] - positions[i, 1] + offsets[p, 1]
        z = positions[j, 2] - positions[i, 2] + offsets[p, 2]
        at = np.sqrt(x * x + y * y + z * z) * inverse_step
        k = min(np.int64(at), last)
        t = at - k
        knots[p] = k
        weights[p, 0] = (1.0 + 2.0 * t) * (1.0 - t) ** 2
        weights[p, 1] = t * (1.0 - t) ** 2
        weights[p, 2] = t * t * (3.0 - 2.0 * t)
        weights[p, 3] = t * t * (t - 1.0)


def _convolve(idx_i: Array, idx_j: Array, knots: Array, weights: Array, table: Array, y: Array, out: Array) -> None:
    """Add to ``out`` of both atoms of each pair the other's ``y`` times the pair's filter."""
    width = y.shape[1]
    for p in range(idx_i.shape[0]):
        below, above = table[knots[p]], table[knots[p] + 1]
        a, b, c, d = weights[p, 0], weights[p, 1], weights[p, 2], weights[p, 3]
        y_i, y_j, out_i, out_j = y[idx_i[p]], y[idx_j[p]], out[idx_i[p]], out[idx_j[p]]
        for f in range(width):
            w = a * below[f] + b * below[width + f] + c * above[f] + d * above[width + f]
            out_i[f] += w * y_j[f]
            out_j[f] += w * y_i[f]


# --- SchNet by torch


class _Network:
    """SchNet on any device of torch: filters by the network, sums in a fixed order (same result every time)."""

    def __init__(self, model: Any, device: str) -> None:
        self.device, self.cutoff, self.width = device, float(model.cutoff), int(model.n_atom_basis)
        self._model = model.to(device)

    def __call__(self, frames: Frames) -> Array:
        import torch

        pairs = neighbour_list(frames, self.cutoff, half=True)
        with torch.inference_mode():
            # in float64 up to here: the rounding of float32 then does not depend on where the atoms sit
            d = torch.as_tensor(pairs.distances(frames.positions), dtype=torch.float32, device=self.device)
            i = torch.as_tensor(pairs.idx_i, device=self.device)
            j = torch.as_tensor(pairs.idx_j, device=self.device)
            z = torch.as_tensor(frames.numbers.ravel().astype(np.int64), device=self.device)
            x = self._atoms(z, d, torch.cat([i, j]), torch.cat([j, i]))
            return np.asarray(x.cpu().numpy().reshape(*frames.numbers.shape, -1))

    def _atoms(self, z: torch.Tensor, d: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> Any:
        """Return (n*a, features): ``d`` has each pair once, ``i`` and ``j`` first all one way, then the other."""
        import torch

        model = self._model
        order = torch.sort(i, stable=True).indices
        j, pair = j[order], order % max(len(d), 1)
        counts = torch.bincount(i, minlength=len(z))
        expanded, window = model.radial_basis(d), model.cutoff_fn(d)[:, None]
        x = model.embedding(z)
        for block in model.interactions:
            messages = (block.filter_network(expanded) * window)[pair] * block.in2f(x)[j]
            x = x + block.f2out(torch.segment_reduce(messages, "sum", lengths=counts, unsafe=True))
        return x


# --- SOAP


def dscribe_missing() -> str | None:
    """Return what to do when dscribe is not installed, else None."""
    return None if find_spec("dscribe") else "install it with: pip install 'campaign[select]'"


class _Soap:
    """Smooth overlap of atomic positions, by dscribe."""

    device = "cpu"

    def __init__(
        self, species: Sequence[int], cutoff: float = 6.0, n_max: int = 8, l_max: int = 6, sigma: float = 0.5
    ) -> None:
        remedy = dscribe_missing()
        if remedy:
            raise EngineError(f"The SOAP descriptor needs dscribe, which is not installed; {remedy}.")
        from ase.data import chemical_symbols
        from dscribe.descriptors import SOAP

        self.cutoff, self._sigma = float(cutoff), float(sigma)
        settings = {"r_cut": self.cutoff, "n_max": n_max, "l_max": l_max, "sigma": sigma}
        names = [chemical_symbols[z] for z in species]
        self._periodic, self._cluster = (SOAP(species=names, periodic=p, **settings) for p in (True, False))
        self.width = int(self._periodic.get_number_of_features())

    def __call__(self, frames: Frames) -> Array:
        from ase import Atoms

        require_sound(frames, self.cutoff)
        out = np.empty((*frames.numbers.shape, self.width), dtype=np.float32)
        # dscribe divides the cell and its 26 images into boxes as wide as the cutoff, however few atoms are in them
        huge = 27.0 * frames.volume > _MOST_BOXES * self.cutoff**3
        for k in range(len(frames)):
            if huge[k]:
                out[k] = self._one_by_one(frames[[k]])
            else:
                atoms = Atoms(frames.numbers[k], frames.positions[k], cell=frames.cell[k], pbc=True)
                atoms.wrap()  # dscribe misses neighbours of atoms that have left the cell
                out[k] = self._periodic.create(atoms)
        return out

    def _one_by_one(self, frame: Frames) -> Array:
        """Return (a, width): each atom from itself and what is around it, images among them, without a cell."""
        from ase import Atoms

        reach = self.cutoff + 5.0 * self._sigma  # the tails of Gaussians further out come in too
        pairs = neighbour_list(frame, reach)
        vectors, numbers = pairs.vectors(frame.positions), frame.numbers[0]
        out = np.empty((frame.n_atoms, self.width))
        for i in range(frame.n_atoms):
            near = pairs.idx_i == i
            kinds = np.concatenate([numbers[[i]], numbers[pairs.idx_j[near]]])
            around = Atoms(kinds, np.concatenate([np.zeros((1, 3)), vectors[near]]))
            out[i] = self._cluster.create(around, centers=[0])[0]
        return out
