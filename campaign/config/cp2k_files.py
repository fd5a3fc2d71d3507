"""Which keywords of a CP2K input name a file: data files, which a run takes along, and the rest, which is refused.

Every keyword of CP2K's schema that names a file or a folder is one or the other; a test goes through the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config import cp2k_data, cp2k_schema
from campaign.config.cp2k_ladder import DFT
from campaign.config.cp2k_tree import Line, Section, unquoted
from campaign.config.data_files import Fault
from campaign.config.yaml_lines import show

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Data files of many entries, of which a calculation uses few.
ENTRIES = ("BASIS_SET_FILE_NAME", "POTENTIAL_FILE_NAME")
#: Data files that count as a whole.
TABLES = ("KERNEL_FILE_NAME", "PARAMETER_FILE_NAME", "T_C_G_DATA", "POTENTIAL_DATA", "TSHPSC_DATA")
#: The same, of the section QS/XTB/PARAMETER only; CP2K's defaults, which need not be written.
XTB = {"PARAM_FILE_NAME": "xTB_parameters", "DISPERSION_PARAMETER_FILE": "dftd3.dat"}
#: Keywords without FILE in their name that read or write files, open sockets, or name folders; all others have it.
OTHERS = ("STORAGE_LOCATION", "QCSCHEMA", "UFF_FORCE_FIELD", "SEED_NAME", "HOST", "TRAINING_SET")
#: Methods of DFT/QS that have their own basis.
NO_BASIS = ("XTB", "DFTB", "AM1", "MNDO", "MNDOD", "PDG", "PM3", "PM6", "PM6-FM", "PNNL", "RM1")

#: Where tables of truncated potentials are needed: the words of POTENTIAL_TYPE that ask for one.
_TRUNCATED = ("TRUNCATED", "MIX_CL_TRUNC", "TSHPSC")
_PARAMETER = (*DFT, "QS", "XTB", "PARAMETER")


@dataclass(frozen=True)
class DataLine:
    """A keyword that names a data file: the section's path, the line, and whether it is written or CP2K's default."""

    path: tuple[str, ...]
    line: Line
    written: bool = True


def method_of(root: Section) -> str:
    """Return the METHOD of DFT/QS in capitals; empty where it is not written."""
    qs = root.find(*DFT, "QS")
    return ((qs.get("METHOD") if qs else None) or "").upper()


def is_table(path: tuple[str, ...], name: str) -> bool:
    """Tell whether a keyword of the section at ``path`` names a data file that counts as a whole."""
    return name in TABLES or (path == _PARAMETER and name in XTB)


def is_data(path: tuple[str, ...], name: str) -> bool:
    """Tell whether a keyword of the section at ``path`` names a data file."""
    return name in ENTRIES or is_table(path, name)


def refused(path: tuple[str, ...], node: Element | None, name: str) -> bool:
    """Tell whether a keyword reads or writes a file, or names a folder, that campaign does not know of.

    Parameters
    ----------
    path, node, name
        The section's path, the keyword's node in the schema (None for a line of data), its name as written.
    """
    if is_data(path, name):
        return False
    names = _names(node) if node is not None else path[-1:]  # of lines of data the section's name tells
    return any("FILE" in n or n in OTHERS for n in names)


def data_lines(root: Section) -> Iterator[DataLine]:
    """Yield the keywords that name data files; where a needed one is not written, CP2K's own default."""
    for path, section in root.walk():
        yield from (DataLine(path, line) for line in section.keywords if is_data(path, line.name))
    dft = root.find(*DFT)
    if dft is None:
        return
    defaults: dict[str, str] = {}
    where: tuple[str, ...] = DFT
    method = method_of(root)
    if method == "XTB":
        defaults, where = XTB, _PARAMETER
    elif method not in NO_BASIS and root.find("FORCE_EVAL", "SUBSYS", "KIND") is not None:
        defaults = {"BASIS_SET_FILE_NAME": "BASIS_SET", "POTENTIAL_FILE_NAME": "POTENTIAL"}
    for name, default in defaults.items():
        here = root.find(*where)
        if here is None or here.get(name) is None:
            yield DataLine(where, Line(name, default, dft.line), written=False)


def data_files(root: Section, folder: Path) -> tuple[dict[str, Path], list[Fault]]:
    """Return the data files that a tree names, by name, and what is wrong with them."""
    found: dict[str, Path] = {}
    faults: list[Fault] = []
    for data in data_lines(root):
        name = unquoted(data.line.value)
        path = cp2k_data.locate(name, folder)
        if isinstance(path, Fault):
            faults.append(Fault(f"{data.line.name}: {path.what}", path.got, path.remedy, data.line.line))
        else:
            found[name] = path
    return found, faults


def unnamed(root: Section) -> Iterator[Fault]:
    """Yield sections that need a table and do not name it: CP2K would take a default, often the wrong one."""
    for path, section in root.walk():
        if section.name == "VDW_POTENTIAL":
            yield from _unnamed_dispersion(section)
        spec = cp2k_schema.section(path)
        for name in ("T_C_G_DATA", "POTENTIAL_DATA") if spec else ():
            node = spec.keywords.get(name) if spec else None
            if node is None or cp2k_schema.default_name(node) != name:
                continue
            kind = (section.get("POTENTIAL_TYPE", "POTENTIAL") or "").upper()
            if kind in _TRUNCATED and section.get(*_names(node)) is None:
                what = f"{section.name} of type {kind} needs a table, and does not name it"
                default = "t_sh_p_s_c.dat" if kind == "TSHPSC" else "t_c_g.dat"
                yield Fault(what, f"no {name}", f"add '{name} {default}' to it", section.line)


def _unnamed_dispersion(vdw: Section) -> Iterator[Fault]:
    kind = (vdw.get("POTENTIAL_TYPE", "DISPERSION_FUNCTIONAL") or "NONE").upper()
    if kind == "NON_LOCAL":
        here = vdw.find("NON_LOCAL") or Section("NON_LOCAL", line=vdw.line)
        if here.get("KERNEL_FILE_NAME") is None:
            file = "rVV10_kernel_table.dat" if _nonlocal(here) == "RVV10" else "vdW_kernel_table.dat"
            what = "NON_LOCAL does not name its kernel: CP2K would take vdW_kernel_table.dat, which is wrong for rVV10"
            yield Fault(what, "no KERNEL_FILE_NAME", f"add 'KERNEL_FILE_NAME {file}' to &NON_LOCAL", here.line)
    elif kind == "PAIR_POTENTIAL":
        for here in list(vdw.all("PAIR_POTENTIAL")) or [Section("PAIR_POTENTIAL", line=vdw.line)]:
            d3 = (here.get("TYPE") or "DFTD3").upper() != "DFTD2"
            if d3 and here.get("PARAMETER_FILE_NAME") is None:
                what = "PAIR_POTENTIAL of type D3 does not name its parameters"
                remedy = "add 'PARAMETER_FILE_NAME dftd3.dat' to &PAIR_POTENTIAL"
                yield Fault(what, "no PARAMETER_FILE_NAME", remedy, here.line)


def _nonlocal(section: Section) -> str:
    return (section.get("TYPE") or "DRSLL").upper()


def wrong_kernels(root: Section, data: dict[str, Path]) -> Iterator[Fault]:
    """Yield non-local functionals whose kernel file holds the other family's kernel."""
    for _, section in root.walk():
        line = next((k for k in section.keywords if k.name == "KERNEL_FILE_NAME"), None)
        path = data.get(unquoted(line.value)) if line else None
        if line is None or path is None:
            continue
        needed = "RVV10" if _nonlocal(section) == "RVV10" else "DRSLL"
        if cp2k_data.kernel_of(path) not in (needed, None):
            file = "rVV10_kernel_table.dat" if needed == "RVV10" else "vdW_kernel_table.dat"
            what = f"this kernel is not of a functional of type {_nonlocal(section)}"
            yield Fault(what, show(line.value), f"write 'KERNEL_FILE_NAME {file}'", line.line)


def of_rung(template: Section, tree: Section) -> Iterator[Fault]:
    """Yield data files that a rung names, or comes to need: a run takes along those of its template only."""
    known = {(d.path, d.line.name, unquoted(d.line.value)) for d in data_lines(template)}
    for data in data_lines(tree):
        name = unquoted(data.line.value)
        if (data.path, data.line.name, name) not in known:
            says = "names a data file" if data.written else "needs a data file that the template does not name"
            what = f"a rung {says}, and a run has those of its template only"
            yield Fault(what, show(f"{data.line.name} {name}"), "write another template with it", data.line.line)


def _names(node: Element) -> tuple[str, ...]:
    return tuple(n.text or "" for n in node.iterfind("NAME"))
