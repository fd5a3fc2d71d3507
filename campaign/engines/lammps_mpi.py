"""A segment over several MPI ranks: ``run_job`` writes it down and launches this module, which each rank runs.

The launch command is the site's: ``LAUNCH python -m campaign.engines.lammps_mpi FOLDER``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines import process
from campaign.engines.lammps import Segment, Start, run_segment
from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import CampaignError, EngineError, Unphysical
from campaign.tasks import Context, Task

Array = npt.NDArray[Any]

#: Where the ranks leave the error that ended the segment.
FAILURE = "failure.json"


@dataclass(frozen=True)
class Job:
    """A segment with all that it needs, ready to be run here or by several MPI ranks."""

    potential: PotentialLines
    segment: Segment
    start: Start | bytes


def run_job(job: Job, ranks: int, context: Context, task: Task) -> tuple[dict[str, Array], bytes]:
    """Run a segment: in this process for one rank, else through the site's MPI launch command.

    Raises
    ------
    EngineError
        As ``run_segment``; or the launch command is missing or failed.
    """
    if ranks == 1:
        return run_segment(job.potential, job.segment, job.start)
    launch = context.launch.get("lammps")
    if not launch:
        raise EngineError("The site has no launch command for lammps: add launch.lammps to the site file.")
    folder = context.folder(task)
    _write_job(job, folder)
    for name in ("segment.npz", FAILURE):
        (folder / name).unlink(missing_ok=True)
    command = [word.replace("{ranks}", str(ranks)) for word in launch]
    try:
        process.run([*command, sys.executable, "-m", "campaign.engines.lammps_mpi", str(folder)], folder)
    except EngineError as error:  # the ranks' own words say more than the last line of the launcher
        raise _failure(folder) or error from error
    with np.load(folder / "segment.npz", allow_pickle=False) as found:
        arrays = dict(found)
    return arrays, arrays.pop("restart").tobytes()


def _failure(folder: Path) -> EngineError | None:
    """Return the error that the MPI ranks left in ``folder``, if they did."""
    if not (folder / FAILURE).exists():
        return None
    found = json.loads((folder / FAILURE).read_text())
    error = (Unphysical if found["unphysical"] else EngineError)(found["message"])
    if (folder / "segment.npz").exists():
        with np.load(folder / "segment.npz", allow_pickle=False) as frames:
            error.frames = dict(frames)
    return error


def _write_job(job: Job, folder: Path) -> None:
    """Write a segment's input: numbers as JSON, arrays as npz."""
    arrays: dict[str, Array] = {}
    spec: dict[str, Any] = {"potential": asdict(job.potential), "segment": asdict(job.segment)}
    if isinstance(job.start, bytes):
        arrays["restart"] = np.frombuffer(job.start, dtype="uint8")
    else:
        spec["start"] = {"seed": job.start.seed, "prepare": job.start.prepare}
        arrays |= {k: getattr(job.start, k) for k in ("numbers", "positions", "cell")}
    np.savez(folder / "start.npz", allow_pickle=False, **arrays)
    (folder / "job.json").write_text(json.dumps(spec))


def read_job(folder: Path) -> Job:
    """Read what ``run_job`` wrote for the MPI ranks."""
    spec = json.loads((folder / "job.json").read_text())
    with np.load(folder / "start.npz", allow_pickle=False) as arrays:
        start: Start | bytes
        if "restart" in arrays:
            start = arrays["restart"].tobytes()
        else:
            prepare = tuple((t, time, p) for t, time, p in spec["start"]["prepare"])
            start = Start(arrays["numbers"], arrays["positions"], arrays["cell"], spec["start"]["seed"], prepare)
    potential, segment = spec["potential"], spec["segment"]
    potential["elements"] = tuple(potential["elements"])
    segment["temperature"] = tuple(segment["temperature"])
    return Job(PotentialLines(**potential), Segment(**segment), start)


def main(folder: Path) -> None:
    """Run the segment in ``folder`` over all ranks; rank 0 writes ``segment.npz`` there."""
    from mpi4py import MPI

    job = read_job(folder)
    try:
        arrays, checkpoint = run_segment(job.potential, job.segment, job.start, comm=MPI.COMM_WORLD)
    except CampaignError as error:  # of one rank or of all: whoever is there writes the same words
        _leave(error, folder, MPI.COMM_WORLD.rank)
        MPI.COMM_WORLD.Abort(1)  # ends every rank, also one that waits for this one
    if MPI.COMM_WORLD.rank == 0:
        restart = np.frombuffer(checkpoint, dtype="uint8")
        np.savez(folder / "segment.npz", allow_pickle=False, **arrays, restart=restart)


def _leave(error: CampaignError, folder: Path, rank: int) -> None:
    """Write the error and the good frames where ``run_job`` finds them, complete or not at all."""
    aside = folder / f".failure-{rank}"
    if isinstance(error, EngineError) and error.frames is not None and rank == 0:
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **error.frames)
        aside.rename(folder / "segment.npz")
    aside.write_text(json.dumps({"message": str(error), "unphysical": isinstance(error, Unphysical)}))
    aside.rename(folder / FAILURE)
    print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
