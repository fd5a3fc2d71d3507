"""Random packings: atoms at random in a cubic cell, pushed apart until molecular dynamics can start from them.

How far apart is decided by ``campaign.config.packings``, which also refuses a density that leaves no room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from campaign.errors import InputError
from campaign.frames import Frames
from campaign.science.neighbours import closest_ratio

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

#: Share of the contacts' distances that the relaxation must reach.
REACHED = 0.95

#: Steps of the relaxation, at most.
STEPS = 2000


def pack(composition: Mapping[str, int], density: float, seed: int) -> Atoms:
    """Return atoms at random places in a cubic cell, periodic, none too close to another.

    Parameters
    ----------
    composition
        Chemical symbol to number of atoms.
    density
        g/cm^3.
    seed
        The same seed gives the same packing.

    Raises
    ------
    InputError
        The atoms could not be kept apart: the density is too high, or the atoms are too few.
    """
    from ase import Atoms

    from campaign.config import packings

    symbols = [symbol for symbol, count in composition.items() for _ in range(count)]
    length = packings.length(composition, density)
    kinds = np.repeat(np.arange(len(composition)), list(composition.values()))
    x = np.random.default_rng(seed).uniform(0, length, (len(symbols), 3))
    x = _push_apart(x, kinds, packings.contacts(composition, density), length)
    atoms = Atoms(symbols, x, cell=[length] * 3, pbc=True)
    atoms.wrap()
    closest = float(closest_ratio(Frames.from_ase([atoms]))[0])
    if closest < REACHED * packings.CLOSEST:
        raise InputError(
            f"system.structure: {len(atoms)} atoms cannot be packed at {density:g} g/cm^3: two of them stay at "
            f"{closest:.2f} of the sum of their covalent radii; write a smaller density or more atoms."
        )
    return atoms


def _pairs(x: Array, reach: float, length: float) -> tuple[Array, Array]:
    """Return the atoms i < j of every pair closer than ``reach``, nearest images only."""
    from scipy.spatial import cKDTree

    tree = cKDTree(x % length % length, boxsize=length)  # twice: -1e-20 % length is length
    found = tree.query_pairs(min(reach, 0.499 * length), output_type="ndarray")
    return found[:, 0], found[:, 1]


def _vectors(x: Array, i: Array, j: Array, length: float) -> tuple[Array, Array]:
    d = x[j] - x[i]
    d -= length * np.round(d / length)
    return d, np.linalg.norm(d, axis=1)


def _push_apart(x: Array, kinds: Array, contacts: Array, length: float) -> Array:
    """Minimise the soft repulsion of overlapping spheres, sum of (1 - r/contact)^2 / 2, by FIRE.

    Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), with its parameters.
    """
    widest, skin = float(contacts.max()), 0.5
    v = np.zeros_like(x)
    dt, alpha, good = 0.1, 0.1, 0
    i, j = _pairs(x, widest + skin, length)
    listed = x.copy()
    for _ in range(STEPS):
        if np.abs(x - listed).max() > skin / 4:
            i, j = _pairs(x, widest + skin, length)
            listed = x.copy()
        d, r = _vectors(x, i, j, length)
        overlap = np.maximum(1.0 - r / contacts[kinds[i], kinds[j]], 0.0)
        if overlap.max(initial=0.0) < 0.01:
            break
        push = (overlap / np.maximum(r, 1e-9))[:, None] * d
        force = np.zeros_like(x)
        np.add.at(force, j, push)
        np.add.at(force, i, -push)
        if (force * v).sum() > 0:
            size = np.sqrt((v * v).sum() / max(float((force * force).sum()), 1e-300))
            v = (1 - alpha) * v + alpha * size * force
            good += 1
            if good > 5:
                dt, alpha = min(1.1 * dt, 1.0), 0.99 * alpha
        else:
            v[...] = 0.0
            dt, alpha, good = 0.5 * dt, 0.1, 0
        v += dt * force
        x = x + np.clip(dt * v, -0.1, 0.1)
    return x
