"""A segment over MPI ranks: ``run_job`` writes it down and launches this module, which each rank runs.

The launch command is the site's: ``LAUNCH python -m campaign.engines.lammps_mpi FOLDER``. One launch carries one walker
or several: the ranks split into a communicator a walker, and each walker's first rank leaves its frames in the folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines import process
from campaign.engines.dynamics import Segment, Start
from campaign.engines.lammps_potential import PotentialLines
from campaign.engines.walkers import Job, Stretch, Walker, run_driven, run_walker
from campaign.errors import CampaignError, EngineError, MachineFault, Unphysical
from campaign.interpreter import module_command
from campaign.tasks import Context, Task

Array = npt.NDArray[Any]

#: Where the ranks leave each walker's segment, and the error with which it ended them all.
RESULT, FAILURE = "segment-{}.npz", "failure-{}.json"

#: The worker's cores go to the ranks: with the worker's number of threads in each, seven times slower was measured.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def run_job(job: Job, context: Context, task: Task) -> dict[int, Stretch]:
    """Run a segment: in this process for one walker on one rank or with a model, else by the site's MPI launch command.

    Every try has a folder of its own, which only a failed one leaves behind. A walker of the last attempt that one of
    its ranks ends alone takes the whole launch with it: the others are then launched once more without it. Walkers that
    exchange nothing make the frames that they make in any company; all walkers of a job are tried with the same step.

    Returns
    -------
    dict
        What each walker left, by its number, in the order of the job.

    Raises
    ------
    EngineError
        As ``run_walker``: the calculation itself failed, in this process or by the word of the ranks.
    MachineFault
        The launch command is missing or failed, or the ranks ended without a word on the calculation.
    """
    if job.model:
        return run_driven(job)
    if job.ranks == 1 and len(job.walkers) == 1:
        return {job.walkers[0].number: run_walker(job, job.walkers[0])}
    launch = context.launch.get("lammps")
    if not launch:
        raise MachineFault("The site has no launch command for lammps: add launch.lammps to the site file.")
    found: dict[int, Stretch] = {}
    while len(found) < len(job.walkers):
        left = replace(job, walkers=tuple(w for w in job.walkers if w.number not in found))
        folder = Path(tempfile.mkdtemp(prefix=f"try-{context.sent}-{context.attempt}-", dir=context.folder(task)))
        found |= _launch(left, launch, folder)
    return {w.number: found[w.number] for w in job.walkers}


def _launch(job: Job, launch: list[str], folder: Path) -> dict[int, Stretch]:
    """Run a job over MPI ranks; return its walkers' segments, or those of the ones that ended it."""
    _write_job(job, folder)
    command = process.fill(launch, job.ranks * len(job.walkers))
    command += module_command("campaign.engines.lammps_mpi", str(folder))
    try:
        process.run(command, folder, environment=ONE_THREAD)
    except EngineError as error:  # of the launcher: only the ranks' own words tell of the calculation
        failures = _failures(folder)
        if not failures:
            raise MachineFault(f"The MPI ranks ended without a result: {error}") from error
        fault = next((e for e in failures.values() if not isinstance(e, EngineError)), None)
        if fault is not None or not job.last:
            raise (fault or next(iter(failures.values()))) from error
        return {
            number: Stretch(cause.frames or {}, b"", cause=str(cause))
            for number, cause in failures.items()
            if isinstance(cause, EngineError)
        }
    missing = [w.number for w in job.walkers if not (folder / RESULT.format(w.number)).exists()]
    if missing:
        raise MachineFault(f"The MPI ranks ended well and left no result ({folder}); check launch.lammps of the site.")
    found = {w.number: _read_result(folder, w.number) for w in job.walkers}
    shutil.rmtree(folder, ignore_errors=True)  # its content is in hand
    return found


def _failures(folder: Path) -> dict[int, CampaignError]:
    """Return the errors that the MPI ranks left in ``folder``, by walker."""
    kinds: dict[str, type[CampaignError]] = {k.__name__: k for k in (EngineError, Unphysical)}
    errors: dict[int, CampaignError] = {}
    for path in folder.glob(FAILURE.format("*")):
        found = json.loads(path.read_text())
        error = kinds.get(found["kind"], MachineFault)(found["message"])
        number = int(found["walker"])
        if isinstance(error, EngineError) and (folder / RESULT.format(number)).exists():
            error.frames = dict(_read_result(folder, number).arrays)
        errors[number] = error
    return dict(sorted(errors.items()))


def _write_job(job: Job, folder: Path) -> None:
    """Write a segment's input: numbers as JSON, arrays as npz."""
    arrays: dict[str, Array] = {f"job/{name}": value for name, value in job.arrays.items()}
    walkers = []
    for walker in job.walkers:
        spec: dict[str, Any] = {"number": walker.number, "segment": asdict(walker.segment)}
        arrays |= {f"{walker.number}/extra/{name}": value for name, value in walker.extra.items()}
        if isinstance(walker.start, bytes):
            arrays[f"{walker.number}/restart"] = np.frombuffer(walker.start, dtype="uint8")
        else:
            spec["start"] = {"seed": walker.start.seed, "prepare": walker.start.prepare}
            for name in ("numbers", "positions", "cell"):
                arrays[f"{walker.number}/{name}"] = getattr(walker.start, name)
        walkers.append(spec)
    np.savez(folder / "start.npz", allow_pickle=False, **arrays)
    whole = {"potential": asdict(job.potential), "ranks": job.ranks, "last": job.last, "bias": job.bias}
    (folder / "job.json").write_text(json.dumps({**whole, "walkers": walkers}))


def read_job(folder: Path, place: int | None = None) -> Job:
    """Read what ``run_job`` wrote for the MPI ranks: all walkers, or the one at ``place`` alone."""
    spec = json.loads((folder / "job.json").read_text())
    chosen = spec["walkers"] if place is None else [spec["walkers"][place]]
    with np.load(folder / "start.npz", allow_pickle=False) as arrays:
        walkers = tuple(_read_walker(w, arrays) for w in chosen)
        shared = {name.partition("/")[2]: arrays[name] for name in arrays if name.startswith("job/")}
    potential = {**spec["potential"], "elements": tuple(spec["potential"]["elements"])}
    return Job(
        PotentialLines(**potential),
        walkers,
        spec["ranks"],
        spec["last"],
        spec["bias"],
        shared,
    )


def _read_walker(spec: dict[str, Any], arrays: Any) -> Walker:
    number, segment = spec["number"], spec["segment"]
    for name in ("temperature", "heights"):
        segment[name] = None if segment[name] is None else tuple(segment[name])
    start: Start | bytes
    if f"{number}/restart" in arrays:
        start = arrays[f"{number}/restart"].tobytes()
    else:
        prepare = tuple((t, time, p) for t, time, p in spec["start"]["prepare"])
        numbers, positions, cell = (arrays[f"{number}/{name}"] for name in ("numbers", "positions", "cell"))
        start = Start(numbers, positions, cell, spec["start"]["seed"], prepare)
    extra = {name.split("/", 2)[2]: arrays[name] for name in arrays if name.startswith(f"{number}/extra/")}
    return Walker(number, Segment(**segment), start, extra)


def main(folder: Path) -> None:
    """Run this rank's walker of the job in ``folder``; its first rank writes ``segment-NUMBER.npz`` there."""
    from mpi4py import MPI

    world, finished, number, ranks = MPI.COMM_WORLD, False, -1, 1
    try:
        spec = json.loads((folder / "job.json").read_text())
        ranks, count = spec["ranks"], len(spec["walkers"])
        if world.size != ranks * count:
            raise MachineFault(
                f"{world.size} MPI ranks were started instead of {ranks * count}: correct launch.lammps of the site."
            )
        place = world.rank // ranks
        number = int(spec["walkers"][place]["number"])
        job = read_job(folder, place)
        comm = world.Split(place, world.rank)
        exchange = world.Split(world.rank % ranks, world.rank)  # the same rank of every walker
        found = run_walker(job, job.walkers[0], comm, exchange)
        if comm.rank == 0:
            _save(folder, number, found, world.rank)
        finished = True
    except Exception as error:  # of one rank or of all: whoever is there writes it
        traceback.print_exc()
        if isinstance(error, CampaignError | OSError | MemoryError):
            _leave(error, folder, number, world.rank, ranks)
    finally:
        if not finished:
            sys.stderr.flush()
            world.Abort(1)  # ends every rank, also one that waits for this one


def _save(folder: Path, number: int, found: Stretch, rank: int) -> None:
    """Write a walker's segment, complete or not at all."""
    arrays = {f"frames/{name}": value for name, value in found.arrays.items()}
    arrays |= {f"extra/{name}": np.asarray(value) for name, value in found.extra.items()}
    arrays["restart"] = np.frombuffer(found.checkpoint, dtype="uint8")
    arrays["cause"] = np.frombuffer(found.cause.encode(), dtype="uint8")
    aside = folder / f".segment-{rank}"
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    aside.rename(folder / RESULT.format(number))


def _read_result(folder: Path, number: int) -> Stretch:
    with np.load(folder / RESULT.format(number), allow_pickle=False) as found:
        parts: dict[str, dict[str, Array]] = {"frames": {}, "extra": {}}
        for key in found:
            part, _, name = key.partition("/")
            if part in parts:
                parts[part][name] = found[key]
        cause = found["cause"].tobytes().decode()
        return Stretch(parts["frames"], found["restart"].tobytes(), parts["extra"], cause)


def _leave(error: Exception, folder: Path, number: int, rank: int, ranks: int) -> None:
    """Write the error and the good frames where ``run_job`` finds them, complete or not at all."""
    if isinstance(error, EngineError) and error.frames is not None and (error.alone or rank % ranks == 0):
        _save(folder, number, Stretch(error.frames, b"", cause=str(error)), rank)
    message = str(error) if isinstance(error, CampaignError) else f"{type(error).__name__}: {error}"
    aside = folder / f".failure-{rank}"
    aside.write_text(json.dumps({"message": message, "kind": type(error).__name__, "walker": number}))
    aside.rename(folder / FAILURE.format(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
