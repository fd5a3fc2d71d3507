"""One suite over every labeller, through the worker's own function and a real store."""

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines import labellers
from campaign.frames import Frames
from campaign.store.store import Store
from campaign.tasks import Context, Record, Task

ARGON = {"sigma": 3.405, "epsilon": 0.010325, "rc": 6.0, "smooth": True}
MORSE = {"epsilon": 0.42, "r0": 2.78, "rho0": 3.9, "rcut1": 1.9, "rcut2": 2.6}

#: engine: parameters, extra, crystal, and whether its potential knows only some elements.
ENGINES = {
    "lammps-lj": ({"engine": "lammps"}, {"potential": "potentials/ar.lmp"}, "Ar", True),
    "lammps-pppm": ({"engine": "lammps"}, {"potential": "potentials/nacl.lmp"}, "NaCl", True),
    "ase-emt": ({"engine": "ase", "calculator": "emt"}, {}, "Cu", True),
    "ase-lj": ({"engine": "ase", "calculator": "lj", "parameters": ARGON}, {}, "Ar", False),
    "ase-morse": ({"engine": "ase", "calculator": "morse", "parameters": MORSE}, {}, "Ni", False),
    "fake": ({"engine": "fake"}, {}, "Ar", False),
}
#: Largest differences in force (eV/Å) and stress (eV/Å^3) from central differences.
TOLERANCE = {"lammps-pppm": (2e-4, 2e-6)}

CRYSTALS = {
    "Ar": ("fcc", 5.3, (2, 1, 1)),
    "NaCl": ("rocksalt", 5.64, (1, 1, 1)),
    "Cu": ("fcc", 3.6, (2, 1, 1)),
    "Ni": ("fcc", 3.5, (2, 1, 1)),
}


def crystal(name):
    """Return a shaken triclinic crystal, species mixed in order, arbitrarily turned, atoms far outside of the cell."""
    kind, a, size = CRYSTALS[name]
    rng = np.random.default_rng(3)
    atoms = bulk(name, kind, a=a, cubic=True) * size
    atoms = atoms[rng.permutation(len(atoms))]
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.06, size=(3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.12, size=atoms.positions.shape)
    atoms.rotate(37, (1, 2, -0.5), rotate_cell=True)
    atoms.positions += rng.integers(-2, 3, size=(len(atoms), 3)) @ atoms.cell
    return atoms


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.lammps if "lammps" in n else ()) for n in ENGINES])
def engine(request):
    return request.param


def task_for(engine, source="0" * 16, index=0):
    params, extra, _, _ = ENGINES[engine]
    return Task("label", engine, {**params, "frame": index}, (source,), extra={**extra, "id": f"{source}:{index}"})


def direct(engine, folder, frames):
    return labellers.label(frames, task_for(engine), Context(folder))


def test_a_label_is_complete_repeatable_and_keeps_the_frame(engine, run_folder, publish, do):
    images = [crystal(ENGINES[engine][2]) for _ in range(3)]
    images[1].positions += 0.1 * np.random.default_rng(0).normal(size=images[1].positions.shape)
    frames = Frames.from_ase(images, walker=2, step=np.array([10, 20, 30]), temperature=85.0)
    found = []
    for name in ("first", "second"):
        folder = run_folder(name)
        source = publish(folder, frames)
        task = task_for(engine, source, 1)
        record = do(folder, task)
        assert record["state"] == "done", record["cause"]
        assert set(record) == set(Record.__annotations__) - {"disk_full", "final", "blame"}
        assert record["task"] == task.id
        assert record["cause"] == ""
        assert not record["transient"]
        assert record["seconds"] > 0
        assert record["versions"].keys() >= {"python", *([] if engine == "fake" else [engine.split("-")[0]])}
        again = do(folder, task)
        assert again["result"] == record["result"]
        assert record["result"]["frame"] == f"{source}:1"
        found.append(Store(folder / "run.zarr").frames("label", task.id))
    for name, array in found[0].arrays():
        np.testing.assert_array_equal(array, getattr(found[1], name))
        if name not in ("energy", "forces", "stress", "task"):
            np.testing.assert_array_equal(array, getattr(frames, name)[1:2])
    assert found[0].ids == [f"{source}:1"]
    assert record["result"]["energy"] == found[0].energy[0]
    block = direct(engine, folder, frames)
    np.testing.assert_array_equal(found[0].forces, block.forces[1:2])
    assert np.abs(block.forces[1] - block.forces[0]).max() > 1e-3


def test_forces_and_stress_are_the_derivatives_of_the_energy(engine, run_folder):
    atoms = crystal(ENGINES[engine][2])
    h, images = 1e-4, [atoms]
    moved = [(0, 0), (1, 1), (len(atoms) - 1, 2)]
    for i, axis in moved:
        for sign in (1, -1):
            image = atoms.copy()
            image.positions[i, axis] += sign * h
            images.append(image)
    strains = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for i, j in strains:
        for sign in (1, -1):
            image = atoms.copy()
            strain = np.eye(3)
            strain[i, j] += sign * h / 2
            strain[j, i] += sign * h / 2
            image.set_cell(atoms.cell @ strain)
            image.positions = atoms.positions @ strain
            images.append(image)
    labelled = direct(engine, run_folder(), Frames.from_ase(images))
    slopes = (labelled.energy[1::2] - labelled.energy[2::2]) / (2 * h)
    force, stress = TOLERANCE.get(engine, (1e-6, 1e-7))
    base = labelled[:1]
    for (i, axis), slope in zip(moved, slopes[: len(moved)], strict=True):
        assert base.forces[0, i, axis] == pytest.approx(-slope, abs=force)
    for (i, j), slope in zip(strains, slopes[len(moved) :], strict=True):
        assert base.stress[0, i, j] == pytest.approx(slope / base.volume[0], abs=stress)
    assert np.abs(base.forces).max() > 100 * force
    assert np.abs(base.stress).max() > 100 * stress


def test_neither_orientation_nor_the_periodic_image_changes_a_label(engine, run_folder):
    atoms = crystal(ENGINES[engine][2])
    turned = atoms.copy()
    turned.rotate(-81, (0.3, 1, 1), rotate_cell=True)
    wrapped = atoms.copy()
    wrapped.wrap()
    folder = run_folder()
    base, other, home = (direct(engine, folder, Frames.from_ase([a])) for a in (atoms, turned, wrapped))
    rotation = np.linalg.solve(np.array(atoms.cell), np.array(turned.cell))
    loose = TOLERANCE.get(engine, (1e-8, 1e-10))
    np.testing.assert_allclose(other.energy, base.energy, atol=loose[0])
    np.testing.assert_allclose(other.forces[0], base.forces[0] @ rotation, atol=loose[0])
    np.testing.assert_allclose(other.stress[0], rotation.T @ base.stress[0] @ rotation, atol=loose[1])
    np.testing.assert_allclose(home.energy, base.energy, atol=loose[0])
    np.testing.assert_allclose(home.forces, base.forces, atol=loose[0])
    np.testing.assert_allclose(home.stress, base.stress, atol=loose[1])


def test_the_order_of_the_atoms_is_kept(engine, run_folder):
    atoms = crystal(ENGINES[engine][2])
    order = np.random.default_rng(1).permutation(len(atoms))
    folder = run_folder()
    base, mixed = (direct(engine, folder, Frames.from_ase([a])) for a in (atoms, atoms[order]))
    loose = TOLERANCE.get(engine, (1e-8, 1e-10))[0]
    np.testing.assert_allclose(mixed.forces[0], base.forces[0][order], atol=loose)


def test_a_left_handed_cell_is_refused_with_a_clear_cause_or_labelled_right(engine, run_folder, publish, do):
    atoms = crystal(ENGINES[engine][2])
    left = atoms.copy()
    left.set_cell(np.array(atoms.cell)[[1, 0, 2]])  # the same lattice
    folder = run_folder()
    task = task_for(engine, publish(folder, Frames.from_ase([left])))
    record = do(folder, task)
    if record["state"] == "done":
        found = Store(folder / "run.zarr").frames("label", task.id)
        right = direct(engine, folder, Frames.from_ase([atoms]))
        np.testing.assert_allclose(found.forces, right.forces, atol=1e-8)
        np.testing.assert_allclose(found.stress, right.stress, atol=1e-10)
    else:
        assert "left-handed" in record["cause"]
        assert engine.startswith("lammps")
        assert not record["transient"]


def test_an_element_the_potential_does_not_know_is_a_failed_record_with_its_name(engine, run_folder, publish, do):
    atoms = crystal(ENGINES[engine][2])
    atoms.numbers[2] = 92
    folder = run_folder()
    record = do(folder, task_for(engine, publish(folder, Frames.from_ase([atoms]))))
    if not ENGINES[engine][3]:
        assert record["state"] == "done"
        return
    assert record["state"] == "failed"
    assert not record["transient"]
    assert " U" in record["cause"]
    assert record["result"] == {}


def test_atoms_on_top_of_each_other_never_become_a_label_that_is_not_finite(engine, run_folder, publish, do):
    atoms = crystal(ENGINES[engine][2])
    atoms.positions[1] = atoms.positions[0]
    folder = run_folder()
    task = task_for(engine, publish(folder, Frames.from_ase([atoms])))
    with np.errstate(all="ignore"):
        record = do(folder, task)
    if engine == "fake":  # its energy is finite everywhere
        assert record["state"] == "done"
        return
    assert record["state"] == "failed"
    assert not record["transient"]
    assert record["cause"].endswith(".")
    assert not (folder / "run.zarr/labelled" / task.id).exists()


@pytest.mark.lammps
def test_the_accuracy_of_the_salt_template_is_that_of_its_ewald_sum(run_folder):
    folder = run_folder()
    path = folder / "potentials/nacl.lmp"
    rough = path.read_text().replace("pppm 1.0e-7", "pppm 1.0e-5").replace(" table 0", "")
    exact = path.read_text().replace("pppm 1.0e-7", "ewald 1.0e-9")
    frames = Frames.from_ase([crystal("NaCl") * (2, 2, 2)])
    found = []
    for text in (rough, exact):
        path.write_text(text)
        found.append(direct("lammps-pppm", folder, frames))
    np.testing.assert_allclose(found[0].energy, found[1].energy, atol=1e-3 * 64)
    assert np.sqrt(np.mean((found[0].forces - found[1].forces) ** 2)) < 2e-4
    np.testing.assert_allclose(found[0].stress, found[1].stress, atol=5e-6)
