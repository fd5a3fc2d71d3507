"""What goes wrong on a real machine: LAMMPS that fails, a disk that fills."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, status_of, survey
from campaign.store.ledger import read_ledger

ARGON = """
campaign: argon
seed: 2
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample:
  - {method: nvt, temperature: 80, walkers: 2, steps: 800, timestep: 0.004, every: 20, segment: 10}
  - {method: nvt, temperature: 900000, walkers: 1, steps: 800, timestep: 0.02, every: 20, segment: 10}
select: {method: random, size: 6}
label: {engine: lammps}
"""


@pytest.mark.lammps
def test_a_walker_that_lammps_loses_is_tried_at_half_the_step_then_set_aside(tmp_path: Path) -> None:
    (tmp_path / "argon.yaml").write_text(ARGON)
    (tmp_path / "argon.lmp").write_text("# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.010325 3.405\n")
    loaded = load_campaign(tmp_path / "argon.yaml")
    status = run(loaded, load_site("local"), tmp_path / "run", Options(inline=True))
    assert status["state"] == "partial"
    assert status["frames"] == 80  # both good walkers, whole
    assert status["stages"]["label"]["state"] == "done"
    (failure,) = status["failures"]
    assert failure["stage"] == "sample"
    attempts = [r for r in read_ledger(tmp_path / "run" / "ledger.jsonl") if r["state"] in ("failed", "quarantined")]
    assert [(r["attempt"], r["state"]) for r in attempts] == [(0, "failed"), (1, "quarantined")]
    assert "LAMMPS" in failure["cause"] or "step" in failure["cause"]
    again = run(loaded, load_site("local"), tmp_path / "run", Options(inline=True))
    assert {**again, "seconds": 0} == {**status, "seconds": 0}


TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [3, 3, 3]}
sample: [{method: fake, walkers: 2, frames: 300, segment: 50}]
select: {method: random, size: 8}
label: {engine: fake}
train: {model: fake}
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_cleanly_and_more_space_continues(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--inline", "--root"]
    full = subprocess.run([*command, str(small_disk)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert full.returncode == 1, full.stderr
    assert "No space is left" in full.stderr
    assert "Traceback" not in full.stderr
    finished = {r["task"] for r in read_ledger(small_disk / "toy" / "ledger.jsonl") if r["state"] == "done"}
    assert finished
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = subprocess.run([*command, str(small_disk)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    once = [r["task"] for r in read_ledger(small_disk / "toy" / "ledger.jsonl") if r["state"] == "done"]
    assert len(once) == len(set(once))
    whole = subprocess.run([*command, str(tmp_path / "whole")], cwd=tmp_path, capture_output=True, timeout=120)
    assert whole.returncode == 0
    chosen = [survey(r / "toy")[0].board.sets["random"].chosen for r in (small_disk, tmp_path / "whole")]
    assert chosen[0] == chosen[1]
    assert status_of(small_disk / "toy")["state"] == "done"
