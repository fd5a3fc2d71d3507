"""The KINDs of a CP2K input: their elements, and the basis sets and potentials that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from campaign.config import cp2k_data, cp2k_schema
from campaign.config.cp2k_files import NO_BASIS, method_of
from campaign.config.cp2k_ladder import DFT
from campaign.config.cp2k_tree import Line, Section, unquoted
from campaign.config.data_files import Fault
from campaign.config.fields import closest
from campaign.config.yaml_lines import show

KIND = ("FORCE_EVAL", "SUBSYS", "KIND")

#: Potentials that are looked up in a potential file. The others are effective core potentials or files by themselves.
LOOKED_UP = ("GTH", "ALL")


@dataclass(frozen=True)
class Named:
    """A basis set or potential that a KIND names.

    Attributes
    ----------
    what
        The keyword, by its first name.
    name
        The entry; None where the KIND should name one and does not.
    line
        Of the template.
    files
        The data files that CP2K looks in, in order.
    """

    what: str
    name: str | None
    line: int
    files: tuple[str, ...]


def kinds_of(root: Section) -> list[Section]:
    """Return the KIND sections."""
    subsys = root.find("FORCE_EVAL", "SUBSYS")
    return list(subsys.all("KIND")) if subsys else []


def serves_all(kind: Section) -> bool:
    """Tell whether a KIND serves every element that has none."""
    return (kind.parameter or "DEFAULT").upper() == "DEFAULT"


def element_of(kind: Section) -> str:
    """Return the chemical symbol of a KIND: its ELEMENT, or its name without a number."""
    return (kind.get("ELEMENT", "ELEMENT_SYMBOL") or kind.parameter.rstrip("0123456789")).capitalize()


@lru_cache(maxsize=1)
def _basis_keywords() -> dict[str, str]:
    """Return the first name of each keyword of KIND that names a basis set, by each of its names in the schema."""
    spec = cp2k_schema.section(KIND)
    assert spec is not None
    first = {name: cp2k_schema.default_name(node) for name, node in spec.keywords.items()}
    return {name: default for name, default in first.items() if default.endswith("BASIS_SET")}


def named_entries(kind: Section, root: Section) -> Iterator[Named]:
    """Yield each basis set and potential that a KIND names; with None as its name one that is missing."""
    dft = root.find(*DFT) or Section("DFT")
    files = tuple(unquoted(k.value) for k in dft.keywords if k.name == "BASIS_SET_FILE_NAME") or ("BASIS_SET",)
    words = _basis_keywords()
    sets = [k for k in kind.keywords if k.name in words]
    for line in sets:
        yield Named(words[line.name], _last(line), line.line, files)
    if not any(words[k.name] == "BASIS_SET" for k in sets) and kind.find("BASIS") is None:
        yield Named("BASIS_SET", None, kind.line, files)
    own = (unquoted(kind.get("POTENTIAL_FILE_NAME") or dft.get("POTENTIAL_FILE_NAME") or "POTENTIAL"),)
    potentials = [k for k in kind.keywords if k.name in ("POTENTIAL", "POT")]
    for line in potentials:
        yield Named("POTENTIAL", _last(line), line.line, own)
    if not potentials and kind.find("POTENTIAL") is None:
        yield Named("POTENTIAL", None, kind.line, own)
    for line in kind.keywords:
        if line.name in ("KG_POTENTIAL", "KG_POT") and line.value.upper() != "NONE":
            yield Named("KG_POTENTIAL", _last(line), line.line, own)


def _last(line: Line) -> str | None:
    return unquoted(line.value.split()[-1]) if line.value else None


def check_kinds(root: Section, data: dict[str, Path]) -> Iterator[Fault]:
    """Yield elements without a basis set or a potential, and those that are not in the data files."""
    from ase.data import atomic_numbers

    own = method_of(root) in NO_BASIS
    if not kinds_of(root) and not own:
        line = (root.find("FORCE_EVAL", "SUBSYS") or Section("")).line or 1
        yield Fault("no element has a KIND", "no &KIND", "add '&KIND Na' with BASIS_SET and POTENTIAL", line)
    seen: dict[str, int] = {}
    for kind in kinds_of(root):
        element = element_of(kind)
        if not serves_all(kind) and atomic_numbers.get(element, 0) < 1:
            what = "this KIND is of no chemical element"
            yield Fault(what, show(kind.parameter), "write '&KIND Na', or add ELEMENT", kind.line)
            continue
        if element in seen:
            what = f"{element} has a KIND already, on line {seen[element]}: a frame knows its elements only"
            yield Fault(what, show(kind.parameter), "keep one KIND of an element", kind.line)
        seen[element] = kind.line
        yield from _check_potentials(kind)
        if not own:
            yield from _check_entries(kind, "" if serves_all(kind) else element, root, data)


def _check_potentials(kind: Section) -> Iterator[Fault]:
    """Yield potentials of kinds that are not looked up in a potential file."""
    for line in kind.keywords:
        words = line.value.split()
        if (line.name in ("POTENTIAL", "POT") and len(words) > 1) or (line.name == "POTENTIAL_TYPE" and words):
            kind_of = unquoted(words[0]).upper()
            if kind_of == "ECP":
                yield _no_core_potentials(line.text(), line.line)
            elif kind_of not in LOOKED_UP:
                what = f"potentials of type {kind_of} are not supported: campaign cannot look them up"
                yield Fault(what, show(line.text()), "name a GTH pseudopotential", line.line)


def _no_core_potentials(got: str, line: int) -> Fault:
    what = "effective core potentials (ECP) are not supported: campaign does not read their files"
    return Fault(what, show(got), "name a GTH pseudopotential, or ALL for all electrons", line)


def _check_entries(kind: Section, element: str, root: Section, data: dict[str, Path]) -> Iterator[Fault]:
    for named in named_entries(kind, root):
        what, name = named.what, named.name
        if name is None:
            yield Fault(
                f"the KIND {kind.parameter or 'DEFAULT'} has no {what}",
                show(f"&KIND {kind.parameter}"),
                f"add a line '{what} NAME'",
                named.line,
            )
            continue
        paths = [data[f] for f in named.files if f in data]
        if not element or not paths or len(paths) < len(named.files):
            continue  # of every element; or the missing file is named already
        where = " and ".join(named.files)
        if what == "POTENTIAL" and any(cp2k_data.holds_core_potentials(p) for p in paths):
            yield _no_core_potentials(where, named.line)
            continue
        known = [n for path in paths for n in cp2k_data.entries(path, element)]
        if name.upper() not in known:
            best = closest(name, known)
            remedy = f"did you mean '{best}'?" if best else _known(element, known)
            yield Fault(f"{element} has no {what} of this name in {where}", show(name), remedy, named.line)


def _known(element: str, known: list[str]) -> str:
    if not known:
        return f"name a file that has {element} in it"
    return f"write one of {', '.join(known[:8])}"
