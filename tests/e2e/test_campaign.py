"""A whole campaign on the toy crystal: every part real but the physics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from campaign.config import load_campaign, load_site
from campaign.errors import InputError, Locked
from campaign.flow import TooManyFailures
from campaign.pipeline import Options, export_of, run, status_of, survey
from campaign.store.ledger import read_ledger
from campaign.store.rundir import RunDirectory
from campaign.store.store import Store

TOY = """
campaign: toy
seed: 4
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}}
sample: [{{method: fake, walkers: 3, frames: 30, segment: 10, displacement: {displacement}}}]
select: {{method: rnd_stream, size: 6, representation: {{features: 8, interactions: 1, cutoff: 5.0}}, {select}}}
label: {{engine: fake{label}}}
train: {{model: fake, members: 2}}
validate: [{{method: errors, held_out: 10, against: [random]}}]
{top}
"""


def write(folder: Path, displacement: float = 0.1, select: str = "early: 0.5", label: str = "", top: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(TOY.format(displacement=displacement, select=select, label=label, top=top))
    return path


def go(file: Path, root: Path, **options: object) -> dict[str, object]:
    loaded = load_campaign(file)
    return run(loaded, load_site("local"), root / loaded.spec.name, Options(inline=True, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    status = go(write(folder / "in"), folder)
    assert status["state"] == "done"
    return folder / "toy"


def chosen(path: Path) -> dict[str, list[str]]:
    flow, _ = survey(path)
    return {name: s.chosen for name, s in flow.board.sets.items()}


@pytest.fixture(scope="module")
def bad(finished: Path) -> tuple[str, int]:
    """Return the label block that makes some frames fail, one of the training set among them, and how many."""
    sets = chosen(finished)
    number = sets["rnd_stream"][0].split(":")[1]
    return f", fail: [{number}]", sum(f.endswith(f":{number}") for f in {f for s in sets.values() for f in s})


def weights(path: Path) -> list[bytes]:
    flow, _ = survey(path)
    store = Store(path / "run.zarr")
    return [store.arrays("train", t)["weights.scale"].tobytes() for m in flow.board.models.values() for t in m]


def test_every_stage_is_done_and_counted(finished: Path) -> None:
    status = status_of(finished)
    assert status["state"] == "done"
    assert {name: (s["state"], s["done"], s["total"]) for name, s in status["stages"].items()} == {
        "sample": ("done", 9, 9),
        "select": ("done", 12, 12),
        "label": ("done", status["labelled"], status["labelled"]),
        "train": ("done", 4, 4),
        "validate": ("done", 1, 1),
    }
    assert (status["frames"], status["selected"], status["failures"]) == (90, 6, [])


def test_sets_have_the_size_asked_for_and_the_test_set_is_apart(finished: Path) -> None:
    sets = chosen(finished)
    assert [len(sets[k]) for k in ("rnd_stream", "random", "held_out")] == [6, 6, 10]
    assert all(len(set(s)) == len(s) for s in sets.values())
    assert not set(sets["held_out"]) & (set(sets["rnd_stream"]) | set(sets["random"]))


def test_labels_start_before_the_pool_is_complete(finished: Path) -> None:
    order = [r["stage"] for r in read_ledger(finished / "ledger.jsonl")]
    last_sample = len(order) - 1 - order[::-1].index("sample")
    assert "label" in order[:last_sample]


def test_the_run_directory_holds_what_the_design_says(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names >= {"campaign.yaml", "site.yaml", "run.zarr", "ledger.jsonl", "models", "validation", "report.html"}
    assert load_campaign(finished / "campaign.yaml").spec.select.size == 6  # type: ignore[union-attr]
    result = json.loads((finished / "validation" / "errors.json").read_text())
    assert set(result["sets"]) == {"rnd_stream", "random"}


def test_the_same_call_again_runs_nothing(finished: Path, tmp_path: Path) -> None:
    before = read_ledger(finished / "ledger.jsonl")
    assert go(write(tmp_path), finished.parent)["state"] == "done"
    assert read_ledger(finished / "ledger.jsonl") == before


def test_continues_from_the_zarr_store_alone(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(finished / "run.zarr", alone / "run.zarr")
    from campaign.store.rundir import open_existing

    path = open_existing(alone / "run.zarr")
    status = run(load_campaign(path / "campaign.yaml"), load_site("local"), path, Options(inline=True))
    assert status["state"] == "done"
    ledger = read_ledger(path / "ledger.jsonl")
    assert {r["task"] for r in ledger} == {r["task"] for r in read_ledger(finished / "ledger.jsonl")}
    assert ledger[0]["start"] < (finished / "report.html").stat().st_mtime  # recovered lines, nothing was redone
    assert chosen(path) == chosen(finished)
    assert len(list((path / "models").glob("*.pt"))) == 4


@pytest.mark.parametrize("stop", ["sample", "select", "label", "train"])
def test_stopping_after_any_stage_changes_nothing(finished: Path, tmp_path: Path, stop: str) -> None:
    file = write(tmp_path)
    go(file, tmp_path, until=stop)
    assert go(file, tmp_path)["state"] == "done"
    assert chosen(tmp_path / "toy") == chosen(finished)
    assert weights(tmp_path / "toy") == weights(finished)


def test_a_changed_parameter_reruns_its_stage_and_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "toy")
    before = {r["task"] for r in read_ledger(tmp_path / "toy" / "ledger.jsonl")}
    go(write(tmp_path, select="early: 0.2"), tmp_path)
    fresh = [r for r in read_ledger(tmp_path / "toy" / "ledger.jsonl") if r["task"] not in before]
    stages = [r["stage"] for r in fresh]
    assert "sample" not in stages
    assert "select" in stages
    draws = [r for r in fresh if r["name"] == "random/draw"]
    assert draws == []  # the random pick depends on the pool alone


def test_a_failed_label_is_quarantined_and_the_rest_goes_on(tmp_path: Path, bad: tuple[str, int]) -> None:
    status = go(write(tmp_path, label=bad[0]), tmp_path)
    assert status["state"] == "partial"
    assert status["stages"]["label"]["failed"] == bad[1]  # type: ignore[index]
    assert [f["cause"] for f in status["failures"]] == bad[1] * ["The fake engine was told to fail on this frame."]  # type: ignore[union-attr,attr-defined]
    assert status["stages"]["train"]["state"] == "done"  # type: ignore[index]
    tries = [
        r for r in read_ledger(tmp_path / "toy" / "ledger.jsonl") if r["stage"] == "label" and r["state"] != "done"
    ]
    assert [r["state"] for r in tries].count("quarantined") == bad[1]
    assert export_of(tmp_path / "toy", "rejected", tmp_path / "bad.extxyz") == bad[1]
    assert "told to fail" in (tmp_path / "bad.extxyz").read_text()


def test_quarantine_is_remembered_until_asked_otherwise(tmp_path: Path, bad: tuple[str, int]) -> None:
    file = write(tmp_path, label=bad[0])
    go(file, tmp_path)
    lines = len(read_ledger(tmp_path / "toy" / "ledger.jsonl"))
    assert go(file, tmp_path)["state"] == "partial"
    assert len(read_ledger(tmp_path / "toy" / "ledger.jsonl")) == lines
    go(file, tmp_path, retry_quarantined=True)
    assert len(read_ledger(tmp_path / "toy" / "ledger.jsonl")) > lines


def test_too_many_failures_end_the_run_with_everything_kept(tmp_path: Path) -> None:
    file = write(tmp_path, label=", fail: [0, 1, 2, 3, 4]", top="max_failed: 0.05")
    with pytest.raises(TooManyFailures, match="max_failed"):
        go(file, tmp_path)
    status = status_of(tmp_path / "toy")
    assert status["frames"] > 0
    assert status["stages"]["label"]["failed"] >= 2


def test_frames_too_close_are_refused_with_the_reason(tmp_path: Path) -> None:
    go(write(tmp_path, displacement=0.9), tmp_path, until="select")
    flow, _ = survey(tmp_path / "toy")
    refused = flow.board.sets["rnd_stream"].refused
    assert refused
    assert "covalent radii" in refused[0]["reason"]
    assert not {r["frame"] for r in refused} & set(flow.board.sets["rnd_stream"].chosen)


def test_second_driver_is_refused(finished: Path, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "toy"), pytest.raises(Locked, match="process"):
        go(write(tmp_path), tmp_path)


def test_export_is_what_the_store_holds(finished: Path, tmp_path: Path) -> None:
    from ase.io import read

    assert export_of(finished, "pool", tmp_path / "pool.db") == 90
    assert export_of(finished, "labelled", tmp_path / "set.extxyz") == 6
    images = read(tmp_path / "set.extxyz", ":")
    assert [i.info["frame"] for i in images] == chosen(finished)["rnd_stream"]
    (block,) = Store(finished / "run.zarr").collect("sample", chosen(finished)["rnd_stream"])
    np.testing.assert_allclose([i.get_potential_energy() for i in images], block.energy, rtol=1e-12)
    with pytest.raises(InputError, match="there already"):
        export_of(finished, "labelled", tmp_path / "set.extxyz")


def test_a_finished_walker_is_asked_for_more_and_for_less(tmp_path: Path) -> None:
    """The short last segment is left out; the walker goes on from a checkpoint that was packed."""
    file = write(tmp_path)
    text = file.read_text()
    file.write_text(text.replace("frames: 30, segment: 10", "frames: 25, segment: 10"))
    assert go(file, tmp_path, until="sample")["frames"] == 75
    for frames in (34, 18):
        file.write_text(text.replace("frames: 30, segment: 10", f"frames: {frames}, segment: 10"))
        assert go(file, tmp_path, until="sample")["frames"] == 3 * frames
        whole = tmp_path / f"whole-{frames}"
        assert go(file, whole, until="sample")["frames"] == 3 * frames
        pools = [
            b"".join(
                b.positions.tobytes() for b in Store(root / "toy" / "run.zarr").stream("sample", shards(root / "toy"))
            )
            for root in (tmp_path, whole)
        ]
        assert pools[0] == pools[1]


def shards(path: Path) -> list[str]:
    flow, _ = survey(path)
    return [s.task.id for s in flow.board.shards]


def test_outputs_are_of_this_campaign_and_no_other(tmp_path: Path) -> None:
    file = write(tmp_path)
    text = file.read_text()
    go(file, tmp_path)
    first = {p.name: p.read_bytes() for p in (tmp_path / "toy" / "models").glob("*.pt")}
    file.write_text(text.replace("seed: 4", "seed: 5"))
    go(file, tmp_path)
    assert not set(first) & {p.name for p in (tmp_path / "toy" / "models").glob("*.pt")}
    file.write_text(text)
    go(file, tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "toy" / "models").glob("*.pt")} == first
    file.write_text(text.replace("validate: [{method: errors, held_out: 10, against: [random]}]", ""))
    go(file, tmp_path)
    assert list((tmp_path / "toy" / "validation").iterdir()) == []
