"""Relaxation gives what ASE's own optimisers give with the same forces, and the crystals that are known."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.ase_calculator import ClassicalForces, calculator
from campaign.engines.fake import ToyCrystal
from campaign.engines.lammps_potential import load_potential
from campaign.engines.relax import bond_lengths, bound, relax
from campaign.errors import EngineError
from campaign.frames import Frames

POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"


class Morse:
    """ASE's Morse potential with the interface of a model: it has crystals of its own."""

    def __init__(self):
        from ase.calculators.morse import MorsePotential

        self.peer = MorsePotential(epsilon=0.3, r0=2.8, rho0=5.0, rcut1=4.5, rcut2=6.5)

    def evaluate(self, frames):
        from ase.stress import voigt_6_to_full_3x3_stress

        atoms = frames.to_ase()[0]
        atoms.calc = self.peer
        return (
            np.array([atoms.get_potential_energy()]),
            atoms.get_forces()[None],
            voigt_6_to_full_3x3_stress(atoms.get_stress())[None],
        )


def rattled(kind, a, seed=1):
    atoms = bulk("Cu", kind, a=a, cubic=True)
    atoms.rattle(0.05, seed=seed)
    atoms.set_cell(np.array(atoms.cell) @ (np.eye(3) + 0.03 * np.array([[1, 0.5, 0], [0, -1, 0], [0, 0.3, 0.6]])), True)
    return atoms


def test_the_same_as_another_optimiser_and_another_filter_of_ase():
    """ASE's calculator itself, FIRE and the older filter: another route to the same minimum."""
    from ase.filters import UnitCellFilter
    from ase.optimize import FIRE

    start = rattled("fcc", 4.0)
    before = start.positions.copy()
    _, found = relax(start, Morse(), 1e-3, 300)
    assert found["converged"]
    np.testing.assert_array_equal(start.positions, before)
    peer = start.copy()
    peer.calc = Morse().peer
    assert FIRE(UnitCellFilter(peer), logfile=None).run(fmax=1e-3, steps=2000)
    assert found["energy"] == pytest.approx(peer.get_potential_energy() / 4, abs=1e-5)
    assert found["volume"] == pytest.approx(peer.get_volume() / 4, rel=1e-3)
    assert found["bonds"]["Cu-Cu"] == pytest.approx(bond_lengths(peer)["Cu-Cu"], rel=1e-3)


@pytest.mark.lammps
@pytest.mark.parametrize(("kind", "a", "bond"), [("fcc", 4.0, 2.86), ("bcc", 3.2, 2.80), ("hcp", 2.8, 2.82)])
def test_aluminium_of_the_embedded_atom_method(kind, a, bond):
    """Bond lengths near those of the MOMT paper's table, which is of another embedded-atom potential."""
    forces = ClassicalForces(load_potential(POTENTIALS / "al_mm.lmp"))
    options = {"cubic": True} if kind != "hcp" else {"c": a * (8 / 3) ** 0.5}
    _, found = relax(bulk("Al", kind, a=a, **options), forces, 1e-3, 200)
    assert found["converged"]
    assert found["bonds"]["Al-Al"] == pytest.approx(bond, abs=0.03)


@pytest.mark.lammps
def test_lammps_forces_are_those_of_a_calculator():
    forces = ClassicalForces(load_potential(POTENTIALS / "al_mm.lmp"))
    atoms = bulk("Al", a=4.05, cubic=True)
    atoms.rattle(0.1, seed=2)
    energy, f, stress = forces.evaluate(Frames.from_ase([atoms]))
    atoms.calc = calculator(forces)
    assert atoms.get_potential_energy() == pytest.approx(energy[0])
    np.testing.assert_allclose(atoms.get_forces(), f[0])
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress[0], atol=1e-12)


def test_bonds_of_rocksalt_reach_into_the_next_cell():
    found = bond_lengths(bulk("NaCl", "rocksalt", a=5.64))
    assert found == pytest.approx({"Na-Cl": 2.82, "Na-Na": 5.64 / 2**0.5, "Cl-Cl": 5.64 / 2**0.5})


def test_forces_that_are_no_numbers_end_it():
    with pytest.raises(EngineError, match=r"finite|relaxation"):
        relax(bulk("Ar", a=4.8), ToyCrystal(np.nan), 0.01, 20)


def test_what_binds_is_a_crystal_and_what_repels_is_none():
    atoms, found = relax(bulk("Cu", a=4.0), Morse(), 1e-3, 100)
    assert bound(atoms, Morse(), found["energy"])
    atoms, found = relax(bulk("Ar", a=4.8), ToyCrystal(), 1e-3, 100)
    assert not bound(atoms, ToyCrystal(), found["energy"])


def test_a_crystal_that_comes_apart_is_not_converged():
    _, found = relax(bulk("Ar", a=4.8, cubic=True), ToyCrystal(), 1e-4, 2)  # purely repulsive
    assert not found["converged"]
