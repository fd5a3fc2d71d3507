"""The one place where programs are started: a list of arguments, never a shell; the process tree ends together.

Also when the process that started it is killed: see ``campaign.engines.tied``. What leaves the process group, as the
ranks of some MPI launchers do, is found by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from campaign.engines import tied
from campaign.errors import EngineError

#: Set in the environment of each program and of all that it starts, so that they are found when it must end.
MARK = "CAMPAIGN_PROGRAM"

#: What a worker's own srun, or its job, leaves in the environment: another srun would take it over, and start every
#: program on the first so many cores of the node.
INHERITED = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK")

#: Seconds that a program out of time has to end by itself.
GRACE = 2.0


def run(
    command: Sequence[str], folder: Path, timeout: float | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program in ``folder`` and return what it printed.

    Parameters
    ----------
    command
        The program and its arguments.
    folder
        Working directory; ``stdout`` and ``stderr`` are kept there as files.
    timeout
        Seconds after which the program and everything it started is killed.
    environment
        Variables to set beside the present ones.

    Raises
    ------
    EngineError
        It is not on this machine, ended with an error, or ran out of time.
    OSError
        It could not be started now: no memory, no space, no such folder.
    """
    out, err = folder / "stdout", folder / "stderr"
    mark = uuid.uuid4().hex
    every = {name: value for name, value in os.environ.items() if name not in INHERITED}
    every |= {**(environment or {}), MARK: mark}
    with out.open("wb") as o, err.open("wb") as e:
        _check_program(command[0], folder, every)
        process = subprocess.Popen(
            # -I -S: Python's own start is most of what the tie costs
            [sys.executable, "-I", "-S", tied.__file__, str(os.getpid()), *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=o,
            stderr=e,
            env=every,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = _wait(process, timeout)
        except subprocess.TimeoutExpired:
            _ask_to_end(process)
            raise EngineError(f"{command[0]} was stopped after {timeout:g} s; its files are in {folder}.") from None
        finally:
            _end_tree(process, mark)
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise EngineError(f"{command[0]} ended with {how}: {_last_line(err) or _last_line(out)} ({folder})")
    return out.read_text(errors="replace")


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> int:
    """Return the exit code as soon as there is one: ``Popen.wait`` with a timeout looks every 50 ms only.

    Raises
    ------
    subprocess.TimeoutExpired
        It did not end in time.
    """
    if timeout is None or not hasattr(os, "pidfd_open"):  # Linux has it
        return process.wait(timeout)
    try:
        end = os.pidfd_open(process.pid)
    except OSError:  # not in every container
        return process.wait(timeout)
    try:
        watch = select.poll()
        watch.register(end, select.POLLIN)
        ended = watch.poll(min(timeout * 1000, 2**31 - 1))
    finally:
        os.close(end)
    if not ended:
        raise subprocess.TimeoutExpired(process.args, timeout)
    return process.wait()


def node() -> str:
    """Return the name of this node as the batch system knows it: what ``{node}`` stands for in a launch command."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def fill(words: Sequence[str], ranks: int) -> list[str]:
    """Return a site's launch command for a task of some MPI ranks.

    ``{nodes}`` are those that Parsl's ``MPIExecutor`` gave the task (as many as there are ranks, at most), separated by
    commas, and ``{node_count}`` how many they are; for a worker within a node they are that node.
    """
    nodes = os.environ.get("PARSL_MPI_NODELIST", node()).split(",")[:ranks]
    known = {
        "{ranks}": str(ranks),
        "{node}": node(),
        "{nodes}": ",".join(nodes),
        "{node_count}": str(len(nodes)),
        "{ranks_per_node}": str(-(-ranks // len(nodes))),
    }
    return [re.sub(r"\{\w+\}", lambda found: known.get(found[0], found[0]), word) for word in words]


def cores() -> set[int]:
    """Return the cores of this node that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _check_program(program: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Refuse a program that this machine does not have; a relative path starts in ``folder``."""
    path = environment.get("PATH", os.defpath)
    name = str(folder / program) if os.sep in program else program
    if shutil.which(name, path=path) is None:
        there = shutil.which(name, mode=os.F_OK, path=path) is not None
        what = "may not be run" if there else "was not found"
        raise EngineError(f"{program} {what} on this machine; correct the site's launch command.")


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask the program to end: a launcher then ends its MPI ranks, also those on other machines."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE)


def _end_tree(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill what is left of the program's process group, also where the program itself has ended, well or not.

    And those that left the group (MPI ranks, daemons): by the ``mark`` they inherited.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(3):  # one that was being started is found by the next look
        found = list(_marked(mark))
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(0.02)


def _marked(mark: str) -> Iterator[int]:
    """Yield the processes of this machine that were started with a mark (Linux; elsewhere none is seen)."""
    word = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if word in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def start_detached(command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> int:
    """Start a program that outlives this process and everything that ends with it; return its process id.

    Parameters
    ----------
    command
        The program and its arguments.
    folder
        Working directory.
    log
        What it prints is added to this file.
    environment
        All of its environment.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environment),
            start_new_session=True,
        )
    return process.pid
