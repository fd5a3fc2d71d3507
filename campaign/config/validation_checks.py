"""What must hold in the section ``validate`` beside each test's own keys: runs, references, elements, packages."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from campaign.config.data_files import Fault, find, structure
from campaign.config.learning import Guards
from campaign.config.structure_checks import check_prototype, starting_numbers
from campaign.config.validations import RUN, Overlap
from campaign.config.view import Part, View
from campaign.config.yaml_lines import Problem, show

#: Tests that work on the run of a ``stability`` entry before them unless they describe their own.
ON_RUN = ("rdf", "diffusion", "conductivity", "rerun", "overlap")

#: Keys with which they do.
OWN_RUN = ("ensemble", "pressure", "time", "timestep", "every", "segment")

#: Tests that compare with a potential's own runs, energies or crystals.
COMPARED = ("rdf", "density", "diffusion", "conductivity", "rerun", "overlap", "relax")

#: Fewest frames of a run that tell a drift from noise.
FEWEST_FRAMES = 10

#: Most steps of a run: years on any machine.
MOST_STEPS = 1e12

#: Least charge that is one, in charges of a proton.
NEUTRAL = 1e-6


def check_validations(view: View, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Find and check what the tests of a campaign file in ``folder`` name, and what must hold between them.

    Returns
    -------
    tuple
        The files by their path as written, and what is wrong.
    """
    files: dict[str, Path] = {}
    problems = [*_runs(view), *_lengths(view), *_conflicts(view), *_guards(view), *_compared(view)]
    elements = _elements(view, folder)
    for i in range(len(view.items("validate"))):
        method = view.text("validate", i, "method")
        if method == "density":
            problems += _density(view, i)
        elif method == "conductivity":
            problems += _charges(view, i, elements)
        elif method == "overlap":
            problems += _overlap(view, i)
        elif method == "relax":
            problems += _relax(view, i, folder, elements, files)
    return files, problems


def _runs(view: View) -> Iterator[Problem]:
    """Check that each test has a run to work on: one before it, or a whole description of its own."""
    methods = [view.text("validate", i, "method") for i in range(len(view.items("validate")))]
    for i, method in enumerate(methods):
        if method not in ON_RUN:
            continue
        if view.get("validate", i, "temperature") is not None:
            if view.get("validate", i, "time") is None:
                what = "a run of its own needs a length too"
                place: tuple[Part, ...] = ("validate", i, "temperature")
                yield view.problem(place, what, view.get(*place), "add 'time: 100' (ps)")
            continue
        if view.path("validate", i, "temperature") in view.bad:
            continue
        for key in OWN_RUN:
            value = view.get("validate", i, key)
            if value is not None:
                what = "this describes a run of its own, and there is no temperature"
                yield view.problem(("validate", i, key), what, value, "add 'temperature: 1400' (K), or remove it")
        if "stability" not in methods[:i]:
            what = f"'{method}' works on the run of a 'stability' entry before it"
            remedy = "put '- {method: stability, ...}' before it"
            remedy += "" if method == "rdf" else ", or give it 'temperature' and 'time' of its own"
            yield view.problem(("validate", i, "method"), what, "no 'stability'", remedy)


def _asked(view: View) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], int]]:
    """Yield what tells each run that is asked for from others, how it is done, and the test that asks for it."""
    for i in range(len(view.items("validate"))):
        method = view.text("validate", i, "method")
        if method not in ("stability", "density", *ON_RUN):
            continue
        keys = view.mapping("validate", i)
        done = {k: keys[k] if keys.get(k) is not None else RUN[k] for k in ("timestep", "every")}
        ensemble = "npt" if method == "density" else keys.get("ensemble") or RUN["ensemble"]
        pressure = keys["pressure"] if keys.get("pressure") is not None else RUN["pressure"]
        kelvins = view.items("validate", i, "temperatures") if method == "density" else [keys.get("temperature")]
        sound = isinstance(ensemble, str) and all(isinstance(v, int | float) for v in (pressure, keys.get("time")))
        for kelvin in kelvins:
            if sound and isinstance(kelvin, int | float):
                yield (ensemble, kelvin, pressure if ensemble == "npt" else None, keys["time"]), done, i


def _lengths(view: View) -> Iterator[Problem]:
    """Check that no run has more steps than can be counted, let alone made."""
    said: set[int] = set()
    for key, done, i in _asked(view):
        time, timestep = key[-1], done["timestep"]
        sound = isinstance(timestep, int | float) and timestep > 0 and time > 0
        if sound and i not in said and time > MOST_STEPS * timestep:
            said.add(i)
            place: tuple[Part, ...] = ("validate", i, "time")
            what = f"this is more than {MOST_STEPS:.0e} MD steps"
            yield view.problem(place, what, view.get(*place), "write a shorter time, in ps")
        elif sound and i not in said and isinstance(done["every"], int) and done["every"] > 0:
            frames = round(time / (timestep * done["every"]))
            if frames < FEWEST_FRAMES:
                said.add(i)
                what = f"this run would keep {max(1, frames)} frames, and a drift is not told from fewer than 10"
                place = ("validate", i, "every" if view.get("validate", i, "every") is not None else "time")
                yield view.problem(place, what, view.get(*place), "write a longer time, or a smaller 'every'")


def _compared(view: View) -> Iterator[Problem]:
    """Check that what a test compares with is what the model was trained on, or that the file says that it is not."""
    engine = view.text("label", "engine")
    files = any(view.text("sample", k, "method") == "file" for k in range(len(view.items("sample"))))
    if engine not in ("cp2k", "ase") and not (engine == "pool" and files):
        return
    there = view.get("system", "potential") is not None or view.get("transfer", "potential") is not None
    for i in range(len(view.items("validate"))):
        method, said = view.text("validate", i, "method"), view.get("validate", i, "reference")
        if method not in COMPARED or (method == "density" and isinstance(said, list)):
            continue
        place: tuple[Part, ...] = ("validate", i, "method")
        what = f"'{method}' compares with a LAMMPS potential, and the labels are of '{engine}'"
        if not there:
            yield view.problem(place, what, "no potential", "add 'potential: {lammps: ...}' to 'system', or remove it")
        elif said != "potential":
            remedy = "add 'reference: potential' to compare with the system's all the same, or remove this test"
            yield view.problem(place, what, "no 'reference'", remedy)


def _conflicts(view: View) -> Iterator[Problem]:
    """Check that a run is asked for in one way: a second one would only cost time."""
    first: dict[tuple[Any, ...], tuple[dict[str, Any], int]] = {}
    for key, done, i in _asked(view):
        before, number = first.setdefault(key, (done, i))
        for name in before:
            if before[name] != done[name]:
                line = view.document.line(view.path("validate", number))
                what = f"this run is already asked for by '{view.text('validate', number, 'method')}' on line {line}"
                place: tuple[Part, ...] = ("validate", i, name)
                if view.get(*place) is None:
                    place = ("validate", i, "method")
                got = f"{name}: {show(done[name])}"
                remedy = f"write {name}: {show(before[name])} as there (or the same in both), or another time"
                yield view.problem(place, what, got, remedy)


def _guards(view: View) -> Iterator[Problem]:
    """Check that a run is watched in one way: it is made once, and ends at the first sign."""
    usual = Guards().model_dump()
    first: dict[tuple[Any, ...], tuple[dict[str, Any], int]] = {}
    for key, _, i in _asked(view):
        if view.text("validate", i, "method") != "stability":
            continue
        mine = usual | view.mapping("validate", i, "guards")
        before, number = first.setdefault(key, (mine, i))
        if mine != before:
            line = view.document.line(view.path("validate", number))
            what = f"this run is already asked for on line {line}, with other guards"
            own = view.get("validate", i, "guards") is not None
            place: tuple[Part, ...] = ("validate", i, "guards") if own else ("validate", i, "method")
            got = view.get(*place) if own else "the usual ones"
            yield view.problem(place, what, got, "write the same guards in both, or another time")


def _elements(view: View, folder: Path) -> dict[str, int]:
    """Return the atoms of each element that the model knows; nothing where they are not known yet."""
    from collections import Counter

    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in starting_numbers(view, folder)]
    mapped = view.mapping("transfer", "species")
    return dict(Counter(str(mapped.get(s, s)) for s in symbols))


def _density(view: View, i: int) -> Iterator[Problem]:
    kelvins, given = (view.items("validate", i, key) for key in ("temperatures", "reference"))
    if len(set(map(repr, kelvins))) < len(kelvins):
        what = "a temperature comes twice"
        yield view.problem(("validate", i, "temperatures"), what, kelvins, "write each once")
    if given and kelvins and len(given) != len(kelvins):
        what = f"there are {len(kelvins)} temperatures, and each needs a density"
        remedy = f"write {len(kelvins)} densities in g/cm^3, or remove it for runs with the reference potential"
        yield view.problem(("validate", i, "reference"), what, given, remedy)


def _charges(view: View, i: int, elements: dict[str, int]) -> Iterator[Problem]:
    place: tuple[Part, ...] = ("validate", i, "charges")
    charges = view.mapping(*place)
    if not charges or not elements or not all(isinstance(q, int | float) for q in charges.values()):
        return
    missing = sorted(set(elements) - set(charges))
    absent = sorted(set(charges) - set(elements))
    if missing:
        what = f"the charge of {', '.join(missing)} is missing"
        yield view.problem(place, what, charges, f"add {', '.join(f'{e}: ...' for e in missing)}")
    if absent:
        what = f"there is no {', '.join(absent)} in the system"
        yield view.problem(place, what, charges, f"its elements are {', '.join(sorted(elements))}")
    if missing or absent:
        return
    total = sum(charges[e] * n for e, n in elements.items())
    if abs(total) > NEUTRAL:
        what = f"the system would have a charge of {total:g}, and its conductivity would be that of the drift"
        yield view.problem(place, what, charges, "write charges that add up to nothing")
    elif not any(charges.values()):
        yield view.problem(place, "nothing has a charge", charges, "write the charges of the ions")


def _overlap(view: View, i: int) -> Iterator[Problem]:
    distance = view.text("validate", i, "distance") or Overlap.model_fields["distance"].default
    if distance == "rematch" and find_spec("dscribe") is None:
        what = "REMatch distances are computed by dscribe, which is not installed"
        key = "distance" if view.text("validate", i, "distance") else "method"
        remedy = "run pip install 'campaign[select]', or write 'distance: schnet'"
        yield view.problem(("validate", i, key), what, distance, remedy)
    gamma = view.get("validate", i, "gamma")
    if distance != "rematch" and gamma not in (None, Overlap.model_fields["gamma"].default):
        what = "'gamma' is of 'distance: rematch'"
        yield view.problem(("validate", i, "gamma"), what, gamma, "remove it, or write 'distance: rematch'")


def _relax(view: View, i: int, folder: Path, known: dict[str, int], files: dict[str, Path]) -> Iterator[Problem]:
    """Check that each structure can be made, and has only elements that the model was trained on."""
    usual = len(known) == 1 or (len(known) == 2 and len(set(known.values())) == 1)
    if known and not usual and not view.items("validate", i, "structures"):
        what = f"no crystals are usual for the elements {', '.join(sorted(known))} of the system"
        remedy = "add 'structures: [{file: crystal.cif}, ...]'"
        yield view.problem(("validate", i, "method"), what, "no structures", remedy)
    for k in range(len(view.items("validate", i, "structures"))):
        place: tuple[Part, ...] = ("validate", i, "structures", k)
        yield from check_prototype(view, place)
        elements = {e for e in view.items(*place, "elements") if isinstance(e, str)}
        key: tuple[Part, ...] = (*place, "elements")
        written = view.text(*place, "file")
        if written:
            key = (*place, "file")
            path = find(written, folder)
            atoms = structure(path) if not isinstance(path, Fault) else path
            if isinstance(atoms, Fault) or isinstance(path, Fault):
                fault = atoms if isinstance(atoms, Fault) else path
                assert isinstance(fault, Fault)
                yield view.problem(key, fault.what, fault.got, fault.remedy)
                continue
            files[written] = path
            elements = set(atoms.get_chemical_symbols())
        absent = sorted(elements - set(known)) if known else []
        if absent:
            what = f"the model is trained on {', '.join(sorted(known))} and knows no {', '.join(absent)}"
            yield view.problem(key, what, view.get(*key), "name a structure of the system's elements")
