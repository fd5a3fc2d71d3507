"""The kinds of value a campaign or site file may hold, stricter than pydantic's own.

A bool is no number, ``"5"`` is no 5, a whole float such as ``1e5`` is an integer.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

#: Largest integer accepted: what a signed 64-bit integer holds.
LARGEST = 2**63 - 1


class Model(BaseModel):
    """Base of every part of a file: frozen, no unknown keys, defaults checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def wrong(what: str, remedy: str) -> PydanticCustomError:
    """Return the error for a wrong value: ``what`` is wrong with it and the remedy, both without the value."""
    return PydanticCustomError("campaign", "{what}; {remedy}", {"what": what, "remedy": remedy})


def closest(word: object, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``word`` was probably meant to be, or None."""
    names = {str(k).casefold(): str(k) for k in known}
    text = str(word).casefold()
    if text in names:
        return names[text]
    swapped = [name for name in names if len(text) > 1 and sorted(name) == sorted(text)]
    if swapped:
        return names[swapped[0]]
    found = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
    return names[found[0]] if found else None


def suggest(word: object, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` with the list of what is known, or the list alone."""
    known = [str(k) for k in known]
    best = closest(word, known)
    choice = f"write one of {', '.join(known)}"
    return f"did you mean '{best}'? Otherwise {choice}" if best else choice


def _refuse_non_numbers(value: object, kind: str) -> None:
    if isinstance(value, bool):
        raise wrong(f"{kind} is needed and true/false is not one", f"write {kind}")
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            raise wrong(f"{kind} is needed and this is text", f"write {kind}") from None
        raise wrong(f"{kind} is needed and a number in quotes is text", "remove the quotes")
    if value is None:
        raise wrong(f"{kind} is needed and nothing is written", f"write {kind} or remove the key")
    if not isinstance(value, int | float):
        raise wrong(f"{kind} is needed", f"write {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("a finite number is needed", "write a finite number")


def integer(value: object) -> int:
    """Return a whole number (``5``, ``1e5``); bools, text and fractions are wrong."""
    _refuse_non_numbers(value, "a whole number")
    assert isinstance(value, int | float)
    if value != int(value):
        raise wrong("a whole number is needed and this has a fraction", "write it without a fraction")
    if abs(value) > LARGEST:
        raise wrong("this number is too large", f"write at most {LARGEST}")
    return int(value)


def number(value: object) -> float:
    """Return a finite number as a float; bools and text are wrong."""
    _refuse_non_numbers(value, "a number")
    assert isinstance(value, int | float)
    try:
        return float(value)
    except OverflowError:
        raise wrong("this number is too large", "write a smaller number") from None


def switch(value: object) -> bool:
    """Return true or false; numbers and text are wrong."""
    if not isinstance(value, bool):
        raise wrong("true or false is needed", "write true or false")
    return value


Switch = Annotated[bool, BeforeValidator(switch)]
NonNegativeInteger = Annotated[int, Field(ge=0), BeforeValidator(integer)]
Count = Annotated[int, Field(ge=1), BeforeValidator(integer)]
Several = Annotated[int, Field(ge=2), BeforeValidator(integer)]
Bins = Annotated[int, Field(ge=2, le=300), BeforeValidator(integer)]
Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(number)]
NonNegative = Annotated[float, Field(ge=0), BeforeValidator(number)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(number)]
FileName = Annotated[str, Field(min_length=1)]


def _temperature(value: object) -> float | tuple[float, float]:
    remedy = "write one temperature in K, or the two ends of a ramp as [1100, 1700]"
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise wrong("a ramp has exactly two temperatures", remedy)
        first, last = (number(v) for v in value)
        if first <= 0 or last <= 0:
            raise wrong("a temperature must be above 0 K", remedy)
        return first, last
    if isinstance(value, dict):
        raise wrong("a temperature is needed", remedy)
    single = number(value)
    if single <= 0:
        raise wrong("a temperature must be above 0 K", remedy)
    return single


def _plain(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


#: One temperature, or a ramp as (first, last).
Temperature = Annotated[float | tuple[float, float], PlainValidator(_temperature), PlainSerializer(_plain)]


def _pressure(value: object) -> float | tuple[float, ...]:
    if not isinstance(value, list | tuple):
        return number(value)
    if not value:
        raise wrong("a list of pressures must hold at least one", "write a pressure, or a list such as [1, 1000]")
    return tuple(number(v) for v in value)


#: One pressure or several.
Pressures = Annotated[float | tuple[float, ...], PlainValidator(_pressure), PlainSerializer(_plain)]


def _element(symbol: str) -> str:
    from ase.data import atomic_numbers

    if atomic_numbers.get(symbol, 0) > 0:
        return symbol
    best = closest(symbol, (s for s in atomic_numbers if s != "X")) if symbol else None
    hint = f"did you mean '{best}'?" if best else "write a symbol of the periodic table such as Na"
    raise wrong("there is no such element", hint)


Element = Annotated[str, AfterValidator(_element)]


def _window(value: object) -> str | tuple[float, float]:
    remedy = "write auto, or two enthalpies in eV/atom such as [-4.75, -4.05]"
    if value == "auto":
        return "auto"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise wrong("a window has two ends", remedy)
    low, high = (number(v) for v in value)
    if low >= high:
        raise wrong("the window's first end must be the lower one", remedy)
    return low, high


#: The two ends of a window of enthalpies, or auto.
Window = Annotated[Literal["auto"] | tuple[float, float], PlainValidator(_window), PlainSerializer(lambda v: v)]


def _interval(value: object) -> tuple[float, float]:
    remedy = "write the lower and the upper bound, as [LOW, HIGH]"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise wrong("two bounds are needed", remedy)
    low, high = (number(v) for v in value)
    if low >= high:
        raise wrong("the first bound must be the lower one", remedy)
    return low, high


#: A lower and an upper bound.
Interval = Annotated[tuple[float, float], PlainValidator(_interval), PlainSerializer(list)]


def _composition(value: object) -> dict[str, int]:
    remedy = "write the atoms of each element, such as {Na: 32, Cl: 32}"
    if not isinstance(value, dict) or not value:
        raise wrong("a mapping of elements to numbers of atoms is needed", remedy)
    found: dict[str, int] = {}
    for symbol, count in value.items():
        _element(str(symbol))
        found[str(symbol)] = integer(count)
        if found[str(symbol)] < 1:
            raise wrong(f"the number of {symbol} atoms must be at least 1", remedy)
    return found


#: Chemical symbols to numbers of atoms, at least one.
Composition = Annotated[dict[str, int], PlainValidator(_composition)]


def _scalars(value: object) -> dict[str, Any]:
    remedy = "write a mapping such as {sigma: 3.4, epsilon: 0.0103}"
    if not isinstance(value, dict):
        raise wrong("a mapping is needed", remedy)
    for key, item in value.items():
        if not isinstance(item, str | int | float):
            raise wrong(f"the value of '{key}' must be a number or text", remedy)
        if isinstance(item, float) and not math.isfinite(item):
            raise wrong(f"the value of '{key}' must be finite", remedy)
    return dict(value)


#: A mapping of names to numbers, text or true/false.
Scalars = Annotated[dict[str, Any], PlainValidator(_scalars)]


def _parameters(value: object) -> dict[str, Any]:
    remedy = "write a mapping such as {sigma: 3.4, epsilon: 0.0103}"
    if not isinstance(value, dict):
        raise wrong("a mapping is needed", remedy)
    for key, item in value.items():
        if not plain_data(item):
            raise wrong(f"the value of '{key}' must be finite numbers, text, or lists and mappings of them", remedy)
    return dict(value)


def plain_data(value: object) -> bool:
    """Tell whether a value is finite numbers, text, true/false, null, or lists and mappings of them."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain_data(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain_data, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


#: A program's own arguments: a mapping of names to numbers, text, true/false, or lists and mappings of them.
Parameters = Annotated[dict[str, Any], PlainValidator(_parameters)]


def tag_by(key: str) -> Callable[[Any], str | None]:
    """Return the function that names the variant of a union by its ``key`` (method, engine or model).

    Tags start with ``@`` so that they can be told from keys in the location of an error.
    """

    def tag(value: Any) -> str | None:
        found = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        return None if found is None else f"@{found}"

    return tag
