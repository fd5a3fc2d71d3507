"""MOMT in LAMMPS: forces and virial against finite differences, and its limits against plain molecular dynamics."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.lammps import BAR, Lammps, single_points, to_lammps
from campaign.engines.lammps_momt import BiasState, Momt, build
from campaign.engines.lammps_mpi import run_job
from campaign.engines.lammps_potential import PotentialLines
from campaign.engines.walkers import Job, Walker
from campaign.errors import Unphysical
from campaign.frames import Frames
from campaign.science import momt
from campaign.science.momt import Ensemble, Learning, Order, Window
from campaign.tasks import Context, Task

pytestmark = pytest.mark.lammps

TABLE = Path(__file__).parents[2] / "templates/potentials/NiNb_2016.eam.fs"
NI = PotentialLines(("Ni",), f"pair_style eam/fs\npair_coeff * * {TABLE} Ni")
NINB = PotentialLines(("Ni", "Nb"), f"pair_style eam/fs\npair_coeff * * {TABLE} Ni Nb")
P0 = 1.0 / BAR
TASK = Task("sample", "x", {"a": 1})


@pytest.fixture
def mpi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return Context(tmp_path, {"lammps": ["mpiexec", "-n", "{ranks}"]})


CRYSTALS = {
    "fcc": ("Ni", {"a": 3.52, "cubic": True}, (2, 2, 2)),
    "bcc": ("Ni", {"a": 2.8, "cubic": True}, (3, 3, 3)),
    "hcp": ("Ni", {"a": 2.48}, (4, 4, 2)),
    "diamond": ("Ni", {"a": 5.2, "cubic": True}, (2, 2, 2)),
    "rocksalt": ("NiNb", {"a": 4.9, "cubic": True}, (2, 2, 2)),
    "none": ("Ni", {"a": 3.52, "cubic": True}, (2, 2, 2)),
}


def crystal(kind):
    symbol, options, repeats = CRYSTALS[kind]
    unit = bulk(symbol, "fcc" if kind == "none" else kind, **options)
    order = None if kind == "none" else Order.of_crystal(unit.get_scaled_positions(), repeats, np.array(unit.cell))
    return unit * repeats, order


def walker(spec, order, grid=None, learn=False, **options):
    state = BiasState.empty(spec.learning.bins)
    if grid is not None:
        state.own[:] = grid
    return Momt(spec, order, state, learn=learn, **options)


def ensemble(atoms, window, temperature=2000.0, **learning):
    return Ensemble(atoms, temperature, P0, window, replace(Learning.of_size(atoms), **learning))


class Still:
    """Atoms that do not move: U_eff, forces and virial of the extended ensemble where they are put."""

    def __init__(self, potential, atoms, external):
        self.lammps, self.external = Lammps(potential, external=external), external
        positions, self.cell, _ = to_lammps(atoms.positions, np.array(atoms.cell))
        self.lammps.create(atoms.numbers, positions, self.cell)
        self.lammps.command("compute total all pressure NULL virial")
        self.lammps.command("thermo_style custom step pe vol c_phys_pe c_virial[1] c_total[1]")
        self.lammps.command("reset_timestep 0")
        external.begin(0)
        self.library = self.lammps.library

    def at(self, positions=None, scale=None):
        """Return U_eff - P0 V, the forces and the virial (3, 3)."""
        if positions is not None:
            flat = positions.ravel()
            self.library.scatter_atoms("x", 1, 3, (ctypes.c_double * len(flat))(*flat))
        self.lammps.command("run 0 post no")
        f = np.array(self.library.gather_atoms("f", 1, 3)).reshape(-1, 3)
        p = self.library.extract_compute("total", 0, 1)
        volume = self.library.get_thermo("vol")
        w = np.array([p[k] for k in range(6)]) * volume / BAR
        now = self.external.now
        u = self.external.par[momt.KT] * now[momt.ENTROPY] - self.external.par[momt.PRESSURE] * volume
        return u, f, w

    def strain(self, factors):
        """Stretch the cell, scaled coordinates kept."""
        words = []
        low, high = self.library.extract_box()[:2]
        for name, lo, hi, s in zip("xyz", low, high, factors, strict=True):
            words += [name, "final", repr(lo * s), repr(hi * s)]
        xy, yz, xz = self.library.extract_box()[2:5]
        tilts = [("xy", xy * factors[0]), ("xz", xz * factors[0]), ("yz", yz * factors[1])]
        if any(abs(t) > 1e-12 for _, t in tilts):
            words += [w for name, t in tilts for w in (name, "final", repr(t))]
        self.lammps.command(f"change_box all {' '.join(words)} remap units box")


def derivative(function, step):
    """Return the fourth-order central difference of ``function`` at 0."""
    values = [function(k * step) for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", CRYSTALS)
def test_forces_and_virial_are_the_derivatives_of_the_effective_energy(kind, compiled):
    atoms, order = crystal(kind)
    rng = np.random.default_rng(5)
    atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.12
    potential = NINB if kind == "rocksalt" else NI
    energy = single_points(potential, Frames.build(atoms.numbers, atoms.positions[None], np.array(atoms.cell)))[0][0]
    h = energy / len(atoms)
    spec = ensemble(len(atoms), Window(h - 0.31, h + 0.4, 900.0, 3500.0))
    bins = spec.learning.bins if order is not None else (spec.learning.bins[0], 1)
    spec = replace(spec, learning=replace(spec.learning, bins=bins), limits=(-1e9, 1e9))
    external = walker(spec, order, rng.normal(size=bins) * 10.0, use_numba=compiled)
    still = Still(potential, atoms, external)
    x0 = to_lammps(atoms.positions, np.array(atoms.cell))[0]
    _, forces, virial = still.at(x0)
    scale, slope, q = external.now[[momt.LAMBDA, momt.SLOPE, 5]]
    assert abs(scale - 1.0) > 0.05  # the test sees the scaled forces
    if order is not None:
        assert abs(slope) > 1.0  # and those of the order parameter
        assert 0.2 < q < 0.999
    for _ in range(3):
        g = rng.normal(size=x0.shape)
        g /= np.linalg.norm(g)
        numeric = -derivative(lambda d, g=g: still.at(x0 + d * g)[0], 2e-4)
        assert (forces * g).sum() == pytest.approx(numeric, rel=1e-6, abs=1e-6 * np.linalg.norm(forces))
    still.at(x0)
    for axis in range(3):

        def stretched(d, axis=axis):
            factors = [1.0, 1.0, 1.0]
            factors[axis] += d
            still.strain(factors)
            found = still.at()[0]
            still.strain([1 / f for f in factors])
            return found

        numeric = -derivative(stretched, 2e-4)
        assert virial[axis] == pytest.approx(numeric, rel=1e-6, abs=1e-6 * np.abs(virial).max())


def start(seed=1, prepare=()):
    atoms, _ = crystal("fcc")
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed, prepare)


def test_with_lambda_one_it_is_plain_npt_to_the_last_bit():
    segment = Segment(10, 100, 0, 0.002, (2000.0, 2000.0), 1.0)
    plain, _ = run_segment(NI, segment, start())
    flat = ensemble(32, Window(-4.75, -4.05, 2000.0, 2000.0, stiffness=0.0))
    biased, _ = run_segment(NI, segment, start(), external=walker(flat, crystal("fcc")[1]))
    assert (biased["scale"] == 1.0).all()
    for name in ("positions", "cell"):
        assert (plain[name] == biased[name]).all(), name
    for name in ("energy", "forces", "stress", "energies"):
        assert np.allclose(plain[name], biased[name], rtol=1e-12, atol=1e-12), name


def test_frames_carry_the_physics_and_what_reweights_them():
    spec = ensemble(32, Window(-4.75, -4.05, 900.0, 3500.0), height=1.0)
    external = walker(spec, crystal("fcc")[1], learn=True)
    arrays, _ = run_segment(NI, Segment(40, 25, 0, 0.002, (2000.0, 2000.0), 1.0), start(), external=external)
    assert np.abs(arrays["scale"] - 1.0).max() > 0.2
    frames = Frames.build(crystal("fcc")[0].numbers, **{k: v for k, v in arrays.items() if k != "kinetic"})
    energy, forces, stress = single_points(NI, frames)
    assert np.allclose(frames.energy, energy, rtol=1e-10)
    assert np.allclose(frames.forces, forces, atol=1e-8)
    assert np.allclose(frames.stress, stress, atol=1e-9)
    enthalpy = frames.energy + P0 * frames.volume
    assert np.allclose(frames.weight, frames.bias - enthalpy / (momt.BOLTZMANN * 2000.0), atol=1e-9)
    rho = np.exp(2j * np.pi * np.linalg.solve(frames.cell[-1].T, frames.positions[-1].T).T @ _vectors().T).mean(axis=0)
    assert frames.order[-1] == pytest.approx(np.sqrt((abs(rho) ** 2).mean()), rel=1e-9)


def _vectors():
    return crystal("fcc")[1].vectors


def test_the_compiled_callback_and_the_python_one_make_the_same_frames():
    segment = Segment(20, 25, 0, 0.002, (2000.0, 2000.0), 1.0)
    spec = ensemble(32, Window(-4.75, -4.05, 900.0, 3500.0))
    found = []
    for compiled in (True, False):
        external = walker(spec, crystal("fcc")[1], learn=True, use_numba=compiled)
        found.append((run_segment(NI, segment, start(), external=external)[0], external.checkpoint()))
    for name in ("positions", "order", "bias", "scale"):
        assert np.allclose(found[0][0][name], found[1][0][name], rtol=1e-7, atol=1e-9), name
    for name, array in found[0][1].items():
        assert np.allclose(array, found[1][1][name], rtol=1e-7), name


def test_it_learns_at_every_tenth_step_and_goes_on_exactly_from_a_checkpoint():
    spec, order = ensemble(32, Window(-4.75, -4.05, 900.0, 3500.0)), crystal("fcc")[1]
    segment = Segment(8, 25, 0, 0.002, (2000.0, 2000.0), 1.0)
    one = walker(spec, order, learn=True)
    _, checkpoint = run_segment(NI, segment, start(), external=one)
    assert one.state.counts[0] == 20
    left = {name: array.copy() for name, array in one.checkpoint().items()}
    later = []
    for _ in range(2):
        two = build(bias(spec, order), {}, left, None, None)
        np.testing.assert_array_equal(two.grid, one.grid)
        np.testing.assert_array_equal(two.state.visits, one.state.visits)
        later.append((run_segment(NI, replace(segment, first=200), checkpoint, external=two)[0], two.checkpoint()))
    assert two.state.counts[0] == 40
    for a, b in zip(later[0], later[1], strict=True):
        assert all((a[name] == b[name]).all() for name in a if np.isfinite(a[name]).all())


def bias(spec, order):
    return {"ensemble": spec.to_json(), "order": order.to_json(), "learn": True, "shared": True}


def test_a_bias_that_does_not_learn_is_still_counted():
    spec, order = ensemble(32, Window(-4.9, -4.05, 900.0, 3500.0)), crystal("fcc")[1]
    external = walker(spec, order, np.ones(spec.learning.bins), learn=False)
    run_segment(NI, Segment(8, 25, 0, 0.002, (2000.0, 2000.0), 1.0), start(), external=external)
    assert external.state.visits.sum() == 20
    assert external.state.counts[0] == external.state.counts[4] == 0
    assert (external.state.own == 1.0).all()


def test_compiled_code_is_kept_for_the_very_sources_it_was_made_of(tmp_path):
    """numba looks at one file only: a change in what is compiled into the callback must not be missed."""
    package = tmp_path / "campaign"
    shutil.copytree(Path(momt.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numpy as np; import test_lammps_momt as t; from campaign.science import momt; "
        "e = t.walker(t.ensemble(32, t.Window(-4.75, -4.05, 900.0, 3500.0)), None); "
        "t.run_segment(t.NI, t.Segment(1, 5, 0, 0.002, (2000.0, 2000.0), 1.0), t.start(), external=e); "
        "print(momt.__file__, repr(float(e.now[1])))"
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent}"}

    def scale():
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        path, number = done.stdout.split()
        assert path.startswith(str(tmp_path))
        return float(number)

    before = scale()
    assert scale() == before
    source = package / "science" / "momt.py"
    old = "out[LAMBDA] = min("
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, "out[LAMBDA] = 1.5 * min("))
    assert abs(scale() / before - 1.0) > 0.1


def test_a_halved_time_step_deposits_at_the_same_times():
    spec, order = ensemble(32, Window(-4.75, -4.05, 900.0, 3500.0)), crystal("fcc")[1]
    external = walker(spec, order, learn=True)
    segment = Segment(8, 25, 0, 0.002, (2000.0, 2000.0), 1.0, halvings=1)
    run_segment(NI, segment, start(), external=external)
    assert external.state.counts[0] == 20


def test_a_window_without_states_stops_the_walker_with_its_enthalpy():
    spec, order = ensemble(32, Window(-6.0, -5.5, 900.0, 3500.0), every=1), crystal("fcc")[1]
    segment = Segment(12, 50, 0, 0.001, (2000.0, 2000.0), 1.0)
    external = walker(spec, order, learn=True)
    _, checkpoint = run_segment(NI, segment, start(), external=external)
    left = external.checkpoint()  # patience goes on from segment to segment
    later = build({**bias(spec, order), "learn": False}, {}, left, None, None)
    run_segment(NI, segment, checkpoint, external=later)
    with pytest.raises(Unphysical, match=r"window of -6 to -5.5 eV/atom for 1200 steps .*is now -4\.\d+.*auto"):
        later.checkpoint()


@pytest.mark.slow
def test_a_fixed_lambda_samples_npt_at_another_temperature():
    """lambda = T0 / T at T0 samples what plain NPT at T does: 12 means of enthalpy and volume."""
    order = crystal("fcc")[1]
    scores = []
    for t, hot in ((1000.0, False), (1300.0, False), (1600.0, False), (2000.0, True), (2400.0, True), (2800.0, True)):
        melt = ((4000.0, 4.0, 1.0), (t, 2.0, 1.0)) if hot else ((t, 2.0, 1.0),)
        flat = ensemble(32, Window(-4.75, -4.05, t, t, stiffness=0.0))
        means = []
        for set_point, external in ((t, None), (2000.0, walker(flat, order))):
            segment = Segment(1000, 50, 0, 0.002, (set_point, set_point), 1.0)
            arrays, _ = run_segment(NI, segment, start(3, melt), external=external)
            volume = np.linalg.det(arrays["cell"])[100:]
            h = (arrays["energy"][100:] + P0 * volume) / 32
            means.append([(x.mean(), _error(x)) for x in (h, volume)])
        scores += [(a - b) / np.hypot(da, db) for (a, da), (b, db) in zip(*means, strict=True)]
    print("largest z of", len(scores), "is", max(map(abs, scores)))
    assert len(scores) == 12
    assert max(map(abs, scores)) < 3.0


def _error(x):
    blocks = np.array([b.mean() for b in np.array_split(x, 12)])
    return blocks.std(ddof=1) / np.sqrt(len(blocks))


# --- several walkers, several ranks


def job(walkers=1, ranks=1, shared=True, frames=8):
    spec, order = ensemble(32, Window(-4.75, -4.05, 900.0, 3500.0), height=1.0), crystal("fcc")[1]
    segment = Segment(frames, 25, 0, 0.002, (2000.0, 2000.0), 1.0)
    found = tuple(Walker(k, segment, start(k + 1)) for k in range(walkers))
    return Job(NI, found, ranks, bias={**bias(spec, order), "shared": shared})


def test_walkers_of_a_job_share_one_bias_to_the_last_bit(mpi):
    one, two = run_job(job(2), mpi, TASK).values()
    assert np.abs(one.arrays["positions"] - two.arrays["positions"]).max() > 0.1
    for name in ("own", "total"):
        np.testing.assert_array_equal(one.extra[name], two.extra[name])
    assert one.extra["counts"][0] == 40
    (alone,) = run_job(job(1), mpi, TASK).values()
    assert alone.extra["counts"][0] == 20
    assert np.abs(alone.arrays["positions"][-1] - one.arrays["positions"][-1]).max() > 1e-6  # the other one matters


def test_walkers_that_do_not_share_are_as_if_alone(mpi):
    (alone,) = run_job(job(1), mpi, TASK).values()
    together = run_job(job(2, shared=False), mpi, TASK)[0]
    for name, array in alone.arrays.items():
        np.testing.assert_array_equal(array, together.arrays[name], err_msg=name)
    np.testing.assert_array_equal(alone.extra["own"], together.extra["own"])


@pytest.mark.parametrize("walkers", [1, 2])
def test_a_walker_of_two_ranks_gives_the_frames_of_one_to_rounding(mpi, walkers):
    one, two = (run_job(job(walkers, ranks, frames=4), mpi, TASK) for ranks in (1, 2))
    for number in one:
        for name in ("positions", "energy", "forces", "stress", "order", "bias", "scale"):
            a, b = one[number].arrays[name], two[number].arrays[name]
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(two[number].extra["own"], one[number].extra["own"], rtol=1e-6, atol=1e-9)


def test_a_walker_that_stops_on_the_last_attempt_lets_the_others_go_on(mpi):
    bad = crystal("fcc")[0]
    bad.positions[1] = bad.positions[0] + [0.4, 0, 0]
    both = job(2)
    wrong = Walker(1, both.walkers[1].segment, Start(bad.numbers, bad.positions, np.array(bad.cell), 1))
    found = run_job(replace(both, walkers=(both.walkers[0], wrong), last=True), mpi, TASK)
    assert found[1].cause
    assert not found[0].cause
    assert len(found[0].arrays["step"]) == 8


def test_the_deposits_of_other_jobs_push_from_the_beginning():
    here = job(1)
    others = np.zeros((2, *Ensemble.from_json(here.bias["ensemble"]).learning.bins))
    others[:] = np.linspace(0, 60, others.shape[2])  # the crystal, at high Q, is pushed
    arrays = {"others": others, "others_counts": np.array([3000, 4000])}
    (alone,) = run_job(here, None, TASK).values()
    (pushed,) = run_job(replace(here, arrays=arrays), None, TASK).values()
    assert pushed.extra["counts"][1] == 7000
    assert np.abs(pushed.arrays["positions"] - alone.arrays["positions"]).max() > 1e-3
    np.testing.assert_array_equal(pushed.extra["others"], others)
