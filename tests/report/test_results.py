"""What the report says about sampling is read from records and checkpoints: real ones, lost ones, packed ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from campaign.config import Campaign, load_campaign, load_site, template_path
from campaign.engines.lammps import BAR
from campaign.engines.walkers import Stretch, pack_checkpoints
from campaign.flow import Flow, History
from campaign.frames import Frames
from campaign.pipeline import Options, run, survey
from campaign.results import sampling
from campaign.results.headlines import hints
from campaign.stages.sample import Sample
from campaign.store.store import Store
from campaign.tasks import Task, new_record

Data = dict[str, Any]
POTENTIAL = "potentials/ni.lmp"
MOMT = {
    "method": "momt",
    "temperature": 2000,
    "temperatures": [900, 3500],
    "window": [-4.75, -4.05],
    "pressure": 1e4,
    "walkers": 3,
    "walkers_per_task": 2,
    "steps": 120,
    "every": 10,
    "segment": 4,
}
CELL = np.eye(3) * 4.0


def campaign(**changes: Any) -> Campaign:
    spec = {
        "campaign": "x",
        "seed": 1,
        "system": {
            "structure": {"prototype": "fcc", "elements": ["Ni"], "a": 3.52},
            "potential": {"lammps": POTENTIAL},
        },
        "sample": [{**MOMT, **changes}],
    }
    return Campaign.model_validate(spec)


def visits(walker: int, segment: int) -> np.ndarray[Any, Any]:
    """In cell (walker, segment), and as often as its segment says."""
    found = np.zeros((5, 4), "int64")
    found[walker, : segment + 1] = 10**segment
    return found


def publish(store: Store, task: Task, stopped: dict[int, str], gone: set[int]) -> None:
    """Publish a segment: ``stopped`` ended in it, ``gone`` before it."""
    first, segment = task.params["walker"][1], task.params["segment"]
    numbers = [n for n in range(first, first + task.params["walkers"]) if n not in gone]
    n = task.params["frames"]
    step = (task.params["first"] + 1 + np.arange(n)) * 10
    blocks = [
        Frames.build(
            np.full(4, 28),
            np.zeros((n, 4, 3)),
            CELL,
            energy=-4.0 * step,
            forces=np.zeros((n, 4, 3)),
            stress=np.zeros((3, 3)),
            task=task.number,
            walker=walker,
            step=step,
            order=step / 1000,
        )
        for walker in numbers
    ]
    frames = Frames.concat(blocks)
    found = {
        walker: Stretch({}, b"", cause=stopped[walker])
        if walker in stopped
        else Stretch({}, b"state", {"visits": visits(walker, segment)})
        for walker in numbers
    }
    record = new_record(task, 0)
    record["result"] = {
        "frames": len(frames),
        "temperature": 1990.0,
        "walkers": len(numbers),
        "left": len(numbers) - len(stopped),
        "momt": {
            "window": [-4.75, -4.05],
            "walkers": {
                str(w): {"trips": segment / 2, "coverage": 0.1 * (segment + 1), "flatness": 0.5}
                for w in numbers
                if w not in stopped
            },
        },
    }
    if stopped:
        record["result"]["stopped"] = {str(w): cause for w, cause in stopped.items()}
    store.publish(record, dict(frames.arrays()), {"restart": pack_checkpoints(found)})


@pytest.fixture
def sampled(tmp_path: Path) -> tuple[Flow, Store]:
    """Three segments of walkers 0 and 1, of which 1 stopped in the second, and two of walker 2."""
    stage = Sample(campaign(), {POTENTIAL: "abc"})
    both, alone = ([task for task, _ in chain] for chain in stage.chains)
    store = Store(tmp_path / "run.zarr")
    publish(store, both[0], {}, set())
    publish(store, both[1], {1: "Two atoms met."}, set())
    publish(store, both[2], {}, {1})
    publish(store, alone[0], {}, set())
    publish(store, alone[1], {}, set())
    flow = Flow([stage], History(store.scan()))
    flow.survey()
    return flow, store


def test_every_walker_is_read_from_its_last_finished_segment(sampled: tuple[Flow, Store]) -> None:
    (found,) = sampling.sampling(*sampled)
    assert [found[k] for k in ("name", "walkers", "steps", "stopped")] == ["momt", 3, 120, 1]
    assert (found["frames"], found["planned"]) == (8 + 8 + 4 + 4 + 4, 36)
    assert (found["set"], found["mean"]) == ([2000.0, 2000.0], 1990.0)
    momt = found["momt"]
    assert [w["number"] for w in momt["walkers"]] == [0, 1, 2]
    assert [w["steps"] for w in momt["walkers"]] == [[40, 80, 120], [40], [40, 80]]
    assert [w["trips"][-1] for w in momt["walkers"]] == [1.0, 0.0, 0.5]
    assert [w["stopped"] for w in momt["walkers"]] == ["", "Two atoms met.", ""]
    want = visits(0, 2) + visits(1, 0) + visits(2, 1)
    assert momt["map"]["visits"] == want.tolist()
    assert momt["map"]["coverage"] == 6 / 20
    assert momt["map"]["missing"] == []
    assert momt["map"]["h"] == pytest.approx(np.linspace(-4.75, -4.05, 6))
    assert (momt["ordered"], momt["auto"], momt["shared"]) == (True, False, True)


def test_the_first_walkers_enthalpy_has_its_pressure_and_is_thinned(
    sampled: tuple[Flow, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    series = sampling.sampling(*sampled)[0]["momt"]["series"]
    assert series["step"] == list(range(10, 130, 10))
    assert series["h"] == pytest.approx([-step + 1e4 / BAR * 64 / 4 for step in series["step"]])
    assert series["q"] == [step / 1000 for step in series["step"]]
    monkeypatch.setattr(sampling, "SERIES_POINTS", 3)
    series = sampling.sampling(*sampled)[0]["momt"]["series"]
    assert series["step"] == [10, 50, 90]
    monkeypatch.setattr(sampling, "SERIES_POINTS", 2)  # every sixth: not one of each segment
    series = sampling.sampling(*sampled)[0]["momt"]["series"]
    assert (series["step"], len(series["h"]), len(series["q"])) == ([10, 70], 2, 2)


def test_packing_changes_nothing(sampled: tuple[Flow, Store]) -> None:
    flow, store = sampled
    before = sampling.sampling(flow, store)
    (stage,) = flow.stages
    assert isinstance(stage, Sample)
    assert store.pack("sample", stage.packable(flow.board), keep_checkpoints=True) == 5
    assert sampling.sampling(flow, Store(store.path)) == before


def test_a_checkpoint_that_is_lost_or_of_another_version_is_left_out(sampled: tuple[Flow, Store]) -> None:
    flow, store = sampled
    (stage,) = flow.stages
    assert isinstance(stage, Sample)
    shutil.rmtree(store.checkpoints.path_of(stage.chains[0][2][0].id))  # walker 0's last
    (found,) = sampling.sampling(flow, store)
    assert found["momt"]["map"]["missing"] == [0]
    assert found["momt"]["map"]["visits"] == (visits(1, 0) + visits(2, 1)).tolist()
    store.checkpoint = lambda task: {"restart": np.zeros(7, "uint8")}  # type: ignore[method-assign]
    assert sampling.sampling(flow, store)[0]["momt"]["map"] == {}


def test_a_fine_map_is_joined_to_what_a_page_can_hold(sampled: tuple[Flow, Store], monkeypatch: Any) -> None:
    monkeypatch.setattr(sampling, "MAP_CELLS", 3)
    found = sampling.sampling(*sampled)[0]["momt"]["map"]
    total = visits(0, 2) + visits(1, 0) + visits(2, 1)
    assert np.shape(found["visits"]) == (3, 2)
    assert np.sum(found["visits"]) == total.sum()
    assert found["visits"][0][0] == total[:2, :2].sum()
    assert found["h"] == pytest.approx([-4.75, -4.47, -4.19, -4.05])
    assert found["coverage"] == 6 / 20


def test_nothing_finished_and_nothing_ordered(tmp_path: Path) -> None:
    stage = Sample(campaign(order="none"), {POTENTIAL: "abc"})
    flow = Flow([stage], History())
    flow.survey()
    (found,) = sampling.sampling(flow, Store(tmp_path / "run.zarr"))
    assert (found["frames"], found["steps"], found["mean"], found["momt"]) == (0, None, None, None)
    store = Store(tmp_path / "other.zarr")
    publish(store, stage.chains[0][0][0], {}, set())
    flow = Flow([stage := Sample(campaign(order="none"), {POTENTIAL: "abc"})], History(store.scan()))
    flow.survey()
    momt = sampling.sampling(flow, store)[0]["momt"]
    assert momt["ordered"] is False
    assert momt["series"]["q"] == []


def test_only_tasks_that_were_put_aside_can_be_tried_again(sampled: tuple[Flow, Store], tmp_path: Path) -> None:
    flow, store = sampled
    failures = flow.status("x", ("sample",), live=False)["failures"]
    (line,) = hints(failures, tmp_path)
    assert "--retry-quarantined" not in line
    assert "not started again" in line
    given_up = {**new_record(Task("label", "frame", {}), 0), "state": "quarantined"}
    store.quarantine(given_up)  # type: ignore[arg-type]
    aside = [{"task": given_up["task"], "stage": "label", "cause": "x"}]
    assert hints(aside, tmp_path) == [
        "failed tasks stay aside until the same command is given with --retry-quarantined"
    ]
    assert len(hints(failures + aside, tmp_path)) == 2
    assert hints([], tmp_path) == []


TEXT = """
campaign: real
seed: 1
system:
  structure: {prototype: fcc, elements: [Ni], a: 3.52, supercell: [2, 2, 2]}
  potential: {lammps: potentials/ni.lmp}
sample:
  - {method: momt, temperature: 2000, temperatures: [900, 3500], window: [-4.87, -4.05], steps: 200, every: 10,
     segment: 10}
"""


@pytest.mark.lammps
def test_a_report_of_a_real_run(tmp_path: Path) -> None:
    (tmp_path / "potentials").mkdir()
    for name in ("ni.lmp", "NiNb_2016.eam.fs"):
        shutil.copy(template_path("ni-momt-32").parent / "potentials" / name, tmp_path / "potentials" / name)
    (tmp_path / "real.yaml").write_text(TEXT)
    run(load_campaign(tmp_path / "real.yaml"), load_site("local"), tmp_path / "real", Options(inline=True))
    flow, _ = survey(tmp_path / "real")
    (found,) = sampling.sampling(flow, Store(tmp_path / "real" / "run.zarr"))
    momt = found["momt"]
    (walker,) = momt["walkers"]
    assert (found["frames"], walker["steps"]) == (20, [100, 200])
    assert momt["window"] == [-4.87, -4.05]
    # a deposit every ten steps, all of them inside the window; the coverage in the record is that of the map
    assert 10 <= np.sum(momt["map"]["visits"]) <= 20
    assert momt["map"]["coverage"] == walker["coverage"][-1]
    low, high = min(momt["series"]["h"]), max(momt["series"]["h"])
    assert -4.88 < low < high < -4.05
    assert all(0 < q <= 1.01 for q in momt["series"]["q"])
    page = (tmp_path / "real" / "report.html").read_text(encoding="utf-8")
    assert "Convergence of momt" in page
    for name in ("map", "trips", "series"):
        assert f'data-figure="momt-0-{name}"' in page
