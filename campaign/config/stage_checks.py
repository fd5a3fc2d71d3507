"""What must hold between the stages of a campaign file, and between its keys as a whole.

The checks read the raw data, not the model, so that they also run, as far as they can, on a file with other mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from campaign.config.sampling_checks import DYNAMICS, check_sampling
from campaign.config.structure_checks import check_packing, check_prototype
from campaign.config.training_checks import check_training
from campaign.config.view import Part, View, present
from campaign.config.yaml_lines import Problem, show

#: Stages that each stage works on the results of.
NEEDS = {
    "distill": ("train",),
    "label": ("select",),
    "train": ("select", "label"),
    "learn": ("train",),
    "validate": ("train",),
}

#: Packages of the extra ``select`` behind a ``select.method``.
PACKAGES = {"fps": "skmatter", "rematch": "dscribe"}


def check_keys(view: View) -> Iterator[Problem]:
    """Yield what does not hold between keys of a campaign file."""
    yield from _stage_order(view)
    yield from _potential_given(view)
    yield from check_prototype(view, ("system", "structure"))
    yield from check_packing(view)
    yield from check_sampling(view)
    yield from _representation(view)
    yield from _selector(view)
    yield from _distillation(view)
    yield from check_training(view)


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
