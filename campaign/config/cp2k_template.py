"""A CP2K template: an input without cell and coordinates, checked word by word before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config import cp2k_ladder, cp2k_schema
from campaign.config.cp2k_files import data_files, refused, unnamed, wrong_kernels
from campaign.config.cp2k_kinds import check_kinds, element_of, kinds_of, serves_all
from campaign.config.cp2k_ladder import Settings
from campaign.config.cp2k_tree import Line, Section, read
from campaign.config.cp2k_use import check_use
from campaign.config.data_files import Fault
from campaign.config.fields import closest, suggest
from campaign.config.yaml_lines import show
from campaign.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Sections that a template may have; the rest is campaign's (cell, coordinates, what is run) or reads and writes files.
ALLOWED: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("GLOBAL", "FORCE_EVAL"),
    ("FORCE_EVAL",): ("DFT", "SUBSYS", "PRINT"),
    ("FORCE_EVAL", "SUBSYS"): ("CELL", "COORD", "KIND", "PRINT"),
    ("FORCE_EVAL", "SUBSYS", "CELL"): (),
}


class WrongTemplate(InputError):
    """A template that cannot be used.

    Attributes
    ----------
    faults
        What is wrong, each with its line in the template.
    """

    def __init__(self, path: Path, faults: Sequence[Fault]) -> None:
        super().__init__(*(f.problem("template").text(path) for f in faults))
        self.faults = list(faults)


@dataclass(frozen=True)
class Template:
    """A CP2K input without cell and coordinates.

    Attributes
    ----------
    path
        The file.
    root
        Its tree; not to be changed (``Section.copy``).
    """

    path: Path
    root: Section
    data: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The name of the KIND of each element; under ``DEFAULT`` the one that serves every other element."""
        found: dict[str, str] = {}
        for kind in kinds_of(self.root):
            found.setdefault("DEFAULT" if serves_all(kind) else element_of(kind), kind.parameter or "DEFAULT")
        return found

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has a KIND for."""
        return tuple(e for e in self.kinds if e != "DEFAULT")

    def with_rung(self, settings: Settings) -> Section:
        """Return its tree with a rung's settings in it."""
        return cp2k_ladder.apply(self.root, settings)

    def method(self, ladder: Sequence[str | Settings]) -> list[str]:
        """Return the hash of the physics that each rung leaves, in order, without duplicates.

        Parameters
        ----------
        ladder
            The rungs as they are written.
        """
        trees = (self.with_rung(cp2k_ladder.resolve(rung, self.root).settings) for rung in ladder)
        return list(dict.fromkeys(self.physics(tree) for tree in trees))

    def physics(self, tree: Section) -> str:
        """Return the hash of what decides the result of a tree's calculation, data files included."""
        from campaign.config.cp2k_method import digest

        return digest(tree, self.data)


def read_template(path: Path) -> Template:
    """Read and check a template.

    Raises
    ------
    WrongTemplate
        With everything that is wrong in it.
    """
    template, faults = examine(Path(path))
    if template is None or faults:
        raise WrongTemplate(path, faults)
    return template


def examine(path: Path) -> tuple[Template | None, list[Fault]]:
    """Return a template as far as it can be read, and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None, [Fault("this is not a text file", show(path.name), "name a CP2K input")]
    except OSError as error:
        return None, [Fault(f"this file cannot be read ({error.strerror})", show(path.name), "check the path")]
    root, faults = read(text)
    if faults:  # a word that is not known is often why the sections do not close
        _check_section((), root, faults)
        return None, sorted(faults, key=lambda f: f.line)
    faults = check(root)
    data, missing = data_files(root, path.parent)
    faults += missing
    faults += check_data(root, data)
    return Template(path, root, data), sorted(faults, key=lambda f: f.line)


def check(root: Section) -> list[Fault]:
    """Return what is wrong with a tree: unknown words, values, and what a single point of a frame cannot have."""
    faults: list[Fault] = []
    for name in ("GLOBAL", "FORCE_EVAL"):
        if len(list(root.all(name))) > 1:
            second = list(root.all(name))[1]
            faults.append(Fault(f"a template has one {name}", show(f"&{name}"), "remove this one", second.line))
    _check_section((), root, faults)
    faults += check_use(root)
    faults += unnamed(root)
    return faults


def check_data(root: Section, data: dict[str, Path]) -> list[Fault]:
    """Return what is wrong between a tree and its data files: KINDs without entries, kernels of another functional."""
    return [*check_kinds(root, data), *wrong_kernels(root, data)]


def _check_section(path: tuple[str, ...], here: Section, faults: list[Fault]) -> None:
    """Add what is wrong with the words of a section and of those in it."""
    spec = cp2k_schema.section(path)
    assert spec is not None  # its parent has looked
    if path and here.parameter:
        _check_parameter(here, spec, faults)
    seen: dict[str, int] = {}
    for line in here.keywords:
        node = spec.keywords.get(line.name)
        if node is None and spec.default is None:
            what = f"{'/'.join(path) or 'the top level'} has no keyword {line.name}"
            faults.append(Fault(what, show(line.name), _meant(line.name, path, spec), line.line))
            continue
        _check_value(line, node if node is not None else spec.default, faults)
        name = cp2k_schema.default_name(node) if node is not None else ""
        if node is not None and not cp2k_schema.repeats(node) and name in seen:
            what = f"{line.name} is written twice in this section, first on line {seen[name]}"
            faults.append(Fault(what, show(line.text()), "remove one", line.line))
        seen.setdefault(name, line.line)
        if refused(path, node, line.name):
            what = f"{line.name} reads or writes a file that campaign does not know of"
            faults.append(Fault(what, show(line.value), "remove this line", line.line))
    allowed = ALLOWED.get(path)
    before: set[str] = set()
    for section in here.sections:
        if section.name not in spec.sections:
            what = f"{'/'.join(path) or 'the top level'} has no section {section.name}"
            faults.append(Fault(what, show(f"&{section.name}"), _meant(section.name, path, spec), section.line))
        elif allowed is not None and section.name not in allowed:
            what = f"{'/'.join((*path, section.name))} has no place in a single point of a frame"
            faults.append(Fault(what, show(f"&{section.name}"), "remove this section", section.line))
        else:
            _check_section((*path, section.name), section, faults)
            if section.name in before and not _repeats((*path, section.name)):
                what = f"there is one section {section.name} already"
                faults.append(Fault(what, show(f"&{section.name}"), "put both into one", section.line))
        before.add(section.name)


def _repeats(path: tuple[str, ...]) -> bool:
    spec = cp2k_schema.section(path)
    return spec is not None and spec.repeats


def _check_parameter(here: Section, spec: cp2k_schema.SectionSpec, faults: list[Fault]) -> None:
    if spec.parameter is None:
        what = f"the section {here.name} takes no parameter"
        faults.append(Fault(what, show(here.parameter), f"write '&{here.name}'", here.line))
        return
    _check_value(Line(here.name, here.parameter, here.line), spec.parameter, faults)


def _check_value(line: Line, node: Element | None, faults: list[Fault]) -> None:
    if node is None:
        return
    # where lines are data there is no name: the first word belongs to the value
    text = line.text() if cp2k_schema.default_name(node) == "DEFAULT_KEYWORD" else line.value
    try:
        cp2k_schema.value_of(node, text)
    except cp2k_schema.WrongValue as error:
        remedy = suggest(text, error.choices[:12]) if error.choices else "correct the value"
        faults.append(Fault(f"{line.name}: {error}", show(text), remedy, line.line))


def _meant(name: str, path: tuple[str, ...], spec: cp2k_schema.SectionSpec) -> str:
    """Return a remedy for an unknown name: one of this section, or of one in it, that looks like it."""
    best = closest(name, [*spec.keywords, *spec.sections])
    if best:
        return f"did you mean '{best}'?"
    inner = [s for s in sorted(spec.sections) if name in set(cp2k_schema.names((*path, s)))][:3]
    return f"it belongs into {' or '.join('&' + s for s in inner)}" if inner else "see CP2K's manual of this section"
