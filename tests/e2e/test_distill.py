"""Distillation from the campaign file to the trained models, on the toy crystal."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from campaign.config import load_campaign, load_site
from campaign.errors import InputError
from campaign.pipeline import Options, run, status_of, survey
from campaign.plan import make_plan
from campaign.runtime.runner import InlineRunner
from campaign.stages.distill import Distill
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

TOY = """
campaign: toy
seed: 4
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}}
sample: [{{method: fake, walkers: 3, frames: 30, segment: 10}}]
{select}
distill: {{{distill}}}
label: {{engine: fake}}
train: {train}
validate: [{{method: errors, held_out: 10, against: [random], threshold: {{forces: 100}}}}]
"""

UQ = "method: uq, members: 3, iterations: {}, initial: 6, batch: 4, target_mae: {}"
NEVER = 1e-9


def write(
    folder: Path, distill: str = UQ.format(3, NEVER), select: str = "", train: str = "{model: fake, members: 2}"
) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(TOY.format(distill=distill, select=select, train=train))
    return path


def go(file: Path, root: Path, **options: object) -> dict[str, object]:
    loaded = load_campaign(file)
    return run(loaded, load_site("local"), root / loaded.spec.name, Options(inline=True, **options))  # type: ignore[arg-type]


def stage_of(path: Path) -> Distill:
    flow, _ = survey(path)
    return next(s for s in flow.stages if isinstance(s, Distill))


def sets(path: Path) -> dict[str, list[str]]:
    return {s.name: s.chosen for s in stage_of(path).sets}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    assert go(write(folder / "in"), folder)["state"] == "done"
    return folder / "toy"


def test_every_task_is_the_one_that_was_planned(finished: Path, tmp_path: Path) -> None:
    status = status_of(finished)
    stage = status["stages"]["distill"]
    plan = next(s for s in make_plan(write(tmp_path), "local")["stages"] if s["stage"] == "distill")
    assert stage["done"] == stage["total"] == plan["tasks"] == 1 + 4 * (3 + 1 + 1) + 2
    assert list(status["stages"]) == ["sample", "select", "distill", "label", "train", "validate"]
    assert status["stages"]["select"]["state"] == "skipped"
    assert status["selected"] == 18
    assert "the iterations are spent" in status["notes"][0]


def test_the_set_grows_and_its_figures_are_kept(finished: Path) -> None:
    figures = json.loads((finished / "distillation.json").read_text())
    assert figures == stage_of(finished).iterations
    assert [f["size"] for f in figures] == [6, 10, 14, 18]
    assert [f["rest"] for f in figures] == [84, 80, 76, 72]
    assert all(f["pool"] == 90 and 0 < f["mae"] < 1e-3 for f in figures)
    assert all(len(f["calibration"]["bins"]) == 10 for f in figures)
    assert all(-1 <= f["correlation"]["score"] <= 1 for f in figures)
    chosen = sets(finished)
    assert [len(chosen[k]) for k in ("uq", "random", "held_out")] == [18, 18, 10]
    assert len(set(chosen["uq"])) == 18
    assert not set(chosen["held_out"]) & (set(chosen["uq"]) | set(chosen["random"]))


def test_the_error_is_that_of_the_mean_over_the_frames_not_chosen(finished: Path) -> None:
    """The fake models are the toy crystal times a number, so the error is known."""
    store = Store(finished / "run.zarr")
    ledger = [r for r in read_ledger(finished / "ledger.jsonl") if r["stage"] == "distill"]
    members = [r for r in ledger if r["name"].startswith("uq/iteration 2/train")]
    assert stage_of(finished).iterations[2]["models"] == [
        r["task"] for r in sorted(members, key=lambda r: str(r["name"]))
    ]
    scale = np.mean([store.arrays("distill", r["task"])["weights.scale"][0] for r in members])
    used = set(sets(finished)["uq"][:14])
    flow, _ = survey(finished)
    pool = list(store.stream("sample", [s.task.id for s in flow.board.shards]))
    energies = [e / b.n_atoms for b in pool for e, f in zip(b.energy, b.ids, strict=True) if f not in used]
    assert stage_of(finished).iterations[2]["mae"] == pytest.approx(abs(scale - 1) * np.mean(energies), rel=1e-4)
    assert [r["result"]["frames"] for r in members] == [3, 3, 3]  # a fifth of 14
    assert {r["result"]["of"] for r in members} == {14}


def test_the_uncertain_frames_are_those_added(finished: Path) -> None:
    """A factor on the energy is most uncertain where the energy of an atom is largest."""
    store = Store(finished / "run.zarr")
    ledger = read_ledger(finished / "ledger.jsonl")
    (piece,) = [r["task"] for r in ledger if r["name"] == "uq/iteration 0/score 0"]
    scored = store.arrays("distill", piece)
    score = {
        f"{int(t):016x}:{int(i)}": s for t, i, s in zip(scored["task"], scored["index"], scored["score"], strict=True)
    }
    chosen = sets(finished)["uq"]
    left = sorted((s for f, s in score.items() if f not in chosen[:6]), reverse=True)
    added = [score[f] for f in chosen[6:10]]
    assert added[0] == left[0]
    assert set(added) <= set(left[:16])  # thinned from four times as many


def test_the_report_names_the_distilled_set_before_the_random_one(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert "selected by uq" in text
    assert "frames) against a random pick of the same size, trained the same way" in text


def test_the_same_call_again_runs_nothing(finished: Path, tmp_path: Path) -> None:
    before = read_ledger(finished / "ledger.jsonl")
    assert go(write(tmp_path), finished.parent)["state"] == "done"
    assert read_ledger(finished / "ledger.jsonl") == before


def test_a_target_that_is_met_ends_it_and_the_iterations_before_are_not_done_again(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path, until="distill")
    before = [r["name"] for r in read_ledger(tmp_path / "toy" / "ledger.jsonl")]
    maes = [f["mae"] for f in stage_of(tmp_path / "toy").iterations]
    best = int(np.argmin(maes))
    chosen = sets(tmp_path / "toy")["uq"]
    go(write(tmp_path, UQ.format(3, maes[best] * 1.001)), tmp_path, until="distill")
    stage = stage_of(tmp_path / "toy")
    assert [f["mae"] for f in stage.iterations] == maes[: best + 1]
    assert stage.sets[0].chosen == chosen[: 6 + 4 * best]
    assert "spent" not in stage.sets[0].note
    fresh = [r["name"] for r in read_ledger(tmp_path / "toy" / "ledger.jsonl")][len(before) :]
    assert "uq/iteration 0/choose" in fresh
    assert not [n for n in fresh if n.startswith("uq/iteration 0/") and "choose" not in n]


def killed_again_and_again(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> int:
    """Run to the end, stopped after every so many answers of the workers; return how often it was stopped."""
    left = [3]

    class Mortal(InlineRunner):
        def wait(self, timeout: float) -> list[object]:  # type: ignore[override]
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return super().wait(timeout)  # type: ignore[return-value]

    kills = 0
    with monkeypatch.context() as patch:
        patch.setattr("campaign.pipeline.InlineRunner", Mortal)
        while True:
            try:
                assert go(file, root)["state"] == "done"
                return kills
            except KeyboardInterrupt:
                kills += 1
                left[0] = every


def test_killed_anywhere_it_comes_to_the_same_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = killed_again_and_again(write(tmp_path), tmp_path, monkeypatch, 4)
    assert kills > 5
    assert sets(tmp_path / "toy") == sets(finished)
    done = Counter(r["task"] for r in read_ledger(tmp_path / "toy" / "ledger.jsonl") if r["state"] == "done")
    assert set(done.values()) == {1}
    assert set(done) == {r["task"] for r in read_ledger(finished / "ledger.jsonl")}


def test_a_selection_is_distilled(tmp_path: Path) -> None:
    status = go(write(tmp_path, select="select: {method: random, size: 40}"), tmp_path)
    assert status["state"] == "done"
    flow, _ = survey(tmp_path / "toy")
    picked = flow.board.source.chosen  # type: ignore[union-attr]
    assert len(picked) == 40
    assert set(flow.board.sets["uq"].chosen) < set(picked)
    assert stage_of(tmp_path / "toy").iterations[0]["pool"] == 40
    assert set(flow.board.models) == {"uq", "random"}
    assert (tmp_path / "toy" / "report.html").stat().st_size > 1000


def test_random_frames_are_added_to_compare_with(finished: Path, tmp_path: Path) -> None:
    go(write(tmp_path, UQ.format(3, NEVER) + ", add: random"), tmp_path, until="distill")
    blind, seeing = stage_of(tmp_path / "toy"), stage_of(finished)
    assert [f["size"] for f in blind.iterations] == [6, 10, 14, 18]
    assert blind.iterations[0] == seeing.iterations[0]
    assert blind.sets[0].chosen[:6] == seeing.sets[0].chosen[:6]
    assert len(set(blind.sets[0].chosen)) == 18
    assert len(set(blind.sets[0].chosen) & set(seeing.sets[0].chosen)) < 14


@pytest.mark.parametrize("more", ["score: energy", "add: weighted, score: energy"])
def test_frames_can_be_judged_by_the_uncertainty_of_their_energy(tmp_path: Path, more: str) -> None:
    """A factor on the energy is most uncertain where the energy is largest."""
    go(write(tmp_path, UQ.format(1, NEVER) + ", " + more), tmp_path, until="distill")
    path = tmp_path / "toy"
    ledger, store = read_ledger(path / "ledger.jsonl"), Store(path / "run.zarr")
    (choice,) = [r["result"] for r in ledger if r["name"] == "uq/iteration 0/choose"]
    (piece,) = [r["task"] for r in ledger if r["name"] == "uq/iteration 0/score 0"]
    scored = store.arrays("distill", piece)
    np.testing.assert_array_equal(scored["score"], scored["std"])
    flow, _ = survey(path)
    pool = list(store.stream("sample", [s.task.id for s in flow.board.shards]))
    energy = {f: abs(e) for b in pool for f, e in zip(b.ids, b.energy, strict=True)}
    left = sorted(energy.keys() - set(sets(path)["uq"][:6]), key=lambda f: -energy[f])
    if "weighted" in more:
        assert set(choice["why"]) == {"drawn, as likely as it is uncertain"}
        assert set(choice["chosen"]) <= set(left)
    else:
        assert choice["chosen"][0] == left[0]
        assert choice["why"][0].startswith("its energy is uncertain by ")
        assert choice["why"][0].endswith(" eV/atom")


def test_the_store_alone_is_enough_to_go_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run.zarr", tmp_path / "toy" / "run.zarr")
    status = go(write(tmp_path), tmp_path)
    assert status["state"] == "done"
    assert sets(tmp_path / "toy") == sets(finished)
    assert len(read_ledger(tmp_path / "toy" / "ledger.jsonl")) == len(read_ledger(finished / "ledger.jsonl"))


def test_the_grid_needs_no_models(tmp_path: Path) -> None:
    assert go(write(tmp_path, "method: grid, size: 12, bins: [4, 4]"), tmp_path)["state"] == "done"
    assert [len(s) for s in sets(tmp_path / "toy").values()] == [12, 12, 10]
    assert not (tmp_path / "toy" / "distillation.json").exists()


def test_a_pool_smaller_than_the_start_is_taken_whole_and_said(tmp_path: Path) -> None:
    status = go(write(tmp_path, "method: uq, initial: 500"), tmp_path, until="distill")
    assert len(sets(tmp_path / "toy")["uq"]) == 90
    assert status["notes"][0] == "uq: only 90 frames could be chosen, not 500: all are taken"  # type: ignore[index]


def test_a_pool_that_is_used_up_is_taken_whole_and_said(tmp_path: Path) -> None:
    text = "method: uq, members: 2, iterations: 5, initial: 40, batch: 40, target_mae: 1e-9"
    status = go(write(tmp_path, text), tmp_path, until="distill")
    assert sorted(len(s) for s in sets(tmp_path / "toy").values())[-1] == 90
    assert [f["size"] for f in stage_of(tmp_path / "toy").iterations] == [40, 80, 90]
    assert "none is left to judge by" in status["notes"][0]  # type: ignore[index]


def test_frames_without_labels_cannot_be_distilled(tmp_path: Path) -> None:
    from ase.build import bulk
    from ase.io import write as save

    save(tmp_path / "bare.extxyz", [bulk("Ar", a=5.2 + 0.01 * k, cubic=True) for k in range(30)])
    file = write(tmp_path, UQ.format(1, NEVER))
    text = file.read_text().replace(
        "{method: fake, walkers: 3, frames: 30, segment: 10}", "{method: file, file: bare.extxyz}"
    )
    file.write_text(text)
    status = go(file, tmp_path)
    assert status["state"] == "partial"
    assert "none of 30 frames can be trained on" in status["failures"][0]["cause"]  # type: ignore[index]
    assert not [r for r in read_ledger(tmp_path / "toy" / "ledger.jsonl") if r["stage"] == "train"]


def test_pools_of_several_compositions_and_sizes_work(tmp_path: Path) -> None:
    """Frames that cannot be used (far too close) are never chosen, and kept with their reason."""
    from ase.build import bulk
    from ase.calculators.lj import LennardJones
    from ase.io import write as save

    rng = np.random.default_rng(0)
    images = []
    for k in range(60):
        atoms = bulk("Ar", a=5.2 + 0.005 * k, cubic=True) * ((1, 1, 1) if k % 3 else (2, 1, 1))
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        if k == 7:
            atoms.positions[1] = atoms.positions[0] + 0.1
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=4.9)
        atoms.get_forces(), atoms.get_stress()
        images.append(atoms)
    save(tmp_path / "mixed.extxyz", images)
    file = write(tmp_path, UQ.format(2, NEVER))
    text = file.read_text().replace(
        "{method: fake, walkers: 3, frames: 30, segment: 10}", "{method: file, file: mixed.extxyz}"
    )
    file.write_text(text)
    go(file, tmp_path, until="distill")
    stage = stage_of(tmp_path / "toy")
    assert len(stage.sets[0].chosen) == 14
    assert [f["pool"] for f in stage.iterations] == [59] * 3
    (refused,) = stage.sets[0].refused
    assert "covalent radii" in refused["reason"]
    assert refused["frame"] not in stage.sets[0].chosen


def test_schnet_members_are_told_apart(tmp_path: Path) -> None:
    """The whole way with real networks, far too small and too little trained to be good."""
    train = "{model: schnet, features: 8, interactions: 1, cutoff: 4.5, epochs: 2}"
    text = (
        "method: uq, members: 2, iterations: 1, initial: 10, batch: 5, train_fraction: 0.5, target_mae: 1e-9, epochs: 3"
    )
    go(write(tmp_path, text, train=train), tmp_path, until="distill")
    first, second = stage_of(tmp_path / "toy").iterations
    assert (first["size"], second["size"]) == (10, 15)
    assert first["mae"] > 0
    assert first["calibration"]["factor"] > 0
    members = [r for r in read_ledger(tmp_path / "toy" / "ledger.jsonl") if "/train" in r["name"]]
    assert {r["result"]["epochs"] for r in members} == {3}
    assert all(r["result"]["validation_mae"] > 0 for r in members)


SOME = "method: uq, members: 2, iterations: 2, initial: 8, batch: 5, train_fraction: 0.6, target_mae: 1e-9"
TINY = "{model: schnet, features: 8, interactions: 1, cutoff: 4.5, epochs: 2, members: 1}"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run in which only a quarter of the forces of added frames count."""
    folder = tmp_path_factory.mktemp("masked")
    file = write(folder / "in", SOME + ", force_share: 0.25", train=TINY)
    assert go(file, folder)["state"] == "done"
    return folder / "toy"


def counted_in(path: Path) -> dict[str, np.ndarray]:
    """Return which atoms of each added frame count, as the tasks that chose them stored it."""
    store = Store(path / "run.zarr")
    found = {}
    for r in read_ledger(path / "ledger.jsonl"):
        if r["name"].endswith("/choose") and r["result"]["chosen"]:
            arrays = store.arrays("distill", r["task"])
            parts = np.split(arrays["counted"].astype(bool), np.cumsum(arrays["atoms"])[:-1])
            found |= dict(zip(r["result"]["chosen"], parts, strict=True))
    return found


def test_a_share_of_the_forces_of_added_frames_counts(masked: Path) -> None:
    found = counted_in(masked)
    assert list(found) == sets(masked)["uq"][8:]
    rows = np.stack(list(found.values()))
    assert rows.shape == (10, 32)
    assert rows[:5].sum() == rows[5:].sum() == 40  # a quarter of the atoms of a batch


def test_the_trained_model_is_that_of_the_counted_forces(masked: Path) -> None:
    """What is stored of the final model comes out again from the labels and the masks, other forces spoilt."""
    from campaign.engines.schnetpack_train import train

    store, found = Store(masked / "run.zarr"), counted_in(masked)
    (record,) = [r for r in read_ledger(masked / "ledger.jsonl") if r["stage"] == "train" and r["name"] == "uq/0"]
    labels = {r["result"]["frame"]: r["task"] for r in read_ledger(masked / "ledger.jsonl") if r["stage"] == "label"}
    (block,) = store.collect("label", [f"{labels[f]}:0" for f in sets(masked)["uq"]])
    counted = np.stack([found.get(f, np.ones(32, dtype=bool)) for f in block.ids])
    spoilt = block.with_(forces=np.where(counted[:, :, None], block.forces, 7.0))
    seed = int(np.random.SeedSequence([4, 0]).generate_state(1)[0])
    weights, _ = train([spoilt], record["result"]["model"], seed, counted=[counted])
    kept = store.arrays("train", record["task"])
    for name, value in weights.items():
        np.testing.assert_array_equal(kept["weights." + name], value)
    every, _ = train([block], record["result"]["model"], seed)
    assert any((kept["weights." + name] != value).any() for name, value in every.items())


def test_masks_are_the_same_after_kills_and_from_the_store_alone(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, SOME + ", force_share: 0.25", train=TINY)
    kills = killed_again_and_again(file, tmp_path, monkeypatch, 6)
    assert kills >= 4
    assert sets(tmp_path / "toy") == sets(masked)
    a, b = (counted_in(path) for path in (masked, tmp_path / "toy"))
    assert a.keys() == b.keys()
    assert all((a[k] == b[k]).all() for k in a)
    one, other = (Store(path / "run.zarr") for path in (masked, tmp_path / "toy"))
    trained = [r for r in read_ledger(masked / "ledger.jsonl") if r["stage"] == "train" or "/train " in r["name"]]
    assert len(trained) == 3 * 2 + 2
    for r in trained:
        again = other.arrays(r["stage"], r["task"])
        for name, value in one.arrays(r["stage"], r["task"]).items():
            np.testing.assert_array_equal(again[name], value)


def test_a_campaign_without_training_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "train:" not in line))
    with pytest.raises(InputError, match="'distill' works on the results of 'train'"):
        load_campaign(file)
