"""GAP: what gap_fit learns, that its forces belong to its energy, its files, and what it says when it fails."""

import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from campaign.config import load_campaign
from campaign.engines import gap, models
from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.model_files import load_model_file
from campaign.engines.schnetpack import Committee, Potential
from campaign.errors import EngineError, InputError, Unphysical
from campaign.frames import Frames

SPEC = {"model": "gap", "cutoff": 4.0, "n_max": 4, "l_max": 3, "sparse": 30, "pairs": 15}
crystal, labelled, with_potassium = (
    runpy.run_path(str(Path(__file__).with_name("test_schnetpack.py")))[name]
    for name in ("crystal", "labelled", "with_potassium")
)
needs_quippy = pytest.mark.requires("quippy")


def fit(blocks, seed=0, counted=None, **changes):
    return gap.train(blocks, {**SPEC, **changes}, seed, lambda values: None, counted, Execution())


@pytest.fixture(scope="module")
def fitted():
    """Return a potential fitted to 20 of 22 shaken crystals, and the summary."""
    weights, summary = fit([labelled(12), labelled(10, seed=5)])
    return gap.GAP(SPEC, weights), summary


@needs_quippy
def test_it_learns_energy_forces_and_stress(fitted):
    model, summary = fitted
    assert (summary["train_frames"], summary["held_back"], summary["species"]) == (20, 2, [11, 17])
    test = labelled(10, seed=9)
    energy, forces, stress = model.evaluate(test)
    assert np.std(forces - test.forces) < 0.05 * np.std(test.forces)
    assert np.std(stress - test.stress) < 0.05 * np.std(test.stress)
    assert np.sqrt(np.mean((energy - test.energy) ** 2)) < 0.1 * np.std(test.energy)
    np.testing.assert_allclose(model.atomic_energies(test).sum(axis=1), energy)
    one = model.evaluate(test[[3]])
    np.testing.assert_allclose(one[1][0], forces[3], atol=1e-12)


@needs_quippy
@pytest.mark.parametrize("members", [1, 2])
def test_forces_and_stress_are_derivatives_of_the_energy(fitted, members):
    model = fitted[0]
    if members > 1:
        model = Committee([model, gap.GAP(SPEC, fit([labelled(8)], seed=1)[0])])
    frame = crystal(1, seed=4)
    _, forces, stress = model.evaluate(frame)
    h = 1e-4

    def energy(positions, cell):
        return model.evaluate(Frames.build(frame.numbers, positions, cell))[0][0]

    rng = np.random.default_rng(0)
    for _ in range(6):
        way = rng.normal(size=(1, 8, 3))
        up, down = (energy(frame.positions + s * h * way, frame.cell) for s in (1, -1))
        assert float((forces * way).sum()) == pytest.approx((down - up) / (2 * h), rel=1e-5)
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        strain = np.zeros((3, 3))
        strain[a, b] += h / 2
        strain[b, a] += h / 2
        up, down = (
            energy(frame.positions @ (np.eye(3) + s * strain), frame.cell @ (np.eye(3) + s * strain)) for s in (1, -1)
        )
        numeric = (up - down) / (2 * h) / frame.volume[0]
        assert stress[0, a, b] == pytest.approx(numeric, rel=1e-5, abs=1e-5 * np.abs(stress).max())


@needs_quippy
def test_the_same_fit_gives_the_same_bytes_and_other_seeds_other_members():
    a, b, c = (fit([labelled(8)], seed)[0] for seed in (0, 0, 1))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["xml"], c["xml"])


@needs_quippy
def test_forces_that_do_not_count_have_no_influence():
    frames = labelled(8)
    some = np.ones(frames.numbers.shape, dtype=bool)
    some[:, 2:] = False
    nonsense = frames.with_(forces=np.where(some[:, :, None], frames.forces, 9.0))
    alike, other = fit([frames], counted=[some])[0], fit([nonsense], counted=[some])[0]
    np.testing.assert_array_equal(alike["xml"], other["xml"])
    np.testing.assert_array_equal(alike["training_set"], other["training_set"])
    assert not np.array_equal(alike["xml"], fit([frames])[0]["xml"])


def test_a_species_of_one_frame_is_fitted_and_not_held_back():
    blocks, seed = with_potassium()
    pairs = [(b, np.ones(b.numbers.shape, dtype=bool)) for b in blocks]
    kept, held = gap._split(pairs, seed)
    assert 19 in np.concatenate([b.numbers.ravel() for b, _ in kept])
    assert (sum(len(b) for b, _ in kept), sum(len(b) for b, _ in held)) == (9, 1)


@needs_quippy
def test_its_file_loads_without_pickle_and_is_no_network(fitted, tmp_path):
    model, _ = fitted
    model.export(tmp_path / "gap.pt")
    data = torch.load(tmp_path / "gap.pt", weights_only=True)
    assert data["species"] == [11, 17]
    assert data["cutoff"] == 4.0
    assert len(data["training_set"]) == 32
    again = load_model_file(tmp_path / "gap.pt")
    for a, b in zip(again.evaluate(crystal()), model.evaluate(crystal()), strict=True):
        np.testing.assert_array_equal(a, b)
    atoms = crystal(1).to_ase()[0]
    atoms.calc = again.calculator()
    np.testing.assert_allclose(atoms.get_forces(), model.evaluate(crystal(1))[1][0], atol=1e-10)
    with pytest.raises(EngineError, match=r"gap.pt is damaged .*export the model again"):
        Potential.load(tmp_path / "gap.pt")
    torch.save({**data, "weights": {}}, tmp_path / "empty.pt")
    with pytest.raises(EngineError, match=r"empty.pt is damaged .*export the model again"):
        load_model_file(tmp_path / "empty.pt")


@needs_quippy
def test_unknown_species_and_broken_frames_are_refused(fitted):
    model, _ = fitted
    frames = crystal(1)
    numbers = frames.numbers.copy()
    numbers[0, 0] = 19
    with pytest.raises(EngineError, match=r"knows Na, Cl.* hold K"):
        model.evaluate(frames.with_(numbers=numbers))
    with pytest.raises(Unphysical, match="not finite"):
        model.evaluate(frames.with_(positions=frames.positions * np.nan))


@needs_quippy
def test_a_fit_that_fails_or_takes_too_long_says_why_and_leaves_its_files(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()

    def go(**changes):
        return gap.train([labelled(6)], {**SPEC, **changes}, 0, lambda values: None, None, Execution(folder / NAME))

    with pytest.raises(EngineError, match=r"gap_fit was stopped after 0.1 s"):
        go(timeout=0.1, sparse=400, n_max=12, l_max=12)
    assert (folder / "gap_fit" / "train.xyz").exists()
    with pytest.raises(EngineError, match=r"gap_fit ended with exit code 1: .*LA_Matrix"):
        go(n_max=-3)
    go()  # the files of those before are no hindrance, and its own are gone
    assert not (folder / "gap_fit").exists()


def test_without_quippy_it_says_so(monkeypatch):
    monkeypatch.setattr(gap, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"GAP needs quippy, which is not installed; .*campaign\[gap\]"):
        fit([labelled(2)])
    assert models.load("gap") is None


WRONG = {
    "epochs": ("epochs: 5", "train.epochs", "5", "fitted at once"),
    "loss": ("loss: {forces: 1}", "train.loss", "{forces: 1}", "write 'noise:"),
    "noise of nothing": ("noise: {forces: 0}", "train.noise.forces", "0", "greater than 0"),
    "unknown key": ("n_maxx: 4", "train.n_maxx", "4", "did you mean 'n_max'"),
    "time": ("timeout: soon", "train.timeout", "'soon'", "write a number"),
}


@pytest.fixture
def file(campaign_with):
    return partial(campaign_with, "gap")


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_it_is_said_on_its_line(file, monkeypatch, case):
    monkeypatch.setattr("campaign.config.training_checks.find_spec", lambda name: True)
    assert load_campaign(file("sparse: 200")).spec.train.sparse == 200
    line, key, got, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        load_campaign(file(line))
    (problem,) = caught.value.problems
    assert f"c.yaml:10: {key}: " in problem
    assert f"got {got}" in problem
    assert words in problem


def test_without_quippy_the_campaign_is_refused_with_the_way_to_get_it(file, monkeypatch):
    monkeypatch.setattr("campaign.config.training_checks.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        load_campaign(file())
    (problem,) = caught.value.problems
    assert "c.yaml:8: train.model: this model needs quippy, which is not installed, got gap; run pip install" in problem
