"""Steps of the optimiser on a SchNetPack network: loss, gradient, running average of the weights.

A plain loop over SchNetPack's model and not its ``AtomisticTask`` in a Lightning trainer: for 64 atoms, one frame a
batch, a step takes 8.1 ms here and 9.8 ms there (one core, 64 features, cutoff 6 Å, nothing logged).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from campaign.engines.schnetpack import load_schnetpack
from campaign.engines.schnetpack_data import PROPERTIES, Targets, Tensors, collate
from campaign.errors import EngineError
from campaign.science.losses import fourth_power, penalty

if TYPE_CHECKING:
    import torch

#: Decay of the running average of the weights, and of the mean fourth powers of an ``l4`` loss, a step.
_AVERAGE = 0.99
#: Part of the steps over which the rate rises.
_WARM_UP = 0.1
#: Largest norm of a gradient; a larger one is shortened to it.
STEEPEST = 1.0
Batch = list[Tensors]


class Alone:
    """The processes that train one model together where there is but this one (``training_ranks`` has more)."""

    rank, size = 0, 1
    #: number of this process on its machine
    local = 0

    def add(self, values: torch.Tensor) -> None:
        """Add up what each process has, in place."""

    def wait(self) -> None:
        """Wait for the others."""


class Optimisation:
    """Adam on the weights, one batch after the other, and their running average.

    Parameters
    ----------
    spec
        Of the network (``schnetpack.network``).
    networks
        With their first weights: one here, see ``schnetpack_together``.
    targets
        What is learnt.
    frames
        Frames to train on.
    device
        ``cpu`` or a CUDA device.
    ranks
        The processes that each take a part of every batch.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        networks: Sequence[Any],
        targets: Targets,
        frames: int,
        device: str = "cpu",
        ranks: Alone | None = None,
    ) -> None:
        import torch

        self.batch = max(1, min(int(spec["batch"]), frames))
        each = -(-frames // self.batch)
        self.epochs = max(1, round(spec["steps"] / each)) if spec.get("steps") else int(spec["epochs"])
        steps = max(self.epochs * each, 2)
        self.targets, self.ranks = targets, ranks or Alone()
        self.model = self._network(spec, networks).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.model.train()
        self._weights, self._means = list(self.model.parameters()), list(self.average.parameters())
        self.optimizer = torch.optim.Adam(self._weights, lr=spec["rate"], fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=spec["rate"],
            total_steps=steps,
            pct_start=2.0 * _WARM_UP if steps == round(1.0 / _WARM_UP) else _WARM_UP,  # else torch divides by zero
            div_factor=10.0,
            final_div_factor=1e3,
        )
        #: (3, models) of energy, forces and stress: mean fourth power of the errors, at first as large as the labels
        self.fourth = torch.tensor([[targets.spreads[k] ** 4] * len(networks) for k in PROPERTIES], device=device)
        self.done = 0
        #: whether each step is taken in two halves, for want of the device's memory
        self.halves = False

    def _network(self, spec: Mapping[str, Any], networks: Sequence[Any]) -> Any:
        return networks[0]

    def step(self, batches: Sequence[Batch]) -> list[float]:
        """Take one step on a batch of each model; return the losses before it.

        Raises
        ------
        EngineError
            The device's memory is too small for half a batch.
        """
        import torch

        losses, fourth = self._gradients(batches)
        self._shorten()
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        decay = min(_AVERAGE, self.done / (self.done + 9.0))  # young averages forget faster
        with torch.no_grad():
            torch._foreach_lerp_(self._means, self._weights, 1.0 - decay)
            self.fourth.lerp_(fourth, 1.0 - decay)
        return losses

    def _gradients(self, batches: Sequence[Batch]) -> tuple[list[float], torch.Tensor]:
        """Leave the gradient at the weights; return the losses and the mean fourth powers of the errors.

        Out of memory, the step is taken in two halves from there on: the gradient is their sum.
        """
        import torch

        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._sum(batches)
            except torch.cuda.OutOfMemoryError as error:
                if self.halves or self.ranks.size > 1 or len(batches[0]) < 2:
                    half = "half a batch of " if self.halves else ""
                    raise EngineError(
                        f"The memory of the GPU is too small for {half}{self.batch} frames a step; write a smaller "
                        "train.batch, fewer features, or device: cpu."
                    ) from error
                self.halves = True
            torch.cuda.empty_cache()

    def _sum(self, batches: Sequence[Batch]) -> tuple[list[float], torch.Tensor]:
        """Add up gradients, losses and fourth powers over the parts of a step, and over the processes."""
        import torch

        frames, atoms = len(batches[0]), [atoms_of(batch) for batch in batches]
        losses = torch.zeros(len(batches), device=self.fourth.device)
        fourth = torch.zeros_like(self.fourth)
        for part in self._parts(batches):
            shares = (len(part[0]) / frames, [atoms_of(b) / n for b, n in zip(part, atoms, strict=True)])
            loss, found = self._backward(part, shares)
            losses += loss
            fourth += found
        if self.ranks.size > 1:
            self._over_ranks(losses, fourth)
        return losses.tolist(), fourth

    def _parts(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """Yield what is done at once: this process's frames of each batch, in two halves where it has to be."""
        mine = [batch[self.ranks.rank :: self.ranks.size] for batch in batches]
        if not mine[0]:
            return
        if self.halves and len(mine[0]) > 1:
            half = -(-len(mine[0]) // 2)
            yield [batch[:half] for batch in mine]
            mine = [batch[half:] for batch in mine]
        yield mine

    def _over_ranks(self, losses: torch.Tensor, fourth: torch.Tensor) -> None:
        """Add up over the processes, in one message."""
        import torch

        values = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._weights] + [losses, fourth]
        flat = torch.cat([v.detach().flatten() for v in values])
        self.ranks.add(flat)
        for value, total in zip(values, flat.split([v.numel() for v in values]), strict=True):
            value.copy_(total.view_as(value))
        for weight, grad in zip(self._weights, values, strict=False):
            weight.grad = grad

    def _backward(self, part: list[Batch], shares: tuple[float, list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a part of a step; return its parts of the loss and of the fourth powers.

        ``shares`` are the part's frames, and each model's atoms, over those of the step.
        """
        import torch

        errors, padding = self._errors(self.model, part)
        fourth = self.fourth if self.targets.kind == "l4" else None
        share: dict[str, Any] = {"energy": shares[0], "forces": self.fourth.new_tensor(shares[1]), "stress": shares[0]}
        loss = loss_of(errors, self.targets, fourth, share, padding, keep=1)
        loss.sum().backward()
        if fourth is None:
            return loss.detach(), torch.zeros_like(self.fourth)
        found = [share[k] * fourth_power(errors[k].detach(), 1, padding[k]) for k in PROPERTIES]
        return loss.detach(), torch.stack(found)

    def _errors(self, model: Any, part: list[Batch]) -> tuple[Tensors, dict[str, Any]]:
        """Return the errors of each model, the models being the first dimension, and the padding of each property."""
        batch = collate(part[0])
        return {k: v[None] for k, v in errors_of(batch, model(batch)).items()}, dict.fromkeys(PROPERTIES, 1.0)

    def _shorten(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self._weights, STEEPEST)

    def validate(self, batches: Sequence[Batch]) -> list[tuple[float, float]]:
        """Return for each model (loss, mean squared force error) of the averaged weights on its held-back frames.

        The loss is that of all frames: for ``l4``, the root is taken once.
        """
        import torch

        frames, kind = len(batches[0]), self.targets.kind
        atoms = self.fourth.new_tensor([atoms_of(batch) for batch in batches])
        sums = torch.zeros((4, len(batches)), device=self.fourth.device)  # what each property costs; squares of forces
        for k in range(self.ranks.rank, frames, self.ranks.size):
            part = [[batch[k]] for batch in batches]
            errors, padding = self._errors(self.average, part)
            errors = {name: e.detach() for name, e in errors.items()}
            mine = self.fourth.new_tensor([atoms_of(batch) for batch in part])
            share: dict[str, Any] = {"energy": 1.0 / frames, "forces": mine / atoms, "stress": 1.0 / frames}
            for row, name in enumerate(PROPERTIES):
                off, more, delta = errors[name], padding[name], self.targets.deltas[name]
                cost = fourth_power(off, 1, more) if kind == "l4" else penalty(off, kind, delta, None, 1, more)
                sums[row] += share[name] * cost
            sums[3] += (errors["forces"] ** 2).flatten(1).sum(-1)
        self.ranks.add(sums)
        found = sums.double().cpu()
        costs = found[:3].sqrt() if kind == "l4" else found[:3]
        weights = torch.tensor([self.targets.weights[name] for name in PROPERTIES], dtype=torch.float64)
        counts = torch.tensor([max(_forces(batch), 1) for batch in batches])
        return list(zip((weights @ costs).tolist(), (found[3] / counts).tolist(), strict=True))

    def weights(self) -> list[dict[str, Any]]:
        """Return the averaged weights of each model."""
        return [{k: v.cpu().numpy().copy() for k, v in self.average.state_dict().items()}]

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "schedule")}
        return {**parts, "fourth": self.fourth, "done": self.done, "halves": self.halves}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.fourth.copy_(state["fourth"])
        self.done, self.halves = int(state["done"]), bool(state["halves"])


def errors_of(batch: Tensors, found: Tensors) -> Tensors:
    """Return by how much energies per atom (n,), forces (atoms, 3) and stresses (n, 3, 3) are off.

    Forces of atoms that do not count are not off.
    """
    p = load_schnetpack().properties
    forces = found[p.forces] - batch["target.forces"]
    return {
        "energy": (found[p.energy] - batch["target.energy"]) / batch[p.n_atoms],
        "forces": forces * batch["counted"] if "counted" in batch else forces,
        "stress": found[p.stress] - batch["target.stress"],
    }


def loss_of(
    errors: Tensors,
    targets: Targets,
    fourth: torch.Tensor | None = None,
    share: Mapping[str, Any] | None = None,
    padding: Mapping[str, Any] | None = None,
    keep: int = 0,
) -> torch.Tensor:
    """Return the weighted cost of the errors, energies per atom, each over the spread of its labels.

    The forces' part is divided by all atoms, counted or not: a force counts as much in a frame of which few count.

    Parameters
    ----------
    errors
        From ``errors_of``.
    targets
        Weights and kind.
    fourth, padding, keep
        As ``science.losses.penalty`` takes them; the first two by property.
    share
        Of each property: what part of the step the errors are.
    """
    parts = []
    for k, name in enumerate(PROPERTIES):
        around = None if fourth is None else fourth[k]
        more = 1.0 if padding is None else padding[name]
        cost = penalty(errors[name], targets.kind, targets.deltas[name], around, keep, more)
        parts.append(targets.weights[name] * (cost if share is None else share[name] * cost))
    return parts[0] + parts[1] + parts[2]


def atoms_of(batch: Batch) -> int:
    """Return the atoms of all frames."""
    return sum(len(example["target.forces"]) for example in batch)


def _forces(batch: Batch) -> int:
    """Return how many components of forces count."""
    return sum(3 * int(e["counted"].sum()) if "counted" in e else e["target.forces"].numel() for e in batch)
