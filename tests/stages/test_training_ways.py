"""The same models, whichever way they are trained: alone, together, over MPI ranks; and what is logged meanwhile."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.fake import ToyCrystal
from campaign.engines.schnetpack import Potential
from campaign.frames import Frames
from campaign.stages.train import Train
from campaign.stages.trained import load_models, model_path
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record
from campaign.worker import do_task

SMALL = {"model": "schnet", "features": 8, "interactions": 1, "cutoff": 4.0, "epochs": 3, "batch": 2, "members": 3}
LAUNCH = {"lammps": ["mpiexec", "-n", "{ranks}"]}


@pytest.fixture(autouse=True)
def mpi_of_this_python(monkeypatch):
    """Find the mpiexec of mpi4py's MPI before another one."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def publish_labels(folder):
    """Publish labelled toy crystals; return their ids, and their labels."""
    rng = np.random.default_rng(0)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = Frames.build(atoms.numbers, atoms.positions + 0.15 * rng.normal(size=(8, 4, 3)), np.array(atoms.cell))
    energy, forces, stress = ToyCrystal().evaluate(frames)
    frames = frames.with_(energy=energy, forces=forces, stress=stress)
    store, labels = Store(folder / "run.zarr"), {}
    for k in range(len(frames)):
        label = Task("label", "given", {"frame": k})
        store.publish(new_record(label, 0), dict(frames[k : k + 1].arrays()))
        labels[f"{k:016x}:0"] = label.id
    return labels


@pytest.fixture
def ensemble(tmp_path, campaign, board):
    """Return a function that trains an ensemble in a folder of its own; it gives the folder, the tasks and records."""
    from campaign.stages.board import FrameSet

    def ensemble(name, first=None, **keys):
        folder = tmp_path / name
        folder.mkdir()
        board.labels = publish_labels(folder)
        board.sets = {"main": FrameSet("main", 8, True, list(board.labels), closed=True)}
        board.models.clear()
        board.trained.clear()
        stage, done = Train(campaign(train=SMALL | keys)), []
        while tasks := list(stage.plan(board)):
            for task in tasks:
                if first is not None:
                    first(folder, task)
                record = do_task(task, Context(folder, LAUNCH))
                done.append((task, record))
                stage.commit(record, board)
        assert stage.finished(board)
        return folder, board.models["main"], done

    return ensemble


def same(one, other, tolerance):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(other[key], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=key)
        else:
            np.testing.assert_array_equal(other[key], value)


def test_members_trained_together_leave_what_members_trained_alone_do(ensemble):
    alone, models, _ = ensemble("alone")
    both, others, done = ensemble("together", together=True)
    assert models == others
    assert [(t.name, r["state"]) for t, r in done] == [
        ("main/together", "done"),
        *((f"main/{k}", "done") for k in range(3)),
    ]
    a, b = Store(alone / "run.zarr"), Store(both / "run.zarr")
    for task in models:
        same(a.arrays("train", task), b.arrays("train", task), 1e-5)
        one, other = a.locate("train", task).record, b.locate("train", task).record
        assert one["result"].keys() == other["result"].keys()
        assert one["result"]["model"] == other["result"]["model"]
        assert one["versions"] == other["versions"]
        lines = [
            [json.loads(x) for x in (f / "tasks" / task / "epochs.jsonl").read_text().splitlines()]
            for f in (alone, both)
        ]
        assert [x["epoch"] for x in lines[0]] == [x["epoch"] for x in lines[1]] == [1, 2, 3]
        file = Potential.load(model_path(both / "models", other))
        assert file.training_set == one["result"]["training_set"]
    assert {p.name for p in (alone / "models").iterdir()} == {p.name for p in (both / "models").iterdir()}
    assert not list(both.glob("tasks/*/*ckpt*"))
    frames = Frames.build([18] * 4, bulk("Ar", "fcc", a=5.2, cubic=True).positions[None] * 1.01, np.eye(3) * 5.3)
    energies = [m.evaluate(frames)[0][0] for m in load_models(b, models)]
    assert len(set(energies)) == 3


def test_members_are_trained_alone_where_they_cannot_be_together(ensemble, monkeypatch):
    from campaign.engines import schnetpack_together
    from campaign.errors import EngineError

    expected, models, _ = ensemble("alone")

    def refuse(*args):
        raise EngineError("Members of this model cannot be trained together (Odd).")

    monkeypatch.setattr(schnetpack_together, "stack", refuse)
    folder, others, done = ensemble("together", together=True)
    assert done[0][1]["state"] == "failed"
    assert "cannot be trained together" in done[0][1]["cause"]
    assert models == others
    for task in models:
        same(Store(expected / "run.zarr").arrays("train", task), Store(folder / "run.zarr").arrays("train", task), 0)


def test_a_member_whose_ensemble_is_gone_is_trained_alone(ensemble):
    expected, models, _ = ensemble("alone")
    folder, _, done = ensemble("together", together=True)
    member = done[1][0]
    lost = dataclasses.replace(member, extra={"taken": "0" * 16})
    (folder / "again").mkdir()
    publish_labels(folder / "again")
    record = do_task(lost, Context(folder / "again"))
    assert record["state"] == "done", record["cause"]
    same(
        Store(expected / "run.zarr").arrays("train", models[0]),
        Store(folder / "again/run.zarr").arrays("train", models[0]),
        0,
    )


def test_over_mpi_ranks_the_models_are_the_same(ensemble):
    alone, models, _ = ensemble("alone", members=1)
    folder, others, done = ensemble("ranks", members=1, processes=2)
    assert models == others
    assert done[0][1]["state"] == "done", done[0][1]["cause"]
    same(
        Store(alone / "run.zarr").arrays("train", models[0]),
        Store(folder / "run.zarr").arrays("train", models[0]),
        1e-5,
    )
    assert not list(folder.glob("tasks/*/ranks-*"))


def test_a_site_without_a_launch_command_is_the_machines_fault(ensemble, tmp_path):
    task = Task("train", "main/0", {**SMALL, "seed": [1, 0]}, ("l",), extra={"processes": 2})
    record = do_task(task, Context(tmp_path))
    assert record["transient"]
    assert "add launch.train to the site file" in record["cause"]


@pytest.mark.parametrize("together", [False, True])
def test_logs_for_tensorboard_hold_each_epoch_once(ensemble, together):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def killed_before(folder, task):  # what another try left of the same logs
        logs = folder / "logs" / "tensorboard" / task.name.replace("/", "-")
        logs.mkdir(parents=True)
        (logs / "events.out.tfevents.1.old").write_bytes(b"half")

    folder, models, _ = ensemble("logged", killed_before, tensorboard=True, together=together)
    store = Store(folder / "run.zarr")
    for number, task in enumerate(models):
        events = EventAccumulator(str(folder / "logs" / "tensorboard" / f"main-{number}"))
        events.Reload()
        history = store.arrays("train", task)["history"]
        for column, name in ((1, "loss"), (2, "force_rmse")):
            found = [(e.step, e.value) for e in events.Scalars(name)]
            assert found == [(k + 1, pytest.approx(v, rel=1e-6)) for k, v in enumerate(history[:, column])]
    assert "tensorboard" not in store.locate("train", models[0]).record["result"]["model"]
