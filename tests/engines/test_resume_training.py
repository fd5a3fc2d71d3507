"""A training killed by SIGKILL at any moment goes on as if nothing had been; what is not its own it leaves alone."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import campaign.engines.checkpoints as checkpoints
from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.schnetpack_train import train
from campaign.errors import EngineError

CRASH = Path(__file__).with_name("crash_training.py")
SPEC, labelled = (runpy.run_path(str(CRASH))[name] for name in ("SPEC", "labelled"))


def same(a, b):
    """Bitwise, with NaN equal to NaN."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)


@pytest.mark.parametrize(("model", "stride"), [("schnet", 7), pytest.param("painn", 23, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_weights_and_history(tmp_path, model, stride):
    command = [sys.executable, str(CRASH), str(tmp_path), model, str(stride)]
    subprocess.run(command, check=True, timeout=900)
    expected = dict(np.load(tmp_path / "undisturbed.npz"))
    assert expected.pop("summary.continued") == -1
    assert expected["history"][:, 0].tolist() == [1, 2, 3, 4]
    found = {p.stem: dict(np.load(p)) for p in tmp_path.glob("*-*.npz")}
    assert len(found) >= 5
    continued = {name: int(arrays.pop("summary.continued")) for name, arrays in found.items()}
    for name, arrays in found.items():
        assert same(arrays, expected), name
    assert len(set(continued.values()) - {-1}) >= 2  # killed in different epochs, and really continued
    for folder in tmp_path.glob("often-*/"):
        assert not list(folder.glob("*refused*"))
        assert not list(folder.glob(f".{NAME}.*"))  # halves of killed writers are cleared away


def interrupted(folder, spec=SPEC, seed=3, after=2):
    """Leave the checkpoint of a training that ended after some epochs; return the file."""

    def on_epoch(values):
        if values["epoch"] == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([labelled(6, (1, 1, 1))], spec, seed, on_epoch, execution=Execution(folder / NAME))
    return folder / NAME


def test_a_continued_training_tells_its_epochs_again_and_what_it_had_done(tmp_path):
    interrupted(tmp_path)
    seen, whole = [], []
    weights, summary = train([labelled(6, (1, 1, 1))], SPEC, 3, seen.append, execution=Execution(tmp_path / NAME))
    expected, _ = train([labelled(6, (1, 1, 1))], SPEC, 3, whole.append)
    assert seen == whole
    assert same(weights, expected)
    assert summary["continued"] == 2
    assert "note" not in summary


@pytest.mark.parametrize(
    "other",
    [{"spec": {**SPEC, "rate": 2e-3}}, {"spec": {**SPEC, "loss": {"kind": "l4"}}}, {"seed": 4}, {"model": "painn"}],
)
def test_a_checkpoint_of_another_training_is_kept_aside_and_never_continued(tmp_path, other):
    spec = other.get("spec", {**SPEC, "model": other.get("model", "schnet")})
    path = interrupted(tmp_path, spec, other.get("seed", 3))
    content = path.read_bytes()
    weights, summary = train([labelled(6, (1, 1, 1))], SPEC, 3, execution=Execution(path))
    assert same(weights, train([labelled(6, (1, 1, 1))], SPEC, 3)[0])
    assert "continued" not in summary
    assert "of another training" in summary["note"]
    assert "training.ckpt.refused-1" in summary["note"]
    assert (tmp_path / "training.ckpt.refused-1").read_bytes() == content


def test_another_label_makes_another_training(tmp_path):
    path = interrupted(tmp_path)
    frames = labelled(6, (1, 1, 1))
    forces = frames.forces.copy()
    forces[2, 1, 0] = np.nextafter(forces[2, 1, 0], 1.0)
    _, summary = train([frames.with_(forces=forces)], SPEC, 3, execution=Execution(path))
    assert "of another training" in summary["note"]


def test_a_damaged_checkpoint_is_kept_aside_and_nothing_in_it_is_executed(tmp_path):
    good = interrupted(tmp_path).read_bytes()
    expected = train([labelled(6, (1, 1, 1))], SPEC, 3)[0]

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": 1, "state": Evil()}, tmp_path / "evil")
    evil = (tmp_path / "evil").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1  # within the weights: torch alone would not see it
    import hashlib

    cases = [b"", good[:100], good[:-1], bytes(flipped), evil, hashlib.sha256(evil).digest() + evil]
    for number, content in enumerate(cases, start=1):
        (tmp_path / NAME).write_bytes(content)
        weights, summary = train([labelled(6, (1, 1, 1))], SPEC, 3, execution=Execution(tmp_path / NAME))
        assert same(weights, expected)
        assert "is damaged" in summary["note"] or "is no checkpoint" in summary["note"]
        assert (tmp_path / f"{NAME}.refused-{number}").read_bytes() == content
    assert not (tmp_path / "executed").exists()


def test_without_room_for_a_checkpoint_it_trains_all_the_same(tmp_path):
    missing = tmp_path / "nowhere" / NAME
    weights, _ = train([labelled(6, (1, 1, 1))], SPEC, 3, execution=Execution(missing))
    assert same(weights, train([labelled(6, (1, 1, 1))], SPEC, 3)[0])
    assert not missing.parent.exists()


def test_checkpoints_are_rare(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 30.0)
    monkeypatch.setattr(checkpoints, "EPOCHS", 3)
    written = []
    save = checkpoints.Checkpoint.save

    def counting(self, state):
        written.append(len(state["members"][0]["history"]))
        save(self, state)

    monkeypatch.setattr(checkpoints.Checkpoint, "save", counting)
    train([labelled(6, (1, 1, 1))], {**SPEC, "epochs": 7}, 3, execution=Execution(tmp_path / NAME))
    assert written == [3, 6]


# --- early stopping


def test_training_ends_when_no_epoch_was_better_for_as_long_as_the_patience():
    spec = {**SPEC, "epochs": 60, "rate": 2e-2}
    frames = [labelled(6, (1, 1, 1))]
    whole, every = [], []
    _, told = train(frames, spec, 3, every.append)
    patience = 2
    # where it must end, by the scores alone: the first epoch that many after the best one so far
    stopped, summary = train(frames, {**spec, "patience": patience}, 3, whole.append)
    assert told["epochs"] == 60
    assert summary["epochs"] == summary["best_epoch"] + patience < 60
    assert whole == every[: summary["epochs"]]
    assert all(np.isfinite(v).all() for v in stopped.values())


# --- a GPU that is not there


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(EngineError, match=r"train.device is cuda, .* sees no GPU; write 'device: cpu'"):
        train([labelled(6, (1, 1, 1))], SPEC, 3, execution=Execution(device="cuda"))
