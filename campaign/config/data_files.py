"""The data files that a campaign names: where they may be, and what campaign reads of them itself."""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.potential_lines import potential_words, wrong_lines
from campaign.config.yaml_lines import Problem, show
from campaign.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

#: Atom styles that the LAMMPS engine writes.
ATOM_STYLES = ("atomic", "charge")

#: ASE's name for the format of each kind of structure file. The name decides, the content is never guessed at.
STRUCTURE_FORMATS = {".extxyz": "extxyz", ".xyz": "extxyz", ".cif": "cif", ".vasp": "vasp", ".poscar": "vasp"}

#: Endings of the files whose frames can be sampled.
FRAME_FILES = (".extxyz", ".xyz", ".traj", ".db", ".zarr", ".lammpstrj", ".dump")

#: What a run directory keeps of the files of frames that it reads in place.
FRAME_NOTES = "frame_files.json"

#: What a run directory keeps of the set of another campaign that it transfers.
TRANSFER_NOTE = "transfer.json"

#: What a run directory has at its top for itself: no data file, copied there by its own name, may be called so.
OWN = {
    *("campaign.yaml", "site.yaml", "driver.lock", "ledger.jsonl", "run.zarr", "tasks", "models", "validation", "logs"),
    *("report.html", "labels.json", "learning.json", "distillation.json", FRAME_NOTES, TRANSFER_NOTE),
}

_HEADER = re.compile(r"#\s*(elements|atom_style)\s*:\s*(.*?)\s*\Z")


@dataclass(frozen=True)
class PotentialHeader:
    """What campaign must know of a LAMMPS potential file.

    Attributes
    ----------
    elements
        Chemical symbols in the order of the LAMMPS atom types.
    atom_style
        LAMMPS's ``atom_style``: ``atomic``, or ``charge`` where the potential needs charges.
    """

    elements: tuple[str, ...]
    atom_style: str = "atomic"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a data file: at ``line`` of it, and what to do."""

    what: str
    got: str
    remedy: str
    line: int = 1

    def problem(self, key: str) -> Problem:
        """Return it as a problem of the data file itself."""
        return Problem(self.line, key, self.what, self.got, self.remedy)


def is_own(name: str) -> bool:
    """Tell whether a path in a run directory is one that it has for itself (``OWN``), or lies in such a folder.

    In whatever letters: some file systems do not tell capitals from small ones.
    """
    return _first(name).casefold() in OWN


def _first(name: str) -> str:
    return os.path.normpath(name).partition("/")[0]


def taken(name: str) -> Fault | None:
    """Return what is wrong with the name of a data file that is copied into the run directory."""
    if not is_own(name):
        return None
    first = _first(name)
    remedy = f"rename {first}" if Path(name).name == first else f"rename the folder {first}, or move the file out of it"
    return Fault(f"a run directory has a {first} of its own", show(name), remedy)


def find(written: str, folder: Path, copied: bool = True) -> Path | Fault:
    """Return the file that a campaign names, or what is wrong with the path.

    Parameters
    ----------
    written
        The path as it stands in the campaign file.
    folder
        The campaign file's folder: paths are relative to it and may not leave it, links included.
    copied
        Whether it is copied into the run directory, where its name must not be one of ``OWN``.
    """
    got = show(written)
    fault = taken(written) if copied else None
    if fault:
        return fault
    try:
        path = (folder / written).resolve()
        if Path(written).is_absolute() or not path.is_relative_to(folder.resolve()):
            remedy = "copy the file beside the campaign file and write its relative path"
            return Fault("a campaign's files must lie in its folder", got, remedy)
        if path.is_dir():
            return Fault("this is a folder", got, "write the path of a file")
        if not path.is_file():
            near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:5] if path.parent.is_dir() else []
            hint = f"that folder holds {', '.join(near)}" if near else "write it relative to the campaign file"
            return Fault("there is no such file", got, hint)
        with path.open("rb"):
            return path
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        return Fault(f"this file cannot be read ({reason})", got, "check the path and its permissions")


def find_frames(written: str, folder: Path) -> Path | Fault | None:
    """Return the file of frames that a campaign names, or what is wrong with the path.

    None in a run directory: there a note says where the file lies (``FRAME_NOTES``), and it may be gone.
    """
    got = show(written)
    if Path(written).suffix.lower() not in FRAME_FILES:
        remedy = f"name one that ends in {', '.join(FRAME_FILES)}"
        return Fault("frames are not read from this kind of file", got, remedy)
    if (folder / FRAME_NOTES).is_file() and (folder / "run.zarr").is_dir():
        return None
    place = Path(written)
    zarr = place.suffix.lower() == ".zarr"
    # a Zarr store is a folder with that file in it
    found = find(str(place / "zarr.json") if zarr else written, folder, copied=False)
    if not isinstance(found, Fault):
        return found.parent if zarr else found
    if "must lie in its folder" in found.what:
        remedy = "put the campaign file into a folder above it, or move or hard-link it beside the campaign file"
        return Fault(found.what, got, remedy)
    if zarr and (folder / written).is_dir():
        return Fault("this is not a Zarr store: it has no zarr.json", got, "name a store that campaign export wrote")
    return Fault(found.what, got, found.remedy if not zarr else "write the path of a *.zarr folder")


def read_potential_header(path: Path) -> PotentialHeader:
    """Read the comment header of a LAMMPS potential file.

    The file holds plain LAMMPS lines in ``units metal`` under a header of comments::

        # elements: Na Cl
        # atom_style: charge

    Raises
    ------
    InputError
        If the header is missing or wrong, or a line is not one of a potential, naming the file and the line.
    """
    found = potential_header(Path(path))
    if isinstance(found, Fault):
        raise InputError(found.problem("potential").text(path))
    return found


def potential_header(path: Path) -> PotentialHeader | Fault:
    """Return the header of a potential file, or what is wrong with it."""
    from ase.data import atomic_numbers

    example = "begin the file with '# elements: Na Cl', in the order of the atom types"
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return Fault("this is not a text file", show(path.name), "name a file of LAMMPS lines")
    except OSError as error:
        return Fault(f"this file cannot be read ({error.strerror})", show(path.name), "check the path")
    entries: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, 1):
        if row.strip() and not row.startswith("#"):
            break
        match = _HEADER.match(row)
        if match:
            entries.setdefault(match[1], (number, match[2]))
    if "elements" not in entries:
        return Fault("the potential has no '# elements:' line in its header", show(path.name), example)
    line, text = entries["elements"]
    elements = tuple(text.split())
    bad = [e for e in elements if atomic_numbers.get(e, 0) < 1]
    if bad or not elements or len(set(elements)) < len(elements):
        what = "the '# elements:' line of the potential must list different chemical symbols"
        return Fault(what, show(text), example, line)
    line, style = entries.get("atom_style", (1, "atomic"))
    if style not in ATOM_STYLES:
        remedy = f"write one of {', '.join(ATOM_STYLES)}"
        return Fault("the potential's '# atom_style:' is not one that campaign writes", show(style), remedy, line)
    return _check_lines(path, rows) or PotentialHeader(elements, style)


def _check_lines(path: Path, rows: list[str]) -> Fault | None:
    for number, (what, word, remedy) in wrong_lines(rows, path.parent):
        return Fault(what, show(word), remedy, number)
    if not any(potential_words(row)[:1] == ["pair_style"] for row in rows):
        return Fault("the potential has no pair_style line", show(path.name), "add LAMMPS's pair_style and pair_coeff")
    return None


def structure_format(path: Path) -> str | None:
    """Return ASE's name for the format of a structure file, or None where the name is not that of one."""
    if path.name.upper() in ("POSCAR", "CONTCAR"):
        return "vasp"
    return STRUCTURE_FORMATS.get(path.suffix.lower())


def named_files(path: Path) -> list[str]:
    """Return the files that a potential's lines name (an EAM table), relative to its folder and inside it.

    A campaign's other data files are structures; they are known by their names, are not read and name none.
    """
    if structure_format(path) is not None:
        return []
    words = {w.strip("\"'") for line in path.read_text("utf-8").splitlines() for w in potential_words(line)}
    inside = path.parent.resolve()
    return sorted(w for w in words if (p := (inside / w).resolve()).is_file() and p.is_relative_to(inside))


def read_structure(path: Path) -> Atoms:
    """Read the first structure of a file (``STRUCTURE_FORMATS``; POSCAR and CONTCAR by name) as ASE atoms.

    Raises
    ------
    InputError
        If the file cannot be read, or has no atoms or no cell.
    """
    found = structure(Path(path))
    if isinstance(found, Fault):
        raise InputError(found.problem("structure").text(path))
    return found


def structure(path: Path) -> Atoms | Fault:
    """Return the first structure of a file, or what is wrong with it."""
    from ase.io import read

    kind = structure_format(path)
    if kind is None:
        remedy = f"convert it to one of POSCAR, {', '.join(STRUCTURE_FORMATS)}"
        return Fault("this kind of structure file is not read", show(path.name), remedy)
    try:
        found = read(path, index=0, format=kind)
    except (ValueError, OSError, IndexError, KeyError, StopIteration, RuntimeError, AssertionError) as error:
        # What ASE's readers raise on a damaged file depends on where it is damaged.
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        remedy = f"check that ASE reads it as {kind}"
        return Fault(f"the structure cannot be read ({reason})", show(path.name), remedy)
    atoms: Atoms = found[0] if isinstance(found, list) else found
    if len(atoms) == 0:
        return Fault("the structure has no atoms", show(path.name), "name a file with atoms in it")
    if atoms.cell.rank != 3:
        return Fault("the structure has no cell", show(path.name), "add the three cell vectors (Lattice= in extxyz)")
    if not atoms.pbc.all():
        what = "the structure is not periodic along all three cell vectors, and campaign samples no other"
        got = f'{path.name} with pbc="{" ".join("FT"[bool(p)] for p in atoms.pbc)}"'
        return Fault(what, got, 'write pbc="T T T" where its cell is really periodic; a slab keeps its vacuum')
    return atoms
