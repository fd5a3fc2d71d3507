"""The same frames whoever did the work: one worker, two or four, whatever order they end in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, run, survey
from campaign.store.ledger import read_ledger
from campaign.tasks import TOKEN_VARIABLE

#: Segments of different lengths: with several workers they do not end in the order in which they were begun. What is
#: selected on the way is distilled: what is chosen then hangs on weights that were trained, on any of the workers.
TEXT = """
campaign: picks
seed: 11
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample:
  - {method: fake, walkers: 2, frames: 24, segment: 6, delay: 0.2}
  - {method: fake, walkers: 3, frames: 16, segment: 8, displacement: 0.2}
select: {method: rnd_stream, size: 40, representation: {features: 8, interactions: 1, cutoff: 5.0}}
distill: {method: uq, members: 3, iterations: 2, initial: 6, batch: 4, train_fraction: 0.6, target_mae: 1e-9}
label: {engine: fake}
train: {model: schnet, features: 8, interactions: 1, cutoff: 4.5, epochs: 2, members: 1}
validate: [{method: errors, held_out: 8, against: [random]}]
"""

SITE = """
site: cores
executors: {{cpu: {{provider: local, workers: {workers}, cores_per_worker: 1}}}}
stages: {{default: cpu}}
"""


@pytest.fixture
def path_with_parsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the runner changes both; put them back afterwards
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    monkeypatch.setenv("PARSL_CORES", "4")  # Parsl starts no more workers than it sees cores


@pytest.mark.slow
@pytest.mark.usefixtures("path_with_parsl")
def test_any_number_of_workers_selects_the_same_frames(tmp_path: Path) -> None:
    file = tmp_path / "picks.yaml"
    file.write_text(TEXT)
    found, orders, counts = [], [], []
    for workers in (1, 2, 4):
        site = tmp_path / f"{workers}.yaml"
        site.write_text(SITE.format(workers=workers))
        path = tmp_path / f"run-{workers}"
        status = run(load_campaign(file), load_site(str(site)), path, Options(until="distill"))
        assert status["failures"] == []
        board = survey(path)[0].board
        found.append({s.name: (s.chosen, s.refused) for s in (board.source, *board.sets.values()) if s})
        records = [r for r in read_ledger(path / "ledger.jsonl") if r["state"] == "done"]
        orders.append([r["task"] for r in records])
        counts.append(len({r["pid"] for r in records}))
    assert counts[0] == 1 < counts[1] <= 2 < 1 + counts[2] <= 5  # the work was shared
    assert orders[0] not in orders[1:]  # and was done in another order
    assert [set(o) for o in orders] == [set(orders[0])] * 3
    assert {name: len(chosen) for name, (chosen, _) in found[0].items()} == {
        "rnd_stream": 40, "uq": 14, "random": 14, "held_out": 8,
    }  # fmt: skip
    assert found[1] == found[0]
    assert found[2] == found[0]
