"""A CP2K input as a tree of sections that knows its lines, read and written without losing a word."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from campaign.config.data_files import Fault
from campaign.config.yaml_lines import show

_INCLUDE = re.compile(r"\s*@(INCLUDE|XCTYPE)\b", re.IGNORECASE)
_SECTION = re.compile(r"&([\w\-]+)\s*(.*)\Z")
#: How CP2K writes no.
FALSE = ("F", ".F.", "FALSE", ".FALSE.", "OFF", "NO", "N", "0")
_QUOTED = re.compile(r"""("[^"]*"|'[^']*')|[!#].*""")


@dataclass
class Line:
    """A keyword as it is written: its name in capitals, the rest without the comment, its line, its first word."""

    name: str
    value: str
    line: int = 0
    word: str = ""  # the first word as it is written: in some sections lines are data, and it is no name

    def text(self) -> str:
        """Return it as CP2K reads it."""
        return f"{self.word or self.name} {self.value}".rstrip()


@dataclass
class Section:
    """A section: its name in capitals, its parameter, and what is in it, in order."""

    name: str
    parameter: str = ""
    line: int = 0
    keywords: list[Line] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def find(self, *path: str) -> Section | None:
        """Return the first section at a path below this one."""
        here: Section | None = self
        for name in path:
            here = next((s for s in here.sections if s.name == name), None) if here else None
        return here

    def all(self, name: str) -> Iterator[Section]:
        """Yield the sections of a name in this one."""
        return (s for s in self.sections if s.name == name)

    def made(self, *path: str) -> Section:
        """Return the section at a path below this one, made where it is missing."""
        here = self
        for name in path:
            found = here.find(name)
            if found is None:
                found = Section(name)
                here.sections.append(found)
            here = found
        return here

    def get(self, *names: str) -> str | None:
        """Return the value of a keyword of any of these names; None where it is not written."""
        return next((k.value for k in self.keywords if k.name in names), None)

    def put(self, name: str, value: str, *aliases: str) -> None:
        """Set a keyword; what it had, under any of its names, goes."""
        self.keywords = [k for k in self.keywords if k.name not in (name, *aliases)]
        self.keywords.append(Line(name, value))

    def drop(self, *names: str) -> None:
        """Remove sections and keywords of these names."""
        self.sections = [s for s in self.sections if s.name not in names]
        self.keywords = [k for k in self.keywords if k.name not in names]

    def copy(self) -> Section:
        """Return a copy that shares nothing."""
        keywords = [Line(k.name, k.value, k.line, k.word) for k in self.keywords]
        return Section(self.name, self.parameter, self.line, keywords, [s.copy() for s in self.sections])

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Section]]:
        """Yield (path, section) of everything below this one."""
        for section in self.sections:
            here = (*path, section.name)
            yield here, section
            yield from section.walk(here)

    def write(self, depth: int = 0) -> Iterator[str]:
        """Yield the lines of what is in this section."""
        pad = "  " * depth
        for keyword in self.keywords:
            yield pad + keyword.text()
        for section in self.sections:
            yield f"{pad}&{section.name} {section.parameter}".rstrip()
            yield from section.write(depth + 1)
            yield f"{pad}&END {section.name}"


def plain(text: str) -> str:
    """Return a value without its comment; what stands in quotes is left as it is."""
    return _QUOTED.sub(lambda m: m[1] or "", text).strip()


def unquoted(text: str) -> str:
    """Return a file's name or a word without the quotes around it."""
    return text.strip().strip("\"'")


def read(text: str) -> tuple[Section, list[Fault]]:
    """Return the tree of a CP2K input, and what is wrong with its form.

    Variables (``@SET``) and conditions (``@IF``) are put in. Other files are not (``@INCLUDE``, ``@XCTYPE``): refused.
    """
    faults = [
        Fault("a template is one file, and this line takes another in", row.strip(), "write its content here", number)
        for number, row in enumerate(text.splitlines(), 1)
        if _INCLUDE.match(row)
    ]
    root = Section("")
    stack = [root]
    for number, row in [] if faults else _rows(text, faults):
        mark = _SECTION.match(row)
        if mark is None and row[:1] in ("@", "&"):  # a variable made it: where lines are data, any word would do
            what = "this line would be read as one of CP2K's preprocessor or as a section"
            faults.append(Fault(what, show(row), "write it without variables", number))
        elif mark is None:
            name, _, rest = plain(row).partition(" ")
            name, _, more = name.partition("\t")
            if name:
                stack[-1].keywords.append(Line(name.upper(), f"{more} {rest}".strip(), number, name))
        if mark is None:
            continue
        name, parameter = mark[1].upper(), plain(mark[2])
        if name != "END":
            section = Section(name, parameter, number)
            stack[-1].sections.append(section)
            stack.append(section)
        elif len(stack) == 1:
            faults.append(Fault("no section is open here", show(row), "remove this line", number))
        else:
            ended = stack.pop()
            if parameter and parameter.upper().split()[0] != ended.name:
                what = f"the section open here is {ended.name}, begun on line {ended.line}"
                faults.append(Fault(what, show(row), f"write '&END {ended.name}'", number))
                break
    else:
        for open_ in [] if faults else stack[1:]:  # where the preprocessor stops, the rest was not read
            what = f"the section {open_.name} is not closed"
            faults.append(Fault(what, show(f"&{open_.name}"), f"add '&END {open_.name}'", open_.line))
    return root, faults


def read_back(root: Section) -> list[Fault]:
    """Return what is wrong with a tree whose text does not read back as that tree.

    A value with a line break or a comment in it is more, or less, to CP2K than the word that was checked.
    """
    rows = list(root.write())
    again, faults = read("\n".join(rows))
    if faults:
        return faults
    for row, other in itertools.zip_longest(rows, again.write(), fillvalue=""):
        if row.split() != other.split():
            return [Fault("CP2K would read this line as something else", show(row.strip()), "write plain words")]
    return []


def _rows(text: str, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of what CP2K's preprocessor leaves; what is wrong ends it."""
    from cp2k_input_tools.lineiterator import LineContinuationError
    from cp2k_input_tools.parser_errors import PreprocessorError
    from cp2k_input_tools.preprocessor import CP2KPreprocessor
    from cp2k_input_tools.tokenizer import TokenizerError

    rows = CP2KPreprocessor(io.StringIO(text), [])  # no folder to take files from
    line = 0
    try:
        for row in rows:
            line = rows.line_range[1]
            yield line, row.strip()
    except (PreprocessorError, TokenizerError) as error:
        context = error.args[1] if len(error.args) > 1 else None
        number = getattr(context, "linenr", None) or line + 1
        what = f"CP2K's preprocessor stops here: {error.args[0]}"
        faults.append(Fault(what, show((getattr(context, "line", "") or "").strip()), "correct this line", number))
    except LineContinuationError:
        faults.append(Fault("the last line ends with a backslash", show("\\"), "remove it", len(text.splitlines())))
