"""The run directory: one driver at a time, self-contained, resumable from itself or from its Zarr store alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from campaign.config.data_files import FRAME_NOTES, TRANSFER_NOTE, is_own
from campaign.errors import CampaignError, InputError, Locked, StoreError
from campaign.leftovers import end_leftovers
from campaign.store import groups
from campaign.store.ledger import Ledger, read_ledger
from campaign.store.store import Store
from campaign.tasks import Json, Record, remember

#: Seconds between two flushes of what came back, at least.
FLUSH_EVERY = 0.25


class RunDirectory:
    """``RUN``, held by this process until it is closed. Use as a context manager.

    Parameters
    ----------
    path
        The run directory; made where absent.

    Raises
    ------
    Locked
        Another driver holds it; the message names its host and process.
    SchemaError
        The store was written by another version.

    Attributes
    ----------
    tries
        What is remembered of the failed attempts at each unfinished task; ``recover`` fills it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.token = uuid.uuid4().hex
        self.tries: dict[str, list[dict[str, Json]]] = {}
        self._unflushed: set[str] = set()  # stages whose results are not flushed to disk yet
        self._flushed = 0.0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / "driver.lock", self.token)
        except OSError as error:
            raise groups.translate(error, self.path) from error
        try:
            self.store = Store(self.path / "run.zarr")
            groups.discard(self.store.aside.glob("*"), self.store.aside)
            for name in ("tasks", "models", "validation", "logs"):
                (self.path / name).mkdir(exist_ok=True)
            self.ledger = Ledger(self.path / "ledger.jsonl")
        except OSError as error:
            os.close(self._lock)
            raise groups.translate(error, self.path) from error
        except StoreError:
            os.close(self._lock)
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.flush()
        finally:
            self.ledger.close()
            os.close(self._lock)

    def write_inputs(self, spec: str, site: str, files: Mapping[str, bytes]) -> None:
        """Write the resolved campaign and site and the data files, in RUN and once more inside the store.

        Parameters
        ----------
        spec, site
            YAML texts.
        files
            Path (relative, as the spec names it) to content.

        Raises
        ------
        InputError
            One would not lie in RUN, or would take the place of something that RUN has for itself; nothing is written.
        """
        _check_names(files, self.path)
        try:
            packed = {name: base64.b64encode(content).decode() for name, content in files.items()}
            attributes = {"spec": spec, "site": site, "files": packed}
            meta = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            folder = self.store.path / "campaign"
            folder.mkdir(exist_ok=True)
            _replace(folder / groups.META, json.dumps(meta).encode())
            _write_all(self.path, spec, site, files)
        except OSError as error:
            raise groups.translate(error, self.path) from error

    def recover(self) -> tuple[dict[str, Record], dict[str, Record], dict[str, int]]:
        """Return what earlier drivers finished, and mend the ledger from the store.

        Returns
        -------
        done
            Record of every finished task. The store is the truth; a line in the ledger without its arrays counts
            only for stages that leave no arrays.
        quarantined
            Record of every task that failed for good.
        attempts
            How often each unfinished task failed by its own fault.
        """
        from campaign.store.store import KINDS

        lines = read_ledger(self.ledger.path)
        done = self.store.scan()
        quarantined = self.store.quarantined()
        written = {r["task"] for r in lines if r["state"] == "done"}
        given_up = {r["task"]: r["state"] for r in lines if r["state"] in ("quarantined", "released")}
        self.ledger.append(r for t, r in done.items() if t not in written)
        self.ledger.append(r for t, r in quarantined.items() if given_up.get(t) != "quarantined")
        done |= {r["task"]: r for r in lines if r["state"] == "done" and r["stage"] not in KINDS}
        self.tries = failed_tries(lines)
        return done, quarantined, {task: len(tries) for task, tries in self.tries.items()}

    def keep(self, records: Sequence[Record]) -> None:
        """Write down what came back: it survives a kill from now on, and a node that dies after the next flush.

        A flush follows at once where the last one is ``FLUSH_EVERY`` ago, so each result of slow tasks is flushed as
        it comes; those of quick ones share flushes, because each keeps the disk from the workers. What a dying node
        takes with it is done again: no task is told of a result that its group does not hold.
        """
        self.ledger.append(records, flush=False)
        self._unflushed |= {r["stage"] for r in records}
        self.flush(FLUSH_EVERY)

    def flush(self, every: float = 0.0) -> None:
        """Flush the names of published groups and the ledger, where there is any and the last flush is so long ago."""
        if self._unflushed and time.monotonic() - self._flushed >= every:
            self._check_place()
            self.store.flush_names(self._unflushed)
            self.ledger.flush()
            self._unflushed, self._flushed = set(), time.monotonic()

    def _check_place(self) -> None:
        """Refuse to go on where the run directory is no more what it was: half of what comes would lie elsewhere.

        Raises
        ------
        CampaignError
            It was moved, removed or replaced.
        """
        mine, lock = os.fstat(self._lock), self.path / "driver.lock"
        try:
            there = os.stat(lock)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # the file system does not answer now: whoever writes next will say so
            return
        else:
            same = (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
            if same or _read_holder(lock).get("token") == self.token:
                return
        raise CampaignError(
            f"{self.path} was moved or removed while this campaign was at work on it, so it ends here; put it back in "
            "place of what lies there now, and give the same command again."
        )

    def reached(self, task: str) -> float:
        """Return when a task last wrote a checkpoint (s since the epoch); 0 if there is none."""
        found = 0.0
        for path in (self.path / "tasks" / task).glob("*.ckpt"):
            with suppress(OSError):  # it is replaced by a new one
                found = max(found, path.stat().st_mtime)
        return found

    def release(self, quarantined: Mapping[str, Record]) -> None:
        """Let quarantined tasks be tried again from their first attempt on; the ledger says so first."""
        self.ledger.append(_released(r) for r in quarantined.values())
        for task in quarantined:
            self.store.release(task)


def failed_tries(lines: Iterable[Record]) -> dict[str, list[dict[str, Json]]]:
    """Return what is remembered of each task's attempts that failed by its own fault, since it was last released.

    Parameters
    ----------
    lines
        Of the ledger. A task may be done or given up by now.
    """
    tries: dict[str, list[dict[str, Json]]] = {}
    for r in lines:
        if r["state"] == "failed" and not r["transient"]:
            tries.setdefault(r["task"], []).append(remember(r))
        elif r["state"] == "released":
            tries.pop(r["task"], None)
    return tries


def _released(record: Record) -> Record:
    return {**record, "state": "released", "cause": ""}


def _check_names(files: Iterable[str], run: Path) -> None:
    """Refuse data files that would lie outside a run directory, or in the place of what it has for itself."""
    for name in files:
        if not (run / name).resolve().is_relative_to(run):
            raise InputError(f"{run}: the data file {name} would lie outside the run directory; it is not written.")
        if is_own(name) and name not in (FRAME_NOTES, TRANSFER_NOTE):
            raise InputError(
                f"{run}: the data file {name} would take the place of what the run directory has for itself; rename it."
            )


def _write_all(run: Path, spec: str, site: str, files: Mapping[str, bytes]) -> None:
    """Write a run's inputs; ``campaign.yaml`` last: where it is, all the others are."""
    for name, content in {**files, "site.yaml": site.encode(), "campaign.yaml": spec.encode()}.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    groups.flush(path.parent)


def _take_lock(path: Path, token: str) -> int:
    """Lock the file for the life of this process, and end what a killed driver left running on this host."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if not _lock(fd):
        holder = _read_holder(path)
        os.close(fd)
        raise _in_use(path.parent, holder)
    before = _read_holder(path)
    if before.get("host") == socket.gethostname() and before.get("token"):
        end_leftovers(str(before["token"]))
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": token, "since": time.time()})
    os.ftruncate(fd, 0)
    os.pwrite(fd, mine.encode(), 0)
    os.fsync(fd)
    return fd


def _lock(fd: int) -> bool:
    """Take the lock; a look at it (``holder``) holds it for an instant, so try for a second.

    Raises
    ------
    StoreError
        The file system has no locks.
    """
    for _ in range(20):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as error:
            os.close(fd)
            raise StoreError(
                f"The file system has no locks that keep a second driver out ({error.strerror}; Lustre mounted with "
                "noflock says so); name a folder on another one with --root."
            ) from error
    return False


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _in_use(run: Path, holder: Mapping[str, Any]) -> Locked:
    return Locked(
        f"{run} is in use by another campaign on host {holder.get('host', 'unknown')}, process "
        f"{holder.get('pid', 'unknown')}; wait for it to end, or stop it with: kill {holder.get('pid', 'PID')}"
    )


def check_free(run: Path) -> None:
    """Refuse a run directory that a driver is at work on.

    Raises
    ------
    Locked
        The message names its host and process.
    """
    found = holder(run)
    if found is not None:
        raise _in_use(run, found)


def holder(run: Path) -> dict[str, Any] | None:
    """Return host and pid of the driver that holds ``run`` now, None when nobody does."""
    path = run / "driver.lock"
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(path)
    except OSError:  # no locks here: nobody can hold it
        return None
    finally:
        os.close(fd)
    return None


def open_existing(path: Path) -> Path:
    """Return the run directory of ``path`` (a RUN or its run.zarr), restoring its inputs from the store if needed.

    Raises
    ------
    InputError
        There is no campaign in it.
    """
    run = path.resolve()
    if run.name.endswith(".zarr"):
        run = run.parent
    if (run / "campaign.yaml").exists():
        return run
    inputs = run / "run.zarr" / "campaign"
    if not (inputs / groups.META).exists():
        raise InputError(f"{path} is not a run directory: it has neither campaign.yaml nor run.zarr.")
    try:
        attributes = groups.attributes(inputs)
        files = {k: base64.b64decode(v, validate=True) for k, v in attributes["files"].items()}
        spec, site = str(attributes["spec"]), str(attributes["site"])
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{inputs} does not hold a campaign's inputs ({error!r}); restore it from a copy.") from error
    _check_names(files, run)
    try:
        _write_all(run, spec, site, files)
    except OSError as error:
        raise groups.translate(error, run) from error
    return run
