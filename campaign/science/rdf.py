"""Partial radial distribution functions."""

from __future__ import annotations

import numpy as np

from campaign.frames import Array, Frames
from campaign.science.neighbours import neighbour_list

#: Frames searched at a time: memory stays bounded whatever the length of the trajectory.
_CHUNK = 32


def partial_rdf(frames: Frames, cutoff: float, bins: int) -> dict[str, tuple[Array, Array]]:
    """Average the partial radial distribution functions over frames.

    g_AB(r) = <pairs A->B in the shell> / (N_A (N_B / V) shell volume), with every periodic image, so that the cutoff
    may exceed half the box; V is each frame's own volume (NPT). Goes to 1 far away. All frames hold the same species.

    Parameters
    ----------
    frames
        At least one frame.
    cutoff
        Å.
    bins
        Number of shells of equal width.

    Returns
    -------
    dict
        ``"Na-Cl"`` (elements by atomic number) to (r, g), each (bins,) float64; r are the centres of the shells, Å.
    """
    from ase.data import chemical_symbols

    if not len(frames) or bins < 1 or cutoff <= 0.0:
        raise ValueError("A radial distribution function needs at least one frame, one bin and a cutoff above zero.")
    edges = np.linspace(0.0, cutoff, bins + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    present = np.unique(frames.numbers)
    total = {(a, b): np.zeros(bins) for k, a in enumerate(present) for b in present[k:]}
    for start in range(0, len(frames), _CHUNK):
        _add(frames[start : start + _CHUNK], edges, shells, total)
    centres = 0.5 * (edges[1:] + edges[:-1])
    return {f"{chemical_symbols[a]}-{chemical_symbols[b]}": (centres, g / len(frames)) for (a, b), g in total.items()}


def _add(block: Frames, edges: Array, shells: Array, total: dict[tuple[int, int], Array]) -> None:
    """Add each frame's g to ``total``."""
    bins = len(shells)
    pairs = neighbour_list(block, float(edges[-1]))
    distances = pairs.distances(block.positions)
    shell = np.minimum((distances / edges[-1] * bins).astype(np.int64), bins - 1)
    frame = pairs.idx_i // block.n_atoms
    z = block.numbers.ravel()
    volume = block.volume
    for (a, b), g in total.items():
        here = (z[pairs.idx_i] == a) & (z[pairs.idx_j] == b)
        counts = np.bincount(frame[here] * bins + shell[here], minlength=len(block) * bins).reshape(len(block), bins)
        n_a = (block.numbers == a).sum(axis=1)
        n_b = (block.numbers == b).sum(axis=1)
        density = n_a * n_b / volume
        g += (counts[density > 0] / density[density > 0, None]).sum(axis=0) / shells
