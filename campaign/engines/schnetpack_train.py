"""Train SchNetPack potentials on energies, forces and stresses: one, or the members of an ensemble together."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from campaign.engines.checkpoints import Checkpoint, Execution, Trained, WarmStart
from campaign.engines.devices import require_device
from campaign.engines.schnetpack import network, pairs_once
from campaign.engines.schnetpack_data import (
    DELTA,
    Targets,
    Tensors,
    examples_of,
    held_back,
    normalised_as,
    require_labels,
    shortest_distances,
    species_present,
    targets_of,
    training_set,
)
from campaign.engines.schnetpack_steps import Alone, Optimisation
from campaign.errors import EngineError
from campaign.frames import Array, Frames

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
#: The wall stands at this part of the shortest distance in training: from there on the network falls behind the true
#: repulsion, by what the wall adds (see ``schnetpack.WALL``).
_WALL_AT = 1.0
#: Raised when the same spec, seed and frames give other weights: no checkpoint from before is continued.
_VERSION = 4
#: Said of a training that did not fit into the device's memory.
_HALVED = (
    "The GPU's memory was too small for {} frames a step: each step was taken in two halves, with the same gradient; "
    "write a smaller batch to spare it that."
)
OnEpoch = Callable[[dict[str, float]], None]


class _Member:
    """Where the training of one model stands: what it learns from next, and what it was at its best.

    Parameters
    ----------
    seed
        Decides the held-back frames and the order of the others.
    present : (frames, s) bool
        Species of each frame.
    patience
        Epochs without a better one after which it ends; None: never.
    fresh : (frames,) bool
        Those that it has not seen before; None: all. Of these it holds back, half of them at most.
    """

    def __init__(self, seed: int, present: Array, patience: int | None, fresh: Array | None = None) -> None:
        frames = len(present)
        self._rng = np.random.default_rng([seed & (2**63 - 1), 0x7261696E])
        order = self._rng.permutation(frames)
        new = order if fresh is None else order[fresh[order]]
        most = len(new) if fresh is None else len(new) // 2
        self.held = held_back(new, max(1, min(most, round(_HELD_BACK * frames))), present)
        # a single one is learnt from and judged by
        self.kept = order if len(new) == 1 else order[~np.isin(order, self.held)]
        self._patience = patience
        self.order: Array = np.zeros(0, dtype=np.int64)  # of the epoch that is under way
        self.losses: list[float] = []  # of its steps
        self.history: list[tuple[float, float, float]] = []  # epoch, loss, force RMSE
        self.first = 1  # epoch before which none counts
        self.best_epoch, self.best_score, self.best_rmse = 0, float("inf"), float("nan")
        self.best: dict[str, Array] = {}

    def parts(self, batch: int) -> list[Array]:
        """Return the steps of the epoch that is under way, all but the last of ``batch`` frames."""
        if not len(self.order):
            self.order = self._rng.permutation(self.kept)
        return [self.order[s : s + batch] for s in range(0, len(self.order), batch)]

    @property
    def stale(self) -> bool:
        """Whether no epoch was better for as many as the patience."""
        return self._patience is not None and len(self.history) - max(self.best_epoch, self.first) >= self._patience

    def close(self, score: float, force_rmse: float, weights: Callable[[], dict[str, Array]]) -> None:
        """End an epoch; after the last one that counts, nothing is noted any more."""
        if not self.stale:
            epoch = len(self.history) + 1
            if epoch >= self.first and score < self.best_score:
                self.best_epoch, self.best_score, self.best_rmse, self.best = epoch, score, force_rmse, weights()
            self.history.append((float(epoch), float(np.mean(self.losses)), force_rmse))
        self.order, self.losses = self.order[:0], []

    def state(self) -> dict[str, Any]:
        """Return where it stands: tensors, numbers and text alone."""
        import torch

        return {
            "random": json.dumps(self._rng.bit_generator.state),
            "order": torch.as_tensor(self.order),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "history": torch.tensor(self.history, dtype=torch.float64).reshape(-1, 3),
            "best": [self.best_epoch, self.best_score, self.best_rmse],
            "weights": {k: torch.from_numpy(v) for k, v in self.best.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._rng.bit_generator.state = json.loads(state["random"])
        self.order, self.losses = state["order"].numpy().copy(), state["losses"].tolist()
        self.history = [(e, loss, rmse) for e, loss, rmse in state["history"].tolist()]
        self.best_epoch, self.best_score, self.best_rmse = state["best"]
        self.best = {k: v.numpy() for k, v in state["weights"].items()}


class _Run:
    """A training from its first step, or from a checkpoint, to its last.

    Parameters
    ----------
    optimisation
        What takes the steps, of one model or of several at once.
    members
        These models.
    examples
        All frames.
    """

    def __init__(self, optimisation: Optimisation, members: list[_Member], examples: list[Tensors]) -> None:
        self._optimisation, self.members, self._examples = optimisation, members, examples
        self.seconds = 0.0

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return max(len(m.history) for m in self.members)

    @property
    def _ended(self) -> bool:
        return self.epochs >= self._optimisation.epochs or all(m.stale for m in self.members)

    def go(self, rate: float, on_epoch: OnEpoch, checkpoint: Checkpoint) -> None:
        """Train; raises ``EngineError`` when a loss is no longer finite."""
        run = self._optimisation
        held = [[self._examples[k] for k in m.held] for m in self.members]
        since = time.perf_counter() - self.seconds

        def save() -> None:
            self.seconds = time.perf_counter() - since
            checkpoint.save(self.state())

        for epoch in range(1, self.epochs + 1):
            on_epoch(self._values(epoch))
        while not self._ended:
            parts = [m.parts(run.batch) for m in self.members]
            for k in range(len(self.members[0].losses), len(parts[0])):
                found = run.step([[self._examples[i] for i in part[k]] for part in parts])
                for member, loss in zip(self.members, found, strict=True):
                    member.losses.append(loss)
                if checkpoint.due():
                    save()
            self._end_epoch(rate, run.validate(held))
            on_epoch(self._values(self.epochs))
            if checkpoint.due(epochs=1):
                save()
        self.seconds = time.perf_counter() - since

    def _end_epoch(self, rate: float, found: list[tuple[float, float]]) -> None:
        for k, (member, (score, square)) in enumerate(zip(self.members, found, strict=True)):
            if not np.isfinite([*member.losses, score]).all() and not member.stale:
                who = f" of member {k}" if len(self.members) > 1 else ""
                raise EngineError(
                    f"Training{who} diverged in epoch {len(member.history) + 1}: the loss is not finite; lower the "
                    f"rate (now {rate})."
                )
            rmse = float(np.sqrt(square)) * self._optimisation.targets.scale
            member.close(score, rmse, lambda k=k: self._optimisation.weights()[k])  # type: ignore[misc]

    def _values(self, epoch: int) -> dict[str, float]:
        """Return an epoch's line: the mean over the models that had it."""
        rows = [m.history[epoch - 1] for m in self.members if len(m.history) >= epoch]
        return _line(np.mean(rows, axis=0))

    def state(self) -> dict[str, Any]:
        """Return where it stands: tensors, numbers and text alone."""
        members = [member.state() for member in self.members]
        return {"optimisation": self._optimisation.state(), "members": members, "seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._optimisation.restore(state["optimisation"])
        for member, kept in zip(self.members, state["members"], strict=True):
            member.restore(kept)
        self.seconds = float(state["seconds"])


def train(
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    on_epoch: OnEpoch | None = None,
    counted: Sequence[Array] | None = None,
    execution: Execution | None = None,
    ranks: Alone | None = None,
    start: WarmStart | None = None,
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
    ranks
        The processes that train it together, each of which calls this with the same arguments: each takes a part of
        every batch, the first writes the checkpoint, and all get the result.
    start
        The model that it goes on from, in place of random weights. Its weights alone are taken: the optimiser's
        averages and the schedule of the rate begin anew, and the rate rises again over the first tenth of the steps.
        The best epoch is one of the second half, when it has fallen.

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
        No frames, a frame without labels, no such device, a loss that is no longer finite, or a model to go on from
        that is of another kind.
    """
    (found,) = train_ensemble(frames, spec, [seed], on_epoch, counted, execution, ranks, start)
    return found.weights, found.summary


def train_ensemble(
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seeds: Sequence[int],
    on_epoch: OnEpoch | None = None,
    counted: Sequence[Array] | None = None,
    execution: Execution | None = None,
    ranks: Alone | None = None,
    start: WarmStart | None = None,
) -> list[Trained]:
    """Train one model for each of ``seeds``, all in the same steps on one device (``schnetpack_together``).

    The models are those of :func:`train` but for rounding. The parameters are the same; ``on_epoch`` gets the means
    over the models.

    Raises
    ------
    EngineError
        As :func:`train`.
    """
    spec, execution, ranks = _resolved(spec), execution or Execution(), ranks or Alone()
    blocks = [b for b in frames if len(b)]
    some = [c for b, c in zip(frames, counted, strict=True) if len(b)] if counted is not None else None
    require_labels(blocks)
    device = _place(execution.device, ranks)
    began = time.perf_counter()
    targets, cutoff = targets_of(blocks, spec["loss"], some), float(spec["cutoff"])
    fresh = None
    if start is not None:
        targets = normalised_as(targets, start.weights)
        fresh = np.concatenate(list(start.fresh)).astype(bool)
    examples = [
        {key: value.to(device) for key, value in example.items()}
        for k, b in enumerate(blocks)
        for example in examples_of(b, targets, cutoff, pairs_once(spec), some[k] if some else None)
    ]
    present = species_present(blocks)
    members = [_Member(seed, present, spec["patience"], fresh) for seed in seeds]
    optimisation = _optimisation(spec, _networks(spec, seeds, start), targets, len(members[0].kept), device, ranks)
    if start is not None:
        # the rate has to fall first: what it knew before makes a model of any epoch look good on a few frames
        for member in members:
            member.first = optimisation.epochs // 2 + 1
    run = _Run(optimisation, members, examples)
    learnt = training_set(blocks, some)
    checkpoint = Checkpoint(execution.checkpoint, _identity(spec, seeds, learnt, start))
    state, note = _load(checkpoint, ranks)
    if state is not None:
        run.restore(state)
    more: dict[str, Any] = {} if state is None else {"continued": run.epochs}
    prepared = time.perf_counter() - began
    run.go(spec["rate"], on_epoch or (lambda values: None), checkpoint if ranks.rank == 0 else Checkpoint(None, ""))
    if optimisation.halves:
        note = f"{note} {_HALVED.format(optimisation.batch)}".strip()
    seconds = (prepared + run.seconds) / len(seeds)
    more |= {"seconds": seconds} | ({"note": note} if note else {})
    common = _common(blocks, spec, targets, learnt)
    return [
        Trained(m.best | common, _summary(m, targets, learnt) | more, [_line(np.array(h)) for h in m.history])
        for m in members
    ]


def _networks(spec: Mapping[str, Any], seeds: Sequence[int], start: WarmStart | None) -> list[Any]:
    """Return the networks with their first weights: random ones, or those of the models to go on from."""
    import torch

    found = [network(spec, seed) for seed in seeds]
    for model, weights in zip(found, start.weights, strict=True) if start is not None else ():
        try:
            model.load_state_dict({k: torch.from_numpy(np.array(weights[k])) for k in model.state_dict()})
        except (KeyError, RuntimeError) as error:
            cause = str(error).split("\n")[0]
            raise EngineError(f"The model to go on from is of another kind than this one ({cause}).") from error
    return found


def _optimisation(
    spec: Mapping[str, Any], networks: Sequence[Any], targets: Targets, frames: int, device: str, ranks: Alone
) -> Optimisation:
    """Return what takes the steps of one model, or of several."""
    if len(networks) == 1:
        return Optimisation(spec, networks, targets, frames, device, ranks)
    from campaign.engines.schnetpack_together import Stacked

    return Stacked(spec, networks, targets, frames, device, ranks)


def _load(checkpoint: Checkpoint, ranks: Alone) -> tuple[dict[str, Any] | None, str]:
    """Read the checkpoint: the first process before the others, as it may put away what is not its own."""
    found: tuple[dict[str, Any] | None, str] = (None, "")
    for turn in (ranks.rank == 0, ranks.rank != 0):
        if turn:
            found = checkpoint.load()
        ranks.wait()
    return found


def _common(blocks: Sequence[Frames], spec: Mapping[str, Any], targets: Targets, learnt: bytes) -> dict[str, Array]:
    """Return what is beside the weights in every model of these frames."""
    found = {
        "reference.numbers": targets.numbers,
        "reference.energies": targets.energies,
        "scale": np.array([targets.scale]),
        "training_set": np.frombuffer(learnt, dtype=np.uint8),
    }
    if spec["wall"]:
        found["core"] = _WALL_AT * shortest_distances(blocks, targets.numbers, float(spec["cutoff"]))
    return found


def _summary(member: _Member, targets: Targets, learnt: bytes) -> dict[str, Any]:
    return {
        "epochs": len(member.history),
        "best_epoch": member.best_epoch,
        "loss": member.best_score,
        "force_rmse": member.best_rmse,
        "train_frames": len(member.kept),
        "held_back": len(member.held),
        "species": [int(z) for z in targets.numbers],
        "elements_reference": {int(z): float(e) for z, e in zip(targets.numbers, targets.energies, strict=True)},
        "training_set": learnt.hex(),
    }


def _resolved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with the defaults of what it leaves out, also within its loss."""
    return DEFAULTS | dict(spec) | {"loss": DEFAULTS["loss"] | dict(spec.get("loss", {}))}


def _identity(spec: Mapping[str, Any], seeds: Sequence[int], learnt: bytes, start: WarmStart | None = None) -> str:
    """Return what names a training: everything that decides its weights, the programs among it."""
    programs = [_VERSION, version("torch"), version("schnetpack")]
    decides = [programs, spec, list(seeds), learnt.hex(), *([start.digest()] if start is not None else [])]
    return hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=16).hexdigest()


def _place(device: str, ranks: Alone) -> str:
    """Return the device of this process: the GPUs of a machine are dealt out to its processes."""
    import torch

    require_device(device, "train.device")
    return device if device == "cpu" else f"cuda:{ranks.local % torch.cuda.device_count()}"


def _line(values: Array) -> dict[str, float]:
    return {"epoch": int(values[0]), "loss": float(values[1]), "force_rmse": float(values[2])}
