"""SchNetPack: SchNet, PaiNN and SO3net as potentials, SchNet as a representation. ``schnetpack_train`` trains them.

Models are SchNetPack's own modules. Two things are done around them, both exact: SchNet's filters are computed once for
each pair instead of twice (:func:`schnet`), and outside training forces and stress come from the derivative to the pair
vectors, one backward pass without the strain of ``schnetpack.atomistic.Strain``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.ase_calculator import calculator
from campaign.engines.devices import repeatable, require_device
from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science.neighbours import Neighbours, neighbour_list
from campaign.science.uncertainty import atomic_std

if TYPE_CHECKING:
    import torch
    from ase.calculators.calculator import Calculator

#: Models that this module builds, and the class behind each.
FAMILIES = {
    "schnet": "schnetpack.representation.SchNet",
    "painn": "schnetpack.representation.PaiNN",
    "so3net": "schnetpack.representation.SO3net",
    "ani": "torchani.aev.AEVComputer",
}
#: Gaussians in which a distance is expanded.
RADIAL = 20
#: Largest angular momentum of an SO3net whose spec has none.
L_MAX = 2
#: Stiffness of the wall that stands inside the shortest distances seen in training, eV (see ``Potential``). SchNets of
#: molten NaCl fall behind the true repulsion by 200 to 300 eV times (1 - r/r0)^3 in all three pairs, from r0 to 0.7 r0.
WALL = 300.0
#: Atoms of a chunk, by device: keeps memory constant and, on a CPU, the working set within the cache.
_CHUNK_ATOMS = {"cpu": 1024, "cuda": 32_768}
#: Format of an exported file; 1 had SchNet alone and no training set, 2 not the height of the wall: the same in all.
_FORMAT = 3
FORMATS = (1, 2, _FORMAT)
_OLD_WALL = 2000.0
_UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å^3, tension positive"}
Results = tuple[Array, Array, Array]


def load_schnetpack() -> Any:
    """Import SchNetPack, on any torch.

    SchNetPack 2.1 wants a name that torch 2.5 and later do not have; nothing but a type annotation uses it.
    """
    import warnings
    from typing import TypeVar

    import torch.utils.data.dataloader as dataloader

    if not hasattr(dataloader, "T_co"):
        dataloader.T_co = TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # it scripts a function with torch.jit, which newer torch deplores
        import schnetpack

    return schnetpack


def schnet(features: int, interactions: int, cutoff: float, seed: int) -> Any:
    """Return a seeded SchNet representation that takes every pair once (see ``Neighbours.half``).

    The filter of a pair depends on its length alone, so it serves i -> j and j -> i. The weights are those of
    SchNetPack's ``SchNet``, and so are the results on the full list.
    """
    import torch

    spk = load_schnetpack()
    properties, scatter_add = spk.properties, spk.nn.scatter_add

    class HalfSchNet(spk.representation.SchNet):  # type: ignore[misc, name-defined]
        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            i, j = inputs[properties.idx_i], inputs[properties.idx_j]
            distances = torch.linalg.vector_norm(inputs[properties.Rij], dim=1)
            expanded = self.radial_basis(distances)
            window = self.cutoff_fn(distances)[:, None]
            x = self.embedding(inputs[properties.Z])
            for block in self.interactions:
                filters = block.filter_network(expanded) * window
                y = block.in2f(x)
                to_i = scatter_add(y.index_select(0, j) * filters, i, dim_size=len(y))
                to_j = scatter_add(y.index_select(0, i) * filters, j, dim_size=len(y))
                x = x + block.f2out(to_i + to_j)
            inputs["scalar_representation"] = x
            return inputs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & (2**63 - 1))
        return HalfSchNet(
            n_atom_basis=features,
            n_interactions=interactions,
            radial_basis=spk.nn.GaussianRBF(n_rbf=RADIAL, cutoff=cutoff),
            cutoff_fn=spk.nn.CosineCutoff(cutoff),
        )


def pairs_once(spec: Mapping[str, Any]) -> bool:
    """Tell whether the model of a spec takes every pair once, or in both directions (where directions matter)."""
    return spec.get("model", "schnet") in ("schnet", "ani")


def _representation(spec: Mapping[str, Any], seed: int) -> Any:
    """Return the seeded representation that ``spec["model"]`` names, SchNet where it names none."""
    import torch

    model = spec.get("model", "schnet")
    if model == "schnet":
        return schnet(spec["features"], spec["interactions"], spec["cutoff"], seed)
    if model == "ani":
        from campaign.engines.ani import representation

        return representation(spec, seed)
    spk = load_schnetpack()
    more = {"lmax": int(spec.get("l_max", L_MAX))} if model == "so3net" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & (2**63 - 1))
        return getattr(spk.representation, FAMILIES[model].rpartition(".")[2])(
            n_atom_basis=spec["features"],
            n_interactions=spec["interactions"],
            radial_basis=spk.nn.GaussianRBF(n_rbf=RADIAL, cutoff=spec["cutoff"]),
            cutoff_fn=spk.nn.CosineCutoff(spec["cutoff"]),
            **more,
        )


def network(spec: Mapping[str, Any], seed: int) -> Any:
    """Return SchNetPack's ``NeuralNetworkPotential`` with energy, forces and stress as outputs.

    ``spec`` has ``features``, ``interactions``, ``cutoff`` (Å), ``model`` (one of ``FAMILIES``, ``schnet`` where there
    is none), for SO3net ``l_max``, and for ANI what ``ani.representation`` takes. Energy and its derivatives are in the
    units of the scale that :class:`Potential` multiplies back.
    """
    import torch

    spk = load_schnetpack()
    representation = _representation(spec, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed & (2**62 - 1)) + 1)
        energy = spk.atomistic.Atomwise(n_in=representation.n_atom_basis, output_key=spk.properties.energy)
    if spec.get("model") == "ani":  # its networks, one an element, give the energies themselves
        energy.outnet = torch.nn.Identity()
    return spk.model.NeuralNetworkPotential(
        representation=representation,
        input_modules=[spk.atomistic.Strain(), spk.atomistic.PairwiseDistances()],
        output_modules=[energy, spk.atomistic.Forces(calc_stress=True)],
    )


def chunks(frames: Frames, device: str = "cpu") -> Iterator[slice]:
    """Yield slices of at most about a thousand atoms, of more on a GPU (one frame at least)."""
    step = max(1, _CHUNK_ATOMS[device] // max(frames.n_atoms, 1))
    for start in range(0, len(frames), step):
        yield slice(start, start + step)


def require_species(frames: Frames, known: Sequence[int], what: str) -> None:
    """Raise ``EngineError`` if ``what`` (a descriptor, a potential) does not know an element of the frames."""
    unknown = sorted({int(z) for z in np.unique(frames.numbers)} - set(known))
    if unknown:
        from ase.data import chemical_symbols

        have = ", ".join(chemical_symbols[z] for z in known)
        lack = ", ".join(chemical_symbols[z] for z in unknown)
        raise EngineError(
            f"The {what} knows {have}, and the frames also hold {lack}; "
            f"train it on frames with {lack}, or leave these frames out."
        )


def _inputs(frames: Frames, cutoff: float, dtype: Any, pairs: Neighbours | None, once: bool) -> dict[str, Any]:
    """Return SchNetPack's input of a block, each pair once or twice, with the pair vectors already made; on the CPU."""
    import torch

    properties = load_schnetpack().properties
    if pairs is None:
        pairs = neighbour_list(frames, cutoff, half=once)
    half = pairs.half if once else slice(None)
    i, j = pairs.idx_i[half], pairs.idx_j[half]
    x = frames.positions.reshape(-1, 3)
    # in float64 up to here: the rounding of float32 then does not depend on where the atoms sit
    vectors = torch.as_tensor(x[j] - x[i] + pairs.offsets[half], dtype=dtype)
    return {
        properties.Z: torch.as_tensor(frames.numbers.ravel().astype(np.int64)),
        properties.Rij: vectors,
        properties.idx_i: torch.as_tensor(i),
        properties.idx_j: torch.as_tensor(j),
        properties.idx_m: torch.arange(len(frames)).repeat_interleave(frames.n_atoms),
    }


def read_model(path: Path | str, formats: Sequence[int]) -> dict[str, Any]:
    """Return what is in an exported file; nothing in it is executed.

    Raises
    ------
    EngineError
        It is no such file, or of none of these formats.
    """
    import zipfile

    import torch

    refused = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # what weights_only raises
    try:
        if not zipfile.is_zipfile(path):
            raise EOFError("it is not there, or is no torch file")
        data = torch.load(Path(path), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, refused) as error:
        cause = str(error).split("\n")[0].split(". ")[0]
        raise EngineError(f"{path} cannot be read as a potential ({cause}); export the model again.") from error
    if not isinstance(data, dict) or data.get("format") not in formats:
        found = data.get("format") if isinstance(data, dict) else None
        raise EngineError(
            f"{path} is not a potential of format {formats[-1]} (it says {found}); "
            "export the model again with this version."
        )
    return data


class _Evaluates:
    """What a single model and a committee share."""

    def evaluate(self, frames: Frames) -> Results:
        raise NotImplementedError

    def calculator(self) -> Calculator:
        """Return an ASE calculator with energy, forces and stress."""
        return calculator(self)


class Potential(_Evaluates):
    """A trained network (``FAMILIES``): energy, forces and stress of frames.

    Parameters
    ----------
    spec
        What :func:`network` takes; other keys are kept and not used.
    weights
        As returned by ``schnetpack_train.train``: the network's state, ``reference.numbers`` (s,),
        ``reference.energies`` (s,) in eV, ``scale`` (1,) in eV and, if there is to be a wall, ``core`` (s, s) in Å: the
        wall's r0 for each two species, their shortest distance in training. Closer no data says what the network does,
        and it may well bind; a pair there gets W ``(1 - r/r0)^3`` more energy. ``wall`` (1,), if it is there, is W in
        eV, else it is ``WALL``.
        ``training_set`` (16,), if it is there, is kept: the hash of what it was trained on.
    precision
        ``"float32"`` or ``"float64"``.
    """

    def __init__(self, spec: Mapping[str, Any], weights: Mapping[str, Array], precision: str = "float32") -> None:
        import torch

        self.spec = dict(spec)
        self._once = pairs_once(spec)
        self.weights = {k: np.asarray(v) for k, v in weights.items()}
        self.cutoff = float(spec["cutoff"])
        self.species = [int(z) for z in self.weights["reference.numbers"]]
        self.scale = float(self.weights["scale"][0])
        self._dtype = getattr(torch, precision)
        self.device = "cpu"
        self._offsets = np.zeros(max(self.species) + 1)
        self._offsets[self.species] = self.weights["reference.energies"]
        self._core = self._table(self.weights.get("core"))
        self.wall = float(self.weights["wall"][0]) if "wall" in self.weights else WALL
        model = network({**spec, "species": self.species}, seed=0)
        state = {k: torch.tensor(v) for k, v in self.weights.items() if k in model.state_dict()}
        model.load_state_dict(state)
        self._model = model.to(self._dtype).eval().requires_grad_(False)

    def _table(self, core: Array | None) -> Any:
        """Return shortest distances by atomic number, or None where there is no wall."""
        import torch

        if core is None:
            return None
        table = np.zeros((len(self._offsets), len(self._offsets)))
        table[np.ix_(self.species, self.species)] = core
        return torch.as_tensor(table, dtype=self._dtype)

    def to(self, device: str) -> Potential:
        """Move the network to ``cpu`` or ``cuda``, and return this potential: there it is evaluated from now on.

        Raises
        ------
        EngineError
            There is no such device.
        """
        require_device(device, "device")
        self.device = device
        self._model = self._model.to(device)
        self._core = None if self._core is None else self._core.to(device)
        return self

    def evaluate(self, frames: Frames, pairs: Neighbours | None = None) -> Results:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive.

        ``pairs``, if given, is the neighbour list of all ``frames`` at this cutoff, in both directions.

        Raises
        ------
        EngineError
            A species that the potential was not trained on.
        Unphysical
            Positions or cell are not finite.
        """
        return self._evaluate(frames, pairs)[:3]

    def atomic_energies(self, frames: Frames) -> Array:
        """Return (n, a) eV; they add up to the energy."""
        import torch

        require_species(frames, self.species, "potential")
        parts = [frames.numbers[:0].astype(np.float64)]
        with torch.no_grad():  # without a way back to the positions: less than half the time
            for part in chunks(frames, self.device):
                block = frames[part]
                atomic, _, _ = self._atomic(block, None)
                parts.append(self._each(atomic, block))
        return np.concatenate(parts)

    def _evaluate(self, frames: Frames, pairs: Neighbours | None) -> tuple[Array, Array, Array, Array]:
        require_species(frames, self.species, "potential")
        with repeatable(self.device):
            if pairs is not None or len(frames) * frames.n_atoms <= _CHUNK_ATOMS[self.device]:
                return self._block(frames, pairs)
            parts = [self._block(frames[part], None) for part in chunks(frames, self.device)]
        energy, forces, stress, atomic = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return energy, forces, stress, atomic

    def _block(self, frames: Frames, pairs: Neighbours | None) -> tuple[Array, Array, Array, Array]:
        """Evaluate at once: E depends on pair vectors r only, so F and the virial are sums over g = dE/dr.

        F_i = sum_j (g_ij - g_ji), and dE/dstrain = sum_ij r_ij (x) g_ij, over the pairs that the model takes.
        """
        import torch

        properties = load_schnetpack().properties
        n, a = frames.numbers.shape
        atomic, r, inputs = self._atomic(frames, pairs)
        g = torch.autograd.grad(atomic.sum(), r)[0]
        forces = g.new_zeros((n * a, 3))
        forces.index_add_(0, inputs[properties.idx_i], g).index_add_(0, inputs[properties.idx_j], -g)
        virial = g.new_zeros((n, 9))
        outer = (r.detach()[:, :, None] * g[:, None, :]).reshape(-1, 9)
        virial.index_add_(0, torch.div(inputs[properties.idx_i], a, rounding_mode="floor"), outer)
        stress = virial.double().cpu().numpy().reshape(n, 3, 3) / frames.volume[:, None, None]
        stress = 0.5 * (stress + stress.transpose(0, 2, 1))
        each = self._each(atomic, frames)
        by_atom = forces.double().cpu().numpy().reshape(n, a, 3)
        return each.sum(axis=1), by_atom * self.scale, stress * self.scale, each

    def _atomic(self, frames: Frames, pairs: Neighbours | None) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return (n*a,) energies of the atoms over the scale, the pair vectors they come from, and all inputs."""
        inputs = _inputs(frames, self.cutoff, self._dtype, pairs, self._once)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        r = inputs[load_schnetpack().properties.Rij].requires_grad_()
        hidden = self._model.representation(inputs)["scalar_representation"]
        atomic = self._model.output_modules[0].outnet(hidden)[:, 0]
        return (atomic if self._core is None else atomic + self._wall(inputs, r)), r, inputs

    def _each(self, atomic: torch.Tensor, frames: Frames) -> Array:
        """Return (n, a) energies of the atoms, eV."""
        found = atomic.detach().double().cpu().numpy().reshape(frames.numbers.shape)
        return np.asarray(found * self.scale + self._offsets[frames.numbers])

    def _wall(self, inputs: dict[str, Any], r: torch.Tensor) -> torch.Tensor:
        """Return (n*a,) each atom's half of the walls of its pairs, over the scale."""
        import torch

        p = load_schnetpack().properties
        i, j, z = inputs[p.idx_i], inputs[p.idx_j], inputs[p.Z]
        core = self._core[z[i], z[j]]
        inside = torch.relu(core - torch.linalg.vector_norm(r, dim=1)) / core.clamp(min=1e-6)
        half = (0.5 * self.wall / self.scale) * inside**3
        walls = r.new_zeros(len(z)).index_add(0, i, half)
        return walls.index_add(0, j, half) if self._once else walls

    @property
    def training_set(self) -> str:
        """Hash of the frames, labels and forces that it was trained on, 32 hex digits; empty where not known."""
        found = self.weights.get("training_set")
        return "" if found is None else found.astype(np.uint8).tobytes().hex()

    def export(self, path: Path | str) -> None:
        """Write a torch file for :meth:`load`.

        It carries cutoff (Å), species, units, reference energies (eV), spec, the height of its wall and, where known,
        the hash of the training set as 32 hex digits.
        """
        import torch

        reference = {z: float(e) for z, e in zip(self.species, self.weights["reference.energies"], strict=True)}
        data = {
            "format": _FORMAT,
            "model": FAMILIES[self.spec.get("model", "schnet")],
            "cutoff": self.cutoff,
            "species": self.species,
            "units": _UNITS,
            "reference_energies": reference,
            "training_set": self.training_set,
            "spec": self.spec,
            "weights": {k: torch.from_numpy(np.array(v)) for k, v in (self.weights | {"wall": [self.wall]}).items()},
        }
        torch.save(data, Path(path))

    @classmethod
    def load(cls, path: Path | str, precision: str = "float32") -> Potential:
        """Read what :meth:`export` wrote; nothing in the file is executed.

        Raises
        ------
        EngineError
            The file is not such a potential, or is of another format.
        """
        data = read_model(path, FORMATS)
        try:
            weights = {k: v.numpy() for k, v in data["weights"].items()}
            if data["format"] < _FORMAT:
                weights["wall"] = np.array([_OLD_WALL])
            broken = [name for name, value in weights.items() if not np.isfinite(value).all()]
            if broken:
                raise RuntimeError(f"{broken[0]} is not finite")
            return cls(data["spec"], weights, precision)
        except (KeyError, RuntimeError, AttributeError) as error:  # weights that do not fit the network
            cause = str(error).split("\n")[0]
            raise EngineError(f"{path} is damaged ({cause}); export the model again.") from error


class Committee(_Evaluates):
    """Several potentials as one: their mean, and their standard deviation as its uncertainty.

    The deviation is that of the population the members are drawn from, as in ``science.uncertainty``.
    """

    def __init__(self, members: Sequence[Potential]) -> None:
        if not members:
            raise EngineError("A committee needs at least one potential; train one first.")
        self.members = list(members)

    def evaluate(self, frames: Frames) -> Results:
        """Return the mean energy (n,), forces (n, a, 3) and stress (n, 3, 3), units as in :class:`Potential`."""
        return self._over(frames)[0]

    def evaluate_std(self, frames: Frames) -> tuple[Results, Results]:
        """Return the mean and the standard deviation over the members of energy, forces and stress.

        Raises
        ------
        EngineError
            There is one member only.
        """
        self._require_two()
        return self._over(frames)

    def atomic_std(self, frames: Frames) -> Array:
        """Return (n, a) the standard deviation over the members of each atomic energy, eV.

        Raises
        ------
        EngineError
            There is one member only.
        """
        self._require_two()
        return atomic_std(np.array([m.atomic_energies(frames) for m in self.members]))

    def _require_two(self) -> None:
        if len(self.members) < 2:
            raise EngineError("The uncertainty of a committee needs two members or more; train another one.")

    def _over(self, frames: Frames) -> tuple[Results, Results]:
        parts = [self._all(frames[part]) for part in chunks(frames)] or [self._all(frames)]
        mean, std = (tuple(np.concatenate([p[kind][k] for p in parts]) for k in range(3)) for kind in range(2))
        return mean, std  # type: ignore[return-value]

    def _all(self, frames: Frames) -> tuple[Results, Results]:
        """Evaluate one block, with one neighbour list for all members of the same cutoff."""
        lists: dict[float, Neighbours] = {}
        found = []
        for member in self.members:
            if member.cutoff not in lists:
                lists[member.cutoff] = neighbour_list(frames, member.cutoff)
            found.append(member.evaluate(frames, lists[member.cutoff]))
        stacks = [np.stack([f[k] for f in found]) for k in range(3)]
        spare = min(1, len(self.members) - 1)  # of one member nobody is told the deviation
        mean, std = [s.mean(axis=0) for s in stacks], [s.std(axis=0, ddof=spare) for s in stacks]
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
