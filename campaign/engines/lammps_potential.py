"""LAMMPS potentials as campaign keeps them: plain LAMMPS lines under a header that names the elements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PotentialLines:
    """A LAMMPS potential: plain LAMMPS lines, and which element is which type.

    Attributes
    ----------
    elements
        Chemical symbols in the order of the LAMMPS types.
    lines
        ``pair_style``, ``pair_coeff``, ``kspace_style``, ``set type N charge Q`` ...
    atom_style
        ``atomic`` or ``charge``.
    """

    elements: tuple[str, ...]
    lines: str
    atom_style: str = "atomic"


def load_potential(path: Path) -> PotentialLines:
    """Read a potential file: its header, and its lines with the files they name made absolute."""
    from campaign.config import read_potential_header

    header = read_potential_header(path)
    lines = [_absolute(line.split("#")[0].split(), path.parent) for line in path.read_text().splitlines()]
    return PotentialLines(tuple(header.elements), "\n".join(line for line in lines if line), header.atom_style)


def named_files(path: Path) -> list[str]:
    """Return the files that a potential's lines name (an EAM table), relative to its folder and inside it."""
    if path.suffix != ".lmp":
        return []
    words = {w for line in path.read_text().splitlines() for w in line.split("#")[0].split()}
    inside = path.parent.resolve()
    return sorted(w for w in words if (p := (inside / w).resolve()).is_file() and p.is_relative_to(inside))


def _absolute(words: list[str], folder: Path) -> str:
    return " ".join(f'"{(folder / w).resolve()}"' if (folder / w).is_file() else w for w in words)
