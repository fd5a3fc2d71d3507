"""ANI's vectors are torchani's own; a campaign says what it lacks before anything runs."""

import sys
from functools import partial

import numpy as np
import pytest
from ase.build import bulk

from campaign.config import load_campaign
from campaign.engines import ani, models
from campaign.engines.checkpoints import Execution
from campaign.engines.schnetpack import Potential, load_schnetpack, network
from campaign.errors import EngineError, InputError
from campaign.frames import Frames
from campaign.science.neighbours import neighbour_list

SPEC = {"model": "ani", "cutoff": 5.0, "angular_cutoff": 3.5, "layers": [8], "species": [11, 17]}
needs_torchani = pytest.mark.requires("torchani")


def salt(a=5.64, size=(2, 2, 2)):
    atoms = bulk("NaCl", "rocksalt", a=a, cubic=True) * size
    rng = np.random.default_rng(0)
    atoms.positions += 0.2 * rng.normal(size=atoms.positions.shape)
    atoms.set_cell(np.array(atoms.cell) + np.tril(0.3 * rng.normal(size=(3, 3))), scale_atoms=True)
    return atoms


@needs_torchani
@pytest.mark.parametrize(("a", "size"), [(5.64, (2, 2, 2)), (4.6, (1, 1, 1))])  # the cutoff is longer than half a cell
def test_its_vectors_are_those_of_torchanis_own_neighbours(a, size):
    import torch

    p = load_schnetpack().properties
    atoms = salt(a, size)
    frame = Frames.build(atoms.numbers, atoms.positions[None], np.array(atoms.cell))
    pairs = neighbour_list(frame, 5.0, half=True)
    net = ani.representation(SPEC, 0).double()
    seen = []
    for each in net.nets:
        each.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    net(
        {
            p.Z: torch.as_tensor(atoms.numbers),
            p.Rij: torch.as_tensor(pairs.vectors(frame.positions)),
            p.idx_i: torch.as_tensor(pairs.idx_i),
            p.idx_j: torch.as_tensor(pairs.idx_j),
        }
    )
    kinds = torch.as_tensor((atoms.numbers == 17).astype(int))
    x, cell = (torch.as_tensor(np.array(v)) for v in (atoms.positions, atoms.cell))
    own = net.aev(kinds[None], x[None], cell, torch.tensor([True] * 3))[0]
    for k in (0, 1):
        np.testing.assert_allclose(seen[k], own[kinds == k], atol=1e-10)
    assert float(own.abs().max()) > 0.01


@needs_torchani
def test_it_learns_the_elements_that_are_there_and_its_weights_rebuild_it():
    atoms = salt(size=(1, 1, 1))
    frames = Frames.build(atoms.numbers, atoms.positions[None].repeat(3, axis=0), np.array(atoms.cell))
    frames = frames.with_(energy=np.arange(3.0), forces=np.ones((3, 8, 3)), stress=np.zeros((3, 3, 3)))
    spec = {key: value for key, value in SPEC.items() if key != "species"} | {"epochs": 1}
    weights, summary = models.train([frames], spec, 0, lambda values: None, Execution())
    assert summary["species"] == [11, 17]
    model = models.build_model(spec, weights)
    assert model.atomic_energies(frames).shape == (3, 8)
    np.testing.assert_allclose(model.atomic_energies(frames).sum(axis=1), model.evaluate(frames)[0])
    assert models.versions("ani").keys() == {"torch", "schnetpack", "torchani"}


@needs_torchani
def test_without_torchani_a_model_and_its_file_say_so(tmp_path, monkeypatch):
    weights = {k: v.numpy() for k, v in network(SPEC, 0).state_dict().items()}
    weights |= {"reference.numbers": np.array([11, 17]), "reference.energies": np.zeros(2), "scale": np.ones(1)}
    Potential(SPEC, weights).export(tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "torchani.aev", None)
    for make in (lambda: Potential(SPEC, weights), lambda: Potential.load(tmp_path / "model.pt")):
        with pytest.raises(EngineError, match=r"needs torchani, which is not installed; .*pip install --no-deps"):
            make()


WRONG = {
    "key of a network": ("features: 64", "train.features", "64", "its features follow from its cutoffs"),
    "another": ("interactions: 3", "train.interactions", "3", "it passes no messages"),
    "unknown key": ("neurons: 4", "train.neurons", "4", "there is no such key"),
    "angles beyond the distances": ("angular_cutoff: 6.5", "train.angular_cutoff", "6.5", "write less than 6"),
    "members together": ("together: true", "train.together", "true", "trained one by one"),
    "no layer": ("layers: []", "train.layers", "[]", "write at least 1"),
    "a layer of nothing": ("layers: [64, 0]", "train.layers[1]", "0", "at least 1"),
}


@pytest.fixture
def file(campaign_with):
    return partial(campaign_with, "ani")


@needs_torchani
def test_a_campaign_that_trains_one_is_read(file):
    spec = load_campaign(file("layers: [32, 16]")).spec.train
    assert (spec.model, spec.cutoff, spec.angular_cutoff, spec.layers) == ("ani", 6.0, 3.5, (32, 16))


@needs_torchani
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_it_is_said_on_its_line(file, case):
    line, key, got, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        load_campaign(file(line))
    (problem,) = caught.value.problems
    assert f"c.yaml:10: {key}: " in problem
    assert f"got {got}" in problem
    assert words in problem


def test_without_torchani_the_campaign_is_refused_with_the_way_to_get_it(file, monkeypatch):
    monkeypatch.setattr("campaign.config.training_checks.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        load_campaign(file())
    (problem,) = caught.value.problems
    assert (
        "c.yaml:8: train.model: this model needs torchani, which is not installed, got ani; run pip install" in problem
    )
