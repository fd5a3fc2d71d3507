"""Labelled frames as a SchNetPack network learns from them: targets of order one, neighbours searched once, batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.schnetpack import chunks, load_schnetpack
from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science.neighbours import neighbour_list
from campaign.science.references import offsets, reference_energies

if TYPE_CHECKING:
    import torch

#: Of a Huber loss where none is given: the part of the labels' spread from which on an error counts linearly.
DELTA = 0.1
#: Smallest spread by which a target is divided: eV/atom, eV/Å, eV/Å^3.
_SMALLEST = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-5}
#: Å, at which two atoms are one: the direction from one to the other, and with it a network's slopes, mean nothing.
_SAME_PLACE = 0.01
#: What is learnt, in the order in which it stands wherever it has no name.
PROPERTIES = ("energy", "forces", "stress")
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
        Factor of what the errors of each property cost (``science.losses.penalty``).
    kind
        Of the loss.
    deltas
        Of a Huber loss, for each property in the network's unit.
    spreads
        Root mean square of each property's labels, energies per atom, in the network's unit.
    """

    numbers: Array
    energies: Array
    scale: float
    weights: dict[str, float]
    kind: str
    deltas: dict[str, float]
    spreads: dict[str, float]


def shortest_distances(blocks: Sequence[Frames], numbers: Array, cutoff: float) -> Array:
    """Return (s, s) the shortest distance of each two of the species ``numbers``, Å; 0 where none is in the cutoff."""
    core = np.full((len(numbers), len(numbers)), np.inf)
    for block in blocks:
        for part in chunks(block):
            pairs = neighbour_list(block[part], cutoff)
            kind = np.searchsorted(numbers, block[part].numbers.ravel())
            np.minimum.at(core, (kind[pairs.idx_i], kind[pairs.idx_j]), pairs.distances(block[part].positions))
    return np.where(np.isfinite(core), core, 0.0)


def targets_of(blocks: Sequence[Frames], loss: Mapping[str, Any], counted: Sequence[Array] | None = None) -> Targets:
    """Return reference energies, scale and weights for labelled blocks.

    ``loss`` has the weights of energy, forces and stress, and may have ``kind`` and ``delta``. Where only some atoms'
    forces are ``counted``, the scale is that of those.
    """
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
    spreads = {k: spread[k] / scale for k in spread}
    deltas = {k: float(loss.get("delta", DELTA)) * spreads[k] for k in spread}
    return Targets(numbers, energies, scale, weights, str(loss.get("kind", "mse")), deltas, spreads)


def normalised_as(targets: Targets, models: Sequence[Mapping[str, Array]]) -> Targets:
    """Return the targets of a training that goes on from models: with their scale and reference energies.

    Weights and spreads stay those of the labels at hand, so that the loss is what it is for a model trained anew.

    Parameters
    ----------
    targets
        Of the labels, by themselves.
    models
        Weights as ``schnetpack_train.train`` returns them.

    Raises
    ------
    EngineError
        The models know other species than there are, or they are of different scales or reference energies.
    """
    numbers, energies, scale = (models[0][f] for f in ("reference.numbers", "reference.energies", "scale"))
    if not np.array_equal(numbers, targets.numbers):
        raise EngineError(
            f"The model to go on from knows the atomic numbers {numbers.tolist()}, and the frames have "
            f"{targets.numbers.tolist()}; write 'warm_start: false' under learn."
        )
    for other in models[1:]:
        if not all(np.array_equal(other[k], models[0][k]) for k in ("reference.energies", "scale")):
            raise EngineError("The members to go on from have different reference energies; train them one by one.")
    factor = float(scale[0]) / targets.scale
    return replace(
        targets,
        energies=np.asarray(energies),
        scale=float(scale[0]),
        weights={k: w * factor**2 for k, w in targets.weights.items()},
        deltas={k: d / factor for k, d in targets.deltas.items()},
        spreads={k: s / factor for k, s in targets.spreads.items()},
    )


def _interaction(block: Frames, numbers: Array, energies: Array) -> Array:
    """Return (n,) energies less the reference energies of the atoms, eV."""
    return np.asarray(block.energy - offsets(block, numbers, energies))


def examples_of(
    block: Frames, targets: Targets, cutoff: float, once: bool = True, counted: Array | None = None
) -> list[Tensors]:
    """Return one SchNetPack input a frame with its targets: neighbours are searched once, here.

    Every pair is there ``once`` or in both directions (``schnetpack.pairs_once``). Where only some atoms' forces are
    ``counted`` (n, a), those of the others are not in the targets.

    Raises
    ------
    EngineError
        Two atoms of a frame are at the same place.
    """
    import torch

    spk = load_schnetpack()
    p = spk.properties
    energy = _interaction(block, targets.numbers, targets.energies)
    # SchNetPack takes the volume with its sign, and nothing else from the cell: minus a left-handed one is right-handed
    cell = block.cell * np.sign(np.linalg.det(block.cell))[:, None, None]

    def real(values: Array) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32)

    out = []
    for k in range(len(block)):
        one = block[[k]]
        pairs = neighbour_list(one, cutoff)
        if len(pairs) and (closest := float(pairs.distances(one.positions).min())) < _SAME_PLACE:
            raise EngineError(
                f"Frame {one.ids[0]} has two atoms {closest:.2g} Å apart, at the same place; leave it out."
            )
        half = pairs.half if once else slice(None)
        out.append(
            {
                p.Z: torch.as_tensor(one.numbers[0].astype(np.int64)),
                p.R: real(one.positions[0]),
                p.cell: real(cell[[k]]),
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


def species_present(blocks: Sequence[Frames]) -> Array:
    """Return (frames, s) bool: which of the species of all blocks each frame has."""
    numbers = np.unique(np.concatenate([b.numbers.ravel() for b in blocks]))
    return np.concatenate([(b.numbers[:, :, None] == numbers).any(axis=1) for b in blocks])


def held_back(order: Array, count: int, present: Array) -> Array:
    """Return (count,) the frames to hold back: the first of ``order`` whose species are all in others that stay.

    A species of which every frame is held back would be in the model, which has learnt nothing of it. Where there are
    not so many frames to spare, they are simply the first.

    Parameters
    ----------
    order
        Frames that may be held back.
    count
        How many to take.
    present : (frames, s) bool
        Species of all frames.
    """
    left: Array = present.sum(axis=0)
    found: list[int] = []
    for frame in order:
        if len(found) < count and (left[present[frame]] > 1).all():
            left = left - present[frame]
            found.append(frame)
    return np.array(found, dtype=order.dtype) if len(found) == count else order[:count]


def collate(examples: Sequence[Tensors]) -> Tensors:
    """Join frames into one batch, on the device where they are; atoms are renumbered."""
    import torch

    p = load_schnetpack().properties
    batch = {k: torch.cat([e[k] for e in examples]) for k in examples[0]}
    sizes = batch[p.n_atoms]
    device = sizes.device
    if len(examples) > 1:
        first = torch.cumsum(sizes, 0) - sizes
        edges = torch.tensor([len(e[p.idx_i]) for e in examples], device=device)
        shift = first.repeat_interleave(edges)
        batch[p.idx_i] = batch[p.idx_i] + shift
        batch[p.idx_j] = batch[p.idx_j] + shift
    batch[p.idx_m] = torch.arange(len(examples), device=device).repeat_interleave(sizes)
    return batch


def require_labels(blocks: Sequence[Frames]) -> None:
    """Raise ``EngineError`` if there is no frame, or one whose energy, forces or stress are not known."""
    if not sum(len(b) for b in blocks):
        raise EngineError("There are no labelled frames to train on; label some first.")
    for block in blocks:
        for name in ("energy", "forces", "stress"):
            good = np.isfinite(getattr(block, name).reshape(len(block), -1)).all(axis=1)
            if not good.all():
                bad = block[[int(np.argmin(good))]].ids[0]
                raise EngineError(f"Frame {bad} has no finite {name}; train on labelled frames only.")


def training_set(blocks: Sequence[Frames], counted: Sequence[Array] | None = None) -> bytes:
    """Return 16 bytes that stand for the frames, their labels and which forces count, and for nothing else."""
    found = hashlib.blake2b(digest_size=16)
    for k, block in enumerate(blocks):
        some = counted[k] if counted is not None else np.ones(block.numbers.shape, dtype=bool)
        forces = np.where(some[:, :, None], block.forces, 0.0)
        for value in (block.numbers, block.positions, block.cell, block.energy, forces, block.stress, some):
            found.update(f"{value.dtype.str} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
    return found.digest()
