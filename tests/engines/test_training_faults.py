"""What a training meets besides good frames: too little memory, atoms without neighbours, outliers."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import campaign.engines.checkpoints as checkpoints
from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.schnetpack import Potential
from campaign.engines.schnetpack_steps import Optimisation
from campaign.engines.schnetpack_train import train, train_ensemble
from campaign.errors import EngineError
from campaign.frames import Frames

SPEC, labelled = (runpy.run_path(str(Path(__file__).with_name("crash_training.py")))[n] for n in ("SPEC", "labelled"))
FEW = {**SPEC, "epochs": 3, "rate": 5e-3, "batch": 4}


@pytest.fixture
def small_memory(monkeypatch):
    """Return a function that lets a device have room for so many frames at once; its answer counts the refusals."""

    def small_memory(frames):
        whole, refused = Optimisation._backward, []

        def backward(self, part, shares):
            if len(part[0]) > frames:
                refused.append(len(part[0]))
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return whole(self, part, shares)

        monkeypatch.setattr(Optimisation, "_backward", backward)
        return refused

    return small_memory


@pytest.mark.parametrize("kind", ["mse", "l4"])
@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
def test_out_of_memory_the_batch_is_halved_once_with_the_same_result_and_it_is_said(small_memory, kind, seeds):
    frames, spec = [labelled(9, (2, 1, 1)), labelled(6, (1, 1, 1))], {**FEW, "loss": {"kind": kind}}
    expected = train_ensemble(frames, spec, seeds)
    refused = small_memory(2)
    found = train_ensemble(frames, spec, seeds)
    assert refused == [4]
    for one, other in zip(expected, found, strict=True):
        assert "note" not in one.summary
        assert "too small for 4 frames a step: each step was taken in two halves" in other.summary["note"]
        for key, value in one.weights.items():
            np.testing.assert_allclose(other.weights[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)


def test_a_continued_training_halves_from_its_first_step(small_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    frames = [labelled(9, (1, 1, 1))]
    refused = small_memory(2)
    expected, _ = train(frames, FEW, 3)

    def stop(values):
        if values["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(frames, FEW, 3, stop, execution=Execution(tmp_path / NAME))
    refused.clear()
    weights, summary = train(frames, FEW, 3, execution=Execution(tmp_path / NAME))
    assert not refused
    assert "in two halves" in summary["note"]
    assert all(np.array_equal(weights[k], expected[k]) for k in expected)


@pytest.mark.parametrize(("batch", "words"), [(4, "half a batch of 4 frames"), (1, "for 1 frames")])
def test_too_little_memory_for_half_a_batch_is_said(small_memory, batch, words):
    small_memory(0 if batch == 1 else 1)
    with pytest.raises(EngineError, match=f"{words}.*write a smaller train.batch"):
        train([labelled(9, (1, 1, 1))], {**FEW, "batch": batch}, 3)


@pytest.mark.parametrize("model", ["schnet", "painn", "so3net"])
def test_frames_without_any_neighbours_can_be_trained_on(model):
    """A gas: its atoms have their reference energies and no forces."""
    rng = np.random.default_rng(0)
    apart = np.array([[0.0, 0, 0], [10.0, 0, 0]]) + rng.normal(scale=0.1, size=(4, 2, 3))
    gas = Frames.build([18, 18], apart, np.eye(3) * 20.0)
    gas = gas.with_(energy=np.zeros(4), forces=np.zeros((4, 2, 3)), stress=np.zeros((4, 3, 3)))
    weights, summary = train([gas, labelled(3, (1, 1, 1))], {**FEW, "batch": 1, "model": model}, 3)
    assert np.isfinite(summary["loss"])
    assert all(np.isfinite(v).all() for v in weights.values())
    assert not Potential({**FEW, "model": model}, weights).evaluate(gas)[1].any()
