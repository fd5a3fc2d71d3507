"""What must hold between several keys, and between the campaign file and the files it names.

The checks read the raw data, not the model, so that they also run, as far as they can, on a file with other mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from campaign.config import packings
from campaign.config.campaign_file import ANI, MOMT, NPT, PROTOTYPES, Errors, Loss, SchNet
from campaign.config.data_files import Fault, find, find_frames, named_files, potential_header, structure, taken
from campaign.config.yaml_lines import Document, Problem, join, show

#: Passes over the training set where none are written.
EPOCHS = float(SchNet.model_fields["epochs"].default)

#: Stages that each stage works on the results of.
NEEDS = {
    "distill": ("train",),
    "label": ("select",),
    "train": ("select", "label"),
    "learn": ("train",),
    "validate": ("train",),
}

#: Atoms in the cell of each prototype that is repeated: the cubic one, where there is a cubic one.
ATOMS = {"rocksalt": 8, "zincblende": 8, "cesiumchloride": 2, "fcc": 4, "bcc": 2, "hcp": 2, "sc": 1, "diamond": 8}

#: Sampling methods that are molecular dynamics with system.potential.
DYNAMICS = ("npt", "nvt", "nvt_grid", "momt")

#: Those of ``DYNAMICS``, and the one with a trained model, which needs no potential.
ALL_DYNAMICS = (*DYNAMICS, "md")

#: A cell holds at least, and at most, this many times the volume of its atoms as spheres of their covalent radii. From
#: compressed metals (1.4 at no pressure) to thin gases; outside, most often the volume of one atom was written.
LEAST_VOLUME, MOST_VOLUME = 0.5, 100.0

#: Packages of the extra ``select`` behind a ``select.method``.
PACKAGES = {"fps": "skmatter", "rematch": "dscribe"}

#: The packages behind a ``train.model`` that the rest does without, and how to get them: torchani asks for a Zarr of
#: before version 3, which it does not use here.
TRAINERS = {
    "ani": (("torchani",), "pip install --no-deps 'torchani>=2.9'"),
    "gap": (("quippy", "f90wrap"), "pip install 'campaign[gap]'"),
}

Part = str | int


class View:
    """Careful access to a document: what is missing, of another type or already reported is None."""

    def __init__(self, document: Document, problems: Iterable[Problem]) -> None:
        self.document = document
        self.bad = {p.key for p in problems}

    def get(self, *parts: Part) -> Any:
        """Return the value at a key path."""
        value, path = self.document.data, ""
        for part in parts:
            path = join(path, part)
            if path in self.bad:
                return None
            if isinstance(part, str) and isinstance(value, dict):
                value = value.get(part)
            elif isinstance(part, int) and isinstance(value, list) and part < len(value):
                value = value[part]
            else:
                return None
        if any(key.startswith((path + ".", path + "[")) for key in self.bad) and not isinstance(value, dict | list):
            return None
        return value

    def text(self, *parts: Part) -> str | None:
        """Return a text."""
        value = self.get(*parts)
        return value if isinstance(value, str) else None

    def number(self, *parts: Part, default: float | None = None) -> float | None:
        """Return a positive number, or the default where the key is not written (and no other word stands for it)."""
        value = self.get(*parts)
        if value is None:
            beside = self.path(*parts[:-1]) + "."
            unsure = self.path(*parts) in self.document.lines or any(key.startswith(beside) for key in self.bad)
            return None if unsure else default
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None

    def items(self, *parts: Part) -> list[Any]:
        """Return a list; empty where there is none."""
        value = self.get(*parts)
        return value if isinstance(value, list) else []

    def mapping(self, *parts: Part) -> dict[str, Any]:
        """Return a mapping; empty where there is none."""
        value = self.get(*parts)
        return value if isinstance(value, dict) else {}

    def path(self, *parts: Part) -> str:
        """Return the key path as it is written in messages."""
        path = ""
        for part in parts:
            path = join(path, part)
        return path

    def problem(self, parts: tuple[Part, ...], what: str, got: Any, remedy: str) -> Problem:
        """Return a problem at a key, on its line; a ``got`` that is text stands as it is."""
        key = self.path(*parts)
        return Problem(self.document.line(key), key, what, got if isinstance(got, str) else show(got), remedy)


def check_keys(view: View) -> Iterator[Problem]:
    """Yield what does not hold between keys of a campaign file."""
    yield from _stage_order(view)
    yield from _potential_given(view)
    yield from check_prototype(view, ("system", "structure"))
    yield from _packing(view)
    yield from _steps(view)
    yield from _sampling_lists(view)
    yield from _model_dynamics(view)
    yield from _pool_size(view)
    yield from _representation(view)
    yield from _selector(view)
    yield from _distillation(view)
    yield from _training(view)


def _training(view: View) -> Iterator[Problem]:
    loss = view.mapping("train", "loss")
    weights = [name for name in Loss.model_fields if name not in ("kind", "delta")]
    if all(loss.get(n) == 0 for n in weights):
        yield view.problem(("train", "loss"), "every weight is zero", loss, "give at least one a weight above 0")
    kind = view.text("train", "loss", "kind") or "mse"
    usual = Loss.model_fields["delta"].default  # a resolved file has it written out
    if view.get("train", "loss", "delta") not in (None, usual) and kind in ("mse", "l4"):
        what = f"'delta' is of 'kind: huber', and this loss is {kind}"
        yield view.problem(("train", "loss", "delta"), what, loss["delta"], "remove it, or write 'kind: huber'")
    patience, epochs = view.number("train", "patience"), view.number("train", "epochs", default=EPOCHS)
    if patience and epochs and patience >= epochs:
        what = f"training has {epochs:g} epochs and could never end early"
        yield view.problem(("train", "patience"), what, patience, f"write less than {epochs:g}, or remove it")
    yield from _trainer(view)
    yield from _processes(view)


def _trainer(view: View) -> Iterator[Problem]:
    """Check what only some models need: their package, and an inner cutoff that is one."""
    model = view.text("train", "model") or ""
    packages, install = TRAINERS.get(model, ((), ""))
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        what = f"this model needs {absent[0]}, which is not installed"
        yield view.problem(("train", "model"), what, model, f"run {install}, or write 'model: schnet'")
    if model == "ani":
        inner, outer = (
            view.number("train", k, default=ANI.model_fields[k].default) for k in ("angular_cutoff", "cutoff")
        )
        if inner and outer and inner >= outer:
            what = f"angles are of neighbours within the cutoff of {outer:g} Å"
            key = "angular_cutoff" if view.get("train", "angular_cutoff") is not None else "cutoff"
            remedy = f"write less than {outer:g}" if key == "angular_cutoff" else f"write more than {inner:g}"
            yield view.problem(("train", key), what, view.get("train", key), remedy)


def _processes(view: View) -> Iterator[Problem]:
    """Check that each process of a training has a frame in every step, and one model at a time."""
    if view.get("train", "together") is True and view.text("train", "model") == "ani":
        what = "models of this kind are trained one by one"
        yield view.problem(("train", "together"), what, True, "remove it")
    batch, processes = view.number("train", "batch", default=1), view.number("train", "processes", default=1)
    if not batch or not processes or processes == 1:
        return
    if processes > batch:
        what = f"a step has {batch:g} frame{'s' if batch > 1 else ''}, and each process takes some of them"
        remedy = f"write batch: {processes:g} or more, or processes: {batch:g}"
        yield view.problem(("train", "processes"), what, processes, remedy)
    if view.get("train", "together") is True:
        what = "members that are trained together are trained in one process"
        yield view.problem(("train", "together"), what, True, "remove it, or 'processes'")


def _representation(view: View) -> Iterator[Problem]:
    where = ("select", "representation", "model")
    if view.text(*where) == "soap" and find_spec("dscribe") is None:
        what = "SOAP is computed by dscribe, which is not installed"
        yield view.problem(where, what, "soap", "run pip install 'campaign[select]', or write 'model: schnet'")


def _selector(view: View) -> Iterator[Problem]:
    method = view.text("select", "method")
    package = PACKAGES.get(method or "")
    if package and find_spec(package) is None:
        what = f"this selector is done by {package}, which is not installed"
        remedy = "run pip install 'campaign[select]', or choose another method"
        yield view.problem(("select", "method"), what, method, remedy)


def _distillation(view: View) -> Iterator[Problem]:
    """Check that what is distilled has the labels that the models are trained on: those of the pool itself.

    Frames of a file have whatever labels the file has; of them nothing is known here.
    """
    if view.number("distill", "steps") and view.number("distill", "epochs"):
        what = "the length of a training is given twice, in 'epochs' and in 'steps'"
        yield view.problem(("distill", "steps"), what, view.get("distill", "steps"), "remove one of them")
    engine = view.text("label", "engine")
    if not present(view, "distill") or engine is None:
        return
    methods = {view.text("sample", i, "method") for i in range(len(view.items("sample")))} - {None, "file"}
    own = view.text("label", "potential", "lammps")
    given = view.text("system", "potential", "lammps")
    what = "distillation works with the energies and forces that frames were sampled with, and these labels are others"
    if engine == "pool":
        return
    if "md" in methods:
        remedy = "write 'label: {engine: pool}', or remove 'distill'"
        yield view.problem(("label", "engine"), what, show(engine), remedy)
    elif methods & set(DYNAMICS) and (engine != "lammps" or own not in (None, given)):
        got, remedy = engine, "write 'label: {engine: pool}', or remove 'distill'"
        key: tuple[Part, ...] = ("label", "engine")
        if engine == "lammps":
            got, key = own or "", ("label", "potential", "lammps")
        yield view.problem(key, what, show(got), remedy)
    elif "fake" in methods and engine != "fake":
        yield view.problem(("label", "engine"), what, show(engine), "write 'engine: fake', or remove 'distill'")


def present(view: View, stage: str) -> bool:
    """Tell whether a stage is written."""
    data = view.document.data
    return isinstance(data, dict) and bool(data.get(stage))


def _stage_order(view: View) -> Iterator[Problem]:
    data = view.document.data
    if "sample" not in view.bad and not data.get("sample") and not data.get("transfer"):
        if "sample" in data:
            what, got = "the list or mapping is too short", data["sample"]
            yield view.problem(("sample",), what, got, "write at least 1 (list of sampling runs)")
        else:
            remedy = "add 'sample: [{method: npt, ...}]' (list of sampling runs)"
            yield view.problem(("sample",), "this key is missing", "nothing", remedy)
    for stage, needed in NEEDS.items():
        missing = [n for n in needed if not present(view, n)]
        if present(view, "distill") or present(view, "transfer"):  # frames come from elsewhere: the pool, a run
            missing = [n for n in missing if n != "select"]
        if present(view, stage) and missing:
            names = " and ".join(f"'{n}'" for n in missing)
            what = f"'{stage}' works on the results of {names}"
            yield view.problem((stage,), what, f"no {names}", f"add a section {names}, or remove '{stage}'")


def _potential_given(view: View) -> Iterator[Problem]:
    system = view.get("system")
    if not isinstance(system, dict) or system.get("potential") is not None:
        return
    users: list[tuple[Part, ...]] = []
    for i in range(len(view.items("sample"))):
        if view.text("sample", i, "method") in DYNAMICS:
            users.append(("sample", i, "method"))
    given = view.mapping("label").get("potential") or view.mapping("transfer").get("potential")
    if view.text("label", "engine") == "lammps" and given is None:
        users.append(("label", "engine"))
    if view.text("train", "model") != "fake" and given is None:
        for i in range(len(view.items("validate"))):
            if view.text("validate", i, "method") not in ("errors", None):
                users.append(("validate", i, "method"))
    for user in users:
        word = view.text(*user)
        what = f"'{word}' needs a potential"
        yield view.problem(user, what, "no system.potential", "add 'potential: {lammps: FILE}' under system")


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


def _packing(view: View) -> Iterator[Problem]:
    """Check that a random packing has room at its density, and atoms enough for its own images to stay apart."""
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


def _composition(view: View) -> dict[str, int]:
    """Return the atoms of a packing; none where something is wrong with them."""
    from ase.data import atomic_numbers

    found = view.mapping("system", "structure", "packing")
    if view.get("system", "structure", "prototype") is not None:
        return {}
    good = all(s in atomic_numbers and s != "X" and type(n) in (int, float) and n >= 1 for s, n in found.items())
    return {s: int(n) for s, n in found.items()} if good else {}


def _md_frames(view: View, i: int) -> tuple[float, float] | None:
    """Return (steps, every) of a sampling entry by molecular dynamics."""
    if view.text("sample", i, "method") not in ALL_DYNAMICS:
        return None
    steps = view.number("sample", i, "steps")
    kind = MOMT if view.text("sample", i, "method") == "momt" else NPT
    every = view.number("sample", i, "every", default=kind.model_fields["every"].default)
    return (steps, every) if steps and every else None


def _steps(view: View) -> Iterator[Problem]:
    for i in range(len(view.items("sample"))):
        found = _md_frames(view, i)
        if found and found[0] % found[1]:
            steps, every = found
            better = int(max(1, round(steps / every)) * every)
            what = f"steps must be a multiple of every ({every:g})"
            yield view.problem(("sample", i, "steps"), what, steps, f"write {better}")


def _points(view: View, i: int) -> int:
    """Return at how many points (pressures; volumes and temperatures) a sampling entry has walkers."""
    lists = ("volumes", "temperatures") if view.text("sample", i, "method") == "nvt_grid" else ("pressure",)
    return int(np.prod([max(1, len(view.items("sample", i, name))) for name in lists]))


def _sampling_lists(view: View) -> Iterator[Problem]:
    """Check that no point of a sampling method comes twice, and that every volume has room for the atoms."""
    for i in range(len(view.items("sample"))):
        if view.text("sample", i, "method") not in (*DYNAMICS[:3], "md"):  # the two temperatures of MOMT are no points
            continue
        for name in ("pressure", "volumes", "temperatures"):
            found = view.items("sample", i, name)
            if len(set(map(repr, found))) < len(found):
                what = "a value comes twice: its walkers would be one point's"
                remedy = "write each once, and 'walkers' for more of them"
                yield view.problem(("sample", i, name), what, found, remedy)


def _model_dynamics(view: View) -> Iterator[Problem]:
    """Check what sampling with a model cannot do: several ranks a walker, lists and ramps that its ensemble has not."""
    for i in range(len(view.items("sample"))):
        place = ("sample", i)
        if view.text(*place, "method") != "md":
            continue
        if (view.number(*place, "ranks", default=1) or 1) > 1:
            what = "a model drives all atoms of a walker in one process"
            yield view.problem((*place, "ranks"), what, view.get(*place, "ranks"), "write 1")
        ensemble = view.text(*place, "ensemble")
        if ensemble in ("nvt", "nve") and view.items(*place, "pressure"):
            what = f"{ensemble} keeps the cell as it is"
            yield view.problem((*place, "pressure"), what, view.get(*place, "pressure"), "remove it")
        if ensemble == "nve" and view.items(*place, "temperature"):
            what = "nve has no thermostat that could follow a ramp"
            yield view.problem((*place, "temperature"), what, view.get(*place, "temperature"), "write one temperature")


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


def _pool_size(view: View) -> Iterator[Problem]:
    """Check that the pool has frames to hold out beside those that are selected.

    More frames to select than there are is no mistake: all are taken, and the plan and the status say so.
    """
    pool = 0.0
    for i in range(len(view.items("sample"))):
        found = _md_frames(view, i)
        frames = found[0] // found[1] if found else view.number("sample", i, "frames")
        walkers = view.number("sample", i, "walkers", default=1)
        if not frames or not walkers:
            return
        pool += frames * walkers * _points(view, i)
    size = view.number("select", "size")
    if not size or not pool:
        return
    for i in range(len(view.items("validate"))):
        held_out = view.number("validate", i, "held_out", default=Errors.model_fields["held_out"].default)
        if view.text("validate", i, "method") != "errors" or not held_out:
            continue
        picks = size * (1 + len(view.items("validate", i, "against")))
        if held_out + picks > pool:
            what = f"the sampling gives {pool:.0f} frames and {picks:.0f} of them are for training"
            left = f"write held_out: {pool - picks:.0f} or less" if pool > picks else "select fewer"
            yield view.problem(("validate", i, "held_out"), what, held_out, f"{left}, or sample more")


def check_files(view: View, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Find and check every data file that the campaign names.

    Returns
    -------
    tuple
        The files by their path as written, and what is wrong.
    """
    files: dict[str, Path] = {}
    problems: list[Problem] = []

    def open_file(parts: tuple[Part, ...]) -> Path | None:
        written = view.text(*parts)
        if not written:
            return None
        found = find(written, folder)
        if isinstance(found, Fault):
            problems.append(view.problem(parts, found.what, found.got, found.remedy))
            return None
        files[written] = found
        return found

    elements = _elements(view)
    place: tuple[Part, ...] = ("system", "structure", "file")
    path = open_file(place)
    if path:
        atoms = structure(path)
        if isinstance(atoms, Fault):
            problems.append(view.problem(place, atoms.what, atoms.got, atoms.remedy))
        else:
            elements = set(atoms.get_chemical_symbols())
            problems += check_volumes(view, atoms.numbers)
    else:
        problems += check_volumes(view, structure_numbers(view))
        problems += check_density(view)
    for section in ("system", "transfer", "label"):
        place = (section, "potential", "lammps")
        path = open_file(place)
        if path is None:
            continue
        header = potential_header(path)
        if isinstance(header, Fault):
            what = f"{header.what} (line {header.line} of {path.name})"
            problems.append(view.problem(place, what, header.got, header.remedy))
        elif not elements <= set(header.elements):
            absent = ", ".join(sorted(elements - set(header.elements)))
            what = f"the structure has {absent}, which this potential (elements {' '.join(header.elements)}) has not"
            problems.append(view.problem(place, what, show(view.text(*place)), f"name a potential with {absent} in it"))
        else:
            names = (str(PurePosixPath(view.text(*place) or "").parent / name) for name in named_files(path))
            found = next(filter(None, map(taken, names)), None)
            if found:
                what = f"{found.what}, and this potential names a file of that name"
                problems.append(view.problem(place, what, found.got, found.remedy))
    for i in range(len(view.items("sample"))):
        if view.text("sample", i, "method") == "md":
            open_file(("sample", i, "model"))
        written = view.text("sample", i, "file")
        if view.text("sample", i, "method") != "file" or not written:
            continue
        place = ("sample", i, "file")
        frames = find_frames(written, folder)  # not one of the files that are copied: it is read in place
        if isinstance(frames, Fault):
            problems.append(view.problem(place, frames.what, frames.got, frames.remedy))
        elif view.items("sample", i, "elements") and not written.lower().endswith((".dump", ".lammpstrj")):
            what = "only LAMMPS dumps need the elements of their atom types"
            place = ("sample", i, "elements")
            problems.append(view.problem(place, what, view.get(*place), "remove it"))
    return files, problems


def structure_numbers(view: View) -> Any:
    """Return the atomic numbers of a prototype's or a packing's atoms; none where something is wrong with it."""
    from ase.data import atomic_numbers

    place = ("system", "structure")
    composition = _composition(view)
    if not composition:
        prototype, elements = view.text(*place, "prototype"), sorted(_elements(view))
        times = [view.number(*place, "supercell", k) for k in range(3)] if view.items(*place, "supercell") else [1] * 3
        if prototype not in ATOMS or not elements or None in times or not set(elements) <= set(atomic_numbers):
            return np.zeros(0, "int64")
        each = ATOMS[prototype] * int(np.prod([t or 1 for t in times])) // len(elements)
        composition = dict.fromkeys(elements, each)
    return np.repeat([atomic_numbers[e] for e in composition], list(composition.values()))


def _elements(view: View) -> set[str]:
    """Return the elements of a prototype or a packing; none where one of them is wrong."""
    if view.mapping("system", "structure", "packing"):
        return set(_composition(view))
    place = ("system", "structure", "elements")
    found = [view.text(*place, i) for i in range(len(view.items(*place)))]
    return set() if None in found else {e for e in found if e is not None}
