"""SchNet as representation and potential: exact against SchNetPack and finite differences; training; files."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from campaign.engines.schnetpack import WALL, Committee, Potential, load_schnetpack, network, pairs_once, schnet
from campaign.engines.schnetpack_data import collate, examples_of, shortest_distances, targets_of, training_set
from campaign.engines.schnetpack_steps import errors_of, loss_of
from campaign.engines.schnetpack_train import train
from campaign.errors import EngineError, Unphysical
from campaign.frames import Frames
from campaign.science.neighbours import neighbour_list
from campaign.science.references import reference_energies
from campaign.science.uncertainty import atomic_std

SPEC = {"features": 16, "interactions": 2, "cutoff": 4.0}
FAMILIES = {name: {**SPEC, "model": name} for name in ("schnet", "painn", "so3net")}
FAMILIES["so3net of l 3"] = {**SPEC, "model": "so3net", "l_max": 3, "interactions": 1}
FAMILIES["ani"] = {"model": "ani", "cutoff": 4.0, "angular_cutoff": 3.4, "layers": [12, 8], "species": [11, 17]}
NAMES = {
    "schnet": "schnetpack.representation.SchNet",
    "painn": "schnetpack.representation.PaiNN",
    "so3net": "schnetpack.representation.SO3net",
    "ani": "torchani.aev.AEVComputer",
}
ANI = pytest.param("ani", marks=pytest.mark.requires("torchani"))
EVERY = [*(name for name in FAMILIES if name != "ani"), ANI]


def crystal(n=3, seed=0, size=(1, 1, 1), noise=0.15):
    """Shaken, sheared rocksalt of 8 atoms (the cutoff exceeds half the box)."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * size
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=noise, size=atoms.positions.shape)
        images.append(atoms)
    return Frames.from_ase(images)


def untrained(spec=SPEC, seed=0, precision="float64"):
    weights = {k: v.numpy() for k, v in network(spec, seed).state_dict().items()}
    weights["reference.numbers"] = np.array([11, 17])
    weights["reference.energies"] = np.array([-1.5, -3.5])
    weights["scale"] = np.array([0.7])
    return Potential(spec, weights, precision)


def labelled(n, seed=0):
    """Frames with exact labels from pairwise springs: smooth, short-ranged and quickly learnt."""
    frames = crystal(n, seed)
    pairs = neighbour_list(frames, 3.6)
    r = pairs.vectors(frames.positions)
    d = np.linalg.norm(r, axis=1)
    u = (3.6 - d) ** 2
    pull = (-2 * (3.6 - d) / d)[:, None] * r  # dE/dr of each directed pair; each bond is there twice
    frame = pairs.idx_i // frames.n_atoms
    energy = np.bincount(frame, 0.5 * u, len(frames)) - 5.0 * 4
    forces = np.zeros((n * 8, 3))
    np.add.at(forces, pairs.idx_i, pull)
    stress = np.zeros((n, 3, 3))
    np.add.at(stress, frame, 0.5 * r[:, :, None] * pull[:, None, :])
    return frames.with_(energy=energy, forces=forces.reshape(n, 8, 3), stress=stress / frames.volume[:, None, None])


# --- the representation


def test_each_pair_once_gives_schnetpacks_own_representation():
    spk = load_schnetpack()
    frames = crystal()
    ours = schnet(16, 2, 4.0, seed=3).double()
    theirs = spk.representation.SchNet(16, 2, spk.nn.GaussianRBF(20, 4.0), spk.nn.CosineCutoff(4.0)).double()
    theirs.load_state_dict(ours.state_dict())
    pairs = neighbour_list(frames, 4.0)
    half = pairs.half
    assert half.sum() * 2 == len(pairs)

    def run(model, keep):
        p = spk.properties
        inputs = {
            p.Z: torch.as_tensor(frames.numbers.ravel().astype(int)),
            p.Rij: torch.as_tensor(pairs.vectors(frames.positions)[keep]),
            p.idx_i: torch.as_tensor(pairs.idx_i[keep]),
            p.idx_j: torch.as_tensor(pairs.idx_j[keep]),
        }
        return model(inputs)["scalar_representation"].detach().numpy()

    np.testing.assert_allclose(run(ours, half), run(theirs, slice(None)), atol=1e-10)


# --- the potential


def walled(spec, seed=0):
    """Return a potential with a wall at 3.2 Å: many pairs are inside."""
    return Potential(spec, untrained(spec, seed).weights | {"core": np.full((2, 2), 3.2)}, "float64")


@pytest.mark.parametrize("wall", [False, True])
@pytest.mark.parametrize("family", [*EVERY, pytest.param("committee", marks=pytest.mark.requires("torchani"))])
def test_forces_and_stress_are_derivatives_of_the_energy(family, wall):
    make = walled if wall else untrained
    if family == "committee":
        potential = Committee([make(spec, seed) for seed, spec in enumerate(FAMILIES.values())])
    else:
        potential = make(FAMILIES[family])
    frame = crystal(1, seed=4)
    _, forces, stress = potential.evaluate(frame)
    h = 1e-4

    def energy(positions, cell):
        return potential.evaluate(Frames.build(frame.numbers, positions, cell))[0][0]

    numeric = np.zeros((8, 3))
    for i in range(8):
        for c in range(3):
            step = np.zeros((1, 8, 3))
            step[0, i, c] = h
            up, down = (energy(frame.positions + s * step, frame.cell) for s in (1, -1))
            numeric[i, c] = -(up - down) / (2 * h)
    scale = np.abs(numeric).max()
    assert scale > 1e-3
    np.testing.assert_allclose(forces[0] / scale, numeric / scale, atol=1e-5)
    strained = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            up, down = (
                energy(frame.positions @ (np.eye(3) + s * strain), frame.cell @ (np.eye(3) + s * strain))
                for s in (1, -1)
            )
            strained[a, b] = (up - down) / (2 * h) / frame.volume[0]
    scale = np.abs(strained).max()
    assert scale > 1e-6
    np.testing.assert_allclose(stress[0] / scale, strained / scale, atol=1e-5)


@pytest.mark.parametrize("family", EVERY)
def test_the_same_as_schnetpacks_strain_and_forces(family):
    spec = FAMILIES[family]
    potential = untrained(spec)
    frames = crystal(3)
    spk = load_schnetpack()
    p = spk.properties
    pairs = neighbour_list(frames, 4.0)
    half = pairs.half if pairs_once(spec) else slice(None)
    inputs = {
        p.Z: torch.as_tensor(frames.numbers.ravel().astype(int)),
        p.R: torch.tensor(frames.positions.reshape(-1, 3)),
        p.cell: torch.tensor(frames.cell),
        p.offsets: torch.tensor(pairs.offsets[half]),
        p.idx_i: torch.as_tensor(pairs.idx_i[half]),
        p.idx_j: torch.as_tensor(pairs.idx_j[half]),
        p.idx_m: torch.arange(3).repeat_interleave(8),
        p.n_atoms: torch.full((3,), 8),
    }
    theirs = network(spec, 0).double().eval()(inputs)
    energy, forces, stress = potential.evaluate(frames)
    np.testing.assert_allclose(energy, theirs[p.energy].detach() * 0.7 - 5.0 * 4, atol=1e-10)
    np.testing.assert_allclose(forces.reshape(-1, 3), theirs[p.forces] * 0.7, atol=1e-10)
    np.testing.assert_allclose(stress, theirs[p.stress].detach() * 0.7, atol=1e-10)


@pytest.mark.parametrize("family", EVERY)
def test_turned_about_energy_is_the_same_and_forces_turn_with_it(family):
    from scipy.spatial.transform import Rotation

    potential = untrained(FAMILIES[family])
    frame = crystal(1, seed=6)
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix().T
    turned = frame.with_(positions=frame.positions @ turn, cell=frame.cell @ turn)
    energy, forces, stress = potential.evaluate(frame)
    again = potential.evaluate(turned)
    np.testing.assert_allclose(again[0], energy, rtol=1e-6)
    np.testing.assert_allclose(again[1], forces @ turn, atol=2e-6 * np.abs(forces).max())
    np.testing.assert_allclose(again[2], turn.T @ stress @ turn, atol=2e-6 * np.abs(stress).max())


@pytest.mark.parametrize("family", ["schnet", "painn", "so3net", ANI])
def test_in_chunks_one_by_one_and_as_a_larger_cell(family):
    potential = untrained(FAMILIES[family], precision="float32")
    frames = crystal(40, size=(2, 2, 2))  # several chunks
    energy, forces, stress = potential.evaluate(frames)
    for k in (0, 17, 39):
        one = potential.evaluate(frames[[k]])
        np.testing.assert_allclose(one[0], energy[[k]], rtol=1e-6)
        np.testing.assert_allclose(one[1][0], forces[k], atol=2e-5)
        np.testing.assert_allclose(one[2][0], stress[k], atol=2e-6)
    np.testing.assert_allclose(potential.atomic_energies(frames).sum(axis=1), energy)
    doubled = Frames.from_ase([a.repeat((2, 1, 1)) for a in frames[:1].to_ase()])
    np.testing.assert_allclose(potential.evaluate(doubled)[0], 2 * energy[:1], rtol=1e-6)


def test_calculator_gives_what_evaluate_gives():
    potential = untrained()
    frames = crystal(1)
    atoms = frames.to_ase()[0]
    atoms.calc = potential.calculator()
    energy, forces, stress = potential.evaluate(frames)
    assert atoms.get_potential_energy() == pytest.approx(energy[0])
    np.testing.assert_allclose(atoms.get_forces(), forces[0])
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress[0], atol=1e-12)


def test_a_calculator_does_not_take_a_molecule_for_a_crystal():
    atoms = crystal(1).to_ase()[0]
    atoms.calc = untrained().calculator()
    for pbc in (False, (True, True, False)):
        atoms.pbc = pbc
        with pytest.raises(EngineError, match=r"periodic in three directions.*pbc = True"):
            atoms.get_potential_energy()


def test_committee_is_mean_and_deviation():
    members = [untrained(seed=s) for s in range(3)]
    committee = Committee(members)
    frames = crystal(2)
    mean, std = committee.evaluate_std(frames)
    each = [m.evaluate(frames) for m in members]
    for k in range(3):
        np.testing.assert_allclose(mean[k], np.mean([e[k] for e in each], axis=0))
        np.testing.assert_allclose(std[k], np.std([e[k] for e in each], axis=0, ddof=1), atol=1e-12)
        np.testing.assert_allclose(committee.evaluate(frames)[k], mean[k])
    assert std[1].min() > 0
    atomic = np.array([m.atomic_energies(frames) for m in members])
    np.testing.assert_allclose(committee.atomic_std(frames), atomic_std(atomic))
    atoms = frames.to_ase()[0]
    atoms.calc = committee.calculator()
    np.testing.assert_allclose(atoms.get_forces(), mean[1][0])
    with pytest.raises(EngineError, match="at least one"):
        Committee([])
    alone = Committee(members[:1])
    np.testing.assert_allclose(alone.evaluate(frames)[1], each[0][1])
    for uncertainty in (alone.evaluate_std, alone.atomic_std):
        with pytest.raises(EngineError, match="two members"):
            uncertainty(frames)
    assert committee.evaluate(frames[:0])[1].shape == (0, 8, 3)


def test_unknown_species_and_broken_frames_are_refused():
    frames = crystal(1)
    numbers = frames.numbers.copy()
    numbers[0, 0] = 19
    with pytest.raises(EngineError, match=r"knows Na, Cl.* hold K"):
        untrained().evaluate(frames.with_(numbers=numbers))
    with pytest.raises(Unphysical, match="not finite"):
        untrained().evaluate(frames.with_(positions=frames.positions * np.nan))


@pytest.mark.parametrize("family", EVERY)
def test_file_carries_everything_and_is_read_without_pickle(tmp_path, family):
    spec = FAMILIES[family]
    learnt = np.arange(16, dtype=np.uint8)
    potential = untrained(spec, precision="float32")
    potential = Potential(spec, potential.weights | {"training_set": learnt})
    potential.export(tmp_path / "model.pt")
    data = torch.load(tmp_path / "model.pt", weights_only=True)
    assert data["cutoff"] == 4.0
    assert data["species"] == [11, 17]
    assert data["units"]["stress"].startswith("eV/Å^3")
    assert data["reference_energies"] == {11: -1.5, 17: -3.5}
    assert data["spec"] == spec
    assert data["training_set"] == "000102030405060708090a0b0c0d0e0f"
    assert data["model"] == NAMES[spec["model"]]
    assert data["weights"]["wall"] == WALL
    again = Potential.load(tmp_path / "model.pt")
    assert again.training_set == data["training_set"]
    assert again.wall == WALL
    for a, b in zip(again.evaluate(crystal()), potential.evaluate(crystal()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_of_an_earlier_format_still_loads_with_the_wall_that_it_had(tmp_path, number):
    potential = untrained(precision="float32")
    potential.export(tmp_path / "model.pt")
    data = torch.load(tmp_path / "model.pt", weights_only=True)
    del data["training_set"], data["weights"]["wall"]
    torch.save({**data, "format": number}, tmp_path / "first.pt")
    again = Potential.load(tmp_path / "first.pt")
    assert again.training_set == ""
    assert again.wall == 2000.0
    np.testing.assert_array_equal(again.evaluate(crystal())[0], potential.evaluate(crystal())[0])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    untrained().export(tmp_path / "model.pt")
    data = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**data, "spec": {**SPEC, "features": 8}}, tmp_path / "other.pt")
    with pytest.raises(EngineError, match=r"other.pt is damaged .*export the model again"):
        Potential.load(tmp_path / "other.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    untrained().export(tmp_path / "model.pt")
    data = torch.load(tmp_path / "model.pt", weights_only=True)
    data["weights"]["representation.embedding.weight"][11, 3] = float("nan")
    torch.save(data, tmp_path / "broken.pt")
    with pytest.raises(EngineError, match=r"broken.pt is damaged .*embedding.weight is not finite"):
        Potential.load(tmp_path / "broken.pt")


def test_a_file_that_is_no_potential_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"format": 1, "spec": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"format": 99}, tmp_path / "old.pt")
    for name in ("evil", "text", "old"):
        with pytest.raises(EngineError, match=f"{name}.pt .*export the model again"):
            Potential.load(tmp_path / f"{name}.pt")


# --- training


@pytest.mark.parametrize(
    ("family", "rate", "loss"),
    [
        ("schnet", 5e-3, {}),
        ("schnet", 5e-3, {"kind": "huber"}),
        ("schnet", 5e-3, {"kind": "l4"}),
        ("painn", 3e-3, {}),
        pytest.param("so3net", 3e-3, {}, marks=pytest.mark.slow),
        pytest.param("ani", 5e-3, {}, marks=pytest.mark.requires("torchani")),
    ],
)
def test_training_learns_energy_forces_and_stress(family, rate, loss):
    spec = {**FAMILIES[family], "epochs": 60, "batch": 2, "rate": rate, "loss": loss}
    seen = []
    weights, summary = train([labelled(12), labelled(10, seed=5)], spec, 1, seen.append)
    assert [s["epoch"] for s in seen] == list(range(1, 61))
    assert set(seen[0]) == {"epoch", "loss", "force_rmse"}
    assert summary["train_frames"] == 20
    assert summary["held_back"] == 2
    assert summary["species"] == [11, 17]
    assert min(s["force_rmse"] for s in seen) <= summary["force_rmse"]
    test = labelled(10, seed=9)
    energy, forces, stress = Potential(spec, weights).evaluate(test)
    assert np.std(forces - test.forces) < 0.15 * np.std(test.forces)
    assert np.std(stress - test.stress) < (0.3 if family == "ani" else 0.15) * np.std(test.stress)  # it learns slower
    assert np.sqrt(np.mean((energy - test.energy) ** 2)) < 0.35 * np.std(test.energy)


def test_same_seed_same_weights_and_another_seed_others():
    spec = {**SPEC, "epochs": 2}
    a, b, c = (train([labelled(4)], spec, seed)[0] for seed in (0, 0, 1))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not all(np.array_equal(a[k], c[k]) for k in a)


def test_the_hash_of_a_training_set_is_that_of_its_frames_and_labels(tmp_path):
    frames = labelled(3)
    weights, summary = train([frames], {**SPEC, "epochs": 1}, 0)
    assert Potential(SPEC, weights).training_set == summary["training_set"] == training_set([frames]).hex()
    forces = frames.forces.copy()
    forces[1, 2, 0] = np.nextafter(forces[1, 2, 0], 9.0)
    other = [training_set([frames.with_(forces=forces)]), training_set([frames[:2]]), training_set([frames[[1, 0, 2]]])]
    assert len({training_set([frames]), *other}) == 4


@pytest.mark.parametrize("family", ["schnet", "painn"])
def test_two_atoms_at_one_place_are_named_and_the_rate_is_not_blamed(family):
    frames = labelled(3)
    x = frames.positions.copy()
    x[1, 3] = x[1, 2] + frames.cell[1, 0]
    with pytest.raises(EngineError, match=r"^Frame 0{16}:1 has two atoms .* at the same place; leave it out"):
        train([frames.with_(positions=x)], {**FAMILIES[family], "epochs": 1}, 0)


def test_the_hand_of_a_cell_does_not_change_what_is_learnt():
    """SchNetPack's volume has a sign: with a left-handed cell it took the stress of a label for its opposite."""
    right = labelled(4)
    left = right.with_(cell=right.cell[:, [1, 0, 2]])
    weights, _ = train([right], {**SPEC, "epochs": 2}, 3)
    other, _ = train([left], {**SPEC, "epochs": 2}, 3)
    for name in weights.keys() - {"training_set"}:
        np.testing.assert_allclose(other[name], weights[name], atol=1e-5, err_msg=name)


def with_potassium():
    """Return nine frames of Na and Cl, one in which K stands for Na, and a seed that would hold just that one back."""
    rare = labelled(1, seed=7)
    blocks = [labelled(9), rare.with_(numbers=np.where(rare.numbers == 11, 19, rare.numbers).astype("int16"))]
    seed = next(s for s in range(100) if np.random.default_rng([s, 0x7261696E]).permutation(10)[0] == 9)
    return blocks, seed


def test_a_species_of_one_frame_is_learnt_and_not_held_back():
    blocks, seed = with_potassium()
    weights, summary = train(blocks, {**SPEC, "epochs": 4}, seed)
    assert (summary["train_frames"], summary["held_back"], summary["species"]) == (9, 1, [11, 17, 19])
    first = network(SPEC, seed).state_dict()["representation.embedding.weight"].numpy()
    moved = np.abs(weights["representation.embedding.weight"] - first).max(axis=1)
    assert (moved[[11, 17, 19]] > 1e-6).all()
    assert moved[20] == 0.0


def test_a_single_frame_can_be_trained_on():
    _, summary = train([labelled(1)], {**SPEC, "epochs": 1}, 0)
    assert (summary["train_frames"], summary["held_back"]) == (1, 1)


def test_frames_without_labels_are_refused_by_name():
    frames = labelled(3)
    stress = frames.stress.copy()
    stress[1, 0, 0] = np.nan
    with pytest.raises(EngineError, match=f"{frames.ids[1]} has no finite stress"):
        train([frames.with_(stress=stress)], SPEC, 0)
    with pytest.raises(EngineError, match="no labelled frames"):
        train([], SPEC, 0)


def test_reference_energies_where_compositions_differ_and_where_they_do_not():
    numbers = [[11, 11, 17, 17], [11, 17, 17, 17], [11, 11, 11, 17]]
    frames = Frames.build(numbers, np.zeros((3, 4, 3)), np.eye(3), energy=[2 * -1 + 2 * -4, -1 + 3 * -4, 3 * -1 - 4])
    species, energies = reference_energies([frames])
    np.testing.assert_array_equal(species, [11, 17])
    np.testing.assert_allclose(energies, [-1, -4])
    salt = Frames.build([11, 17], np.zeros((2, 2, 3)), np.eye(3), energy=[-8.0, -6.0])
    np.testing.assert_allclose(reference_energies([salt])[1], [-3.5, -3.5])


def test_wall_stands_inside_the_shortest_distances_of_training_and_only_there():
    frames = labelled(6)
    spec = {**SPEC, "epochs": 1}
    walled, bare = (Potential(spec, train([frames], spec | {"wall": w}, 0)[0]) for w in (True, False))
    for a, b in zip(walled.evaluate(frames), bare.evaluate(frames), strict=True):
        np.testing.assert_array_equal(a, b)
    core = shortest_distances([frames], np.array([11, 17]), 4.0)
    np.testing.assert_array_equal(walled.weights["core"], core)
    core = walled.weights["core"]
    assert core[0, 1] == core[1, 0] < min(core[0, 0], core[1, 1])
    pair = Frames.build([11, 17], [[[0.0, 0, 0], [0.8 * core[0, 1], 0, 0]]], np.eye(3) * 30)
    added = [w - b for w, b in zip(walled.evaluate(pair), bare.evaluate(pair), strict=True)]
    np.testing.assert_allclose(added[0], WALL * 0.2**3, rtol=1e-4)
    np.testing.assert_allclose(added[1][0, 1], [3 * WALL * 0.2**2 / core[0, 1], 0, 0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["mse", "huber", "l4"])
def test_training_goes_down_the_slope_of_its_loss(kind):
    """Derivatives by the weights, through forces and stress, against finite differences."""
    spec = {**FAMILIES["painn"], "features": 8}
    frames = labelled(2)
    loss = {"kind": kind, "delta": 0.3, "energy": 0.3, "forces": 0.6, "stress": 0.1}
    targets = targets_of([frames], loss)
    batch = collate(examples_of(frames, targets, 4.0, once=False))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    model = network(spec, 0).double()

    def value():
        return loss_of(errors_of(batch, model(dict(batch))), targets)

    gradient = torch.autograd.grad(value(), list(model.parameters()))
    rng = torch.Generator().manual_seed(1)
    way = [torch.randn(w.shape, generator=rng, dtype=w.dtype) for w in model.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, way, strict=True))
    found = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for w, d in zip(model.parameters(), way, strict=True):
                w.add_(d, alpha=step)
        found.append(float(value().detach()))
    assert slope == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-4)
    assert abs(slope) > 1e-6


@pytest.mark.parametrize("family", ["painn", "so3net", ANI])
def test_a_perfect_crystal_can_be_trained_on(family):
    """Directions along the axes, where powers of zero are differentiated twice."""
    perfect = Frames.from_ase([bulk("NaCl", "rocksalt", a=a, cubic=True) for a in (5.5, 5.64, 5.8)])
    frames = perfect.with_(
        energy=np.array([-30.0, -30.2, -30.1]), forces=np.zeros((3, 8, 3)), stress=np.zeros((3, 3, 3))
    )
    weights, summary = train([frames], {**FAMILIES[family], "epochs": 3, "rate": 1e-3}, 0)
    assert np.isfinite(summary["loss"])
    assert all(np.isfinite(v).all() for v in weights.values())
    assert all(np.isfinite(v).all() for v in Potential(FAMILIES[family], weights).evaluate(frames))


@pytest.mark.parametrize("family", EVERY)
def test_an_isolated_atom_has_its_reference_energy_and_no_force(family):
    potential = untrained(FAMILIES[family])
    lone = Frames.build([11], [[[0.0, 0, 0]]], np.eye(3) * 30)
    energy, forces, stress = potential.evaluate(lone)
    assert np.isfinite(energy).all()
    assert not forces.any()
    assert not stress.any()
