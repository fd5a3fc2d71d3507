"""Walkers side by side in one MPI job, forces that are no physics, per-atom energies, and what stops a walker."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines import lammps_mpi, walkers
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.fake import ToyCrystal
from campaign.engines.guards import KEPT, FirstSign, Guard, Limits, Watch, heights
from campaign.engines.lammps import Lammps, single_points, to_lammps
from campaign.engines.lammps_mpi import run_job
from campaign.engines.lammps_potential import PotentialLines, load_potential
from campaign.engines.walkers import Job, Stretch, Walker, pack_checkpoints, unpack_checkpoints
from campaign.errors import EngineError, MachineFault, Unphysical
from campaign.frames import Frames
from campaign.science.neighbours import closest_ratio
from campaign.tasks import Context, Task

pytestmark = pytest.mark.lammps

BIN = Path(sys.executable).parent
POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"
LJ = PotentialLines(("Ar",), "pair_style lj/cut 7.0\npair_coeff 1 1 0.010325 3.405\npair_modify shift yes")
NICKEL = PotentialLines(("Ni",), f"pair_style eam/fs\npair_coeff * * {POTENTIALS}/NiNb_2016.eam.fs Ni")
TASK = Task("sample", "x", {"a": 1})


def argon(seed=0):
    atoms = bulk("Ar", "fcc", a=5.5, cubic=True) * (2, 2, 2)
    atoms.positions += 0.1 * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    return atoms


def start(atoms, seed=7):
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed)


def segment(frames=4, every=5, pressure=None, **options):
    return Segment(frames, every, 0, pressure=pressure, **{"timestep": 0.004, "temperature": (60.0, 90.0)} | options)


@pytest.fixture
def context(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.pathsep.join([str(BIN), os.environ["PATH"]]))
    return Context(tmp_path, {"lammps": ["mpiexec", "-n", "{ranks}"]})


def job(count=3, ranks=1, bad=(), **options):
    """Return a job of walkers with seeds of their own; those in ``bad`` have two atoms on top of each other."""
    found = []
    for k in range(count):
        atoms = argon(k)
        if k in bad:
            atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]
        found.append(Walker(k, segment(pressure=1.0), start(atoms, k)))
    return Job(LJ, tuple(found), ranks, **options)


# --- several walkers in one MPI job


def test_a_walker_gives_the_same_frames_alone_and_with_others(context):
    together = run_job(job(), context, TASK)
    assert list(together) == [0, 1, 2]
    for number, walker in enumerate(job().walkers):
        (alone,) = run_job(Job(LJ, (walker,)), context, TASK).values()
        for name, array in alone.arrays.items():
            np.testing.assert_array_equal(together[number].arrays[name], array, err_msg=name)
        onward = replace(walker, segment=Segment(2, 5, 20, 0.004, (90.0, 90.0), 1.0), start=alone.checkpoint)
        other = replace(onward, start=together[number].checkpoint)
        after, same = (run_job(Job(LJ, (w,)), context, TASK)[number].arrays for w in (onward, other))
        np.testing.assert_array_equal(after["positions"], same["positions"])


def test_walkers_of_two_ranks_each_give_the_physics_of_one(context):
    one, two = (run_job(job(2, ranks), context, TASK) for ranks in (1, 2))
    for number in (0, 1):
        for name, array in one[number].arrays.items():
            np.testing.assert_allclose(two[number].arrays[name], array, atol=1e-9, err_msg=name)


def test_a_walker_that_fails_at_first_fails_the_task(context):
    with pytest.raises(Unphysical, match=r"LAMMPS: |at step|ran away"):
        run_job(job(bad=(1,)), context, TASK)


@pytest.mark.parametrize("ranks", [1, 2])
def test_at_last_a_walker_that_fails_ends_and_the_others_are_kept_in_full(context, ranks):
    found = run_job(job(2 if ranks > 1 else 3, ranks, bad=(1,), last=True), context, TASK)
    good = run_job(job(1, ranks), context, TASK)[0]
    for name, array in good.arrays.items():
        np.testing.assert_array_equal(found[0].arrays[name], array)
    assert found[1].cause
    assert not found[1].checkpoint
    assert [k for k, f in found.items() if not f.cause] == ([0] if ranks > 1 else [0, 2])
    assert list(unpack_checkpoints(pack_checkpoints(found))) == ([0] if ranks > 1 else [0, 2])


def test_the_good_frames_of_a_walker_that_fails_at_last_are_kept(context):
    hot = segment(1000, 10, -800.0, temperature=(300.0, 300.0), barostat=0.3)  # it evaporates
    (found,) = run_job(Job(LJ, (Walker(4, hot, start(argon())),), last=True), context, TASK).values()
    assert "evaporated" in found.cause
    assert 3 < len(found.arrays["step"]) < 1000
    assert found.arrays["energies"].shape == (len(found.arrays["step"]), 32)
    with pytest.raises(Unphysical, match="evaporated"):
        run_job(Job(LJ, (Walker(4, hot, start(argon())),)), context, TASK)


def test_a_rank_that_fails_alone_ends_the_launch_and_the_others_run_again(context, monkeypatch):
    """It cannot wait for the other ranks of its walker: they are in MPI."""
    launched = []

    def launch(job, command, folder):
        launched.append([w.number for w in job.walkers])
        if 1 in launched[-1]:
            return {1: Stretch({}, b"", cause="Bad news of one rank.")}
        return {w.number: Stretch({}, b"x") for w in job.walkers}

    monkeypatch.setattr(lammps_mpi, "_launch", launch)
    found = run_job(job(3, 2, last=True), context, TASK)
    assert launched == [[0, 1, 2], [0, 2]]
    assert list(found) == [0, 1, 2]
    assert [f.cause for f in found.values()] == ["", "Bad news of one rank.", ""]


def test_a_rank_that_lammps_fails_alone_is_no_deadlock(context):
    """Atoms that leave PPPM's grid are an error of the one rank that has them."""
    salt = bulk("NaCl", "rocksalt", a=5.9, cubic=True) * (2, 2, 2)
    potential = load_potential(POTENTIALS / "nacl_bmhtf.lmp")
    potential = replace(potential, lines=f"{potential.lines}\nneigh_modify delay 0 every 2000 check no")
    calm = Walker(0, segment(2, 10, timestep=0.002, temperature=(1500.0, 1500.0)), start(salt))
    wild = Walker(1, segment(2, 500, timestep=0.001, temperature=(4e4, 4e4)), start(salt))
    found = run_job(Job(potential, (calm, wild), 2, last=True), context, TASK)
    assert found[1].cause.startswith("LAMMPS: Out of range atoms - cannot compute PPPM")
    (alone,) = run_job(Job(potential, (calm,), 2), context, TASK).values()
    np.testing.assert_array_equal(found[0].arrays["positions"], alone.arrays["positions"])
    with pytest.raises(Unphysical, match="Out of range atoms"):
        run_job(Job(potential, (calm, wild), 2), context, TASK)


def test_a_launcher_of_too_few_ranks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(BIN), os.environ["PATH"]]))
    context = Context(tmp_path, {"lammps": ["mpiexec", "-n", "1"]})
    with pytest.raises(MachineFault, match="1 MPI ranks were started instead of 3"):
        run_job(job(), context, TASK)


def test_checkpoints_of_walkers_go_into_one_array_and_come_out():
    found = {
        3: Stretch({}, b"abc", {"grid": np.arange(6.0).reshape(2, 3), "deep/name": np.array([1])}),
        5: Stretch({}, b"", cause="It stopped."),
        9: Stretch({}, b""),
    }
    packed = pack_checkpoints(found)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == pack_checkpoints(found).tobytes()
    restarts = unpack_checkpoints(packed)
    assert list(restarts) == [3, 9]
    assert restarts[3][0] == b"abc"
    np.testing.assert_array_equal(restarts[3][1]["grid"], np.arange(6.0).reshape(2, 3))
    assert list(restarts[3][1]) == ["grid", "deep/name"]
    assert restarts[9] == (b"", {})


# --- forces that are no physics


class Spring:
    """Pulls every atom to where it was at the start; only its forces move the atoms."""

    def __init__(self, strength, breaks=-1):
        self.strength, self.breaks = strength, breaks
        self.said, self.steps, self.begun = [], 0, None
        self.error = None

    def attach(self, lammps):
        self.lmp = lammps.library
        lammps.command("fix spring all external pf/callback 1 1")
        lammps.command("fix_modify spring virial yes energy yes")
        self.home = None
        self.lmp.set_fix_external_callback("spring", self.call)

    def call(self, _caller, step, nlocal, tag, x, f):
        order = np.argsort(tag)
        self.home = x[order].copy() if self.home is None else self.home
        self.added = -self.strength * (x[order] - self.home) + 0.01 * self.strength
        self.added = self.added[np.argsort(order)]  # as the atoms lie in LAMMPS
        f[:] = self.added
        self.lmp.fix_external_set_energy_global("spring", 123.0)
        self.lmp.fix_external_set_virial_global("spring", [50.0] * 6)
        self.steps += 1
        if self.steps == self.breaks:
            self.error = EngineError("The spring broke.")
            self.lmp.force_timeout()

    def check(self):
        if self.error is not None:
            raise self.error

    def forces(self):
        return self.added

    def columns(self):
        return {"order": 0.5, "bias": float(self.steps), "weight": -1.0, "scale": 2.0}

    def begin(self, halvings):
        self.begun = halvings

    def exchange(self):
        self.said.append(self.steps)

    def checkpoint(self):
        return {"steps": np.array([self.steps])}

    def drain(self, frames):
        self.drained = frames


def test_a_frame_has_the_physics_without_what_an_external_force_added():
    spring = Spring(0.05)
    arrays, _ = run_segment(LJ, segment(halvings=1), start(argon()), external=spring)
    free, _ = run_segment(LJ, segment(halvings=1), start(argon()))
    assert np.abs(arrays["positions"] - free["positions"]).max() > 1e-4
    numbers = argon().numbers
    again = single_points(LJ, Frames.build(numbers, arrays["positions"], arrays["cell"]))
    for name, right in zip(("energy", "forces", "stress"), again, strict=True):
        np.testing.assert_allclose(arrays[name], right, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(arrays["energies"].sum(axis=1), again[0], rtol=1e-10)
    assert spring.begun == 1
    assert len(spring.said) == 4
    np.testing.assert_array_equal(arrays["bias"], spring.said)
    frames = Frames.build(numbers, **{k: v for k, v in arrays.items() if k != "kinetic"})
    assert (frames.scale == 2.0).all()


def test_an_external_force_that_fails_says_so_and_answers_the_others_to_the_end(monkeypatch):
    springs = []

    def make(job, walker, comm, exchange):
        springs.append(Spring(0.05, breaks=12))
        return springs[-1]

    monkeypatch.setattr(walkers, "make_external", make)
    alone = Job(LJ, (Walker(0, segment(), start(argon())),))
    with pytest.raises(EngineError, match="The spring broke"):
        walkers.run_walker(alone, alone.walkers[0])
    assert not hasattr(springs[0], "drained")
    found = walkers.run_walker(replace(alone, last=True), alone.walkers[0])
    assert found.cause == "The spring broke."
    assert len(found.arrays["step"]) == 2  # a call to begin with, and five a frame
    assert springs[1].drained == 2
    assert springs[1].drained + len(springs[1].said) == 4


# --- energies of the atoms


def test_energies_of_the_atoms_sum_to_the_energy():
    nickel = bulk("Ni", "fcc", a=3.52, cubic=True) * (2, 2, 2)  # smaller than twice the cutoff: images, and no error
    hot = Segment(5, 20, 0, 0.002, (2000.0, 2000.0), 1.0)
    arrays, _ = run_segment(NICKEL, hot, start(nickel))
    np.testing.assert_allclose(arrays["energies"].sum(axis=1), arrays["energy"], rtol=1e-10)
    assert np.ptp(arrays["energies"]) > 0.1
    salt = bulk("NaCl", "rocksalt", a=5.9, cubic=True) * (2, 2, 2)
    arrays, _ = run_segment(load_potential(POTENTIALS / "nacl_bmhtf.lmp"), hot, start(salt))
    np.testing.assert_allclose(arrays["energies"].sum(axis=1), arrays["energy"], rtol=1e-4)


def test_the_long_range_tail_belongs_to_no_atom():
    tail = PotentialLines(("Ar",), LJ.lines.replace("shift yes", "tail yes"))
    arrays, _ = run_segment(tail, segment(pressure=1.0), start(argon()))
    missing = (arrays["energy"] - arrays["energies"].sum(axis=1)) * np.linalg.det(arrays["cell"])
    assert np.isfinite(missing).all()
    assert missing[0] < -1.0
    np.testing.assert_allclose(missing, missing[0], rtol=1e-8)


def test_a_potential_without_energies_of_atoms_gives_none(monkeypatch):
    def zeros(self):
        found = state(self)
        return found | ({"energies": np.zeros(32)} if "energies" in found else {})

    state = Lammps.state
    monkeypatch.setattr(Lammps, "state", zeros)
    arrays, _ = run_segment(LJ, segment(), start(argon()))
    assert np.isnan(arrays["energies"]).all()
    assert arrays["energies"].shape == (4, 32)


def test_a_potential_that_refuses_energies_of_atoms_runs_without(monkeypatch):
    def refuse(self, text):
        if "pe/atom" in text:
            raise EngineError("LAMMPS: This style cannot compute per-atom energies")
        return command(self, text)

    command = Lammps.command
    right, _ = run_segment(LJ, segment(), start(argon()))
    monkeypatch.setattr(Lammps, "command", refuse)
    arrays, _ = run_segment(LJ, segment(), start(argon()))
    assert np.isnan(arrays["energies"]).all()
    np.testing.assert_array_equal(arrays["positions"], right["positions"])


# --- guards


def frame(atoms, **changes):
    a = len(atoms)
    values = {"energy": np.array(0.0), "forces": np.zeros((a, 3)), "stress": np.zeros((3, 3))}
    return {"positions": atoms.positions.copy(), "cell": np.array(atoms.cell), **values, **changes}


def test_two_atoms_that_meet_stop_a_walker_also_through_a_face():
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    guard = Guard(salt.numbers)
    guard.check(frame(salt), 300.0, 300.0, 1)
    near = frame(salt)
    near["positions"][3] = near["positions"][0] + [-0.7, 0.0, -0.7] + np.diag(near["cell"])
    with pytest.raises(Unphysical, match=r"Atoms 0 and 3 are 0\.99 Å apart at step 7"):
        guard.check(near, 300.0, 300.0, 7)
    near["positions"][3] += [0, 0.5, 0]  # 1.11 Å: over 0.4 of 2.68 Å (Na-Cl)
    guard.check(near, 300.0, 300.0, 7)


@pytest.mark.parametrize("name", ["positions", "energy", "forces", "stress"])
def test_what_is_not_finite_stops_a_walker(name):
    atoms = argon()
    bad = frame(atoms)
    bad[name] = bad[name].copy()
    bad[name][(0,) * bad[name].ndim] = np.nan
    with pytest.raises(Unphysical, match=f"Not finite at step 3: {name}"):
        Guard(atoms.numbers).check(bad, 300.0, 300.0, 3)


def test_a_cell_that_went_flat_stops_a_walker():
    cell = to_lammps(np.zeros((1, 3)), np.array(bulk("Ar", "fcc", a=20.0).cell))[1]
    at = {
        "positions": np.zeros((1, 3)),
        "energy": np.array(0.0),
        "forces": np.zeros((1, 3)),
        "stress": np.zeros((3, 3)),
    }
    guard = Guard(np.array([18]), tuple(heights(cell)))
    guard.check({**at, "cell": cell}, 300.0, 300.0, 1)
    flat = cell.copy()
    flat[2] *= 0.49
    with pytest.raises(Unphysical, match=r"thin at step 2.*collapsed"):
        guard.check({**at, "cell": flat}, 300.0, 300.0, 2)
    guard.check({**at, "cell": cell * [[1], [1], [0.51]]}, 300.0, 300.0, 3)


def test_a_walker_of_atoms_that_meet_stops_with_its_good_frames():
    soft = PotentialLines(("Ar",), "pair_style zero 5.0\npair_coeff * *")  # nothing keeps the atoms apart
    with pytest.raises(Unphysical, match=r"Atoms \d+ and \d+ are .* covalent radii") as caught:
        run_segment(soft, segment(2000, 10, temperature=(2000.0, 2000.0)), start(argon()))
    assert 0 < len(caught.value.frames["step"]) < 2000


# --- the first sign of failure

CALM = Limits(closest=0.4, force=30.0, volume=1e5, temperature=1e5)


def watched(limits, frames, state=None, numbers=None):
    """Show frames to a watch, one a step; return it, and the error that it stops with, if any."""
    watch = Watch(argon().numbers if numbers is None else numbers, limits, state)
    watch.begin(0, 0)
    try:
        for k, found in enumerate(frames):
            watch.step(k, found)
    except FirstSign as error:
        return watch, error
    return watch, None


def test_a_watch_sees_the_first_pair_that_is_too_close_whatever_it_skips():
    """It looks for pairs again only after atoms moved; a look at every step must see the same step first."""
    rng = np.random.default_rng(3)
    for seed in range(5):
        atoms = argon(seed)
        cell, x, frames = np.array(atoms.cell), atoms.positions.copy(), []
        for _ in range(400):
            x = x + 0.05 * rng.normal(size=x.shape)
            cell = cell * (1 + 0.002 * rng.normal())
            frames.append({**frame(atoms), "positions": x, "cell": cell})
        ratio = closest_ratio(
            Frames.build(atoms.numbers, [f["positions"] for f in frames], [f["cell"] for f in frames])
        )
        limit = float(np.sort(ratio)[10])  # ten frames are below it
        watch, error = watched(replace(CALM, closest=limit), frames)
        first = int(np.argmax(ratio < limit))
        assert error.sign["step"] == first
        assert error.sign["value"] == pytest.approx(ratio[first])
        kept = watch.frames()
        np.testing.assert_array_equal(kept["step"], np.arange(max(0, first - KEPT), first + 1))
        np.testing.assert_array_equal(kept["positions"][-1], frames[first]["positions"])


def test_each_limit_alone_stops_a_run_and_is_named():
    atoms, calm = argon(), frame(argon())
    hard = np.zeros((32, 3))
    hard[7] = 30.1 / np.sqrt(3)
    cases = {
        "largest force": {"forces": hard},
        "volume": {"cell": calm["cell"] * 5, "positions": calm["positions"] * 5},
        "stress": {"stress": np.full((3, 3), np.nan)},
        "energy": {"energy": np.array(np.inf)},
    }
    for name, change in cases.items():
        watch, error = watched(CALM, [calm] * 25 + [{**calm, **change}])
        assert error.sign["criterion"] == name
        assert error.sign["step"] == 25
        assert f"step 25: {name}" in str(error)
        last = 24 if name in ("stress", "energy") else 25  # what is not finite is no frame
        np.testing.assert_array_equal(watch.frames()["step"], np.arange(last - KEPT, last + 1))
    watch = Watch(atoms.numbers, replace(CALM, temperature=600.0))
    watch.frame(10, -1.0, 600.0)
    with pytest.raises(FirstSign, match=r"step 20: temperature \(601 K, the limit is 600\)"):
        watch.frame(20, -1.0, 601.0)


def test_the_steps_before_a_failure_are_those_of_the_segment_before_too():
    frames = [{**frame(argon()), "energy": np.array(float(k))} for k in range(30)]
    first, _ = watched(CALM, frames[:15])
    second = Watch(argon().numbers, CALM, first.state())
    second.begin(14, 0)
    for k, found in enumerate(frames[14:]):  # a segment begins with the last step of the one before
        second.step(k, found)
    whole, _ = watched(CALM, frames)
    for name, array in whole.frames().items():
        np.testing.assert_array_equal(second.frames()[name], array, err_msg=name)


class Bond(ToyCrystal):
    """Toy argon in which two atoms attract each other."""

    def evaluate(self, frames):
        energy, forces, stress = super().evaluate(frames)
        x = frames.positions
        d = x[:, 1] - x[:, 0]
        d -= np.round(d @ np.linalg.inv(frames.cell[0])) @ frames.cell[0]
        forces[:, 0] += 0.6 * d
        forces[:, 1] -= 0.6 * d
        return energy, forces, stress


@pytest.mark.parametrize("halvings", [0, 1])
def test_a_model_is_stopped_at_the_very_step_between_two_frames(halvings):
    watch = Watch(argon().numbers, replace(CALM, closest=0.95))
    long = segment(100, 40, timestep=0.001, halvings=halvings)
    with pytest.raises(FirstSign) as caught:
        run_segment(LJ, long, start(argon()), Bond(), watch=watch)
    sign, kept = caught.value.sign, watch.frames()
    assert sign["criterion"] == "closest pair"
    assert sign["step"] % 40
    np.testing.assert_array_equal(kept["step"], np.arange(sign["step"] - KEPT, sign["step"] + 1))
    ratio = closest_ratio(Frames.build(argon().numbers, kept["positions"], kept["cell"]))
    assert (ratio[:-1] >= 0.95).all()
    assert ratio[-1] == pytest.approx(sign["value"])
    assert sign["value"] < 0.95
    assert len(caught.value.frames["step"]) == sign["step"] // 40 > 0


def test_a_watch_changes_nothing_in_a_run_that_keeps_its_limits():
    plain, end = run_segment(LJ, segment(), start(argon()), ToyCrystal())
    watch = Watch(argon().numbers, CALM)
    same, last = run_segment(LJ, segment(), start(argon()), ToyCrystal(), watch=watch)
    for name, array in plain.items():
        np.testing.assert_array_equal(same[name], array, err_msg=name)
    assert last == end
    np.testing.assert_array_equal(watch.frames()["step"], np.arange(0, 21))
