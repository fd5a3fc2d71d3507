"""SIGKILL at any moment: what is visible is whole, nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from campaign.store import groups
from campaign.store.rundir import RunDirectory
from campaign.store.store import Store

CRASH = Path(__file__).with_name("crash.py")

PUBLISHER = """
import sys
import numpy as np
from pathlib import Path
from campaign.frames import Frames
from campaign.store.store import Store
from campaign.tasks import Task, new_record
store = Store(Path(sys.argv[1]))
for k in range(int(sys.argv[2]), 10**6):
    task = Task("sample", f"segment {k}", {"segment": k})
    frames = Frames.build([1, 1, 8], np.full((4, 3, 3), float(k)), np.eye(3), energy=k, task=task.number, walker=k)
    assert store.publish(new_record(task, 0), dict(frames.arrays()), {"state": np.array([k])})
    print(k, flush=True)
"""


def crash(work: str, template: Path, root: Path, stride: int) -> list[Path]:
    root.mkdir()
    command = [sys.executable, str(CRASH), work, str(template), str(root), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    runs = sorted(root.iterdir(), key=lambda p: int(p.name))
    assert int(done.stdout) == int(runs[-1].name)
    assert len(runs) > 10
    return runs


def check_published(store: Store, k: int, task: str) -> None:
    frames = store.frames("sample", task)
    assert (frames.positions == k).all()
    assert (frames.energy == k).all()
    assert frames.ids == [f"{task}:{i}" for i in range(4)]
    assert store.checkpoint(task)["state"].tolist() == [k]


def no_leftovers(run: Path) -> None:
    """Beside RUN/tmp there is nothing that is not part of the store: no file aside, no group without its metadata."""
    for kind in (run / "run.zarr").iterdir():
        if kind.is_dir():
            assert all((group / groups.META).exists() for group in kind.iterdir()), kind
    assert {p.name for p in run.iterdir()} <= {"run.zarr", "tmp", "driver.lock"}


def test_killed_at_every_step_of_publishing(tmp_path: Path) -> None:
    template = tmp_path / "template"
    Store(template / "run.zarr")
    seen = set()
    for run in crash("publish", template, tmp_path / "runs", 5):
        no_leftovers(run)
        store = Store(run / "run.zarr")
        found = store.scan()
        seen.add(len(found))
        for task, record in found.items():
            check_published(store, int(record["name"].split()[1]), task)
    assert seen == {0, 1, 2, 3}


def test_killed_at_random_moments_while_publishing(tmp_path: Path) -> None:
    random.seed(5)
    first = 0
    for _ in range(4):
        command = [sys.executable, "-c", PUBLISHER, str(tmp_path / "run.zarr"), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline()]
            time.sleep(random.uniform(0.02, 0.4))
            os.kill(process.pid, signal.SIGKILL)
            printed += process.stdout.readlines()
        finished = int([line for line in printed if line.endswith("\n")][-1])
        no_leftovers(tmp_path)
        store = Store(tmp_path / "run.zarr")
        found = store.scan()
        numbers = sorted(int(r["name"].split()[1]) for r in found.values())
        assert numbers in (list(range(finished + 1)), list(range(finished + 2))), "one that was told is missing"
        for task, record in found.items():
            check_published(store, int(record["name"].split()[1]), task)
        first = numbers[-1] + 1
    with RunDirectory(tmp_path):
        assert list((tmp_path / "tmp").iterdir()) == []


def test_killed_at_every_step_of_packing(tmp_path: Path, make: Any) -> None:
    template = tmp_path / "template"
    store = Store(template / "run.zarr")
    sizes = [(3 + k % 4, 8 if k < 4 else 5) for k in range(6)]
    ids = [make.publish(store, k, n, atoms) for k, (n, atoms) in enumerate(sizes)]
    wanted = [make.frames(k, n, atoms) for k, (n, atoms) in enumerate(sizes)]
    for run in crash("pack", template, tmp_path / "runs", 31):
        with RunDirectory(run) as directory:
            done, _, _ = directory.recover()
            assert sorted(done) == sorted(ids), run.name
            for worker in (
                directory.store,
                Store(run / "run.zarr"),
            ):  # one that knows what is packed, one that does not
                for task, frames in zip(ids, wanted, strict=True):
                    make.same(worker.frames("sample", task), frames)
            directory.store.pack("sample", [ids[:4], ids[4:]])
            assert list(directory.store.aside.iterdir()) == []
        store = Store(run / "run.zarr")
        assert sorted(store.scan()) == sorted(ids)
        for task, frames in zip(ids, wanted, strict=True):
            make.same(store.frames("sample", task), frames)
        pool = list(groups.subgroups(run / "run.zarr" / "pool"))
        rows = [len(groups.read_arrays(path, ("energy",))["energy"]) for path in pool]
        assert (len(pool), sum(rows)) == (2, sum(n for n, _ in sizes)), "frames are there twice, or not packed"
        left = {path.name for path in groups.subgroups(run / "run.zarr" / "checkpoints")}
        assert left == {f"from-{ids[3]}", f"from-{ids[5]}"}


def test_a_process_whose_copy_aside_was_removed_publishes_nothing(tmp_path: Path, monkeypatch: Any, make: Any) -> None:
    """A new driver clears RUN/tmp while an orphan on another node is still writing."""
    with RunDirectory(tmp_path) as first:
        store = first.store
    write = groups._arrays.write_file

    def late(path: Path, content: Any, size: int) -> None:
        if path.parent.name == "forces":
            RunDirectory(tmp_path).__exit__()
        write(path, content, size)

    monkeypatch.setattr(groups._arrays, "write_file", late)
    with pytest.raises(groups.StoreError):
        make.publish(store, 1, checkpoint=False)
    assert store.scan() == {}
    monkeypatch.undo()
    task = make.publish(store, 1)
    make.same(store.frames("sample", task), make.frames(1))
    assert np.isfinite(store.frames("sample", task).forces).all()
