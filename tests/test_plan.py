"""The plan of a campaign on a site."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.config import template_path
from campaign.errors import InputError
from campaign.plan import make_plan, plan_text

SITE = """\
site: s
executors:
  cpu: {provider: slurm, nodes: 2, cores: 8, max_blocks: 3}
  gpu: {provider: slurm, cores: 8, workers: 1, gpus: 4}
"""


def write(folder: Path, stages: str) -> str:
    (folder / "site.yaml").write_text(f"{SITE}stages: {stages}\n")
    return str(folder / "site.yaml")


def test_the_plan_of_quickstart(tmp_path: Path) -> None:
    plan = make_plan(template_path("quickstart"), write(tmp_path, "{default: cpu}"))
    stages = {s["stage"]: s for s in plan["stages"]}
    assert (plan["frames"], plan["atoms"], plan["warnings"]) == (2048, 64, [])
    assert {s["workers"] for s in stages.values()} == {8 * 2 * 3}
    assert stages["sample"]["core_hours"] == pytest.approx(8 * 25600 * 64 * 2e-5 / 3600, abs=0.005)
    hours = [plan["core_hours"], *(s["core_hours"] for s in stages.values())]
    assert hours == [round(h, 2) for h in hours]
    assert plan["core_hours"] == pytest.approx(sum(hours[1:]))
    assert f"about {plan['core_hours']:.2f} core-hours" in plan_text(plan)


def test_idle_gpus_are_said_only_where_training_has_them(tmp_path: Path) -> None:
    plan = make_plan(template_path("quickstart"), write(tmp_path, "{default: cpu, train: gpu}"))
    (warning,) = plan["warnings"]
    assert "train.device is cpu, and the GPUs of executor gpu would stand idle" in warning
    (tmp_path / "c.yaml").write_text(
        "campaign: c\nsystem: {structure: {prototype: fcc, elements: [Ar], a: 5.3}}\n"
        "sample: [{method: fake, frames: 9}]\n"
    )
    assert make_plan(tmp_path / "c.yaml", write(tmp_path, "{default: gpu}"))["warnings"] == []
    assert make_plan(tmp_path / "c.yaml", write(tmp_path, "{sample: cpu}"))["warnings"] == []  # no executor to train on


def test_more_frames_than_there_are_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "campaign: c\nsystem: {structure: {prototype: fcc, elements: [Ar], a: 5.3}}\n"
        "sample: [{method: fake, walkers: 2, frames: 9}]\nselect: {method: random, size: 19}\n"
    )
    plan = make_plan(tmp_path / "c.yaml", write(tmp_path, "{default: cpu}"))
    assert plan["warnings"] == ["select.size: the sampling gives only 18 frames, fewer than 19: all would be taken."]


@pytest.mark.parametrize(
    ("select", "megabytes"),
    [
        ("{method: rnd, size: 9}", 4.19),
        ("{method: fps, size: 9, representation: {features: 32, pooling: mean}}", 0.262),
    ],
)
def test_a_selector_that_keeps_the_pool_says_how_much_that_is(tmp_path: Path, select: str, megabytes: float) -> None:
    (tmp_path / "c.yaml").write_text(
        "campaign: c\nsystem: {structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.6}}\n"
        f"sample: [{{method: fake, walkers: 2, frames: 1024}}]\nselect: {select}\n"
    )
    plan = make_plan(tmp_path / "c.yaml", write(tmp_path, "{default: cpu}"))
    (stage,) = (s for s in plan["stages"] if s["stage"] == "select")
    assert f"of 2048 frames, all kept in memory ({megabytes} MB)" in stage["what"]
    assert stage["tasks"] == 33


def dft(folder: Path, more: str = "") -> Path:
    """Write a campaign that labels argon by CP2K, with data files of its own."""
    (folder / "BASIS_SET").write_text("Ar SZV\n 1\n")
    (folder / "POTENTIAL").write_text("Ar PBE-q8\n 1\n")
    (folder / "ar.inp").write_text(
        "&FORCE_EVAL\n&DFT\n&END\n&SUBSYS\n&KIND Ar\nBASIS_SET SZV\nPOTENTIAL PBE-q8\n&END\n&END\n&END\n"
    )
    (folder / "c.yaml").write_text(
        "campaign: c\nsystem: {structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [4, 4, 2]}}\n"
        "sample: [{method: fake, frames: 9}]\nselect: {method: random, size: 9}\n"
        f"label: {{engine: cp2k, template: ar.inp{more}}}\n"
    )
    return folder / "c.yaml"


def test_the_plan_of_single_points_by_cp2k(tmp_path: Path) -> None:
    site = write(tmp_path, "{default: cpu}")
    Path(site).write_text(Path(site).read_text() + 'launch: {cp2k: [srun, -n, "{ranks}", cp2k.psmp]}\n')
    Path(site).write_text(Path(site).read_text().replace("cores: 8,", "cores: 8, cores_per_worker: 4,"))
    plan = make_plan(dft(tmp_path, ", ranks: 2, threads: 2"), site)
    stage = next(s for s in plan["stages"] if s["stage"] == "label")
    assert (stage["tasks"], stage["ranks"], stage["workers"]) == (9, 2, 2 * 2 * 3)
    assert stage["core_hours"] == pytest.approx(9 * 128 * 2.0 * 2 / 3600, abs=0.005)
    assert {"name": "cp2k", "version": "(cp2k.psmp)"} in plan["engines"]
    assert "cp2k-input-tools" in {e["name"] for e in plan["engines"]}


@pytest.mark.parametrize("launch", ["", "launch: {cp2k: [/opt/none/mpirun, -n, '{ranks}', cp2k.none]}\n"])
def test_a_program_that_this_machine_has_not_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "l.yaml").write_text(
        f"site: l\nexecutors: {{cpu: {{provider: local}}}}\nstages: {{default: cpu}}\n{launch}"
    )
    with pytest.raises(InputError) as caught:
        make_plan(dft(tmp_path), str(tmp_path / "l.yaml"))
    if not launch:
        assert "engine cp2k: there is no program cp2k.psmp on PATH; install CP2K" in str(caught.value)
    else:
        found = [f"site l: launch.cp2k: there is no program {p} on PATH" for p in ("/opt/none/mpirun", "cp2k.none")]
        assert [p.partition(";")[0] for p in caught.value.problems] == found


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write(tmp_path, "{default: cpu}")
    Path(site).write_text(Path(site).read_text() + 'launch: {cp2k: [srun, -n, "{ranks}", cp2k.psmp]}\n')
    shared = tmp_path / "shared"
    file = dft(tmp_path, f", cache: {shared}/labels")
    assert make_plan(file, site)["warnings"] == []
    assert not shared.exists()  # nothing is made
    with pytest.raises(InputError) as caught:
        make_plan(dft(tmp_path, ", cache: /proc/labels"), site)  # no user may make a folder there
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}:5: label.cache: this folder cannot be made (")
    remedy = "write a folder beside the campaign file, or the absolute path of one that you may write to"
    assert problem.endswith(f"), got '/proc/labels'; {remedy}")
    (warning,) = make_plan(dft(tmp_path, ", cache: /proc/sys"), site)["warnings"]
    assert warning.startswith("label.cache: nothing can be written to /proc/sys (")
    assert warning.endswith("): labels in it are used, none are added.")


@pytest.mark.parametrize(
    ("launch", "absent"),
    [
        ("[{bin}/mpirun, -n, '{ranks}', {bin}/none.x]", "{bin}/none.x"),  # whatever its name
        ("[{bin}/mpirun, -n, '{ranks}', --bind-to, none]", "none"),
        ("[{bin}/mpirun, -n, '{ranks}', apptainer, exec, x.sif, cp2k.psmp]", ""),  # it is in the image
        ("[{bin}/mpirun, -n, '{ranks}', {bin}/mpirun]", ""),
    ],
)
def test_the_program_behind_the_launcher_is_looked_for(tmp_path: Path, launch: str, absent: str) -> None:
    (tmp_path / "mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "mpirun").chmod(0o755)
    text = f"site: l\nexecutors: {{cpu: {{provider: local}}}}\nstages: {{default: cpu}}\nlaunch: {{cp2k: {launch}}}\n"
    (tmp_path / "l.yaml").write_text(text.replace("{bin}", str(tmp_path)))
    if not absent:
        assert make_plan(dft(tmp_path), str(tmp_path / "l.yaml"))["engines"]
        return
    with pytest.raises(InputError) as caught:
        make_plan(dft(tmp_path), str(tmp_path / "l.yaml"))
    (problem,) = caught.value.problems
    word = absent.replace("{bin}", str(tmp_path))
    assert problem.startswith(f"site l: launch.cp2k: there is no program {word} on PATH; install it")
