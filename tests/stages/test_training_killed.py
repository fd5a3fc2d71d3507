"""A training of either stage, killed from outside in its worker: the next worker goes on, to the same model."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines import checkpoints
from campaign.engines.fake import ToyCrystal
from campaign.frames import Frames
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record
from campaign.worker import do_task

LOSS = {"kind": "mse", "delta": 0.1, "energy": 0.01, "forces": 0.95, "stress": 0.04}
SPEC = {"model": "schnet", "features": 8, "interactions": 1, "cutoff": 4.0, "epochs": 12, "batch": 1, "rate": 1e-3}

#: A worker that does one task; with ``pause`` each checkpoint is long enough there for its end to be timed.
WORKER = """
import json, sys, time
from pathlib import Path
from campaign.engines import checkpoints
from campaign.tasks import Context, Task
from campaign.worker import do_task
checkpoints.SECONDS = 0.0
save = checkpoints.Checkpoint.save
saved = 0
def slowly(self, state):
    global saved
    save(self, state)
    saved += 1
    print(saved, flush=True)
    time.sleep(0.05)
checkpoints.Checkpoint.save = slowly
do_task(Task.from_json(json.loads(sys.argv[2])), Context(Path(sys.argv[1])))
"""


def labelled(n=8):
    rng = np.random.default_rng(0)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = Frames.build(atoms.numbers, atoms.positions + 0.15 * rng.normal(size=(n, 4, 3)), np.array(atoms.cell))
    energy, forces, stress = ToyCrystal().evaluate(frames)
    return frames.with_(energy=energy, forces=forces, stress=stress)


def train_task(folder):
    store, frames, labels = Store(folder / "run.zarr"), labelled(), []
    for k in range(len(frames)):
        label = Task("label", "given", {"frame": k})
        store.publish(new_record(label, 0), dict(frames[k : k + 1].arrays()))
        labels.append(label.id)
    return Task("train", "main/0", {**SPEC, "loss": LOSS, "seed": [1, 0]}, tuple(labels))


def warm_task(folder):
    """A training that goes on from one of the first five frames."""
    task = train_task(folder)
    first = Task("train", "main/0", task.params, task.inputs[:5])
    assert do_task(first, Context(folder))["state"] == "done"
    return Task("train", "learn-1/0", {**task.params, "start": 1, "fresh": 3}, (*task.inputs, first.id))


def member_task(folder):
    store, shard = Store(folder / "run.zarr"), Task("sample", "given", {"frames": 8})
    frames = labelled().with_(task=np.full(8, shard.number, dtype="uint64"), index=np.arange(8))
    store.publish(new_record(shard, 0), dict(frames.arrays()))
    limits = {"min_distance": 0.1}
    first = Task("distill", "first", {"what": "first", "size": 8, "seed": [1], "rows": [None], "limits": limits})
    first = Task("distill", "first", first.params, (shard.id,))
    assert do_task(first, Context(folder))["state"] == "done"
    spec = {**SPEC, "loss": LOSS}
    params = {"what": "train", "model": "schnet", "spec": spec, "fraction": 0.9, "seed": [1, 0, 0]}
    return Task("distill", "member", params, (first.id,))


def kill_after(folder, task, checkpoints_written):
    """Start a worker and kill it once it has written so many checkpoints."""
    command = [sys.executable, "-c", WORKER, str(folder), json.dumps(task.to_json())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if int(line) >= checkpoints_written:
                break
        time.sleep(0.02 * (checkpoints_written % 3))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("make", [train_task, warm_task, member_task])
def test_a_killed_worker_loses_nothing_of_a_training(tmp_path, make):
    found = {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        task = make(folder)
        mine = folder / "tasks" / task.id
        if name == "killed":
            for written in (9, 26):
                kill_after(folder, task, written)
                assert (mine / checkpoints.NAME).exists()
        record = do_task(task, Context(folder))
        assert record["state"] == "done", record["cause"]
        assert ("continued" in record["result"]) == (name == "killed")
        assert not list(mine.glob(f"*{checkpoints.NAME}*"))  # published: nothing to go on from is kept
        found[name] = (Store(folder / "run.zarr").arrays(task.stage, task.id), (mine / "epochs.jsonl").read_text())
    (arrays, lines), (again, lines_again) = found["undisturbed"], found["killed"]
    assert lines == lines_again
    assert arrays.keys() == again.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)


#: A worker that says when it begins to train, and then leaves a checkpoint every twentieth of a second.
PLAIN = """
import json, sys
from pathlib import Path
from campaign.engines import checkpoints, schnetpack_train
from campaign.tasks import Context, Task
from campaign.worker import do_task
checkpoints.SECONDS = 0.05
go = schnetpack_train._Run.go
def told(self, *args):
    print("begins", flush=True)
    go(self, *args)
schnetpack_train._Run.go = told
do_task(Task.from_json(json.loads(sys.argv[2])), Context(Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[1, 0], [[1, 0], [1, 1], [1, 2]]], ids=["one model", "three together"])
def test_killed_ten_times_at_random_moments_the_weights_are_the_same(tmp_path, seeds):
    """Whatever it is at: a step, a file that is half written, the epoch's end."""
    rng, found, epochs = random.Random(7), {}, []
    for name, kills in (("undisturbed", 0), ("killed", 10)):
        folder = tmp_path / name
        folder.mkdir()
        given = train_task(folder)
        task = Task("train", "main", {**given.params, "epochs": 200, "seed": seeds}, given.inputs)
        for _ in range(kills):
            command = [sys.executable, "-c", PLAIN, str(folder), json.dumps(task.to_json())]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "begins\n"
            time.sleep(rng.uniform(0.05, 0.5))
            assert process.poll() is None, "it ended before it was killed"
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            epochs.append(len((folder / "tasks" / task.id / "epochs.jsonl").read_text().splitlines()))
        record = do_task(task, Context(folder))
        assert record["state"] == "done", record["cause"]
        found[name] = (Store(folder / "run.zarr").arrays("train", task.id), record["result"])
    (arrays, _), (again, result) = found["undisturbed"], found["killed"]
    assert len(set(epochs)) >= 5  # it got further from kill to kill
    continued = result.get("continued", result.get("members", [{}])[0].get("continued"))
    assert continued > 0
    assert arrays.keys() == again.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)


def test_a_training_that_cannot_be_published_keeps_its_checkpoint(tmp_path, monkeypatch):
    task = train_task(tmp_path)
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    file = tmp_path / "tasks" / task.id / checkpoints.NAME

    def full(self, record, arrays, checkpoint=None):
        assert file.exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", full)
        assert do_task(task, Context(tmp_path))["state"] == "failed"
    assert file.exists()
    record = do_task(task, Context(tmp_path))
    assert record["result"]["continued"] == SPEC["epochs"]
    assert not file.exists()
