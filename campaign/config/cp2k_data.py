"""CP2K's data files: where they are found, and the basis sets and potentials in them.

A file beside the template comes first, then CP2K's data folder: ``CP2K_DATA_DIR``, ``/usr/share/cp2k``, or
``share/cp2k`` beside the program. A run directory holds copies of those that its template needs, so that every worker
computes with the same data.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

from campaign.config.data_files import Fault
from campaign.config.fields import closest
from campaign.config.yaml_lines import show

#: Names of CP2K's program, most capable first.
PROGRAMS = ("cp2k.psmp", "cp2k.popt", "cp2k.ssmp", "cp2k.sopt", "cp2k")
SYSTEM = Path("/usr/share/cp2k")

#: An entry begins with the element, in any letters, and its names: 3-21G* is one, 0.5 is none.
_ENTRY = re.compile(r"^[ \t]*([A-Za-z]{1,2})[ \t]+((?=\S*[A-Za-z])[A-Za-z0-9]\S.*)$", re.MULTILINE)
#: What each element of a file of effective core potentials begins with.
_CORE = re.compile(r"^[ \t]*[A-Za-z]{1,2}[ \t]+nelec[ \t]+\d+[ \t]*$", re.MULTILINE | re.IGNORECASE)
#: Where the meshes of CP2K's two kernel files begin.
_MESHES = {"RVV10": (1.0e-4, 3.0e-4), "DRSLL": (1.0e-5, 0.0449420825586261)}


def program() -> str | None:
    """Return the path of CP2K's program on this machine."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def data_folder() -> Path | None:
    """Return CP2K's data folder on this machine, or None."""
    named = os.environ.get("CP2K_DATA_DIR")
    if named:
        return Path(named) if Path(named).is_dir() else None
    if SYSTEM.is_dir():
        return SYSTEM
    found = program()
    for part in ("share/cp2k", "share/cp2k/data", "data"):
        folder = Path(found).resolve().parents[1] / part if found else None
        if folder and folder.is_dir():
            return folder
    return None


def locate(name: str, folder: Path) -> Path | Fault:
    """Return the data file that a template in ``folder`` names, or what is wrong."""
    pure = Path(name)
    if pure.is_absolute() or ".." in pure.parts or not name:
        remedy = "put the file beside the template and write its name alone"
        return Fault("a data file lies beside the template or in CP2K's data folder", show(name), remedy)
    data = data_folder()
    for place in (folder, data):
        if place is None:
            continue
        path = place / name
        if path.is_file():
            if not path.resolve().is_relative_to(place.resolve()) and place is folder:
                return Fault("this data file is a link that leaves the template's folder", show(name), "copy the file")
            return path
    if data is None:
        named = os.environ.get("CP2K_DATA_DIR")
        what = f"there is no folder {named} (CP2K_DATA_DIR)" if named else "no data folder of CP2K is on this machine"
        remedy = "set CP2K_DATA_DIR to the folder with BASIS_MOLOPT in it, or copy the file beside the template"
        return Fault(f"{what}, and the file is not beside the template", show(name), remedy)
    near = closest(name, sorted(p.name for p in data.iterdir() if p.is_file()))
    hint = f"did you mean '{near}'?" if near else "write the name of one that is there"
    return Fault(f"there is no such data file beside the template or in {data}", show(name), hint)


@lru_cache(maxsize=16)
def kernel_of(path: Path) -> str | None:
    """Return what kernel a file holds: ``RVV10``, ``DRSLL`` (LMKLL has the same), or None where it is neither's."""
    with path.open(encoding="utf-8", errors="replace") as file:
        rows = [file.readline().split() for _ in range(3)]
    try:
        start = tuple(float(word) for word in rows[2][:2])
    except ValueError:
        return None
    for kind, mesh in _MESHES.items():
        if len(start) == 2 and all(abs(a - b) <= 1e-6 * b for a, b in zip(start, mesh, strict=True)):
            return kind
    return None


@lru_cache(maxsize=16)
def holds_core_potentials(path: Path) -> bool:
    """Tell whether a file holds effective core potentials, which have a form of their own."""
    return _CORE.search(path.read_text(encoding="utf-8", errors="replace")) is not None


@lru_cache(maxsize=32)
def _entries(path: Path, stamp: tuple[int, int]) -> dict[str, dict[str, str]]:
    """Return the text of every entry by element and by each of its names in capitals."""
    text = path.read_text(encoding="utf-8", errors="replace")
    marks = list(_ENTRY.finditer(text))
    found: dict[str, dict[str, str]] = {}
    for mark, after in itertools.zip_longest(marks, marks[1:]):
        body = text[mark.end() : after.start() if after else len(text)]
        rows = [" ".join(row.split("#")[0].split()) for row in body.splitlines()]
        content = "\n".join(row for row in rows if row)
        for name in mark[2].split("#")[0].split():
            found.setdefault(mark[1].capitalize(), {}).setdefault(name.upper(), content)
    return found


def entries(path: Path, element: str) -> dict[str, str]:
    """Return an element's basis sets or potentials in a data file: the text of each by its names in capitals."""
    status = path.stat()
    return _entries(path, (status.st_mtime_ns, status.st_size)).get(element, {})
