"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from campaign import __version__

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 2, frames: 20, segment: 10}]
select: {method: random, size: 4}
label: {engine: fake}
train: {model: fake}
validate: [{method: errors, held_out: 5}]
"""


def campaign(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``campaign WORDS`` and return what came out."""
    command = [sys.executable, "-m", "campaign.cli", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


def test_a_run_and_everything_one_asks_of_it(toy: Path) -> None:
    done = campaign("run", "toy.yaml", "--inline", cwd=toy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "report: runs/toy/report.html"
    assert (toy / "runs/toy/report.html").exists()
    found = campaign("status", "runs/toy", "--json", cwd=toy)
    status = json.loads(found.stdout)
    assert found.returncode == 0
    assert status["state"] == "done"
    assert {s["state"] for s in status["stages"].values()} == {"done"}
    assert set(status) >= {"campaign", "state", "stages", "frames", "selected", "labelled", "failures"}
    shown = campaign("status", "runs/toy", cwd=toy, NO_COLOR="1").stdout
    assert "validate" in shown
    assert "\x1b[" not in shown
    (toy / "runs/toy/report.html").unlink()
    assert campaign("report", "runs/toy", cwd=toy).returncode == 0
    assert (toy / "runs/toy/report.html").exists()
    assert campaign("export", "runs/toy", "labelled", "x.extxyz", cwd=toy).returncode == 0
    assert campaign("resume", "runs/toy", "--inline", cwd=toy).returncode == 0


def test_a_wrong_file_is_exit_2_and_nothing_is_made(toy: Path) -> None:
    (toy / "toy.yaml").write_text(TOY.replace("size: 4", "size: 0").replace("engine: fake", "engine: fkae"))
    for command in (("check",), ("run",)):
        done = campaign(*command, "toy.yaml", cwd=toy)
        assert done.returncode == 2
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert [line.split(": ")[0] for line in lines] == ["toy.yaml:7", "toy.yaml:8"]
        assert "fake" in lines[1]
    assert sorted(p.name for p in toy.iterdir()) == ["toy.yaml"]


def test_wrong_use(toy: Path) -> None:
    assert campaign("frobnicate", cwd=toy).returncode == 2
    assert campaign("status", "nowhere", cwd=toy).returncode == 2
    assert campaign("run", "nowhere.yaml", cwd=toy).returncode == 2
    assert campaign("run", "toy.yaml", "--until", "lable", "--inline", cwd=toy).returncode == 2
    assert campaign("run", "toy.yaml", "--site", "moon", cwd=toy).returncode == 2
    assert campaign("export", "toy.yaml", "pool", "x.extxyz", cwd=toy).returncode == 2
    assert sorted(p.name for p in toy.iterdir()) == ["toy.yaml"]


def test_a_run_that_cannot_be_read_is_a_sentence(toy: Path) -> None:
    assert campaign("run", "toy.yaml", "--inline", cwd=toy).returncode == 0
    run = toy / "runs/toy"

    def said(path: object, code: int) -> str:
        done = campaign("status", path, cwd=toy)
        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "is not a run directory" in said("toy.yaml", 2)
    assert "is not a run directory" in said("runs/toy/report.html/run.zarr", 2)
    assert "name too long" in said("x" * 300, 1)
    (run / "ledger.jsonl").write_text("{]\n")
    assert campaign("status", run, cwd=toy).returncode == 0  # the store is the truth
    again = campaign("run", "toy.yaml", "--inline", cwd=toy)
    assert again.returncode == 2
    assert "ledger.jsonl, line 1, is damaged" in again.stderr
    (run / "run.zarr/zarr.json").write_text("{")
    assert "run.zarr is not a readable Zarr group" in said(run, 2)


def test_init_lists_writes_and_refuses_to_overwrite(tmp_path: Path) -> None:
    listed = campaign("init", cwd=tmp_path).stdout
    assert "quickstart" in listed
    assert campaign("init", "quickstart", cwd=tmp_path).returncode == 0
    assert (tmp_path / "potentials" / "nacl_bmhtf.lmp").exists()
    checked = campaign("check", "quickstart.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "core-hours" in checked.stdout
    again = campaign("init", "quickstart", cwd=tmp_path)
    assert again.returncode == 2
    assert "there already" in again.stderr
    assert campaign("init", "quikstart", cwd=tmp_path).returncode == 2


def test_check_prints_the_plan_as_json(toy: Path) -> None:
    plan = json.loads(campaign("check", "toy.yaml", "--json", cwd=toy).stdout)
    assert [s["stage"] for s in plan["stages"]] == ["sample", "select", "label", "train", "validate"]
    assert plan["frames"] == 40
    assert {s["stage"]: s["tasks"] for s in plan["stages"]} == {
        "sample": 4,
        "select": 2,
        "label": 9,
        "train": 1,
        "validate": 1,
    }


def test_sites_lists_and_shows(tmp_path: Path) -> None:
    assert "local" in campaign("sites", cwd=tmp_path).stdout
    assert "executors:" in campaign("sites", "local", cwd=tmp_path).stdout
    shown = campaign("sites", "perlmutter", cwd=tmp_path).stdout  # a copy to fill in has what is to be looked up
    assert "#  - module load cp2k" in shown
    assert "# check: docs.nersc.gov" in shown
    assert "\n# What will be asked for:\n" in shown
    assert campaign("sites", "moon", cwd=tmp_path).returncode == 2


def test_every_executor_of_a_site_is_tried(tmp_path: Path) -> None:
    """One that no stage uses as well; one that cannot answer is named, after the others were tried."""
    one, broken = "{provider: local, workers: 1}", "{provider: slurm, cores: 4}"
    text = f"site: two\nexecutors: {{broken: {broken}, one: {one}, spare: {one}}}\nstages: {{default: one}}\n"
    (tmp_path / "two.yaml").write_text(text)
    done = campaign("sites", "two.yaml", "--test", cwd=tmp_path, PATH="/usr/bin:/bin")
    assert done.returncode == 2, done.stdout
    answers = [line for line in done.stdout.splitlines() if line.startswith("executor ")]
    assert [line.split(":")[0] for line in answers] == ["executor one", "executor spare"]
    assert all(re.search(r"host \S+ answered after [0-9.]+ s, Python 3\.", line) for line in answers)
    (problem,) = done.stderr.splitlines()
    assert problem.startswith("site two: executor broken: no worker answered")
    assert [p.name for p in tmp_path.iterdir()] == ["two.yaml"]


def test_gpus_that_would_stand_idle_are_a_warning(toy: Path) -> None:
    site = "site: s\nexecutors: {cpu: {provider: local}, gpu: {provider: slurm, cores: 8, gpus: 4}}\n"
    (toy / "site.yaml").write_text(site + "stages: {default: cpu, train: gpu}\n")
    done = campaign("check", "toy.yaml", "--site", "site.yaml", cwd=toy)
    assert done.returncode == 0
    assert done.stderr.startswith("site s: train.device is cpu, and the GPUs of executor gpu would stand idle.")
    assert "idle" not in done.stdout
    (toy / "site.yaml").write_text(site + "stages: {default: cpu, validate: cpu}\n")
    assert campaign("check", "toy.yaml", "--site", "site.yaml", cwd=toy).stderr == ""


def test_an_interrupt_is_130_and_resumable(toy: Path) -> None:
    import signal
    import time

    (toy / "toy.yaml").write_text(TOY.replace("segment: 10", "segment: 2, delay: 0.5"))
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--inline"]
    process = subprocess.Popen(command, cwd=toy, stderr=subprocess.PIPE, text=True)
    ledger = toy / "runs/toy/ledger.jsonl"
    end = time.time() + 60
    while time.time() < end and not (ledger.exists() and ledger.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command continues" in said
    assert json.loads(campaign("status", "runs/toy", "--json", cwd=toy).stdout)["state"] == "interrupted"
    assert campaign("run", "toy.yaml", "--inline", cwd=toy).returncode == 0


def test_the_version_is_said_without_loading_anything(tmp_path: Path) -> None:
    done = campaign("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"campaign {__version__}\n")
    command = [sys.executable, "-X", "importtime", "-m", "campaign.cli", "--version"]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr
    assert "typer" in loaded
    assert not re.search(r"\| *(numpy|torch|zarr|parsl|ase|pydantic|yaml)$", loaded, re.MULTILINE)
