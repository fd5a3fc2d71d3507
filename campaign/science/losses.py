"""What errors cost in training: how much more a large one than several small ones.

MD with a trained model ends at its worst atoms: whether it survives coincides with a small L4 error rather than with a
small RMSE (J. Finkbeiner et al., "Generating Minimal Training Sets for Machine Learned Potentials", Fig. 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Kinds of loss, as ``loss: {kind: ...}`` names them.
KINDS = ("mse", "huber", "l4")

#: Under the root of ``l4``, whose slope would be infinite where every error is zero.
_TINY = 1e-20


def penalty(errors: torch.Tensor, kind: str = "mse", delta: float = 0.1) -> torch.Tensor:
    """Return what errors cost together, a number. Errors twice as large (and ``delta`` too) cost four times as much.

    ``mse``
        ``mean(e^2)``.
    ``huber``
        ``mean(h(e))`` with ``h = e^2`` up to ``delta`` and ``2 delta |e| - delta^2`` beyond: outliers count less.
    ``l4``
        ``sqrt(mean(e^4))``, the square of the L4 error: outliers count more.

    Parameters
    ----------
    errors
        Of any shape and unit.
    kind
        One of ``KINDS``.
    delta
        Of ``huber`` alone, in the unit of the errors.

    Raises
    ------
    ValueError
        Another kind.
    """
    import torch

    if kind == "mse":
        return torch.mean(errors**2)
    if kind == "huber":
        return 2.0 * torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), delta=delta)
    if kind == "l4":
        return torch.sqrt(torch.mean(errors**4) + _TINY)
    raise ValueError(f"There is no loss {kind}; the kinds are {', '.join(KINDS)}.")
