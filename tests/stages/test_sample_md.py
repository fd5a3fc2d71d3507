"""Sampling with a trained model from a file: the same driver, segments and checkpoints as with a potential."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from campaign.engines.fake import ToyCrystal
from campaign.errors import InputError
from campaign.frames import Frames
from campaign.plan import make_plan as plan
from campaign.stages.sample import Sample
from campaign.store.store import Store
from campaign.tasks import Context
from campaign.worker import do_task

STRUCTURE = {"structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.0, "supercell": [2, 2, 2]}}
ENTRY = {"method": "md", "model": "toy.pt", "ensemble": "nvt", "temperature": 60}
TIMES = {"steps": 300, "every": 10, "segment": 10, "timestep": 0.002, "thermostat": 0.1}


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    ToyCrystal().export(tmp_path / "toy.pt")
    Store(tmp_path / "run.zarr")
    return Context(tmp_path, {"lammps": ["mpiexec", "-n", "{ranks}"]})


@pytest.fixture
def stage(campaign):
    """Return a function that builds the stage of a campaign that samples with a model."""

    def stage(**changes):
        spec = campaign(system=STRUCTURE, sample=[{**ENTRY, **TIMES, **changes}], validate=None)
        return Sample(spec, {"toy.pt": "digest"})

    return stage


def go(stage, context, attempts=0):
    """Do all segments of all chains in order; return the records, chain by chain."""
    found = []
    for chain in stage.chains:
        records = []
        for task, _ in chain:
            record = do_task(task, Context(context.run, context.launch, attempts))
            assert record["state"] == "done", record["cause"]
            records.append(record)
            if not record["result"]["left"]:
                break
        found.append(records)
    return found


def frames_of(context, records):
    store = Store(context.run / "run.zarr")
    return Frames.concat(store.frames("sample", r["task"]) for r in records)


def test_each_ensemble_has_its_points_and_its_parameters(stage):
    at_two = stage(ensemble="npt", pressure=[1.0, 500.0], walkers=2)
    assert [c[0][0].params["pressure"] for c in at_two.chains] == [1.0, 1.0, 500.0, 500.0]
    for ensemble in ("nvt", "nve"):
        made = stage(ensemble=ensemble)
        assert len(made.chains) == 1
        params = made.chains[0][0][0].params
        assert "pressure" not in params
        assert params["ensemble"] == ensemble
        assert params["model"] == "digest"
    assert stage().chains[0][0][0].id != stage(guards={"force": 20}).chains[0][0][0].id


@pytest.mark.lammps
def test_nve_keeps_the_energy_over_segments_and_the_frames_are_the_models(stage, context):
    prepare = [{"temperature": 60, "time": 0.2}]
    records = go(stage(ensemble="nve", timestep=0.001, steps=3000, segment=50, prepare=prepare), context)[0]
    assert len(records) == 6
    frames = frames_of(context, records)
    assert len(frames) == 300
    assert np.isnan(frames.temperature).all()  # there is no thermostat
    again = ToyCrystal().evaluate(frames)
    for name, values in zip(("energy", "forces", "stress"), again, strict=True):
        np.testing.assert_allclose(getattr(frames, name), values, atol=1e-10, err_msg=name)
    # from positions alone: velocities by central differences would err; the kinetic part is the records' means
    kinetic = [1.5 * 31 / 32 * 8.617333262e-5 * r["result"]["temperature"] for r in records]
    potential = [float(frames.energy[k : k + 50].mean() / 32) for k in range(0, 300, 50)]
    total = np.array(kinetic) + np.array(potential)
    assert np.ptp(total) < 1e-5  # eV/atom
    assert np.ptp(potential) > 10 * np.ptp(total)


@pytest.mark.lammps
@pytest.mark.parametrize("ensemble", ["nvt", "npt", "nve"])
def test_walkers_are_the_same_alone_and_together_and_again(stage, context, tmp_path, ensemble):
    changes = {"ensemble": ensemble, "walkers": 2, "steps": 100, "segment": 5}
    changes |= {"pressure": 2e4} if ensemble == "npt" else {}
    alone = [frames_of(context, records) for records in go(stage(**changes), context)]
    (both,) = go(stage(**changes, walkers_per_task=2), context)
    together = frames_of(context, both)
    for number in (0, 1):
        np.testing.assert_array_equal(together[together.walker == number].positions, alone[number].positions)
    volumes = together.volume
    assert (np.ptp(volumes) > 1.0) == (ensemble == "npt")
    other = tmp_path / "again"
    other.mkdir()
    ToyCrystal().export(other / "toy.pt")
    Store(other / "run.zarr")
    again = go(stage(**changes), Context(other))
    for number in (0, 1):
        repeat = frames_of(Context(other), again[number])
        for (name, array), (_, right) in zip(repeat.arrays(), alone[number].arrays(), strict=True):
            np.testing.assert_array_equal(array, right, err_msg=name)


@pytest.mark.lammps
def test_a_walker_stops_at_the_first_sign_and_its_steps_before_are_kept(stage, context):
    """First it is tried again at half the step; then the walker ends with its frames."""
    hot = stage(temperature=[60, 3000], steps=2000, segment=100, guards={"temperature": 50, "closest": 0.75})
    (task, _), *_ = hot.chains[0]
    found = [do_task(t, context) for t, _ in hot.chains[0][:1]]
    assert "closest pair" in found[0]["cause"] or found[0]["state"] == "done"
    (records,) = go(hot, context, attempts=1)
    last = records[-1]
    (cause,) = last["result"]["stopped"].values()
    assert "First sign of failure at step" in cause
    assert "closest pair" in cause
    arrays = Store(context.run / "run.zarr").arrays("sample", last["task"])
    kept = arrays["before.0.step"]
    np.testing.assert_array_equal(np.diff(kept), 1)
    assert len(kept) == 21
    assert f"at step {kept[-1]}:" in cause
    assert arrays["before.0.positions"].shape == (21, 32, 3)
    assert task.id


@pytest.mark.lammps
def test_walkers_of_a_task_are_tried_again_together_at_half_the_time_step(stage, context):
    changes = {"walkers": 2, "steps": 100, "segment": 5}
    alone = [frames_of(context, records) for records in go(stage(**changes), context, attempts=1)]
    (both,) = go(stage(**changes, walkers_per_task=2), context, attempts=1)
    together = frames_of(context, both)
    first = stage(**changes, walkers_per_task=2).chains[0][0][0]
    assert first.ranks == 1  # no MPI: one process for both
    for number in (0, 1):
        np.testing.assert_array_equal(together[together.walker == number].positions, alone[number].positions)
        np.testing.assert_array_equal(together[together.walker == number].step, np.arange(10, 110, 10))


DO = """
import json, sys
from campaign.tasks import Context, Task
from campaign.worker import do_task
tasks, context = json.load(sys.stdin)
for task in tasks:
    record = do_task(Task.from_json(task), Context.from_json(context))
    assert record["state"] == "done", record["cause"]
    print(task["id"], flush=True)
"""


@pytest.mark.lammps
def test_walkers_of_a_task_that_is_killed_make_bitwise_the_same_frames(stage, tmp_path):
    """Of a network in float32, whose rounding hangs on how many walkers there are."""
    slow = {"temperature": 15, "steps": 800, "timestep": 0.0005, "guards": {"closest": 0.3}}
    made = stage(walkers=3, walkers_per_task=3, **slow)
    tasks = [task for task, _ in made.chains[0]]
    stores = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        export(folder / "toy.pt", ["Ar"], scale=0.003)
        Store(folder / "run.zarr")
        context = Context(folder)
        sent = json.dumps([[task.to_json() for task in tasks], context.to_json()])
        with subprocess.Popen([sys.executable, "-c", DO], stdin=PIPE, stdout=PIPE, text=True) as process:
            process.stdin.write(sent)
            process.stdin.close()
            done = []
            if name == "killed":
                done.append(process.stdout.readline())
                time.sleep(0.1)  # in the middle of the second segment
                process.kill()
            done += process.stdout.readlines()
        assert process.returncode == (-signal.SIGKILL if name == "killed" else 0)
        assert (len(done) < len(tasks)) == (name == "killed")
        for task in tasks[len(done) :]:
            assert do_task(task, context)["state"] == "done"
        stores.append(Store(folder / "run.zarr"))
    for task in tasks:
        frames, right = (store.frames("sample", task.id) for store in stores)
        for (name, array), (_, other) in zip(frames.arrays(), right.arrays(), strict=True):
            np.testing.assert_array_equal(array, other, err_msg=name)


FILE = """
campaign: driven
seed: 1
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64}
sample:
  - {method: md, model: some.pt, ensemble: nve, temperature: 300, steps: 1000}
"""


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a campaign file with changes."""

    def file(old="", new=""):
        assert old in FILE
        (tmp_path / "c.yaml").write_text(FILE.strip().replace(old, new))
        return tmp_path / "c.yaml"

    return file


def export(path, elements, cutoff=6.0, scale=0.1):
    """Write a seeded, untrained SchNet."""
    from ase.data import atomic_numbers

    from campaign.engines.schnetpack import Potential, network

    spec = {"model": "schnet", "features": 8, "interactions": 1, "cutoff": cutoff}
    weights = {k: v.numpy() for k, v in network(spec, 0).state_dict().items()}
    species = np.array(sorted(atomic_numbers[e] for e in elements))
    extra = {"reference.numbers": species, "reference.energies": -1.0 * species, "scale": np.array([scale])}
    Potential(spec, {**weights, **extra}).export(path)


def test_a_campaign_of_a_model_alone_is_planned(file, tmp_path):
    export(tmp_path / "some.pt", ["Na", "Cl"], cutoff=7.0)  # over half the cell: images are seen
    found = plan(file(), "local")
    assert found["frames"] == 10
    assert json.dumps(found)


def test_the_plan_says_who_shares_a_forward_and_on_what(file, tmp_path):
    export(tmp_path / "some.pt", ["Na", "Cl"])
    found = plan(file("steps: 1000", "steps: 1000, walkers: 5, walkers_per_task: 2"), "local")
    (sampling,) = (s for s in found["stages"] if s["stage"] == "sample")
    assert "2 walkers at a time in one forward of some.pt on cpu" in sampling["what"]
    assert (sampling["tasks"], sampling["ranks"]) == (3, 1)


def test_a_gpu_that_the_site_has_not_or_the_model_does_not_use_is_refused(file, tmp_path):
    export(tmp_path / "some.pt", ["Na", "Cl"])
    with pytest.raises(InputError) as caught:
        plan(file("steps: 1000", "steps: 1000, device: cuda"), "local")
    (problem,) = caught.value.problems
    assert "c.yaml:6: sample[0].device: executor cpu of site local has no GPUs, got cuda; " in problem
    ToyCrystal().export(tmp_path / "some.pt")
    with pytest.raises(InputError) as caught:
        plan(file("steps: 1000", "steps: 1000, device: cuda"), "local")
    assert any("sample[0].device: this model runs on the CPU alone" in p for p in caught.value.problems)


WRONG = {
    "missing file": ("some.pt", "other.pt", "sample[0].model", "other.pt"),
    "several ranks": ("steps: 1000", "steps: 1000, ranks: 2", "sample[0].ranks", "write 1"),
    "ramp in nve": ("temperature: 300", "temperature: [300, 400]", "sample[0].temperature", "write one temperature"),
    "pressures in nve": ("steps: 1000", "steps: 1000, pressure: [1, 2]", "sample[0].pressure", "remove it"),
    "unknown ensemble": ("nve", "nvf", "sample[0].ensemble", "nve"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_model_cannot_do_is_said_on_its_line(file, tmp_path, case):
    export(tmp_path / "some.pt", ["Na", "Cl"])
    old, new, key, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        plan(file(old, new), "local")
    assert f"c.yaml:6: {key}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: export(path, ["Na", "K"]), "has Cl, which this model (trained on Na, K) has not seen"),
        (lambda path: path.write_bytes(b"not a model"), "is no model that campaign can run"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + b"0" * 100), "is no model that campaign can run"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(file, tmp_path, write, words):
    write(tmp_path / "some.pt")
    with pytest.raises(InputError) as caught:
        plan(file(), "local")
    assert "c.yaml:6: sample[0].model: " in str(caught.value)
    assert words in str(caught.value)
