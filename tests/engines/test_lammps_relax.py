"""Relaxed crystals: the lattice constants that the potentials are known for, wherever the minimiser starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from campaign.engines.lammps import BAR, single_points
from campaign.engines.lammps_potential import load_potential
from campaign.engines.lammps_relax import relax_crystal
from campaign.engines.structures import build_structure
from campaign.errors import EngineError, Unconverged

pytestmark = pytest.mark.lammps

POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"


def relaxed(file: str, prototype: str, elements: list[str], a: float, n: int = 2):  # type: ignore[no-untyped-def]
    structure = {"prototype": prototype, "elements": elements, "a": a, "supercell": [n] * 3}
    atoms = build_structure(structure, POTENTIALS)
    found = relax_crystal(load_potential(POTENTIALS / file), atoms, prototype == "hcp")
    return np.linalg.norm(found.cell[0], axis=1) / n, float(found.energy[0]) / len(atoms), found


@pytest.mark.parametrize(
    ("file", "prototype", "element", "start", "length", "energy"),
    [
        ("ni.lmp", "fcc", "Ni", 3.52, 3.5162, -4.8763),  # energies: the MOMT paper's table
        ("ni.lmp", "bcc", "Ni", 2.8, None, -4.8333),
        ("al_mm.lmp", "fcc", "Al", 4.05, 4.0453, -3.4107),
        ("al_mm.lmp", "fcc", "Al", 4.3, 4.0453, -3.4107),  # from further away
        ("al_mm.lmp", "bcc", "Al", 3.2, None, -3.3088),
        ("nb.lmp", "bcc", "Nb", 3.3, 3.3024, -7.3469),
    ],
)
def test_metals_have_their_lattice_constants(
    file: str, prototype: str, element: str, start: float, length: float | None, energy: float
) -> None:
    lengths, found, frame = relaxed(file, prototype, [element], start)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    assert found == pytest.approx(energy, abs=1e-4)
    assert length is None or lengths[0] == pytest.approx(length, abs=2e-4)
    for factor in (0.9999, 1.0001):  # it is a minimum, by another way to the energy
        other = frame.with_(positions=frame.positions * factor, cell=frame.cell * factor)
        assert single_points(load_potential(POTENTIALS / file), other)[0][0] > frame.energy[0]
    assert np.abs(np.diag(frame.stress[0])).max() * BAR < 1.0
    assert np.abs(frame.forces).max() < 1e-6


def test_the_edges_of_a_hexagonal_crystal_change_each_by_itself() -> None:
    lengths, energy, frame = relaxed("al_mm.lmp", "hcp", ["Al"], 2.86)
    assert lengths[0] == pytest.approx(lengths[1])
    assert lengths[2] / lengths[0] != pytest.approx((8 / 3) ** 0.5, rel=1e-3)
    assert np.abs(np.diag(frame.stress[0])).max() * BAR < 1.0
    assert -3.4107 < energy < -3.3088


def test_two_elements_with_charges() -> None:
    lengths, energy, _ = relaxed("nacl_bmhtf.lmp", "rocksalt", ["Na", "Cl"], 5.64)
    assert lengths[0] == pytest.approx(5.62, abs=0.01)
    assert 2 * energy == pytest.approx(-8.15, rel=0.02)


def test_an_element_that_the_potential_has_not_is_said() -> None:
    with pytest.raises(EngineError, match="The potential is for Al and has no Ni"):
        relaxed("al_mm.lmp", "fcc", ["Ni"], 3.52)


def test_atoms_out_of_each_others_reach_are_no_crystal() -> None:
    """From 10 Å no aluminium atom feels another: no pressure, no energy, and nothing relaxed."""
    with pytest.raises(Unconverged, match=r"came apart: they have .* Start nearer to the lattice constant"):
        relaxed("al_mm.lmp", "fcc", ["Al"], 10.0)


def test_stress_that_edges_changed_alike_do_not_relax_is_refused() -> None:
    """A tetragonal cell keeps its c/a: the mean of the stresses goes, what is along z less along x does not."""
    structure = {"prototype": "fcc", "elements": ["Al"], "a": 4.05, "supercell": [2, 2, 2]}
    atoms = build_structure(structure, POTENTIALS)
    atoms.set_cell(np.diag([1.0, 1.0, 1.05]) @ np.array(atoms.cell), scale_atoms=True)
    with pytest.raises(Unconverged, match="no pressure, but stresses up to"):
        relax_crystal(load_potential(POTENTIALS / "al_mm.lmp"), atoms)
    found = relax_crystal(load_potential(POTENTIALS / "al_mm.lmp"), atoms, uniaxial=True)
    assert np.abs(found.stress).max() * BAR < 100.0
