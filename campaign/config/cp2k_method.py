"""What of a CP2K input decides its result, as a hash: the same hash means the same physics.

Left out is what only says how to get there (how SCF converges, what is printed), and what campaign writes itself.
Units, defaults, letters and the order of lines do not matter. Basis sets and potentials enter by their content.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.config import cp2k_data, cp2k_schema
from campaign.config.cp2k_ladder import DFT
from campaign.config.cp2k_template import DATA, FALSE, element_of, kinds_of, named_entries
from campaign.config.cp2k_tree import Section, unquoted

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: What of DFT/SCF decides the result.
RESULT = ("EPS_SCF", "SMEAR", "MOM")


def digest(tree: Section, data: dict[str, Path]) -> str:
    """Return the hash of what decides the result of a tree's calculation.

    Parameters
    ----------
    tree
        A template's, with a rung's settings in it.
    data
        The data files by the names it gives them.
    """
    used = [_physics((), tree), _entries_used(tree, data), _tables(tree, data)]
    return hashlib.blake2b(json.dumps(used, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tables(tree: Section, data: dict[str, Path]) -> list[str]:
    """Return the hashes of the files that count as a whole: tables, and all where one KIND serves any element."""
    every = any((kind.parameter or "DEFAULT").upper() == "DEFAULT" for kind in kinds_of(tree))
    names = {
        unquoted(line.value)
        for _, section in tree.walk()
        for line in section.keywords
        if line.name in (DATA if every else DATA[2:])
    }
    return sorted(_digest(data[name]) for name in names if name in data)


def _physics(path: tuple[str, ...], here: Section) -> Any:
    """Return what decides the result in a section, with units, defaults and order out of the way."""
    spec = cp2k_schema.section(path)
    if spec is None:
        return [sorted(k.text() for k in here.keywords), [_physics((*path, s.name), s) for s in here.sections]]
    scf = path == (*DFT, "SCF")
    smear = here.find("SMEAR") if scf else None
    smeared = smear is not None and smear.parameter.upper() not in FALSE
    keep = [*RESULT, "ADDED_MOS"] if smeared else list(RESULT)
    words: list[Any] = []
    for line in here.keywords:
        node = spec.keywords.get(line.name, spec.default)
        if node is None or line.name in (*DATA, "STRESS_TENSOR"):
            continue
        name = cp2k_schema.default_name(node)
        if scf and name not in keep:
            continue
        value = _normal(node, line.text() if name == "DEFAULT_KEYWORD" else line.value)
        if path[-1:] == ("KIND",) and isinstance(value, str | list):  # CP2K finds entries by names in any letters
            value = json.loads(json.dumps(value).upper())
        if value != _plain(cp2k_schema.default_of(node)):
            words.append([name, value])
    inner: list[Any] = []
    for section in here.sections:
        if section.name in ("PRINT", "GLOBAL", "CELL", "COORD") or (scf and section.name not in keep):
            continue
        below = cp2k_schema.section((*path, section.name))
        parameter = below.parameter if below else None
        if parameter is not None and parameter.find("DATA_TYPE[@kind='logical']") is not None:
            if section.parameter.upper() in FALSE:
                continue
            value = True
        else:
            value = _normal(parameter, section.parameter) if parameter is not None and section.parameter else ""
        inner.append([section.name, value, _physics((*path, section.name), section)])
    if scf:
        words += [["EPS_SCF of OUTER_SCF", _outer_criterion(here)]]
    return [sorted(words, key=json.dumps), sorted(inner, key=json.dumps)]


def _outer_criterion(scf: Section) -> Any:
    """Return the criterion of the outer loop where it is another than the inner one's."""
    outer = scf.find("OUTER_SCF")
    if outer is None or outer.parameter.upper() in FALSE:
        return None
    criteria = []
    for path, text in (((*DFT, "SCF"), scf.get("EPS_SCF")), ((*DFT, "SCF", "OUTER_SCF"), outer.get("EPS_SCF"))):
        spec = cp2k_schema.section(path)
        assert spec is not None
        criteria.append(_normal(spec.keywords["EPS_SCF"], text or "1.0E-5"))
    return criteria[1] if criteria[1] != criteria[0] else None


def _normal(node: Element, text: str) -> Any:
    try:
        return _plain(cp2k_schema.value_of(node, text))
    except cp2k_schema.WrongValue:
        return text


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; reals by 12 digits, so that 1 Ry in eV is 1 Ry."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.12g}")
    return value


def _entries_used(root: Section, data: dict[str, Path]) -> list[Any]:
    """Return the text of every basis set and potential that the KINDs name."""
    found: list[Any] = []
    for kind in kinds_of(root):
        element = element_of(kind)
        for what, name, _, files in named_entries(kind, root):
            for file in files:
                text = cp2k_data.entries(data[file], element).get((name or "").upper()) if file in data else None
                if text is not None:
                    found.append([element, what, text])
                    break
    return sorted(found)


@lru_cache(maxsize=64)
def _content(path: Path, stamp: tuple[int, int]) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    status = path.stat()
    return _content(path, (status.st_mtime_ns, status.st_size))
