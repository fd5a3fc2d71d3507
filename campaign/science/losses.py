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


def penalty(
    errors: torch.Tensor,
    kind: str = "mse",
    delta: float = 0.1,
    fourth: torch.Tensor | None = None,
    keep: int = 0,
    padding: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Return what errors cost together.

    ``mse``
        ``mean(e^2)``.
    ``huber``
        ``mean(h(e))`` with ``h = e^2`` up to ``delta`` and ``2 delta |e| - delta^2`` beyond: outliers count less.
    ``l4``
        ``sqrt(mean(e^4))``, the square of the L4 error: outliers count more. The mean is meant over all frames. A
        training step sees few of them, and the root of *their* mean would make a frame with large errors count no more
        than by its mean square: the outliers of a set would weigh little more than in ``mse``. So a step gives
        ``fourth``, the mean that it knows from the steps before, and gets the tangent of the root there,
        ``mean(e^4) / (2 sqrt(fourth)) + sqrt(fourth) / 2``, whose slope is that of the root over all frames.

    ``mse`` and ``l4`` of errors twice as large are four times as large, and so is ``huber`` if ``delta`` is twice as
    large too.

    Parameters
    ----------
    errors
        Of any shape and unit.
    kind
        One of ``KINDS``.
    delta
        Of ``huber`` alone, in the unit of the errors.
    fourth
        Of ``l4`` alone: the mean of the fourth powers, of the shape of the result; None: that of ``errors``.
    keep
        Leading dimensions that are kept; the others are summed up.
    padding
        Where some of ``errors`` stand for none, and are zero: all of them over those that count.

    Raises
    ------
    ValueError
        Another kind.
    """
    import torch

    if kind == "mse":
        return _mean(errors**2, keep, padding)
    if kind == "huber":
        each = torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=delta)
        return 2.0 * _mean(each, keep, padding)
    if kind == "l4":
        mean = fourth_power(errors, keep, padding)
        if fourth is None:
            return torch.sqrt(mean + _TINY)
        root = torch.sqrt(fourth + _TINY)
        return 0.5 * (mean / root + root)
    raise ValueError(f"There is no loss {kind}; the kinds are {', '.join(KINDS)}.")


def fourth_power(errors: torch.Tensor, keep: int = 0, padding: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Return ``mean(e^4)``; ``keep`` and ``padding`` as in :func:`penalty`."""
    return _mean(errors**4, keep, padding)


def _mean(values: torch.Tensor, keep: int, padding: float | torch.Tensor) -> torch.Tensor:
    return padding * values.flatten(keep).mean(-1)
