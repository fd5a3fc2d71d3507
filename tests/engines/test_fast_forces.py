"""The fast way to SchNet's forces is SchNet's: against float64, finite differences, a supercell, and a moving frame."""

import tracemalloc

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.fake import ToyCrystal
from campaign.engines.fast_forces import SKIN, fast_forces
from campaign.engines.models import Mean
from campaign.engines.schnetpack import Potential, network
from campaign.errors import EngineError, Unphysical
from campaign.frames import Frames

SPEC = {"model": "schnet", "features": 12, "interactions": 2, "cutoff": 5.0}


def potential(seed=0, precision="float32", core=None, **changes):
    """Return a seeded, untrained SchNet of Na and Cl, its energies of the size of a trained one's."""
    spec = {**SPEC, **changes}
    weights = {k: v.numpy() for k, v in network(spec, seed).state_dict().items()}
    extra = {"reference.numbers": np.array([11, 17]), "reference.energies": np.array([-1.0, -3.0])}
    extra |= {"scale": np.array([2.0])} | ({} if core is None else {"core": np.full((2, 2), core)})
    return Potential(spec, {**weights, **extra}, precision)


def salt(n=2, seed=0, a=5.64, spread=0.2):
    atoms = bulk("NaCl", "rocksalt", a=a, cubic=True) * (n, n, n)
    rng = np.random.default_rng(seed)
    atoms.positions += spread * rng.normal(size=atoms.positions.shape)
    atoms.set_cell(np.array(atoms.cell) + np.tril(0.3 * rng.normal(size=(3, 3))), scale_atoms=True)
    return atoms


def frame(atoms):
    return Frames.build(atoms.numbers, atoms.positions[None], np.array(atoms.cell))


def compare(found, right, scale=2e-6):
    for value, want in zip(found, right, strict=True):
        np.testing.assert_allclose(value, want[0], atol=scale * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("core", [None, 2.9])
def test_it_gives_what_the_network_gives(n, core):
    atoms = salt(n)  # one cell is smaller than twice the cutoff: images
    fast = fast_forces(potential(core=core), atoms.numbers)
    exact = potential(core=core, precision="float64").evaluate(frame(atoms))
    found = fast.evaluate(atoms.positions, np.array(atoms.cell))
    assert np.abs(exact[1]).max() > 0.01
    compare(found, exact)
    plain = potential(core=core).evaluate(frame(atoms))
    off = np.abs(plain[1] - exact[1]).max()
    assert np.abs(found[1] - exact[1][0]).max() < 3 * off + 1e-7  # as near as float32 is without splines


def test_the_mean_of_several_is_theirs():
    atoms = salt()
    members = [potential(seed, cutoff=cutoff) for seed, cutoff in ((0, 5.0), (1, 4.5), (2, 5.0))]
    found = fast_forces(Mean(members), atoms.numbers).evaluate(atoms.positions, np.array(atoms.cell))
    compare(found, Mean(members).evaluate(frame(atoms)))


def test_forces_and_stress_are_derivatives_of_its_energy():
    """In float32, so steps are large: the differences of two energies must stand out of their rounding."""
    atoms = salt(1, spread=0.3)
    cell = np.array(atoms.cell)
    fast = fast_forces(potential(core=2.9), atoms.numbers)
    _, forces, stress = fast.evaluate(atoms.positions, cell)
    rng = np.random.default_rng(5)
    for _ in range(4):
        way = rng.normal(size=forces.shape)
        up, down = (fast.evaluate(atoms.positions + h * way, cell)[0] for h in (2e-3, -2e-3))
        assert (down - up) / 4e-3 == pytest.approx(float((forces * way).sum()), rel=1e-3, abs=1e-3)
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = 2e-3
        energies = [
            fast.evaluate(atoms.positions @ (np.eye(3) + s * strain).T, cell @ (np.eye(3) + s * strain).T)[0]
            for s in (1, -1)
        ]
        slope = (energies[0] - energies[1]) / 4e-3
        assert slope / atoms.get_volume() == pytest.approx(stress[a, b], rel=1e-3, abs=1e-5)


def test_a_cell_narrower_than_the_cutoff_is_its_own_supercell():
    small = salt(1, a=4.2, spread=0.1)  # half of the cutoff is longer than half of the cell
    large = small * (2, 2, 2)
    found, big = (fast_forces(potential(), a.numbers).evaluate(a.positions, np.array(a.cell)) for a in (small, large))
    assert big[0] == pytest.approx(8 * found[0], rel=1e-6)
    np.testing.assert_allclose(big[1][: len(small)], found[1], atol=2e-6)
    np.testing.assert_allclose(big[2], found[2], atol=1e-6)


def test_pairs_that_are_kept_miss_nothing_however_atoms_and_cell_move():
    """Against pairs found anew, over frames that drift, strain and are wrapped back into the cell."""
    atoms = salt(1)
    rng = np.random.default_rng(2)
    one = potential()
    fast = fast_forces(one, atoms.numbers)
    before, kept = None, 0
    for step in range(120):
        atoms.positions += 0.03 * rng.normal(size=(8, 3)) + [0.05, 0, 0]
        atoms.set_cell(np.array(atoms.cell) * (1 + 0.004 * rng.normal()), scale_atoms=True)
        if step % 40 == 20:
            atoms.wrap()
        found = fast.evaluate(atoms.positions, np.array(atoms.cell))
        kept += fast._pairs.i is before
        before = fast._pairs.i
        new = fast_forces(one, atoms.numbers).evaluate(atoms.positions, np.array(atoms.cell))
        compare(found, [np.array(v)[None] for v in new], 1e-6)
    assert 20 < kept < 120
    assert SKIN > 0


def test_a_pair_that_comes_around_the_corner_is_not_missed():
    """It crosses three faces of the cell, which no pair within reach did before: a change of the cell counts thrice."""
    numbers, cell = np.array([11, 17]), 12.0 * np.eye(3)
    positions = np.array([[0.5, 0.5, 0.5], 0.5 + 12.0 - np.full(3, 5.65 / np.sqrt(3))])
    fast = fast_forces(potential(), numbers)
    assert not fast.evaluate(positions, cell)[1].any()
    shrunk = cell - 0.55 * np.eye(3)  # the atoms stay: they are now 4.7 Å apart
    found = fast.evaluate(positions, shrunk)
    assert np.abs(found[1]).max() > 1e-6
    compare(found, potential().evaluate(Frames.build(numbers, positions[None], shrunk)))


def test_the_wall_is_as_high_as_the_weights_say():
    atoms = salt()
    weights = potential(core=2.9).weights
    low, high = (Potential(SPEC, weights | {"wall": np.array([w])}) for w in (100.0, 9000.0))
    for one in (low, high):
        compare(
            fast_forces(one, atoms.numbers).evaluate(atoms.positions, np.array(atoms.cell)), one.evaluate(frame(atoms))
        )
    assert high.evaluate(frame(atoms))[0] > low.evaluate(frame(atoms))[0] + 0.1


@pytest.mark.parametrize("core", [None, 2.9])
def test_memory_does_not_grow_with_the_square_of_the_atoms(core):
    one, numbers = potential(core=core), np.tile([11, 17], 4000)
    fast_forces(one, numbers[:2])  # what is loaded once
    tracemalloc.start()
    fast = fast_forces(one, numbers)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fast is not None
    assert held < most < 100 * 2**20  # a number for each two of them would be 488 MiB


@pytest.mark.parametrize("family", ["painn", "so3net"])
def test_networks_of_other_families_are_not_taken_for_it(family):
    atoms = salt(1)
    assert fast_forces(potential(model=family), atoms.numbers) is None
    assert fast_forces(Mean([potential(), potential(model=family)]), atoms.numbers) is None


def test_what_it_cannot_do_it_leaves_to_the_model_or_says():
    atoms = salt(1)
    assert fast_forces(ToyCrystal(), atoms.numbers) is None
    assert fast_forces(potential(precision="float64"), atoms.numbers) is None
    assert fast_forces(Mean([potential(), ToyCrystal()]), atoms.numbers) is None
    with pytest.raises(EngineError, match="knows Na, Cl, and the frames also hold K"):
        fast_forces(potential(), np.array([11, 19]))
    fast = fast_forces(potential(), atoms.numbers)
    fast.evaluate(atoms.positions, np.array(atoms.cell))
    bad = atoms.positions.copy()
    bad[3, 1] = np.nan
    with pytest.raises(Unphysical, match="not finite"):
        fast.evaluate(bad, np.array(atoms.cell))
    far = atoms.positions * 100.0
    energy, forces, stress = fast_forces(potential(), atoms.numbers).evaluate(far, 100.0 * np.array(atoms.cell))
    assert np.isfinite(energy)
    assert not forces.any()
    assert not stress.any()
