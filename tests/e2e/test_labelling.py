"""Labelling by CP2K as a campaign: ladder, quarantine, cache, budget; with a stand-in for the program, and with it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import read, write

from campaign.config import load_campaign, load_site
from campaign.errors import DiskFull, TooManyFailures
from campaign.pipeline import Options, export_of, run, status_of, survey
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
campaign: toy
seed: 1
max_failed: {max_failed}
system: {{structure: {{prototype: fcc, elements: [Ar], a: 5.3}}}}
sample: [{{method: file, file: frames.extxyz, segment: 4}}]
select: {{method: random, size: 9, min_distance: 0}}
label: {{engine: cp2k, template: cp2k/argon.inp, ladder: {ladder}{more}}}
"""
LADDER = "[template, more_steps, {SCF/MAX_SCF: 300, restart: true}]"
#: Its last rung computes something else.
RESCUE = "[template, more_steps, {SCF/MAX_SCF: 300, SCF/EPS_SCF: 1.0E-5, restart: true}]"
TEMPLATE = (ROOT / "benchmarks/fake_cp2k.inp").read_text()
INLINE = Options(inline=True)


class Toy:
    """A campaign of frames of argon on which the stand-in does what it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "fake/once").mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "cp2k").mkdir()
        program = folder / "bin/cp2k.psmp"
        program.write_text(f"#!{sys.executable} -IS\n" + (ROOT / "benchmarks/fake_cp2k.py").read_text())
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("FAKE_CP2K", str(folder / "fake/plan.json"))
        (folder / "cp2k/argon.inp").write_text(TEMPLATE)
        (folder / "cp2k/BASIS").write_text("Ar TOY\n 1\n")
        (folder / "cp2k/POTENTIAL").write_text("Ar TOY\n 1\n")
        self.monkeypatch = monkeypatch

    def write(self, *faults: str, max_failed: float = 1.0, more: str = "", ladder: str = LADDER) -> None:
        rng = np.random.default_rng(0)
        positions = [np.round(rng.uniform(0, 5, (4, 3)), 6) for _ in faults]
        write(self.folder / "frames.extxyz", [Atoms("Ar4", p, cell=[5.3, 5.4, 5.5], pbc=True) for p in positions])
        self.plan({f"{p[0, 0]:.6f}": f for p, f in zip(positions, faults, strict=True)})
        text = CAMPAIGN.format(max_failed=max_failed, more=more, ladder=ladder)
        (self.folder / "toy.yaml").write_text(text)

    def plan(self, faults: dict[str, str]) -> None:
        (self.folder / "fake/plan.json").write_text(json.dumps({"faults": faults}))

    def heal(self) -> None:
        """Let every calculation from now on be good."""
        self.plan({})

    def run(self, name: str = "run", options: Options = INLINE) -> dict[str, Any]:
        return run(load_campaign(self.folder / "toy.yaml"), load_site("local"), self.folder / name, options)

    def starts(self) -> int:
        log = self.folder / "fake/log"
        return log.read_text().count('"start"') if log.exists() else 0

    def labels(self, name: str = "run") -> list[dict[str, Any]]:
        lines = read_ledger(self.folder / name / "ledger.jsonl")
        return [dict(r) for r in lines if r["stage"] == "label"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    # the launch line of the site names mpirun; here the program itself is on PATH
    site = (ROOT / "site_configs/local.yaml").read_text()
    (tmp_path / "site.yaml").write_text(re.sub(r"^  cp2k: .*$", "", site, flags=re.MULTILINE))
    made = Toy(tmp_path, monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "load_site", lambda _: _local(tmp_path))
    return made


def _local(folder: Path) -> Any:
    from campaign.config.load import load_site

    return load_site(str(folder / "site.yaml"))


def test_each_attempt_is_a_line_with_its_rung_and_the_last_one_quarantines_with_every_cause(toy: Toy) -> None:
    toy.write("good", "good", "rung3", "crash", "unconverged", "good")
    status = toy.run()
    assert status["labelled"] == 4
    assert status["state"] == "partial"
    by_frame: dict[str, list[dict[str, Any]]] = {}
    for r in toy.labels():
        by_frame.setdefault(r["name"], []).append(r)
    assert sorted(len(v) for v in by_frame.values()) == [1, 1, 1, 3, 3, 3]
    for lines in by_frame.values():
        for k, r in enumerate(lines):
            assert (r["attempt"], r["result"]["rung"]) == (k, k)
            assert r["result"]["settings"] == ({}, {"SCF/MAX_SCF": 200}, {"SCF/MAX_SCF": 300})[k]
            assert r["seconds"] > 0
            assert r["state"] == "done" or r["cause"].endswith(".")
    (climbed,) = (v for v in by_frame.values() if len(v) == 3 and v[-1]["state"] == "done")
    assert [r["state"] for r in climbed] == ["failed", "failed", "done"]
    assert "SCF did not converge" in climbed[0]["cause"]
    assert climbed[-1]["result"]["scf_steps"] == 9
    assert climbed[-1]["versions"]["cp2k"] == "2023.1"
    assert len(status["failures"]) == 2
    for failure in status["failures"]:
        assert failure["stage"] == "label"
        assert (toy.folder / "run" / failure["folder"] / "attempt-2" / "input.inp").exists()
        assert [a["rung"] for a in failure["attempts"]] == [0, 1, 2]
        assert all(a["cause"] for a in failure["attempts"])
        assert failure["frame"].count(":") == 1
    words = " ".join(f["cause"] for f in status["failures"])
    assert "Cholesky decompose failed" in words
    assert "SCF did not converge in 9 steps" in words
    again = status_of(toy.folder / "run")
    assert again["failures"] == status["failures"]  # from the run directory alone
    (toy.folder / "run/ledger.jsonl").unlink()
    assert status_of(toy.folder / "run")["failures"] == status["failures"]  # and from the store alone
    text = (toy.folder / "run/labels.json").read_text()
    assert text.endswith("}\n")
    found = json.loads(text)
    assert (found["labelled"], found["quarantined"]) == (4, 2)
    assert found["rungs"] == {"0": 3, "2": 1}
    assert found["versions"]["cp2k"] == {"2023.1": 4}
    assert found["reference_energies"].keys() == {"Ar"}
    assert len(found["failures"]) == 2


def test_an_attempt_that_failed_is_seen_when_the_run_is_stopped(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write("rung3", "good")

    def stop(status: dict[str, Any]) -> None:
        if any(len(task["attempts"]) == 2 for task in status["retried"]):
            raise KeyboardInterrupt

    monkeypatch.setattr("campaign.flow.LOOK", 0.0)
    with pytest.raises(KeyboardInterrupt):
        toy.run(options=Options(inline=True, show=stop))
    found = status_of(toy.folder / "run")
    assert (found["state"], found["failures"]) == ("interrupted", [])
    (task,) = found["retried"]
    assert [a["rung"] for a in task["attempts"]] == [0, 1]
    assert "SCF did not converge" in task["cause"]
    assert (toy.folder / "run" / task["folder"] / "attempt-1" / "output.out").exists()
    assert found["notes"][-1] == (
        "1 task failed at an attempt and will be tried again (--json lists all); "
        f"label {task['frame']} at attempt 2: {task['cause']}"
    )
    done = toy.run()
    assert (done["state"], done["retried"]) == ("done", [])
    assert status_of(toy.folder / "run")["retried"] == []


def test_what_only_helps_convergence_redoes_nothing_that_is_finished(toy: Toy) -> None:
    toy.write("good", "good", "unconverged", "good")
    toy.run()
    assert toy.starts() == 3 + 3
    before = {r["task"] for r in toy.labels() if r["state"] == "done"}
    edited = TEMPLATE.replace("MAX_SCF 40", "MAX_SCF 90\n      SCF_GUESS RESTART").replace("&XC\n", "&XC ! plain\n")
    (toy.folder / "cp2k/argon.inp").write_text(edited)
    toy.heal()
    assert toy.run()["labelled"] == 3  # what is quarantined stays so
    assert toy.starts() == 6
    status = toy.run(options=Options(inline=True, retry_quarantined=True))
    assert status["state"] == "done"
    assert status["failures"] == []
    assert toy.starts() == 7
    last = toy.labels()[-1]
    assert (last["state"], last["attempt"], last["result"]["rung"]) == ("done", 0, 0)  # the first rung again
    assert before < {r["task"] for r in toy.labels() if r["state"] == "done"}
    (toy.folder / "cp2k/argon.inp").write_text(edited.replace("PBE", "BLYP"))
    assert toy.run()["labelled"] == 4
    assert toy.starts() == 11  # another method is another label


def test_a_rescue_rung_that_is_added_redoes_nothing_that_is_finished(toy: Toy) -> None:
    toy.write("good", "rung3", "good", ladder="[template, more_steps]")
    assert toy.run()["labelled"] == 2
    assert toy.starts() == 2 + 2
    toy.write("good", "rung3", "good", ladder=RESCUE)
    assert toy.run()["labelled"] == 2
    assert toy.starts() == 4
    again = Options(inline=True, retry_quarantined=True)
    status = toy.run(options=again)
    assert status["state"] == "done"
    assert toy.starts() == 4 + 3
    result = toy.labels()[-1]["result"]
    assert (result["rung"], result["other_physics"]) == (2, True)
    meant = {r["result"]["method"] for r in toy.labels() if r["state"] == "done"} - {result["method"]}
    found = json.loads((toy.folder / "run/labels.json").read_text())
    assert found["methods"] == {meant.pop(): 2, result["method"]: 1}
    assert found["other_physics"] == [result["frame"]]
    (note,) = status["notes"][1:]  # the first: there are fewer frames than asked for
    assert note == "1 of 3 labels is of other physics than the template's (rung own); RUN/labels.json names its frame."
    toy.write("good", "rung3", "good", ladder=RESCUE.replace("1.0E-5", "3.0E-6"))  # other physics again
    assert toy.run(options=again)["state"] == "done"
    assert toy.starts() == 7
    path = toy.folder / "cp2k/argon.inp"
    path.write_text(path.read_text().replace("PBE", "BLYP"))
    assert toy.run()["state"] == "done"
    assert toy.starts() == 7 + 2 + 3  # what the labels are meant to be is another


def test_a_cache_never_gives_a_label_of_other_physics(toy: Toy) -> None:
    toy.write("good", "rung3", more=", cache: shared", ladder=RESCUE)
    toy.run("one")
    assert toy.starts() == 1 + 3
    assert toy.run("two")["labelled"] == 2
    assert toy.starts() == 4 + 2  # the rescue alone was kept, not that the rungs before fail
    (last,) = (r["result"] for r in toy.labels("two") if r["attempt"] == 2)
    assert (last["cache"], last["other_physics"]) == ("found", True)
    path = toy.folder / "cp2k/argon.inp"
    path.write_text(path.read_text().replace("EPS_SCF 1.0E-6", "EPS_SCF 1.0E-5"))
    toy.write("good", "rung3", more=", cache: shared", ladder="[template]")
    assert toy.run("three")["labelled"] == 2
    assert toy.starts() == 6 + 1
    (found,) = (r["result"] for r in toy.labels("three") if r["result"]["cache"] == "found")
    assert "other_physics" not in found  # here this is what is meant
    assert json.loads((toy.folder / "three/labels.json").read_text())["other_physics"] == []


def test_labels_of_another_version_of_the_program_are_not_shared_silently(toy: Toy) -> None:
    toy.write("good", "good", "good", more=", cache: shared")
    few = toy.run("one")["notes"]  # there are fewer frames than asked for
    next((toy.folder / "shared").rglob("*.label")).unlink()
    program = toy.folder / "bin/cp2k.psmp"
    program.write_text(program.read_text().replace("CP2K version 2023.1", "CP2K version 2024.3"))
    (note,) = toy.run("two")["notes"][len(few) :]
    assert note == "Labels come from different versions of cp2k (2023.1, 2024.3); RUN/labels.json counts them."
    found = json.loads((toy.folder / "two/labels.json").read_text())
    assert found["versions"]["cp2k"] == {"2023.1": 2, "2024.3": 1}
    assert status_of(toy.folder / "two")["notes"] == [*few, note]


@pytest.mark.parametrize("at", ["stored", "kept", "failed", "reported"])
def test_a_kill_after_a_calculation_never_has_it_made_again(toy: Toy, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Of each of the attempts: before the label is in the store, in the cache, or a failure in the ledger."""
    from campaign import worker
    from campaign.engines import cp2k
    from campaign.store.label_cache import LabelCache

    owner, name = {
        "stored": (Store, "publish"),
        "kept": (LabelCache, "put"),
        "failed": (worker, "_described"),
        "reported": (cp2k, "_write"),
    }[at]
    toy.write("rung3", "good", "unconverged", more=", cache: shared" if at == "kept" else "")
    real, killed = getattr(owner, name), []

    def kill_once(*args: Any) -> Any:
        said = next((r for r in args if isinstance(r, dict) and "stage" in r), {"stage": "label"})
        if said["stage"] == "label" and len(killed) < toy.starts():
            killed.append(0)
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, name, kill_once)
    runs = 0
    while True:
        runs += 1
        assert runs < 20
        try:
            status = toy.run()
            break
        except KeyboardInterrupt:
            pass
    assert status["labelled"] == 2
    assert len(killed) >= 2
    assert toy.starts() == 3 + 1 + 3
    log = [json.loads(line) for line in (toy.folder / "fake/log").read_text().splitlines()]
    later = [e["guess"] for e in log if e["what"] == "start" and e["attempt"] != "attempt-0"]
    assert later == ["found"] * 4  # each climbed on from where the one before had come to
    assert not list((toy.folder / "run/tasks").rglob("*.wfn"))


def test_a_resume_climbs_on_where_the_ladder_was_left(toy: Toy) -> None:
    toy.write("unconverged", "disk_once")
    with pytest.raises(DiskFull, match="no space left"):
        toy.run()
    failed = [r["attempt"] for r in toy.labels() if r["state"] == "failed" and not r["transient"]]
    status = toy.run()
    assert status["labelled"] == 1
    lines = toy.labels()
    own = [r["attempt"] for r in lines if "unconverged" in str(r["result"]) or "converge" in r["cause"]]
    assert sorted(set(own)) == [0, 1, 2]
    assert len(failed) <= 1
    (done,) = (r for r in lines if r["state"] == "done")
    assert (done["attempt"], done["result"]["rung"]) == (0, 0)  # a full disk is no reason to climb
    (failure,) = status["failures"]
    assert [a["attempt"] for a in failure["attempts"]] == [0, 1, 2]


def test_a_label_in_the_cache_is_published_without_running_anything(toy: Toy) -> None:
    toy.write("good", "rung3", "good", more=", cache: shared")
    toy.run("one")
    ran = toy.starts()
    assert ran == 2 + 3
    second = toy.run("two")
    assert second["state"] == "done"
    assert toy.starts() == ran
    one, two = toy.folder / "one", toy.folder / "two"
    labels = survey(one)[0].board.labels
    assert labels == survey(two)[0].board.labels
    for task in labels.values():
        a, b = (Store(p / "run.zarr").frames("label", str(task)) for p in (one, two))
        for name, array in a.arrays():
            np.testing.assert_array_equal(array, getattr(b, name))
    found = [r["result"] for r in toy.labels("two")]
    assert [r["cache"] for r in found] == ["found"] * 3
    assert sorted(r["rung"] for r in found) == [0, 0, 2]  # how the label came about, not this try
    assert {r["versions"]["cp2k"] for r in toy.labels("two")} == {"2023.1"}
    assert json.loads((two / "labels.json").read_text())["from_cache"] == 3
    for path in (toy.folder / "shared").rglob("*.label"):
        path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
    third = toy.run("three")
    assert third["state"] == "done"
    assert toy.starts() == 2 * ran
    good = [r for r in toy.labels("three") if r["state"] == "done" and r["attempt"] == 0]
    assert ["is damaged" in r["result"]["cache"] for r in good] == [True, True]
    said = (toy.folder / "three/logs/label_cache.log").read_text().splitlines()
    assert len(said) == 3
    assert toy.run("four")["state"] == "done"
    assert toy.starts() == 2 * ran


def test_a_cache_is_of_its_method_and_its_run_directory_remembers_where_it_is(toy: Toy) -> None:
    toy.write("good", "good", more=", cache: shared")
    toy.run("one")
    assert toy.starts() == 2
    own = load_campaign(toy.folder / "one/campaign.yaml").spec.label
    assert own is not None
    assert getattr(own, "cache", None) == str(toy.folder / "shared")
    path = toy.folder / "cp2k/argon.inp"
    path.write_text(path.read_text().replace("EPS_SCF 1.0E-6", "EPS_SCF 1.0E-5"))
    assert toy.run("two")["state"] == "done"
    assert toy.starts() == 4


def test_the_budget_ends_the_stage_and_keeps_what_is_labelled(toy: Toy) -> None:
    toy.write(*["crash"] * 5, *["good"] * 4, max_failed=0.2)
    with pytest.raises(TooManyFailures) as caught:
        toy.run()
    said = str(caught.value)
    assert re.search(r"\d+ tasks of stage label failed for good, more than max_failed allows \(0\.2 of \d+\)", said)
    assert "--retry-quarantined" in said
    assert "Cholesky decompose failed" in said
    note = status_of(toy.folder / "run")["notes"][-1]
    assert re.match(r"Stopped: \d+ tasks of stage label failed for good, more than max_failed allows \(0\.2 of", note)
    ran = toy.starts()
    with pytest.raises(TooManyFailures, match="--retry-quarantined"):
        toy.run()
    assert toy.starts() == ran  # the same command again does not labour on
    kept = status_of(toy.folder / "run")["labelled"]
    assert kept == sum(r["state"] == "done" for r in toy.labels())
    toy.heal()
    status = toy.run(options=Options(inline=True, retry_quarantined=True))
    assert status["state"] == "done"
    assert status["notes"] == []
    assert status["labelled"] == 9


def test_a_run_directory_labels_on_without_the_folder_it_came_from(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write("good", "good", "crash")
    toy.run()
    monkeypatch.setenv("CP2K_DATA_DIR", str(toy.folder / "nowhere"))
    (toy.folder / "cp2k").rename(toy.folder / "moved")
    toy.heal()
    loaded = load_campaign(toy.folder / "run/campaign.yaml")
    status = run(loaded, load_site("local"), toy.folder / "run", Options(inline=True, retry_quarantined=True))
    assert status["labelled"] == 3
    assert toy.starts() == 2 + 3 + 1


def test_exports_of_labels_say_what_of_the_energies_is_the_atoms_own(toy: Toy) -> None:
    toy.write("good", "good", "good")
    toy.run()
    (energy,) = json.loads((toy.folder / "run/labels.json").read_text())["reference_energies"].values()
    for name in ("l.extxyz", "l.db", "l.zarr"):
        assert export_of(toy.folder / "run", "labelled", toy.folder / name) == 3
    for atoms in read(toy.folder / "l.extxyz", ":"):
        assert atoms.info["reference_energy"] == pytest.approx(4 * energy)
        assert atoms.info["reference_energies"] == f"Ar:{energy:.9g}"
    with connect(toy.folder / "l.db") as database:
        assert database.metadata["reference_energies"]["Ar"] == pytest.approx(energy)
        assert [row.reference_energy for row in database.select()] == pytest.approx([4 * energy] * 3)
    import zarr

    assert dict(zarr.open_group(toy.folder / "l.zarr").attrs)["reference_energies"]["Ar"] == pytest.approx(energy)
    assert export_of(toy.folder / "run", "pool", toy.folder / "p.extxyz") == 3
    assert "reference_energy" not in read(toy.folder / "p.extxyz").info


REAL = """
campaign: real
seed: 1
system: {structure: {prototype: fcc, elements: [Ar], a: 5.3}}
sample: [{method: fake, frames: 4, displacement: 0.1}]
select: {method: random, size: 2}
label: {engine: cp2k, template: argon.inp, timeout: 300, cache: shared}
"""


@pytest.mark.cp2k
def test_argon_by_cp2k_itself_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    template = TEMPLATE.replace("FILE_NAME BASIS", "FILE_NAME BASIS_MOLOPT")
    template = template.replace("FILE_NAME POTENTIAL", "FILE_NAME GTH_POTENTIALS")
    template = template.replace("SET TOY", "SET SZV-MOLOPT-SR-GTH-q8").replace("POTENTIAL TOY", "POTENTIAL GTH-PBE-q8")
    template = template.replace("&SCF\n", "&MGRID\n      CUTOFF 250\n    &END MGRID\n    &SCF\n")
    (tmp_path / "argon.inp").write_text(template)
    (tmp_path / "real.yaml").write_text(REAL)
    loaded = load_campaign(tmp_path / "real.yaml")
    status = run(loaded, load_site("local"), tmp_path / "run", INLINE)
    assert status["failures"] == []
    assert status["labelled"] == 2
    lines = [r for r in read_ledger(tmp_path / "run/ledger.jsonl") if r["stage"] == "label"]
    for record in lines:
        assert (record["state"], record["attempt"], record["result"]["rung"]) == ("done", 0, 0)
        assert 3 < record["result"]["scf_steps"] < 40
        assert -2400 < record["result"]["energy"] < -2200  # four times the valence electrons of argon, eV
        assert re.match(r"\d{4}\.\d", record["versions"]["cp2k"])
    assert len({r["result"]["energy"] for r in lines}) == 2
    assert (tmp_path / "run/BASIS_MOLOPT").exists()
    assert run(loaded, load_site("local"), tmp_path / "again", INLINE)["labelled"] == 2
    again = [r for r in read_ledger(tmp_path / "again/ledger.jsonl") if r["stage"] == "label"]
    assert [r["result"]["cache"] for r in again] == ["found"] * 2
    assert {r["result"]["energy"] for r in again} == {r["result"]["energy"] for r in lines}


SALT = """
campaign: salt
seed: 1
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64}
  potential: {lammps: potentials/nacl_bmhtf.lmp}
sample: [{method: nvt, temperature: 900, steps: 400, every: 100, prepare: [{temperature: 900, time: 0.4}]}]
select: {method: random, size: 2}
label: {engine: cp2k, template: quick.inp, timeout: 600}
"""


@pytest.mark.slow
@pytest.mark.cp2k
@pytest.mark.lammps
def test_eight_atoms_of_salt_by_cp2k_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "potentials").mkdir()
    (tmp_path / "potentials/nacl_bmhtf.lmp").write_bytes((ROOT / "templates/potentials/nacl_bmhtf.lmp").read_bytes())
    (tmp_path / "quick.inp").write_bytes((ROOT / "templates/cp2k/nacl_pbe.inp").read_bytes())
    (tmp_path / "salt.yaml").write_text(SALT)
    loaded = load_campaign(tmp_path / "salt.yaml")
    status = run(loaded, load_site("local"), tmp_path / "run", INLINE)
    assert status["failures"] == []
    assert status["labelled"] == 2
    assert (tmp_path / "run/BASIS_MOLOPT_UZH").exists()
    for record in read_ledger(tmp_path / "run/ledger.jsonl"):
        if record["stage"] == "label":
            assert record["result"]["rung"] == 0
            assert record["result"]["scf_steps"] > 5
            assert -1800 < record["result"]["energy"] < -1500  # four times the valence electrons of Cl and one of Na
            assert "cp2k" in record["versions"]
    again = run(loaded, load_site("local"), tmp_path / "run", INLINE)
    assert again["labelled"] == 2
