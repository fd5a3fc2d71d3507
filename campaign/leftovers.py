"""Ending what a driver left running on this host."""

from __future__ import annotations

import os

from campaign.tasks import TOKEN_VARIABLE


def end_leftovers(token: str) -> int:
    """End every process on this host that a killed driver left running; return how many there were."""
    import psutil

    if not token:
        return 0
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token:
                process.kill()
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    psutil.wait_procs(found, timeout=5)
    return len(found)
