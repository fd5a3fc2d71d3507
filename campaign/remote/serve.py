"""The endpoint's side: answers one request. Nothing here raises; what is wrong goes back as text with its remedy."""

from __future__ import annotations

import shlex
import shutil
import socket
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from campaign import __version__
from campaign.errors import CampaignError, InputError
from campaign.remote import driver
from campaign.remote.allowed import Allowed, inside, load_allowed
from campaign.remote.driver import Asked, run_directory
from campaign.remote.inbox import INPUTS, take_in
from campaign.remote.protocol import (
    LARGEST,
    PROTOCOL,
    Fetch,
    Status,
    Submit,
    check_path,
    pack_files,
    read_request,
    unpack_files,
)

#: Where exports wait to be fetched, in a run's folder.
OUTBOX = "_fetched"


def answer(request: Any) -> dict[str, Any]:
    """Answer a request.

    Parameters
    ----------
    request
        As ``campaign.remote.protocol`` has it.

    Returns
    -------
    dict
        What was asked for, or ``kind`` (``input``: the request is wrong; ``failed``: it could not be done) and
        ``problems``: sentences.
    """
    try:
        asked = read_request(request)
        allowed = load_allowed()
        if isinstance(asked, Submit):
            found = _submit(asked, allowed)
        elif isinstance(asked, Status):
            found = _status(asked, allowed)
        else:
            found = _fetch(asked, allowed)
    except InputError as error:
        found = {"kind": "input", "problems": list(error.problems)}
    except CampaignError as error:
        found = {"kind": "failed", "problems": str(error).splitlines()}
    except OSError as error:
        reason = f"{error.filename or 'the system'}: {error.strerror or error}"
        found = {"kind": "failed", "problems": [f"{reason}; look at the path, its permissions and the quota."]}
    except Exception as error:  # the boundary: whatever a library raises is told, and the worker goes on
        what = f"this request could not be answered ({type(error).__name__}: {error})"
        found = {"kind": "failed", "problems": [f"{what}; the same command may be typed again, nothing is lost."]}
    return {"protocol": PROTOCOL, "version": __version__, "host": socket.gethostname(), **found}


def _submit(asked: Submit, allowed: Allowed) -> dict[str, Any]:
    from campaign.pipeline import check_run_path

    site = allowed.site(asked.site)
    folder = allowed.folder(asked.root, asked.run)
    known = Asked.read(folder)
    if asked.file is None and known is None:
        raise InputError(_unknown(asked.run, folder.parent))
    above = next((p for p in folder.parents if p.is_relative_to(allowed.root) and (p / "run.json").exists()), None)
    if above is not None:
        raise InputError(f"--root: {above} is the folder of another run, got '{asked.root}'; name another folder.")
    check_run_path(folder)
    mine = _made(folder)
    with driver.alone(folder):
        known = Asked.read(folder)  # another request may have been faster
        if known is not None and 0 < asked.sent < known.sent:
            raise InputError(
                f"run {asked.run}: a later request was answered already; this one, of {_clock(asked.sent)}, came late "
                "and changes nothing. If it is not old, compare the clocks of the computers that submit this run."
            )
        found = driver.at_work(folder, run_directory(folder, known)) if known else None
        if known is not None and found:
            answered = _at_work(asked, folder, found)
            replace(known, sent=max(known.sent, asked.sent)).write(folder)
            return answered
        try:
            words = _words(asked, allowed, folder, site, known)
        except BaseException:
            if mine and known is None:  # nothing of it was accepted
                shutil.rmtree(folder, ignore_errors=True)
            raise
        pid = driver.start(folder, words)
    return {"run": asked.run, "folder": str(folder), "pid": pid, "started": True, "continued": known is not None}


def _made(folder: Path) -> bool:
    """Make a run's folder; tell whether it was not there: of two requests at once, one has made it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _words(asked: Submit, allowed: Allowed, folder: Path, site: str, known: Asked | None) -> list[str]:
    """Take in what was sent and return the words after ``campaign`` that run it."""
    if asked.file is not None:
        loaded = take_in(folder, allowed.labels, site, asked.file, unpack_files(asked.files))
        stages = ", ".join(loaded.spec.stages)
        if asked.until is not None and asked.until not in loaded.spec.stages:
            raise InputError(f"--until: this campaign has no stage {asked.until}; write one of {stages}.")
        name = loaded.spec.name
        words = ["run", str(loaded.path), "--site", site, "--root", str(folder)]
    else:
        if known is None:
            raise InputError(_unknown(asked.run, folder.parent))
        name = known.campaign
        words = ["resume", str(run_directory(folder, known)), "--site", site]
    Asked(name, asked.site, max(asked.sent, known.sent if known else 0.0)).write(folder)
    if asked.until is not None:
        words += ["--until", asked.until]
    return [*words, "--retry-quarantined"] if asked.retry_quarantined else words


def _at_work(asked: Submit, folder: Path, at_work: dict[str, Any]) -> dict[str, Any]:
    """Answer for a run whose driver is at work: fine if the same is asked for, refused if files have changed."""
    for name, content in unpack_files(asked.files).items():
        place = inside(folder, (INPUTS, *check_path(name, "files")), "files")
        if not place.is_file() or place.read_bytes() != content:
            raise InputError(
                f"{name}: this file has changed since run {asked.run} was submitted, which is at work on "
                f"{at_work['host']} (process {at_work['pid']}); wait for it to end "
                f"('campaign remote wait {asked.run}'), or submit it with --new."
            )
    return {"run": asked.run, "folder": str(folder), "pid": at_work["pid"], "started": False, "continued": True}


def _unknown(run: str, place: Path) -> str:
    there = sorted(p.parent.name for p in place.glob("*/run.json"))[-5:]
    listed = f"there are {', '.join(there)}" if there else "there are none"
    return f"run {run}: there is no such run in {place} of {socket.gethostname()} ({listed}); write one of those."


def _find(asked: Status | Fetch, allowed: Allowed) -> tuple[Path, Asked]:
    folder = allowed.folder(asked.root, asked.run)
    known = Asked.read(folder)
    if known is None:
        raise InputError(_unknown(asked.run, folder.parent))
    return folder, known


def _status(asked: Status, allowed: Allowed) -> dict[str, Any]:
    folder, known = _find(asked, allowed)
    return {"run": asked.run, "folder": str(folder), "site": known.site, **driver.look(folder, known)}


def _fetch(asked: Fetch, allowed: Allowed) -> dict[str, Any]:
    folder, known = _find(asked, allowed)
    paths = _result(asked.what, folder, run_directory(folder, known))
    size = sum(path.stat().st_size for path in paths)
    found: dict[str, Any] = {"run": asked.run, "what": asked.what, "bytes": size}
    if size <= LARGEST:
        return {**found, "files": pack_files({path.name: path.read_bytes() for path in paths})}
    return {**found, "paths": [str(p) for p in paths], "commands": _transfers(paths, allowed, asked.run)}


def _result(what: str, folder: Path, run: Path) -> list[Path]:
    """Return the files of a result, made where they have to be."""
    from campaign.pipeline import export_of, report_of

    if what == "report":
        return [report_of(run)]
    if what == "model":
        models = sorted((run / "models").glob("*.pt"))
        if not models:
            raise InputError(f"model: run {folder.name} has no model yet; see 'campaign remote status {folder.name}'.")
        return models
    outbox = inside(folder, (OUTBOX,), "fetch")
    outbox.mkdir(exist_ok=True)
    aside = outbox / f".{uuid.uuid4().hex}.extxyz"
    try:
        export_of(run, what, aside)
        return [aside.replace(outbox / f"{what}.extxyz")]
    finally:
        aside.unlink(missing_ok=True)


def _transfers(paths: list[Path], allowed: Allowed, to: str) -> list[str]:
    """Return the commands that bring files too large for Globus Compute to the laptop."""
    if allowed.collection is None:
        places = [f"{allowed.host}:{path}" for path in paths]
        return [shlex.join(["mkdir", "-p", to]), shlex.join(["scp", *places, f"{to}/"])]
    mine = '"$(globus endpoint local-id)":"$PWD"'
    return [
        f"globus transfer {shlex.quote(f'{allowed.collection}:{path}')} {mine}/{shlex.quote(f'{to}/{path.name}')}"
        for path in paths
    ]
