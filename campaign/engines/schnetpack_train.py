"""Train a SchNetPack potential on energies, forces and stresses."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.checkpoints import Checkpoint, Execution
from campaign.engines.schnetpack import load_schnetpack, network, pairs_once
from campaign.engines.schnetpack_data import (
    DELTA,
    Targets,
    Tensors,
    collate,
    examples_of,
    require_labels,
    shortest_distances,
    targets_of,
    training_set,
)
from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science.losses import penalty

if TYPE_CHECKING:
    import torch

#: What a spec may leave out. Rates and averaging were tuned for minutes on one core, see ``train``.
DEFAULTS: dict[str, Any] = {
    "model": "schnet",
    "features": 64,
    "interactions": 3,
    "cutoff": 6.0,
    "loss": {"kind": "mse", "delta": DELTA, "energy": 0.01, "forces": 0.95, "stress": 0.04},
    "epochs": 200,
    "patience": None,
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
#: The wall stands at this part of the shortest distance in training: from there on the network falls behind the true
#: repulsion, by what the wall adds (see ``schnetpack.WALL``).
_WALL_AT = 1.0
#: Raised when the same spec, seed and frames give other weights: no checkpoint from before is continued.
_VERSION = 1
OnEpoch = Callable[[dict[str, float]], None]


def _off(found: Tensors, batch: Tensors) -> torch.Tensor:
    """Return (atoms, 3) by how much the forces are off; nothing for atoms whose forces do not count."""
    off = found[load_schnetpack().properties.forces] - batch["target.forces"]
    return off * batch["counted"] if "counted" in batch else off


def loss_of(found: Tensors, batch: Tensors, targets: Targets) -> torch.Tensor:
    """Return the weighted cost of the errors, energies per atom, each over the spread of its labels.

    The forces' part is divided by all atoms, counted or not: a force counts as much in a frame of which few count.
    """
    p = load_schnetpack().properties
    off = {
        "energy": (found[p.energy] - batch["target.energy"]) / batch[p.n_atoms],
        "forces": _off(found, batch),
        "stress": found[p.stress] - batch["target.stress"],
    }
    energy, forces, stress = (
        targets.weights[k] * penalty(errors, targets.kind, targets.deltas[k]) for k, errors in off.items()
    )
    return energy + forces + stress


class _Optimisation:
    """Adam on the weights, one batch after the other, and their running average.

    A plain loop over SchNetPack's model and not its ``AtomisticTask`` in a Lightning trainer: for 64 atoms, one frame
    a batch, a step takes 8.1 ms here and 9.8 ms there (one core, 64 features, cutoff 6 Å, nothing logged).
    """

    def __init__(self, spec: Mapping[str, Any], seed: int, targets: Targets, frames: int, device: str = "cpu") -> None:
        import torch

        self.batch = max(1, min(int(spec["batch"]), frames))
        each = -(-frames // self.batch)
        self.epochs = max(1, round(spec["steps"] / each)) if spec.get("steps") else int(spec["epochs"])
        steps = max(self.epochs * each, 2)
        self.targets = targets
        self.model = network(spec, seed).to(device)
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
        loss = loss_of(self.model(batch), batch, self.targets)
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
            losses.append(float(loss_of(found, batch, self.targets).detach()))
            squares += float((_off(found, batch) ** 2).sum())
            count += 3 * int(batch["counted"].sum()) if "counted" in batch else batch["target.forces"].numel()
        return float(np.mean(losses)), squares / max(count, 1)

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "schedule")}
        return {**parts, "done": self.done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.done = int(state["done"])


class _Run:
    """A training from its first step, or from a checkpoint, to its last.

    Parameters
    ----------
    optimisation
        What takes the steps.
    examples
        All frames; those of ``order`` up to ``held`` are held back, the others trained on.
    rng
        Shuffles them; the only random numbers of a training after its first weights.
    patience
        Epochs without a better one after which it ends; None: never.
    """

    def __init__(
        self, optimisation: _Optimisation, examples: list[Tensors], rng: np.random.Generator, patience: int | None
    ) -> None:
        self._optimisation, self._examples, self._rng, self._patience = optimisation, examples, rng, patience
        self._order: Array = np.zeros(0, dtype=np.int64)  # of the epoch that is under way
        self._losses: list[float] = []  # of its steps
        self.history: list[tuple[float, float, float]] = []  # epoch, loss, force RMSE
        self.best = _Best()
        self.seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether every epoch is done, or none was better for as many as the patience."""
        epoch = len(self.history)
        stale = self._patience is not None and epoch - self.best.epoch >= self._patience
        return epoch >= self._optimisation.epochs or stale

    def go(self, kept: Array, held: Array, rate: float, on_epoch: OnEpoch, checkpoint: Checkpoint) -> None:
        """Train on ``kept`` frames; raises ``EngineError`` when the loss is no longer finite."""
        run = self._optimisation
        validation = [collate([self._examples[k]]) for k in held]
        since = time.perf_counter() - self.seconds
        for values in self.history:
            on_epoch(_values(values))
        while not self.ended:
            if not len(self._order):
                self._order = self._rng.permutation(kept)
            for part in _split(self._order, run.batch)[len(self._losses) :]:
                self._losses.append(run.step(collate([self._examples[k] for k in part])))
                if checkpoint.due():
                    self.seconds = time.perf_counter() - since
                    checkpoint.save(self.state())
            score, mse = run.validate(validation)
            epoch = len(self.history) + 1
            if not np.isfinite([*self._losses, score]).all():
                raise EngineError(
                    f"Training diverged in epoch {epoch}: the loss is not finite; lower the rate (now {rate})."
                )
            rmse = float(np.sqrt(mse)) * run.targets.scale
            self.best.see(epoch, score, rmse, run.average)
            self.history.append((float(epoch), float(np.mean(self._losses)), rmse))
            self._order, self._losses = self._order[:0], []
            on_epoch(_values(self.history[-1]))
            if checkpoint.due(epochs=1):
                self.seconds = time.perf_counter() - since
                checkpoint.save(self.state())
        self.seconds = time.perf_counter() - since

    def state(self) -> dict[str, Any]:
        """Return where it stands: tensors, numbers and text alone."""
        import torch

        return {
            "optimisation": self._optimisation.state(),
            "random": json.dumps(self._rng.bit_generator.state),
            "order": torch.as_tensor(self._order),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "history": torch.tensor(self.history, dtype=torch.float64).reshape(-1, 3),
            "best": self.best.state(),
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._optimisation.restore(state["optimisation"])
        self._rng.bit_generator.state = json.loads(state["random"])
        self._order, self._losses = state["order"].numpy().copy(), state["losses"].tolist()
        self.history = [(e, loss, rmse) for e, loss, rmse in state["history"].tolist()]
        self.best.restore(state["best"])
        self.seconds = float(state["seconds"])


def train(
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    on_epoch: OnEpoch | None = None,
    counted: Sequence[Array] | None = None,
    execution: Execution | None = None,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Train one model.

    Parameters
    ----------
    frames
        Labelled blocks; they may differ in their number of atoms.
    spec
        ``model``, ``features``, ``interactions``, ``cutoff`` (Å) and ``l_max`` (see ``schnetpack.network``), ``loss``
        {kind, delta, energy, forces, stress}, ``epochs``, ``patience``, ``batch`` (frames), ``rate`` and ``wall`` (see
        ``schnetpack.Potential``; false leaves the bare network, for comparing selections by the stability of their
        models). Missing keys are those of ``DEFAULTS``. The loss is a sum of what the errors of each kind cost
        (``science.losses.penalty``), each over the spread (RMS) of its labels, with these weights; ``delta`` is a part
        of the spread. ``steps``, where given, are steps of the optimiser, about, instead of ``epochs``. With
        ``patience``, training ends after so many epochs of which none was better on the frames held back.
    seed
        Decides the first weights, the held-back frames and the order. Same seed, same number of threads and same
        hardware give the same weights, wherever the training was killed and continued.
    on_epoch
        Called after each epoch with ``epoch`` (from 1), ``loss`` and ``force_rmse`` (held-back frames, eV/Å). A
        training that is continued first calls it for the epochs that it has behind it.
    counted
        For each block, (n, a) bool: the atoms whose forces count. The other forces have no influence on the weights;
        energies and stresses of all frames do. None counts all.
    execution
        Where it keeps its checkpoint, and the device.

    Returns
    -------
    weights
        Arrays for ``schnetpack.Potential``: those of the best epoch, averaged over steps.
    summary
        ``epochs`` done, ``best_epoch``, ``loss``, ``force_rmse`` (held back, eV/Å), ``train_frames``, ``held_back``,
        ``seconds``, ``species``, ``elements_reference``, ``training_set`` (its hash); ``continued`` from so many
        epochs, and ``note``, where there is something to say of a checkpoint.

    Raises
    ------
    EngineError
        No frames, a frame without labels, no such device, or a loss that is no longer finite.
    """
    spec, execution = _resolved(spec), execution or Execution()
    blocks = [b for b in frames if len(b)]
    some = [c for b, c in zip(frames, counted, strict=True) if len(b)] if counted is not None else None
    require_labels(blocks)
    _require_device(execution.device)
    start = time.perf_counter()
    targets, cutoff = targets_of(blocks, spec["loss"], some), float(spec["cutoff"])
    examples = [
        {key: value.to(execution.device) for key, value in example.items()}
        for k, b in enumerate(blocks)
        for example in examples_of(b, targets, cutoff, pairs_once(spec), some[k] if some else None)
    ]
    rng = np.random.default_rng([seed & (2**63 - 1), 0x7261696E])
    order = rng.permutation(len(examples))
    held = max(1, round(_HELD_BACK * len(examples)))
    kept = order[held:] if len(examples) > 1 else order
    run = _Run(_Optimisation(spec, seed, targets, len(kept), execution.device), examples, rng, spec["patience"])
    learnt = training_set(blocks, some)
    checkpoint = Checkpoint(execution.checkpoint, _identity(spec, seed, learnt))
    state, note = checkpoint.load()
    if state is not None:
        run.restore(state)
    behind = len(run.history)
    prepared = time.perf_counter() - start
    run.go(kept, order[:held], spec["rate"], on_epoch or (lambda values: None), checkpoint)
    weights = run.best.weights | {
        "reference.numbers": targets.numbers,
        "reference.energies": targets.energies,
        "scale": np.array([targets.scale]),
        "training_set": np.frombuffer(learnt, dtype=np.uint8),
    }
    if spec["wall"]:
        weights["core"] = _WALL_AT * shortest_distances(blocks, targets.numbers, cutoff)
    summary = {
        "epochs": len(run.history),
        "best_epoch": run.best.epoch,
        "loss": run.best.score,
        "force_rmse": run.best.force_rmse,
        "train_frames": len(kept),
        "held_back": held,
        "seconds": prepared + run.seconds,
        "species": [int(z) for z in targets.numbers],
        "elements_reference": {int(z): float(e) for z, e in zip(targets.numbers, targets.energies, strict=True)},
        "training_set": learnt.hex(),
    }
    return weights, summary | ({"continued": behind} if state is not None else {}) | ({"note": note} if note else {})


def _resolved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with the defaults of what it leaves out, also within its loss."""
    return DEFAULTS | dict(spec) | {"loss": DEFAULTS["loss"] | dict(spec.get("loss", {}))}


def _identity(spec: Mapping[str, Any], seed: int, learnt: bytes) -> str:
    """Return what names a training: everything that decides its weights, the programs among it."""
    programs = [_VERSION, version("torch"), version("schnetpack")]
    text = json.dumps([programs, spec, seed, learnt.hex()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _require_device(device: str) -> None:
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise EngineError(
            f"train.device is {device}, and this worker sees no GPU; write 'device: cpu', or run on a site whose "
            "workers have GPUs, with a torch that was installed for them."
        )


def _values(epoch: tuple[float, float, float]) -> dict[str, float]:
    return {"epoch": int(epoch[0]), "loss": epoch[1], "force_rmse": epoch[2]}


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
            self.weights = {k: v.cpu().numpy().copy() for k, v in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        import torch

        weights = {k: torch.from_numpy(v) for k, v in self.weights.items()}
        return {"epoch": self.epoch, "score": self.score, "force_rmse": self.force_rmse, "weights": weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.score, self.force_rmse = state["epoch"], state["score"], state["force_rmse"]
        self.weights = {k: v.numpy() for k, v in state["weights"].items()}
