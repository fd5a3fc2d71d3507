"""What goes wrong on a real machine: LAMMPS that fails, a disk that fills."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, status_of, survey
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

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


STOPS = """
campaign: stops
seed: 2
max_failed: 0.9
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample:
  - {method: nvt, temperature: 80, steps: 400, timestep: 0.004, every: 20, segment: 10}
  - {method: npt, temperature: 300, pressure: -800, barostat: 0.3, walkers: 2, walkers_per_task: 2, steps: 4000,
     timestep: 0.004, every: 20, segment: 50}
  - {method: npt, temperature: 300, pressure: -800, barostat: 0.3, steps: 4000, timestep: 0.004, every: 20, segment: 50}
select: {method: random, size: 6}
label: {engine: lammps}
"""


@pytest.mark.lammps
def test_the_good_frames_of_a_walker_that_stops_are_kept_and_the_stop_is_never_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under tension the cell evaporates at half the time step as well: this is not the integrator's fault."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    (tmp_path / "stops.yaml").write_text(STOPS)
    (tmp_path / "argon.lmp").write_text("# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.010325 3.405\n")
    loaded = load_campaign(tmp_path / "stops.yaml")
    path = tmp_path / "run"
    status = run(loaded, load_site("local"), path, Options(inline=True))
    assert status["state"] == "partial"
    assert status["stages"]["sample"]["state"] == "partial"
    assert status["stages"]["sample"]["failed"] == 3
    causes = sorted(f["cause"].split(":")[0] for f in status["failures"])
    assert causes == ["Walker 0 stopped", "Walker 0 stopped", "Walker 1 stopped"]
    assert all("evaporated" in f["cause"] for f in status["failures"])
    flow, _ = survey(path)
    ready = [s for s in flow.board.shards if s.state == "ready"]
    frames = [Store(path / "run.zarr").frames("sample", s.task.id) for s in ready]
    assert sum(map(len, frames)) == status["frames"]
    assert 20 < status["frames"] < 20 + 3 * 200
    for block in frames:
        assert block.index.tolist() == list(range(len(block)))
        assert np.isfinite(block.energy).all()
    assert status["labelled"] == 6
    (path / "ledger.jsonl").unlink()  # from the store alone
    again = status_of(path)
    assert {**again, "seconds": 0} == {**status, "seconds": 0}
    rerun = run(loaded, load_site("local"), path, Options(inline=True))
    assert rerun["failures"] == status["failures"]
    assert (path / "report.html").exists()


PAIR = """
campaign: pair
seed: 3
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample:
  - {method: npt, temperature: [60, 90], walkers: 3, walkers_per_task: 2, steps: 6000, timestep: 0.004, every: 50,
     segment: 20}
"""

#: Two chains that share their bias through the store, walkers of one task over MPI, the window looked for.
MOMT = PAIR.replace(
    "method: npt, temperature: [60, 90],",
    "method: momt, temperature: 85, temperatures: [40, 250], pressure: 3000, learn: {height: 2},",
)


@pytest.mark.lammps
@pytest.mark.parametrize("text", [PAIR, MOMT], ids=["npt", "momt"])
def test_walkers_of_one_task_that_are_killed_go_on_to_bitwise_the_same_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    (tmp_path / "pair.yaml").write_text(text)
    (tmp_path / "argon.lmp").write_text("# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.010325 3.405\n")
    loaded = load_campaign(tmp_path / "pair.yaml")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(loaded, load_site("local"), whole, Options(inline=True))["state"] == "done"
    code = (
        "import sys; from pathlib import Path; from campaign.config import load_campaign, load_site; "
        "from campaign.pipeline import Options, run; "
        "run(load_campaign(Path(sys.argv[1])), load_site('local'), Path(sys.argv[2]), Options(inline=True))"
    )
    for shards in (1, 5):  # some time after so many of 12 are there
        driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pair.yaml"), str(cut)])
        deadline = time.time() + 60
        while len(list((cut / "run.zarr" / "pool").glob("*"))) < shards and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        driver.kill()
        driver.wait()
    assert not survey(cut)[0].complete()
    assert run(loaded, load_site("local"), cut, Options(inline=True))["state"] == "done"
    tasks = [s.task.id for s in survey(whole)[0].board.shards]
    assert len(tasks) == 12
    a, b = (Store(path / "run.zarr") for path in (whole, cut))
    for task in tasks:
        one, two = a.arrays("sample", task), b.arrays("sample", task)
        assert one.keys() == two.keys()
        assert ("order" in one) == (text == MOMT)
        for name in one:
            assert one[name].tobytes() == two[name].tobytes(), name


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
