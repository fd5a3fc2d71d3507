"""Ending what a driver left running on this host, and removing what that leaves in the folder for temporary files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.tasks import TOKEN_VARIABLE

if TYPE_CHECKING:
    import psutil

#: How Python's multiprocessing names the folders of its sockets.
_SOCKETS = "pymp-"


def end_leftovers(token: str, sockets: Iterable[Path] = ()) -> int:
    """End every process on this host that a killed driver left running; return how many there were.

    Parameters
    ----------
    token
        In the environment of these processes.
    sockets
        What :func:`sockets_of` said of processes that have ended since: removed too, as those of the ones ended here.
    """
    import psutil

    if not token:
        return 0
    found, left = [], set(sockets)
    for process in _processes(token):
        with contextlib.suppress(psutil.Error):
            left |= _sockets(process)
            process.kill()
            found.append(process)
    psutil.wait_procs(found, timeout=5)
    for socket in left:
        with contextlib.suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()
    return len(found)


def sockets_of(token: str) -> set[Path]:
    """Return the sockets of multiprocessing that are served by processes with this token.

    Parsl's pool of workers has one, in a folder of its own, and leaves both behind when it is ended by a signal: as
    Parsl ends the pools of this host.
    """
    return {path for process in _processes(token) for path in _sockets(process)}


def _sockets(process: psutil.Process) -> set[Path]:
    """Return the sockets in folders of multiprocessing that a process serves; none where that is not told."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):  # to end it matters more
        paths = {Path(str(c.laddr)) for c in process.net_connections("unix") if c.laddr}
        return {path for path in paths if path.parent.name.startswith(_SOCKETS)}
    return set()


def _processes(token: str) -> Iterator[psutil.Process]:
    """Yield the processes on this host, but for this one, that have the token in their environment."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token:
                yield process
