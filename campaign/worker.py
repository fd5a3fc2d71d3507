"""``run_task(message) -> record``: the only function sent to a worker."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
import time
from functools import lru_cache
from pathlib import Path

from campaign.errors import CampaignError, DiskFull, MachineFault, StoreError
from campaign.tasks import Context, Json, Record, Task, new_record, unpack


def run_task(message: str, **_scheduling: object) -> str:
    """Do one task and return its record, both as JSON text (``tasks.pack``, ``tasks.unpack_record``).

    Text is what crosses to a worker: an executor's own pickling of nested dictionaries costs more than the rest of a
    short task together.

    Parameters
    ----------
    message
        ``tasks.pack(task, context)``.
    **_scheduling
        What an executor was told about the task (Parsl passes its priority on); not used here.
    """
    _one_mask()
    return json.dumps(do_task(*unpack(message)))


def _one_mask(driver: Path = Path("/dev/kfd")) -> None:
    """Leave one of the two variables that choose a worker's AMD GPUs.

    Parsl sets both (Parsl#3858). With ``ROCR_VISIBLE_DEVICES=3`` a process sees one GPU, as number 0;
    ``CUDA_VISIBLE_DEVICES=3`` beside it would then take the third of that one, and leave none.
    """
    if driver.exists() and "ROCR_VISIBLE_DEVICES" in os.environ:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def do_task(task: Task, context: Context) -> Record:
    """Do one task, publish its arrays in the store and return its record. Never raises: failure is data.

    Returns
    -------
    Record
        ``done``, or ``failed`` with the cause in one sentence. ``transient`` marks the machine's faults.
    """
    record = new_record(task, context.attempt)
    try:
        if context.sent:
            with contextlib.suppress(OSError):  # a mark only helps to see that this worker is alive
                _mark(task, context)
        stage = importlib.import_module(f"campaign.stages.{task.stage}")
        if hasattr(stage, "load"):
            stage.load(task)
        loaded = time.time()
        outcome = stage.work(task, context)
        record["result"] = outcome.summary
        record["versions"] |= outcome.versions
        record["phases"] = {"load": loaded - record["start"], "work": time.time() - loaded}
        record["seconds"] = time.time() - record["start"]
        if outcome.arrays is not None:
            from campaign.store.store import Store

            Store(context.run / "run.zarr").publish(record, outcome.arrays, outcome.checkpoint)
        if hasattr(stage, "tidy"):
            with contextlib.suppress(Exception):  # files too many are no fault
                stage.tidy(task, context)
        for path in outcome.scratch:
            with contextlib.suppress(OSError):  # the result is there: what is left over only takes space
                path.unlink(missing_ok=True)
    except (StoreError, MachineFault) as error:
        _fail(record, str(error), transient=True)
        record["disk_full"] = isinstance(error, DiskFull)
    except CampaignError as error:
        _fail(record, str(error), transient=False)
        if getattr(error, "final", False):
            record["final"] = True
    except Exception as error:  # the boundary: whatever a library raises becomes a record, the campaign goes on
        _fail(record, f"{type(error).__name__}: {error}", transient=isinstance(error, OSError | MemoryError))
        record["disk_full"] = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        _keep_traceback(task, context)
    if record["state"] == "failed":
        record["result"] = _described(task, context)
    record["seconds"] = time.time() - record["start"]
    return record


def _described(task: Task, context: Context) -> dict[str, Json]:
    """Return what the stage says of an attempt that failed, such as its settings; the cause is said already."""
    with contextlib.suppress(Exception):
        stage = importlib.import_module(f"campaign.stages.{task.stage}")
        if hasattr(stage, "describe"):
            return dict(stage.describe(task, context))
    return {}


def _mark(task: Task, context: Context) -> None:
    """Write down which task this worker is at, so that the driver can tell work from silence."""
    os.pwrite(_mark_file(str(context.workers), os.getpid()), context.mark(task.id).ljust(48).encode(), 0)


@lru_cache(maxsize=1)
def _mark_file(folder: str, pid: int) -> int:
    """Return the open file of this worker's mark: it is written for every task, however short."""
    return os.open(os.path.join(folder, f"{socket.gethostname()} {pid}"), os.O_WRONLY | os.O_CREAT, 0o644)


def _fail(record: Record, cause: str, transient: bool) -> None:
    record["state"], record["transient"] = "failed", transient
    record["cause"] = " ".join(cause.split())[:2000]


def _keep_traceback(task: Task, context: Context) -> None:
    """Keep the traceback of an unforeseen error with the task's files."""
    import traceback

    with contextlib.suppress(OSError):  # the record has the cause already
        (context.folder(task) / f"traceback-{context.attempt}.txt").write_text(traceback.format_exc())
