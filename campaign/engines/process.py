"""The one place where programs are started: a list of arguments, never a shell; the process tree ends together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from campaign.errors import EngineError


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
        It could not be started, ended with an error, or ran out of time.
    """
    out, err = folder / "stdout", folder / "stderr"
    try:
        with out.open("wb") as o, err.open("wb") as e:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=o,
                stderr=e,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise EngineError(f"{command[0]} was stopped after {timeout:g} s; its files are in {folder}.") from None
            finally:
                _end_tree(process)
    except (FileNotFoundError, PermissionError) as error:
        if not folder.is_dir():
            raise
        what = "was not found" if isinstance(error, FileNotFoundError) else "may not be run"
        raise EngineError(f"{command[0]} {what} on this machine; correct the site's launch command.") from None
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise EngineError(f"{command[0]} ended with {how}: {_last_line(err) or _last_line(out)} ({folder})")
    return out.read_text(errors="replace")


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's process group, also where the program itself has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
