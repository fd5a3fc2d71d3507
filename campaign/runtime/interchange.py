"""Starts Parsl's interchange so that it ends with the driver, even by SIGKILL.

The interchange is the post office between driver and workers; Parsl leaves it running when the driver is killed,
and with it the workers. Without it the workers end by themselves after a few missed heartbeats.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become ``interchange.py``, to be killed when the process that started this one dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgrp()  # a Ctrl-C is the driver's business; it ends the interchange itself
    os.execvp("interchange.py", ["interchange.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
