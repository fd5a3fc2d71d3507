"""A segment over several MPI ranks: ``run_job`` writes it down and launches this module, which each rank runs.

The launch command is the site's: ``LAUNCH python -m campaign.engines.lammps_mpi FOLDER``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines import process
from campaign.engines.lammps import Segment, Start, run_segment
from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import CampaignError, EngineError, MachineFault, Unphysical
from campaign.tasks import Context, Task

Array = npt.NDArray[Any]

#: Where the ranks leave the segment, or its good frames, and the error that ended it.
RESULT, FAILURE = "segment.npz", "failure.json"

#: The worker's cores go to the ranks: with the worker's number of threads in each, seven times slower was measured.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Job:
    """A segment with all that it needs, ready to be run here or by several MPI ranks."""

    potential: PotentialLines
    segment: Segment
    start: Start | bytes


def run_job(job: Job, ranks: int, context: Context, task: Task) -> tuple[dict[str, Array], bytes]:
    """Run a segment: in this process for one rank, else through the site's MPI launch command.

    Every try has a folder of its own, which only a failed one leaves behind.

    Raises
    ------
    EngineError
        As ``run_segment``: the calculation itself failed, in this process or by the word of the ranks.
    MachineFault
        The launch command is missing or failed, or the ranks ended without a word on the calculation.
    """
    if ranks == 1:
        return run_segment(job.potential, job.segment, job.start)
    launch = context.launch.get("lammps")
    if not launch:
        raise MachineFault("The site has no launch command for lammps: add launch.lammps to the site file.")
    folder = Path(tempfile.mkdtemp(prefix=f"try-{context.sent}-{context.attempt}-", dir=context.folder(task)))
    _write_job(job, folder)
    command = [word.replace("{ranks}", str(ranks)) for word in launch]
    command += [sys.executable, "-m", "campaign.engines.lammps_mpi", str(folder)]
    try:
        process.run(command, folder, environment=ONE_THREAD)
    except EngineError as error:  # of the launcher: only the ranks' own words tell of the calculation
        raise _failure(folder) or MachineFault(f"The MPI ranks ended without a result: {error}") from error
    if not (folder / RESULT).exists():
        raise MachineFault(f"The MPI ranks ended well and left no result ({folder}); check launch.lammps of the site.")
    with np.load(folder / RESULT, allow_pickle=False) as found:
        arrays = dict(found)
    shutil.rmtree(folder, ignore_errors=True)  # its content is in hand
    return arrays, arrays.pop("restart").tobytes()


def _failure(folder: Path) -> CampaignError | None:
    """Return the error that the MPI ranks left in ``folder``, if they did."""
    if not (folder / FAILURE).exists():
        return None
    found = json.loads((folder / FAILURE).read_text())
    kinds: dict[str, type[CampaignError]] = {k.__name__: k for k in (EngineError, Unphysical)}
    error = kinds.get(found["kind"], MachineFault)(found["message"])
    if isinstance(error, EngineError) and (folder / RESULT).exists():
        with np.load(folder / RESULT, allow_pickle=False) as frames:
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

    rank, finished = MPI.COMM_WORLD.rank, False
    try:
        job = read_job(folder)
        arrays, checkpoint = run_segment(job.potential, job.segment, job.start, comm=MPI.COMM_WORLD)
        if rank == 0:
            _save(folder, arrays | {"restart": np.frombuffer(checkpoint, dtype="uint8")}, rank)
        finished = True
    except (CampaignError, OSError, MemoryError) as error:  # of one rank or of all: whoever is there writes it
        _leave(error, folder, rank)
    finally:
        if not finished:
            traceback.print_exc()
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(1)  # ends every rank, also one that waits for this one


def _save(folder: Path, arrays: dict[str, Array], rank: int) -> None:
    """Write ``segment.npz``, complete or not at all."""
    aside = folder / f".segment-{rank}"
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    aside.rename(folder / RESULT)


def _leave(error: Exception, folder: Path, rank: int) -> None:
    """Write the error and the good frames where ``run_job`` finds them, complete or not at all."""
    if isinstance(error, EngineError) and error.frames is not None and rank == 0:
        _save(folder, error.frames, rank)
    message = str(error) if isinstance(error, CampaignError) else f"{type(error).__name__}: {error}"
    aside = folder / f".failure-{rank}"
    aside.write_text(json.dumps({"message": message, "kind": type(error).__name__}))
    aside.rename(folder / FAILURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
