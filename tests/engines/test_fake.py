"""The toy crystal: an exact potential, samples that continue, a model that errs by a little."""

import json

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.fake import EPSILON, RANGE, ToyCrystal, label, sample, train
from campaign.errors import EngineError
from campaign.frames import Frames
from campaign.tasks import Task

PARAMS = {
    "structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3, "supercell": [1, 1, 1]},
    "seed": 3,
    "walker": [0, 2],
    "frames": 5,
    "first": 10,
    "displacement": 0.1,
    "temperature": 300.0,
}


def test_two_atoms_have_the_pair_energy():
    frames = Frames.build(np.array([18, 18]), np.array([[[0, 0, 0], [2.0, 0, 0]]]), np.eye(3) * 20)
    energy, forces, stress = ToyCrystal().evaluate(frames)
    assert energy[0] == pytest.approx(EPSILON * (1 - 4 / RANGE**2) ** 3)
    assert forces[0, 1, 0] == pytest.approx(6 * EPSILON * 2 / RANGE**2 * (1 - 4 / RANGE**2) ** 2)
    np.testing.assert_allclose(forces[0, 0], -forces[0, 1])
    assert stress[0, 0, 0] == pytest.approx(-2.0 * forces[0, 1, 0] / 8000)  # repulsion is compression
    assert ToyCrystal(0.5).evaluate(frames)[0][0] == pytest.approx(energy[0] / 2)


def test_the_energies_of_the_atoms_add_up():
    rng = np.random.default_rng(1)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = Frames.build(atoms.numbers, atoms.positions + 0.2 * rng.normal(size=(3, 4, 3)), np.array(atoms.cell))
    each = ToyCrystal(0.7).atomic_energies(frames)
    assert each.shape == (3, 4)
    np.testing.assert_allclose(each.sum(axis=1), ToyCrystal(0.7).evaluate(frames)[0])


def test_a_frame_does_not_see_its_company():
    rng = np.random.default_rng(0)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = Frames.build(atoms.numbers, atoms.positions + 0.2 * rng.normal(size=(3, 4, 3)), np.array(atoms.cell))
    whole = ToyCrystal().evaluate(frames)
    for k in range(3):
        for a, b in zip(whole, ToyCrystal().evaluate(frames[k : k + 1]), strict=True):
            np.testing.assert_allclose(a[k], b[0], atol=1e-14)


def test_segments_continue_and_never_repeat():
    first = sample(Task("sample", "", PARAMS), None, None)
    again = sample(Task("sample", "", PARAMS), None, None)
    second = sample(Task("sample", "", PARAMS), first.checkpoint, None)
    np.testing.assert_array_equal(first.arrays["positions"], again.arrays["positions"])
    assert np.abs(first.arrays["positions"] - second.arrays["positions"]).max() > 0.05
    np.testing.assert_array_equal(first.arrays["step"], 11 + np.arange(5))
    assert (first.arrays["walker"] == 2).all()
    perfect = bulk("Ar", "fcc", a=5.3, cubic=True).positions
    assert np.std(first.arrays["positions"] - perfect) == pytest.approx(0.1, rel=0.2)


def test_a_structure_file_is_read_from_the_run_directory(tmp_path):
    (bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 1, 1)).write(tmp_path / "start.extxyz")
    outcome = sample(Task("sample", "", {**PARAMS, "structure": {"file": "start.extxyz"}}), None, tmp_path)
    assert outcome.arrays["positions"].shape == (5, 8, 3)


def test_a_label_can_be_told_to_fail():
    frames = Frames(**sample(Task("sample", "", PARAMS), None, None).arrays)
    energy, _, _ = label(frames, {}, {})
    np.testing.assert_array_equal(energy, frames.energy)
    with pytest.raises(EngineError, match="told to fail"):
        label(frames, {"fail": True}, {})


def test_a_fake_training_errs_by_a_little_and_by_its_seed(tmp_path):
    lines = []
    weights, summary = train([], 1, lines.append, 0.0)
    other, _ = train([], 2, lines.append, 0.0)
    assert 0 < abs(weights["scale"][0] - 1) < 1e-3
    assert weights["scale"] != other["scale"]
    assert len(lines) == 2 * summary["epochs"]
    ToyCrystal(0.25).export(tmp_path / "model")
    assert json.loads((tmp_path / "model").read_text()) == {"model": "fake", "scale": 0.25}
