"""The retry ladder of CP2K as data: what each attempt at a frame changes in the template.

A rung is a name from ``RUNGS`` or a mapping from paths below ``FORCE_EVAL/DFT`` to values::

    ladder:
      - template
      - more_steps
      - {SCF/MAX_SCF: 200, SCF/MIXING/ALPHA: 0.1, restart: true}
      - {SCF/OT: null, SCF/DIAGONALIZATION: {ALGORITHM: STANDARD}}

``null`` removes a keyword or a section, a mapping stands for a whole section (``_`` is its parameter), ``restart``
starts from the last wavefunction of the attempt before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from campaign.config import cp2k_schema
from campaign.config.cp2k_tree import FALSE, Section

#: The ladder where the campaign file names none.
DEFAULT = ("template", "more_steps", "ot_cg", "diagonalise", "smear")

DFT = ("FORCE_EVAL", "DFT")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Rung:
    """One rung, made for one template.

    Attributes
    ----------
    name
        The name of a built-in rung, or ``own``.
    settings
        What changes, by path below ``FORCE_EVAL/DFT``.
    restart
        Whether it starts from the last wavefunction of the attempt before, where there is one.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    restart: bool = False


def _scf(root: Section) -> Section:
    return root.find(*DFT, "SCF") or Section("SCF")


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default


def is_on(section: Section | None) -> bool:
    """Tell whether a section that can be switched off is there, and on."""
    return section is not None and section.parameter.upper() not in FALSE


def smeared(root: Section) -> bool:
    """Tell whether electrons are smeared."""
    return is_on(_scf(root).find("SMEAR"))


def k_points(root: Section) -> bool:
    """Tell whether there are k-points, if only Gamma among them."""
    section = root.find(*DFT, "KPOINTS")
    return section is not None and (section.get("SCHEME") or "").upper().split()[:1] != ["NONE"]


def _no_ot(root: Section) -> bool:
    """Tell whether orbital transformation cannot be: CP2K stops."""
    return smeared(root) or k_points(root)


def _more_steps(root: Section) -> Settings:
    """Five times the steps, from the last wavefunction."""
    scf = _scf(root)
    settings = {"SCF/MAX_SCF": min(500, 5 * _whole(scf.get("MAX_SCF"), 50))}
    outer = scf.find("OUTER_SCF")
    if outer is not None:
        settings = {"SCF/MAX_SCF": max(50, _whole(scf.get("MAX_SCF"), 50))}
        settings["SCF/OUTER_SCF/MAX_SCF"] = max(20, 2 * _whole(outer.get("MAX_SCF"), 50))
    return settings


def _slow(alpha: float, nbroyden: int, steps: int) -> Settings:
    mixing = {"_": "T", "METHOD": "BROYDEN_MIXING", "ALPHA": alpha, "NBROYDEN": nbroyden}
    return {"SCF/MAX_SCF": steps, "SCF/MIXING": mixing}


def _ot_cg(root: Section) -> Settings:
    """Conjugate gradients with the robust preconditioner; for metals and k-points, which cannot, slower mixing."""
    if _no_ot(root):
        return _slow(0.1, 8, 300)
    return {
        "SCF/DIAGONALIZATION": None,
        "SCF/MIXING": None,
        "SCF/ADDED_MOS": None,  # CP2K stops where there are any
        "SCF/MAX_SCF": 50,
        "SCF/OT": {"_": "T", "MINIMIZER": "CG", "PRECONDITIONER": "FULL_ALL", "LINESEARCH": "3PNT"},
        "SCF/OUTER_SCF": {"_": "T", "MAX_SCF": 20, "EPS_SCF": _criterion(root)},
    }


def _criterion(root: Section) -> str:
    """Return the template's own criterion of convergence: a rung changes the way, not the goal."""
    scf = _scf(root)
    outer = scf.find("OUTER_SCF")
    return (outer.get("EPS_SCF") if outer else None) or scf.get("EPS_SCF") or "1.0E-5"


def _diagonalise(root: Section) -> Settings:
    """Diagonalisation with Broyden mixing; for metals and k-points, which do that already, with a longer memory."""
    if _no_ot(root):
        return _slow(0.05, 16, 500)
    settings = {"SCF/OT": None, "SCF/OUTER_SCF": None, "SCF/DIAGONALIZATION": {"_": "T", "ALGORITHM": "STANDARD"}}
    return {**settings, "SCF/EPS_SCF": _criterion(root), **_slow(0.2, 8, 300)}


def _smear(root: Section) -> Settings:
    """Diagonalisation with electrons smeared at 300 K; for metals, Kerker mixing with a small step."""
    if smeared(root):
        mixing = {"_": "T", "METHOD": "KERKER_MIXING", "ALPHA": 0.03, "BETA": 1.5}
        return {"SCF/MAX_SCF": 500, "SCF/MIXING": mixing}
    smear = {"_": "T", "METHOD": "FERMI_DIRAC", "ELECTRONIC_TEMPERATURE": "[K] 300"}
    return {**_diagonalise(root), "SCF/ADDED_MOS": 20, "SCF/SMEAR": smear}


#: The built-in rungs: what each changes in a template, and whether it starts from the last wavefunction.
RUNGS: dict[str, tuple[Callable[[Section], Settings], bool]] = {
    "template": (lambda root: {}, False),
    "more_steps": (_more_steps, True),
    "ot_cg": (_ot_cg, True),
    "diagonalise": (_diagonalise, False),
    "smear": (_smear, False),
}


def resolve(rung: str | Settings, root: Section) -> Rung:
    """Return a rung as it is for a template's tree.

    Parameters
    ----------
    rung
        As in the campaign file: a name from ``RUNGS``, or a mapping.
    root
        The template's tree.
    """
    if isinstance(rung, str):
        settings, restart = RUNGS[rung]
        return Rung(rung, settings(root), restart)
    own = {k: v for k, v in rung.items() if k != "restart"}
    return Rung("own", own, bool(rung.get("restart", False)))


def choose(ladder: Sequence[str | Settings], attempt: int) -> str | Settings:
    """Return the rung of an attempt: the last one serves all that come after."""
    return ladder[min(attempt, len(ladder) - 1)]


def apply(root: Section, settings: Settings) -> Section:
    """Return a copy of a template's tree with a rung's settings in it."""
    root = root.copy()
    for path, value in settings.items():
        *above, last = path.upper().split("/")
        if value is None:
            place = root.find(*DFT, *above)
            if place is not None:
                place.drop(last, *_aliases((*DFT, *above), last))
        elif isinstance(value, Mapping):
            place = root.made(*DFT, *above)
            place.sections = [s for s in place.sections if s.name != last]
            place.sections.append(_section(last, value))
        else:
            root.made(*DFT, *above).put(last, word(value), *_aliases((*DFT, *above), last))
    return root


def _section(name: str, content: Mapping[str, Any]) -> Section:
    section = Section(name, word(content.get("_", "")))
    for key, value in content.items():
        if isinstance(value, Mapping):
            section.sections.append(_section(key.upper(), value))
        elif key != "_" and value is not None:
            section.put(key.upper(), word(value))
    return section


def word(value: Any) -> str:
    """Return a value of YAML as CP2K writes it."""
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, list | tuple):
        return " ".join(word(v) for v in value)
    return str(value)


def _aliases(path: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return every name of a keyword."""
    found = cp2k_schema.section(path)
    if found is None or name not in found.keywords:
        return ()
    node = found.keywords[name]
    return tuple(n for n, other in found.keywords.items() if other is node)
