"""A small SchNet, trained here on solid NaCl, drives LAMMPS: energy is conserved, segments make one trajectory."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines import schnetpack_train
from campaign.engines.checkpoints import Execution
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.guards import BOLTZMANN, Limits, Watch
from campaign.engines.lammps_potential import PotentialLines, load_potential
from campaign.engines.models import Mean
from campaign.engines.schnetpack import Potential, network
from campaign.errors import EngineError
from campaign.frames import Frames

pytestmark = pytest.mark.lammps

POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"
SPEC = {
    "model": "schnet", "features": 16, "interactions": 2, "cutoff": 5.0, "epochs": 60, "batch": 1, "rate": 5e-3,
    "wall": True, "loss": {"energy": 0.01, "forces": 0.95, "stress": 0.04},
}  # fmt: skip
LINES = PotentialLines(("Cl", "Na"), "")


def salt():
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * (2, 2, 2)
    return Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 3, ((300.0, 0.5, None),))


@pytest.fixture(scope="module")
def trained():
    """Return a potential trained on 24 frames of solid NaCl."""
    sampled = Segment(24, 20, 0, 0.002, (300.0, 900.0), None)
    arrays, _ = run_segment(load_potential(POTENTIALS / "nacl_bmhtf.lmp"), sampled, salt())
    frames = Frames.build(salt().numbers, **{k: v for k, v in arrays.items() if k != "kinetic"})
    weights, _ = schnetpack_train.train([frames], SPEC, 1, lambda values: None)
    return Potential(SPEC, weights)


def total(arrays, atoms=64):
    """Return the total energy of each frame, eV/atom: LAMMPS's temperature has 3N - 3 degrees of freedom."""
    return arrays["energy"] / atoms + 1.5 * (atoms - 1) / atoms * BOLTZMANN * arrays["kinetic"]


def drift(time, values):
    """Return the change along the fitted line, eV/atom."""
    return float(np.polyfit(time, values, 1)[0] * (time[-1] - time[0]))


@pytest.mark.parametrize("picoseconds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_nve_of_solid_nacl_keeps_its_energy(trained, picoseconds):
    solid = Segment(100 * picoseconds, 10, 0, 0.001, (300.0, 300.0), None, isolated=True)
    watch = Watch(salt().numbers, Limits(0.6, 30.0, 1e5, 1e4, energy=1e-3))
    arrays, _ = run_segment(LINES, solid, salt(), trained, watch=watch)
    energy, time = total(arrays), 0.001 * arrays["step"]
    assert abs(drift(time, energy)) < 1e-4  # 0.1 meV/atom
    assert energy.std() < 1e-4
    assert arrays["kinetic"].std() > 5  # it does exchange energy: nothing holds it
    assert 150 < arrays["kinetic"].mean() < 450
    frames = Frames.build(salt().numbers, arrays["positions"][-3:], arrays["cell"][-3:])
    exact = Potential(SPEC, trained.weights, "float64").evaluate(frames)
    for name, right in zip(("energy", "forces", "stress"), exact, strict=True):
        np.testing.assert_allclose(
            arrays[name][-3:], right, atol=3e-5 * max(1.0, np.abs(right).max() / 10), err_msg=name
        )


def test_walls_that_are_hit_keep_the_energy_at_a_step_of_1_fs(trained):
    """Moved outwards, so that the solid at 300 K hits them all the time."""
    close = trained.weights["core"] * 1.1
    walled, bare = (Potential(SPEC, trained.weights | {"core": c}) for c in (close, 0.0 * close))
    solid = Segment(100, 10, 0, 0.001, (300.0, 300.0), None, isolated=True)
    arrays, _ = run_segment(LINES, solid, salt(), walled)
    frames = Frames.build(salt().numbers, arrays["positions"], arrays["cell"])
    work = walled.evaluate(frames)[0] - bare.evaluate(frames)[0]
    assert work.max() > 0.05  # eV
    assert np.ptp(work) > 0.5 * work.max()
    assert abs(drift(0.001 * arrays["step"], total(arrays))) < 1e-4
    assert total(arrays).std() < 1e-4


def test_a_longer_step_drifts_more_so_the_test_can_fail(trained):
    spread = []
    for timestep in (0.001, 0.012):
        solid = Segment(60, round(0.012 / timestep), 0, timestep, (300.0, 300.0), None, isolated=True)
        spread.append(float(total(run_segment(LINES, solid, salt(), trained)[0]).std()))
    assert spread[1] > 10 * spread[0]


@pytest.mark.parametrize("pressure", [None, 1.0])
@pytest.mark.parametrize("members", [1, 2])
def test_segments_give_bitwise_what_they_gave(trained, pressure, members):
    model = trained if members == 1 else Mean([trained, trained])
    ends = []
    for _ in range(2):
        first, checkpoint = run_segment(LINES, Segment(10, 5, 0, 0.002, (300.0,) * 2, pressure), salt(), model)
        second, end = run_segment(LINES, Segment(10, 5, 50, 0.002, (300.0,) * 2, pressure), checkpoint, model)
        ends.append((first, second, end))
    for k in (0, 1):
        for name, array in ends[0][k].items():
            np.testing.assert_array_equal(ends[1][k][name], array, err_msg=name)
    assert ends[0][2] == ends[1][2]
    np.testing.assert_array_equal(ends[0][1]["step"], np.arange(55, 105, 5))


FAMILIES = ["schnet", "painn", "so3net", pytest.param("ani", marks=pytest.mark.requires("torchani"))]


@pytest.mark.parametrize("pressure", [None, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_drives_the_atoms(family, pressure):
    """Untrained, for a few steps: frames have the model's energy, forces and stress, in both kinds of cell."""
    spec = {"model": family, "features": 8, "interactions": 1, "cutoff": 4.0, "species": [11, 17], "layers": [8]}
    weights = {k: v.numpy() for k, v in network(spec, 0).state_dict().items()}
    weights |= {"reference.numbers": np.array([11, 17]), "reference.energies": np.zeros(2), "scale": np.array([0.3])}
    model = Potential(spec, weights)
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
    sheared = np.array(atoms.cell) + np.tril(0.3 * np.ones((3, 3)), -1)
    start = Start(atoms.numbers, atoms.positions @ np.linalg.inv(atoms.cell) @ sheared, sheared, 3)
    arrays, _ = run_segment(LINES, Segment(3, 5, 0, 0.001, (300.0,) * 2, pressure), start, model)
    frames = Frames.build(atoms.numbers, arrays["positions"], arrays["cell"])
    for name, right in zip(("energy", "forces", "stress"), model.evaluate(frames), strict=True):
        np.testing.assert_allclose(arrays[name], right, atol=2e-6 * max(1.0, np.abs(right).max()), err_msg=name)
    assert np.abs(arrays["forces"]).max() > 1e-4


@pytest.mark.requires("quippy")
def test_gap_drives_the_atoms(tmp_path):
    from campaign.engines.gap import train
    from campaign.engines.model_files import load_model_file
    from campaign.engines.models import build_model

    sampled = Segment(6, 20, 0, 0.002, (300.0, 900.0), None)
    arrays, _ = run_segment(load_potential(POTENTIALS / "nacl_bmhtf.lmp"), sampled, salt())
    frames = Frames.build(salt().numbers, **{k: v for k, v in arrays.items() if k != "kinetic"})
    spec = {"model": "gap", "cutoff": 5.0, "n_max": 3, "l_max": 2, "sparse": 20, "pairs": 10}
    weights, _ = train([frames], spec, 1, lambda values: None, None, Execution())
    build_model(spec, weights).export(tmp_path / "gap.pt")
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 3)
    solid = Segment(8, 5, 0, 0.001, (300.0, 300.0), None, isolated=True)
    arrays, _ = run_segment(LINES, solid, start, load_model_file(tmp_path / "gap.pt"))
    assert np.ptp(total(arrays, 8)) < 1e-4
    assert arrays["kinetic"].std() > 5


def test_a_species_that_the_model_has_not_seen_is_named(trained):
    atoms = bulk("KCl", "rocksalt", a=6.3, cubic=True)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 1)
    with pytest.raises(EngineError, match="knows Na, Cl, and the frames also hold K"):
        run_segment(PotentialLines(("Cl", "K"), ""), Segment(1, 1, 0, 0.001, (300.0,) * 2, None), start, trained)
