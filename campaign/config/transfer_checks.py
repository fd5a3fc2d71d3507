"""What must hold in the section ``transfer`` beside its own keys, as far as the campaign file and its files tell.

What the source holds is looked at when the campaign is checked or run (``campaign.origins``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from campaign.config.data_files import Fault, potential_header
from campaign.config.structure_checks import structure_numbers
from campaign.config.view import Part, View
from campaign.config.yaml_lines import Problem, show


def check_transfer(view: View, files: Mapping[str, Path]) -> Iterator[Problem]:
    """Yield what is wrong with the section ``transfer``; ``files`` are the data files by their path as written."""
    if not view.mapping("transfer"):
        return
    yield from _other_stages(view)
    yield from _tests(view)
    yield from _elements(view, files)
    yield from _lattice(view)


def _other_stages(view: View) -> Iterator[Problem]:
    for stage in ("select", "distill"):
        if view.get(stage):
            what = "the frames to train on are those that 'transfer' brings"
            yield view.problem((stage,), what, view.get(stage), f"remove '{stage}', or remove 'transfer'")
    if view.text("label", "engine") == "pool":
        what = "transferred frames have no labels: those of their source are of another element"
        yield view.problem(("label", "engine"), what, "'pool'", "write the engine of the target, such as lammps")


def _tests(view: View) -> Iterator[Problem]:
    """Check that the target's own pool is there where models are tested on it, and only there."""
    methods = [view.text("validate", i, "method") for i in range(len(view.items("validate")))]
    if "errors" in methods and not view.items("sample") and "sample" not in view.bad:
        what = "'errors' tests on frames of the target, and there is no pool of them"
        remedy = "add a section 'sample', such as [{method: file, file: al.extxyz}] or a run of its own"
        yield view.problem(("validate", methods.index("errors"), "method"), what, "no 'sample'", remedy)
    if view.items("sample") and "errors" not in methods and None not in methods:
        what = "what is sampled beside 'transfer' is only for the test on held-out frames, and there is none"
        remedy = "add '- {method: errors}' under validate, or remove 'sample'"
        yield view.problem(("sample",), what, "no 'errors'", remedy)


def _potential(view: View) -> tuple[Part, ...] | None:
    """Return the key of the potential of the target (``Campaign.reference``); None where there is none."""
    sections = ("label", "transfer", "system") if view.text("label", "engine") == "lammps" else ("transfer", "system")
    return next(((s, "potential", "lammps") for s in sections if view.text(s, "potential", "lammps")), None)


def _elements(view: View, files: Mapping[str, Path]) -> Iterator[Problem]:
    """Check that the target's elements are in its potential and in its structure."""
    from ase.data import chemical_symbols

    species = view.mapping("transfer", "species")
    targets = {str(v) for v in species.values()}
    where = _potential(view)
    path = files.get(view.text(*where) or "") if where else None
    header = potential_header(path) if path else None
    known = set() if header is None or isinstance(header, Fault) else set(header.elements)
    there = {chemical_symbols[z] for z in structure_numbers(view)}
    if known and (absent := sorted(targets - known)) and where:
        name = f"{view.path(*where[:-1])} (elements {' '.join(sorted(known))})"
        what = f"the frames would become {', '.join(absent)}, which {name} has not"
        yield view.problem(("transfer", "species"), what, show(species), f"name a potential with {absent[0]} in it")
    elif there and (absent := sorted(targets - there)):
        what = f"the frames would become {', '.join(absent)}, which system.structure has not"
        remedy = "write the crystal of the target under system.structure"
        yield view.problem(("transfer", "species"), what, show(species), remedy)


def _lattice(view: View) -> Iterator[Problem]:
    """Check that there is a crystal and a potential of which the lattice constant can be found."""
    if view.mapping("transfer").get("scale", "lattice") != "lattice":
        return
    factor = "write a factor, such as 'scale: 1.15'"
    if view.get("system", "structure") is not None and not view.text("system", "structure", "prototype"):
        what = "the lattice ratio needs the target's crystal, and system.structure is no prototype"
        yield view.problem(("transfer", "scale"), what, "'lattice'", f"{factor}, or a prototype with its elements")
    elif not any(view.mapping(section).get("potential") for section in ("label", "transfer", "system")):
        what = "the lattice ratio needs the target's potential"
        remedy = f"{factor}, or add 'potential: {{lammps: FILE}}' under transfer"
        yield view.problem(("transfer", "scale"), what, "no potential", remedy)
