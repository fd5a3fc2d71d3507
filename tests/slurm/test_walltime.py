"""Campaigns that are longer than their allocations, and a driver in a batch job of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, status_of
from campaign.store.ledger import read_ledger

pytestmark = pytest.mark.slurm

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 8, frames: FRAMES, segment: 5, delay: 4.0}]
select: {method: random, size: 8}
label: {engine: fake}
"""


def submitted(run: Path) -> int:
    """Return how many jobs a run's driver asked for."""
    return len({p.name.removesuffix(".stdout") for p in run.glob("logs/*/submit_scripts/*.stdout")})


@pytest.mark.slow
def test_a_campaign_that_is_longer_than_its_allocations_finishes_in_as_many_as_it_takes(
    cluster: Any, tmp_path: Path, site: Callable[..., str]
) -> None:
    """40 tasks of 4 s on the two workers of one block of a minute at a time: 80 s of work, so two or three blocks."""
    (tmp_path / "toy.yaml").write_text(TOY.replace("FRAMES", "25"))
    machine = load_site(site(max_blocks=1, walltime="00:01:00"))
    path = tmp_path / "run"
    status = run(load_campaign(tmp_path / "toy.yaml"), machine, path, Options())
    assert (status["state"], status["failures"]) == ("done", [])
    assert 2 <= submitted(path) <= 4
    lines = read_ledger(path / "ledger.jsonl")
    done = Counter(r["task"] for r in lines if r["state"] == "done")
    assert set(done.values()) == {1}
    lost = sum(r["seconds"] for r in lines if r["state"] != "done")
    assert lost < 0.1 * sum(r["seconds"] for r in lines if r["state"] == "done")


@pytest.mark.slow
def test_a_detached_driver_runs_as_a_job_and_goes_on_in_another(
    cluster: Any, tmp_path: Path, site: Callable[..., str]
) -> None:
    """The driver's first job has 90 s for a campaign that takes longer; the second one ends it."""
    (tmp_path / "toy.yaml").write_text(TOY.replace("FRAMES", "35"))
    path = site(
        max_blocks=1, driver={"provider": "slurm", "cores": 1, "walltime": "00:02:00", "options": {"exclusive": False}}
    )
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--site", path, "--root", "runs", "--detach"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "drives the campaign in" in done.stderr
    run = tmp_path / "runs" / "toy"
    cluster.wait_for(lambda: (run / "campaign.yaml").exists() and status_of(run)["state"] == "done", "end", 600)
    scripts = list((run / "logs" / "driver").glob("*.stdout"))
    assert scripts
    assert "Submitted batch job" in "".join(p.read_text() for p in scripts)
    assert json.dumps(status_of(run)["failures"]) == "[]"


def test_a_site_without_a_batch_system_detaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY.replace("FRAMES", "5"))
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--detach"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "site local has no batch system" in done.stderr
    assert not (tmp_path / "runs").exists()
