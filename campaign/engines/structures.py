"""Starting structures: prototypes through ASE, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from campaign.tasks import Json

if TYPE_CHECKING:
    from ase import Atoms

#: Prototypes built as their cubic cell; the others as ASE's primitive one.
CUBIC = ("rocksalt", "zincblende", "fcc", "bcc", "diamond")


def build_structure(spec: dict[str, Json], folder: Path) -> Atoms:
    """Return the starting structure.

    Parameters
    ----------
    spec
        ``{prototype, elements, a, c, supercell}`` or ``{file}``, as in the campaign file (Å).
    folder
        Where a file's path starts.

    Raises
    ------
    InputError
        The file cannot be read or holds a structure without a cell.
    """
    if spec.get("file"):
        from campaign.config import read_structure

        atoms = read_structure(folder / spec["file"])
        atoms.wrap()
        return atoms
    from ase.build import bulk

    kind = spec["prototype"]
    options = {"cubic": True} if kind in CUBIC else {}
    if spec.get("c"):
        options["c"] = spec["c"]
    atoms = bulk("".join(spec["elements"]), kind, a=spec["a"], **options)
    return atoms * tuple(spec["supercell"])
