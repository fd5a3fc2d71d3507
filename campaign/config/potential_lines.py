"""Which lines a LAMMPS potential file may hold: those that make a potential, and none that do anything else.

A LAMMPS input script can run a shell, load code and write files. Of a potential file only commands that set the force
field up are taken, so that a file from someone else can be run without reading it first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

#: What a potential is made of.
COMMANDS = frozenset(
    [f"{kind}_{what}" for kind in ("pair", "bond", "angle", "dihedral", "improper") for what in ("style", "coeff")]
    + ["pair_modify", "kspace_style", "kspace_modify", "set", "special_bonds", "dielectric", "neighbor", "neigh_modify"]
    + ["mass", "variable", "newton", "comm_modify"]
)
#: Styles that run code named by the file: Python, or a library that is loaded.
CODE = frozenset({"python", "mliappy", "unified", "kim"})
#: Variables that are text or numbers; the other styles read files, the environment or run Python.
VARIABLES = ("equal", "string", "index")

_WHOLE = re.compile(r"\$(\{\w+\}|\w)\Z")

Wrong = tuple[str, str, str]  # what is wrong, the word, what to do


def potential_words(row: str) -> list[str]:
    """Return the words of a line as LAMMPS will be given them, without the comment."""
    return row.split("#")[0].split()


def wrong_lines(rows: Sequence[str], folder: Path) -> Iterator[tuple[int, Wrong]]:
    """Yield (line number, what is wrong) for every line that a potential file in ``folder`` may not hold."""
    for number, row in enumerate(rows, 1):
        raw = potential_words(row)
        words = [w.replace('"', "").replace("'", "") for w in raw]  # quotes do not hide a word
        found = _wrong(raw[0], words, folder) if raw else None
        if found:
            yield number, found


def _wrong(command: str, words: list[str], folder: Path) -> Wrong | None:
    if command == "units" and words[1:] == ["metal"]:
        return None  # true, and already said by campaign
    if command == "units":
        return "the potential must be in units metal", " ".join(words), "convert it to eV and Å, units metal"
    if command not in COMMANDS:
        remedy = "remove this line; campaign sets up the rest"
        if command == "atom_style":
            remedy = "write it in the header, '# atom_style: charge'"
        return f"{command!r} is not a command of a potential", " ".join(words), remedy
    if command.endswith("_style"):
        return _wrong_style(words) or _wrong_words(words, folder)
    if command == "set" and words[1:2] != ["type"] and words[1:3] != ["group", "all"]:
        return "'set' may only address types of atoms", " ".join(words), "write 'set type N charge Q'"
    if command == "variable" and words[2:3] and words[2] == "equal":  # a formula: its slashes divide
        return _wrong_signs(words)
    if command == "variable" and (len(words) < 3 or words[2] not in VARIABLES or "$" in "".join(words)):
        remedy = f"write its value with one of {', '.join(VARIABLES)}"
        return "this kind of variable has no place in a potential", " ".join(words), remedy
    return _wrong_words(words, folder)


def _wrong_style(words: list[str]) -> Wrong | None:
    """Refuse a style that loads code, also one whose name is put together from variables."""
    code = [w for w in words if w.split("/")[0].lower() in CODE]
    if code:
        return f"style {code[0]!r} runs code of its own", " ".join(words), "choose a style that LAMMPS itself has"
    if any("$" in w for w in words):
        return "a style is written without variables", " ".join(words), "write the value itself"
    return None


def _wrong_signs(words: list[str]) -> Wrong | None:
    """Refuse what LAMMPS would evaluate or join to something else than stands there."""
    text = " ".join(words)
    for sign, what in (("$(", "a value is computed in a line"), ("`", "a back quote"), ("&", "a line is continued")):
        if sign in text:
            return f"{what}, which a potential may not hold", text, "write a plain line, with 'variable NAME equal ...'"
    return None


def _wrong_words(words: list[str], folder: Path) -> Wrong | None:
    """Refuse a path that leaves the potential's folder, also one put together from variables."""
    found = _wrong_signs(words)
    if found:
        return found
    for word in words[1:]:
        if "$" in word and not _WHOLE.match(word):
            return "a variable stands for a whole word", word, "write the value itself"
        if _leaves(word, folder):
            return "the files of a potential must lie in its folder", word, "copy the file beside the potential"
    return None


def _leaves(word: str, folder: Path) -> bool:
    path = PurePosixPath(word)
    if path.is_absolute() or ".." in path.parts:
        return True
    here = folder / word
    return here.is_file() and not here.resolve().is_relative_to(folder.resolve())
