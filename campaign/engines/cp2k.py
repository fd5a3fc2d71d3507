"""Labels by CP2K: one single point a frame, each attempt in a folder of its own, nothing taken that is not checked.

The task's ``extra``: ``template`` (path in the run directory), ``ladder`` (rungs as in the campaign file), ``ranks``,
``threads``, ``timeout`` (s). The attempt's number chooses the rung. ``RUN/tasks/<id>/attempt-K`` keeps the input, the
output and ``report.json``. An attempt that is cut short is made again, and must then find what it found at first:
wavefunctions go only once nobody can ask for them (the next attempt has begun, the label is stored, the frame is given
up), and a whole output of the same input stands, whether it converged or not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from campaign.config import cp2k_data
from campaign.config.cp2k_electrons import treatment
from campaign.config.cp2k_ladder import DFT, Rung, is_on
from campaign.config.cp2k_template import Template
from campaign.config.cp2k_tree import Section
from campaign.engines import cp2k_output, process
from campaign.engines.cp2k_causes import cause, check_ranks, check_space, progress
from campaign.engines.cp2k_input import WAVEFUNCTIONS, choose, read_template, render, resolve
from campaign.engines.labellers import NET_FORCE
from campaign.errors import EngineError, InputError, MachineFault, Unconverged, Unphysical
from campaign.frames import Frames
from campaign.tasks import Context, Json, Task

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

INPUT, OUTPUT, REPORT = "input.inp", "output.out", "report.json"
#: In a task's folder: its frame was given up; who tries again takes nothing from there.
GIVEN_UP = "given-up"


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
    _begin(folder.parent, context.attempt)
    found = []
    for k, atoms in enumerate(frames.to_ase()):
        place = folder if len(frames) == 1 else folder / f"frame-{k}"
        found.append(_single_point(atoms, template, rung, place, task, context))
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


def tidy(folder: Path) -> None:
    """Remove the wavefunctions of a task's folder: the largest files there are. Its label is stored by now."""
    for pattern in ("*.wfn*", "*.kp*"):
        for path in folder.rglob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def give_up(folder: Path) -> None:
    """Mark a task's folder as that of a frame which is quarantined by now: another try begins afresh."""
    tidy(folder)
    with contextlib.suppress(OSError):  # where nothing was run there is no folder
        (folder / GIVEN_UP).touch()


def _begin(folder: Path, attempt: int) -> None:
    """Make a task's folder ready for an attempt: the ledger has those before it, and nobody repeats them."""
    if (folder / GIVEN_UP).exists():  # the frame was quarantined, and is tried again: people keep the old files
        before = next(p for k in itertools.count(1) if not (p := folder / f"before-{k}").exists())
        before.mkdir()
        for path in folder.glob("attempt-*"):
            path.rename(before / path.name)
        (folder / GIVEN_UP).unlink()
    for path in folder.glob("attempt-*"):
        if path.name not in (f"attempt-{attempt - 1}", f"attempt-{attempt}"):  # this one starts from the one before
            tidy(path)


def _single_point(
    atoms: Atoms, template: Template, rung: Rung, folder: Path, task: Task, context: Context
) -> cp2k_output.Result:
    """Compute one frame, or take what an interrupted worker left finished, and write the report either way."""
    guesses: list[Path | None] = [*(_wavefunctions(folder) if rung.restart else ()), None]
    inputs = {render(template, atoms, rung, folder, guess): guess for guess in guesses}
    asked = asked_of(template, rung, atoms)
    notes: dict[str, Json] = {"rung": rung.name, "settings": dict(rung.settings)}
    ladder = list(task.extra["ladder"])[context.attempt :]
    start = time.time()
    text = cp2k_output.read_text(folder / INPUT)
    try:
        result = _finished(folder, asked) if text in inputs else None
        if result is None:
            text = next(text for text, guess in inputs.items() if guess is None or _may_start_from(guess))
            _fresh(folder)
            (folder / INPUT).write_text(text, encoding="utf-8")
            result = _run(folder, asked, task, context)
        _check_grid(result, folder, template, ladder)
    except EngineError as error:
        if isinstance(error, cp2k_output.TooFewOrbitals):  # a rung that gives them more is one of other physics
            error.final = len(template.method(ladder)) <= 1
        notes |= {"restarted": inputs[text] is not None, "seconds": time.time() - start}
        notes |= {"cause": str(error), "unconverged": isinstance(error, Unconverged)}
        _write(folder, notes)
        if not isinstance(error, Unconverged):
            tidy(folder)
        raise
    notes |= {"restarted": inputs[text] is not None, "seconds": time.time() - start}
    notes |= {"scf_steps": result.steps, "version": result.version, "warnings": list(result.warnings)}
    notes |= {"spin": result.spin, "multiplicity": result.multiplicity}
    notes["net_force"] = float(np.abs(result.forces.sum(axis=0)).max())
    _write(folder, notes)
    return result


def _check_grid(result: cp2k_output.Result, folder: Path, template: Template, ladder: list[Any]) -> None:
    """Refuse forces of a grid that is too coarse: atoms feel where its points are, and the sum of forces tells.

    Parameters
    ----------
    result
        Of CP2K.
    folder
        Of the attempt.
    template
        The template.
    ladder
        This attempt's rung and those after it.

    Raises
    ------
    Unphysical
        The sum is larger than ``labellers.NET_FORCE`` allows. Final where no rung of the user's own that is still to
        come computes something else; the built-in ones leave the grid as it is.
    """
    net = float(np.abs(result.forces.sum(axis=0)).max())
    if net > NET_FORCE * len(result.forces) ** 0.5:
        what = f"CP2K's forces sum to {net:.3g} eV/Å instead of nothing: its grid is too coarse for these potentials"
        error = Unphysical(f"{what}; raise MGRID/CUTOFF, or write 'METHOD GAPW_XC' in QS ({folder}).")
        own = [rung for rung in ladder[1:] if isinstance(rung, Mapping)]
        error.final = not own or template.method(ladder[:1] + own) == template.method(ladder[:1])
        raise error


def _write(folder: Path, notes: dict[str, Json]) -> None:
    """Write the report; of several frames the last one's stands for the attempt."""
    places = {folder, folder.parent} if folder.name.startswith("frame-") else {folder}
    for place in places:
        (place / REPORT).write_text(json.dumps(notes, indent=1), encoding="utf-8")


def asked_of(template: Template, rung: Rung, atoms: Atoms) -> cp2k_output.Asked:
    """Return what the output must say: the frame, charge, multiplicity, spin, and the criteria of convergence."""
    root = template.with_rung(rung.settings)
    dft = root.find(*DFT) or Section("DFT")
    scf = dft.find("SCF") or Section("SCF")
    outer = scf.find("OUTER_SCF")
    multiplicity = dft.get("MULTIPLICITY", "MULTIP")
    return cp2k_output.Asked(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        int(dft.get("CHARGE") or 0),
        int(multiplicity) if multiplicity and int(multiplicity) > 0 else None,
        _real(scf.get("EPS_SCF")),
        _real(outer.get("EPS_SCF")) if outer is not None and is_on(outer) else None,
        treatment(root),
    )


def _real(text: str | None) -> float:
    return float((text or "1.0E-5").lower().replace("d", "e"))


def _finished(folder: Path, asked: cp2k_output.Asked) -> cp2k_output.Result | None:
    """Return the result that an interrupted worker left behind, None where its calculation did not come to its end.

    Raises
    ------
    Unconverged, Unphysical
        It came to its end, and failed: it would again.
    """
    try:
        return cp2k_output.read_result(cp2k_output.read_text(folder / OUTPUT), asked)
    except (Unconverged, Unphysical) as error:
        raise _in_folder(error, folder) from None
    except EngineError:
        return None


def _in_folder(error: EngineError, folder: Path) -> EngineError:
    """Return the same error, which says where its files are."""
    found = type(error)(f"{str(error).rstrip('.')} ({folder}).")
    found.final = error.final
    return found


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
    words = process.fill(context.launch.get("cp2k", []), task.ranks)
    if not words:
        program = cp2k_data.program()
        if task.ranks > 1:
            raise MachineFault(
                f"The site has no launch.cp2k, and CP2K is to run on {task.ranks} ranks; add it to the site."
            )
        if program is None:
            raise MachineFault(
                "CP2K was not found on this machine; put it on PATH, or name it in the site's launch.cp2k."
            )
        words = [program]
    return [*words, "-i", INPUT, "-o", OUTPUT]


def environment_of(task: Task) -> dict[str, str]:
    """Return what CP2K's processes get set: threads, data folder, and that root may run OpenMPI."""
    found = {"OMP_NUM_THREADS": str(task.threads)}
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
    check_ranks(text, task.ranks, folder)
    if fault is None:
        try:
            return cp2k_output.read_result(text, asked)
        except EngineError as error:
            check_space(folder)
            raise _in_folder(error, folder) from None
    if time.monotonic() - start >= timeout:
        raise EngineError(f"CP2K was stopped after {timeout:g} s, {progress(text, asked)} ({folder}).") from fault
    reason = cause(folder, text, str(fault), asked)
    if isinstance(reason, EngineError) and reason.final:  # a rung of the user's own may set what the input lacks
        reason.final = not any(isinstance(rung, Mapping) for rung in task.extra["ladder"][context.attempt + 1 :])
    raise reason from fault


def _wavefunctions(folder: Path) -> list[Path]:
    """Return the last wavefunctions of the attempt before, by name: whether they are there, or of use, is not asked."""
    match = re.fullmatch(r"attempt-(\d+)", folder.name)
    if not match or match[1] == "0":
        return []
    before = folder.with_name(f"attempt-{int(match[1]) - 1}")
    return [before / name for name in WAVEFUNCTIONS]


def _may_start_from(wavefunction: Path) -> bool:
    """Tell whether a wavefunction is there, of an attempt that failed for nothing but convergence."""
    try:
        notes = json.loads((wavefunction.parent / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return notes.get("unconverged") is True and wavefunction.is_file()
