"""How far predictions are from a reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def errors(reference: npt.ArrayLike, predicted: npt.ArrayLike) -> dict[str, float]:
    """Return the error norms over all elements, in the unit of the input.

    Parameters
    ----------
    reference, predicted
        Arrays of one shape: energies per atom, force components, stress components ...

    Returns
    -------
    dict
        ``mae`` mean |d|; ``rmse`` (mean d^2)^(1/2); ``l4`` (mean d^4)^(1/4), which punishes outliers and goes with
        the stability of molecular dynamics (Tovey et al., random network distillation of molten salts, Fig. 2);
        ``max`` max |d|. A non-finite prediction makes all of them non-finite: it is never left out.

    Raises
    ------
    ValueError
        The shapes differ or there is nothing to compare.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"The reference has shape {a.shape} and the prediction {b.shape}; they must be the same.")
    if not a.size:
        raise ValueError("There is nothing to compare: both arrays are empty.")
    d = np.abs(b - a)
    largest = float(d.max())
    scale = largest if largest > 0.0 and np.isfinite(largest) else 1.0  # keeps d^4 from overflowing
    return {
        "mae": float(d.mean()),
        "rmse": float(np.sqrt(np.mean((d / scale) ** 2)) * scale),
        "l4": float(np.mean((d / scale) ** 4) ** 0.25 * scale),
        "max": largest,
    }
