"""Tasks of whole nodes through Parsl's real MPIExecutor: two nodes that are this machine twice (Slurm: tests/slurm)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from campaign.config import load_site
from campaign.config.site_file import Site
from campaign.engines import process
from campaign.runtime.parsl import ParslRunner, _scheduling
from campaign.runtime.submission import submission
from campaign.sites import try_site
from campaign.tasks import TOKEN_VARIABLE, Context, Record, Task
from campaign.worker import run_task

#: MPICH's own launcher, with a process manager for each of the two.
LAUNCH = ["mpiexec", "-launcher", "fork", "-rmk", "user", "-hosts", "{nodes}", "-ppn", "{ranks_per_node}"]

WIDE = """
site: s
executors:
  cpu: {provider: slurm, cores: 64, cores_per_worker: 4}
  wide: {provider: slurm, nodes: 4, nodes_per_worker: 2, cores: 64, max_blocks: 3, options: {partition: long}}
  wider: {provider: slurm, nodes: 8, nodes_per_worker: 8, cores: 64}
stages: {default: cpu, validate: wide}
launch:
  lammps: [srun, "--nodes={node_count}", "--nodelist={nodes}", -n, "{ranks}"]
"""


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site with a worker of two nodes; the site file's own check refuses such a thing on one machine."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the runner changes both; put them back afterwards
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    (tmp_path / "nodes").write_text("localhost\n127.0.0.1\n")
    wide: dict[str, Any] = {"provider": "local", "nodes": 2, "nodes_per_worker": 2, "cores": 1}
    return Site.model_validate(
        {
            "site": "two",
            "executors": {"cpu": {"provider": "local", "workers": 1}, "wide": wide},
            "stages": {"default": "cpu"},
            "launch": {"lammps": [*LAUNCH, "-n", "{ranks}"]},
            "environment": [f"export PBS_NODEFILE={tmp_path / 'nodes'}"],
        }
    )


def site(folder: Path, text: str = WIDE) -> Site:
    (folder / "s.yaml").write_text(text)
    return load_site(str(folder / "s.yaml"))


@pytest.mark.lammps
def test_the_ranks_of_a_task_sit_on_both_nodes_of_its_worker(two_nodes: Site, tmp_path: Path) -> None:
    alone = two_nodes.model_copy(update={"executors": {"wide": two_nodes.executors["wide"]}})
    lines = list(try_site(alone, 120.0, tmp_path / "runs"))
    assert any(line.startswith("  lammps ") and line.endswith(": 2 MPI ranks seen") for line in lines), lines


def test_each_task_goes_where_its_ranks_fit(two_nodes: Site, tmp_path: Path) -> None:
    """And five tasks of two nodes follow one another on a block that has no room for more."""
    runner = ParslRunner(run_task, two_nodes, tmp_path / "logs", "token")
    pids: dict[int, set[int]] = {1: set(), 2: set()}
    try:
        for k in range(10):
            ranks = 1 + k % 2
            runner.submit(Task("noop", str(ranks), {"k": k}, extra={"ranks": ranks}), Context(tmp_path))
        records: list[Record] = []
        end = time.time() + 90
        while len(records) < 10 and time.time() < end:
            records += runner.wait(1.0)
        assert [r["state"] for r in records] == ["done"] * 10
        for record in records:
            pids[int(record["name"])].add(record["pid"])
        assert len(pids[1]) == len(pids[2]) == 1
        assert pids[1] != pids[2]
    finally:
        runner.close()


def test_the_smallest_worker_that_a_task_fits_takes_it(tmp_path: Path) -> None:
    found = site(tmp_path)
    placed = {ranks: found.place("sample", ranks) for ranks in (1, 4, 5, 64, 128, 129, 512, 513)}
    assert placed == {1: "cpu", 4: "cpu", 5: "wide", 64: "wide", 128: "wide", 129: "wider", 512: "wider", 513: "cpu"}
    assert found.place("validate", 1) == "wide"
    assert found.place("label", 3, threads=64) == "wider"  # three ranks of 64 threads are no two nodes' work
    assert (found.workers_per_block("cpu"), found.workers_per_block("wide")) == (16, 2)


def test_parsl_is_told_of_whole_nodes_and_reckons_in_workers(tmp_path: Path) -> None:
    from parsl.executors import MPIExecutor

    from campaign.runtime.parsl import executor

    assert _scheduling(Task("sample", "x", {}, extra={"ranks": 96}), 2) == {
        "parsl_resource_specification": {"num_nodes": 2, "ranks_per_node": 48, "num_ranks": 96}
    }
    assert _scheduling(Task("sample", "x", {}, priority=3), 0) == {"parsl_resource_specification": {"priority": 3}}
    made = executor(site(tmp_path), "wide", "token")
    assert isinstance(made, MPIExecutor)
    assert made.workers_per_node * made.provider.nodes_per_block == 2
    assert (made.provider.init_blocks, made.provider.max_blocks) == (0, 3)


def test_a_block_of_whole_nodes_has_its_workers_on_the_first_node(tmp_path: Path) -> None:
    text = submission(site(tmp_path), "wide")
    assert "#SBATCH --nodes=4" in text
    assert "--enable_mpi_mode " in text
    assert "--mpi-launcher=srun" in text
    assert "--max_workers_per_node=2" in text
    assert "\nsrun" not in text


@pytest.mark.parametrize(
    ("nodes", "ranks", "line"),
    [("n1,n2", 4, "--nodes=2 n1,n2 4 2"), ("n1,n2", 1, "--nodes=1 n1 1 1"), (None, 4, "--nodes=1 HERE 4 4")],
)
def test_a_launch_command_is_filled_with_the_nodes_of_the_task(
    monkeypatch: pytest.MonkeyPatch, nodes: str | None, ranks: int, line: str
) -> None:
    monkeypatch.delenv("PARSL_MPI_NODELIST", raising=False)
    if nodes:
        monkeypatch.setenv("PARSL_MPI_NODELIST", nodes)
    words = ["--nodes={node_count}", "{nodes}", "{ranks}", "{ranks_per_node}"]
    assert " ".join(process.fill(words, ranks)) == line.replace("HERE", process.node())
