"""A training over several real processes has the loss curve of one, and says so when it cannot run."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import campaign.engines.checkpoints as checkpoints
from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.schnetpack_train import train
from campaign.engines.training_ranks import train as train_over_ranks
from campaign.errors import EngineError, MachineFault

SPEC, labelled = (runpy.run_path(str(Path(__file__).with_name("crash_training.py")))[n] for n in ("SPEC", "labelled"))
MPIEXEC = ("mpiexec", "-n", "{ranks}")
#: 14 frames to train on, 4 a step: the last step has fewer frames than there are processes.
FEW = {**SPEC, "epochs": 3, "rate": 5e-3, "batch": 4}


@pytest.fixture(autouse=True)
def mpi_of_this_python(monkeypatch):
    """Find the mpiexec of mpi4py's MPI before another one."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def frames():
    return [labelled(9, (2, 1, 1)), labelled(6, (1, 1, 1))]


def over(folder, spec=FEW, processes=2, counted=None, launch=MPIEXEC, **more):
    history = []
    execution = Execution(folder / NAME, processes=processes, launch=launch, lines=folder / "epochs.jsonl", **more)
    weights, summary = train_over_ranks(frames(), spec, 3, history.append, counted, execution)
    return weights, summary, history


@pytest.mark.parametrize(("kind", "processes"), [("mse", 2), ("l4", 3)])
def test_the_loss_curve_is_that_of_one_process(tmp_path, kind, processes):
    spec = {**FEW, "loss": {"kind": kind}}
    rng = np.random.default_rng(0)
    counted = [rng.random(b.numbers.shape) < 0.7 for b in frames()]
    weights, summary, history = over(tmp_path, spec, processes, counted)
    alone = []
    expected, told = train(frames(), spec, 3, alone.append, counted)
    for line, one in zip(history, alone, strict=True):
        assert line == pytest.approx(one, rel=1e-5)
    assert [json.loads(x) for x in (tmp_path / "epochs.jsonl").read_text().splitlines()] == history
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)
    assert summary.keys() == told.keys()
    assert (summary["best_epoch"], summary["elements_reference"]) == (told["best_epoch"], told["elements_reference"])
    assert not list(tmp_path.glob("ranks-*"))


def test_it_goes_on_from_the_checkpoint_of_one_process_and_leaves_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)

    def stop(values):
        if values["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(frames(), FEW, 3, stop, execution=Execution(tmp_path / NAME))
    weights, summary, history = over(tmp_path)
    assert summary["continued"] == 1
    assert len(history) == 3
    expected, _ = train(frames(), FEW, 3)
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)


def test_what_the_ranks_say_is_the_error(tmp_path):
    with pytest.raises(EngineError, match="Training diverged in epoch 1"):
        over(tmp_path, {**FEW, "rate": 1e30})
    (left,) = tmp_path.glob("ranks-*")
    assert "schnetpack_train.py" in (left / "stderr").read_text()  # where it happened


def test_what_nobody_foresaw_is_not_the_machines_fault(tmp_path):
    """Tried again, it would come again: as in one process, where such an error is final."""
    with pytest.raises(EngineError, match="KeyError: 'schnett'"):
        over(tmp_path, {**FEW, "model": "schnett"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_said_by_the_ranks(tmp_path):
    with pytest.raises(EngineError, match=r"train.device is cuda, .* sees no GPU"):
        over(tmp_path, device="cuda")


def test_a_launch_command_that_does_not_launch_is_the_machines_fault(tmp_path):
    with pytest.raises(MachineFault, match=r"1 MPI ranks were started instead of 2: correct launch.train"):
        over(tmp_path, launch=("mpiexec", "-n", "1"))
    with pytest.raises(MachineFault, match="launcher-of-nowhere was not found"):
        over(tmp_path, launch=("launcher-of-nowhere",))
