"""MPI tasks larger than a node, on a real Slurm of nodes of two cores: four ranks sit on two nodes or do not start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from campaign.config import check_together, load_campaign, load_site
from campaign.pipeline import Options, run
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

pytestmark = [pytest.mark.slurm, pytest.mark.lammps]

POTENTIAL = "# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.010325 3.405\n"

#: Two walkers within a core, two over four ranks.
ARGON = """
campaign: argon
seed: 3
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample:
  - {method: npt, temperature: 60, walkers: 2, steps: 200, timestep: 0.004, every: 50, segment: 4}
  - {method: npt, temperature: 80, walkers: 3, ranks: 4, steps: 200, timestep: 0.004, every: 50, segment: 4}
"""


def with_whole_nodes(path: str) -> str:
    """Add an executor whose worker is two whole nodes to a site file."""
    document = yaml.safe_load(Path(path).read_text())
    cpu = document["executors"]["cpu"]
    wide = {**{key: cpu[key] for key in ("provider", "cores", "walltime")}, "options": dict(cpu["options"])}
    document["executors"]["cpu"] = {**cpu, "max_blocks": 1}
    document["executors"]["wide"] = {**wide, "nodes": 2, "nodes_per_worker": 2}
    Path(path).write_text(yaml.safe_dump(document))
    return path


def test_walkers_of_four_ranks_run_on_two_nodes_and_give_the_frames_of_an_inline_run(
    cluster: Any, tmp_path: Path, site: Callable[..., str]
) -> None:
    (tmp_path / "argon.lmp").write_text(POTENTIAL)
    (tmp_path / "file.yaml").write_text(ARGON)
    loaded = load_campaign(tmp_path / "file.yaml")
    machine = load_site(with_whole_nodes(site(walltime="00:05:00")))
    assert check_together(loaded, machine) == []
    assert run(loaded, load_site("local"), tmp_path / "inline", Options(inline=True))["state"] == "done"
    status = run(loaded, machine, tmp_path / "slurm", Options())
    assert (status["state"], status["failures"]) == ("done", [])
    stores = [Store(tmp_path / name / "run.zarr") for name in ("inline", "slurm")]
    done = [store.scan() for store in stores]
    assert done[0].keys() == done[1].keys()
    for task in done[0]:
        here, there = (store.arrays("sample", task) for store in stores)
        for name, array in here.items():
            np.testing.assert_array_equal(there[name], array, err_msg=name)
    lines = read_ledger(tmp_path / "slurm" / "ledger.jsonl")
    assert {r["state"] for r in lines} == {"done"}
    small = {r["pid"] for r in lines if r["name"].startswith("npt/")}
    large = {r["pid"] for r in lines if r["name"].startswith("npt1/")}
    assert len(large) == 1  # one worker of two nodes: its three tasks came one after another
    assert not small & large
