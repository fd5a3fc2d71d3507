"""Why a run of CP2K did not end well: the one true reason that its output, its messages and the machine give."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from campaign.engines import cp2k_output
from campaign.errors import DiskFull, EngineError, MachineFault, Unconverged

_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)
_SIGNAL = re.compile(r"exited on signal (\d+)|ended with signal (\d+)|ended with exit code (1(?:29|3[0-9]|4[0-9]))\b")
#: The launcher's own refusals: of the machine or the site file, not of the frame.
_LAUNCHER = re.compile(
    r"not enough slots|unable to (?:launch|find|start)|could not be found|ORTE (?:has lost|was unable)"
    r"|error while loading shared libraries|cannot open shared object",
    re.IGNORECASE,
)
#: Less than this is a full disk: even the end of an output does not fit.
_LEAST_SPACE = 1 << 16
#: What CP2K says of itself; not of every build.
_RANKS = re.compile(r"^ GLOBAL\| Total number of message passing processes\s+(\d+)\s*$", re.MULTILINE)
#: The beginning of SCF: until then nothing depends on how it converges.
_LOOP = re.compile(r"^ SCF WAVEFUNCTION OPTIMIZATION", re.MULTILINE)


def progress(text: str, asked: cp2k_output.Asked) -> str:
    """Return in words how far a calculation had come."""
    steps = sum(1 for _ in cp2k_output.steps_of(text))
    if not steps:
        return "before its first SCF step"
    return f"at SCF step {steps}: {cp2k_output.last_change(text, asked)}"


def cause(folder: Path, text: str, fault: str, asked: cp2k_output.Asked) -> Exception:
    """Return the error of a run that did not end well: the one true reason that its files give.

    Final where CP2K refused the input before SCF began: other steps to convergence do not mend that.
    """
    said = cp2k_output.read_text(folder / "stderr") + cp2k_output.read_text(folder / "stdout")
    where = f"({folder})"
    if _NO_SPACE.search(said + text):
        return DiskFull(f"There is no space left on the disk: CP2K could not write its files {where}.")
    check_space(folder)
    for words in (text, said):
        box = cp2k_output.abort(words)
        if box:
            kind = Unconverged if "NOT converged" in box or "did not converge" in box.lower() else EngineError
            error = kind(f"CP2K stopped: {box} {where}.")
            error.final = kind is EngineError and not _LOOP.search(text)
            return error
    if "was not found" in fault or "may not be run" in fault:
        return MachineFault(fault)
    if _LAUNCHER.search(said) and not text.strip():  # some launchers then end by a signal
        return MachineFault(f"CP2K could not be started: {_launcher_line(said)} {where}.")
    mark = _SIGNAL.search(said) or _SIGNAL.search(fault)
    if mark:
        number = int(mark[1] or mark[2] or int(mark[3]) - 128)
        return _signal(number, progress(text, asked), where)
    ended = fault.removesuffix(where).rstrip()
    return EngineError(f"{ended.rstrip('. ')}; {progress(text, asked)} {where}.")


def _launcher_line(said: str) -> str:
    mark = _LAUNCHER.search(said)
    rows = said.splitlines()
    at = said[: mark.start() if mark else 0].count("\n")
    return " ".join(" ".join(rows[at : at + 2]).split())[:300].rstrip(".")


def _signal(number: int, progress: str, where: str) -> Exception:
    if number == 15:  # the batch system, or a person: the calculation is not to blame
        return MachineFault(f"CP2K was told to stop (signal 15) from outside, {progress} {where}.")
    names = {9: "killed (signal 9), most often for want of memory", 11: "ended by a segmentation fault (signal 11)"}
    return EngineError(f"CP2K was {names.get(number, f'ended by signal {number}')}, {progress} {where}.")


def check_space(folder: Path) -> None:
    """Blame the disk where it is full: an output that is cut off says nothing about the frame.

    Raises
    ------
    DiskFull
        It is.
    """
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _LEAST_SPACE:
            raise DiskFull(f"There is no space left on the disk ({os.strerror(errno.ENOSPC)}): {folder}.")


def check_ranks(text: str, ranks: int, folder: Path) -> None:
    """Check that CP2K ran on as many MPI ranks as were asked for.

    Under the launcher of another MPI than its own it does not: then so many serial copies write one output.

    Raises
    ------
    MachineFault
        It did not.
    """
    found = {int(n) for n in _RANKS.findall(text)}
    if found - {ranks}:
        how = f"CP2K ran on {max(found)} MPI rank{'s' if max(found) > 1 else ''}, and {ranks} were asked for"
        line = '[/usr/bin/mpirun, -n, "{ranks}", --bind-to, none, cp2k.psmp]'
        raise MachineFault(
            f"{how}: launch.cp2k of the site must be of the MPI that CP2K was built with: {line} ({folder})."
        )
