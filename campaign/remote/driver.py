"""The campaign's own process on the endpoint: it outlives the function call that starts it, and the worker too.

It is ``campaign run`` or ``campaign resume`` as one types them, so the run directory's lock, token and resume are the
same. Beside the run directory lie ``run.json`` (what was asked for), ``driver.json`` (the process) and
``driver.log`` (what it said).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign.errors import InputError, StoreError
from campaign.interpreter import module_command, safe_environment
from campaign.store.rundir import holder
from campaign.tasks import TOKEN_VARIABLE

#: Of the environment of an endpoint's worker, what is its own and not its machine's.
FOREIGN = ("PARSL_", "GC_", "GLOBUS_", "CAMPAIGN_PROGRAM", TOKEN_VARIABLE)

#: Where drivers start, in a run's folder.
WORK = "_work"

#: Seconds that a driver on another host may take until it holds its run directory.
SLOW_START = 300.0

#: Bytes of the log's end that are looked at.
TAIL = 20_000


@dataclass(frozen=True)
class Asked:
    """What was asked for last.

    Attributes
    ----------
    campaign
        The campaign's name; its run directory has it too.
    site
        The name of the site, as on the machine's list.
    sent
        When the last request was sent, by the clock of where it was (s since 1970); 0 where it did not say.
    """

    campaign: str
    site: str
    sent: float = 0.0

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder."""
        _write(folder / "run.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> Asked | None:
        """Return what is kept in a run's folder, None where there is no run."""
        found = _read(folder / "run.json")
        if not found:
            return None
        return Asked(str(found.get("campaign")), str(found.get("site")), float(found.get("sent", 0.0)))


def run_directory(folder: Path, asked: Asked) -> Path:
    """Return the run directory of a run."""
    return folder / asked.campaign


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one request at a time start something in a run's folder.

    Raises
    ------
    InputError
        Another is at it.
    """
    lock = os.open(folder / "submit.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"run {folder.name} is being submitted by another request; try again.") from None
        yield
    finally:
        os.close(lock)


def start(folder: Path, words: list[str]) -> int:
    """Start ``campaign WORDS``, detached; return its process id.

    Its working directory, from which jobs are submitted too, is a folder of its own in the run's, with nothing in it:
    in the run's folder, the run directory would pass for a Python package of the campaign's name.
    """
    from campaign.engines.process import start_detached

    place = folder / WORK
    place.mkdir(exist_ok=True)
    log = folder / "driver.log"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}: campaign {' '.join(words)}\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    pid = start_detached(module_command("campaign.cli", *words), place, log, safe_environment(environment))
    _write(folder / "driver.json", {"pid": pid, "host": socket.gethostname(), "since": time.time()})
    return pid


def at_work(folder: Path, run: Path) -> dict[str, Any] | None:
    """Return host and process id of the driver that is at work on a run, or about to be; None if there is none."""
    held = holder(run)
    if held is not None:
        return {"host": held.get("host"), "pid": held.get("pid"), "holds": True}
    found = _read(folder / "driver.json")
    if found and _lives(found):
        return {"host": found.get("host"), "pid": found.get("pid"), "holds": False}
    return None


def _lives(found: dict[str, Any]) -> bool:
    """Tell whether a driver that does not hold its run directory is about to: one on another host is not seen."""
    import psutil

    since = float(found.get("since", 0.0))
    if found.get("host") != socket.gethostname():
        return time.time() - since < SLOW_START
    try:
        process = psutil.Process(int(found["pid"]))
        zombie = process.status() == psutil.STATUS_ZOMBIE  # nobody has asked yet how it ended
        return not zombie and process.create_time() < since + 5.0
    except (psutil.Error, KeyError, ValueError):
        return False


def look(folder: Path, asked: Asked) -> dict[str, Any]:
    """Return how far a run is.

    Returns
    -------
    dict
        ``state`` (``campaign status``'s, or ``starting``, or ``failed``: the driver ended before there was a run
        directory), ``status`` (what ``campaign status --json`` prints, or None), ``driver`` and, where the campaign
        neither runs nor is done, ``log``: the last lines of what the driver said.
    """
    from campaign.pipeline import status_of

    run = run_directory(folder, asked)
    found = at_work(folder, run)  # before the status: what ends meanwhile is asked for once more, not given up
    status = None
    with suppress(InputError):  # no run directory yet
        status = status_of(run)
    state = str(status["state"]) if status else "failed"
    if found and state not in ("done", "running"):
        state = "starting"
    log = [] if state in ("running", "starting", "done") else _tail(folder / "driver.log")
    return {"state": state, "status": status, "driver": found, "log": log}


def _tail(log: Path) -> list[str]:
    """Return what the last driver said, its last 20 lines at most."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.rpartition("\n=== ")[2].splitlines()[-20:] if line.strip()]


def _write(path: Path, data: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    aside.write_text(json.dumps(data))
    aside.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove it and submit the run again.") from error
