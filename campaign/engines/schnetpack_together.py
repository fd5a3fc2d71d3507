"""The members of an ensemble trained together on one device: their weights are stacked, a step of all is one step.

Each member has its own frames in each step, so their graphs differ. They are joined into one, member after member, and
every linear layer of SchNetPack's modules becomes one product with a matrix for each member: the rows of a member
(atoms or pairs) are as many as those of any other, with a few atoms and pairs of no consequence where it has less.
Nothing else in the modules mixes rows but by the indices of pairs and frames, so SchNet, PaiNN and SO3net need no code
of their own. ``torch.vmap`` over ``torch.func.functional_call`` refuses SchNetPack's models ("requires_grad_() inside
of a function being transformed"): their forces would have to be written anew, and need the same rows too.

The gradient of the sum of all losses is that of each member; it is shortened, averaged and judged for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from campaign.engines.schnetpack import load_schnetpack
from campaign.engines.schnetpack_data import Tensors, collate
from campaign.engines.schnetpack_steps import STEEPEST, Batch, Optimisation, atoms_of, errors_of
from campaign.errors import EngineError

if TYPE_CHECKING:
    import torch


def stack(models: Sequence[Any]) -> Any:
    """Return one module with the weights of all ``models`` (of one family): parameters get a first dimension more.

    Its inputs are those of the models, one after the other, each with the same number of atoms and of pairs.

    Raises
    ------
    EngineError
        A parameter outside of linear layers and embeddings, or a buffer in which the models differ.
    """
    import torch
    from torch import nn

    count = len(models)

    class StackedLinear(nn.Module):
        def __init__(self, layers: Sequence[Any]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
            biases = [layer.bias for layer in layers]
            self.bias = None if biases[0] is None else nn.Parameter(torch.stack([b.detach() for b in biases]))
            self.activation = getattr(layers[0], "activation", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(count, -1, x.shape[-1])
            if self.bias is None:
                y = torch.bmm(rows, self.weight.mT)
            else:
                y = torch.baddbmm(self.bias[:, None, :], rows, self.weight.mT)
            y = y.reshape(*x.shape[:-1], y.shape[-1])
            return y if self.activation is None else self.activation(y)

    class StackedEmbedding(nn.Module):
        def __init__(self, layers: Sequence[Any]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            kinds = self.weight.shape[1]
            first = kinds * torch.arange(count, device=z.device)
            rows = (z.reshape(count, -1) + first[:, None]).flatten()
            return self.weight.flatten(0, 1).index_select(0, rows)

    known = {nn.Linear: StackedLinear, nn.Embedding: StackedEmbedding}
    whole = models[0]
    others = [dict(model.named_modules()) for model in models]
    for name, module in list(whole.named_modules()):
        made = next((new for old, new in known.items() if isinstance(module, old)), None)
        if made is not None:
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, made([o[name] for o in others]))
    replaced = (StackedLinear, StackedEmbedding)
    for module in whole.modules():
        if not isinstance(module, replaced) and any(True for _ in module.parameters(recurse=False)):
            raise EngineError(f"Members of this model cannot be trained together ({type(module).__name__}).")
    return whole


class Stacked(Optimisation):
    """The steps of several members, which differ in their seeds; of one loss, one schedule and one device."""

    def _network(self, spec: Mapping[str, Any], networks: Sequence[Any]) -> Any:
        self._far = 2.0 * float(spec["cutoff"])
        return stack(networks)

    def _errors(self, model: Any, part: list[Batch]) -> tuple[Tensors, dict[str, Any]]:
        """Return errors with the members as first dimension, without the frames of no consequence."""
        batch, real = joined(part, self._far)
        errors = errors_of(batch, model(batch))
        each = {k: v.reshape(len(part), -1, *v.shape[1:]) for k, v in errors.items()}
        real = real.reshape(len(part), -1, 1)
        kept = {"energy": each["energy"][:, :-1], "forces": each["forces"] * real, "stress": each["stress"][:, :-1]}
        return kept, {"energy": 1.0, "forces": real.shape[1] / real.sum(dim=(1, 2)), "stress": 1.0}

    def _shorten(self) -> None:
        """Shorten the gradient of each member, as ``torch.nn.utils.clip_grad_norm_`` does that of one."""
        import torch

        grads = [w.grad for w in self._weights if w.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        factor = (STEEPEST / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.reshape(-1, *[1] * (grad.ndim - 1)))

    def weights(self) -> list[dict[str, Any]]:
        """Return the averaged weights of each member, as those of a model alone."""
        stacked = {name for name, _ in self.average.named_parameters()}
        whole = {k: v.cpu().numpy() for k, v in self.average.state_dict().items()}
        members = range(self.fourth.shape[1])
        return [{k: (v[m] if k in stacked else v).copy() for k, v in whole.items()} for m in members]


def joined(part: Sequence[Batch], far: float) -> tuple[Tensors, torch.Tensor]:
    """Join a batch of each member into one.

    Each gets a frame of no consequence: atoms of no element at one place, bound to nothing, and pairs of the first of
    them with an image ``far`` away (Å, beyond the cutoff), as many as make all members equally long.

    Returns
    -------
    tuple
        The batch, and (atoms,) 1 for each atom of a frame, 0 for the others.
    """
    p = load_schnetpack().properties
    atoms = [atoms_of(batch) for batch in part]
    pairs = [sum(len(example[p.idx_i]) for example in batch) for batch in part]
    first = part[0][0]
    real = first[p.R].new_zeros((len(part), max(atoms) + 1))
    examples: Batch = []
    for m, batch in enumerate(part):
        more = max(atoms) - atoms[m] + 1
        real[m, : atoms[m]] = 1.0
        examples += [*batch, _ghost(first, more, max(pairs) - pairs[m] + 1, far)]
    return collate(examples), real.flatten()


def _ghost(like: Tensors, atoms: int, pairs: int, far: float) -> Tensors:
    import torch

    p = load_schnetpack().properties
    lengths = dict.fromkeys((p.Z, p.R, "target.forces", "counted"), atoms)
    lengths |= dict.fromkeys((p.idx_i, p.idx_j, p.offsets), pairs)
    ghost = {k: v.new_zeros((lengths.get(k, 1), *v.shape[1:])) for k, v in like.items()}
    ghost[p.offsets][:, 0] = far
    ghost[p.cell] = torch.eye(3, dtype=like[p.cell].dtype, device=like[p.cell].device)[None]
    ghost[p.n_atoms] = torch.full_like(like[p.n_atoms], atoms)
    return ghost
