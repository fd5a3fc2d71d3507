"""Parsl's workers for real: one is killed, the driver is killed, a second driver comes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from campaign.config import load_site
from campaign.leftovers import end_leftovers
from campaign.pipeline import status_of, survey
from campaign.runtime.parsl import ParslRunner
from campaign.store.ledger import read_ledger
from campaign.tasks import TOKEN_VARIABLE, Context, Record, Task
from campaign.worker import _one_mask, run_task

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 3, frames: 40, segment: 5, delay: 0.3}]
select: {method: random, size: 8}
label: {engine: fake, delay: 0.2}
train: {model: fake, members: 2, delay: 1.0}
validate: [{method: errors, held_out: 8, against: []}]
"""


@pytest.fixture
def path_with_parsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the runner changes both; put them back afterwards
    monkeypatch.setenv(TOKEN_VARIABLE, "")


def test_records_come_back_and_a_lost_worker_is_a_transient_failure(tmp_path: Path, path_with_parsl: None) -> None:
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {one: {provider: local, workers: 1}}\nstages: {default: one}\n"
    )
    runner = ParslRunner(run_task, load_site(str(tmp_path / "s.yaml")), tmp_path / "logs", "test-token")
    try:
        context = Context(tmp_path)
        for k in range(20):
            runner.submit(Task("noop", str(k), {"k": k}), context)
        records: list[Record] = []
        end = time.time() + 60
        while len(records) < 20 and time.time() < end:
            records += runner.wait(1.0)
        assert {r["state"] for r in records} == {"done"}
        (worker,) = {r["pid"] for r in records}
        runner.submit(_slow(tmp_path), context)
        time.sleep(3.0)  # the task has most likely reached the worker; a loss on the way is one too
        os.kill(worker, signal.SIGKILL)
        (lost,) = _wait(runner, 60)
        assert (lost["state"], lost["transient"]) == ("failed", True)
        assert "Lost" in lost["cause"]
    finally:
        runner.close()


def test_nothing_stays_in_the_folder_for_temporary_files(
    tmp_path: Path, path_with_parsl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsl ends its workers by a signal, and the server of their multiprocessing leaves its socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        monkeypatch.setenv("TMPDIR", folder)
        runner = ParslRunner(run_task, load_site("local"), tmp_path / "logs", "token-of-temporary-files")
        try:
            runner.submit(Task("noop", "a", {"k": 0}), Context(tmp_path))
            assert [r["state"] for r in _wait(runner, 60)] == ["done"]
            assert list(Path(folder).glob("pymp-*/listener-*"))
        finally:
            runner.close()
        assert not os.listdir(folder)


def test_what_a_killed_driver_left_is_ended_and_its_sockets_removed() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        there = Path(folder, "pymp-x", "listener-x")
        there.parent.mkdir()
        other = Path(folder, "listener-of-another")
        serve = "import socket, sys, time\nheld = [socket.socket(socket.AF_UNIX) for _ in sys.argv[1:]]\n"
        serve += "for one, path in zip(held, sys.argv[1:]): one.bind(path); one.listen()\nprint('up', flush=True)\n"
        serve += "time.sleep(600)"
        environment = {**os.environ, TOKEN_VARIABLE: "token-of-a-killed-driver"}
        command = [sys.executable, "-c", serve, str(there), str(other)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as left:
            assert left.stdout is not None
            assert left.stdout.readline() == "up\n"
            assert end_leftovers("token-of-a-killed-driver") == 1
            left.wait(10)
        assert os.listdir(folder) == [other.name]  # what is not multiprocessing's is not touched


def test_idle_workers_that_were_killed_do_not_hang_the_campaign(tmp_path: Path, path_with_parsl: None) -> None:
    """A worker killed while it waits takes the lock of Parsl's task queue with it; nobody would ever get a task."""
    runner = ParslRunner(run_task, load_site("local"), tmp_path / "logs", "test-token", patience=6.0)
    context = Context(tmp_path)
    try:
        for k in range(20):
            runner.submit(Task("noop", str(k), {"k": k}), context)
        records: list[Record] = []
        while len(records) < 20:
            records += _wait(runner, 60)
        time.sleep(1.0)
        for pid in {r["pid"] for r in records}:
            os.kill(pid, signal.SIGKILL)
        task = Task("noop", "after", {"k": "after"})
        runner.submit(task, context)
        tries = 1
        while (found := _wait(runner, 60))[0]["state"] != "done":
            assert found[0]["transient"]
            assert "started afresh" in found[0]["cause"]
            runner.submit(task, context)
            tries += 1
        assert tries <= 2
    finally:
        runner.close()


def test_a_killed_interchange_does_not_hang_the_campaign(tmp_path: Path, path_with_parsl: None) -> None:
    runner = ParslRunner(run_task, load_site("local"), tmp_path / "logs", "test-token", patience=6.0)
    try:
        runner.submit(Task("noop", "before", {"k": "before"}), Context(tmp_path))
        assert [r["state"] for r in _wait(runner, 60)] == ["done"]
        for process in psutil.Process().children():
            if "interchange" in process.name():
                process.kill()
        task = Task("noop", "after", {"k": "after"})
        runner.submit(task, Context(tmp_path))
        (lost,) = _wait(runner, 90)
        assert (lost["state"], lost["transient"]) == ("failed", True)
        runner.submit(task, Context(tmp_path))
        assert [r["state"] for r in _wait(runner, 60)] == ["done"]
    finally:
        runner.close()


def test_an_interchange_killed_while_it_starts_is_started_again(tmp_path: Path, path_with_parsl: None) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for process in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if "interchange" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    began = time.time()
    runner = ParslRunner(run_task, load_site("local"), tmp_path / "logs", "test-token")
    thread.join()
    try:
        assert time.time() - began < 60  # Parsl alone gives up after 120 s
        runner.submit(Task("noop", "after", {"k": "after"}), Context(tmp_path))
        assert [r["state"] for r in _wait(runner, 60)] == ["done"]
    finally:
        runner.close()


def _slow(run: Path) -> Task:
    params = {"method": "fake", "structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3, "supercell": [1, 1, 1]}}
    params |= {
        "walker": [0, 0],
        "seed": 1,
        "displacement": 0.1,
        "temperature": 1.0,
        "segment": 0,
        "frames": 1,
        "first": 0,
    }
    return Task("sample", "slow", params, extra={"delay": 60.0})


def _wait(runner: ParslRunner, seconds: float) -> list[Record]:
    end = time.time() + seconds
    while time.time() < end:
        records = runner.wait(1.0)
        if records:
            return records
    return []


def start(folder: Path, root: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--root", root]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def chosen(run: Path) -> dict[str, list[str]]:
    flow, _ = survey(run)
    return {name: s.chosen for name, s in flow.board.sets.items()}


def test_a_killed_driver_leaves_nothing_running_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    assert start(tmp_path, "whole").wait(120) == 0
    run = tmp_path / "killed" / "toy"
    for lines in (3, 12):
        process = start(tmp_path, "killed")
        end = time.time() + 90
        while time.time() < end and len(read_ledger(run / "ledger.jsonl")) < lines:
            time.sleep(0.1)
        family = started_by(run)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert status_of(run)["state"] == "interrupted"
    assert alive(family)
    assert start(tmp_path, "killed").wait(120) == 0, (tmp_path / "log").read_text()
    assert not alive(family)  # ended by the next driver, at once
    assert status_of(run)["state"] == "done"
    assert chosen(run) == chosen(tmp_path / "whole" / "toy")
    done = Counter(r["task"] for r in read_ledger(run / "ledger.jsonl") if r["state"] == "done")
    assert set(done.values()) == {1}


def started_by(run: Path) -> list[psutil.Process]:
    """Return every process that the present driver of a run started, by the token in its environment."""
    token = json.loads((run / "driver.lock").read_text())["token"]
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_workers_end_by_themselves_when_the_driver_was_killed(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    process = start(tmp_path, "runs")
    end = time.time() + 60
    while time.time() < end and len(read_ledger(tmp_path / "runs/toy/ledger.jsonl")) < 2:
        time.sleep(0.1)
    family = started_by(tmp_path / "runs" / "toy")
    assert len(family) >= 3
    process.kill()
    process.wait()
    end = time.time() + 60
    while time.time() < end and alive(family):
        time.sleep(1.0)
    assert not alive(family)


def test_a_second_signal_does_not_break_off_the_ending_of_the_workers(tmp_path: Path) -> None:
    """Batch systems send several, and people press Ctrl-C again."""
    (tmp_path / "toy.yaml").write_text(TOY)
    process = start(tmp_path, "runs")
    end = time.time() + 60
    while time.time() < end and not (tmp_path / "runs/toy/logs/workers").exists():
        time.sleep(0.1)
    time.sleep(2.0)
    family = started_by(tmp_path / "runs" / "toy")
    assert family
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.3)
    assert process.wait(60) == 130
    assert not alive(family)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_driver_is_told_who_is_there(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    first = start(tmp_path, "runs")
    try:
        end = time.time() + 60
        while time.time() < end and not (tmp_path / "runs/toy/ledger.jsonl").exists():
            time.sleep(0.1)
        command = [sys.executable, "-m", "campaign.cli", "run", "toy.yaml", "--root", "runs"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"process {first.pid}" in second.stderr
    finally:
        first.terminate()
        assert first.wait(60) == 130


def test_a_site_says_where_temporary_files_go(tmp_path: Path) -> None:
    from campaign.runtime.parsl import executors

    scratch = tmp_path / "fast disk"
    site = load_site("local").model_copy(update={"scratch": str(scratch)})
    (executor,) = executors(site, "token")
    shown = subprocess.run(
        ["bash", "-c", f'{executor.provider.worker_init}\necho "$TMPDIR"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == str(scratch)
    assert scratch.is_dir()


class Pool:
    """An executor with workers that are at no task, unless ``managers`` says otherwise."""

    interchange_proc = SimpleNamespace(poll=lambda: None)
    status_facade: ClassVar = {"0": SimpleNamespace(state=SimpleNamespace(name="RUNNING"))}

    def __init__(self, *managers: dict[str, Any]) -> None:
        self.managers = managers
        self.command_client = self

    def run(self, message: str, timeout_s: float) -> list[dict[str, Any]]:
        assert message == "MANAGERS"
        return list(self.managers)


UP = {"manager": "known", "active": True, "draining": False}


@pytest.mark.parametrize(
    ("gpu", "mark", "silent"),
    [
        ([], "", False),  # its job waits in the queue, while those of the other executor have nothing to do
        ([UP], "", True),  # its workers are there and take nothing
        ([UP | {"manager": "new"}], "", False),  # they come up
        ([UP | {"draining": True}], "", False),  # they take no more; the next job comes
        ([UP], "mine", False),  # one of them is at the task
    ],
    ids=["waits", "hangs", "comes", "ends", "works"],
)
def test_an_executor_is_silent_when_its_own_workers_are(
    tmp_path: Path, gpu: list[dict[str, Any]], mark: str, silent: bool
) -> None:
    text = "{cpu: {provider: slurm, cores: 2}, gpu: {provider: slurm, cores: 2}}"
    (tmp_path / "s.yaml").write_text(f"site: s\nexecutors: {text}\nstages: {{default: cpu, train: gpu}}\n")
    workers = tmp_path / "logs" / "workers"
    workers.mkdir(parents=True)
    runner = ParslRunner.__new__(ParslRunner)
    task, context = Task("train", "0", {"a": 1}), Context(tmp_path, sent=9)
    (workers / "elsewhere 77").write_text("another 1".ljust(48))
    (workers / "elsewhere 78").write_text((context.mark(task.id) if mark else "another 2").ljust(48))
    runner._flying = {task.id: (task, context)}
    runner._site, runner._logs = load_site(str(tmp_path / "s.yaml")), tmp_path / "logs"
    runner._heard, runner._patience = time.time() - 61, 60.0
    runner._answered, runner._met = {"cpu", "gpu"}, {"known": time.time() - 61}
    runner._kernel = SimpleNamespace(executors={"cpu": Pool(UP), "gpu": Pool(*gpu)})
    assert runner._silent() is silent


@pytest.mark.parametrize("provider", ["slurm", "pbs"])
def test_no_job_stays_in_the_queue_of_an_executor_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, path_with_parsl: None
) -> None:
    """Parsl scales in no executor that is in a bad state."""
    (tmp_path / "s.yaml").write_text(
        f"site: s\nexecutors: {{cpu: {{provider: {provider}, cores: 2}}}}\nstages: {{default: cpu}}\n"
    )
    for program, said in {"sbatch": "Submitted batch job 7", "qsub": "7", "scancel": "", "qdel": ""}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\necho {program} $* >> {tmp_path}/calls\necho {said}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runner = ParslRunner(run_task, load_site(str(tmp_path / "s.yaml")), tmp_path / "logs", "test-token")
    executor = runner._kernel.executors["cpu"]
    runner.submit(Task("noop", "0", {"k": 0}), Context(tmp_path))
    end = time.time() + 60
    while time.time() < end and not executor.provider.resources:
        time.sleep(0.1)
    executor.set_bad_state_and_fail_all(RuntimeError("given up"))
    runner.close()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len([c for c in calls if c.startswith(("sbatch", "qsub"))]) == 1
    assert calls[-1].split() in (["scancel", "7"], ["qdel", "7"])


def test_a_task_of_many_ranks_is_looked_for_where_it_was_sent(tmp_path: Path) -> None:
    """Not at the executor of its stage, whose workers have nothing to do while it waits for whole nodes."""
    text = "{cpu: {provider: slurm, cores: 2}, wide: {provider: slurm, cores: 2, nodes: 4, nodes_per_worker: 4}}"
    (tmp_path / "s.yaml").write_text(f"site: s\nexecutors: {text}\nstages: {{default: cpu}}\n")
    (tmp_path / "logs" / "workers").mkdir(parents=True)
    runner = ParslRunner.__new__(ParslRunner)
    task = Task("sample", "0", {"a": 1}, extra={"ranks": 8})
    runner._flying = {task.id: (task, Context(tmp_path, sent=9))}
    runner._site, runner._logs = load_site(str(tmp_path / "s.yaml")), tmp_path / "logs"
    runner._heard, runner._patience = time.time() - 61, 60.0
    runner._answered, runner._met = {"cpu", "wide"}, {"known": time.time() - 61}
    runner._kernel = SimpleNamespace(executors={"cpu": Pool(UP), "wide": Pool()})
    assert not runner._silent()


def test_a_driver_knows_how_long_the_tasks_of_the_one_before_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_with_parsl: None
) -> None:
    (tmp_path / "sacct").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    text = "site: s\nexecutors: {cpu: {provider: slurm, cores: 2, walltime: 01:00:00}}\nstages: {default: cpu}\n"
    (tmp_path / "s.yaml").write_text(text)
    site = load_site(str(tmp_path / "s.yaml"))
    for before, expected in (({}, 3600 - 180), ({"cpu": 1000, "gone": 5}, 2600), ({"cpu": 9000}, 1800)):
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / "drain.json").write_text(json.dumps(before))
        runner = ParslRunner(run_task, site, tmp_path / "logs", "test-token")
        assert f"--drain_period={expected} " in runner._kernel.executors["cpu"].launch_cmd
        runner._drain = {"cpu": 7}
        runner.close()
        assert json.loads((tmp_path / "logs" / "drain.json").read_text()) == {"cpu": 7}


def test_no_job_is_asked_for_before_there_is_a_task_for_it(tmp_path: Path) -> None:
    """Nor is there a place for a stage that neither site file nor campaign name."""
    from campaign.runtime.parsl import executors

    text = "{cpu: {provider: slurm, cores: 2}, gpu: {provider: slurm, cores: 2}, more: {provider: local}}"
    (tmp_path / "s.yaml").write_text(f"site: s\nexecutors: {text}\nstages: {{sample: cpu, train: gpu}}\n")
    found = executors(load_site(str(tmp_path / "s.yaml")), "token")
    assert [(e.label, e.provider.init_blocks, e.provider.min_blocks) for e in found] == [("cpu", 0, 0), ("gpu", 0, 0)]


def test_an_amd_gpu_is_chosen_by_one_variable_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsl's worker sets them all; with two of them the second counts within what the first one left."""
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    _one_mask(tmp_path / "kfd")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    (tmp_path / "kfd").touch()
    _one_mask(tmp_path / "kfd")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["ROCR_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("ROCR_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # a person's own choice
    _one_mask(tmp_path / "kfd")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        (0, 4, []),
        (4, 4, ["0", "1", "2", "3"]),
        (4, 1, ["0,1,2,3"]),
        (4, 2, ["0,1", "2,3"]),
        (4, 3, ["0", "1", "2,3"]),
        (2, 8, ["0", "1"]),
    ],
)
def test_the_gpus_of_a_node_are_dealt_out_to_its_workers(gpus: int, workers: int, expected: list[str]) -> None:
    from campaign.runtime.parsl import accelerators

    assert accelerators(gpus, workers) == expected


def test_what_tasks_wait_for_is_told(tmp_path: Path) -> None:
    """Whoever looks at the live view learns that jobs wait in the queue, or that the batch system takes none."""
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {cpu: {provider: slurm, cores: 4}}\nstages: {default: cpu}\n", encoding="utf-8"
    )

    def block(state: str, message: str = "") -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(name=state), message=message, stderr_summary=None)

    runner: Any = ParslRunner.__new__(ParslRunner)
    runner._site = load_site(str(tmp_path / "s.yaml"))
    pool = SimpleNamespace(status_facade={})
    runner._kernel = SimpleNamespace(executors={"cpu": pool})
    runner._flying = {"a": (Task("noop", "a", {}), Context(tmp_path))}
    assert runner.waits_for() == ""
    pool.status_facade = {"0": block("COMPLETED"), "1": block("PENDING"), "2": block("PENDING")}
    assert runner.waits_for() == "2 jobs in the queue"
    pool.status_facade = {"0": block("FAILED", "Failed to start block 0: recode=1, stderr=sbatch: no such\npartition")}
    assert "executor cpu has no job (sbatch: no such partition); one is asked for again" in runner.waits_for()
    pool.status_facade["1"] = block("RUNNING")
    assert runner.waits_for() == ""
    pool.status_facade.pop("1")
    runner._flying = {}
    assert runner.waits_for() == ""
