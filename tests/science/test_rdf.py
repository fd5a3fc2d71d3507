"""Radial distribution functions of crystals and against ASE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry.rdf import get_rdf

from campaign.frames import Frames
from campaign.science.rdf import partial_rdf


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


def test_the_mean_is_over_the_g_of_each_frame_with_its_own_volume():
    small, large = bulk("Ni", a=3.5, cubic=True), bulk("Ni", a=4.2, cubic=True)
    both = partial_rdf(Frames.from_ase([small, large]), 9.0, 30)["Ni-Ni"][1]
    each = [partial_rdf(Frames.from_ase([x]), 9.0, 30)["Ni-Ni"][1] for x in (small, large)]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-12)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="at least one frame"):
        partial_rdf(Frames.from_ase([bulk("Ni")])[:0], 5.0, 10)
