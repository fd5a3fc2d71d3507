"""Labels by CP2K: one single point a frame, each attempt in a folder of its own, nothing taken that is not checked.

The task's ``extra``: ``template`` (path in the run directory), ``ladder`` (rungs as in the campaign file), ``ranks``,
``threads``, ``timeout`` (s). The attempt's number chooses the rung. ``RUN/tasks/<id>/attempt-K`` keeps the input, the
output and ``report.json``; wavefunctions go once they are of no more use.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from campaign.config import cp2k_data
from campaign.config.cp2k_ladder import DFT, Rung
from campaign.config.cp2k_template import FALSE, Template
from campaign.config.cp2k_tree import Section
from campaign.engines import cp2k_output, process
from campaign.engines.cp2k_input import WAVEFUNCTIONS, choose, read_template, render, resolve
from campaign.engines.labellers import NET_FORCE
from campaign.errors import DiskFull, EngineError, InputError, MachineFault, Unconverged, Unphysical
from campaign.frames import Frames
from campaign.tasks import Context, Json, Task

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

INPUT, OUTPUT, REPORT = "input.inp", "output.out", "report.json"

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


def label(frames: Frames, task: Task, context: Context) -> tuple[Array, Array, Array]:
    """Compute frames with CP2K.

    Parameters
    ----------
    frames
        Mostly one.
    task
        See the module.
    context
        Where it runs; ``context.attempt`` chooses the rung.

    Returns
    -------
    tuple
        Energy (n,) eV, forces (n, a, 3) eV/Å, virial stress (n, 3, 3) eV/Å^3, tension positive.

    Raises
    ------
    Unconverged, Unphysical, EngineError
        This attempt failed; the cause in one sentence, with the folder of its files.
    MachineFault, DiskFull, OSError
        The machine failed, not the calculation.
    """
    path = context.run / task.extra["template"]
    template = _template(path, path.stat().st_mtime_ns)
    rung = resolve(choose(task.extra["ladder"], context.attempt), template.root)
    folder = context.folder(task) / f"attempt-{context.attempt}"
    found = []
    for k, atoms in enumerate(frames.to_ase()):
        place = folder if len(frames) == 1 else folder / f"frame-{k}"
        found.append(_single_point(atoms, template, rung, place, task, context))
    _clear(context.folder(task), keep=None)
    return (
        np.array([r.energy for r in found]),
        np.array([r.forces for r in found]),
        np.array([r.stress for r in found]),
    )


def report(task: Task, context: Context) -> dict[str, Json]:
    """Return what is known of this attempt: rung, settings, SCF steps, seconds, warnings, version, cause of a failure.

    Nothing where the attempt did not come to write it.
    """
    path = context.run / "tasks" / task.id / f"attempt-{context.attempt}" / REPORT
    try:
        found: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


@lru_cache(maxsize=8)
def _template(path: Path, stamp: int) -> Template:
    try:
        return read_template(path)
    except InputError as error:
        raise MachineFault(f"The template or a data file of it cannot be read here: {error}") from error


def _single_point(
    atoms: Atoms, template: Template, rung: Rung, folder: Path, task: Task, context: Context
) -> cp2k_output.Result:
    """Compute one frame, or take what an interrupted worker left finished, and write the report either way."""
    guess = _wavefunction(folder) if rung.restart else None
    text = render(template, atoms, rung, folder, guess)
    asked = asked_of(template, rung, atoms)
    notes: dict[str, Json] = {"rung": rung.name, "settings": dict(rung.settings), "restarted": guess is not None}
    start = time.time()
    try:
        result = _finished(folder, text, asked)
        if result is None:
            _fresh(folder)
            (folder / INPUT).write_text(text, encoding="utf-8")
            result = _run(folder, asked, task, context)
        _check_grid(result, folder, task.extra["ladder"])
    except EngineError as error:
        notes |= {"seconds": time.time() - start, "cause": str(error), "unconverged": isinstance(error, Unconverged)}
        _write(folder, notes, context)
        _clear(folder.parent, keep=folder if isinstance(error, Unconverged) else None)
        raise
    notes |= {"seconds": time.time() - start, "scf_steps": result.steps, "version": result.version}
    notes["warnings"] = list(result.warnings)
    notes["net_force"] = float(np.abs(result.forces.sum(axis=0)).max())
    _write(folder, notes, context)
    return result


def _check_grid(result: cp2k_output.Result, folder: Path, ladder: Sequence[Any]) -> None:
    """Refuse forces of a grid that is too coarse: atoms feel where its points are, and the sum of forces tells.

    Raises
    ------
    Unphysical
        The sum is larger than ``labellers.NET_FORCE`` allows.
    """
    net = float(np.abs(result.forces.sum(axis=0)).max())
    if net > NET_FORCE * len(result.forces) ** 0.5:
        what = f"CP2K's forces sum to {net:.3g} eV/Å instead of nothing: its grid is too coarse for these potentials"
        error = Unphysical(f"{what}; raise MGRID/CUTOFF, or write 'METHOD GAPW_XC' in QS ({folder}).")
        settings = [path for rung in ladder if isinstance(rung, Mapping) for path in rung]
        error.final = not any(str(path).upper().startswith(("MGRID", "QS")) for path in settings)
        raise error


def _write(folder: Path, notes: dict[str, Json], context: Context) -> None:
    """Write the report; of several frames the last one's stands for the attempt."""
    places = {folder, folder.parent} if folder.name.startswith("frame-") else {folder}
    for place in places:
        (place / REPORT).write_text(json.dumps(notes, indent=1), encoding="utf-8")


def asked_of(template: Template, rung: Rung, atoms: Atoms) -> cp2k_output.Asked:
    """Return what the output must say: the frame, charge, multiplicity, and the criteria of convergence."""
    dft = template.with_rung(rung.settings).find(*DFT) or Section("DFT")
    scf = dft.find("SCF") or Section("SCF")
    outer = scf.find("OUTER_SCF")
    if outer is not None and outer.parameter.upper() in FALSE:
        outer = None
    multiplicity = dft.get("MULTIPLICITY", "MULTIP")
    return cp2k_output.Asked(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        int(dft.get("CHARGE") or 0),
        int(multiplicity) if multiplicity and int(multiplicity) > 0 else None,
        _real(scf.get("EPS_SCF")),
        None if outer is None else _real(outer.get("EPS_SCF")),
    )


def _real(text: str | None) -> float:
    return float((text or "1.0E-5").lower().replace("d", "e"))


def _finished(folder: Path, text: str, asked: cp2k_output.Asked) -> cp2k_output.Result | None:
    """Return the result of the same input that an interrupted worker left behind, if it is whole and right."""
    if cp2k_output.read_text(folder / INPUT) != text:
        return None
    try:
        return cp2k_output.read_result(cp2k_output.read_text(folder / OUTPUT), asked)
    except EngineError:
        return None


def _fresh(folder: Path) -> None:
    """Make the folder empty: what an interrupted worker left would be taken for this attempt's."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def command_of(task: Task, context: Context) -> list[str]:
    """Return the command line of one single point.

    Raises
    ------
    MachineFault
        The site names no command, and one is needed.
    """
    ranks, threads = int(task.extra.get("ranks", 1)), int(task.extra.get("threads", 1))
    words = [w.format(ranks=ranks, threads=threads) for w in context.launch.get("cp2k", [])]
    if not words:
        program = cp2k_data.program()
        if ranks > 1:
            raise MachineFault(f"The site has no launch.cp2k, and CP2K is to run on {ranks} ranks; add it to the site.")
        if program is None:
            raise MachineFault(
                "CP2K was not found on this machine; put it on PATH, or name it in the site's launch.cp2k."
            )
        words = [program]
    return [*words, "-i", INPUT, "-o", OUTPUT]


def environment_of(task: Task) -> dict[str, str]:
    """Return what CP2K's processes get set: threads, data folder, and that root may run OpenMPI."""
    found = {"OMP_NUM_THREADS": str(int(task.extra.get("threads", 1)))}
    data = cp2k_data.data_folder()
    if data is not None:
        found["CP2K_DATA_DIR"] = str(data)
    if os.geteuid() == 0:  # in a container; OpenMPI's mpirun refuses otherwise
        found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return found


def _run(folder: Path, asked: cp2k_output.Asked, task: Task, context: Context) -> cp2k_output.Result:
    """Run CP2K in a folder and return the result, checked."""
    timeout = float(task.extra.get("timeout", 3600))
    start = time.monotonic()
    fault: EngineError | None = None
    try:
        process.run(command_of(task, context), folder, timeout, environment_of(task))
    except EngineError as error:
        fault = error
    text = cp2k_output.read_text(folder / OUTPUT)
    if fault is None:
        try:
            return cp2k_output.read_result(text, asked)
        except EngineError as error:
            _check_space(folder)
            raise type(error)(f"{str(error).rstrip('.')} ({folder}).") from None
    if time.monotonic() - start >= timeout:
        raise EngineError(f"CP2K was stopped after {timeout:g} s, {_progress(text, asked)} ({folder}).") from fault
    raise _cause(folder, text, str(fault), asked) from fault


def _progress(text: str, asked: cp2k_output.Asked) -> str:
    steps = sum(1 for _ in cp2k_output.steps_of(text))
    if not steps:
        return "before its first SCF step"
    return f"at SCF step {steps}: {cp2k_output.last_change(text, asked)}"


def _cause(folder: Path, text: str, fault: str, asked: cp2k_output.Asked) -> Exception:
    """Return the error of a run that did not end well: the one true reason that its files give."""
    said = cp2k_output.read_text(folder / "stderr") + cp2k_output.read_text(folder / "stdout")
    where = f"({folder})"
    if _NO_SPACE.search(said + text):
        return DiskFull(f"There is no space left on the disk: CP2K could not write its files {where}.")
    _check_space(folder)
    for words in (text, said):
        box = cp2k_output.abort(words)
        if box:
            kind = Unconverged if "NOT converged" in box or "did not converge" in box.lower() else EngineError
            return kind(f"CP2K stopped: {box} {where}.")
    if "was not found" in fault or "may not be run" in fault:
        return MachineFault(fault)
    mark = _SIGNAL.search(said) or _SIGNAL.search(fault)
    if mark:
        number = int(mark[1] or mark[2] or int(mark[3]) - 128)
        return _signal(number, _progress(text, asked), where)
    if _LAUNCHER.search(said) and not text.strip():
        return MachineFault(f"CP2K could not be started: {_launcher_line(said)} {where}.")
    ended = fault.removesuffix(where).rstrip()
    return EngineError(f"{ended.rstrip('. ')}; {_progress(text, asked)} {where}.")


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


def _check_space(folder: Path) -> None:
    """Blame the disk where it is full: an output that is cut off says nothing about the frame.

    Raises
    ------
    DiskFull
        It is.
    """
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _LEAST_SPACE:
            raise DiskFull(f"There is no space left on the disk ({os.strerror(errno.ENOSPC)}): {folder}.")


def _wavefunction(folder: Path) -> Path | None:
    """Return the last wavefunction of the attempt before, if that one failed for nothing but convergence."""
    match = re.fullmatch(r"attempt-(\d+)", folder.name)
    if not match or match[1] == "0":
        return None
    before = folder.with_name(f"attempt-{int(match[1]) - 1}")
    try:
        if json.loads((before / REPORT).read_text(encoding="utf-8")).get("unconverged") is not True:
            return None
    except (OSError, ValueError):
        return None
    return next((before / name for name in WAVEFUNCTIONS if (before / name).is_file()), None)


def _clear(folder: Path, keep: Path | None) -> None:
    """Remove wavefunctions below a task's folder, but those in ``keep``: they are the largest files there are."""
    for pattern in ("*.wfn*", "*.kp*"):
        for path in folder.rglob(pattern):
            if path.parent != keep:
                with contextlib.suppress(OSError):
                    path.unlink()
