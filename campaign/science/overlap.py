"""Do two trajectories visit the same configurations? Distances of frames by the REMatch kernel, or of descriptors.

Source: NPT thesis, ch. 12: distance to the first frame against time, and the histogram of nearest matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from campaign.frames import Array

#: Of the reference's own distances, so many per cent lie below the limit of what counts as a match.
PERCENTILE = 95.0
#: Matches are this part of a run apart, at least.
APART = 4
#: The first and the last quarter of a settled run are at most so many times as far apart as neighbouring quarters.
WANDERS = 1.5


def rematch_distances(kernel: Any, left: Sequence[Array], right: Sequence[Array]) -> Array:
    """Return the distances sqrt(2 - 2 K) of frames by the REMatch kernel (De et al., PCCP 18, 13754, 2016; eq. 7.6).

    Parameters
    ----------
    kernel
        dscribe's ``REMatchKernel``, or anything with its ``get_global_similarity``.
    left, right
        For each frame (atoms, features): environments.

    Returns
    -------
    (left, right) float64
    """
    first, second = _unit(left), _unit(right)
    own = [np.sqrt([kernel.get_global_similarity(x @ x.T) for x in side]) for side in (first, second)]
    found = np.array([[kernel.get_global_similarity(a @ b.T) for b in second] for a in first])
    return np.asarray(np.sqrt(np.maximum(0.0, 2.0 - 2.0 * found / np.outer(*own))))


def _unit(frames: Sequence[Array]) -> list[Array]:
    rows = [np.asarray(x, dtype=np.float64) for x in frames]
    return [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in rows]


def feature_distances(left: Array, right: Array, scale: Array) -> Array:
    """Return the Euclidean distances of (n, d) and (m, d) features, each feature divided by ``scale`` (d,).

    Features without a scale (0) do not count; a distance is divided by the root of the number of those that do.
    """
    there = scale > 1e-6 * np.max(scale, initial=1e-300)
    x, y = (np.asarray(side, dtype=np.float64)[:, there] / scale[there] for side in (left, right))
    square = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * x @ y.T
    return np.asarray(np.sqrt(np.maximum(square, 0.0) / max(1, int(there.sum()))))


def matches(model: Array, own: Array) -> dict[str, Any]:
    """Say how many frames of each run lie as near to the other's as the reference's do to each other.

    Neighbours in time are alike whatever a run visits: only frames a quarter of the run or more apart are matches,
    between the runs too, so that a frame has as many candidates there as in its own run.

    Parameters
    ----------
    model : (n, m)
        Distances of the model's frames to those of the reference, both in order of time.
    own : (m, m)
        Distances of the reference's frames to each other.

    Returns
    -------
    dict
        ``share`` of the model's frames whose nearest match is within ``limit``, the 95th percentile of the
        reference's own nearest matches; ``covered``, the share of the reference's frames whose nearest match among the
        model's is; ``model`` and ``reference``, the nearest matches of the model's and of the reference's own frames;
        ``wander``: how far apart its first and its last quarter are, over quarters that are neighbours (medians).
    """
    n, m = model.shape
    together = APART * np.abs(np.subtract.outer(m * np.arange(n), n * np.arange(m))) < n * m
    between = np.where(together, np.inf, model)
    apart = np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    usual = np.where(apart < m / APART, np.inf, own).min(axis=1)
    limit = float(np.percentile(usual, PERCENTILE))
    ends, near = (np.median(own[(apart >= a * m) & (apart < b * m)]) for a, b in ((0.75, 1.0), (0.25, 0.5)))
    return {
        "share": float((between.min(axis=1) <= limit).mean()),
        "covered": float((between.min(axis=0) <= limit).mean()),
        "limit": limit,
        "model": between.min(axis=1),
        "reference": usual,
        "wander": float(ends / near) if near > 0.0 else 1.0,
    }
