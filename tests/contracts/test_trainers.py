"""One suite over every trainable model, through the worker's own function and a real store."""

import json

import numpy as np
import pytest
import torch
from ase.build import bulk

from campaign.engines.fake import ToyCrystal
from campaign.engines.models import Mean, build_model
from campaign.frames import Frames
from campaign.stages.trained import HISTORY, WEIGHTS, load_model, load_models, model_path
from campaign.store.store import Store
from campaign.tasks import Task, new_record

SCHNET = {"model": "schnet", "features": 8, "interactions": 1, "cutoff": 4.0, "epochs": 3, "batch": 2, "rate": 1e-3}
SPECS = {
    "schnet": {**SCHNET, "loss": {"energy": 0.01, "forces": 0.95, "stress": 0.04}},
    "painn": {**SCHNET, "model": "painn", "loss": {"kind": "huber", "energy": 0.01, "forces": 0.95, "stress": 0.04}},
    "so3net": {**SCHNET, "model": "so3net", "l_max": 2, "loss": {"kind": "l4", "forces": 0.95, "stress": 0.04}},
    "ani": {
        "model": "ani", "cutoff": 4.0, "angular_cutoff": 3.5, "layers": [8, 8], "epochs": 3, "batch": 2, "rate": 1e-3,
        "loss": {"energy": 0.01, "forces": 0.95, "stress": 0.04},
    },
    "gap": {"model": "gap", "cutoff": 4.5, "n_max": 3, "l_max": 2, "sparse": 12, "pairs": 6},
    "fake": {"model": "fake"},
}  # fmt: skip


NEEDS = {"ani": "torchani", "gap": "quippy"}


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.requires(NEEDS[n])) if n in NEEDS else n for n in SPECS])
def spec(request):
    return SPECS[request.param]


def labelled(folder, n=6):
    """Publish labels of shaken toy crystals, each as its own label task; return the tasks and the frames."""
    rng = np.random.default_rng(0)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 1, 1)
    frames = Frames.build(atoms.numbers, atoms.positions + 0.15 * rng.normal(size=(n, 8, 3)), np.array(atoms.cell))
    energy, forces, stress = ToyCrystal().evaluate(frames)
    frames = frames.with_(energy=energy, forces=forces, stress=stress)
    store, tasks = Store(folder / "run.zarr"), []
    for k in range(n):
        task = Task("label", "given", {"frame": k})
        store.publish(new_record(task, 0), dict(frames[k : k + 1].arrays()))
        tasks.append(task.id)
    return tasks, frames


def training(spec, labels, member=0):
    return Task("train", f"main/{member}", {**spec, "seed": [1, member]}, tuple(labels))


def test_a_training_leaves_a_record_weights_that_reload_and_a_file_without_code(spec, run_folder, do):
    folder = run_folder()
    labels, frames = labelled(folder)
    tasks = [training(spec, labels, member) for member in range(2)]
    for task in tasks:
        record = do(folder, task)
        assert record["state"] == "done", record["cause"]
        assert record["result"]["model"] == spec
        assert record["result"]["train_frames"] + record["result"].get("held_back", 0) <= len(frames)
        assert record["versions"].keys() >= ({"torch", "schnetpack"} if spec["model"] == "schnet" else {"python"})
        json.dumps(record, allow_nan=False)
    store = Store(folder / "run.zarr")
    arrays = store.arrays("train", tasks[0].id)
    history = arrays[HISTORY]
    assert history.shape == (len((folder / f"tasks/{tasks[0].id}/epochs.jsonl").read_text().splitlines()), 3)
    assert np.isfinite(history).all()
    assert (np.diff(history[:, 0]) > 0).all()
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    first, second = load_models(store, [t.id for t in tasks])
    energy, forces, stress = first.evaluate(frames)
    again = build_model(spec, weights).evaluate(frames)
    for a, b in zip((energy, forces, stress), again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (energy.shape, forces.shape, stress.shape) == ((6,), (6, 8, 3), (6, 3, 3))
    other = second.evaluate(frames)
    assert np.abs(other[1] - forces).max() > 1e-6  # members differ
    mean = Mean([first, second]).evaluate(frames)
    np.testing.assert_allclose(mean[1], (forces + other[1]) / 2, atol=1e-12)
    path = model_path(folder / "models", store.locate("train", tasks[0].id).record)
    if spec["model"] != "fake":
        assert torch.load(path, weights_only=True)["training_set"] == record["result"]["training_set"]
    else:
        assert json.loads(path.read_text())["scale"] == weights["scale"][0]
    assert not list((folder / "models").glob(".*"))  # nothing half-written is left


def test_the_same_training_twice_gives_the_same_weights(spec, run_folder, do):
    found = []
    for name in ("a", "b"):
        folder = run_folder(name)
        task = training(spec, labelled(folder)[0])
        assert do(folder, task)["state"] == "done"
        found.append(Store(folder / "run.zarr").arrays("train", task.id))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])


def test_a_model_is_a_potential_its_forces_and_stress_are_derivatives(spec, run_folder, do):
    folder = run_folder()
    labels, frames = labelled(folder)
    task = training(spec, labels)
    assert do(folder, task)["state"] == "done"
    model = load_model(Store(folder / "run.zarr"), task.id)
    base, h = frames[:1], 1e-4 if spec["model"] == "fake" else 2e-2  # single precision needs a wide difference
    _, forces, stress = model.evaluate(base)
    shift = np.zeros((1, 8, 3))
    shift[0, 2, 1] = h
    up, down = (model.evaluate(base.with_(positions=base.positions + s * shift))[0][0] for s in (1, -1))
    assert forces[0, 2, 1] == pytest.approx(-(up - down) / (2 * h), rel=2e-2, abs=1e-3)
    energies = []
    for sign in (1, -1):
        strain = np.eye(3) + sign * h / 10 * np.eye(3)
        strained = base.with_(positions=base.positions @ strain, cell=base.cell @ strain)
        energies.append(model.evaluate(strained)[0][0])
    slope = (energies[0] - energies[1]) / (2 * h / 10) / base.volume[0]
    assert np.trace(stress[0]) == pytest.approx(slope, rel=5e-2, abs=2e-5)


def test_training_on_nothing_is_a_failed_record_that_says_so(spec, run_folder, do):
    folder = run_folder()
    labelled(folder, 1)
    record = do(folder, training(spec, []))
    assert record["state"] == "failed"
    assert "no labelled frame" in record["cause"]
