"""Forces on some atoms only: those that do not count have no influence on what is learnt, all else still has."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from campaign.engines.fake import ToyCrystal
from campaign.engines.schnetpack import load_schnetpack, network
from campaign.engines.schnetpack_data import collate, examples_of, targets_of
from campaign.engines.schnetpack_steps import errors_of, loss_of
from campaign.engines.schnetpack_train import train
from campaign.frames import Frames

SPEC = {"features": 8, "interactions": 1, "cutoff": 4.5, "epochs": 3, "batch": 2, "rate": 1e-3}
LOSS = {"energy": 0.3, "forces": 0.6, "stress": 0.1}


def labelled(n, cells=(2, 1, 1), seed=0):
    """Shaken toy crystals."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * cells
    x = atoms.positions + 0.15 * rng.normal(size=(n, len(atoms), 3))
    frames = Frames.build(atoms.numbers, x, np.array(atoms.cell))
    energy, forces, stress = ToyCrystal().evaluate(frames)
    return frames.with_(energy=energy, forces=forces, stress=stress)


@pytest.fixture
def blocks():
    """Two blocks of different sizes, and which of their atoms count: all of some frames, one or none of others."""
    frames = [labelled(5), labelled(3, (1, 1, 1), seed=1)]
    rng = np.random.default_rng(2)
    counted = [rng.random(b.numbers.shape) < 0.4 for b in frames]
    counted[0][0] = True
    counted[0][1] = False
    return frames, counted


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_a_force_that_does_not_count_has_no_influence_at_all(blocks):
    frames, counted = blocks
    weights, summary = train(frames, SPEC, 3, counted=counted)
    rng = np.random.default_rng(4)
    other = [
        b.with_(forces=np.where(c[:, :, None], b.forces, b.forces + 50.0 * rng.normal(size=b.forces.shape)))
        for b, c in zip(frames, counted, strict=True)
    ]
    again, told = train(other, SPEC, 3, counted=counted)
    assert same(weights, again)
    assert told["force_rmse"] == summary["force_rmse"]
    assert not same(weights, train(other, SPEC, 3)[0])  # they would have had one


@pytest.mark.parametrize("name", ["forces", "energy", "stress"])
def test_a_counted_force_and_every_energy_and_stress_still_count(blocks, name):
    frames, counted = blocks
    weights, _ = train(frames, SPEC, 3, counted=counted)
    changed = getattr(frames[0], name).copy()
    # frame 1 has no counted force at all; its energy and stress are learnt all the same
    changed[(0, 2) if name == "forces" else 1] *= 1.5
    other = [frames[0].with_(**{name: changed}), frames[1]]
    assert not same(weights, train(other, SPEC, 3, counted=counted)[0])


@pytest.mark.parametrize(("steps", "epochs"), [(9, 2), (1, 1), (31, 8)])
def test_steps_stand_for_epochs_whatever_the_number_of_frames(blocks, steps, epochs):
    """7 frames, two a batch: four steps are one pass."""
    frames, _ = blocks
    _, summary = train(frames, SPEC | {"steps": steps}, 3)
    assert (summary["train_frames"], summary["epochs"]) == (7, epochs)


@pytest.mark.parametrize("steps", range(1, 13))
def test_the_shortest_trainings_end(steps):
    """Ten steps once made the schedule divide by zero."""
    weights, summary = train([labelled(2)], SPEC | {"steps": steps, "batch": 1}, 3)
    assert (summary["train_frames"], summary["epochs"]) == (1, steps)
    assert all(np.isfinite(v).all() for v in weights.values())


def test_counting_all_is_what_it_is_without_a_choice(blocks):
    frames, _ = blocks
    every = [np.ones(b.numbers.shape, dtype=bool) for b in frames]
    assert same(train(frames, SPEC, 3, counted=every)[0], train(frames, SPEC, 3)[0])


def test_forces_are_scaled_by_those_that_count(blocks):
    frames, counted = blocks
    forces = np.concatenate([b.forces[c].ravel() for b, c in zip(frames, counted, strict=True)])
    assert targets_of(frames, LOSS, counted).scale == pytest.approx(np.sqrt(np.mean(forces**2)))
    none = [np.zeros(b.numbers.shape, dtype=bool) for b in frames]
    weights, _ = train(frames, SPEC, 3, counted=none)
    assert all(np.isfinite(v).all() for v in weights.values())


def batch_of(blocks):
    frames, counted = blocks
    targets = targets_of(frames, LOSS, counted)
    examples = [e for b, c in zip(frames, counted, strict=True) for e in examples_of(b, targets, 4.5, counted=c)]
    return {k: v.double() if v.is_floating_point() else v for k, v in collate(examples).items()}, targets


def test_the_loss_has_the_gradient_of_the_terms_that_count_and_no_other(blocks):
    p = load_schnetpack().properties
    batch, targets = batch_of(blocks)
    rng = torch.Generator().manual_seed(0)
    found = {
        key: (batch[f"target.{name}"] + torch.randn(batch[f"target.{name}"].shape, generator=rng)).requires_grad_()
        for key, name in ((p.energy, "energy"), (p.forces, "forces"), (p.stress, "stress"))
    }
    loss = loss_of(errors_of(batch, found), targets)
    loss.backward()
    counts = batch["counted"].bool()[:, 0]
    assert 0 < counts.sum() < len(counts)
    slope = found[p.forces].grad
    assert (slope[~counts] == 0).all()
    off = (found[p.forces] - batch["target.forces"]).detach()
    torch.testing.assert_close(slope[counts], 2.0 * targets.weights["forces"] * off[counts] / off.numel())
    assert (found[p.energy].grad != 0).all()


def test_the_weights_move_down_the_slope_of_the_masked_loss(blocks):
    """Derivatives by the network's weights, through the forces, against finite differences."""
    batch, targets = batch_of(blocks)
    model = network(SPEC, 0).double()
    loss = loss_of(errors_of(batch, model(dict(batch))), targets)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    rng = torch.Generator().manual_seed(1)
    way = [torch.randn(w.shape, generator=rng, dtype=w.dtype) for w in model.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, way, strict=True))

    def at(step):
        with torch.no_grad():
            for w, d in zip(model.parameters(), way, strict=True):
                w.add_(d, alpha=step)
        value = float(loss_of(errors_of(batch, model(dict(batch))), targets).detach())
        with torch.no_grad():
            for w, d in zip(model.parameters(), way, strict=True):
                w.add_(d, alpha=-step)
        return value

    assert slope == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-4)
    assert abs(slope) > 1e-6
