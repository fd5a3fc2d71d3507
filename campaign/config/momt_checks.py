"""What must hold between the keys of MOMT sampling, and between them and the structure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from campaign.config.campaign_file import MOMT, Learn
from campaign.config.data_files import Fault, find, structure
from campaign.config.structure_checks import ATOMS, structure_numbers
from campaign.config.view import View
from campaign.config.yaml_lines import Problem

#: Prototypes whose repeated cell is a cube where it is repeated alike along the three axes.
CUBES = tuple(name for name in ATOMS if name != "hcp")

#: Boltzmann's constant, eV/K.
BOLTZMANN = 8.617333262e-5

#: A window is so many times k (hot - cold) wide: 1.5 for harmonic atoms, 3.1 for nickel with its heat of melting.
NARROW, WIDE = 0.75, 20.0

#: Deposits that a walker may make between two frames.
DEPOSITS = 4096


def check_momt(view: View, folder: Path) -> Iterator[Problem]:
    """Yield what is wrong with the MOMT entries of a campaign file; ``folder`` is its own."""
    for i in range(len(view.items("sample"))):
        if view.text("sample", i, "method") == "momt":
            yield from _temperatures(view, i)
            yield from _learn(view, i)
            yield from _window(view, i)
            yield from _order(view, i, folder)


def _temperatures(view: View, i: int) -> Iterator[Problem]:
    place = ("sample", i, "temperatures")
    found = view.items(*place)
    if len(found) != 2 or not all(isinstance(t, int | float) and t > 0 for t in found):
        return
    low, high = found
    if low >= high:
        what = "the first temperature, of the solid end, must be the lower one"
        remedy = f"write [{high:g}, {low:g}]" if low > high else f"write two, such as [{low / 2:g}, {2 * low:g}]"
        yield view.problem(place, what, found, remedy)
        return
    t0 = view.number("sample", i, "temperature")
    if t0 and not low <= t0 <= high:
        what = f"the thermostat must lie between the temperatures of the window ({low:g} to {high:g})"
        remedy = f"write one near melting, such as {(low + high) / 2:g}"
        yield view.problem(("sample", i, "temperature"), what, t0, remedy)


def _window(view: View, i: int) -> Iterator[Problem]:
    """Check that the width of a window can be what lies between its temperatures."""
    window, temperatures = view.items("sample", i, "window"), view.items("sample", i, "temperatures")
    if not all(len(v) == 2 and all(isinstance(x, int | float) for x in v) for v in (window, temperatures)):
        return
    width, span = window[1] - window[0], BOLTZMANN * (temperatures[1] - temperatures[0])
    if width > 0 < span and not NARROW * span <= width <= WIDE * span:
        size = "narrow" if width < span else "wide"
        what = (
            f"{width:.3g} eV/atom is too {size} for what lies between the solid at {temperatures[0]:g} K and the "
            f"liquid at {temperatures[1]:g} K"
        )
        remedy = "write auto, or the enthalpies per atom (not of the cell) at the two temperatures"
        yield view.problem(("sample", i, "window"), what, window, remedy)


def _learn(view: View, i: int) -> Iterator[Problem]:
    every = view.number("sample", i, "every", default=MOMT.model_fields["every"].default)
    segment = view.number("sample", i, "segment", default=MOMT.model_fields["segment"].default)
    steps = view.number("sample", i, "steps")
    place = ("sample", i, "learn", "until")
    until = view.number(*place)
    if until and every and segment and until % (every * segment):
        piece = every * segment
        what = f"the bias stops changing between two segments, which are {segment:g} frames of {every:g} steps"
        yield view.problem(
            place, what, until, f"write a multiple of {piece:g}, such as {max(1, until // piece) * piece:g}"
        )
    elif until and steps and until >= steps:
        what = f"each walker makes {steps:g} steps, so the bias would never stay as it is"
        yield view.problem(place, what, until, "write fewer, or leave it out")
    deposits = view.number("sample", i, "learn", "every", default=Learn.model_fields["every"].default)
    if every and deposits and every / deposits > DEPOSITS:
        what = f"a walker makes at most {DEPOSITS} deposits between two frames, and these are {every / deposits:.0f}"
        yield view.problem(("sample", i, "every"), what, every, f"write {deposits * DEPOSITS:g} or less")


def _order(view: View, i: int, folder: Path) -> Iterator[Problem]:
    """Check that the reflections of ``order`` are waves of the cell."""
    order = view.text("sample", i, "order")
    prototype = view.text("system", "structure", "prototype")
    if order in (None, "auto", "none", prototype) or order not in ATOMS:
        return
    cell = _cube(view, folder)
    if cell is None:
        return
    count, cubic = cell
    place = ("sample", i, "order")
    if order == "hcp":
        what = "only a structure of prototype hcp has a cell that hcp fits"
        yield view.problem(place, what, order, "start from it, or write order: none")
    elif not cubic:
        what = f"{order} fits a cubic cell only, and the structure's is none"
        yield view.problem(place, what, order, "write order: none, or start from a cubic cell")
    elif ATOMS[order] * round((count / ATOMS[order]) ** (1 / 3)) ** 3 != count:
        near = sorted({ATOMS[order] * n**3 for n in range(1, 30)}, key=lambda m: abs(m - count))[:2]
        what = f"a perfect {order} crystal of {count} atoms does not fit a cubic cell"
        remedy = f"take {min(near)} or {max(near)} atoms, or write order: none"
        yield view.problem(place, what, order, remedy)


def _cube(view: View, folder: Path) -> tuple[int, bool] | None:
    """Return how many atoms the structure has, and whether its cell is a cube; None where that is not known."""
    file = view.text("system", "structure", "file")
    if file:
        path = find(file, folder)
        atoms = None if isinstance(path, Fault) else structure(path)
        if atoms is None or isinstance(atoms, Fault):
            return None
        lengths, angles = atoms.cell.lengths(), atoms.cell.angles()
        return len(atoms), bool(abs(lengths - lengths[0]).max() < 0.01 * lengths[0] and abs(angles - 90).max() < 0.5)
    count = len(structure_numbers(view))
    if not count:
        return None
    prototype = view.text("system", "structure", "prototype")
    times = view.items("system", "structure", "supercell") or [1, 1, 1]
    return count, prototype is None or (prototype in CUBES and len(set(times)) == 1)
