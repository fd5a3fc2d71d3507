"""Descriptors: exact against SchNetPack and dscribe, invariant, without memory of their company, of any frame."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from ase.build import bulk
from scipy.spatial.transform import Rotation

from campaign.engines import descriptors
from campaign.engines.descriptors import POOLINGS, Descriptor
from campaign.engines.schnetpack import load_schnetpack, schnet
from campaign.errors import EngineError, InputError, Unphysical
from campaign.frames import Frames

SMALL = {"features": 16, "interactions": 2, "cutoff": 4.0}
SOAP = {"model": "soap", "cutoff": 4.0, "n_max": 4, "l_max": 3}
BOTH = pytest.mark.parametrize("settings", [SMALL, pytest.param(SOAP, marks=pytest.mark.requires("dscribe"))])


def shaken(kind="NaCl", n=3, size=(2, 2, 2), noise=0.2, seed=0):
    """Shaken, sheared crystals: NaCl of 64 atoms, Ni of 32 atoms in a cell of 7.1 Å."""
    rng = np.random.default_rng(seed)
    structure, a = {"NaCl": ("rocksalt", 5.9), "Ni": ("fcc", 3.55)}[kind]
    images = []
    for _ in range(n):
        atoms = bulk(kind, structure, a=a, cubic=True) * size
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=noise, size=atoms.positions.shape)
        images.append(atoms)
    return Frames.from_ase(images)


def species(frames):
    return sorted({int(z) for z in frames.numbers.ravel()})


def schnetpacks(frames, model, cutoff):
    """Features of atoms by SchNetPack alone: its converter with ASE's neighbour list, its distances, its SchNet."""
    spk = load_schnetpack()
    from schnetpack.interfaces import AtomsConverter

    convert = AtomsConverter(neighbor_list=spk.transform.ASENeighborList(cutoff=cutoff))
    inputs = spk.atomistic.PairwiseDistances()(convert(frames.to_ase()))
    with torch.no_grad():
        return model(inputs)["scalar_representation"].numpy().reshape(*frames.numbers.shape, -1)


# --- SchNet


@pytest.mark.parametrize(("kind", "cutoff"), [("NaCl", 6.0), ("Ni", 4.0), ("Ni", 6.0), ("Ni", 8.0)])
@pytest.mark.parametrize("path", ["tables", "network"])
def test_features_are_schnetpacks_own(kind, cutoff, path):
    spk = load_schnetpack()
    frames = shaken(kind)
    ours = schnet(64, 3, cutoff, seed=7).eval().requires_grad_(False)
    theirs = spk.representation.SchNet(64, 3, spk.nn.GaussianRBF(20, cutoff), spk.nn.CosineCutoff(cutoff))
    theirs.load_state_dict(ours.state_dict())
    expected = schnetpacks(frames, theirs, cutoff)
    features = descriptors._Tables(ours) if path == "tables" else descriptors._Network(ours, "cpu")
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(features(frames), expected, rtol=2e-6, atol=1e-5)  # they reach 13
    if path == "tables":
        atoms = Descriptor(species(frames), seed=7, device="cpu", cutoff=cutoff).atoms(frames)
        np.testing.assert_array_equal(atoms, features(frames))


def test_tables_are_as_exact_as_float32_at_every_distance():
    model = schnet(16, 2, 6.0, seed=0).eval().requires_grad_(False)
    tables = descriptors._Tables(model)
    pairs = [Frames.build([11, 17], [[[0.0, 0, 0], [d, 0, 0]]], np.eye(3) * 30) for d in np.linspace(0.0, 6.1, 400)]
    exact = schnet(16, 2, 6.0, seed=0).double()
    p = load_schnetpack().properties
    for frames in pairs:
        d = frames.positions[0, 1]
        keep = slice(0, 1 if d[0] < 6.0 else 0)
        inputs = {
            p.Z: torch.tensor([11, 17]),
            p.Rij: torch.tensor(d)[None][keep],
            p.idx_i: torch.tensor([0])[keep],
            p.idx_j: torch.tensor([1])[keep],
        }
        with torch.no_grad():
            expected = exact(inputs)["scalar_representation"].numpy()
        np.testing.assert_allclose(tables(frames)[0], expected, atol=2e-6)


def test_the_seed_decides_the_weights_and_the_global_random_numbers_stay():
    frames = shaken(size=(1, 1, 1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (Descriptor([11, 17], seed=s, **SMALL)(frames) for s in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["NaCl", "Ni"])
def test_gpu_gives_what_the_cpu_gives_and_the_same_every_time(kind):
    frames = shaken(kind, 40)
    cpu, gpu = (Descriptor(species(frames), device=d, cutoff=6.0) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu(frames), cpu(frames), atol=1e-5)
    np.testing.assert_array_equal(gpu(frames), gpu(frames))
    lone = Frames.build([species(frames)[0]], [[[0.0, 0, 0]]], np.eye(3) * 40)
    np.testing.assert_allclose(gpu(lone), cpu(lone), atol=1e-6)


@pytest.mark.gpu
def test_auto_is_the_gpu_where_there_is_one():
    assert Descriptor([11], **SMALL)._features.device == "cuda"


# --- SOAP


@pytest.mark.requires("dscribe")
def test_soap_is_dscribes_own():
    import dscribe.descriptors

    frames = shaken("Ni", 2)
    theirs = dscribe.descriptors.SOAP(species=["Ni"], r_cut=4.0, n_max=4, l_max=3, sigma=0.5, periodic=True)
    images = frames.to_ase()
    for atoms in images:
        atoms.wrap()
    expected = np.array([theirs.create(atoms) for atoms in images])
    np.testing.assert_allclose(Descriptor([28], **SOAP).atoms(frames), expected, rtol=1e-6)


@pytest.mark.requires("dscribe")
def test_soap_atom_by_atom_as_in_huge_cells_is_the_same(monkeypatch):
    frames = shaken("Ni", 2)
    whole = Descriptor([28], **SOAP)(frames)
    monkeypatch.setattr(descriptors, "_MOST_BOXES", 0.0)
    np.testing.assert_allclose(Descriptor([28], **SOAP)(frames), whole, atol=1e-5)


def test_soap_without_dscribe_says_what_to_install(monkeypatch):
    monkeypatch.setattr(descriptors, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs dscribe.*campaign\[select\]"):
        Descriptor([11], **SOAP)


# --- pooling


@pytest.mark.parametrize(
    ("pooling", "d"), [("mean", 16), ("species", 32), ("species_std", 64), ("species_extremes", 128)]
)
def test_shapes(pooling, d):
    frames = shaken(n=4, size=(1, 1, 1))
    descriptor = Descriptor([17, 11], pooling=pooling, **SMALL)
    x = descriptor(frames)
    assert x.shape == (4, d) == (4, descriptor.dimension)
    assert x.dtype == np.float32
    assert descriptor.atoms(frames).shape == (4, 8, 16) == (4, 8, descriptor.width)
    assert descriptor(frames[:0]).shape == (0, d)
    assert np.abs(x[0] - x[1]).max() > 1e-3


def test_pools_are_means_deviations_and_extremes():
    numbers = np.array([[11, 11, 17, 17], [17, 17, 17, 17]])
    atoms = np.array([[[1.0, 2], [3, 2], [5, 0], [5, 4]], [[1, 0], [2, 0], [3, 0], [4, 8]]], dtype=np.float32)
    mean, of_kind, with_std, with_ends = (
        Descriptor([11, 17], pooling=p, features=2, interactions=1, cutoff=3.0).pool(numbers, atoms) for p in POOLINGS
    )
    np.testing.assert_allclose(mean, [[3.5, 2], [2.5, 2]])
    np.testing.assert_allclose(of_kind, [[2, 2, 5, 2], [0, 0, 2.5, 2]])
    std = [[1, 0, 0, 2], [0, 0, np.sqrt(1.25), np.sqrt(12)]]
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # mean and deviation of the first species, then of the second
    np.testing.assert_allclose(with_std, np.concatenate([of_kind, std], axis=1)[:, order], rtol=1e-6)
    ends = [[1, 2, 3, 2, 5, 0, 5, 4], [0, 0, 0, 0, 1, 0, 4, 8]]  # smallest and largest, species by species
    np.testing.assert_allclose(with_ends.reshape(2, 2, 4, 2)[:, :, :2], with_std.reshape(2, 2, 2, 2), rtol=1e-6)
    np.testing.assert_allclose(with_ends.reshape(2, 2, 4, 2)[:, :, 2:].reshape(2, 8), ends)


@BOTH
@pytest.mark.parametrize("pooling", POOLINGS)
def test_order_place_orientation_and_size_of_the_cell_do_not_count(settings, pooling):
    frames = shaken("NaCl", 2, size=(1, 1, 1))  # a cell of 5.9 Å
    describe = Descriptor([11, 17], pooling=pooling, **settings)
    x = describe(frames)
    rng = np.random.default_rng(1)
    close = {"rtol": 2e-5, "atol": 2e-5}
    order = rng.permutation(8)
    permuted = frames.with_(numbers=frames.numbers[:, order], positions=frames.positions[:, order])
    np.testing.assert_allclose(describe(permuted), x, **close)
    shifts = rng.integers(-3, 4, (2, 8, 3)) @ frames.cell
    np.testing.assert_allclose(describe(frames.with_(positions=frames.positions + shifts + 1.7)), x, **close)
    turn = Rotation.random(rng=rng).as_matrix()
    np.testing.assert_allclose(
        describe(frames.with_(positions=frames.positions @ turn, cell=frames.cell @ turn)), x, **close
    )
    for repeat in ((2, 1, 1), (1, 2, 3)):
        larger = Frames.from_ase([atoms.repeat(repeat) for atoms in frames.to_ase()])
        np.testing.assert_allclose(describe(larger), x, **close)


@BOTH
def test_images_in_a_small_cell_count_as_atoms_of_a_large_one(settings):
    frames = shaken("Ni", 1)
    large = Frames.from_ase([frames.to_ase()[0].repeat(3)])
    describe = Descriptor([28], **{**settings, "cutoff": 6.0})  # the cell is 7.1 Å
    np.testing.assert_allclose(describe.atoms(large)[0, :32], describe.atoms(frames)[0], rtol=2e-5, atol=2e-5)


@BOTH
def test_company_does_not_count_to_the_last_bit(settings):
    frames = shaken(n=37)
    describe = Descriptor([11, 17], **settings)
    whole = describe(frames)
    for k in (0, 15, 16, 36):
        np.testing.assert_array_equal(describe(frames[[k]])[0], whole[k])
    np.testing.assert_array_equal(np.concatenate([describe(frames[:9]), describe(frames[9:])]), whole)
    parts = list(describe.blocks(frames))
    assert [p.stop for p, _ in parts[:-1]] == [p.start for p, _ in parts[1:]]
    np.testing.assert_array_equal(np.concatenate([atoms for _, atoms in parts]), describe.atoms(frames))


def test_networks_company_counts_less_than_a_millionth(monkeypatch):
    monkeypatch.setattr(descriptors, "available", lambda: False)  # no compiler
    frames = shaken(n=20)
    describe = Descriptor([11, 17], device="cpu", **SMALL)
    assert isinstance(describe._features, descriptors._Network)
    whole = describe(frames)
    np.testing.assert_allclose(np.concatenate([describe(frames[[k]]) for k in range(20)]), whole, atol=1e-6)


def test_memory_does_not_grow_with_the_frames():
    few = shaken(n=50)
    many = few[np.arange(5000) % 50]
    describe = Descriptor([11, 17], device="cpu", **SMALL)
    describe(few)

    def peak(frames):
        tracemalloc.start()
        out = describe(frames)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most - out.nbytes

    assert peak(many) < peak(few) + 1e6  # features of all atoms are 20 MB


# --- unusual frames


@BOTH
def test_one_atom_no_neighbours_or_a_huge_cell(settings):
    describe = Descriptor([11], **settings)
    lone = [Frames.build([11], [[[1.0, 2, 3]]], np.eye(3) * size) for size in (30.0, 1e3, 1e6)]
    first, *others = (describe(frames) for frames in lone)
    assert np.isfinite(first).all()
    for x in others:
        np.testing.assert_allclose(x, first, rtol=1e-5, atol=1e-6)
    assert np.isfinite(describe(Frames.build([11], [[[0.0, 0, 0]]], np.eye(3) * 2.5))).all()
    apart = Frames.build([11, 11], [[[0.0, 0, 0], [4e5, 0, 0]]], np.eye(3) * 1e6)
    np.testing.assert_allclose(describe(apart), first, rtol=1e-5, atol=1e-6)


@BOTH
def test_atoms_at_the_same_place_and_of_all_compositions(settings):
    numbers = np.array(list(itertools.product([11, 17], repeat=3)))
    positions = np.random.default_rng(0).uniform(0, 5, (8, 3, 3))
    positions[:, 1] = positions[:, 0]
    x = Descriptor([11, 17], **settings)(Frames.build(numbers, positions, np.eye(3) * 5.0))
    assert np.isfinite(x).all()


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1e-5])
def test_broken_cells_are_refused_by_name(settings, bad):
    frames = shaken(n=3, size=(1, 1, 1))
    cell = frames.cell.copy()
    cell[1, 2] *= bad
    frames = frames.with_(cell=cell)
    with pytest.raises(Unphysical, match=frames.ids[1]):
        Descriptor([11, 17], **settings)(frames)


def test_what_it_cannot_do():
    with pytest.raises(InputError, match=r'one of mean, species, species_std, species_extremes, got "atoms"'):
        Descriptor([11], pooling="atoms")
    with pytest.raises(InputError, match='schnet or soap, got "acsf"'):
        Descriptor([11], model="acsf")
    with pytest.raises(InputError, match='auto, cpu or cuda, got "tpu"'):
        Descriptor([11], device="tpu", **SMALL)
    with pytest.raises(EngineError, match=r"knows Na, .* hold Cl"):
        Descriptor([11], **SMALL)(shaken(n=1, size=(1, 1, 1)))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch sees no GPU"):
            Descriptor([11], device="cuda", **SMALL)
