"""CP2K's input schema, as cp2k-input-tools brings it: which sections and keywords there are, and what they take.

The schema is 27 MB of XML. Only the sections that are asked for are parsed: a template names a few dozen of
ten thousand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MARK = re.compile(rb'<SECTION repeats="(yes|no)">\s*<NAME>([^<]+)</NAME>|</SECTION>')
#: 1.D-8 and 1D-8 are reals in Fortran.
_FORTRAN = re.compile(r"(?i)(?<![\w.])([+-]?(?:\d+\.?\d*|\.\d+))d([+-]?\d+)")


class WrongValue(ValueError):
    """A value that a keyword does not take.

    Attributes
    ----------
    choices
        The words it takes, where it takes words.
    """

    def __init__(self, what: str, choices: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.choices = choices


@dataclass(frozen=True)
class SectionSpec:
    """A section of the schema.

    Attributes
    ----------
    name, repeats
        Its name, and whether it may come more than once.
    keywords
        Schema node of each keyword by each of its names.
    parameter, default
        Schema node of the section's parameter and of lines without a keyword, where it takes such.
    sections
        Names of the sections in it.
    """

    name: str
    repeats: bool
    keywords: dict[str, Element]
    parameter: Element | None
    default: Element | None
    sections: frozenset[str]


@dataclass
class _Span:
    """Where a section stands in the XML: its own text from ``start``, and the sections in it."""

    repeats: bool
    start: int
    end: int = 0
    inner: dict[str, _Span] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _index() -> tuple[bytes, _Span]:
    """Return the XML and where its sections stand; about 0.1 s, once a process."""
    from cp2k_input_tools import DEFAULT_CP2K_INPUT_XML

    text = DEFAULT_CP2K_INPUT_XML.read_bytes()
    root = _Span(False, 0, len(text))
    stack = [root]
    for mark in _MARK.finditer(text):
        if mark[2] is None:
            stack.pop().end = mark.end()
        else:
            span = _Span(mark[1] == b"yes", mark.start())
            stack[-1].inner[mark[2].decode()] = span
            stack.append(span)
    return text, root


@lru_cache(maxsize=512)
def section(path: tuple[str, ...]) -> SectionSpec | None:
    """Return a section by the names that lead to it, in upper case; None where there is none."""
    from xml.etree import ElementTree

    text, span = _index()
    for name in path:
        if name not in span.inner:
            return None
        span = span.inner[name]
    if not path:
        return SectionSpec("", False, {}, None, None, frozenset(span.inner))
    pieces, at = [], span.start
    for other in span.inner.values():
        pieces.append(text[at : other.start])
        at = other.end
    node = ElementTree.fromstring(b"".join([*pieces, text[at : span.end]]))
    keywords = {n.text or "": k for k in node.iterfind("KEYWORD") for n in k.iterfind("NAME")}
    return SectionSpec(
        path[-1],
        span.repeats,
        keywords,
        node.find("SECTION_PARAMETERS"),
        node.find("DEFAULT_KEYWORD"),
        frozenset(span.inner),
    )


def default_name(node: Element) -> str:
    """Return the one name of a keyword that has several."""
    return node.findtext("NAME[@type='default']") or ""


def repeats(node: Element) -> bool:
    """Tell whether a keyword may come more than once in its section."""
    return node.get("repeats") == "yes"


def _choices(node: Element) -> tuple[str, ...]:
    return tuple(n.text or "" for n in node.iterfind("DATA_TYPE/ENUMERATION/ITEM/NAME"))


def value_of(node: Element, text: str) -> Any:
    """Return the value of a keyword as cp2k-input-tools reads it: numbers in the keyword's own unit, words in capitals.

    Raises
    ------
    WrongValue
        It is no value of this keyword.
    """
    from cp2k_input_tools.keyword_helpers import Keyword
    from cp2k_input_tools.parser_errors import InvalidParameterError
    from cp2k_input_tools.tokenizer import TokenizerError
    from transitions import MachineError

    kind = node.find("DATA_TYPE")
    kind_name = "" if kind is None else kind.get("kind", "")
    if kind_name in ("real", "integer"):
        text = _FORTRAN.sub(r"\1e\2", text)
    if kind_name == "integer" and ".." in text:  # 1..4: a list
        return text
    try:
        return Keyword.from_string(node, text, str.upper).values
    except InvalidParameterError as error:
        raise WrongValue(_reason(kind_name, str(error)), _choices(node)) from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        TokenizerError,
        MachineError,
    ) as error:
        raise WrongValue(
            _reason(kind_name, ""), _choices(node)
        ) from error  # of units, pint raises what it likes; of quotes in a comment, the tokenizer


def _reason(kind: str, said: str) -> str:
    if "expects" in said:
        return said.replace("keyword expects", "it takes").replace(" were given", " are given")
    needed = {"real": "a number", "integer": "a whole number", "logical": "T or F", "keyword": "one of its own words"}
    return f"it takes {needed.get(kind, 'another value')}"


def names(path: tuple[str, ...]) -> Iterator[str]:
    """Yield every keyword and section of a section."""
    found = section(path)
    if found is not None:
        yield from found.keywords
        yield from found.sections
