"""How close the atoms of a random packing may come, and what follows for its density: known before anything is built.

Where atoms may touch comes from covalent radii (Cordero 2008, as in ASE); ions of the same sign are kept further apart,
so that a salt starts with counter-ions as neighbours and little heat is set free. All contacts are scaled by one
number: as far apart as the density allows without crowding, which is more than the radii in a gas and less than them in
a compressed metal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Elements that are anions beside metals and metalloids.
ANIONS = frozenset(("F", "Cl", "Br", "I", "O", "S", "Se"))

#: Elements that are neither anions nor cations here.
NEUTRAL = frozenset(("H", "C", "N", "He", "Ne", "Ar", "Kr", "Xe", "Rn"))

#: Ions of the same sign come this much less close than those of opposite sign (molten NaCl: 3.9 Å to 2.7 Å).
LIKE_IONS = 1.4

#: Share of the cell that the touching spheres fill: below random close packing (0.64), so that they find room.
FILLED = 0.5

#: Contacts of a dilute system are at most this many sums of covalent radii (argon's sigma is 1.6 of them).
WIDEST = 1.7

#: No two atoms may have to be closer than this share of the sum of their covalent radii.
CLOSEST = 0.67


def length(composition: Mapping[str, int], density: float) -> float:
    """Return the edge of the cubic cell, Å, at a density in g/cm^3."""
    from ase.data import atomic_masses, atomic_numbers
    from ase.units import kg

    mass = sum(count * float(atomic_masses[atomic_numbers[s]]) for s, count in composition.items()) / kg * 1e3  # g
    return float((mass / density * 1e24) ** (1 / 3))


def contacts(composition: Mapping[str, int], density: float) -> Array:
    """Return the distances (k, k) at which atoms of the k elements touch, Å, in the order of the composition."""
    return np.asarray(_unscaled(composition) * _scale(composition, density))


def densest(composition: Mapping[str, int]) -> float:
    """Return the largest density, g/cm^3, at which no contact is closer than ``CLOSEST`` allows."""
    least = float((_unscaled(composition) / _covalent(composition)).min())
    return float((least * _scale(composition, 1.0, np.inf) / CLOSEST) ** 3)


def fewest(composition: Mapping[str, int]) -> int:
    """Return how many times the composition is needed for a cell that is twice as wide as the widest contact."""
    # The scale is as if atoms had the whole cell; a cell that is too narrow at one density is so at all of them.
    widest = 2 * float(_unscaled(composition).max()) * _scale(composition, 1.0, np.inf)
    return int(np.ceil(max(1.0, (widest / length(composition, 1.0)) ** 3)))


def _unscaled(composition: Mapping[str, int]) -> Array:
    """Return sums of covalent radii; between ions of one sign, what follows from their contacts with counter-ions."""
    touch = _covalent(composition)
    signs = np.array([-1 if s in ANIONS else 0 if s in NEUTRAL else 1 for s in composition])
    charges = signs[:, None] * signs[None, :]
    if (charges < 0).any():
        own = (touch * (charges < 0)).sum(axis=1) / np.maximum((charges < 0).sum(axis=1), 1)
        touch = np.where(charges > 0, LIKE_IONS * (own[:, None] + own[None, :]) / 2, touch)
    return np.asarray(touch)


def _covalent(composition: Mapping[str, int]) -> Array:
    from ase.data import atomic_numbers, covalent_radii

    radii = np.array([covalent_radii[atomic_numbers[s]] for s in composition])
    return np.asarray(radii[:, None] + radii[None, :])


def _scale(composition: Mapping[str, int], density: float, widest: float = WIDEST) -> float:
    """Return the factor with which spheres of these contacts fill ``FILLED`` of the cell."""
    share = np.array(list(composition.values()), dtype=float)
    share /= share.sum()
    mean = float(share @ _unscaled(composition) ** 3 @ share)
    free = length(composition, density) ** 3 / sum(composition.values())
    return float(min(widest, (6 / np.pi * FILLED * free / mean) ** (1 / 3)))
