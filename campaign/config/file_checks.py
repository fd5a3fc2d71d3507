"""Finding the data files that a campaign file names, and what must hold between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from campaign.config.data_files import Fault, find, find_frames, named_files, potential_header, structure, taken
from campaign.config.structure_checks import check_density, check_volumes, structure_elements, structure_numbers
from campaign.config.view import Part, View
from campaign.config.yaml_lines import Problem, show


def check_files(view: View, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Find and check every data file that the campaign names.

    Returns
    -------
    tuple
        The files by their path as written, and what is wrong.
    """
    files: dict[str, Path] = {}
    elements, problems = _structure(view, folder, files)
    for section in ("system", "transfer", "label"):
        problems += _potential(view, (section, "potential", "lammps"), folder, elements, files)
    for i in range(len(view.items("sample"))):
        method = view.text("sample", i, "method")
        if method == "md":
            problems += _opened(view, ("sample", i, "model"), folder, files)
        elif method == "file":
            problems += _frames(view, i, folder)
    return files, problems


def _opened(view: View, place: tuple[Part, ...], folder: Path, files: dict[str, Path]) -> list[Problem]:
    """Find the file named at ``place`` and enter it into ``files``, or return why there is none."""
    written = view.text(*place)
    if not written:
        return []
    found = find(written, folder)
    if isinstance(found, Fault):
        return [view.problem(place, found.what, found.got, found.remedy)]
    files[written] = found
    return []


def _structure(view: View, folder: Path, files: dict[str, Path]) -> tuple[set[str], list[Problem]]:
    """Return the elements of the starting structure, as far as they are known, and what is wrong with it."""
    place = ("system", "structure", "file")
    problems = _opened(view, place, folder, files)
    path = files.get(view.text(*place) or "")
    if path is None:
        problems += check_volumes(view, structure_numbers(view))
        problems += check_density(view)
        return structure_elements(view), problems
    atoms = structure(path)
    if isinstance(atoms, Fault):
        return structure_elements(view), [view.problem(place, atoms.what, atoms.got, atoms.remedy)]
    return set(atoms.get_chemical_symbols()), list(check_volumes(view, atoms.numbers))


def _potential(
    view: View, place: tuple[Part, ...], folder: Path, elements: set[str], files: dict[str, Path]
) -> Iterator[Problem]:
    """Find a potential, and check that it has these elements and names no file that cannot lie beside it."""
    yield from _opened(view, place, folder, files)
    written = view.text(*place) or ""
    path = files.get(written)
    if path is None:
        return
    header = potential_header(path)
    if isinstance(header, Fault):
        what = f"{header.what} (line {header.line} of {path.name})"
        yield view.problem(place, what, header.got, header.remedy)
    elif not elements <= set(header.elements):
        absent = ", ".join(sorted(elements - set(header.elements)))
        what = f"the structure has {absent}, which this potential (elements {' '.join(header.elements)}) has not"
        yield view.problem(place, what, show(written), f"name a potential with {absent} in it")
    else:
        names = (str(PurePosixPath(written).parent / name) for name in named_files(path))
        found = next(filter(None, map(taken, names)), None)
        if found:
            what = f"{found.what}, and this potential names a file of that name"
            yield view.problem(place, what, found.got, found.remedy)


def _frames(view: View, i: int, folder: Path) -> Iterator[Problem]:
    """Check a file of frames: not one of the files that are copied, for it is read in place."""
    written = view.text("sample", i, "file")
    if not written:
        return
    found = find_frames(written, folder)
    if isinstance(found, Fault):
        yield view.problem(("sample", i, "file"), found.what, found.got, found.remedy)
    elif view.items("sample", i, "elements") and not written.lower().endswith((".dump", ".lammpstrj")):
        what = "only LAMMPS dumps need the elements of their atom types"
        place = ("sample", i, "elements")
        yield view.problem(place, what, view.get(*place), "remove it")
