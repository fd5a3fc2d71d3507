"""What of a CP2K input decides its result, as a hash: the same hash means the same physics.

Left out is what only says how to get there (how SCF converges, what is printed), and what campaign writes itself.
Units, letters and the order of lines do not matter. Basis sets and potentials enter by their content, tables as whole
files.

A value that is written always counts, also where it is the default of the schema at hand: that is of one version of
CP2K, the program may be another, and its default, too. So writing a default out makes another method, and costs labels
that were right; leaving it out of the hash would keep labels that are wrong. The one exception is EPS_SCF: campaign
checks the output against 1.0E-5 where it is not written.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.config import cp2k_data, cp2k_schema
from campaign.config.cp2k_electrons import treatment
from campaign.config.cp2k_files import NO_BASIS, data_lines, is_data, is_table, method_of
from campaign.config.cp2k_kinds import KIND, element_of, kinds_of, named_entries, serves_all
from campaign.config.cp2k_ladder import DFT, is_on, smeared
from campaign.config.cp2k_tree import FALSE, Section, unquoted
from campaign.errors import InputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SCF = (*DFT, "SCF")

#: What of DFT/SCF decides the result; EPS_SCF, SMEAR's orbitals and what spin adds are looked at one by one.
RESULT = ("SMEAR", "MOM", "EPS_EIGVAL", "ROKS_SCHEME", "ROKS_F", "ROKS_PARAMETERS")
#: What of GLOBAL decides how fast CP2K is, what it prints and under what names: all else counts.
RUNNING = (
    *("BLACS_GRID", "BLACS_REPEATABLE", "PREFERRED_DIAG_LIBRARY", "PREFERRED_DGEMM_LIBRARY", "EPS_CHECK_DIAG"),
    *("ELPA_KERNEL", "ELPA_NEIGVEC_MIN", "ELPA_QR", "ELPA_QR_UNSAFE", "DLAF_NEIGVEC_MIN", "FFTW_PLAN_TYPE"),
    *("FFT_POOL_SCRATCH_LIMIT", "PRINT_LEVEL", "PROGRAM_NAME", "PROJECT_NAME", "RUN_TYPE", "WALLTIME", "ECHO_INPUT"),
    *("ECHO_ALL_HOSTS", "ENABLE_MPI_IO", "TRACE", "TRACE_MASTER", "TRACE_MAX", "TRACE_ROUTINES"),
    *("FLUSH_SHOULD_FLUSH", "CALLGRAPH", "SAVE_MEM"),
)
#: What campaign writes itself.
OWN = ("METHOD", "STRESS_TENSOR")


def digest(tree: Section, data: dict[str, Path]) -> str:
    """Return the hash of what decides the result of a tree's calculation.

    Parameters
    ----------
    tree
        A template's, with a rung's settings in it.
    data
        The data files by the names it gives them.

    Raises
    ------
    InputError
        A data file, or an entry of one, that the tree names is not there.
    """
    used = [_physics((), tree), _scf(tree), _entries_used(tree, data), _tables(tree, data)]
    return hashlib.blake2b(json.dumps(used, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tables(tree: Section, data: dict[str, Path]) -> list[list[str]]:
    """Return the hashes of the files that count as a whole: tables, and all where one KIND serves any element."""
    every = any(serves_all(kind) for kind in kinds_of(tree))
    lines = (d for d in data_lines(tree) if every or is_table(d.path, d.line.name))
    return sorted([*d.path, d.line.name, _digest(_file(unquoted(d.line.value), data))] for d in lines)


def _file(name: str, data: dict[str, Path]) -> Path:
    if name not in data:
        raise InputError(f"CP2K's data file {name} is named by a rung, and the template has not got it.")
    return data[name]


def _physics(path: tuple[str, ...], here: Section) -> Any:
    """Return what decides the result in a section, with units and order out of the way; of SCF nothing."""
    spec = cp2k_schema.section(path)
    if spec is None:
        return [sorted(k.text() for k in here.keywords), [_physics((*path, s.name), s) for s in here.sections]]
    words: list[Any] = []
    rows: list[Any] = []  # of data: their order matters
    for line in here.keywords:
        node = spec.keywords.get(line.name, spec.default)
        if node is None or is_data(path, line.name):
            continue
        name = cp2k_schema.default_name(node)
        if name == "DEFAULT_KEYWORD":
            rows.append(_normal(node, line.text()))
        elif not _aside(path, name):
            value = _normal(node, line.value)
            if path == KIND and isinstance(value, str | list):  # CP2K finds entries by names in any letters
                value = json.loads(json.dumps(value).upper())
            words.append([name, value])
    inner: list[Any] = []
    for section in here.sections:
        if not _aside(path, section.name):
            inner += _section((*path, section.name), section)
    return [sorted(words, key=json.dumps), rows, sorted(inner, key=json.dumps)]


def _aside(path: tuple[str, ...], name: str) -> bool:
    """Tell whether a keyword or a section decides nothing, or is campaign's own, or looked at elsewhere (SCF)."""
    if path == ("GLOBAL",):
        spec = cp2k_schema.section(path)
        return name in RUNNING or (spec is not None and name in spec.sections)
    return name in ("PRINT", "CELL", "COORD") or (*path, name) == SCF or (path == DFT[:1] and name in OWN)


def _section(path: tuple[str, ...], section: Section) -> list[Any]:
    """Return a section's name, parameter and physics; nothing of one that is switched off."""
    spec = cp2k_schema.section(path)
    parameter = spec.parameter if spec else None
    value: Any = ""
    if parameter is not None and parameter.find("DATA_TYPE[@kind='logical']") is not None:
        if section.parameter.upper() in FALSE:
            return []
        value = True
    elif parameter is not None and section.parameter:
        value = _normal(parameter, section.parameter)
    content = _physics(path, section)
    return [[section.name, value, content]] if value or any(content) else []


def _scf(tree: Section) -> Any:
    """Return what of DFT/SCF decides the result: not the way to convergence, but its criterion, and where it leads."""
    dft = tree.find(*DFT) or Section("DFT")
    scf = dft.find("SCF") or Section("SCF")
    spec = cp2k_schema.section(SCF)
    assert spec is not None
    keep = list(RESULT)
    if smeared(tree):
        keep.append("ADDED_MOS")
    if treatment(tree) != "RKS":
        keep.append("SCF_GUESS")  # of several magnetic states, the one that SCF ends in
    kept = Section("SCF", sections=[s for s in scf.sections if s.name in keep])
    kept.keywords = [
        k for k in scf.keywords if k.name in spec.keywords and cp2k_schema.default_name(spec.keywords[k.name]) in keep
    ]
    found = [_physics(SCF, kept), _criteria(scf)]
    outer = scf.find("OUTER_SCF")
    kind = ((outer.get("TYPE") if outer else None) or "NONE").upper()
    if outer is not None and is_on(outer) and kind != "NONE":  # a constraint
        found.append(_physics((*SCF, "OUTER_SCF"), outer))
    diagonal = scf.find("DIAGONALIZATION")
    if diagonal is not None and (diagonal.get("ALGORITHM") or "").upper() == "FILTER_MATRIX":  # in a smaller basis
        found.append(_physics((*SCF, "DIAGONALIZATION"), diagonal))
    return found


def _criteria(scf: Section) -> list[Any]:
    """Return the criterion of convergence, and the outer loop's where it is another."""
    outer = scf.find("OUTER_SCF")
    criteria = []
    for path, section in ((SCF, scf), ((*SCF, "OUTER_SCF"), outer if is_on(outer) else None)):
        spec = cp2k_schema.section(path)
        assert spec is not None
        if section is not None:
            criteria.append(_normal(spec.keywords["EPS_SCF"], section.get("EPS_SCF") or "1.0E-5"))
    return criteria[:1] if criteria[-1] == criteria[0] else criteria


@lru_cache(maxsize=1024)  # the same few words for every frame
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
    if method_of(root) in NO_BASIS:
        return []
    found: list[Any] = []
    for kind in kinds_of(root):
        element = element_of(kind)
        for named in [] if serves_all(kind) else named_entries(kind, root):  # where one serves all, whole files count
            name = (named.name or "").upper()
            texts = (cp2k_data.entries(_file(file, data), element).get(name) for file in named.files)
            text = next((text for text in texts if text is not None), None)
            if text is None:
                where = " and ".join(named.files)
                raise InputError(f"{element} has no {named.what} {named.name or 'at all'} in {where}.")
            found.append([element, named.what, text])
    return sorted(found)


@lru_cache(maxsize=64)
def _content(path: Path, stamp: tuple[int, int]) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    status = path.stat()
    return _content(path, (status.st_mtime_ns, status.st_size))
