"""Starting structures: crystals have the neighbours they are known for, packings are a place to start a liquid from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from campaign.config import Campaign
from campaign.config.packings import CLOSEST, densest, fewest
from campaign.engines.packing import REACHED, pack
from campaign.engines.structures import build_structure
from campaign.errors import InputError
from campaign.frames import Frames
from campaign.science.neighbours import closest_ratio, minimum_distance, neighbour_list
from campaign.stages.sample import Sample
from campaign.store.store import Store
from campaign.tasks import Context
from campaign.worker import do_task

POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"
HERE = Path()


def shells(atoms: Atoms, count: int) -> list[tuple[float, int]]:
    """Return distance and number of neighbours of the nearest shells, which must be the same for every atom."""
    frames = Frames.from_ase([atoms])
    pairs = neighbour_list(frames, 1.7 * float(minimum_distance(frames)[0]))
    distances = np.round(pairs.distances(frames.positions), 6)
    found = []
    for d in np.unique(distances)[:count]:
        of_atoms = np.bincount(pairs.idx_i[distances == d], minlength=len(atoms))
        assert (of_atoms == of_atoms[0]).all(), f"atoms differ in shell {d}"
        found.append((float(d), int(of_atoms[0])))
    return found


#: Prototype: elements, atoms in its cell, neighbours in the first two shells with their distances for a = 4.
CRYSTALS = {
    "fcc": (["Ni"], 4, [(4 / 2**0.5, 12), (4.0, 6)]),
    "bcc": (["Fe"], 1, [(4 * 3**0.5 / 2, 8), (4.0, 6)]),
    "sc": (["Po"], 1, [(4.0, 6), (4 * 2**0.5, 12)]),
    "hcp": (["Mg"], 2, [(4.0, 12), (4 * 2**0.5, 6)]),
    "diamond": (["Si"], 8, [(3**0.5, 4), (4 / 2**0.5, 12)]),
    "rocksalt": (["Na", "Cl"], 8, [(2.0, 6), (4 / 2**0.5, 12)]),
    "zincblende": (["Zn", "S"], 8, [(3**0.5, 4), (4 / 2**0.5, 12)]),
    "cesiumchloride": (["Cs", "Cl"], 2, [(4 * 3**0.5 / 2, 8), (4.0, 6)]),
}


@pytest.mark.parametrize("prototype", CRYSTALS)
@pytest.mark.parametrize("supercell", [(1, 1, 1), (3, 2, 4)])
def test_every_atom_of_a_crystal_has_its_neighbours(prototype: str, supercell: tuple[int, int, int]) -> None:
    elements, in_cell, expected = CRYSTALS[prototype]
    spec = {"prototype": prototype, "elements": elements, "a": 4.0, "c": None, "supercell": supercell}
    atoms = build_structure(spec, HERE)
    cells = int(np.prod(supercell))
    per_cell = len(atoms) / cells
    assert per_cell == (2 if prototype == "bcc" and len(atoms) == 2 * cells else in_cell)
    assert {s: atoms.get_chemical_symbols().count(s) for s in elements} == dict.fromkeys(
        elements, len(atoms) // len(elements)
    )
    for (d, n), (d0, n0) in zip(shells(atoms, 2), expected, strict=True):
        assert (pytest.approx(d0, abs=1e-5), n0) == (d, n)
    assert np.linalg.det(atoms.cell) > 0
    assert atoms.pbc.all()
    if len(elements) == 2:  # the nearest neighbours are of the other kind
        frames = Frames.from_ase([atoms])
        near = neighbour_list(frames, expected[0][0] + 0.01)
        assert (atoms.numbers[near.idx_i] != atoms.numbers[near.idx_j]).all()


def test_hcp_takes_its_second_lattice_constant() -> None:
    spec = {"prototype": "hcp", "elements": ["Zn"], "a": 2.66, "c": 4.95, "supercell": [2, 2, 2]}
    atoms = build_structure(spec, HERE)
    np.testing.assert_allclose(atoms.cell.lengths(), [5.32, 5.32, 9.9])
    assert [n for _, n in shells(atoms, 2)] == [6, 6]  # six in the plane, six further away


PACKINGS = [
    ({"Na": 32, "Cl": 32}, 1.5),
    ({"Ar": 64}, 1.3),
    ({"Ni": 64}, 7.8),
    ({"W": 54}, 19.3),
    ({"Si": 24, "O": 48}, 2.2),
    ({"K": 20, "Li": 20, "F": 40}, 2.0),
    ({"Ar": 200}, 0.05),
    ({"Na": 500, "Cl": 500}, 1.5),
]


@pytest.mark.parametrize(
    ("composition", "density"), PACKINGS, ids=lambda v: "".join(v) if isinstance(v, dict) else f"{v}"
)
def test_a_packing_has_its_composition_its_density_and_no_atoms_on_top_of_each_other(
    composition: dict[str, int], density: float
) -> None:
    for seed in range(3):
        atoms = build_structure({"packing": composition, "density": density, "seed": seed}, HERE)
        assert {s: atoms.get_chemical_symbols().count(s) for s in composition} == composition
        grams = atoms.get_masses().sum() * 1.66053906660e-24
        assert grams / (atoms.get_volume() * 1e-24) == pytest.approx(density, rel=1e-6)
        np.testing.assert_allclose(np.array(atoms.cell), np.eye(3) * atoms.cell[0, 0])
        assert float(closest_ratio(Frames.from_ase([atoms]))[0]) > 0.75


def test_ions_of_one_sign_are_kept_apart() -> None:
    atoms = pack({"Na": 32, "Cl": 32}, 1.5, 1)
    d = atoms.get_all_distances(mic=True) + 99 * np.eye(64)
    same = atoms.numbers[:, None] == atoms.numbers[None, :]
    assert d[same].min() > 1.3 * d[~same].min()
    assert (np.array([atoms.numbers[row.argmin()] for row in d]) != atoms.numbers).mean() > 0.9


def test_the_seed_decides_the_packing() -> None:
    a, b, c = (pack({"Ar": 32}, 1.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.positions, b.positions)
    assert np.abs(a.positions - c.positions).max() > 0.1


@pytest.mark.parametrize("composition", [c for c, _ in PACKINGS])
def test_what_the_check_allows_can_be_packed(composition: dict[str, int]) -> None:
    most = densest(composition)
    atoms = pack(composition, most, 1)
    assert float(closest_ratio(Frames.from_ase([atoms]))[0]) >= REACHED * CLOSEST
    with pytest.raises(InputError, match="write a smaller density"):
        pack(composition, 2 * most, 1)


def test_too_few_atoms_for_a_cell_are_counted() -> None:
    assert fewest({"Ni": 2}) > 1
    times = fewest({"Ni": 2})
    assert fewest({"Ni": 2 * times}) == 1
    assert fewest({"Ni": 2 * times - 2}) > 1


LIQUIDS = {
    "NaCl": ({"Na": 32, "Cl": 32}, 1.5, "nacl_bmhtf.lmp", 1400, (30, 55)),
    "Ar": ({"Ar": 64}, 1.3, "ar_lj.lmp", 95, (40, 70)),
    "Ni": ({"Ni": 64}, 7.8, "ni.lmp", 2000, (11, 14.5)),
}


@pytest.mark.lammps
@pytest.mark.parametrize("name", LIQUIDS)
def test_molecular_dynamics_starts_from_a_packing(name: str, tmp_path: Path) -> None:
    composition, density, potential, temperature, (low, high) = LIQUIDS[name]
    shutil.copytree(POTENTIALS, tmp_path / "potentials")
    entry = {"method": "npt", "temperature": temperature, "steps": 600, "every": 50, "segment": 12, "timestep": 0.002}
    system = {
        "structure": {"packing": composition, "density": density},
        "potential": {"lammps": f"potentials/{potential}"},
    }
    campaign = Campaign.model_validate({"campaign": "liquid", "seed": 5, "system": system, "sample": [entry]})
    ((task, _),) = Sample(campaign, {f"potentials/{potential}": "digest"}).chains[0]
    assert task.params["structure"]["seed"] == 5
    record = do_task(task, Context(tmp_path))
    assert record["state"] == "done", record["cause"]
    frames = Store(tmp_path / "run.zarr").frames("sample", task.id)
    assert len(frames) == 12
    assert low < frames.volume[-4:].mean() / frames.n_atoms < high
    assert (closest_ratio(frames) > 0.7).all()
