"""Train a SchNetPack potential on energies, forces and stresses."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.schnetpack import chunks, load_schnetpack, network
from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science.neighbours import neighbour_list
from campaign.science.references import offsets, reference_energies

if TYPE_CHECKING:
    import torch

#: What a spec may leave out. Rates and averaging were tuned for minutes on one core, see ``train``.
DEFAULTS: dict[str, Any] = {
    "features": 64,
    "interactions": 3,
    "cutoff": 6.0,
    "loss": {"energy": 0.01, "forces": 0.95, "stress": 0.04},
    "epochs": 200,
    "batch": 1,
    "rate": 5e-3,
    "wall": True,
}
#: Part of the frames held back to choose the best epoch.
_HELD_BACK = 0.1
#: Decay of the running average of the weights, a step.
_AVERAGE = 0.99
#: Part of the steps over which the rate rises.
_WARM_UP = 0.1
#: The wall stands at this part of the shortest distance in training: frames never seen come a little closer than
#: that and are still predicted well, while the holes of the network lie deeper.
_WALL_AT = 0.85
#: Smallest spread by which a target is divided: eV/atom, eV/Å, eV/Å^3.
_SMALLEST = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-5}
Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Targets:
    """How labels become numbers of order one.

    Attributes
    ----------
    numbers, energies
        (s,) species, and the reference energy of each, eV.
    scale
        eV (and eV/Å, eV/Å^3): the root mean square force; the network predicts energy, forces and stress over it.
    weights
        Factor of the squared error of each property.
    """

    numbers: Array
    energies: Array
    scale: float
    weights: dict[str, float]


def shortest_distances(blocks: Sequence[Frames], numbers: Array, cutoff: float) -> Array:
    """Return (s, s) the shortest distance of each two of the species ``numbers``, Å; 0 where none is in the cutoff."""
    core = np.full((len(numbers), len(numbers)), np.inf)
    for block in blocks:
        for part in chunks(block):
            pairs = neighbour_list(block[part], cutoff)
            kind = np.searchsorted(numbers, block[part].numbers.ravel())
            np.minimum.at(core, (kind[pairs.idx_i], kind[pairs.idx_j]), pairs.distances(block[part].positions))
    return np.where(np.isfinite(core), core, 0.0)


def _targets(blocks: Sequence[Frames], loss: Mapping[str, float], counted: Sequence[Array] | None = None) -> Targets:
    numbers, energies = reference_energies(blocks)
    atoms = [b.forces if counted is None else b.forces[counted[k]] for k, b in enumerate(blocks)]
    forces = np.concatenate([f.ravel() for f in atoms])
    stress = np.concatenate([b.stress.ravel() for b in blocks])
    left = np.concatenate([_interaction(b, numbers, energies) / b.n_atoms for b in blocks])
    scale = max(float(np.sqrt(np.mean(forces**2))) if len(forces) else 0.0, _SMALLEST["forces"])
    spread = {
        "energy": max(float(np.sqrt(np.mean(left**2))), _SMALLEST["energy"]),
        "forces": scale,
        "stress": max(float(np.sqrt(np.mean(stress**2))), _SMALLEST["stress"]),
    }
    weights = {k: float(loss[k]) * (scale / spread[k]) ** 2 for k in spread}
    return Targets(numbers, energies, scale, weights)


def _interaction(block: Frames, numbers: Array, energies: Array) -> Array:
    """Return (n,) energies less the reference energies of the atoms, eV."""
    return np.asarray(block.energy - offsets(block, numbers, energies))


def _examples(block: Frames, targets: Targets, cutoff: float, counted: Array | None = None) -> list[Tensors]:
    """Return one SchNetPack input a frame with its targets: neighbours are searched once, here.

    Where only some atoms' forces are ``counted`` (n, a), those of the others are not in the targets.
    """
    import torch

    spk = load_schnetpack()
    p = spk.properties
    energy = _interaction(block, targets.numbers, targets.energies)

    def real(values: Array) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32)

    out = []
    for k in range(len(block)):
        one = block[[k]]
        pairs = neighbour_list(one, cutoff)
        half = pairs.half
        out.append(
            {
                p.Z: torch.as_tensor(one.numbers[0].astype(np.int64)),
                p.R: real(one.positions[0]),
                p.cell: real(one.cell),
                p.idx_i: torch.as_tensor(pairs.idx_i[half]),
                p.idx_j: torch.as_tensor(pairs.idx_j[half]),
                p.offsets: real(pairs.offsets[half]),
                p.n_atoms: torch.tensor([block.n_atoms]),
                "target.energy": real(energy[[k]] / targets.scale),
                "target.forces": real(one.forces[0] / targets.scale),
                "target.stress": real(one.stress / targets.scale),
            }
        )
        if counted is not None:
            some = torch.as_tensor(counted[k])[:, None]
            out[-1]["counted"] = some.to(torch.float32)
            out[-1]["target.forces"] = torch.where(some, out[-1]["target.forces"], 0.0)
    return out


def _collate(examples: Sequence[Tensors]) -> Tensors:
    """Join frames into one batch; atoms are renumbered."""
    import torch

    p = load_schnetpack().properties
    batch = {k: torch.cat([e[k] for e in examples]) for k in examples[0]}
    sizes = batch[p.n_atoms]
    if len(examples) > 1:
        first = torch.cumsum(sizes, 0) - sizes
        edges = torch.tensor([len(e[p.idx_i]) for e in examples])
        shift = first.repeat_interleave(edges)
        batch[p.idx_i] = batch[p.idx_i] + shift
        batch[p.idx_j] = batch[p.idx_j] + shift
    batch[p.idx_m] = torch.arange(len(examples)).repeat_interleave(sizes)
    return batch


def _off(found: Tensors, batch: Tensors) -> torch.Tensor:
    """Return (atoms, 3) by how much the forces are off; nothing for atoms whose forces do not count."""
    off = found[load_schnetpack().properties.forces] - batch["target.forces"]
    return off * batch["counted"] if "counted" in batch else off


def _loss(found: Tensors, batch: Tensors, weights: Mapping[str, float]) -> torch.Tensor:
    """Return the weighted squared errors, energies per atom, each over the spread of its labels.

    The forces' part is divided by all atoms, counted or not: a force counts as much in a frame of which few count.
    """
    import torch

    p = load_schnetpack().properties
    atoms = batch[p.n_atoms]
    energy = torch.mean(((found[p.energy] - batch["target.energy"]) / atoms) ** 2)
    forces = torch.mean(_off(found, batch) ** 2)
    stress = torch.mean((found[p.stress] - batch["target.stress"]) ** 2)
    return weights["energy"] * energy + weights["forces"] * forces + weights["stress"] * stress


def _check(blocks: Sequence[Frames]) -> None:
    if not sum(len(b) for b in blocks):
        raise EngineError("There are no labelled frames to train on; label some first.")
    for block in blocks:
        for name in ("energy", "forces", "stress"):
            good = np.isfinite(getattr(block, name).reshape(len(block), -1)).all(axis=1)
            if not good.all():
                bad = block[[int(np.argmin(good))]].ids[0]
                raise EngineError(f"Frame {bad} has no finite {name}; train on labelled frames only.")


class _Training:
    """One run of Adam over the training frames.

    A plain loop over SchNetPack's model and not its ``AtomisticTask`` in a Lightning trainer: for 64 atoms, one frame
    a batch, a step takes 8.1 ms here and 9.8 ms there (one core, 64 features, cutoff 6 Å, nothing logged).
    """

    def __init__(self, spec: Mapping[str, Any], seed: int, targets: Targets, frames: int) -> None:
        import torch

        self.batch = max(1, min(int(spec["batch"]), frames))
        each = -(-frames // self.batch)
        self.epochs = max(1, round(spec["steps"] / each)) if spec.get("steps") else int(spec["epochs"])
        steps = max(self.epochs * each, 2)
        self.weights = targets.weights
        self.model = network(spec, seed)
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=spec["rate"], fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=spec["rate"],
            total_steps=steps,
            pct_start=2.0 * _WARM_UP if steps == round(1.0 / _WARM_UP) else _WARM_UP,  # else torch divides by zero
            div_factor=10.0,
            final_div_factor=1e3,
        )
        self.decay = _AVERAGE
        self.done = 0

    def step(self, batch: Tensors) -> float:
        """Take one step; return the loss before it."""
        import torch

        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = _loss(self.model(batch), batch, self.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        with torch.no_grad():
            decay = min(self.decay, self.done / (self.done + 9.0))  # young averages forget faster
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for mean, now in pairs:
                mean.lerp_(now, 1.0 - decay)
        return float(loss.detach())

    def validate(self, batches: Sequence[Tensors]) -> tuple[float, float]:
        """Return (loss, mean squared force error) of the averaged weights."""
        self.average.eval()
        losses, squares, count = [], 0.0, 0
        for batch in batches:
            found = self.average(dict(batch))
            losses.append(float(_loss(found, batch, self.weights).detach()))
            squares += float((_off(found, batch) ** 2).sum())
            count += 3 * int(batch["counted"].sum()) if "counted" in batch else batch["target.forces"].numel()
        return float(np.mean(losses)), squares / max(count, 1)


def train(
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    counted: Sequence[Array] | None = None,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Train one model.

    Parameters
    ----------
    frames
        Labelled blocks; they may differ in their number of atoms.
    spec
        ``features``, ``interactions``, ``cutoff`` (Å), ``loss`` {energy, forces, stress}, ``epochs``, ``batch``
        (frames), ``rate`` and ``wall`` (see ``schnetpack.Potential``; false leaves the bare network, for comparing
        selections by the stability of their models). Missing keys are those of ``DEFAULTS``. The loss is a sum of
        squared errors, each over the mean square of its labels, with these weights. ``steps``, where given, are steps
        of the optimiser, about, instead of ``epochs``.
    seed
        Decides the first weights, the held-back frames and the order. Same seed, same number of threads and same
        hardware give the same weights.
    on_epoch
        Called after each epoch with ``epoch`` (from 1), ``loss`` and ``force_rmse`` (held-back frames, eV/Å).
    counted
        For each block, (n, a) bool: the atoms whose forces count. The other forces have no influence on the weights;
        energies and stresses of all frames do. None counts all.

    Returns
    -------
    weights
        Arrays for ``schnetpack.Potential``: those of the best epoch, averaged over steps.
    summary
        ``epochs``, ``best_epoch``, ``loss``, ``force_rmse`` (held back, eV/Å), ``train_frames``, ``held_back``,
        ``seconds``, ``species``, ``elements_reference``.

    Raises
    ------
    EngineError
        No frames, a frame without labels, or a loss that is no longer finite.
    """
    spec = DEFAULTS | dict(spec)
    blocks = [b for b in frames if len(b)]
    some = [c for b, c in zip(frames, counted, strict=True) if len(b)] if counted is not None else None
    _check(blocks)
    start = time.perf_counter()
    targets, cutoff = _targets(blocks, spec["loss"], some), float(spec["cutoff"])
    examples = [e for k, b in enumerate(blocks) for e in _examples(b, targets, cutoff, some[k] if some else None)]
    rng = np.random.default_rng([seed & (2**63 - 1), 0x7261696E])
    order = rng.permutation(len(examples))
    held = max(1, round(_HELD_BACK * len(examples)))
    kept = order[held:] if len(examples) > 1 else order
    run = _Training(spec, seed, targets, len(kept))
    validation = [_collate([examples[k]]) for k in order[:held]]
    best = _Best()
    for epoch in range(1, run.epochs + 1):
        shuffled = rng.permutation(kept)
        losses = [run.step(_collate([examples[k] for k in part])) for part in _split(shuffled, run.batch)]
        score, mse = run.validate(validation)
        if not np.isfinite([*losses, score]).all():
            raise EngineError(
                f"Training diverged in epoch {epoch}: the loss is not finite; lower the rate (now {spec['rate']})."
            )
        rmse = float(np.sqrt(mse)) * targets.scale
        best.see(epoch, score, rmse, run.average)
        if on_epoch is not None:
            on_epoch({"epoch": epoch, "loss": float(np.mean(losses)), "force_rmse": rmse})
    weights = best.weights | {
        "reference.numbers": targets.numbers,
        "reference.energies": targets.energies,
        "scale": np.array([targets.scale]),
    }
    if spec["wall"]:
        weights["core"] = _WALL_AT * shortest_distances(blocks, targets.numbers, cutoff)
    summary = {
        "epochs": run.epochs,
        "best_epoch": best.epoch,
        "loss": best.score,
        "force_rmse": best.force_rmse,
        "train_frames": len(kept),
        "held_back": held,
        "seconds": time.perf_counter() - start,
        "species": [int(z) for z in targets.numbers],
        "elements_reference": {int(z): float(e) for z, e in zip(targets.numbers, targets.energies, strict=True)},
    }
    return weights, summary


def _split(order: Array, batch: int) -> list[Array]:
    """Return the parts of an epoch, all but the last of the same length."""
    return [order[s : s + batch] for s in range(0, len(order), batch)]


class _Best:
    """The epoch with the smallest held-back loss."""

    def __init__(self) -> None:
        self.epoch, self.score, self.force_rmse = 0, float("inf"), float("nan")
        self.weights: dict[str, Array] = {}

    def see(self, epoch: int, score: float, force_rmse: float, model: Any) -> None:
        if score < self.score:
            self.epoch, self.score, self.force_rmse = epoch, score, force_rmse
            self.weights = {k: v.numpy().copy() for k, v in model.state_dict().items()}
