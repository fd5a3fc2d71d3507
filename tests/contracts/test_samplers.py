"""One suite over every sampler: segments planned by the stage, run by the worker's own function, in a real store."""

import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest

from campaign.config import Campaign
from campaign.engines import labellers, process
from campaign.frames import Frames
from campaign.stages.sample import Sample
from campaign.store.store import Store
from campaign.tasks import Context, Task, pack

SALT = {"prototype": "rocksalt", "elements": ["Na", "Cl"], "a": 5.9, "supercell": [2, 2, 2]}
ARGON = {"prototype": "fcc", "elements": ["Ar"], "a": 5.5, "supercell": [2, 2, 2]}
MD = {"walkers": 2, "steps": 90, "every": 10, "segment": 4, "timestep": 0.002}

#: method: structure, potential, the entry, and the tolerance of energy, forces and stress on the same geometry.
SAMPLERS = {
    "npt": (
        SALT,
        "potentials/nacl.lmp",
        {**MD, "method": "npt", "temperature": [1100, 1700], "pressure": 5.0},
        (2e-3, 1e-4, 1e-6),
    ),
    "nvt": (
        ARGON,
        "potentials/ar.lmp",
        {**MD, "method": "nvt", "temperature": 85, "prepare": [{"temperature": 200, "time": 0.1}]},
        (1e-9, 1e-9, 1e-11),
    ),
    "nvt_grid": (
        ARGON,
        "potentials/ar.lmp",
        {**MD, "walkers": 1, "method": "nvt_grid", "volumes": [1400.0, 1250.0], "temperatures": [85.0]},
        (1e-9, 1e-9, 1e-11),
    ),
    "momt": (
        ARGON,
        "potentials/ar.lmp",
        {**MD, "method": "momt", "temperature": 85, "temperatures": [40, 160], "window": [-0.09, -0.02]}
        | {"shared": False, "learn": {"height": 3.0}},
        (1e-9, 1e-9, 1e-11),
    ),
    "fake": (ARGON, None, {"method": "fake", "walkers": 2, "frames": 9, "segment": 4}, (0, 0, 0)),
}


@pytest.fixture(params=[pytest.param(n, marks=() if n == "fake" else pytest.mark.lammps) for n in SAMPLERS])
def method(request):
    return request.param


def planned(method) -> list[list[Task]]:
    structure, potential, entry, _ = SAMPLERS[method]
    system = {"structure": structure} | ({"potential": {"lammps": potential}} if potential else {})
    campaign = Campaign.model_validate({"campaign": "contract", "seed": 5, "system": system, "sample": [entry]})
    return [[t for t, _ in chain] for chain in Sample(campaign, {potential: "digest"} if potential else {}).chains]


@pytest.fixture
def ran(method, run_folder, do):
    """A run directory in which both walkers ran to their end, and their tasks."""
    folder = run_folder()
    chains = planned(method)
    for task in [t for chain in chains for t in chain]:
        record = do(folder, task)
        assert record["state"] == "done", record["cause"]
    return folder, chains


def frames_of(folder, chain):
    store = Store(folder / "run.zarr")
    return Frames.concat(store.frames("sample", t.id) for t in chain)


def test_frames_know_where_they_come_from_and_carry_the_labels_of_their_geometry(method, ran, do):
    folder, chains = ran
    _, potential, entry, (energy, forces, stress) = SAMPLERS[method]
    assert [len(c) for c in chains] == [3, 3]
    for walker, chain in enumerate(chains):
        frames = frames_of(folder, chain)
        assert len(frames) == 9
        expected = [f"{t.id}:{i}" for t, n in zip(chain, (4, 4, 1), strict=True) for i in range(n)]
        assert frames.ids == expected
        assert (frames.walker == walker).all()
        every = entry.get("every", 1)
        np.testing.assert_array_equal(frames.step, every * np.arange(1, 10))
        if method == "npt":  # one ramp over all segments
            np.testing.assert_allclose(frames.temperature, 1100 + 600 * np.arange(1, 10) / 9)
            assert (frames.pressure == 5.0).all()
            assert len(np.unique(frames.volume)) == 9
        else:
            assert (frames.temperature == entry.get("temperature", entry.get("temperatures", [300.0])[0])).all()
            assert (frames.pressure == 1.0).all() if method == "momt" else np.isnan(frames.pressure).all()
        if method not in ("npt", "momt"):
            np.testing.assert_array_equal(frames.cell, frames.cell[:1].repeat(9, axis=0))
        if method == "nvt_grid":
            np.testing.assert_allclose(frames.volume, entry["volumes"][walker], rtol=1e-12)
        extra = {"potential": potential}
        task = Task("label", "", {"engine": "lammps" if potential else "fake", "frame": 0}, extra=extra)
        same = labellers.label(frames, task, Context(folder))
        np.testing.assert_allclose(frames.energy, same.energy, rtol=0, atol=energy)
        np.testing.assert_allclose(frames.forces, same.forces, rtol=0, atol=forces)
        np.testing.assert_allclose(frames.stress, same.stress, rtol=0, atol=stress)
        assert np.abs(frames.forces).max() > 0.01
        record = do(folder, chain[0])
        assert record["result"]["frames"] == 4
        assert record["result"]["volume"] == pytest.approx(frames.volume[:4].mean())


def test_walkers_differ_and_so_do_segments(method, ran):
    folder, chains = ran
    a, b = (frames_of(folder, c) for c in chains)
    assert np.abs(a.positions[0] - b.positions[0]).max() > 1e-3
    steps = np.abs(np.diff(a.positions, axis=0)).reshape(8, -1).max(axis=1)
    assert (steps > 1e-4).all()


def test_a_segment_from_its_stored_checkpoint_is_bitwise_the_same_also_in_another_process(method, ran, run_folder, do):
    folder, chains = ran
    first, second, third = chains[1]
    expected = Store(folder / "run.zarr").arrays("sample", second.id)
    checkpoint = Store(folder / "run.zarr").checkpoint(second.id)
    code = (
        "import json, sys; from campaign.worker import run_task; "
        "r = json.loads(run_task(sys.argv[1])); sys.exit(r['cause'] or 0)"
    )
    for name in ("here", "there"):
        other = run_folder(name)
        Store(other / "run.zarr")
        start = f"checkpoints/from-{first.id}"
        shutil.copytree(folder / "run.zarr" / start, other / "run.zarr" / start)
        if name == "here":
            assert do(other, second)["state"] == "done"
        else:
            what = pack(second, Context(other))
            process.run([sys.executable, "-c", code, what], other)
        found = Store(other / "run.zarr")
        for key, array in found.arrays("sample", second.id).items():
            np.testing.assert_array_equal(array, expected[key])
        # what the third segment starts from is the same state: it runs to the same frames
        assert do(other, third)["state"] == "done"
        np.testing.assert_array_equal(
            found.frames("sample", third.id).positions,
            Store(folder / "run.zarr").frames("sample", third.id).positions,
        )
        assert found.checkpoint(second.id).keys() == checkpoint.keys()


def test_without_the_checkpoint_a_segment_fails_and_does_not_start_afresh(method, run_folder, do):
    folder = run_folder()
    Store(folder / "run.zarr")
    _, second, _ = planned(method)[0]
    record = do(folder, second)
    assert record["state"] == "failed"
    assert "checkpoint" in record["cause"]


def test_the_seed_of_the_campaign_decides_the_frames_and_the_name_of_the_task(method):
    chains = planned(method)
    ids = [t.id for chain in chains for t in chain]
    assert len(set(ids)) == len(ids)
    assert ids == [t.id for chain in planned(method) for t in chain]
    assert all(b.inputs == (a.id,) for chain in chains for a, b in pairwise(chain))


@pytest.mark.lammps
@pytest.mark.parametrize("name", ["npt", "nvt", "nvt_grid"])
def test_the_second_attempt_halves_the_time_step_and_keeps_the_times_of_the_frames(name, run_folder, do):
    task = planned(name)[0][0]
    found = []
    for attempt in (0, 1):
        folder = run_folder(f"run{attempt}")
        record = do(folder, task, attempt)
        assert record["state"] == "done", record["cause"]
        found.append(Store(folder / "run.zarr").frames("sample", task.id))
    np.testing.assert_array_equal(found[0].step, found[1].step)
    np.testing.assert_array_equal(found[0].temperature, found[1].temperature)
    gap = np.abs(found[0].positions - found[1].positions)
    gap = np.minimum(gap, np.abs(gap - np.diag(found[0].cell[0])))
    # the same trajectory, seen with half the step: not bitwise, but the same atoms at the same times
    assert 0 < gap.max() < 0.02
