"""Uncertainty of an ensemble: where its members disagree, whether that tells where they err, and what to add.

Source: H. Jung et al., Data Distillation for Neural Network Potentials toward Foundational Dataset: the uncertainty of
an atom is the standard deviation of its energies over models trained on different parts of the data. Two things are
added here. The energies of single atoms are no observables: in a pool of one composition a model may move energy from
each Na to each Cl, and members that do so differently look uncertain everywhere (:func:`gauge`). And a batch is not
simply the most uncertain frames: those of one event are neighbours in time and nearly the same (:func:`thin`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from campaign.frames import Array

#: Quantiles of a frame's atomic energies that tell it from others (``fingerprints``).
QUANTILES = 8

#: Bins of a calibration table.
BINS = 10


def gauge(means: Array, counts: Array) -> Array:
    """Return what each member's atomic energies are shifted by that no energy of a frame can show.

    Parameters
    ----------
    means : (m, s) float
        Each member's mean atomic energy of each species, eV, all over the same frames.
    counts : (c, s) int
        Atoms of each species in each composition there is.

    Returns
    -------
    (m, s) float
        eV, to be taken from the energies of the atoms: the part of a member's difference from the ensemble's mean that
        adds up to nothing in every composition. Nothing for one species, or where the compositions tell all apart.
    """
    means, counts = np.asarray(means, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    differences = means - means.mean(axis=0)
    seen = np.linalg.pinv(counts, rcond=1e-8) @ counts  # projects on what the compositions can see
    return np.asarray(differences - differences @ seen.T)


def atomic_std(energies: Array) -> Array:
    """Return (n, a) the standard deviation over the members (of the population they are drawn from).

    Parameters
    ----------
    energies : (m, n, a) float
        Atomic energies of at least two members, eV.

    Raises
    ------
    ValueError
        One member is no ensemble.
    """
    if len(energies) < 2:
        raise ValueError("The uncertainty of an ensemble needs two members or more.")
    return np.asarray(np.std(energies, axis=0, ddof=1))


def frame_scores(std: Array, how: str = "max") -> Array:
    """Return (n,) the uncertainty of each frame from that of its atoms, (n, a): its largest ("max"), or their mean."""
    return np.asarray(std.max(axis=1) if how == "max" else std.mean(axis=1))


def drawn(scores: Array, uniform: Array) -> Array:
    """Return (n,) keys of which the largest k are a draw of k frames, each as likely as its score is large.

    Parameters
    ----------
    scores : (n,) float
        Not negative; what is not finite comes first, what is 0 last.
    uniform : (n,) float
        Random numbers above 0 and below 1, one a frame.

    Notes
    -----
    Gumbel's noise on the logarithm: the draw is without replacement, and pieces can be seen one after another.
    """
    finite = np.isfinite(scores)
    with np.errstate(divide="ignore"):
        keys = np.log(np.where(finite, scores, 1.0)) - np.log(-np.log(uniform))
    return np.where(finite, keys, np.inf)


def most_uncertain(std: Sequence[Array], share: float) -> list[Array]:
    """Return which atoms of some frames, (a,) each, are the most uncertain: this share of all of them, rounded up.

    The share is of the atoms of all frames together, so that a frame that is uncertain everywhere has more of them.
    """
    sizes = [len(s) for s in std]
    flat = np.concatenate([np.zeros(0), *std])
    worth = np.where(np.isfinite(flat), flat, np.inf)
    found = np.zeros(len(flat), dtype=bool)
    found[np.argsort(-worth, kind="stable")[: math.ceil(share * len(flat) - 1e-9)]] = True
    return np.split(found, np.cumsum(sizes)[:-1]) if sizes else []


def fingerprints(energies: Array) -> Array:
    """Return (n, m * QUANTILES), what tells frames apart: quantiles of each member's atomic energies, eV.

    They depend neither on the order of the atoms nor on their number, and cost nothing beyond the scores.
    """
    found = np.quantile(energies, np.linspace(0.0, 1.0, QUANTILES), axis=2)  # (q, m, n)
    return np.asarray(found.transpose(2, 1, 0).reshape(found.shape[2], -1))


def thin(scores: Array, features: Array, size: int) -> list[int]:
    """Choose uncertain frames that differ from each other.

    One after another the frame is taken whose score, times its distance to the nearest one taken before, is largest.
    Distances above the spread of all candidates (root mean square from their centre) count alike, so that among
    frames which are simply different the score decides, and a copy of a frame taken comes last of all.

    Parameters
    ----------
    scores : (k,) float
        Uncertainty of each candidate, not negative; infinite counts as the largest.
    features : (k, d) float
        What tells them apart.
    size
        How many to take.

    Returns
    -------
    list of int
        Rows, in the order in which they were taken; all of them where they are no more than ``size``.
    """
    finite = np.isfinite(scores)
    top = float(scores[finite].max()) if finite.any() else 1.0
    worth = np.where(finite, scores, 2.0 * top + 1.0)
    features = np.nan_to_num(np.asarray(features, dtype=np.float64), posinf=0.0, neginf=0.0)
    spread = math.sqrt(float(((features - features.mean(axis=0)) ** 2).sum(axis=1).mean())) if len(features) else 0.0
    order = np.argsort(-worth, kind="stable")  # among those that count alike, the most uncertain
    worth, features = worth[order], features[order]
    nearest = np.full(len(order), np.inf)
    left = np.ones(len(order), dtype=bool)
    taken: list[int] = []
    while len(taken) < min(size, len(order)):
        share = np.minimum(nearest / spread, 1.0) if spread > 0.0 else np.where(np.isinf(nearest), 1.0, 0.0)
        row = int(np.argmax(np.where(left, worth * share, -1.0)))
        taken.append(row)
        left[row] = False
        nearest = np.minimum(nearest, np.linalg.norm(features - features[row], axis=1))
    return [int(order[row]) for row in taken]


def rank_correlation(x: Array, y: Array) -> float | None:
    """Return Spearman's rank correlation, ties sharing their mean rank; None for fewer than two different values."""
    a, b = _ranks(np.asarray(x)), _ranks(np.asarray(y))
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0.0 else None


def _ranks(values: Array) -> Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2.0)[place])


def calibration(std: Array, error: Array, bins: int = BINS) -> dict[str, object]:
    """Return whether the uncertainty is as large as the error.

    Parameters
    ----------
    std : (n,) float
        Predicted standard deviation of each frame.
    error : (n,) float
        Its true error, in the same unit.
    bins
        How many groups of equally many frames, by rising uncertainty.

    Returns
    -------
    dict
        ``bins`` [{count, predicted, actual}]: the root mean square uncertainty of a group and of its errors, on a line
        through the origin with slope 1 when calibrated; ``factor``, by which the uncertainties are too small over all;
        ``ence``, the mean distance of actual from predicted, over predicted (Levi et al., Sensors 22, 5540, 2022);
        ``within``, the share of errors no larger than their uncertainty (0.68 for normal errors). Values that cannot
        be said (nothing predicted) are None. Frames without a finite uncertainty or error are left out.
    """
    good = np.isfinite(std) & np.isfinite(error)
    std, error = np.asarray(std[good], dtype=np.float64), np.abs(np.asarray(error[good], dtype=np.float64))
    order = np.argsort(std, kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, max(len(order), 1))):
        if len(part):
            rows.append({"count": len(part), "predicted": _rms(std[part]), "actual": _rms(error[part])})
    ratios = [abs(r["actual"] - r["predicted"]) / r["predicted"] for r in rows if r["predicted"] > 0.0]
    return {
        "bins": rows,
        "factor": _rms(error) / _rms(std) if len(std) and _rms(std) > 0.0 else None,
        "ence": float(np.mean(ratios)) if ratios else None,
        "within": float((error <= std).mean()) if len(std) else None,
    }


def _rms(values: Array) -> float:
    return math.sqrt(float((values**2).mean()))
