"""A driver that is killed, or told to end again and again: what becomes of the jobs that it asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 3, frames: 10, segment: 5}]
select: {method: random, size: 8}
label: {engine: fake}
"""


def start(folder: Path, site: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--site", site, "--root", "runs"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def test_jobs_that_wait_in_the_queue_end_with_their_driver_or_with_the_next_one(
    cluster: Any, tmp_path: Path, site: Callable[..., str]
) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    path = site(max_blocks=2, options={"partition": "work", "scheduler_options": "#SBATCH --begin=now+1hour"})
    killed = start(tmp_path, path)
    cluster.wait_for(lambda: len(cluster.jobs()) == 2, "two jobs in the queue", 120)
    killed.kill()
    killed.wait()
    left = set(cluster.jobs())
    assert len(left) == 2  # nobody is there to cancel them
    driver = start(tmp_path, path)
    cluster.wait_for(lambda: len(set(cluster.jobs()) - left) == 2, "two other jobs", 120)
    assert not left & set(cluster.jobs())
    for _ in range(3):  # as batch systems and people do
        driver.terminate()
        try:
            driver.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    assert driver.wait(120) == 130
    assert not cluster.jobs()
