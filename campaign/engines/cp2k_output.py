"""Reads CP2K's output and believes nothing of it that is not checked: exit code 0 and PROGRAM ENDED prove nothing.

CP2K ends the same way, energy, forces and all, when SCF did not converge. A result is taken only from one whole run, of
the frame that was asked for, whose SCF says that it converged and whose last step bears it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import EngineError, Unconverged, Unphysical

Array = npt.NDArray[Any]

_NUMBER = r"([-+]?\d*\.?\d+(?:[EDed][-+]?\d+)?|[-+]?NaN|[-+]?Inf\w*|\*+)"
_STARTED = re.compile(r"^[ *]+PROGRAM STARTED AT", re.MULTILINE)
_ENDED = re.compile(r"^[ *]+PROGRAM ENDED AT", re.MULTILINE)
_VERSION = re.compile(r"^ CP2K\| version string:\s+(?:CP2K version )?(.+?)\s*$", re.MULTILINE)
_ENERGY = re.compile(
    rf"^ ENERGY\| Total FORCE_EVAL \( \w+ \) energy \[(?:a\.u\.|hartree)\]:?\s+{_NUMBER}\s*$", re.MULTILINE
)
_VECTOR = re.compile(
    rf"^ CELL\| Vector ([abc]) \[angstrom\]:\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s+\|[abc]\| =\s+{_NUMBER}\s*$",
    re.MULTILINE,
)
_ANGLE = re.compile(rf"^ CELL\| Angle \([abc],[abc]\), (alpha|beta|gamma)\s+\[degree\]:\s+{_NUMBER}\s*$", re.MULTILINE)
_VOLUME = re.compile(rf"^ CELL\| Volume \[angstrom\^3\]:\s+{_NUMBER}\s*$", re.MULTILINE)
_CHARGE = re.compile(r"^ DFT\| Charge\s+(-?\d+)\s*$", re.MULTILINE)
_SPIN = re.compile(r"^ DFT\| .*\b(RKS|UKS|ROKS)\s*$", re.MULTILINE)
_ELECTRONS = re.compile(r"^ Number of electrons:\s+(\d+)\s*$", re.MULTILINE)
_MULTIPLICITY = re.compile(r"^ DFT\| Multiplicity\s+(-?\d+)\s*$", re.MULTILINE)
_ATOM = re.compile(
    r"^\s+(\d+)\s+\d+\s+(?:[A-Z][a-z]?)\s+(\d+)\s+" + r"\s+".join([_NUMBER] * 3) + rf"\s+{_NUMBER}\s+\S+\s*$"
)
#: 2023: number, kind, element and three numbers; from 2024 on FORCES|, number and four.
_FORCE = re.compile(r"^\s*(?:(\d+)\s+\d+\s+\S+|FORCES\|\s+(\d+))\s+" + r"\s+".join([_NUMBER] * 3) + r"(?:\s+\S+)?\s*$")
_FORCES = re.compile(r"^\s*(?:ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\])\s*$", re.MULTILINE)
_STRESS = re.compile(r"^ STRESS\| (?:Analytical|Numerical) stress tensor \[([^\]]+)\]\s*$", re.MULTILINE)
_STRESS_ROW = re.compile(r"^ STRESS\|\s+([xyz])\s+" + r"\s+".join([_NUMBER] * 3) + r"\s*$")
_STEP = re.compile(  # a long name of the method touches the number after it: "Kerker/Diag.0.30E-01"
    rf"^\s+(\d+) (\S.*?)\s*(\d\.\d+E[-+]\d+)\s+(\d+\.\d+)\s+(?:{_NUMBER}\s+)?{_NUMBER}(?:\s+{_NUMBER})?\s*$"
)
_INNER = re.compile(r"^  \*\*\* SCF run converged in\s+(\d+) steps \*\*\*", re.MULTILINE)
_OUTER = re.compile(r"^  outer SCF loop converged in\s+(\d+) iterations or\s+(\d+) steps", re.MULTILINE)
_GRADIENT = re.compile(rf"^  outer SCF iter =\s+\d+ RMS gradient =\s+{_NUMBER}", re.MULTILINE)
_FAILED = re.compile(r"SCF run NOT converged|outer SCF loop FAILED to converge", re.IGNORECASE)
#: Said at every step where the highest orbital is not empty: electrons would go into others that are not there.
_FULL = re.compile(r"(?:smearing|window for smearing) includes[\s*]+the last[\s*]+MO")
_WARNING = re.compile(r"^ \*\*\* WARNING in \S+ :: (.*\*\*\*(?:\n \*\*\* (?!WARNING).*\*\*\*)*)[ \t]*$", re.MULTILINE)
_LOOP = re.compile(r"^ SCF WAVEFUNCTION OPTIMIZATION", re.MULTILINE)
#: What CP2K draws beside the text of an abort.
_ART = re.compile(r"^ ?\*\s+(?:___|/   \\|\[ABORT\]|\\___/|O/\||/\| \||/ \\|\|)?\s*(.*?)\s*\*?\s*$")
_CODE = re.compile(r"^[\w./]+\.[fF]\w*:\d+$")

#: Pascal in the units that CP2K prints stress in.
PASCAL = {"Pa": 1.0, "MPa": 1e6, "GPa": 1e9, "bar": 1e5, "kbar": 1e8, "atm": 101325.0}


class TooFewOrbitals(Unphysical):
    """Smeared electrons had no room: other steps to convergence do not mend that."""


@dataclass(frozen=True)
class Asked:
    """What a calculation was asked for, to be found again in its output.

    Attributes
    ----------
    numbers, positions, cell
        The frame: atomic numbers, Å, Å.
    charge, multiplicity
        Of the whole cell; None where CP2K chooses.
    inner, outer
        Criteria of convergence of SCF and of its outer loop; None where there is no outer loop.
    spin
        ``RKS``, ``UKS`` or ``ROKS``; None where it is not known.
    """

    numbers: Array
    positions: Array
    cell: Array
    charge: int | None = 0
    multiplicity: int | None = None
    inner: float = 1e-5
    outer: float | None = None
    spin: str | None = None


@dataclass(frozen=True)
class Result:
    """A single point that was checked.

    Attributes
    ----------
    energy
        eV. Where electrons are smeared, with their entropy's part: what the forces are the derivative of.
    forces
        (a, 3), eV/Å.
    stress
        (3, 3), eV/Å^3, tension positive.
    steps
        SCF steps, all loops together.
    warnings
        CP2K's own, each once.
    version
        CP2K's version.
    spin, multiplicity
        How electrons were treated: ``RKS``, ``UKS`` or ``ROKS``; the multiplicity of the whole cell.
    """

    energy: float
    forces: Array
    stress: Array
    steps: int
    warnings: tuple[str, ...]
    version: str
    spin: str
    multiplicity: int


def read_result(text: str, asked: Asked) -> Result:
    """Return the result of a calculation from the text of its output, checked.

    Raises
    ------
    Unconverged
        SCF did not reach its criterion.
    Unphysical
        Something is not finite, or of another frame.
    EngineError
        The output is not the whole output of one run.
    """
    check_whole(text)
    steps = check_converged(text, asked)
    _check_orbitals(text)
    units = _units(text)
    _check_frame(text, asked)
    _check_cell(text, asked.cell)
    spin, multiplicity = _check_electrons(text, asked)
    energy = _single(_ENERGY, text, "the energy")
    forces = _forces(text, len(asked.numbers))
    stress = _stress(text, units)
    version = _VERSION.search(text)
    if version is None:
        raise EngineError("CP2K's output does not name its version.")
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if not np.isfinite(value).all():
            raise Unphysical(f"CP2K's {name} is not finite.")
    # CP2K's stress is that of the cell on its surroundings: pressure positive
    return Result(
        energy * units.hartree,
        forces * units.hartree / units.bohr,
        -stress * units.hartree / units.bohr**3,
        steps,
        warnings_of(text),
        version[1],
        spin,
        multiplicity,
    )


def check_whole(text: str) -> None:
    """Check that a text is the whole output of one run that ended by itself.

    Raises
    ------
    EngineError
        It is not.
    """
    if not text.strip():
        raise EngineError("CP2K wrote no output.")
    box = abort(text)
    if box:
        raise (Unconverged if _FAILED.search(box) else EngineError)(f"CP2K stopped: {box}.")
    runs = len(_STARTED.findall(text))
    if runs != 1:
        what = "is not CP2K's" if runs == 0 else f"holds {runs} runs"
        raise EngineError(f"The output {what}; it ends with '{last_line(text)}'.")
    if not _ENDED.search(text):
        raise EngineError(f"CP2K's output is cut off after {_where(text)}; it ends with '{last_line(text)}'.")


def check_converged(text: str, asked: Asked) -> int:
    """Check that SCF converged, by what it says and by its last step, and return the steps it took.

    Raises
    ------
    Unconverged
        It did not, or does not say so.
    """
    if len(_LOOP.findall(text)) != 1:
        raise EngineError(f"CP2K's output holds {len(_LOOP.findall(text))} SCF calculations instead of one.")
    found = list(steps_of(text))
    if _FAILED.search(text):
        raise Unconverged(f"SCF did not converge in {len(found)} steps: {last_change(text, asked)}.")
    outer = _OUTER.findall(text)
    if asked.outer is not None:
        gradients = [_float(g) for g in _GRADIENT.findall(text)]
        if not outer or not gradients:
            raise Unconverged(f"SCF does not say that its outer loop converged: {last_change(text, asked)}.")
        if not gradients[-1] <= asked.outer * 1.005:  # printed with two digits
            what = f"the last gradient is {gradients[-1]:g} and the criterion {asked.outer:g}"
            raise Unconverged(f"SCF says that it converged, but {what}.")
        if not _INNER.search(text, _last_run(text)):
            raise Unconverged(f"The outer loop converged, but not SCF in its last run: {last_change(text, asked)}.")
        return int(outer[-1][1])
    inner = _INNER.findall(text)
    if not inner:
        raise Unconverged(f"SCF does not say that it converged: {last_change(text, asked)}.")
    last = next((change for _, change in reversed(found) if change is not None), math.nan)
    if not last <= asked.inner + 1e-8:  # printed with eight decimals
        raise Unconverged(f"SCF says that it converged, but {last_change(text, asked)}.")
    return int(inner[-1])


def _last_run(text: str) -> int:
    """Return where the last run of the inner loop begins: after the outer loop's last step but one."""
    ends = [mark.end() for mark in _GRADIENT.finditer(text)]
    return ends[-2] if len(ends) > 1 else 0


def _check_orbitals(text: str) -> None:
    """Check that smeared electrons had room: CP2K goes on without the orbitals that they would need.

    Raises
    ------
    TooFewOrbitals
        The last step had too few. With k-points CP2K does not say so.
    """
    marks = list(_FULL.finditer(text))
    if marks and sum(1 for row in text[marks[-1].end() :].splitlines() if _STEP.match(row)) < 2:
        raise TooFewOrbitals(
            "CP2K had too few orbitals for the smeared electrons: its highest is not empty; raise ADDED_MOS."
        )


def steps_of(text: str) -> Iterator[tuple[int, float | None]]:
    """Yield (number, change) of each SCF step; steps of a line search have no change."""
    start = _LOOP.search(text)
    for row in text[start.end() :].splitlines() if start else ():
        step = _STEP.match(row)
        if step:
            yield int(step[1]), None if step[5] is None else _float(step[5])


def last_change(text: str, asked: Asked) -> str:
    """Return in words how far SCF was from its criterion."""
    gradients = [_float(g) for g in _GRADIENT.findall(text)]
    if asked.outer is not None and gradients:
        return f"the last gradient was {gradients[-1]:.3g}, the criterion is {asked.outer:g}"
    changes = [change for _, change in steps_of(text) if change is not None]
    if not changes:
        return "no step of it is in the output"
    return f"the last change was {changes[-1]:.3g}, the criterion is {asked.inner:g}"


def abort(text: str) -> str:
    """Return the text of CP2K's ABORT box, or nothing."""
    if "[ABORT]" not in text:
        return ""
    rows = text.splitlines()
    at = next(k for k, row in enumerate(rows) if "[ABORT]" in row)
    start = next((k for k in range(at, max(-1, at - 8), -1) if set(rows[k].strip()) == {"*"}), max(0, at - 3))
    said = []
    for row in rows[start + 1 : at + 40]:
        if row.strip() and set(row.strip()) == {"*"}:
            break
        mark = _ART.match(row)
        said.append(mark[1] if mark else row.strip())
    words = " ".join(w for w in said if w and not _CODE.match(w))
    return " ".join(words.split())[:500].rstrip(". ") or "it does not say why"


def warnings_of(text: str) -> tuple[str, ...]:
    """Return CP2K's warnings, each once."""
    found = (" ".join(re.sub(r"\*\*\*", " ", w).split())[:300] for w in _WARNING.findall(text))
    return tuple(dict.fromkeys(found))


def last_line(text: str) -> str:
    """Return the last line with something in it."""
    return next((" ".join(row.split())[:120] for row in reversed(text.splitlines()) if row.strip()), "")


def _where(text: str) -> str:
    """Return in words how far a run got."""
    if _FORCES.search(text):
        return "the forces"
    steps = sum(1 for _ in steps_of(text))
    return f"SCF step {steps}" if steps else "its start"


@dataclass(frozen=True)
class _Units:
    """CP2K's own conversion factors: eV, Å, Pa in atomic units."""

    hartree: float
    bohr: float
    pascal: float


def _units(text: str) -> _Units:
    """Return the factors that CP2K itself converts with: it prints them (GLOBAL/PRINT/PHYSCON), CODATA 2006 in 2023.1.

    With those of another year, energy and forces would differ from CP2K's in eV and Å in the seventh digit.
    """
    found = []
    for name in ("[a.u.] -> [eV]", "[a.u.] = [Bohr] -> [Angstrom]", "[a.u.] -> [Pa]"):
        match = re.search(rf"^ {re.escape(name)}\s+{_NUMBER}\s*$", text, re.MULTILINE)
        if match is None:
            raise EngineError(f"CP2K's output does not hold its conversion factor {name}.")
        found.append(_float(match[1]))
    return _Units(*found)


def _check_frame(text: str, asked: Asked) -> None:
    """Check that what was computed is the frame that was asked for, with its charge and multiplicity."""
    atoms = _table(text, "ATOMIC COORDINATES IN ANGSTROM", _ATOM)
    if len(atoms) != len(asked.numbers):
        raise Unphysical(f"CP2K computed {len(atoms)} atoms; the frame has {len(asked.numbers)}.")
    for k, atom in enumerate(atoms):
        if int(atom[1]) != k + 1 or int(atom[2]) != asked.numbers[k]:
            what = f"atom {k + 1} is of element {atom[2]} in CP2K's output and {asked.numbers[k]} in the frame"
            raise Unphysical(f"CP2K computed other atoms: {what}.")
    moved = np.abs(np.array([[_float(x) for x in atom.groups()[2:5]] for atom in atoms]) - asked.positions).max()
    if not moved < 2e-6 + 1e-6 * np.abs(asked.positions).max():
        raise Unphysical(f"CP2K computed other positions: an atom is {moved:.3g} Å away from the frame's.")


def _check_cell(text: str, cell: Array) -> None:
    """Check that the cell is the frame's: vectors as far as they are printed, lengths, angles and volume."""
    vectors, angles = _VECTOR.findall(text), _ANGLE.findall(text)
    if [v[0] for v in vectors] != ["a", "b", "c"] or [a[0] for a in angles] != ["alpha", "beta", "gamma"]:
        raise EngineError("CP2K's output does not hold the cell once, with its vectors and angles.")
    lengths = np.linalg.norm(cell, axis=1)
    for k, (name, *words) in enumerate(vectors):
        places = max(len(word.partition(".")[2]) for word in words[:3])
        off = np.abs(np.array([_float(w) for w in words[:3]]) - cell[k]).max()
        longer = abs(_float(words[3]) - lengths[k])
        if not (off < 0.51 * 10.0**-places + 1e-9 and longer < 1e-6 + 1e-7 * lengths[k]):
            raise Unphysical(f"CP2K computed another cell: its vector {name} is {' '.join(words[:3])} Å.")
    for (name, word), (i, j) in zip(angles, ((1, 2), (0, 2), (0, 1)), strict=True):
        right = math.degrees(math.acos(np.clip(cell[i] @ cell[j] / (lengths[i] * lengths[j]), -1, 1)))
        if not abs(_float(word) - right) < 1e-5:
            raise Unphysical(
                f"CP2K computed another cell: its angle {name} is {word} degrees; the frame's is {right:g}."
            )
    volume, right = _single(_VOLUME, text, "the volume"), abs(float(np.linalg.det(cell)))
    if not abs(volume - right) < 1e-5 * right + 1e-5:
        raise Unphysical(f"CP2K computed a cell of {volume:g} Å^3; the frame's has {right:g}.")


def _check_electrons(text: str, asked: Asked) -> tuple[str, int]:
    """Check charge, multiplicity and the treatment of spin, and return the last two.

    Of xTB CP2K prints none of them: there they follow from the electrons that it counts.
    """
    spins = _SPIN.findall(text)
    charges = [int(c) for c in _CHARGE.findall(text)]
    multiplicities = [int(m) for m in _MULTIPLICITY.findall(text)]
    if not (spins or charges or multiplicities):
        electrons = [int(n) for n in _ELECTRONS.findall(text)]
        if len(electrons) not in (1, 2):
            raise EngineError(f"CP2K's output counts the electrons {len(electrons)} times.")
        valence = sum(_float(atom[6]) for atom in _table(text, "ATOMIC COORDINATES IN ANGSTROM", _ATOM))
        spins, charges = ["UKS" if len(electrons) == 2 else "RKS"], [round(valence - sum(electrons))]
        multiplicities = [abs(electrons[0] - electrons[-1]) + 1]
    if not len(spins) == len(charges) == len(multiplicities) == 1:
        raise EngineError("CP2K's output does not say once each what charge, multiplicity and spin it computes.")
    for name, found, wanted in (
        ("charge ", charges[0], asked.charge),
        ("multiplicity ", multiplicities[0], asked.multiplicity),
        ("", spins[0], asked.spin),
    ):
        if wanted is not None and found != wanted:
            raise Unphysical(f"CP2K computed {name}{found}; the template asks for {wanted}.")
    return spins[0], multiplicities[0]


def _table(text: str, title: str, row: re.Pattern[str]) -> list[re.Match[str]]:
    """Return the rows of the table under a title, which ends with the first line that is no row."""
    at = text.find(title)
    found: list[re.Match[str]] = []
    for line in text[at:].splitlines()[1:] if at >= 0 else ():
        match = row.match(line)
        if match is None and found:
            break
        if match is not None:
            found.append(match)
    return found


def _forces(text: str, atoms: int) -> Array:
    """Return the forces in Hartree/Bohr."""
    titles = _FORCES.findall(text)
    if len(titles) != 1:
        raise EngineError(f"CP2K's output holds {len(titles)} tables of forces instead of one.")
    rows = _table(text, titles[0].strip(), _FORCE)
    numbers = [int(row[1] or row[2]) for row in rows]
    if numbers != list(range(1, atoms + 1)):
        raise Unphysical(f"CP2K printed forces of {len(rows)} atoms; the frame has {atoms}.")
    return np.array([[_float(x) for x in row.groups()[2:5]] for row in rows])


def _stress(text: str, units: _Units) -> Array:
    """Return CP2K's stress in Hartree/Bohr^3, pressure positive."""
    titles = list(_STRESS.finditer(text))
    if len(titles) != 1:
        raise EngineError(f"CP2K's output holds {len(titles)} stress tensors instead of one.")
    unit = titles[0][1]
    if unit not in PASCAL and unit not in ("a.u.", "hartree/bohr^3"):
        raise EngineError(f"CP2K printed the stress in {unit}, which campaign does not know.")
    rows = [m for line in text[titles[0].end() :].splitlines()[1:6] if (m := _STRESS_ROW.match(line))]
    if [row[1] for row in rows] != ["x", "y", "z"]:
        raise EngineError("CP2K's stress tensor is not whole.")
    stress = np.array([[_float(x) for x in row.groups()[1:]] for row in rows])
    return stress * PASCAL[unit] / units.pascal if unit in PASCAL else stress


def _single(pattern: re.Pattern[str], text: str, name: str) -> float:
    found = pattern.findall(text)
    if len(found) != 1:
        raise EngineError(f"CP2K's output holds {name} {len(found)} times instead of once.")
    return _float(found[0])


def _float(word: str) -> float:
    """Return a number as Fortran prints it; stars, for one too long, are none."""
    if word.startswith("*"):
        return math.nan
    return float(re.sub(r"[dD]", "e", word) if word[-1:].isdigit() else word)


def read_text(path: Path) -> str:
    """Return the text of an output; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
