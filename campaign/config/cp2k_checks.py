"""What must hold between a campaign file and the CP2K template that it names: told before anything is started."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from campaign.config import cp2k_data, cp2k_ladder
from campaign.config.cp2k_electrons import fixed, spin_faults
from campaign.config.cp2k_files import NO_BASIS, method_of, of_rung
from campaign.config.cp2k_kinds import kinds_of, named_entries, serves_all
from campaign.config.cp2k_template import Template, check, check_data, examine
from campaign.config.cp2k_tree import read_back
from campaign.config.data_files import Fault, find, taken
from campaign.config.structure_checks import starting_numbers
from campaign.config.view import View
from campaign.config.yaml_lines import Problem, show

PLACE = ("label", "template")


def check_template(view: View, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Find and check the template of ``label``, its data files, and the ladder on it.

    Parameters
    ----------
    view
        The campaign file.
    folder
        Its folder.

    Returns
    -------
    tuple
        Every file that a run needs, by the path it has in the run directory (data files come beside the template,
        wherever they were found), and what is wrong. Both empty where CP2K does not label.
    """
    written = view.text(*PLACE)
    if view.text("label", "engine") != "cp2k" or not written:
        return {}, []
    found = find(written, folder)
    if isinstance(found, Fault):
        return {}, [view.problem(PLACE, found.what, found.got, found.remedy)]
    template, faults = examine(found)
    problems = [_problem(view, fault, found) for fault in faults]
    if template is None:
        return {}, problems
    beside = PurePosixPath(os.path.normpath(written)).parent
    files = {written: found, **{str(beside / name): path for name, path in template.data.items()}}
    names = [fault for fault in map(taken, files) if fault is not None]
    problems += [
        view.problem(PLACE, f"{f.what}, and this template names a file of that name", f.got, f.remedy) for f in names
    ]
    if not faults:
        problems += _elements(view, folder, template)
        problems += _ladder(view, template)
    return files, problems


def _problem(view: View, fault: Fault, path: Path) -> Problem:
    return view.problem(PLACE, f"{fault.what} (line {fault.line} of {path.name})", fault.got, fault.remedy)


def _elements(view: View, folder: Path, template: Template) -> Iterator[Problem]:
    """Yield elements of the structure that the template cannot compute."""
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in starting_numbers(view, folder)]
    lacks = list(absent(template, sorted(set(symbols))))
    yield from (view.problem(PLACE, what, show(view.text(*PLACE)), remedy) for what, remedy in lacks)
    if not lacks:
        yield from (_problem(view, fault, template.path) for fault in spin_faults(template, symbols))


def absent(template: Template, elements: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, remedy) for elements that a template has no KIND, basis set or potential for."""
    if method_of(template.root) in NO_BASIS:
        return
    missing = [e for e in elements if e not in template.kinds]
    if missing and "DEFAULT" not in template.kinds:
        names, has = ", ".join(missing), " ".join(template.elements)
        what = f"the structure has {names}, which this template (KINDs {has}) has not"
        yield what, f"add '&KIND {missing[0]}' with BASIS_SET and POTENTIAL to it"
        return
    for kind in kinds_of(template.root):
        if not serves_all(kind):
            continue
        for named in named_entries(kind, template.root):
            for element in missing:
                name, paths = named.name, [template.data[f] for f in named.files if f in template.data]
                if name and not any(name.upper() in cp2k_data.entries(p, element) for p in paths):
                    where = f"in {' and '.join(named.files)} (line {named.line} of {template.path.name})"
                    yield f"{element} has no {named.what} {name} {where}", f"add '&KIND {element}'"


def _ladder(view: View, template: Template) -> Iterator[Problem]:
    """Yield what is wrong with the rungs once their settings are in the template."""
    for k, rung in enumerate(view.items("label", "ladder")):
        if isinstance(rung, str) and rung not in cp2k_ladder.RUNGS:
            continue  # the model says it
        if view.path("label", "ladder", k) in view.bad:
            continue
        if not isinstance(rung, str | dict) or (isinstance(rung, dict) and not all(isinstance(p, str) for p in rung)):
            continue
        if isinstance(rung, dict) and any(fixed(path) for path in rung):
            path = next(path for path in rung if fixed(path))
            what = "a rung says how SCF gets there; this would label another system, or with another functional"
            yield view.problem(("label", "ladder", k), what, show(path), "write it into the template, or remove it")
            continue
        tree = template.with_rung(cp2k_ladder.resolve(rung, template.root).settings)
        broken = read_back(tree)
        if broken:
            yield view.problem(("label", "ladder", k), broken[0].what, broken[0].got, broken[0].remedy)
            continue
        foreign = list(of_rung(template.root, tree))
        for fault in check(tree) + (foreign or check_data(tree, template.data)):
            yield view.problem(("label", "ladder", k), fault.what, fault.got, fault.remedy)
