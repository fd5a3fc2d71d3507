"""Whether charge, multiplicity and spin treatment of a CP2K template fit the electrons of the frames.

CP2K echoes a multiplicity that it does not use, and with smeared electrons it computes a cell of an odd number of them
without spin; both end well, with numbers that nobody asked for. So they are looked at before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from campaign.config import cp2k_data, cp2k_ladder
from campaign.config.cp2k_kinds import kinds_of, named_entries
from campaign.config.cp2k_template import Template
from campaign.config.cp2k_tree import FALSE, Section
from campaign.config.data_files import Fault
from campaign.config.yaml_lines import show

#: Keywords below FORCE_EVAL/DFT with which electrons have spin.
SPIN = ("UKS", "UNRESTRICTED_KOHN_SHAM", "LSD", "SPIN_POLARIZED", "ROKS", "RESTRICTED_OPEN_KOHN_SHAM")

#: What a rung may not touch, by the first word of its path: another system, or another functional, is no retry.
FIXED = ("CHARGE", "MULTIPLICITY", "MULTIP", *SPIN, "XC")
#: But for the grid on which the functional is integrated.
_GRID = "XC/XC_GRID"


def treatment(root: Section) -> str:
    """Return how CP2K names a tree's treatment of spin: ``RKS``, ``UKS`` or ``ROKS``."""
    dft = root.find(*cp2k_ladder.DFT) or Section("DFT")
    on = [line.name for line in dft.keywords if line.name in SPIN and line.value.upper() not in FALSE]
    if any(name in SPIN[4:] for name in on):
        return "ROKS"
    return "UKS" if on else "RKS"


def fixed(path: str) -> bool:
    """Tell whether a rung's path (below FORCE_EVAL/DFT) decides what is computed, not how it is got to."""
    upper = path.upper()
    return upper.split("/")[0] in FIXED and not upper.startswith(_GRID)


def valence(template: Template, element: str) -> int | None:
    """Return the electrons that an atom of an element brings: those of its potential; None where they are not known."""
    named = {kind.parameter or "DEFAULT": kind for kind in kinds_of(template.root)}
    kind = named.get(template.kinds.get(element, template.kinds.get("DEFAULT", "")))
    if kind is None:
        return None
    for entry in named_entries(kind, template.root):
        if entry.what != "POTENTIAL" or entry.name is None:
            continue
        for path in (template.data[file] for file in entry.files if file in template.data):
            text = cp2k_data.entries(path, element).get(entry.name.upper())
            words = text.splitlines()[0].split() if text else []
            if words and all(word.isdigit() for word in words):  # of a GTH potential: electrons of each shell
                return sum(map(int, words))
    return None


def spin_faults(template: Template, symbols: Sequence[str]) -> Iterator[Fault]:
    """Yield what does not fit between electrons, charge, multiplicity and spin.

    Parameters
    ----------
    template
        The template.
    symbols
        Of every atom of a frame; nothing where the frames are not known.
    """
    dft = template.root.find(*cp2k_ladder.DFT) or Section("DFT")
    spin = treatment(template.root) != "RKS"
    charge, on = _integer(dft, "CHARGE") or (0, dft.line)
    multiplicity, there = _integer(dft, "MULTIPLICITY", "MULTIP") or (0, dft.line)
    if multiplicity > 1 and not spin:
        what = "without UKS, CP2K prints this multiplicity and computes a singlet"
        yield Fault(what, show(f"MULTIPLICITY {multiplicity}"), "add 'UKS' to DFT, or remove it", there)
        return
    each = {symbol: valence(template, symbol) for symbol in set(symbols)}
    if not symbols or None in each.values():
        return
    electrons = sum(each[s] or 0 for s in symbols) - charge
    if electrons < 0:
        yield Fault(f"the atoms have only {electrons + charge} electrons", show(f"CHARGE {charge}"), "correct it", on)
    elif electrons % 2 and not spin and not cp2k_ladder.smeared(template.root):
        what = f"{len(symbols)} atoms have {electrons} electrons here, and an odd number needs spin"
        remedy = "add 'UKS' and 'MULTIPLICITY 2' to DFT, or correct CHARGE"
        yield Fault(what, show(f"CHARGE {charge}"), remedy, on)
    elif spin and multiplicity and (electrons - multiplicity + 1) % 2:
        what = f"{electrons} electrons cannot have this multiplicity"
        odd = "an even" if electrons % 2 else "an odd"
        yield Fault(what, show(f"MULTIPLICITY {multiplicity}"), f"write {odd} one", there)


def _integer(section: Section, *names: str) -> tuple[int, int] | None:
    """Return the value and the line of a keyword; None where it is not there, or is no whole number."""
    for line in section.keywords:
        if line.name in names:
            try:
                return int(line.value), line.line
            except ValueError:
                return None
    return None
