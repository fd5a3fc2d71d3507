"""From pydantic's errors to the lines that a user reads: key, line, value and remedy, in the words of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic.fields import FieldInfo

from campaign import __version__
from campaign.config.fields import Model, closest, suggest
from campaign.config.yaml_lines import Document, Problem, join, show

#: Words people write for keys that are too far from them for spelling to tell.
SYNONYMS = {"name": "campaign", "dt": "timestep", "stride": "every", "validation": "validate", "nodes": "ranks"}

VARIANT_KEYS = ("method", "engine", "model")

Words = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class _Place:
    """Where an error is: its key path, the type expected there and the field's own description."""

    path: str
    last: str | int
    kind: Any
    parent: Any
    field: FieldInfo | None

    @property
    def advice(self) -> str:
        return f" ({self.field.description})" if self.field and self.field.description else ""

    @property
    def example(self) -> str:
        if self.field is None or not self.field.examples:
            return f"{self.last}: ..."
        found = self.field.examples[0]
        return f"{self.last}: {found if isinstance(found, str) else show(found)}".replace('"', "")


def validate(root: type[Model], document: Document, not_yet: Words) -> tuple[Model | None, list[Problem]]:
    """Validate a document against a model.

    Parameters
    ----------
    root
        The model of the whole file.
    document
        What was read.
    not_yet
        Words known but not available in this version, by key path without list indices.

    Returns
    -------
    tuple
        The model, or None where there are problems; and the problems, the document's own included.
    """
    problems = list(document.problems)
    if not isinstance(document.data, dict):
        if not problems:
            what = f"the file must be a mapping of keys such as '{next(iter(root.model_fields.values())).alias}:'"
            problems.append(Problem(1, "file", what, show(document.data), "write 'key: value' lines"))
        return None, problems
    try:
        model = root.model_validate(document.data)
    except ValidationError as error:
        problems += _translate(error, root, document, not_yet)
        return None, problems
    return (None, problems) if problems else (model, [])


def _translate(error: ValidationError, root: type[Model], document: Document, not_yet: Words) -> Iterator[Problem]:
    errors = error.errors(include_url=False)
    places = [_place(root, e["loc"]) for e in errors]
    known = {p.key for p in document.problems}
    meant = {
        join(_parent(p.path), m)
        for p, e in zip(places, errors, strict=True)
        if e["type"] == "extra_forbidden" and (m := _meant(p))
    }
    for place, item in zip(places, errors, strict=True):
        path = place.path
        inside = any(q.path != path and q.path.startswith((path + ".", path + "[")) for q in places)
        if path in known or (item["type"] == "missing" and path in meant) or (item["type"] == "too_short" and inside):
            continue
        if item["type"] != "missing":
            item["input"] = _written(document.data, item["loc"])
        key, what, got, remedy = _say(place, item, not_yet)
        if key in known and key != path:
            continue
        yield Problem(document.line(key), key, what, got, remedy)


def _written(data: Any, loc: tuple[str | int, ...]) -> Any:
    """Return the value as it stands in the file: by the time of the error 5 may have become 5.0."""
    for part in loc:
        if isinstance(data, dict | list) and not (isinstance(part, str) and part.startswith("@") and part not in data):
            data = data[part]  # type: ignore[index]
    return data


def _parent(path: str) -> str:
    return path.rpartition(".")[0] if "." in path else ""


def _variants(annotation: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield (tag, type) of every member of a union, at any depth."""
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, *extra = get_args(annotation)
        tag = next((m.tag for m in extra if isinstance(m, Tag)), None)
        for inner, member in _variants(kind):
            yield tag or inner, member
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _variants(member)
    elif annotation is not NoneType:
        yield None, annotation


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """Return a model's fields by the key that the file uses."""
    if not (isinstance(kind, type) and issubclass(kind, Model)):
        return {}
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _only(kind: Any) -> Any:
    """Return the one type of ``X | None``; what has several stays as it is."""
    members = [member for _, member in _variants(kind)]
    return members[0] if len(members) == 1 else kind


def _place(root: type[Model], loc: tuple[str | int, ...]) -> _Place:
    path = ""
    last: str | int = ""
    kind: Any = root
    parent: Any = None
    field: FieldInfo | None = None
    for part in loc:
        found: Any = None
        is_tag = isinstance(part, str) and part.startswith("@")
        if not is_tag:
            path, parent, field, last = join(path, part), _only(kind), None, part
        for tag, member in _variants(kind):
            args = get_args(member)
            if is_tag:
                found = member if tag == part else found
            elif isinstance(part, int) and get_origin(member) is tuple:
                found = args[0] if args[-1] is Ellipsis else args[min(part, len(args) - 1)]
            elif isinstance(part, str) and get_origin(member) is dict:
                found = args[1]
            elif isinstance(part, str) and part in _fields(member):
                field = _fields(member)[part]
                found = field.annotation
        kind = found
    return _Place(path, last, kind, parent, field)


def _meant(place: _Place) -> str | None:
    """Return the key that an unknown one was probably meant to be."""
    keys = _fields(place.parent)
    word = SYNONYMS.get(str(place.last), "")
    return word if word in keys else closest(place.last, keys)


Said = tuple[str, str, str, str]


def _say(place: _Place, item: Any, not_yet: Words) -> Said:
    """Return (key, what, got, remedy) of one error."""
    kind: str = item["type"]
    value = item["input"]
    if kind == "missing":
        if isinstance(place.last, int):
            return _parent_list(place.path), "the list is too short", show(value), "add what is missing"
        return place.path, "this key is missing", "nothing", f"add '{place.example}'{place.advice}"
    if kind == "extra_forbidden":
        return _unknown_key(place, value, not_yet)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_variant(place, value, not_yet)
    if kind == "campaign":
        advice = place.advice if place.advice.strip(" ()") not in item["ctx"]["remedy"] else ""
        return place.path, item["ctx"]["what"], show(value), item["ctx"]["remedy"] + advice
    say = _SAY.get(kind)
    what, remedy = say(item.get("ctx", {}), value) if say else ("this value is wrong", "write something else")
    if kind == "literal_error":
        choices = [v for _, m in _variants(place.kind) if get_origin(m) is Literal for v in get_args(m)]
        remedy = suggest(value, choices)
    return place.path, what, show(value), remedy + place.advice


def _parent_list(path: str) -> str:
    return path.rpartition("[")[0]


def _unknown_key(place: _Place, value: Any, not_yet: Words) -> Said:
    if place.last in not_yet.get(_parent(place.path), ()):
        what = f"'{place.last}' is not available in campaign {__version__}"
        return place.path, what, show(value), "remove it"
    keys = _fields(place.parent)
    for kind in getattr(place.parent, "__mro__", ()):
        if place.last in (told := vars(kind).get("NOT_HERE", {})):
            return place.path, told[place.last][0], show(value), told[place.last][1]
    best = _meant(place)
    hint = f"did you mean '{best}'? " if best else ""
    return place.path, "there is no such key", show(value), f"{hint}the keys here are {', '.join(keys)}"


def _unknown_variant(place: _Place, value: Any, not_yet: Words) -> Said:
    kinds = {tag.removeprefix("@"): member for tag, member in _variants(place.kind) if tag}
    fields = _fields(next(iter(kinds.values())))
    key = next((k for k in VARIANT_KEYS if k in fields), "prototype")
    if not isinstance(value, dict):
        return place.path, "a mapping is needed", show(value), f"write '{{{key}: {next(iter(kinds))}, ...}}'"
    path = join(place.path, key)
    word = value.get(key)
    if word is None:
        slip = closest(key, [k for k in value if k not in fields])
        what = f"this key is missing (there is '{slip}')" if slip else "this key is missing"
        return path, what, "nothing", f"add '{key}: ...', one of {', '.join(kinds)}"
    bare = "".join(c for c in path if not (c.isdigit() or c in "[]"))
    if word in not_yet.get(bare, ()) if isinstance(word, str) else False:
        what = f"'{word}' is not available in campaign {__version__}"
        return path, what, show(word), f"remove it, or write one of {', '.join(kinds)}"
    return path, f"there is no such {key}", show(word), suggest(word, kinds)


def _not_text(_: dict[str, Any], value: Any) -> tuple[str, str]:
    if isinstance(value, dict) and len(value) == 1 and next(iter(value.values())) is None:
        return "text is needed, and braces without quotes are a mapping", f'write "{{{next(iter(value))}}}" in quotes'
    if isinstance(value, bool | int | float):
        return "text is needed", "put it in quotes"
    return "text is needed", "write one word or a text in quotes"


_Say = Callable[[dict[str, Any], Any], tuple[str, str]]

_SAY: dict[str, _Say] = {
    "greater_than": lambda c, _: ("the value is too small", f"write a number greater than {c['gt']:g}"),
    "greater_than_equal": lambda c, _: ("the value is too small", f"write a number of at least {c['ge']:g}"),
    "less_than": lambda c, _: ("the value is too large", f"write a number less than {c['lt']:g}"),
    "less_than_equal": lambda c, _: ("the value is too large", f"write a number of at most {c['le']:g}"),
    "literal_error": lambda _, __: ("there is no such choice", ""),
    "string_type": _not_text,
    "string_pattern_mismatch": lambda _, __: ("the text is not of the right form", "write another"),
    "string_too_short": lambda _, __: ("the text is empty", "write it"),
    "string_too_long": lambda c, _: ("the text is too long", f"write at most {c['max_length']} characters"),
    "tuple_type": lambda _, __: ("a list is needed", "write it in [ ] or as lines that start with '- '"),
    "too_short": lambda c, _: ("the list or mapping is too short", f"write at least {c['min_length']}"),
    "too_long": lambda c, _: ("the list is too long", f"write at most {c['max_length']}"),
    "model_type": lambda _, __: ("a mapping is needed", "write 'key: value' pairs"),
    "model_attributes_type": lambda _, __: ("a mapping is needed", "write 'key: value' pairs"),
    "dict_type": lambda _, __: ("a mapping is needed", "write 'key: value' pairs"),
}
