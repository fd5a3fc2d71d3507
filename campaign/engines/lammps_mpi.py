"""What each MPI rank of a sampling task runs: ``LAUNCH python -m campaign.engines.lammps_mpi FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from campaign.engines.lammps import read_job, run_segment
from campaign.errors import CampaignError


def main(folder: Path) -> int:
    """Run the segment in ``folder`` over all ranks; rank 0 writes ``segment.npz`` there."""
    from mpi4py import MPI

    job = read_job(folder)
    try:
        arrays, checkpoint = run_segment(job.potential, job.segment, job.start, comm=MPI.COMM_WORLD)
    except CampaignError as error:
        print(error, file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)
        return 1
    if MPI.COMM_WORLD.rank == 0:
        np.savez(folder / "segment.npz", **arrays, restart=np.frombuffer(checkpoint, dtype="uint8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
