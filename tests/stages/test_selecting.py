"""Every selector through the whole pipeline, on a file of frames that no two of which are alike in kind."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console

from campaign.config import load_campaign, load_site
from campaign.frames import Frames
from campaign.pipeline import Options, export_of, run, survey
from campaign.report.live import status_table
from campaign.science.refusals import Limits, refusals
from campaign.science.selectors import SELECTORS
from campaign.store.store import Store

FILE = """
campaign: mixed
seed: 3
system:
  structure: {{prototype: fcc, elements: [Ne], a: 4.5}}
sample: [{{method: file, file: frames.extxyz, segment: 6}}{more}]
select: {{method: {method}, size: {size}{keys}}}
"""

SMALL = {
    "rnd_stream": "representation: {features: 8, interactions: 1, cutoff: 5.0}",
    "rnd": "representation: {features: 8, interactions: 1, cutoff: 5.0, pooling: mean}",
    "fps": "representation: {features: 8, interactions: 1, cutoff: 5.0}",
    "rematch": "environments: {cutoff: 4.0, n_max: 2, l_max: 2}",
    "grid": "bins: [4, 4]",
}
PACKAGES = {"fps": "skmatter", "rematch": "dscribe"}


def shaken(atoms, rng, per_atom=True):
    """Shake atoms and give them results; energies of single atoms too, where they are wanted."""
    atoms = atoms.copy()
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    each = -3.0 + 0.1 * rng.normal(size=len(atoms))
    results = {"energy": float(each.sum()), "forces": rng.normal(size=(len(atoms), 3))}
    if per_atom:
        results["energies"] = each
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def images():
    """Return frames of NaCl, of argon and of both, with other numbers of atoms, and a few that must be refused."""
    rng = np.random.default_rng(0)
    salt, argon = bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("Ar", "fcc", a=5.3, cubic=True)
    mixed = salt.copy()
    mixed.symbols[:] = ["Na", "Cl", "Ar", "Ar", "Na", "Cl", "Na", "Cl"]
    found = [shaken(a, rng) for a in [salt] * 8 + [argon] * 7 + [mixed] * 6 + [argon] * 3]
    found[3].positions[1] = found[3].positions[0] + [0.4, 0, 0]
    found[9].cell[:] = np.diag([5.3, 5.3, 60.0])
    found[17].calc.results["forces"][2] = [40.0, 0, 0]
    return found


@pytest.fixture
def campaign(tmp_path):
    """Return a function that runs a campaign up to the selection; it gives the run's folder."""
    write(tmp_path / "frames.extxyz", images())

    def go(method, size=9, keys="", more="", name="run"):
        keys = "".join(f", {k}" for k in (SMALL.get(method, ""), keys) if k)
        file = tmp_path / f"{method}.yaml"
        file.write_text(FILE.format(method=method, size=size, keys=keys, more=more))
        folder = tmp_path / name
        status = run(load_campaign(file), load_site("local"), folder, Options(inline=True))
        return folder, status

    return go


def selection(folder):
    flow, _ = survey(folder)
    return next(iter(flow.board.sets.values()))


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.requires(PACKAGES[m]) if m in PACKAGES else ()) for m in SELECTORS]
)
def test_mixed_frames_are_selected_and_bad_ones_refused(campaign, tmp_path, method):
    folder, status = campaign(method, keys="max_force: 20, volume: [10, 100]")
    assert status["state"] == "done", status["failures"]
    assert status["notes"] == []
    found = selection(folder)
    assert len(set(found.chosen)) == 9
    refused = {r["reason"] for r in found.refused}
    if method != "random":  # a draw looks at the frames it draws
        assert len(found.refused) == 3
        assert any("of the sum of their covalent radii" in r for r in refused)
        assert any(r.startswith("a force of 40 eV/Å, over 20") for r in refused)
        assert any("Å^3/atom, not within 10 and 100" in r for r in refused)
        assert export_of(folder, "rejected", tmp_path / "rejected.extxyz") == 3
        assert all("reason" in a.info for a in read(tmp_path / "rejected.extxyz", ":"))
    assert not {r["frame"] for r in found.refused} & set(found.chosen)
    again, _ = campaign(method, keys="max_force: 20, volume: [10, 100]", name="again")
    assert selection(again).chosen == found.chosen
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("method", ["rnd_stream", "rnd", "uniform_time", "global_energy", "atomic_energy"])
def test_whole_shards_may_be_refused(campaign, method):
    """The salt comes first, and all of it is too dense."""
    folder, status = campaign(method, size=5, keys="volume: [30, 100]")
    assert status["state"] == "done", status["failures"]
    found = selection(folder)
    assert len(set(found.chosen)) == 5
    assert len(found.refused) == 8 + 6 + 1


@pytest.mark.parametrize("method", ["random", "rnd_stream", "rnd", "uniform_time"])
def test_more_frames_than_there_are(campaign, method):
    folder, status = campaign(method, size=50)
    assert status["state"] == "done"
    assert status["notes"] == [f"{method}: only 23 frames could be chosen, not 50: all are taken"]
    assert len(set(selection(folder).chosen)) == 23
    assert status["notes"][0] in (folder / "report.html").read_text()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(status_table(status))
    assert f"note: {status['notes'][0]}" in console.export_text()


def test_what_was_made_of_every_frame_is_kept(campaign):
    folder, _ = campaign("rnd_stream")
    flow, _ = survey(folder)
    store = Store(folder / "run.zarr")
    store.scan()
    stage = next(s for s in flow.stages if s.name == "select")
    parts = [store.arrays("select", t) for t in stage.stream]
    seen = [p for p in parts if "novelty" in p]
    assert sum(len(p["novelty"]) for p in seen) == 24
    assert all(p["novelty"].dtype == np.float32 and p["decision"].dtype == np.int8 for p in seen)
    assert sum(int((p["decision"] == -1).sum()) for p in seen) == 1


def test_a_method_whose_values_the_pool_has_not_fails_and_says_why(campaign, tmp_path):
    rng = np.random.default_rng(1)
    argon = bulk("Ar", "fcc", a=5.3, cubic=True)
    write(tmp_path / "frames.extxyz", [shaken(argon, rng, per_atom=False) for _ in range(8)])
    folder, status = campaign("atomic_energy", size=3)
    assert status["state"] == "partial"
    cause = status["failures"][0]["cause"]
    assert cause.startswith(
        "select.method: atomic_energy chooses by the energies of single atoms of the sampled frames"
    )
    assert cause.endswith("Sample with a potential that gives them, or choose another method.")
    assert selection(folder).chosen == []


def test_a_grid_over_frames_without_energies_fails_and_says_why(campaign, tmp_path):
    write(tmp_path / "frames.extxyz", [bulk("Ar", "fcc", a=5.3 + 0.01 * k, cubic=True) for k in range(8)])
    _, status = campaign("grid", size=3)
    assert status["state"] == "partial"
    assert status["failures"][0]["cause"].startswith("select.method: grid chooses by the energies of the sampled")


@pytest.mark.parametrize("method", ["force", "global_energy", "atomic_energy", "grid"])
def test_a_shard_without_labels_does_not_end_the_selection_from_a_file(campaign, tmp_path, method):
    """A frame of another number of atoms is a shard of its own."""
    rng = np.random.default_rng(1)
    argon = bulk("Ar", "fcc", a=5.3, cubic=True)
    for place in (0, 4, 8):
        some = [shaken(argon, rng) for _ in range(8)]
        some.insert(place, argon * (1, 1, 2))
        write(tmp_path / "frames.extxyz", some)
        folder, status = campaign(method, size=4, name=f"run{place}")
        assert status["state"] == "done", status["failures"]
        found = selection(folder)
        assert len(set(found.chosen)) == 4
        assert len(found.refused) == 1
        assert "not known" in found.refused[0]["reason"]


@pytest.mark.parametrize("method", ["uniform_time", "random"])
def test_where_every_frame_is_refused_it_is_said(campaign, method):
    folder, status = campaign(method, size=4, keys="min_distance: 100")
    assert status["notes"] == [f"{method}: no frame could be chosen; 'campaign export RUN rejected FILE' says why"]
    assert len(selection(folder).refused) == 24


def test_an_element_in_the_middle_of_a_file_is_refused_by_name(campaign, tmp_path):
    rng = np.random.default_rng(1)
    argon = bulk("Ar", "fcc", a=5.3, cubic=True)
    some = [shaken(argon, rng) for _ in range(14)]
    some[8].symbols[2] = "Kr"
    write(tmp_path / "frames.extxyz", some)
    folder, status = campaign("rnd_stream", size=4)
    assert status["state"] == "done", status["failures"]
    (refused,) = selection(folder).refused
    assert refused["reason"].startswith("it has Kr, which neither")
    some[8].symbols[2], some[13].symbols[2] = "Ar", "Kr"  # the last frame, not the first of its shard
    write(tmp_path / "frames.extxyz", some)
    folder, status = campaign("rnd_stream", size=4, name="last")
    assert status["state"] == "done", status["failures"]
    assert selection(folder).refused == []


def test_frames_without_neighbours_and_huge_cells_are_no_trouble(campaign, tmp_path):
    lone = Atoms("Ar", cell=[30.0] * 3, pbc=True)
    pair = Atoms("Ar2", positions=[[0, 0, 0], [500, 0, 0]], cell=[1000.0] * 3, pbc=True)
    images = [lone] * 3 + [pair] * 3 + [bulk("Ar", "fcc", a=5.3, cubic=True)] * 3
    write(tmp_path / "frames.extxyz", images)
    folder, status = campaign("rnd_stream", size=7)
    assert status["state"] == "done", status["failures"]
    assert len(set(selection(folder).chosen)) == 7


def test_refusals():
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    frames = Frames.build(
        atoms.numbers, np.repeat(atoms.positions[None], 7, axis=0), np.array(atoms.cell), energy=-4.0, forces=0.1
    )
    positions, cell, energy, forces = (getattr(frames, n).copy() for n in ("positions", "cell", "energy", "forces"))
    positions[1, 2, 0] = np.nan
    cell[2, 2] = cell[2, 1]
    energy[3] = np.inf
    energy[4] = np.nan
    forces[5, 0, 0] = np.nan
    cell[6, 2] = [0, 0, 1e-9]
    frames = frames.with_(positions=positions, cell=cell, energy=energy, forces=forces)
    found = refusals(frames, Limits())
    assert found == {
        1: "positions or cell are not finite",
        2: "the cell has no volume",
        3: "energy or forces are not finite",
        6: "the cell is so flat that an atom has too many images of itself beside it",
    }
    bounded = refusals(frames, Limits(0.0, 5.0, (-1.5, -0.9), (30, 40)))
    assert {k: bounded[k] for k in (4, 5)} == {
        4: "its energy is not known, and there are limits to it",
        5: "its forces are not known, and there is a limit to them",
    }
    assert 0 not in bounded
    low = refusals(frames[:1], Limits(0.0, None, (-0.9, 0.0), (1, 2)))
    assert low == {0: "an energy of -1 eV/atom, not within -0.9 and 0"}
    assert refusals(frames[:0], Limits()) == {}
