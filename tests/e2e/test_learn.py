"""Active learning from the campaign file to the report, on the toy crystal driven by LAMMPS."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, status_of, survey
from campaign.stages.learn import Learn
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

pytestmark = pytest.mark.lammps

TOY = """
campaign: toy
seed: 4
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}}
sample: [{{method: fake, walkers: 1, frames: 20, segment: 10}}]
select: {{method: {select}, size: 6}}
label: {{engine: fake}}
train: {{model: fake, members: 2}}
learn:
  rounds: 3
  size: 3
  novelty: {novelty}
  max_force: {force}
  md: {{ensemble: nvt, temperature: 40, time: 0.4, every: 20, walkers: 2, segment: 6, guards: {guards}}}
"""


def go(
    folder: Path, guards: str, select: str = "random", novelty: str = "rnd", force: float = 30
) -> tuple[Path, dict[str, object]]:
    file = folder / "toy.yaml"
    file.write_text(TOY.format(guards=guards, select=select, novelty=novelty, force=force))
    path = folder / "run"
    return path, run(load_campaign(file), load_site("local"), path, Options(inline=True))


def learn_of(path: Path) -> Learn:
    flow, _ = survey(path)
    return next(s for s in flow.stages if isinstance(s, Learn))


def test_a_model_that_holds_learns_nothing(tmp_path: Path) -> None:
    path, status = go(tmp_path, "{}")
    assert status["state"] == "done"
    assert status["notes"] == ["learn: every walker survived round 1, from the start"]
    (only,) = json.loads((path / "learning.json").read_text())["rounds"]
    assert (only["failed"], only["added"], only["survived"]) == (0, 0, [0.4, 0.4])
    assert "✓ passed</span><b>Learning</b>" in (path / "report.html").read_text()
    assert learn_of(path).rounds[0]["ends"][0].endswith(":3")  # the last frame of the second segment


def test_what_a_model_fails_at_is_labelled_and_trained_on_round_after_round(tmp_path: Path) -> None:
    path, status = go(tmp_path, "{temperature: 0.3}")  # every walker is too hot for that at its first frame
    assert (status["state"], status["stages"]["learn"]["state"]) == ("partial", "partial")  # no model held
    assert status["notes"] == ["learn: 2 of 2 walkers failed in round 3, and the rounds are spent"]
    assert not status["failures"]  # a failure is what was looked for
    rounds = json.loads((path / "learning.json").read_text())["rounds"]
    assert [r["set"] for r in rounds] == ["random", "learn-1", "learn-2"]
    assert [r["frames"] for r in rounds] == [6, 9, 12]
    assert "temperature" in rounds[0]["causes"]
    flow, _ = survey(path)
    learned = flow.board.sets["learn-2"]
    assert flow.board.training() is learned
    frames = Store(path / "run.zarr").collect("label", learned.chosen, dict(flow.board.labels))
    assert sum(len(f) for f in frames) == 12
    assert all((f.energy == f.energy).all() for f in frames)  # labelled, all of them
    assert "Learning" in (path / "report.html").read_text()
    done = [r["task"] for r in read_ledger(path / "ledger.jsonl")]
    go(tmp_path, "{temperature: 0.3}")
    assert [r["task"] for r in read_ledger(path / "ledger.jsonl")] == done  # nothing is run again
    assert status_of(path)["stages"]["learn"]["state"] == "partial"
    page = (path / "report.html").read_text()
    assert "✗ failed</span><b>Learning</b>" in page
    assert "2 of 2 walkers failed in round 3" in page


def test_the_models_of_a_round_go_on_from_those_of_the_round_before(tmp_path: Path) -> None:
    path, status = go(tmp_path, "{temperature: 0.3}")
    flow, _ = survey(path)
    store = Store(path / "run.zarr")
    off = [
        [float(store.arrays("train", task)["weights.scale"][0]) - 1.0 for task in flow.board.models[name]]
        for name in ("random", "learn-1", "learn-2")
    ]
    assert off[0][0] != off[0][1]
    for before, after in pairwise(off):
        assert after == pytest.approx([0.5 * x for x in before], rel=1e-9)  # what a toy makes of an earlier model
    assert status["stages"]["train"] == {"state": "done", "done": 6, "total": 6, "failed": 0}


@pytest.mark.parametrize(
    ("select", "novelty"),
    [("rnd_stream", "rnd_stream"), pytest.param("random", "rematch", marks=pytest.mark.requires("dscribe"))],
)
def test_novelty_by_the_stream_of_the_selection_and_by_rematch(tmp_path: Path, select: str, novelty: str) -> None:
    path, status = go(tmp_path, "{temperature: 0.3}", select, novelty)
    assert {s["state"] for name, s in status["stages"].items() if name != "learn"} <= {"done", "skipped"}
    rounds = json.loads((path / "learning.json").read_text())["rounds"]
    assert [r["frames"] for r in rounds] == [6, 9, 12]
    assert all(r["novelty"][0] >= r["novelty"][1] > 0 for r in rounds)
    done = [r["task"] for r in read_ledger(path / "ledger.jsonl")]
    go(tmp_path, "{temperature: 0.3}", select, novelty)  # packed meanwhile: what the stream learned is still there
    assert [r["task"] for r in read_ledger(path / "ledger.jsonl")] == done
    again = tmp_path / "again"
    again.mkdir()
    file = tmp_path / "toy.yaml"
    loaded, site = load_campaign(file), load_site("local")
    run(loaded, site, again / "run", Options(until="train", inline=True))  # selected, packed, and only then learned
    run(loaded, site, again / "run", Options(inline=True))
    other = json.loads((again / "run" / "learning.json").read_text())["rounds"]
    assert [r["sources"] for r in other] == [r["sources"] for r in rounds]


def test_frames_that_the_bounds_refuse_are_counted(tmp_path: Path) -> None:
    path, status = go(tmp_path, "{temperature: 0.3}", force=1e-9)
    assert status["notes"] == ["learn: 2 of 2 walkers failed in round 1, and no frame is fit to be added"]
    (only,) = json.loads((path / "learning.json").read_text())["rounds"]
    assert only["refused"] == len(only["refusals"]) == status["refused"] > 0
    assert "a force of" in only["refusals"][0]["reason"]
    assert status_of(path)["refused"] == status["refused"]
