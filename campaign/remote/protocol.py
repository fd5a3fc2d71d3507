"""What is said between a laptop and an endpoint: requests and answers, plain JSON, checked on both sides.

An answer is either what was asked for, or ``{"kind": "input" | "failed", "problems": [sentence, ...]}``.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from campaign import __version__
from campaign.config.campaign_file import STAGES
from campaign.config.fields import Model, suggest
from campaign.config.yaml_lines import show
from campaign.errors import InputError

#: Raised when requests or answers change their form.
PROTOCOL = 1

#: Bytes of files in one request or answer. Globus Compute carries 10 MB, and base64 makes 4 of 3 bytes.
LARGEST = 6 * 1024 * 1024

#: Files in one request.
MOST_FILES = 100

#: What may be fetched.
WHAT = ("report", "selected", "labelled", "model")

_RUN = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}\Z")

_Text = Annotated[str, Field(max_length=4096)]
_MODEL = re.compile(r"\w[\w.-]{0,199}\.pt\Z", re.ASCII)


class Submit(Model):
    """Start a campaign, or continue it; with ``file`` and ``files`` as they are now, without them as it was."""

    action: Literal["submit"]
    protocol: int
    version: str = ""
    run: _Text
    root: _Text = ""
    site: _Text
    file: _Text | None = None
    files: dict[str, str] = Field(default_factory=dict, max_length=MOST_FILES)
    until: _Text | None = None
    retry_quarantined: bool = False
    sent: float = 0.0  # seconds since 1970 where it was sent: an older request than the last one is refused


class Status(Model):
    """Tell how far a campaign is."""

    action: Literal["status"]
    protocol: int
    version: str = ""
    run: _Text
    root: _Text = ""


class Fetch(Model):
    """Send a result."""

    action: Literal["fetch"]
    protocol: int
    version: str = ""
    run: _Text
    root: _Text = ""
    what: _Text


Request = Submit | Status | Fetch
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="action")])


def read_request(data: Any) -> Request:
    """Return a request that came in.

    Raises
    ------
    InputError
        It is not one: another version's, or not of campaign at all.
    """
    spoken = data.get("protocol") if isinstance(data, dict) else None
    if isinstance(spoken, int) and spoken != PROTOCOL:
        raise InputError(other_version(data.get("version"), "what sent the request"))
    try:
        found = _REQUESTS.validate_python(data, strict=True)
    except ValidationError as error:
        raise InputError(*(_wrong(e) for e in error.errors(include_url=False))) from None
    check_run_id(found.run)
    check_path(found.root, "--root")
    if isinstance(found, Fetch) and found.what not in WHAT:
        raise InputError(f"{show(found.what)} cannot be fetched; {suggest(found.what, WHAT)}.")
    if isinstance(found, Submit) and found.until is not None and found.until not in STAGES:
        raise InputError(f"--until: there is no stage {show(found.until)}; {suggest(found.until, STAGES)}.")
    return found


def _wrong(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "request"
    remedy = "send what 'campaign remote' sends (docs/remote.md)"
    return f"{where}: this is no request of campaign remote ({error['msg'].lower()}); {remedy}."


def other_version(version: Any, who: str) -> str:
    """Return the sentence that two versions of campaign do not understand each other."""
    theirs = version if isinstance(version, str) and len(version) < 40 else "unknown"
    return (
        f"campaign {__version__} here and campaign {theirs} of {who} do not understand each other; install the same "
        "version on both sides."
    )


def check_run_id(run: str) -> None:
    """Refuse what is no run id.

    Raises
    ------
    InputError
        It is not of the form of one.
    """
    if not _RUN.match(run):
        what = "a run id has lower-case letters, digits, - and _"
        raise InputError(f"run: {what}, got {show(run)}; write it as 'campaign remote submit' printed it.")


def check_path(written: str, what: str) -> tuple[str, ...]:
    """Return the parts of a relative path that stays where it starts; the empty path has none.

    Parameters
    ----------
    written
        The path.
    what
        What it is the path of, for the error.

    Raises
    ------
    InputError
        It is absolute, goes up, or has characters that no file of a campaign needs.
    """
    pure = PurePosixPath(written)
    if pure.is_absolute() or written.startswith("~"):
        fault = "an absolute path could leave the endpoint's folder for campaigns"
    elif ".." in pure.parts:
        fault = "'..' could leave the endpoint's folder for campaigns"
    elif not written.isprintable() or any(part.startswith(".") or "\\" in part for part in pure.parts):
        fault = "hidden names, backslashes and characters that do not print are not accepted"
    else:
        return pure.parts
    example = pure.name.lstrip(".~") or "project"
    raise InputError(f"{what}: {fault}, got {show(written)}; write a path below it, such as {example}.")


def fetchable(what: str, file: str) -> bool:
    """Tell whether a file of this name may come as a result (``WHAT``): those of a model are several."""
    if what == "model":
        return _MODEL.match(file) is not None
    return file == ("report.html" if what == "report" else f"{what}.extxyz")


def pack_files(files: dict[str, bytes]) -> dict[str, str]:
    """Return files as text that JSON carries."""
    return {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}


def unpack_files(files: dict[str, str]) -> dict[str, bytes]:
    """Return what ``pack_files`` packed.

    Raises
    ------
    InputError
        It is damaged, or too much.
    """
    if sum(map(len, files.values())) > (LARGEST + 3 * MOST_FILES) * 4 // 3:
        raise InputError(too_large({name: len(text) * 3 // 4 for name, text in files.items()}))
    found = {}
    for name, text in files.items():
        try:
            found[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{show(name)}: this file came damaged; send it again.") from None
    return found


def too_large(sizes: dict[str, int]) -> str:
    """Return the sentence that these files are too much for one request, the largest named."""
    name, size = max(sizes.items(), key=lambda item: item[1])
    return (
        f"{name}: the campaign's files have {megabytes(sum(sizes.values()))} ({name} alone {megabytes(size)}), and "
        f"Globus Compute carries {megabytes(LARGEST)} of them; name smaller ones, or take them to the machine and type "
        "'campaign run' there."
    )


def megabytes(size: int) -> str:
    """Return a number of bytes in MB."""
    return f"{size / 1e6:.1f} MB"
