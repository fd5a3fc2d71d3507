"""``campaign sites --test`` and ``campaign check --site`` on a real Slurm: what is wrong is found before it costs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from campaign.config import load_site
from campaign.errors import InputError
from campaign.sites import refused, try_site

pytestmark = pytest.mark.slurm

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.lammps
def test_a_site_that_works_is_described_by_its_workers(site: Callable[..., str], tmp_path: Path) -> None:
    launch = {"lammps": ["srun", "--mpi=pmi2", "--overlap", "--nodes=1", "--nodelist={node}", "-n", "{ranks}"]}
    lines = list(try_site(load_site(site(cores_per_worker=2, nodes=2, launch=launch)), 120.0, tmp_path / "runs"))
    assert lines[0].startswith("executor cpu: host ")
    assert ", Python 3." in lines[0]
    assert ", campaign " in lines[0]
    assert any(line.startswith(("  node n1: ", "  node n2: ")) for line in lines)
    assert "  the folder is shared and takes data" in lines
    assert any(line.startswith("  lammps ") and line.endswith(": 2 MPI ranks seen") for line in lines)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.lammps
def test_what_the_workers_have_not_is_named_with_its_remedy(site: Callable[..., str], tmp_path: Path) -> None:
    path = site(cores_per_worker=2, gpus=1, launch={"lammps": ["srun-of-nowhere", "-n", "{ranks}"]})
    with pytest.raises(InputError) as caught:
        list(try_site(load_site(path), 120.0, tmp_path))
    gpus, launch = caught.value.problems
    assert "executor cpu: the node is said to have 1 GPUs, and the worker sees none; ask for them" in gpus
    assert "launch.lammps: it does not start on the node: srun-of-nowhere was not found" in launch
    assert launch.endswith("Load its module under environment, or write its full path.")


@pytest.mark.parametrize(
    ("executor", "key", "words"),
    [
        ({"options": {"partition": "wrok"}}, "options.partition", ["got wrok; did you mean 'work'?"]),
        ({"options": {"partition": "short"}}, "walltime", ["got 02:00:00", "short=2:00"]),
        ({"nodes": 9}, "", ["got nodes: 9", "work*=4*2"]),
        ({"options": {"partition": "<partition>"}}, "options.partition", ["is not set", "campaign sites slurm > my-"]),
    ],
    ids=["partition", "time", "nodes", "not set"],
)
def test_what_slurm_would_refuse_is_found_without_asking_for_a_node(
    cluster: Any, site: Callable[..., str], tmp_path: Path, executor: dict[str, Any], key: str, words: list[str]
) -> None:
    path = site(**executor)
    (problem,) = refused(load_site(path))
    assert problem.startswith(f"site slurm: executors.cpu{'.' if key else ''}{key}: ")
    assert all(word in problem for word in words), problem
    shutil.copytree(Path(__file__).parents[2] / "templates", tmp_path / "in")
    command = ["campaign", "check", str(tmp_path / "in" / "fake.yaml"), "--site", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not cluster.jobs()


def test_the_drivers_job_is_looked_at_as_well(site: Callable[..., str]) -> None:
    driver = {"provider": "slurm", "walltime": "10:00:00", "options": {"partition": "short", "exclusive": False}}
    (problem,) = refused(load_site(site(driver=driver)))
    assert problem.startswith("site slurm: driver.walltime: Slurm refuses it (")
    driver["options"] = {"partition": "work", "exclusive": False}
    assert refused(load_site(site(driver=driver))) == []


def test_nodes_smaller_than_said_and_lines_of_environment_that_fail_are_told(
    site: Callable[..., str], tmp_path: Path
) -> None:
    path = Path(site(cores=99, launch={}))
    path.write_text(path.read_text().replace("environment: []", "environment: [cat /nowhere/at/all]"))
    lines: list[str] = []
    with pytest.raises(InputError) as caught:
        lines.extend(try_site(load_site(str(path)), 120.0, tmp_path))
    (problem,) = caught.value.problems
    assert "the node is said to have 99 cores, and a worker may use" in problem
    assert [line for line in lines if "its job said: " in line and line.endswith("No such file or directory")]
    path.write_text(path.read_text().replace("cat /nowhere/at/all", "exit 3").replace("02:00:00", "00:02:00"))
    with pytest.raises(InputError, match="its job ended before its workers started, and without a word"):
        list(try_site(load_site(str(path)), 120.0, tmp_path))


SCRIPTS = [path for path in sorted(GOLDEN.glob("*.sh")) if "#SBATCH" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_slurm_knows_every_option_of_the_sites_that_come_with_campaign(cluster: Any, path: Path) -> None:
    done = subprocess.run(["sbatch", "--test-only", str(path)], capture_output=True, text=True)
    assert done.returncode  # this cluster has no such partition
    assert "option" not in done.stderr


def test_a_site_that_slurm_takes_has_no_problems(site: Callable[..., str]) -> None:
    assert refused(load_site(site())) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide a folder from a node")
def test_a_folder_that_the_nodes_do_not_see_is_named(cluster: Any, site: Callable[..., str], tmp_path: Path) -> None:
    hidden = tmp_path / "home" / "runs"
    hidden.mkdir(parents=True)
    cluster.stop("n4")
    if not cluster.start_node("n4", hidden=hidden.parent):
        pytest.skip("this machine lets nobody mount")
    path = site(options={"partition": "work", "scheduler_options": "#SBATCH --nodelist=n4"}, walltime="00:01:00")
    with pytest.raises(InputError) as caught:
        list(try_site(load_site(path), 15.0, hidden))
    (problem,) = caught.value.problems
    assert "does not see this folder: name one that all nodes share with --root" in problem
