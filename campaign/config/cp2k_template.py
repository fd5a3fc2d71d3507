"""A CP2K template: an input without cell and coordinates, checked word by word before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config import cp2k_data, cp2k_ladder, cp2k_schema
from campaign.config.cp2k_ladder import DFT, Settings
from campaign.config.cp2k_tree import Line, Section, read, unquoted
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
#: Keywords that name a data file, which is looked for beside the template and in CP2K's data folder.
DATA = ("BASIS_SET_FILE_NAME", "POTENTIAL_FILE_NAME", "KERNEL_FILE_NAME", "PARAMETER_FILE_NAME")
#: Methods of DFT/QS that have their own basis.
NO_BASIS = ("XTB", "DFTB", "AM1", "MNDO", "MNDOD", "PDG", "PM3", "PM6", "PM6-FM", "PNNL", "RM1")

#: How CP2K writes no.
FALSE = ("F", ".F.", "FALSE", ".FALSE.", "OFF", "NO", "N", "0")


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
            name = kind.parameter or "DEFAULT"
            element = name if name.upper() == "DEFAULT" else element_of(kind)
            found.setdefault("DEFAULT" if element.upper() == "DEFAULT" else element, name)
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
    faults += _check_kinds(root, data)
    return Template(path, root, data), sorted(faults, key=lambda f: f.line)


def check(root: Section) -> list[Fault]:
    """Return what is wrong with a tree: unknown words, values, and what a single point of a frame cannot have."""
    faults: list[Fault] = []
    for name in ("GLOBAL", "FORCE_EVAL"):
        if len(list(root.all(name))) > 1:
            second = list(root.all(name))[1]
            faults.append(Fault(f"a template has one {name}", show(f"&{name}"), "remove this one", second.line))
    _check_section((), root, faults)
    faults += _check_use(root)
    return faults


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
        if "FILE" in line.name and line.name not in DATA:
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


def _value(section: Section | None, *names: str) -> str:
    return ((section.get(*names) if section else None) or "").upper()


def _check_use(root: Section) -> Iterator[Fault]:
    """Yield what stands against a single point of a periodic frame, or would hide whether it converged."""
    force_eval = root.find("FORCE_EVAL")
    if root.find(*DFT) is None:
        line = force_eval.line if force_eval else 1
        yield Fault("a template has a section FORCE_EVAL with DFT in it", "none", "add &FORCE_EVAL and &DFT", line)
    rules: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[str], bool], str, str]] = [
        (
            ("GLOBAL",),
            ("RUN_TYPE", "PROGRAM_NAME", "PROGRAM"),
            lambda v: v in ("ENERGY", "ENERGY_FORCE", "CP2K"),
            "campaign runs single points",
            "write ENERGY_FORCE, or remove this line",
        ),
        (
            ("FORCE_EVAL",),
            ("METHOD",),
            lambda v: v in ("QS", "QUICKSTEP"),
            "labels come from Quickstep",
            "write 'METHOD QS'",
        ),
        (
            (*DFT, "POISSON"),
            ("PERIODIC",),
            lambda v: v == "XYZ",
            "frames are periodic along all three cell vectors",
            "write 'PERIODIC XYZ'",
        ),
        (
            ("FORCE_EVAL", "SUBSYS", "CELL"),
            ("PERIODIC",),
            lambda v: v == "XYZ",
            "frames are periodic along all three cell vectors",
            "write 'PERIODIC XYZ'",
        ),
        (
            ("FORCE_EVAL", "SUBSYS", "CELL"),
            ("MULTIPLE_UNIT_CELL",),
            lambda v: v.split() == ["1"] * 3,
            "a frame is computed as it is",
            "remove this line",
        ),
        (
            (*DFT, "QS"),
            ("LS_SCF",),
            lambda v: v in FALSE,
            "of linear-scaling SCF campaign cannot see whether it converged",
            "remove this line",
        ),
        (
            (*DFT, "SCF"),
            ("IGNORE_CONVERGENCE_FAILURE",),
            lambda v: v in FALSE,
            "an unconverged result is never accepted",
            "remove this line",
        ),
    ]
    for path, names, good, what, remedy in rules:
        section = root.find(*path) or Section("")
        for word in section.keywords:
            if word.name in names and not good(word.value.upper()):
                yield Fault(what, show(f"{section.name}/{word.text()}"), remedy, word.line)


def kinds_of(root: Section) -> list[Section]:
    """Return the KIND sections."""
    subsys = root.find("FORCE_EVAL", "SUBSYS")
    return list(subsys.all("KIND")) if subsys else []


def element_of(kind: Section) -> str:
    """Return the chemical symbol of a KIND: its ELEMENT, or its name without a number."""
    return (kind.get("ELEMENT", "ELEMENT_SYMBOL") or kind.parameter.rstrip("0123456789")).capitalize()


def _file_lines(root: Section) -> Iterator[tuple[Section, Line]]:
    """Yield the keywords that name data files with their sections; where there is none, CP2K's own defaults."""
    dft = root.find(*DFT)
    for _, section in root.walk():
        yield from ((section, line) for line in section.keywords if line.name in DATA)
    if dft is None:
        return
    method = _value(dft.find("QS"), "METHOD")
    defaults = {"BASIS_SET_FILE_NAME": "BASIS_SET", "POTENTIAL_FILE_NAME": "POTENTIAL"}
    for name, default in defaults.items() if method not in NO_BASIS and kinds_of(root) else ():
        if dft.get(name) is None:
            yield dft, Line(name, default, dft.line)


def data_files(root: Section, folder: Path) -> tuple[dict[str, Path], list[Fault]]:
    """Return the data files that a tree names, by name, and what is wrong with them."""
    found: dict[str, Path] = {}
    faults: list[Fault] = []
    for _, line in _file_lines(root):
        name = unquoted(line.value)
        path = cp2k_data.locate(name, folder)
        if isinstance(path, Fault):
            faults.append(Fault(f"{line.name}: {path.what}", path.got, path.remedy, line.line))
        else:
            found[name] = path
    return found, faults


def _check_kinds(root: Section, data: dict[str, Path]) -> Iterator[Fault]:
    """Yield elements without a basis set or a potential, and those that are not in the data files."""
    from ase.data import atomic_numbers

    dft = root.find(*DFT) or Section("DFT")
    method = _value(dft.find("QS"), "METHOD")
    if not kinds_of(root) and method not in NO_BASIS:
        line = (root.find("FORCE_EVAL", "SUBSYS") or Section("")).line or 1
        yield Fault("no element has a KIND", "no &KIND", "add '&KIND Na' with BASIS_SET and POTENTIAL", line)
    seen: dict[str, int] = {}
    for kind in kinds_of(root):
        element = element_of(kind)
        default = (kind.parameter or "DEFAULT").upper() == "DEFAULT"
        if not default and atomic_numbers.get(element, 0) < 1:
            what = "this KIND is of no chemical element"
            yield Fault(what, show(kind.parameter), "write '&KIND Na', or add ELEMENT", kind.line)
            continue
        if element in seen:
            what = f"{element} has a KIND already, on line {seen[element]}: a frame knows its elements only"
            yield Fault(what, show(kind.parameter), "keep one KIND of an element", kind.line)
        seen[element] = kind.line
        if method not in NO_BASIS:
            yield from _check_entries(kind, "" if default else element, root, data)


def _check_entries(kind: Section, element: str, root: Section, data: dict[str, Path]) -> Iterator[Fault]:
    for what, name, line, files in named_entries(kind, root):
        if name is None:
            yield Fault(
                f"the KIND {kind.parameter or 'DEFAULT'} has no {what}",
                show(f"&KIND {kind.parameter}"),
                f"add a line '{what} NAME'",
                line,
            )
            continue
        paths = [data[f] for f in files if f in data]
        if not element or not paths or len(paths) < len(files):
            continue  # of every element; or the missing file is named already
        known = [n for path in paths for n in cp2k_data.entries(path, element)]
        if name.upper() not in known:
            best = closest(name, known)
            remedy = f"did you mean '{best}'?" if best else _known(element, what, known)
            where = " and ".join(files)
            yield Fault(f"{element} has no {what} of this name in {where}", show(name), remedy, line)


def _known(element: str, what: str, known: list[str]) -> str:
    if not known:
        return f"name a file that has {element} in it"
    return f"write one of {', '.join(known[:8])}"


def named_entries(kind: Section, root: Section) -> Iterator[tuple[str, str | None, int, list[str]]]:
    """Yield (what, name, line, files) of each basis set and potential that a KIND names; None for a missing one."""
    dft = root.find(*DFT) or Section("DFT")
    files = [unquoted(k.value) for k in dft.keywords if k.name == "BASIS_SET_FILE_NAME"] or ["BASIS_SET"]
    sets = [k for k in kind.keywords if k.name in ("BASIS_SET", "ORBITAL_BASIS_SET", "ORB_BASIS", "AUX_FIT_BASIS_SET")]
    for line in sets:
        yield "BASIS_SET", unquoted(line.value.split()[-1]) if line.value else None, line.line, files
    if not sets and kind.find("BASIS") is None:
        yield "BASIS_SET", None, kind.line, files
    own = kind.get("POTENTIAL_FILE_NAME") or dft.get("POTENTIAL_FILE_NAME") or "POTENTIAL"
    potentials = [k for k in kind.keywords if k.name in ("POTENTIAL", "POT")]
    for line in potentials:
        yield "POTENTIAL", unquoted(line.value.split()[-1]) if line.value else None, line.line, [unquoted(own)]
    if not potentials and kind.find("POTENTIAL") is None:
        yield "POTENTIAL", None, kind.line, [unquoted(own)]
