"""Reference energies: what of a total energy belongs to its atoms alone, whatever they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.frames import Frames

Array = npt.NDArray[Any]


def reference_energies(blocks: Sequence[Frames]) -> tuple[Array, Array]:
    """Return (species (s,), energy of an atom of each (s,), eV) by least squares over the compositions.

    Compositions that cannot tell the species apart (always one Na to one Cl) have many answers; the one of least
    norm is taken, which gives equal energies to species in equal numbers.
    """
    numbers = np.unique(np.concatenate([b.numbers.ravel() for b in blocks])).astype(np.int64)
    counts = np.concatenate([(b.numbers[:, :, None] == numbers).sum(axis=1) for b in blocks]).astype(np.float64)
    energies = np.concatenate([b.energy for b in blocks])
    # rows a frame of one atom: large and small cells count alike
    atoms = counts.sum(axis=1, keepdims=True)
    return numbers, np.linalg.lstsq(counts / atoms, energies / atoms[:, 0], rcond=1e-8)[0]


def offsets(frames: Frames, numbers: Array, energies: Array) -> Array:
    """Return (n,) the sum of each frame's reference energies, eV: subtracted from its energy, the interaction is left.

    Parameters
    ----------
    frames
        Frames of species among ``numbers``.
    numbers, energies
        Species and their reference energies, as ``reference_energies`` returns them.
    """
    table = np.zeros(int(numbers.max()) + 1)
    table[numbers] = energies
    return np.asarray(table[frames.numbers].sum(axis=1))
