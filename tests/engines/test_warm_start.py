"""A training that goes on from an earlier model: with its weights and its normalisation, and exact when killed."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from campaign.engines.checkpoints import NAME, Execution, WarmStart
from campaign.engines.models import train as train_any
from campaign.engines.schnetpack import Potential
from campaign.engines.schnetpack_data import normalised_as, targets_of
from campaign.engines.schnetpack_train import DEFAULTS, _Member, train, train_ensemble
from campaign.errors import EngineError

SPEC, labelled = (runpy.run_path(str(Path(__file__).with_name("crash_training.py")))[n] for n in ("SPEC", "labelled"))
SEEDS = (3, 4)
OLD, NEW = 5, 3


def frames(shift=0.0):
    """Return old frames and new ones, of which the new are denser and have another energy."""
    old, new = labelled(OLD, (2, 1, 1)), labelled(NEW, (1, 1, 1))
    return [old, new.with_(energy=new.energy + shift, forces=3.0 * new.forces)]


def fresh():
    return [np.zeros(OLD, dtype=bool), np.ones(NEW, dtype=bool)]


@pytest.fixture(scope="module")
def before():
    """Models of the old frames."""
    return [train([labelled(OLD, (2, 1, 1))], SPEC, seed)[0] for seed in SEEDS]


def test_it_begins_as_the_earlier_model_and_not_as_its_weights_in_other_units(before):
    weights, summary = train(frames(7.0), {**SPEC, "rate": 1e-12}, 3, start=WarmStart(before[:1], fresh()))
    test = labelled(4, (2, 1, 1))
    bare = ({k: v for k, v in w.items() if k != "core"} for w in (weights, before[0]))  # the walls differ
    for found, expected in zip(*(Potential(SPEC, w).evaluate(test) for w in bare), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    anew, _ = train(frames(7.0), {**SPEC, "epochs": 1}, 3)
    assert anew["scale"] != pytest.approx(weights["scale"], rel=0.1)  # what a refit would have made of it
    assert anew["reference.energies"] != pytest.approx(weights["reference.energies"], abs=0.1)
    assert summary["elements_reference"] == {18: before[0]["reference.energies"][0]}
    assert weights["training_set"].tolist() == anew["training_set"].tolist()
    assert weights["core"] == pytest.approx(anew["core"])  # the wall follows the frames


def test_it_learns_what_is_new_in_fewer_epochs():
    spec = {**SPEC, "epochs": 12, "rate": 5e-3}
    (first, _) = train([labelled(OLD, (2, 1, 1))], {**spec, "epochs": 40}, 3)
    (_, warm), (_, cold) = (
        train([labelled(OLD, (2, 1, 1)), labelled(NEW, (1, 1, 1))], spec, 3, start=start)
        for start in (WarmStart([first], fresh()), None)
    )
    assert warm["force_rmse"] < 0.8 * cold["force_rmse"]


def test_the_loss_weighs_errors_as_that_of_a_model_trained_anew(before):
    own = targets_of(frames(7.0), DEFAULTS["loss"])
    kept = normalised_as(own, before)
    for name, weight in own.weights.items():  # errors in eV, eV/Å, eV/Å^3
        assert kept.weights[name] / kept.scale**2 == pytest.approx(weight / own.scale**2)
        assert kept.spreads[name] * kept.scale == pytest.approx(own.spreads[name] * own.scale)
        assert kept.deltas[name] * kept.scale == pytest.approx(own.deltas[name] * own.scale)


def test_the_frames_to_judge_by_are_new_ones():
    same = np.ones((40, 2), dtype=bool)  # every frame has all species
    new = np.zeros(40, dtype=bool)
    new[30:] = True
    member = _Member(1, same, None, new)
    assert len(member.held) == 4
    assert new[member.held].all()
    assert sorted([*member.held, *member.kept]) == list(range(40))
    few = np.arange(40) >= 37
    assert len(_Member(1, same, None, few).held) == 1  # at most half of them: the rest is learnt from
    one = _Member(1, same, None, np.arange(40) == 7)
    assert one.held.tolist() == [7]
    assert sorted(one.kept) == list(range(40))
    assert _Member(1, same, None, np.ones(40, dtype=bool)).held.tolist() == _Member(1, same, None).held.tolist()


def test_only_epochs_in_which_the_rate_has_fallen_are_chosen(before):
    rough = {**SPEC, "epochs": 6, "rate": 0.5}  # what it knew is lost at once, and the first epoch is the best
    lines = []
    _, summary = train(frames(), rough, 3, lines.append, start=WarmStart(before[:1], fresh()))
    assert len(lines) == 6
    assert summary["best_epoch"] >= 4
    assert min(lines, key=lambda line: line["force_rmse"])["epoch"] < 4
    _, patient = train(frames(), {**rough, "patience": 2}, 3, start=WarmStart(before[:1], fresh()))
    assert patient["best_epoch"] >= 4


@pytest.mark.parametrize("kind", ["mse", "l4"])
def test_members_that_go_on_together_are_those_that_go_on_alone(before, kind):
    spec = {**SPEC, "loss": {"kind": kind}}
    together = train_ensemble(frames(), spec, SEEDS, start=WarmStart(before, fresh()))
    for seed, start, found in zip(SEEDS, before, together, strict=True):
        weights, _ = train(frames(), spec, seed, start=WarmStart([start], fresh()))
        for key, value in weights.items():
            np.testing.assert_allclose(found.weights[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("seeds", [SEEDS[:1], SEEDS], ids=["one", "together"])
@pytest.mark.parametrize("after", [1, 6, 11])
def test_interrupted_at_any_step_it_ends_with_the_same_weights(tmp_path, interrupted, before, seeds, after):
    start = WarmStart(before[: len(seeds)], fresh())
    whole = train_ensemble(frames(), SPEC, seeds, start=start)
    with interrupted(after):
        train_ensemble(frames(), SPEC, seeds, start=start, execution=Execution(tmp_path / NAME))
    again = train_ensemble(frames(), SPEC, seeds, start=start, execution=Execution(tmp_path / NAME))
    assert "continued" in again[0].summary
    for one, other in zip(whole, again, strict=True):
        assert one.history == other.history
        assert all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)
    other = {**before[0], "scale": before[0]["scale"] * 1.01}
    newer = [np.arange(OLD) == 2, fresh()[1]]
    for another in (None, WarmStart([other] * len(seeds), fresh()), WarmStart(start.weights, newer)):
        found = train_ensemble(frames(), SPEC, seeds, start=another, execution=Execution(tmp_path / NAME))
        assert "of another training" in found[0].summary["note"]


def test_over_several_processes_it_is_that_of_one(tmp_path, monkeypatch, before):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    start, spec = WarmStart(before[:1], fresh()), {**SPEC, "model": "schnet", "batch": 2}
    execution = Execution(tmp_path / NAME, processes=2, launch=("mpiexec", "-n", "{ranks}"))
    found, summary = train_any(frames(), spec, 3, lambda values: None, execution, start=start)
    expected, told = train(frames(), spec, 3, start=start)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)
    assert summary["elements_reference"] == told["elements_reference"]


def test_what_cannot_be_gone_on_from_is_said(before):
    with pytest.raises(EngineError, match="of another kind"):
        train(frames(), {**SPEC, "features": 16}, 3, start=WarmStart(before[:1], fresh()))
    neon = WarmStart([{**before[0], "reference.numbers": np.array([10])}], fresh())
    with pytest.raises(EngineError, match=r"knows the atomic numbers \[10\].*warm_start: false"):
        train(frames(), SPEC, 3, start=neon)
    unlike = WarmStart([before[0], {**before[1], "scale": before[1]["scale"] * 2}], fresh())
    with pytest.raises(EngineError, match="different reference energies"):
        train_ensemble(frames(), SPEC, SEEDS, start=unlike)
    with pytest.raises(EngineError, match="fitted at once"):
        train_any(frames(), {"model": "gap"}, 3, lambda values: None, Execution(), start=unlike)
