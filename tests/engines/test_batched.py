"""One forward for many walkers: each gives what it gives alone, also where another one of them stops."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.batched import Batch, Turn
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.fake import ToyCrystal
from campaign.engines.lammps_potential import PotentialLines
from campaign.engines.model_files import load_model_file
from campaign.engines.schnetpack import Potential, network
from campaign.engines.walkers import Job, Walker, run_driven, unpack_checkpoints
from campaign.engines.walkers import pack_checkpoints as packed
from campaign.errors import EngineError, MachineFault, Unphysical

SALT = PotentialLines(("Cl", "Na"), "")
ARGON = PotentialLines(("Ar",), "")
WIDE = {"closest": 0.01, "force": 1e4, "volume": 1e6, "temperature": 1e6, "energy": None}
FAMILIES = ["schnet", "painn", pytest.param("ani", marks=pytest.mark.requires("torchani"))]


def potential(family="schnet", precision="float32"):
    """Return a seeded, untrained network of Na and Cl that a wall keeps apart."""
    spec = {"model": family, "features": 16, "interactions": 2, "cutoff": 4.5, "species": [11, 17], "layers": [8]}
    weights = {k: v.numpy() for k, v in network(spec, 0).state_dict().items()}
    weights |= {"reference.numbers": np.array([11, 17]), "reference.energies": np.array([-1.0, -3.0])}
    return Potential(spec, {**weights, "scale": np.array([0.5]), "core": np.full((2, 2), 2.7)}, precision)


def salt(seed, elements="NaCl"):
    atoms = bulk(elements, "rocksalt", a=5.7, cubic=True) * (2, 1, 1)
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed)


def argon(seed):
    atoms = bulk("Ar", "fcc", a=5.0, cubic=True) * (2, 2, 2)
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed)


def segment(frames=6, every=5, pressure=1.0, temperature=(300.0, 300.0), **options):
    return Segment(frames, every, 0, pressure=pressure, temperature=temperature, timestep=0.002, **options)


@pytest.fixture
def job(tmp_path):
    """Return a function that builds a job of walkers of a toy crystal, or of a network's."""

    def job(segments, family="", **options):
        file = tmp_path / f"{family}.pt"
        (potential(family) if family else ToyCrystal()).export(file)
        start = salt if family else argon
        walkers = tuple(Walker(k, s, start(k + 1)) for k, s in enumerate(segments))
        numbers = {"numbers": np.asarray(walkers[0].start.numbers)}
        lines = SALT if family else ARGON
        return Job(lines, walkers, model=str(file), **{"arrays": numbers, "limits": WIDE} | options)

    return job


def alone(job, number):
    (found,) = run_driven(replace(job, walkers=(job.walkers[number],))).values()
    return found


def same(found, right):
    assert list(found.arrays) == list(right.arrays)
    for name, array in right.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    assert found.checkpoint == right.checkpoint


# --- dynamics


@pytest.mark.lammps
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pressure", [None, 1.0])
def test_four_walkers_are_the_four_alone(job, family, pressure):
    four = job([segment(4, 5, pressure)] * 4, family)
    found = run_driven(four)
    assert list(found) == [0, 1, 2, 3]
    moved = found[1].arrays["positions"][0] - found[0].arrays["positions"][0]
    assert np.abs(moved).max() > 1e-3  # each has its own velocities
    for number, stretch in found.items():
        right = alone(four, number)
        scale = np.abs(right.arrays["forces"]).max()
        np.testing.assert_allclose(stretch.arrays["forces"][0], right.arrays["forces"][0], atol=2e-6 * scale)
        for name, array in right.arrays.items():
            tolerance = 1e-4 * max(1.0, float(np.abs(array).max()))
            np.testing.assert_allclose(stretch.arrays[name], array, atol=tolerance, err_msg=name)


@pytest.mark.lammps
@pytest.mark.parametrize("family", ["schnet", "painn"])
def test_in_float64_the_trajectories_are_one_to_the_last_digits(family):
    model = potential(family, "float64")
    together = Batch(model).run([partial(run_segment, SALT, segment(), salt(k)) for k in range(4)])
    for k, (arrays, _) in enumerate(together):
        right, _ = run_segment(SALT, segment(), salt(k), model)
        np.testing.assert_allclose(arrays["positions"], right["positions"], atol=1e-9)
        np.testing.assert_allclose(arrays["forces"], right["forces"], atol=1e-8)
        np.testing.assert_allclose(arrays["stress"], right["stress"], atol=1e-10)


@pytest.mark.lammps
def test_a_batch_of_one_is_bitwise_the_walker_alone(job):
    one = job([segment()], "schnet")
    model = load_model_file(Path(one.model))
    arrays, checkpoint = run_segment(SALT, segment(), salt(1), model)
    ((batched, other),) = Batch(model).run([partial(run_segment, SALT, segment(), salt(1))])
    for found, end in ((run_driven(one)[0].arrays, run_driven(one)[0].checkpoint), (batched, other)):
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert end == checkpoint


@pytest.mark.lammps
def test_a_batch_goes_on_from_its_checkpoint_to_bitwise_the_same_frames(job):
    first = job([segment()] * 3, "schnet")
    ends = []
    for _ in range(2):
        starts = unpack_checkpoints(packed(run_driven(first)))
        onward = replace(segment(), first=30)
        walkers = tuple(Walker(number, onward, restart, extra) for number, (restart, extra) in starts.items())
        ends.append(run_driven(replace(first, walkers=walkers)))
    for number, stretch in ends[0].items():
        same(ends[1][number], stretch)
        np.testing.assert_array_equal(stretch.arrays["step"], np.arange(35, 65, 5))


@pytest.mark.lammps
def test_a_walker_that_stops_leaves_the_others_as_they_are(job):
    """A toy crystal is added up frame by frame: what the others do is bitwise what they do alone."""
    calm, hot = (segment(40, 10, None, (60.0, end)) for end in (60.0, 6000.0))
    limits = WIDE | {"closest": 1.3}
    three = job([calm, hot, calm], last=True, limits=limits)
    found = run_driven(three)
    assert "closest pair" in found[1].cause
    assert 0 < len(found[1].arrays["step"]) < 40
    np.testing.assert_array_equal(np.diff(found[1].extra["step"]), 1)  # the steps before its failure
    for number in (0, 2):
        same(found[number], alone(three, number))
        assert len(found[number].arrays["step"]) == 40
    assert list(unpack_checkpoints(packed(found))) == [0, 2]
    with pytest.raises(Unphysical, match="closest pair"):
        run_driven(replace(three, last=False))
    for thread in [t for t in threading.enumerate() if isinstance(t, Turn)]:
        thread.join(10.0)
        assert not thread.is_alive()


@pytest.mark.lammps
def test_a_walker_of_half_the_step_makes_twice_the_steps_beside_the_others(job):
    both = job([segment(5, 4, None, (60.0, 60.0)), segment(5, 4, None, (60.0, 60.0), halvings=1)])
    found = run_driven(both)
    for number in (0, 1):
        same(found[number], alone(both, number))
        np.testing.assert_array_equal(found[number].arrays["step"], np.arange(4, 24, 4))
    off = np.abs(found[0].arrays["positions"] - found[1].arrays["positions"]).max()
    assert off > 1e-3  # other velocities


@pytest.mark.lammps
def test_a_species_that_the_model_has_not_seen_is_named(job):
    two = job([segment()] * 2, "schnet")
    strange = tuple(Walker(w.number, w.segment, salt(w.number, "KCl")) for w in two.walkers)
    two = replace(two, potential=PotentialLines(("Cl", "K"), ""), walkers=strange)
    with pytest.raises(EngineError, match="knows Na, Cl, and the frames also hold K"):
        run_driven(two)
    causes = [stretch.cause for stretch in run_driven(replace(two, last=True)).values()]
    assert len(causes) == 2
    assert all("knows Na, Cl" in cause for cause in causes)


# --- who asks, and what is answered


class Recorder(ToyCrystal):
    """Remembers how many frames it was asked for at once, and refuses cells of 7 Å."""

    def __init__(self, error=None):
        super().__init__()
        self.asked, self.error = [], error

    def evaluate(self, frames):
        self.asked.append(len(frames))
        if self.error is not None:
            raise self.error
        if (frames.cell[:, 0, 0] == 7.0).any():
            raise Unphysical("This cell is refused.")
        return super().evaluate(frames)


def asks(cells):
    """Return work that asks for the energy of one atom in cubes, and returns the energies."""

    def work(share):
        share.begin(np.array([18]))
        return [share.evaluate(np.zeros((1, 3)), a * np.eye(3))[0] for a in cells]

    return work


def test_all_that_are_left_are_asked_for_at_once():
    model = Recorder()
    found = Batch(model).run([asks([3.0, 3.5]), asks([3.1] * 4), asks([])])
    assert model.asked == [2, 2, 1, 1]
    right = [Batch(ToyCrystal()).run([asks(cells)])[0] for cells in ([3.0, 3.5], [3.1] * 4)]
    assert found == [*right, []]


def test_a_bad_frame_is_the_failure_of_its_walker_alone():
    def bears(share):
        share.begin(np.array([18]))
        with pytest.raises(Unphysical, match="refused"):
            share.evaluate(np.zeros((1, 3)), 7.0 * np.eye(3))
        return "borne"

    model = Recorder()
    first, second, third = Batch(model).run([asks([3.0, 3.0]), bears, asks([3.0])])
    assert (len(first), second, len(third)) == (2, "borne", 1)
    assert model.asked == [3, 1, 1, 1, 1]


def test_what_is_not_of_a_walker_fails_all():
    for error in (MemoryError("no room"), MachineFault("The node is gone.")):
        model = Recorder(error)
        with pytest.raises(type(error)):
            Batch(model).run([asks([3.0]), asks([3.0])])
        assert model.asked == [2]


def test_walkers_of_other_atoms_are_refused():
    def other(share):
        share.begin(np.array([10]))

    with pytest.raises(EngineError, match="same atoms"):
        Batch(ToyCrystal()).run([asks([3.0]), other])


def test_a_device_that_is_not_there_is_named(tmp_path):
    import torch

    ToyCrystal().export(tmp_path / "toy.pt")
    with pytest.raises(EngineError, match="runs on the CPU alone"):
        load_model_file(tmp_path / "toy.pt", "cuda")
    potential().export(tmp_path / "schnet.pt")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="device is cuda, and this worker sees no GPU"):
            load_model_file(tmp_path / "schnet.pt", "cuda")


@pytest.mark.gpu
@pytest.mark.lammps
def test_on_a_gpu_a_batch_is_what_it_is_on_the_cpu_and_comes_again_bitwise(job):
    four = job([segment(2, 5)] * 4, "schnet")
    here, there, again = (run_driven(replace(four, device=d)) for d in ("cpu", "cuda", "cuda"))
    for number, stretch in here.items():
        np.testing.assert_allclose(there[number].arrays["forces"], stretch.arrays["forces"], atol=1e-4)
        same(again[number], there[number])
