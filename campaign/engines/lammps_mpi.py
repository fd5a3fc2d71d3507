"""What each MPI rank of a sampling task runs: ``LAUNCH python -m campaign.engines.lammps_mpi FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from campaign.engines.lammps import FAILURE, read_job, run_segment
from campaign.errors import CampaignError, EngineError, Unphysical


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
