"""Transfer from another campaign: nickel to aluminium with real potentials; every frame known, nothing done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from campaign.config import load_campaign, load_site
from campaign.engines.lammps import single_points
from campaign.engines.lammps_potential import load_potential
from campaign.errors import InputError
from campaign.frames import Frames
from campaign.pipeline import Options, export_of, report_of, run, status_of, survey
from campaign.plan import make_plan, plan_text
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

TEMPLATES = Path(__file__).parents[2] / "templates"

SOURCE = """
campaign: ni
seed: 3
system:
  structure: {prototype: fcc, elements: [Ni], a: 3.52, supercell: [2, 2, 2]}
  potential: {lammps: potentials/ni.lmp}
sample:
  - {method: file, file: old.extxyz, segment: 10}
select: {method: uniform_time, size: 14}
"""

TARGET = """
campaign: ni-to-al
seed: 1
system:
  structure: {prototype: fcc, elements: [Al], a: 4.05, supercell: [2, 2, 2]}
  potential: {lammps: potentials/al_mm.lmp}
transfer:
  from: ni
  species: {Ni: Al}
  segment: 4
label: {engine: lammps}
"""

TRAINED = """
sample: [{method: file, file: al.extxyz}]
train: {model: schnet, features: 8, interactions: 1, cutoff: 4.0, epochs: 1, batch: 4}
validate: [{method: errors, held_out: 6, against: [random]}]
"""

pytestmark = pytest.mark.lammps


def shaken(element: str, a: float, seed: int, count: int = 30) -> list[Atoms]:
    """Return shaken crystals of 32 atoms, and of 48 in the middle."""
    rng = np.random.default_rng(seed)
    found = [bulk(element, "fcc", a=a, cubic=True) * ((3, 2, 2) if 8 <= k < 16 else (2, 2, 2)) for k in range(count)]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.12, size=atoms.positions.shape)
    return found


def go(file: Path, **options: object) -> dict[str, object]:
    loaded = load_campaign(file)
    path = file.parent / "runs" / loaded.spec.name
    return run(loaded, load_site("local"), path, Options(inline=True, **options))  # type: ignore[arg-type]


def chosen(path: Path, name: str = "transfer") -> list[str]:
    return survey(path)[0].board.sets[name].chosen


@pytest.fixture(scope="module")
def nickel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the finished source campaign."""
    folder = tmp_path_factory.mktemp("nickel")
    shutil.copytree(TEMPLATES / "potentials", folder / "potentials")
    write(folder / "old.extxyz", shaken("Ni", 3.52, 7))
    (folder / "ni.yaml").write_text(SOURCE)
    assert go(folder / "ni.yaml")["state"] == "done"
    return folder


@pytest.fixture
def folder(nickel: Path, tmp_path: Path) -> Path:
    """Return a copy of it, with a file of aluminium and the campaign that transfers."""
    shutil.copytree(nickel, tmp_path / "here")
    write(tmp_path / "here/al.extxyz", shaken("Al", 4.05, 8))
    (tmp_path / "here/al.yaml").write_text(TARGET)
    return tmp_path / "here"


def change(folder: Path, *changes: tuple[str, str], name: str = "al") -> Path:
    text = (folder / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


def test_every_frame_is_the_source_frame_scaled_by_the_relaxed_lattices_and_labelled_anew(folder: Path) -> None:
    status = go(folder / "al.yaml")
    run_ = folder / "runs/ni-to-al"
    assert status["state"] == "done"
    assert (status["frames"], status["selected"], status["labelled"]) == (0, 14, 14)
    assert list(status["stages"]) == ["sample", "select", "transfer", "label", "train", "validate"]  # type: ignore[call-overload]
    told = json.loads((run_ / "labels.json").read_text())
    factor = told["transfer"]["factors"][0]
    assert told["transfer"]["factors"] == [factor] * 3
    assert factor == pytest.approx(4.0453 / 3.5162, abs=2e-4)
    assert told["transfer"]["crystals"]["target"]["energy"] == pytest.approx(-3.4107, abs=1e-4)
    # every frame, back to its source
    source, own = Store(folder / "runs/ni/run.zarr"), Store(run_ / "run.zarr")
    frames = chosen(run_)
    assert set(told["sources"]) == set(frames)
    assert [told["sources"][f]["frame"] for f in frames] == chosen(folder / "runs/ni", "uniform_time")
    sizes = set()
    for name in frames:
        origin = told["sources"][name]
        assert (origin["run"], Path(origin["store"])) == ("ni", (folder / "runs/ni/run.zarr").resolve())
        (old,), (new,) = source.collect("sample", [origin["frame"]]), own.collect("sample", [name])
        np.testing.assert_array_equal(new.positions, old.positions * factor)
        np.testing.assert_allclose(new.volume, old.volume * factor**3, rtol=1e-13)
        assert (new.numbers == 13).all()
        assert (new.step, new.walker) == (old.step, old.walker)
        assert np.isnan([new.temperature, new.pressure, new.order]).all()  # they say nothing of the target
        sizes.add(new.n_atoms)
    assert sizes == {32, 48}
    # the labels are those of the target's potential on these frames
    labels = survey(run_)[0].board.labels
    for block in own.collect("label", frames, {f: str(labels[f]) for f in frames}):
        energy, forces, stress = single_points(load_potential(TEMPLATES / "potentials/al_mm.lmp"), block)
        np.testing.assert_array_equal(block.energy, energy)
        np.testing.assert_array_equal(block.forces, forces)
        np.testing.assert_array_equal(block.stress, stress)
        assert ((block.energy / block.n_atoms > -3.5) & (block.energy / block.n_atoms < -2.5)).all()
    # the same command again does nothing, and people see what was done
    before = read_ledger(run_ / "ledger.jsonl")
    assert go(folder / "al.yaml")["state"] == "done"
    assert read_ledger(run_ / "ledger.jsonl") == before
    page = report_of(run_).read_text()
    assert all(f"{n} frames of {size} atoms" in page for size, n in told["transfer"]["atoms"].items())
    assert "the training set of ni became 14 frames of this campaign: Ni is now Al" in page
    assert all(told["sources"][f]["frame"] in page for f in frames)
    for kind in ("labelled", "selected"):
        assert export_of(run_, kind, folder / f"{kind}.extxyz") == 14
        found = {a.info["frame"]: a.info["source"] for a in read(folder / f"{kind}.extxyz", ":")}
        assert found == {f: f"ni/run.zarr#{told['sources'][f]['frame']}" for f in frames}
    export_of(run_, "labelled", folder / "out.db")
    export_of(run_, "labelled", folder / "out.zarr")
    attributes = json.loads((folder / "out.zarr/zarr.json").read_text())["attributes"]
    assert attributes["sources"] == found
    assert status_of(run_)["state"] == "done"


def test_models_are_tested_on_a_pool_of_the_target_that_they_never_saw(folder: Path) -> None:
    change(folder, ("label:", TRAINED + "label:"))
    plan = make_plan(folder / "al.yaml", "local")
    tasks = {s["stage"]: s["tasks"] for s in plan["stages"]}
    status = go(folder / "al.yaml")
    assert status["state"] == "done"
    assert tasks == {k: v["total"] for k, v in status["stages"].items() if v["state"] == "done"}  # type: ignore[attr-defined]
    assert "14 frames from ni, Ni -> Al, lengths x about 1.151" in plan_text(plan)
    assert plan["warnings"] == []
    sets = {k: s.chosen for k, s in survey(folder / "runs/ni-to-al")[0].board.sets.items()}
    assert {k: len(v) for k, v in sets.items()} == {"transfer": 14, "random": 14, "held_out": 6}
    assert not set(sets["held_out"]) & (set(sets["random"]) | set(sets["transfer"]))
    pool = {s.task.id for s in survey(folder / "runs/ni-to-al")[0].board.shards}
    assert {f.split(":")[0] for f in sets["held_out"] + sets["random"]} <= pool
    assert not {f.split(":")[0] for f in sets["transfer"]} & pool
    errors = json.loads((folder / "runs/ni-to-al/validation/errors.json").read_text())
    assert list(errors["sets"]) == ["transfer", "random"]
    assert errors["held_out"] == 6


def test_strained_copies_given_factors_and_refusals(folder: Path) -> None:
    change(
        folder, ("  segment: 4", "  scale: [1.1, 1.15, 1.2]\n  strain: {size: 0.05, copies: 2}\n  min_distance: 1.0")
    )
    status = go(folder / "al.yaml")
    run_ = folder / "runs/ni-to-al"
    told = json.loads((run_ / "labels.json").read_text())
    assert told["transfer"]["factors"] == [1.1, 1.15, 1.2]
    assert told["transfer"]["crystals"] == {}
    copies = [s["copy"] for s in told["sources"].values()]
    assert sorted(copies) == [0] * 14 + [1] * 14 + [2] * 14
    assert all(np.any(s["strain"]) == (s["copy"] > 0) for s in told["sources"].values())
    refused = told["transfer"]["refused"]
    assert 0 < refused < 42
    assert status["selected"] == status["labelled"] == told["transfer"]["transferred"] == 42 - refused
    assert any(f"transfer: {refused} of 42 frames were refused" in note for note in status["notes"])  # type: ignore[attr-defined]
    assert export_of(run_, "rejected", folder / "no.extxyz") == refused
    assert all("covalent radii" in a.info["reason"] for a in read(folder / "no.extxyz", ":"))
    page = report_of(run_).read_text()
    assert "Lengths along x, y and z were multiplied by 1.1, 1.15, 1.2, as the campaign file says." in page
    assert "2 copies with random strains of at most 0.05" in page


def test_a_factor_far_from_one_is_warned_of_with_the_number(folder: Path) -> None:
    change(folder, ("  segment: 4", "  scale: 1.5"))
    (warning,) = make_plan(folder / "al.yaml", "local")["warnings"]
    assert "lengths are scaled by 1.5, far from 1" in warning
    assert any("scaled by 1.5, far from 1" in note for note in go(folder / "al.yaml")["notes"])  # type: ignore[attr-defined]
    change(folder, ("  scale: 1.5", "  scale: lattice"), ("[Al], a: 4.05", "[Al], a: 5.0"))
    (warning,) = make_plan(folder / "al.yaml", "local")["warnings"]
    assert "scaled by 1.42" in warning  # 5 Å / 3.52 Å: what is written, as nothing is run


# -- killed, and the source gone ---------------------------------------------------------------------------------------


def test_after_a_kill_the_same_frames_have_the_same_ids(folder: Path, tmp_path: Path) -> None:
    change(folder, ("segment: 4", "segment: 1"))
    shutil.copytree(folder, tmp_path / "whole")
    go(tmp_path / "whole/al.yaml")
    run_, pool = folder / "runs/ni-to-al", folder / "runs/ni-to-al/run.zarr/pool"
    code = "import sys; from campaign.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for least in (3, 9):
        killed = subprocess.Popen(
            [sys.executable, "-c", code, "run", "al.yaml", "--inline"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.time() + 120
        while len(list(pool.glob("*/zarr.json"))) < least and killed.poll() is None and time.time() < end:
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert least <= len(list(pool.glob("*/zarr.json"))) < 16, "the kill came too early or too late to show anything"
    assert go(folder / "al.yaml")["state"] == "done"
    whole = tmp_path / "whole/runs/ni-to-al"
    assert chosen(run_) == chosen(whole)
    assert survey(run_)[0].board.labels == survey(whole)[0].board.labels
    sources = [json.loads((r / "labels.json").read_text())["sources"] for r in (run_, whole)]
    assert [s["frame"] for s in sources[0].values()] == [s["frame"] for s in sources[1].values()]
    done = [r["task"] for r in read_ledger(run_ / "ledger.jsonl") if r["state"] == "done"]
    assert len(done) == len(set(done))


def test_once_its_frames_are_read_the_run_needs_its_source_no_more(folder: Path) -> None:
    go(folder / "al.yaml", until="transfer")
    run_ = folder / "runs/ni-to-al"
    assert status_of(run_)["state"] == "stopped"
    shutil.rmtree(folder / "runs/ni")
    for name in ("al.yaml", "potentials", "old.extxyz"):
        (shutil.rmtree if (folder / name).is_dir() else os.remove)(folder / name)
    for path in run_.iterdir():  # the store alone is enough
        if path.name != "run.zarr":
            (shutil.rmtree if path.is_dir() else os.remove)(path)
    from campaign.store.rundir import open_existing

    open_existing(run_ / "run.zarr")
    status = run(load_campaign(run_ / "campaign.yaml"), load_site("local"), run_, Options(inline=True))
    assert (status["state"], status["labelled"]) == ("done", 14)


def test_a_source_that_vanished_before_it_was_read_stops_the_run_before_it_starts(folder: Path) -> None:
    go(folder / "al.yaml", until="transfer")
    run_ = folder / "runs/ni-to-al"
    change(folder, ("segment: 4", "segment: 5"))
    go(folder / "al.yaml", until="transfer")
    change(folder, ("segment: 5", "segment: 5\n  min_distance: 0.4"))
    note, spec = (run_ / "transfer.json").read_bytes(), (run_ / "campaign.yaml").read_text()
    (run_ / "campaign.yaml").write_text(spec.replace("min_distance: 0.5", "min_distance: 0.4"))
    (folder / "runs/ni").rename(folder / "runs/away")
    ledger = read_ledger(run_ / "ledger.jsonl")
    with pytest.raises(
        InputError, match=r"transfer.from: .*run.zarr is not there any more.* 4 of its 4 parts are still"
    ):
        run(load_campaign(run_ / "campaign.yaml"), load_site("local"), run_, Options(inline=True))
    with pytest.raises(InputError, match=r"al.yaml:8: transfer.from: there is no such run directory, got 'ni'"):
        go(folder / "al.yaml")
    assert read_ledger(run_ / "ledger.jsonl") == ledger
    assert (run_ / "transfer.json").read_bytes() == note
    (folder / "runs/away").rename(folder / "runs/ni")
    assert go(folder / "al.yaml")["state"] == "done"


def test_a_source_that_selected_others_brings_new_frames_and_keeps_the_old(folder: Path) -> None:
    go(folder / "al.yaml")
    before = chosen(folder / "runs/ni-to-al")
    change(folder, ("size: 14", "size: 20"), name="ni")
    go(folder / "ni.yaml", until="sample")
    with pytest.raises(InputError, match=r"al.yaml:10: transfer.set: the training set of campaign ni is not complete"):
        go(change(folder, ("  segment", "  set: training\n  segment")))
    assert chosen(folder / "runs/ni-to-al") == before
    go(folder / "ni.yaml")
    assert go(folder / "al.yaml")["selected"] == 20


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_file_that_campaign_wrote_says_where_its_frames_come_from(folder: Path) -> None:
    export_of(folder / "runs/ni", "selected", folder / "ni.extxyz")
    change(folder, ("from: ni\n", "from: ni.extxyz\n  scale: 1.15\n"))
    assert go(folder / "al.yaml")["state"] == "done"
    run_ = folder / "runs/ni-to-al"
    told = json.loads((run_ / "labels.json").read_text())
    assert sorted(s["frame"] for s in told["sources"].values()) == sorted(chosen(folder / "runs/ni", "uniform_time"))
    (block, other) = Store(run_ / "run.zarr").collect("sample", chosen(run_))
    images = read(folder / "ni.extxyz", ":")
    for found in (block, other):
        right = Frames.from_ase([a for a in images if len(a) == found.n_atoms])
        np.testing.assert_array_equal(found.positions, right.positions * 1.15)
    (folder / "ni.extxyz").write_text((folder / "ni.extxyz").read_text() + "\n")
    assert go(folder / "al.yaml")["state"] == "done"  # the same frames in another file


def test_a_file_of_unknown_provenance_is_refused_or_named(folder: Path) -> None:
    change(folder, ("from: ni\n", "from: old.extxyz\n  scale: 1.15\n"))
    with pytest.raises(InputError, match=r"al.yaml:8: transfer.from: frame 0 does not say where it comes from"):
        go(folder / "al.yaml")
    assert not (folder / "runs/ni-to-al").exists()
    change(folder, ("  scale: 1.15\n", "  scale: 1.15\n  origin: shaken crystals\n"))
    assert go(folder / "al.yaml")["selected"] == 30
    told = json.loads((folder / "runs/ni-to-al/labels.json").read_text())
    assert [s["number"] for s in told["sources"].values()] == list(range(30))
    assert {s["about"] for s in told["sources"].values()} == {"shaken crystals"}


def test_what_was_transferred_can_be_transferred_on(folder: Path) -> None:
    go(folder / "al.yaml")
    text = TARGET.replace("ni-to-al", "al-to-nb").replace("from: ni", "from: ni-to-al\n  set: labelled")
    text = text.replace("fcc, elements: [Al], a: 4.05", "bcc, elements: [Nb], a: 3.3").replace("al_mm", "nb")
    (folder / "nb.yaml").write_text(text.replace("{Ni: Al}", "{Al: Nb}"))
    assert go(folder / "nb.yaml")["labelled"] == 14
    told = json.loads((folder / "runs/al-to-nb/labels.json").read_text())
    assert [s["frame"] for s in told["sources"].values()] == chosen(folder / "runs/ni-to-al")
    # bcc from fcc: the volume of an atom
    assert told["transfer"]["factors"][0] == pytest.approx((3.3024**3 / 2 / (4.0453**3 / 4)) ** (1 / 3), abs=2e-4)


def test_frames_scaled_by_a_given_factor_are_taken_on_from_that_size_and_not_from_their_lattice(folder: Path) -> None:
    change(folder, ("  segment: 4", "  scale: 1.3"))
    go(folder / "al.yaml", until="transfer")
    text = TARGET.replace("ni-to-al", "al-to-nb").replace("from: ni", "from: ni-to-al")
    text = text.replace("fcc, elements: [Al], a: 4.05", "bcc, elements: [Nb], a: 3.3").replace("al_mm", "nb")
    (folder / "nb.yaml").write_text(text.replace("{Ni: Al}", "{Al: Nb}"))
    assert plan_text(make_plan(folder / "nb.yaml", "local")).count("lengths x about 0.9") == 1
    go(folder / "nb.yaml", until="transfer")
    told = status_of(folder / "runs/al-to-nb")
    assert told["stages"]["transfer"]["state"] == "done"
    stage = next(s for s in survey(folder / "runs/al-to-nb")[0].stages if s.name == "transfer")
    assert stage.factors[0] == pytest.approx((3.3024**3 / 2 / (3.5162**3 / 4)) ** (1 / 3) / 1.3, abs=2e-4)  # type: ignore[attr-defined]
    own, first = Store(folder / "runs/al-to-nb/run.zarr"), Store(folder / "runs/ni/run.zarr")
    volumes = [
        sum(float(b.volume.sum()) / b.n_atoms for b in store.collect("sample", frames))
        for store, frames in (
            (own, chosen(folder / "runs/al-to-nb")),
            (first, chosen(folder / "runs/ni", "uniform_time")),
        )
    ]
    assert volumes[0] / volumes[1] == pytest.approx(3.3024**3 / 2 / (3.5162**3 / 4), rel=1e-3)


WRONG = {
    "no run": (
        ("from: ni", "from: cu"),
        "8: transfer.from: there is no such run directory, got 'cu'",
        "runs/ni-momt-32",
    ),
    "outside": (("from: ni", "from: ../ni"), "8: transfer.from: a campaign's files must lie in its folder", "relative"),
    "no run directory": (
        ("from: ni", "from: potentials"),
        "8: transfer.from: this folder is no run directory",
        "campaign",
    ),
    "another file": (
        ("from: ni", "from: ni.yaml"),
        "8: transfer.from: frames are transferred from a run or a",
        "runs/",
    ),
    "no such set": (
        ("  segment", "  set: labelled\n  segment"),
        "10: transfer.set: campaign ni has no labelled",
        "training",
    ),
    "not distilled": (
        ("  segment", "  set: distilled\n  segment"),
        "10: transfer.set: campaign ni has no dist",
        "selected",
    ),
    "missed species": (
        ("{Ni: Al}", "{Cu: Al}"),
        "9: transfer.species: the frames of ni have Ni, which the mapp",
        "Ni: Ni",
    ),
    "strange species": (
        ("{Ni: Al}", "{Ni: Al, Cu: Al}"),
        "9: transfer.species: the frames of ni (elements Ni) hav",
        "Cu",
    ),
    "lattice of a file": (
        ("from: ni", "from: set.extxyz"),
        "7: transfer.scale: the lattice ratio needs the sour",
        "1.15",
    ),
    "origin of a run": (
        ("  segment", "  origin: here\n  segment"),
        "10: transfer.origin: a run says itself",
        "remove it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sources_are_said_with_line_and_remedy_and_nothing_is_written(folder: Path, name: str) -> None:
    export_of(folder / "runs/ni", "selected", folder / "set.extxyz")
    *changes, start, remedy = WRONG[name]
    change(folder, *changes)
    for act in (go, lambda file: make_plan(file, "local")):
        with pytest.raises(InputError) as caught:
            act(folder / "al.yaml")
        (problem,) = caught.value.problems
        said = problem.removeprefix(f"{folder / 'al.yaml'}:")
        assert said.startswith(start), said
        assert remedy in said.partition(", got ")[2]
    assert not (folder / "runs/ni-to-al").exists()


def test_the_command_ends_with_2_and_says_why(folder: Path) -> None:
    change(folder, ("from: ni", "from: cu"))
    code = "from campaign.cli import main; main()"
    for verb in ("check", "run"):
        done = subprocess.run([sys.executable, "-c", code, verb, "al.yaml"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 2
        assert "\nal.yaml:8: transfer.from: there is no such run directory, got 'cu'; write " in f"\n{done.stderr}"
        assert not (folder / "runs/ni-to-al").exists()


def test_an_endpoint_is_sent_a_file_and_no_other_run(folder: Path) -> None:
    from campaign.remote.client import files_of

    with pytest.raises(InputError, match=r"'ni': another run is a folder of files and is not sent .* 'scale'"):
        files_of(load_campaign(folder / "al.yaml"))
    change(folder, ("from: ni\n", "from: old.extxyz\n  scale: 1.15\n  origin: shaken crystals\n"))
    sent = files_of(load_campaign(folder / "al.yaml"))
    assert {"al.yaml", "old.extxyz", "potentials/al_mm.lmp", "potentials/Al_mm.eam.fs"} == set(sent)
    (folder / "old.extxyz").unlink()
    with pytest.raises(InputError, match=r"'old.extxyz': there is no such file; check the path"):
        files_of(load_campaign(folder / "al.yaml"))


def test_a_pool_too_small_for_the_test_is_said(folder: Path) -> None:
    change(folder, ("label:", TRAINED.replace("held_out: 6", "held_out: 17") + "label:"))
    with pytest.raises(InputError, match=r"validate\[0\].held_out: .* 30 frames, and 14 of them.* write held_out: 16"):
        go(folder / "al.yaml")


# -- as the templates have it ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_selection_of_nickel_to_a_tested_model_of_aluminium(tmp_path: Path) -> None:
    """The two templates, of short runs."""
    shutil.copytree(TEMPLATES / "potentials", tmp_path / "potentials")
    for name, changes in {
        "ni-momt-32": [
            ("steps: 1000000", "steps: 40000"),
            ("size: 200", "size: 40"),
            ("held_out: 400", "held_out: 20"),
        ],
        "ni-to-al": [
            ("steps: 500000 ", "steps: 20000 "),
            ("supercell: [3, 3, 3]", "supercell: [2, 2, 2]"),
            ("held_out: 400", "held_out: 60"),
            ("epochs: 100", "epochs: 60"),
            ("members: 2", "members: 1"),
        ],
    }.items():
        text = (TEMPLATES / f"{name}.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"{name}.yaml").write_text(text)
    assert go(tmp_path / "ni-momt-32.yaml", until="label")["selected"] == 40
    assert go(tmp_path / "ni-to-al.yaml")["state"] == "done"
    errors = json.loads((tmp_path / "runs/ni-to-al/validation/errors.json").read_text())
    forces = np.concatenate(
        [b.forces.ravel() for b in Store(tmp_path / "runs/ni-to-al/run.zarr").collect("sample", _held_out(tmp_path))]
    )
    assert errors["held_out"] == 60
    assert errors["sets"]["transfer"]["forces"]["rmse"] < 0.5 * forces.std()


def _held_out(folder: Path) -> list[str]:
    return chosen(folder / "runs/ni-to-al", "held_out")
