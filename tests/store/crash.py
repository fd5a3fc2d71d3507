"""Run by test_kill.py: work on a store and die by SIGKILL before one of its file operations, each time another one.

``crash.py publish TEMPLATE ROOT STRIDE`` or ``crash.py pack ...`` copies TEMPLATE to ROOT/1, ROOT/1+STRIDE, ... and
prints how many of them were killed and, last, in how many operations the work is done.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from campaign.frames import Frames
from campaign.store.store import Store
from campaign.tasks import Task, new_record

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.scandir", "os.listdir"}
SEGMENTS = range(100, 103)


def chain(count: int) -> list[str]:
    return [Task("sample", "", {"segment": k}).id for k in range(count)]


def publish(run: Path) -> None:
    store = Store(run / "run.zarr")
    for k in SEGMENTS:
        task = Task("sample", f"segment {k}", {"segment": k})
        positions = np.full((4, 3, 3), float(k))
        frames = Frames.build([1, 1, 8], positions, np.eye(3) * 9, energy=k, task=task.number, walker=k)
        store.publish(new_record(task, 0), dict(frames.arrays()), {"state": np.array([k])})


def pack(run: Path) -> None:
    store = Store(run / "run.zarr")
    store.scan()
    ids = chain(6)
    store.pack("sample", [ids[:4], ids[4:]])


def killed_before(operation: int, work: Callable[[Path], None], run: Path) -> bool:
    child = os.fork()
    if not child:
        seen = 0

        def hook(event: str, _args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in OPERATIONS:
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        signal.alarm(60)
        os.fsync = lambda _fd: None  # the kernel outlives the process: flushing is not what is tried here
        sys.addaudithook(hook)
        work(run)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, status
    return False


if __name__ == "__main__":
    name, template, root, stride = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    operation = 1
    work = {"publish": publish, "pack": pack}[name]
    work(Path(shutil.copytree(template, root / "rehearsal")))  # imports done, so that only the work is counted
    shutil.rmtree(root / "rehearsal")
    while killed_before(operation, work, Path(shutil.copytree(template, root / str(operation)))):
        operation += stride
    print(operation)
