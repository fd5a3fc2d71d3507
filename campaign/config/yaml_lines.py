"""YAML to plain data, safely, with the line of every key.

Read are mappings, lists and plain values. Refused, each with its line: tags, anchors and aliases, duplicate keys,
numbers that are not finite, control characters, deep nesting, large files, more than one document.
Numbers follow YAML 1.2 and common sense: ``1e3`` is a number, ``no`` is text (and Nobelium is an element), ``01:00:00``
is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.?inf(inity)?|\.?nan)\Z", re.IGNORECASE)
_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line for the parser
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")


@dataclass(frozen=True)
class Problem:
    """One mistake in a file: at ``line``, in the value of ``key``, and what to write instead."""

    line: int
    key: str
    what: str
    got: str
    remedy: str

    def text(self, file: Path | str) -> str:
        """Return the line that a user reads."""
        said = f"{self.key}: {self.what}, got {self.got}; {self.remedy}"
        return f"{file}:{self.line}: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)


@dataclass
class Document:
    """What a YAML file held.

    Attributes
    ----------
    data
        Mappings, lists, text, numbers, bools and None; None also stands for what could not be read.
    lines
        The line of every key path, such as ``sample[0].steps``.
    problems
        What was refused.
    """

    data: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, key: str) -> int:
        """Return the line of ``key`` or, where it is not written, of what it would be in."""
        while key:
            if key in self.lines:
                return self.lines[key]
            shorter = re.sub(r"(\.[\w-]+|\[[0-9]+\])\Z", "", key)
            key = shorter if shorter != key else ""
        return 1


def join(path: str, part: str | int) -> str:
    """Return the key path of ``part`` (a key or a list index) inside ``path``."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not re.fullmatch(r"[\w-]{1,64}", part):
        part = repr(part[:40])
    return f"{path}.{part}" if path else part


def show(value: Any) -> str:
    """Return a value as a user would write it, on one line and not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{join('', key)}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 80 else text[:76] + " ..."


def read_document(path: Path) -> Document:
    """Read a YAML file; whatever is wrong with it is in ``problems``."""

    def refuse(line: int, what: str, got: str, remedy: str) -> Document:
        return Document(problems=[Problem(line, "file", what, got, remedy)])

    name = show(path.name)
    try:
        if path.is_dir():
            return refuse(1, "this is a folder", name, "name a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return refuse(1, "there is no such file", show(str(path)), "check the path")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return refuse(1, f"the file cannot be read ({reason})", show(str(path)), "check the path and its permissions")
    if len(raw) > MAX_BYTES:
        return refuse(1, "the file is too large", f"over {MAX_BYTES} bytes", "is this the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = f"the byte {raw[error.start : error.start + 1]!r}"
        return refuse(line, "this is not UTF-8 text", bad, "save the file as UTF-8")
    return parse(text)


def parse(text: str) -> Document:
    """Parse YAML text; whatever is wrong with it is in ``problems``."""
    document = Document()
    try:
        document.data = _Composer(text, document).compose()
    except _Stop:
        document.data = None
    except yaml.MarkedYAMLError as error:
        document.data = None
        document.problems.append(_syntax(error, text))
    except yaml.reader.ReaderError as error:
        document.data = None
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(
            Problem(line, "YAML", "this character is not allowed", f"{error.character!r}", "remove it")
        )
    return document


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


class _Stop(Exception):
    """Nothing after this can be read."""


class _Composer:
    """Builds plain data from the parser's events, so that nothing YAML can do happens unless it is written here."""

    def __init__(self, text: str, document: Document) -> None:
        self.document = document
        self.loader: Any = yaml.SafeLoader(text)

    def events(self) -> Iterator[Any]:
        try:
            while self.loader.check_event():
                yield self.loader.get_event()
        except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF" that is no character
            line = getattr(self.loader.get_mark(), "line", 0) + 1
            self.problem(line, "YAML", "this escape is not a character", "a backslash escape", "write the character")
            raise _Stop from None

    def problem(self, line: int, key: str, what: str, got: str, remedy: str) -> None:
        self.document.problems.append(Problem(line, key, what, got, remedy))

    def compose(self) -> Any:
        """Return the data of the one document; every mistake becomes a problem with its line."""
        stream = self.events()
        data: Any = None
        documents = 0
        for event in stream:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    line = _line(event)
                    self.problem(line, "YAML", "a second document starts here", "'---'", "keep one document a file")
                    raise _Stop
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                data = self.value(event, stream, "", 0)
        if documents == 0:
            self.problem(1, "file", "the file is empty", "nothing", "start from a template: campaign init")
        return data

    def value(self, event: Any, stream: Iterator[Any], path: str, depth: int) -> Any:
        """Return the value that ``event`` begins, at ``path``; aliases, anchors and tags are refused."""
        line = _line(event)
        if depth > MAX_DEPTH:
            self.problem(line, path[:80], "this is nested too deeply", f"{depth} levels", "remove some brackets")
            raise _Stop
        where = path or "YAML"
        if isinstance(event, yaml.AliasEvent):
            self.problem(line, where, "aliases are not read", f"*{event.anchor}", "write the value out")
            return None
        if event.anchor is not None:
            self.problem(line, where, "anchors are not read", f"&{event.anchor}", "remove it and write the value out")
        if event.tag is not None:
            self.problem(line, where, "YAML tags are not read", show(event.tag), "remove the tag")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(stream, path, depth)
        return self.mapping(stream, path, depth)

    def sequence(self, stream: Iterator[Any], path: str, depth: int) -> list[Any]:
        """Return the items of a list, up to its end."""
        items: list[Any] = []
        for event in stream:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            key = join(path, len(items))
            self.document.lines.setdefault(key, _line(event))
            items.append(self.value(event, stream, key, depth + 1))
        return items

    def mapping(self, stream: Iterator[Any], path: str, depth: int) -> dict[str, Any]:
        """Return the entries of a mapping, up to its end; of a key written twice the first counts."""
        items: dict[str, Any] = {}
        for event in stream:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
                self.problem(line, path or "YAML", "a key must be a plain word", "something else", "write 'key: value'")
                raise _Stop
            key = join(path, event.value)
            if event.value in items:
                first = self.document.lines[key]
                got = f"{show(event.value)} here and on line {first}"
                self.problem(line, key, "this key is written twice", got, "keep one of the two")
            self.document.lines.setdefault(key, line)
            value = self.value(next(stream), stream, key, depth + 1)
            items.setdefault(event.value, value)
        return items

    def scalar(self, event: Any, path: str) -> Any:
        """Return a plain word as text, number, true, false or nothing; what is quoted is text."""
        text: str = event.value
        line = _line(event)
        where = path or "YAML"
        bad = _CONTROL.search(text)
        if bad:
            self.problem(line, where, "this character is not allowed", ascii(bad.group()), "remove it")
            return None
        if not event.implicit[0]:
            return text
        found = resolve(text)
        if isinstance(found, float) and not math.isfinite(found):
            self.problem(line, where, "a number must be finite", text[:40], "write a finite number")
            return None
        if isinstance(found, int) and found.bit_length() > 1024:
            self.problem(line, where, "this number is too large", f"{text[:20]}...", "write a smaller number")
            return None
        return found


def resolve(text: str) -> Any:
    """Return the value of a plain (unquoted) scalar: None, a bool, a number or the text itself."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.match(text):
        digits = text.replace("_", "")
        return int(digits) if len(digits) < 1000 else math.inf
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.match(text):
        return math.nan
    return text


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark else 0
    rows = _BREAK.split(text)
    # The parser notices some mistakes one line late: an unclosed quote or bracket at the end of the file.
    row = rows[number] if number < len(rows) else ""
    lead = row[: len(row) - len(row.lstrip())]
    if "\t" in lead or "\\t" in (error.problem or ""):
        return Problem(number + 1, "YAML", "a tab is used to indent", show(row), "indent with spaces")
    context = error.context_mark
    if context is not None and not row.strip():
        number = context.line
        row = rows[number]
    what = f"this is not YAML ({error.problem or error.context})"
    return Problem(number + 1, "YAML", what, show(row.strip()), "check its colons, brackets, quotes and indentation")


class _Dumper(yaml.SafeDumper):
    """Writes what `parse` reads back as the same data."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = isinstance(resolve(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _write_text)


def write(data: Any) -> str:
    """Return plain data as YAML text, in order, short lists and mappings on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
