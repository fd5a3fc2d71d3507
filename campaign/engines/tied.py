"""Ties a program to the process that starts it: ``python tied.py PARENT PROGRAM ARGS`` becomes PROGRAM.

A worker that is killed, even by SIGKILL, takes down what it started: no program computes on beside its own retry.
Imports little, so that it costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program named on the command line, to be ended when the process ``PARENT`` dies (Linux only).

    By SIGTERM, not SIGKILL: an MPI launcher then ends its ranks, also those on other machines.
    """
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(f"{command[0]} was not started: the process that asked for it has ended.")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
