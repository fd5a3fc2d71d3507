"""Tasks: the unit of work, named by the hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

if TYPE_CHECKING:
    import numpy.typing as npt

Json = Any

_ordered = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode

#: Set in the environment of every process a driver starts, so that the next driver finds what is left running.
TOKEN_VARIABLE = "CAMPAIGN_DRIVER"


@dataclass(frozen=True)
class Task:
    """One piece of work for one worker.

    Attributes
    ----------
    stage
        The stage that planned it and whose ``work`` does it.
    name
        For people: ``npt/walker 3/segment 12``. Not part of the id.
    params
        Resolved parameters (JSON-able). Files enter by the hash of their content.
    inputs
        Ids of the tasks whose results it reads.
    version
        Code version of the stage's ``work``: raised when its results change.
    priority
        Lower runs first when workers are scarce. Not part of the id.
    extra
        What the worker needs but what does not decide the result (JSON-able). Not part of the id. ``ranks`` (or
        ``processes``) and ``threads``, where they are not 1, say what it takes of the machine.
    """

    stage: str
    name: str
    params: dict[str, Json]
    inputs: tuple[str, ...] = ()
    version: int = 1
    priority: int = 5
    extra: dict[str, Json] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """16 hex digits: the same id means the same result."""
        decides = [self.stage, self.version, self.params, list(self.inputs)]
        return hashlib.blake2b(_ordered(decides).encode(), digest_size=8).hexdigest()

    @property
    def number(self) -> int:
        """The id as an unsigned 64-bit integer (``Frames.task``)."""
        return int(self.id, 16)

    @property
    def ranks(self) -> int:
        """MPI ranks that it starts."""
        return int(self.extra.get("ranks") or self.extra.get("processes") or 1)

    @property
    def threads(self) -> int:
        """Threads of each rank."""
        return int(self.extra.get("threads", 1))

    def to_json(self) -> dict[str, Json]:
        """Return the JSON-able form that crosses process boundaries."""
        return {
            "id": self.id,
            "stage": self.stage,
            "name": self.name,
            "params": self.params,
            "inputs": list(self.inputs),
            "version": self.version,
            "priority": self.priority,
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> Task:
        """Rebuild a task sent to a worker."""
        keys = ("stage", "name", "params", "version", "priority", "extra")
        return cls(inputs=tuple(data["inputs"]), **{k: data[k] for k in keys})


class Record(TypedDict):
    """What one attempt at a task left behind: a line of the ledger."""

    task: str
    stage: str
    name: str
    attempt: int
    state: str  # "done", "failed" (may be tried again), "quarantined", or "released" from quarantine by the user
    cause: str  # one sentence; empty when done
    transient: bool  # the machine's fault, not the calculation's
    host: str
    pid: int
    start: float  # seconds since the epoch
    seconds: float
    phases: dict[str, float]  # seconds: load (libraries), work (the engine); the rest is storing
    versions: dict[str, str]
    result: dict[str, Json]  # small JSON summary; arrays are in the store
    disk_full: NotRequired[bool]
    blame: NotRequired[float]  # of a fault of the machine: 1 if it may be the task's doing, 0 if no worker had begun it
    final: NotRequired[bool]  # of a failure: no other attempt can end better


@dataclass(frozen=True)
class Context:
    """What a worker knows beside the task: where it runs. None of it may change a result.

    Attributes
    ----------
    run
        The run directory.
    launch
        The site's launch command of each engine, as a list with ``{ranks}`` to fill.
    attempt
        0 for the first try.
    token
        Names the driver that sent the task, so that a later driver can end what an earlier one left running.
    sent
        Counts what the driver sent: names this very try, whoever makes it.
    """

    run: Path
    launch: dict[str, list[str]] = field(default_factory=dict)
    attempt: int = 0
    token: str = ""
    sent: int = 0

    @property
    def workers(self) -> Path:
        """Where each worker writes which task it is at (``mark``)."""
        return self.run / "logs" / "workers"

    def mark(self, task: str) -> str:
        """Return what a worker writes when it starts this try of a task."""
        return f"{task} {self.sent}"

    def folder(self, task: Task) -> Path:
        """Return (and make) the folder for the task's own files, ``RUN/tasks/<id>``."""
        path = self.run / "tasks" / task.id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def to_json(self) -> dict[str, Json]:
        """Return the JSON-able form that crosses process boundaries."""
        return {
            "run": str(self.run),
            "launch": self.launch,
            "attempt": self.attempt,
            "token": self.token,
            "sent": self.sent,
        }

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> Context:
        """Rebuild a context sent to a worker."""
        return cls(Path(data["run"]), data["launch"], data["attempt"], data["token"], data["sent"])


@dataclass(frozen=True)
class Outcome:
    """What a stage's ``work`` hands back.

    Attributes
    ----------
    summary
        Small JSON that goes into the record.
    arrays
        What is published in the store; None for nothing.
    checkpoint
        What the task that continues this one starts from.
    versions
        Versions of the programs that took part.
    scratch
        Files that are removed once the result is published, and not before: they are for another try at the task.
    """

    summary: dict[str, Json]
    arrays: dict[str, npt.NDArray[Any]] | None = None
    checkpoint: dict[str, npt.NDArray[Any]] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    scratch: tuple[Path, ...] = ()


def new_record(task: Task, attempt: int) -> Record:
    """Return the record of an attempt that starts now in this process."""
    return Record(
        task=task.id,
        stage=task.stage,
        name=task.name,
        attempt=attempt,
        state="done",
        cause="",
        transient=False,
        host=socket.gethostname(),
        pid=os.getpid(),
        start=time.time(),
        seconds=0.0,
        phases={},
        versions={"python": platform.python_version()},
        result={},
    )


def remember(record: Record) -> dict[str, Json]:
    """Return what is kept of a failed attempt when its task is given up: cause, seconds, rung where it has one."""
    found: dict[str, Json] = {k: record[k] for k in ("attempt", "cause", "seconds")}
    return found | {k: record["result"][k] for k in ("rung", "settings") if k in record["result"]}


_dump = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


def pack(task: Task, context: Context) -> str:
    """Return what is sent to a worker, as JSON text."""
    return f"[{_dump(task.to_json())},{_dump(context.to_json())}]"


def unpack(message: str) -> tuple[Task, Context]:
    """Return what ``pack`` packed."""
    task, context = json.loads(message)
    return Task.from_json(task), Context.from_json(context)


def unpack_record(answer: str) -> Record:
    """Return the record that a worker sent back as JSON text; all records share the names of what is in them."""
    return cast(Record, {sys.intern(name): value for name, value in json.loads(answer).items()})


#: Does a task: ``pack(task, context)`` -> record as JSON text. ``campaign.worker.run_task`` is the one there is.
Work = Callable[..., str]
