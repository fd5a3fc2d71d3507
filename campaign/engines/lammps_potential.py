"""LAMMPS potentials as campaign keeps them: plain LAMMPS lines under a header that names the elements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from campaign.config.data_files import named_files as named_files


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
    """Read a potential file: its header, and its lines with the files they name made absolute.

    Raises
    ------
    InputError
        The header is wrong, or a line does more than set a potential up.
    """
    from campaign.config import read_potential_header
    from campaign.config.potential_lines import potential_words

    header = read_potential_header(path)
    rows = [potential_words(line) for line in path.read_text("utf-8").splitlines()]
    # LAMMPS takes no units once there is a box; these are metal, and set
    lines = [_absolute(words, path.parent) for words in rows if words and words[0] != "units"]
    return PotentialLines(tuple(header.elements), "\n".join(lines), header.atom_style)


def _plain(word: str) -> str:
    return word.strip("\"'")


def _absolute(words: list[str], folder: Path) -> str:
    return " ".join(f'"{(folder / _plain(w)).resolve()}"' if (folder / _plain(w)).is_file() else w for w in words)
