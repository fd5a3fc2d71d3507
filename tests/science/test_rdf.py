"""Radial distribution functions of crystals and against ASE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry.rdf import get_rdf

from campaign.frames import Frames
from campaign.science.rdf import Distribution, compare_rdf, distributions, partial_rdf


def test_shells_of_rocksalt_beyond_half_the_box():
    a, cutoff, bins = 5.64, 6.0, 60
    crystal = bulk("NaCl", "rocksalt", a=a, cubic=True)
    g = partial_rdf(Frames.from_ase([crystal, crystal]), cutoff, bins)
    assert list(g) == ["Na-Na", "Na-Cl", "Cl-Cl"]
    edges = np.linspace(0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    unlike = {a / 2: 6, a / 2 * 3**0.5: 8}
    like = {a / 2**0.5: 12, a: 6}
    for name, neighbours in {"Na-Cl": unlike, "Na-Na": like, "Cl-Cl": like}.items():
        expected = np.zeros(bins)
        for d, n in neighbours.items():
            expected[int(d / cutoff * bins)] += n / (4 / a**3)
        np.testing.assert_allclose(g[name][0], (edges[1:] + edges[:-1]) / 2)
        np.testing.assert_allclose(g[name][1], expected / shells, atol=1e-6)


def test_the_same_as_ase():
    rng = np.random.default_rng(1)
    atoms = Atoms("Na20Cl12", rng.random((32, 3)) * 11, cell=[11] * 3, pbc=True)
    cutoff, bins = 5.0, 25
    g = partial_rdf(Frames.from_ase([atoms]), cutoff, bins)
    for (a, b), name in {(11, 11): "Na-Na", (11, 17): "Na-Cl", (17, 17): "Cl-Cl"}.items():
        theirs, _ = get_rdf(atoms, cutoff, bins, elements=(a, b))
        np.testing.assert_allclose(g[name][1], theirs, atol=1e-6)


def test_the_same_as_mdanalysis():
    """``InterRDF``: pip install mdanalysis (it is no part of the environment). Of like pairs it divides by N - 1."""
    mda = pytest.importorskip("MDAnalysis")
    from MDAnalysis.analysis.rdf import InterRDF

    rng, box, cutoff, bins = np.random.default_rng(1), 11.0, 5.0, 25
    x = (rng.random((4, 32, 3)) * box).astype("float32")
    numbers = np.repeat([11, 17], [20, 12])
    g = partial_rdf(Frames.build(numbers, x.astype(float), box * np.eye(3), task=1), cutoff, bins)
    universe = mda.Universe.empty(32, trajectory=True)
    universe.load_new(x, dimensions=np.array([box] * 3 + [90.0] * 3))
    first, second = universe.atoms[:20], universe.atoms[20:]
    unlike = InterRDF(first, second, nbins=bins, range=(0.0, cutoff)).run()
    np.testing.assert_allclose(g["Na-Cl"][1], unlike.results.rdf, atol=1e-6)
    like = InterRDF(first, first, nbins=bins, range=(0.0, cutoff), exclusion_block=(1, 1)).run()
    np.testing.assert_allclose(g["Na-Na"][1], like.results.rdf * 19 / 20, atol=1e-6)


def test_the_mean_is_over_the_g_of_each_frame_with_its_own_volume():
    small, large = bulk("Ni", a=3.5, cubic=True), bulk("Ni", a=4.2, cubic=True)
    both = partial_rdf(Frames.from_ase([small, large]), 9.0, 30)["Ni-Ni"][1]
    each = [partial_rdf(Frames.from_ase([x]), 9.0, 30)["Ni-Ni"][1] for x in (small, large)]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-12)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="at least one frame"):
        partial_rdf(Frames.from_ase([bulk("Ni")])[:0], 5.0, 10)


def rattled(seed, n=100, a=5.64, shift=0.25):
    """Return frames of rocksalt with independent displacements."""
    crystal = bulk("NaCl", "rocksalt", a=a, cubic=True)
    x = crystal.positions + shift * np.random.default_rng(seed).normal(size=(n, 8, 3))
    return Frames.build(crystal.numbers, x, np.array(crystal.cell), task=1)


def test_two_runs_of_one_kind_differ_by_their_noise_and_others_by_more():
    first, second = (distributions(rattled(seed), 6.0, 50) for seed in (1, 2))
    np.testing.assert_allclose(first["Na-Cl"].g, partial_rdf(rattled(1), 6.0, 50)["Na-Cl"][1], rtol=1e-12)
    for pair, theirs in first.items():
        found = compare_rdf(second[pair], theirs)
        there = (theirs.g > 0) | (second[pair].g > 0)
        assert found.noise == pytest.approx(np.abs(second[pair].g - theirs.g)[there].mean(), rel=0.35)
        assert found.difference < found.noise
        wide = compare_rdf(distributions(rattled(3, shift=0.33), 6.0, 50)[pair], theirs)
        assert wide.difference > 2 * wide.noise


def test_pairs_inside_the_core_are_found_however_few():
    good, other = rattled(1), rattled(2)
    x = other.positions.copy()
    first, second = np.flatnonzero(other.numbers[0] == 17)[:2]
    x[:, second] = x[:, first] + np.array([1.35, 0, 0])  # in every frame
    found = compare_rdf(*(distributions(f, 6.0, 100)["Cl-Cl"] for f in (other.with_(positions=x), good)))
    assert found.too_near
    assert found.model_core == pytest.approx(1.35, abs=0.06)
    assert not compare_rdf(*(distributions(f, 6.0, 100)["Cl-Cl"] for f in (other, good))).too_near


def test_an_empty_core_does_not_dilute_the_difference():
    r, zero = np.linspace(0, 6, 10), np.zeros(10)
    g = np.where(r > 3, 1.0, 0.0)
    assert compare_rdf(Distribution(r, 1.2 * g, zero), Distribution(r, g, zero)).difference == pytest.approx(0.2)
    assert compare_rdf(Distribution(r, zero, zero), Distribution(r, zero, zero)).difference == 0.0
