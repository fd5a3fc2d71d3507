"""What must hold of the starting structure: its elements, its density, and room for its atoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from campaign.config import packings
from campaign.config.data_files import Fault, find, structure
from campaign.config.structures import PROTOTYPES
from campaign.config.view import Part, View
from campaign.config.yaml_lines import Problem

#: Atoms in the cell of each prototype that is repeated: the cubic one, where there is a cubic one.
ATOMS = {"rocksalt": 8, "zincblende": 8, "cesiumchloride": 2, "fcc": 4, "bcc": 2, "hcp": 2, "sc": 1, "diamond": 8}

#: A cell holds at least, and at most, this many times the volume of its atoms as spheres of their covalent radii. From
#: compressed metals (1.4 at no pressure) to thin gases; outside, most often the volume of one atom was written.
LEAST_VOLUME, MOST_VOLUME = 0.5, 100.0


def check_prototype(view: View, place: tuple[Part, ...]) -> Iterator[Problem]:
    """Yield what does not hold between the keys of a prototype at ``place``."""
    prototype = view.text(*place, "prototype")
    if prototype not in PROTOTYPES:
        return
    elements = view.items(*place, "elements")
    needed = PROTOTYPES[prototype]
    if elements and len(elements) != needed:
        what = f"{prototype} has {needed} element{'s' if needed > 1 else ''}"
        yield view.problem((*place, "elements"), what, elements, f"write {needed}")
    if prototype != "hcp" and view.get(*place, "c") is not None:
        what = f"{prototype} is cubic and has no c"
        yield view.problem((*place, "c"), what, view.get(*place, "c"), "remove it")


def check_packing(view: View) -> Iterator[Problem]:
    """Yield what keeps a random packing from being made: no room, or too few atoms for the cell."""
    place = ("system", "structure")
    density = view.number(*place, "density")
    composition = _composition(view)
    if not composition:
        return
    times = packings.fewest(composition)
    if times > 1:
        what = "the cell would be so narrow that atoms touch their own images"
        more = ", ".join(f"{s}: {times * n}" for s, n in composition.items())
        yield view.problem((*place, "packing"), what, view.get(*place, "packing"), f"write {{{more}}} or more")
    most = packings.densest(composition)
    if density and density > most:
        what = (
            f"the atoms cannot be packed at this density: they would come closer than {packings.CLOSEST:g} of their "
            "covalent radii's sum"
        )
        remedy = f"write at most {np.floor(most * 100) / 100:g} (g/cm^3), or start from a crystal"
        yield view.problem((*place, "density"), what, density, remedy)


def check_density(view: View) -> Iterator[Problem]:
    """Yield a prototype's lattice constant, or a packing's density, with which no matter is that dense."""
    from ase.data import covalent_radii

    place = ("system", "structure")
    numbers = structure_numbers(view)
    if not len(numbers):
        return
    spheres = float((4 / 3 * np.pi * covalent_radii[numbers] ** 3).sum())
    density, a = view.number(*place, "density"), view.number(*place, "a")
    composition = _composition(view)
    if composition and density:
        volume, key, wide = packings.length(composition, density) ** 3, "density", -1.0
    elif a and not composition:
        prototype = view.text(*place, "prototype") or ""
        cells = len(numbers) / ATOMS[prototype]
        a = min(a, 1e50)  # its cube is a number
        c = view.number(*place, "c", default=a * (8 / 3) ** 0.5) or a
        volume, key, wide = cells * (a**2 * c * 3**0.5 / 2 if prototype == "hcp" else a**3), "a", 1 / 3
    else:
        return
    if not LEAST_VOLUME * spheres <= volume <= MOST_VOLUME * spheres:
        size = "crush" if volume < spheres else "part"
        got = view.number(*place, key) or 0.0
        at = min(got, 1e50) if key == "a" else got
        low, high = sorted(at * (x * spheres / volume) ** wide for x in (LEAST_VOLUME, MOST_VOLUME))
        what = f"this would {size} the atoms far beyond any matter"
        unit = "Å" if key == "a" else "g/cm^3"
        yield view.problem((*place, key), what, got, f"write {unit} between {low:.2g} and {high:.2g}")


def check_volumes(view: View, numbers: Any) -> Iterator[Problem]:
    """Yield the volumes of ``nvt_grid`` that are far from any density.

    Parameters
    ----------
    view
        The campaign file.
    numbers
        Atomic numbers of the starting structure; nothing where they are not known.
    """
    from ase.data import covalent_radii

    if not len(numbers):
        return
    spheres = float((4 / 3 * np.pi * covalent_radii[numbers] ** 3).sum())
    for i in range(len(view.items("sample"))):
        for k in range(len(view.items("sample", i, "volumes"))):
            volume = view.number("sample", i, "volumes", k)
            if volume and not LEAST_VOLUME * spheres <= volume <= MOST_VOLUME * spheres:
                size = "small" if volume < spheres else "large"
                what = f"a cell of {len(numbers)} atoms would have no density that makes sense: the cell is too {size}"
                low, high = LEAST_VOLUME * spheres, MOST_VOLUME * spheres
                remedy = f"write the volume of the whole cell, between {low:.0f} and {high:.0f}"
                yield view.problem(("sample", i, "volumes", k), what, volume, remedy)


def structure_numbers(view: View) -> Any:
    """Return the atomic numbers of a prototype's or a packing's atoms; none where something is wrong with it."""
    from ase.data import atomic_numbers

    place = ("system", "structure")
    composition = _composition(view)
    if not composition:
        prototype, elements = view.text(*place, "prototype"), sorted(structure_elements(view))
        times = [view.number(*place, "supercell", k) for k in range(3)] if view.items(*place, "supercell") else [1] * 3
        if prototype not in ATOMS or not elements or None in times or not set(elements) <= set(atomic_numbers):
            return np.zeros(0, "int64")
        each = ATOMS[prototype] * int(np.prod([t or 1 for t in times])) // len(elements)
        composition = dict.fromkeys(elements, each)
    return np.repeat([atomic_numbers[e] for e in composition], list(composition.values()))


def starting_numbers(view: View, folder: Path) -> Any:
    """Return the atomic numbers of the starting structure, also of one in a file; none where they are not known."""
    written = view.text("system", "structure", "file")
    if not written:
        return structure_numbers(view)
    path = find(written, folder)
    atoms = path if isinstance(path, Fault) else structure(path)
    return np.zeros(0, "int64") if isinstance(atoms, Fault) else atoms.numbers


def structure_elements(view: View) -> set[str]:
    """Return the elements of a prototype or a packing; none where one of them is wrong."""
    if view.mapping("system", "structure", "packing"):
        return set(_composition(view))
    place = ("system", "structure", "elements")
    found = [view.text(*place, i) for i in range(len(view.items(*place)))]
    return set() if None in found else {e for e in found if e is not None}


def _composition(view: View) -> dict[str, int]:
    """Return the atoms of a packing; none where something is wrong with them."""
    from ase.data import atomic_numbers

    found = view.mapping("system", "structure", "packing")
    if view.get("system", "structure", "prototype") is not None:
        return {}
    good = all(s in atomic_numbers and s != "X" and type(n) in (int, float) and n >= 1 for s, n in found.items())
    return {s: int(n) for s, n in found.items()} if good else {}
