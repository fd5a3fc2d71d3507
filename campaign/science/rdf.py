"""Partial radial distribution functions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from campaign.frames import Array, Frames
from campaign.science.blocks import FEWEST, error_of_blocks
from campaign.science.neighbours import neighbour_list

#: The model's first pairs may be so much nearer than the reference's: in runs of molten NaCl with one potential, 4 ps
#: long, they are nearer by 9 % at most.
CORE = 0.85
#: A difference is known where noise is at most its limit over this: what two runs with one potential differ by is up to
#: 1.8 times the noise (270 comparisons of 4 ps of molten NaCl), and sqrt(1.8^2 - 1) is this.
KNOWN = 1.5
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


@dataclass(frozen=True)
class Distribution:
    """A partial radial distribution function of a run with its statistical error.

    Attributes
    ----------
    r, g, error : (bins,)
        Centres of the shells, Å; the mean; its standard error from blocks.
    """

    r: Array
    g: Array
    error: Array

    @property
    def core(self) -> float:
        """Centre of the first shell with a pair, Å; infinite where there is none."""
        return float(self.r[np.argmax(self.g > 0.0)]) if self.g.any() else np.inf


def distributions(frames: Frames, cutoff: float, bins: int) -> dict[str, Distribution]:
    """Return ``partial_rdf`` of a run with errors: those of the mean of ``FEWEST`` blocks of frames in order of time.

    Parameters
    ----------
    frames
        In order, at least ``FEWEST``.
    cutoff, bins
        As of ``partial_rdf``.
    """
    ends = np.linspace(0, len(frames), FEWEST + 1).astype(int)
    parts = [partial_rdf(frames[a:b], cutoff, bins) for a, b in itertools.pairwise(ends)]
    found = {}
    for pair, (r, _) in parts[0].items():
        blocks = np.array([part[pair][1] for part in parts])
        error = [error_of_blocks(shell) for shell in blocks.T]
        found[pair] = Distribution(r, np.average(blocks, axis=0, weights=np.diff(ends)), np.array(error))
    return found


@dataclass(frozen=True)
class Unlike:
    """How far two distributions are apart.

    Attributes
    ----------
    difference
        What of the mean ``|g_model - g_reference|`` noise does not explain: sqrt(D^2 - noise^2), or 0.
    noise
        Mean ``|g_model - g_reference|`` that two runs with the same potential would have.
    model_core, reference_core
        Å (``Distribution.core``).
    """

    difference: float
    noise: float
    model_core: float
    reference_core: float

    @property
    def too_near(self) -> bool:
        """Whether the model has pairs well inside the reference's core."""
        return self.model_core < CORE * self.reference_core


def compare_rdf(model: Distribution, reference: Distribution) -> Unlike:
    """Compare two distributions over the shells in which either has a pair: an empty core would only dilute a mean.

    The mean of ``|x|`` of a normal variable is sqrt(2 / pi) of its standard deviation.
    """
    there = (model.g > 0.0) | (reference.g > 0.0)
    if not there.any():
        return Unlike(0.0, 0.0, model.core, reference.core)
    apart = float(np.abs(model.g - reference.g)[there].mean())
    noise = float(np.sqrt(2.0 / np.pi) * np.hypot(model.error, reference.error)[there].mean())
    return Unlike(float(np.sqrt(max(0.0, apart**2 - noise**2))), noise, model.core, reference.core)


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
