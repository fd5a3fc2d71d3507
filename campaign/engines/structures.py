"""Starting structures: prototypes through ASE, a random packing, or a file."""

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
        ``{prototype, elements, a, c, supercell}``, ``{packing, density, seed}`` or ``{file}``, as in the campaign file
        (Å, g/cm^3).
    folder
        Where a file's path starts.

    Raises
    ------
    InputError
        The file cannot be read or holds a structure without a cell, or the atoms cannot be packed.
    """
    if spec.get("file"):
        from campaign.config import read_structure

        atoms = read_structure(folder / spec["file"])
        atoms.wrap()
        return atoms
    if spec.get("packing"):
        from campaign.engines.packing import pack

        return pack(spec["packing"], spec["density"], spec["seed"] or 0)
    from ase.build import bulk

    kind = spec["prototype"]
    options = {"cubic": True} if kind in CUBIC else {}
    if kind == "hcp":
        options["c"] = spec.get("c") or spec["a"] * (8 / 3) ** 0.5  # ASE's own default is the element's, where known
    atoms = bulk("".join(spec["elements"]), kind, a=spec["a"], **options)
    return atoms * tuple(spec["supercell"])
