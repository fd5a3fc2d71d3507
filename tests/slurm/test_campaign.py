"""Campaigns through ``site_configs/slurm.yaml`` on a real Slurm: as it is, and with a node and a job lost half-way."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, survey
from campaign.report.figures import utilisation
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

pytestmark = pytest.mark.slurm

POTENTIAL = "# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.010325 3.405\n"

#: Walkers over two ranks each, started by the site's srun inside the job; labels by the same potential.
ARGON = """
campaign: argon
seed: 3
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample: [{method: npt, temperature: [60, 90], walkers: 8, ranks: 2, steps: 400, timestep: 0.004, every: 50, segment: 8}]
select: {method: random, size: 6}
label: {engine: lammps}
"""

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 8, frames: 80, segment: 10}]
select: {method: random, size: 16}
label: {engine: fake}
"""


def found(path: Path) -> tuple[dict[str, list[str]], dict[str, bytes], dict[str, bytes]]:
    """Return what was chosen, and the bytes of every pool shard and label."""
    flow, _ = survey(path)
    store = Store(path / "run.zarr")
    done = store.scan()
    content = {
        stage: {
            task: b"".join(np.asarray(a).tobytes() for _, a in sorted(store.arrays(stage, task).items()))
            for task, record in done.items()
            if record["stage"] == stage
        }
        for stage in ("sample", "label")
    }
    return {name: s.chosen for name, s in flow.board.sets.items()}, content["sample"], content["label"]


def both(tmp_path: Path, text: str, site_file: str) -> Path:
    """Run a campaign inline and on Slurm; check that both end with the same bytes and return the second's folder."""
    (tmp_path / "argon.lmp").write_text(POTENTIAL)
    (tmp_path / "file.yaml").write_text(text)
    loaded = load_campaign(tmp_path / "file.yaml")
    inline, slurm = tmp_path / "inline", tmp_path / "slurm"
    assert run(loaded, load_site("local"), inline, Options(inline=True))["state"] == "done"
    status = run(loaded, load_site(site_file), slurm, Options())
    assert (status["state"], status["failures"]) == ("done", [])
    assert found(slurm) == found(inline)
    return slurm


@pytest.mark.lammps
def test_walkers_of_two_ranks_inside_jobs_give_the_frames_and_labels_of_an_inline_run(
    cluster: Any, tmp_path: Path, site: Callable[..., str]
) -> None:
    path = both(tmp_path, ARGON, site(cores_per_worker=2))
    sampled = [r for r in read_ledger(path / "ledger.jsonl") if r["stage"] == "sample"]
    assert {r["state"] for r in sampled} == {"done"}
    lanes: dict[int, list[tuple[float, float]]] = {}
    for record in sorted(sampled, key=lambda r: r["start"]):
        lanes.setdefault(record["pid"], []).append((record["start"], record["seconds"]))
    assert len(sampled) == 8
    assert len(lanes) == 4  # a worker on each of four nodes of two cores: eight tasks of two ranks, four at a time
    for lane in lanes.values():
        assert all(a + seconds <= b for (a, seconds), (b, _) in pairwise(lane))
    found = utilisation(sampled)
    assert found is not None
    print(f"packing: {found[0]} workers at work {100 * found[1]:.0f}% of the time")


#: What makes the quickstart short: an eighth of its sampling, hardly any training.
SHORT = {
    "steps: 25600 ": "steps: 3200 ",
    "segment: 64 ": "segment: 8 ",
    "{temperature: 1800, time: 4}": "{temperature: 1800, time: 0.5}",
    "{temperature: 1100, time: 2}": "{temperature: 1100, time: 0.5}",
    "features: 64, interactions: 3": "features: 16, interactions: 1",
    "epochs: 200": "epochs: 2",
    "held_out: 200": "held_out: 20",
    "time: 5}": "time: 0.5}",
    "threshold: 0.1}": "threshold: 5.0}",
}


@pytest.mark.lammps
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_quickstart_ends_with_the_same_selection_and_labels_as_here_though_a_node_and_a_job_are_lost(
    cluster: Any, tmp_path: Path, site: Callable[..., str], short: bool
) -> None:
    shutil.copytree(Path(__file__).parents[2] / "templates", tmp_path / "in")
    file = tmp_path / "in" / "quickstart.yaml"
    if short:
        text = file.read_text()
        for long, brief in SHORT.items():
            assert text.count(long) == 1
            text = text.replace(long, brief)
        file.write_text(text)
    loaded = load_campaign(file)
    here, slurm = tmp_path / "here", tmp_path / "slurm"
    run(loaded, load_site("local"), here, Options(until="label", inline=short))
    half = sum(r["stage"] == "sample" for r in read_ledger(here / "ledger.jsonl")) // 2
    lost: list[str] = []

    def trouble() -> None:
        cluster.wait_for(lambda: len(read_ledger(slurm / "ledger.jsonl")) >= half, "half of the segments", 600)
        (first, _), (_, node) = [(j, n) for j, (state, n) in cluster.jobs().items() if state == "RUNNING"][:2]
        cluster.call("scancel", first)
        cluster.kill_node(node)
        lost.append(node)

    thread = threading.Thread(target=trouble)
    thread.start()
    status = run(loaded, load_site(site()), slurm, Options())
    thread.join()
    assert lost
    assert (status["state"], status["failures"]) == ("done", [])
    assert found(slurm) == found(here)
    lines = read_ledger(slurm / "ledger.jsonl")
    lines_lost = [r for r in lines if r["state"] == "failed"]
    assert lines_lost, "nothing was lost: the test does not test"
    assert all(r["transient"] for r in lines_lost)
    assert set(Counter(r["task"] for r in lines if r["state"] == "done").values()) == {1}


def test_a_campaign_waits_for_a_controller_that_is_down(cluster: Any, tmp_path: Path, site: Callable[..., str]) -> None:
    """Submissions are refused for a while: they are made again, and no task is the worse for it."""
    cluster.stop("slurmctld")
    timer = threading.Timer(20.0, cluster.start_controller)
    timer.start()
    path = both(tmp_path, TOY, site(walltime="00:02:00"))
    timer.join()
    assert {r["state"] for r in read_ledger(path / "ledger.jsonl")} == {"done"}
