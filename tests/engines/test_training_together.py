"""Members trained in the same steps are those trained one by one; killed and continued they are the same to the bit."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.schnetpack import Potential, network
from campaign.engines.schnetpack_together import stack
from campaign.engines.schnetpack_train import train, train_ensemble
from campaign.errors import EngineError

SPEC, labelled = (runpy.run_path(str(Path(__file__).with_name("crash_training.py")))[n] for n in ("SPEC", "labelled"))
SEEDS = (3, 4, 5)
FEW = {**SPEC, "epochs": 3, "rate": 5e-3}


def close(one, other, tolerance=1e-5):
    """To ``tolerance`` of the largest number of each array."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=key)


def frames():
    """Of two sizes: members have other numbers of atoms and of pairs in the same step."""
    return [labelled(9, (2, 1, 1)), labelled(6, (1, 1, 1))]


@pytest.mark.parametrize(
    ("model", "kind"), [("schnet", "mse"), ("schnet", "l4"), ("painn", "huber"), ("painn", "l4"), ("so3net", "mse")]
)
def test_members_trained_together_are_those_trained_one_by_one(model, kind):
    spec = {**FEW, "model": model, "loss": {"kind": kind}}
    means = []
    together = train_ensemble(frames(), spec, SEEDS, means.append)
    for number, (seed, found) in enumerate(zip(SEEDS, together, strict=True)):
        history = []
        weights, summary = train(frames(), spec, seed, history.append)
        close(weights, found.weights)
        first = {k: v.numpy() for k, v in network({**spec, "features": 8}, seed).state_dict().items()}
        moved = [np.abs(weights[k] - v).max() / np.abs(v).max() for k, v in first.items() if v.any()]
        assert max(moved) > 0.01  # it learnt something: the tolerance is far below
        assert summary["best_epoch"] == found.summary["best_epoch"]
        assert summary.keys() == found.summary.keys()
        for alone, line in zip(history, found.history, strict=True):
            assert line == pytest.approx(alone, rel=1e-4)
        assert {k: v.dtype for k, v in weights.items()} == {k: v.dtype for k, v in found.weights.items()}
        assert found.history[1]["loss"] != together[number - 1].history[1]["loss"]
    assert [m["epoch"] for m in means] == [1, 2, 3]
    assert means[-1]["loss"] == pytest.approx(np.mean([t.history[-1]["loss"] for t in together]))
    test = labelled(2, (2, 1, 1))
    Potential(spec, together[0].weights).evaluate(test)


def test_forces_that_do_not_count_have_no_influence_on_any_member():
    rng = np.random.default_rng(0)
    counted = [rng.random(b.numbers.shape) < 0.5 for b in frames()]
    found = train_ensemble(frames(), FEW, SEEDS, counted=counted)
    for seed, member in zip(SEEDS, found, strict=True):
        weights, summary = train(frames(), FEW, seed, counted=counted)
        close(weights, member.weights)
        assert member.summary["force_rmse"] == pytest.approx(summary["force_rmse"], rel=1e-4)


def test_each_member_ends_where_its_own_patience_does():
    spec = {**SPEC, "epochs": 40, "rate": 2e-2, "patience": 3}
    found = train_ensemble(frames(), spec, SEEDS)
    epochs = [member.summary["epochs"] for member in found]
    assert len(set(epochs)) > 1
    for seed, member in zip(SEEDS, found, strict=True):
        history = []
        weights, summary = train(frames(), spec, seed, history.append)
        assert member.summary["epochs"] == summary["epochs"] == len(member.history) == len(history)
        close(weights, member.weights, 1e-3)  # thirty steps at that rate


@pytest.mark.parametrize("after", [1, 7, 14])
def test_interrupted_at_any_step_it_ends_with_the_same_weights(tmp_path, interrupted, after):
    whole = train_ensemble(frames(), FEW, SEEDS)
    with interrupted(after):
        train_ensemble(frames(), FEW, SEEDS, execution=Execution(tmp_path / NAME))
    again = train_ensemble(frames(), FEW, SEEDS, execution=Execution(tmp_path / NAME))
    assert "continued" in again[0].summary
    for one, other in zip(whole, again, strict=True):
        assert one.history == other.history
        assert all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)
    _, summary = train(frames(), FEW, SEEDS[0], execution=Execution(tmp_path / NAME))
    assert "of another training" in summary["note"]  # one member is another training than three


def test_a_member_that_diverges_is_named():
    with pytest.raises(EngineError, match=r"Training of member [012] diverged in epoch 1"):
        train_ensemble(frames(), {**FEW, "rate": 1e30}, SEEDS)


def test_what_cannot_be_stacked_is_refused():
    models = [torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for _ in range(2)]
    with pytest.raises(EngineError, match=r"cannot be trained together \(BatchNorm1d\)"):
        stack(models)
