"""Numbers with a unit, as a threshold of a physical quantity is written: ``2 %``, ``0.02 g/cm^3``, ``500 bar``."""

from __future__ import annotations

import re

from pydantic import PlainValidator

from campaign.config.fields import number, wrong

#: Units of each kind of quantity, in the first of them; per cent is of the reference's value.
UNITS: dict[str, dict[str, float]] = {
    "density": {"g/cm^3": 1.0, "kg/m^3": 1e-3},
    "diffusion": {"Å^2/ps": 1.0, "m^2/s": 1e8, "cm^2/s": 1e4},
    "conductivity": {"S/cm": 1.0, "S/m": 1e-2},
    "pressure": {"bar": 1.0, "kbar": 1e3, "MPa": 10.0, "GPa": 1e4, "atm": 1.01325},
    "energy": {"eV/atom": 1.0, "meV/atom": 1e-3},
    "length": {"Å": 1.0},
    "force": {"eV/Å": 1.0, "meV/Å": 1e-3},
    "angle": {"deg": 1.0},
}
PERCENT = "%"
#: Kinds of which a percentage makes no sense: zero means nothing to them.
ABSOLUTE = ("pressure", "energy", "angle")

_TEXT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*")


def parse(text: str, kind: str) -> tuple[float, bool]:
    """Return the number of a checked quantity in the first unit of its kind, and whether it is a percentage."""
    found = _TEXT.fullmatch(text)
    assert found is not None  # it was checked
    unit = found[2]
    return float(found[1]) * (1.0 if unit == PERCENT else UNITS[kind][unit]), unit == PERCENT


def unit_of(kind: str, relative: bool) -> str:
    """Return the unit in which ``parse`` gives a number."""
    return PERCENT if relative else next(iter(UNITS[kind]))


def quantity(kind: str, usual: str = "") -> PlainValidator:
    """Return the validator of a quantity above zero: text with a unit, which it gives back in one writing.

    A number alone is refused, or is in the unit ``usual`` where there is one.
    """
    known = [*UNITS[kind], *([] if kind in ABSOLUTE else [PERCENT])]
    plain = {u.replace("^", "").casefold(): u for u in known} | ({"angstrom": "Å", "a": "Å"} if "Å" in known else {})
    example = f"'{5 if kind in ABSOLUTE else 2} {known[-1]}'"
    remedy = f"write it with one of {', '.join(known)}, such as {example}"

    def check(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise wrong("a number with a unit is needed", remedy)
        if not isinstance(value, str):
            alone = number(value)
            if not usual:
                raise wrong("a threshold of a physical quantity needs its unit", remedy)
            value = f"{alone!r} {usual}"
        found = _TEXT.fullmatch(value)
        if found is None:
            raise wrong("a number with a unit is needed", remedy)
        if found[2] is None:
            raise wrong("a threshold of a physical quantity needs its unit", remedy)
        unit = plain.get(found[2].replace("^", "").replace("²", "2").replace("³", "3").casefold())
        if unit is None:
            raise wrong("this unit is not one of this quantity", remedy)
        if not 0.0 < float(found[1]) < float("inf"):
            raise wrong("a number above zero is needed", remedy)
        return f"{float(found[1]):g} {unit}"

    return PlainValidator(check)
