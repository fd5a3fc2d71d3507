"""Walkers over MPI ranks that ``srun --mpi=pmi2`` starts on two nodes, and ``mpiexec`` on one: the same frames."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk

from campaign.config import load_site
from campaign.engines.dynamics import Segment, Start
from campaign.engines.lammps_mpi import run_job
from campaign.engines.lammps_potential import PotentialLines
from campaign.engines.walkers import Job, Walker
from campaign.tasks import Context, Task

pytestmark = [pytest.mark.slurm, pytest.mark.lammps]

LJ = PotentialLines(("Ar",), "pair_style lj/cut 7.0\npair_coeff 1 1 0.010325 3.405\npair_modify shift yes")


def walker(number: int) -> Walker:
    atoms = bulk("Ar", "fcc", a=5.5, cubic=True) * (2, 2, 2)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), number)
    return Walker(number, Segment(6, 20, 0, 0.004, (60.0, 90.0), pressure=1.0), start)


def test_two_walkers_of_two_ranks_give_the_same_frames_by_srun_and_by_mpiexec(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    job = Job(LJ, (walker(0), walker(1)), ranks=2)
    found = {}
    for name, launch in {
        "srun": ["srun", "--mpi=pmi2", "--nodes=2", "-n", "{ranks}"],
        "mpiexec": ["mpiexec", "-n", "{ranks}"],
    }.items():
        (tmp_path / name).mkdir()
        context = Context(tmp_path / name, {"lammps": launch})
        found[name] = run_job(job, context, Task("sample", "x", {"a": 1}))
    assert list(found["srun"]) == list(found["mpiexec"]) == [0, 1]
    for number, stretch in found["srun"].items():
        assert not stretch.cause
        for name, array in found["mpiexec"][number].arrays.items():
            np.testing.assert_array_equal(stretch.arrays[name], array, err_msg=name)
        assert stretch.checkpoint == found["mpiexec"][number].checkpoint
    assert (found["srun"][0].arrays["positions"] != found["srun"][1].arrays["positions"]).any()


#: What a worker does: it starts a program with the site's launch line, which says how many cores its step may use.
WORKER = """
import json, sys
from pathlib import Path
from campaign.engines import process
words = process.fill(json.loads(sys.argv[1]), 1)
print("cores", process.run([*words, "printenv", "SLURM_CPUS_ON_NODE"], Path(sys.argv[2])))
"""


@pytest.mark.parametrize("start", [[], ["--cpus-per-task=2"]], ids=["as sites have it", "an option of the old files"])
def test_a_task_may_use_all_cores_of_its_node(cluster: Any, tmp_path: Path, start: list[str]) -> None:
    """``--cpus-per-task``, given or inherited, implies ``--exact``: each task would be given the same first cores."""
    launch = json.dumps(load_site("slurm").launch["lammps"])
    command = [
        "srun",
        "--nodes=1",
        "--ntasks=1",
        "--exclusive",
        "--cpu-bind=none",
        *start,
        sys.executable,
        "-c",
        WORKER,
    ]
    done = subprocess.run([*command, launch, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cores", str(cluster.cores)]
