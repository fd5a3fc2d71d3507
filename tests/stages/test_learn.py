"""Active learning: rounds of dynamics, what is added after each, and the set that grows."""

import hashlib
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest

from campaign.errors import EngineError
from campaign.flow import TooManyFailures
from campaign.frames import Frames
from campaign.science.refusals import Limits, beyond
from campaign.science.rnd import RNDStream
from campaign.science.selection import Batch
from campaign.stages import learning
from campaign.stages.learn import Learn
from campaign.stages.sample_md import BEFORE, driver
from campaign.stages.selecting import describe
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record

pytestmark = pytest.mark.usefixtures("quick")

LEARN = {"rounds": 3, "size": 2, "md": {"temperature": 100, "time": 1, "every": 50, "walkers": 2, "segment": 6}}
LIMITS = {"min_distance": 0.5, "max_force": 30.0, "energy": None, "volume": None}
REPRESENTATION = {"model": "schnet", "features": 16, "interactions": 2, "cutoff": 5.0}


def stage_of(flow):
    return next(s for s in flow.stages if isinstance(s, Learn))


@pytest.fixture
def found_by(made_up, monkeypatch):
    """Return a function that has the made-up runner find something else; None leaves it as it is."""

    def found_by(rule):
        names = made_up.wait.__globals__
        usual = names["result_of"]
        monkeypatch.setitem(names, "result_of", lambda task: rule(task) or usual(task))

    return found_by


def failing(salt):
    """Return a rule by which tasks fail for good, at first, or by the machine's fault."""

    def rule(task, tries):
        u = int(hashlib.blake2b(f"{salt}/{task.id}".encode(), digest_size=6).hexdigest(), 16) / 2**48
        return "failed" if u < 0.08 else "lost" if u > 0.93 and tries == 0 else "done"

    return rule


@pytest.mark.parametrize("salt", range(8))
def test_rounds_follow_each_other_in_any_order_of_the_workers(drive, campaign, made_up, salt):
    spec = campaign(learn=LEARN, seed=salt)
    found = []
    for order in range(4):
        flow, runner, _ = drive(made_up(order), spec=spec)
        stage, board = stage_of(flow), flow.board
        assert flow.complete()
        assert stage.finished(board)
        assert not board.learning
        assert flow.counts["learn"].done == stage.total(board)
        found.append((stage.rounds, stage.note, {n: s.chosen for n, s in board.sets.items()}, dict(board.models)))
        if "survived" in stage.note:
            assert stage.rounds[-1]["failed"] == 0
        else:
            assert len(stage.rounds) == 3 or stage.rounds[-1]["added"] == 0
        grown = [board.sets[r["set"]].chosen for r in stage.rounds]
        for before, after, r in zip(grown, grown[1:], stage.rounds, strict=False):
            assert after[: len(before)] == before
            assert len(after) == len(before) + r["added"]
        assert board.training() is board.sets[stage.rounds[-1]["set"]]
        assert all(board.labels[f] for f in board.training().chosen)
        tests = [task for _, task in next(s for s in flow.stages if s.name == "validate").results()]
        last = max(runner.order.index(task) for task in board.models[board.training().name])
        assert len(tests) == 6
        assert all(runner.order.index(task) > last for task in tests)  # the tests came last, of the final models
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("salt", range(4))
def test_a_driver_that_is_killed_goes_on_in_the_middle_of_a_round(drive, campaign, made_up, memory, salt):
    spec, rule = campaign(learn=LEARN, seed=salt), failing(salt)
    whole, first, _ = drive(made_up(1, rule), spec=spec)
    for stop in range(20, len(first.order), 9):
        store, done = memory(), []
        killed = made_up(2, rule, stop)
        with suppress(KeyboardInterrupt, TooManyFailures):
            drive(killed, store, spec)
        rest = made_up(3, rule)
        flow, _, _ = drive(rest, store, spec)
        done = [*killed.order, *rest.order]
        assert sorted(done) == sorted(first.order)
        assert len(set(done)) == len(done)
        assert stage_of(flow).rounds == stage_of(whole).rounds


def test_a_walker_does_not_wait_for_the_others_before_its_round_ends(drive, campaign, made_up, board, settle):
    spec = campaign(learn=LEARN)
    flow, _, _ = drive(made_up(), spec=spec)
    stage, first = Learn(spec), next(s for s in flow.board.sets.values() if s.train)
    board.sets, board.models, board.trained = {first.name: first}, flow.board.models, {first.name}
    one, other = stage.plan(board)
    settle(stage, board, one, result={"frames": 6})
    (again,) = stage.plan(board)
    assert again.inputs == (one.id,)
    assert list(stage.plan(board)) == []
    assert stage.total(board) == 5  # two segments of each, and the choice
    settle(stage, board, other, result={"frames": 2, "ended": {"1": "It exploded."}})
    assert list(stage.plan(board)) == []
    settle(stage, board, again, result={"frames": 4})
    (choice,) = stage.plan(board)
    assert stage.total(board) == 4
    assert choice.params["method"] == "novel"
    assert [len(walker[1]) for walker in choice.params["walkers"]] == [2, 1]


def test_walkers_of_a_round_are_driven_by_the_members_in_turn_and_go_on_where_they_ended(drive, campaign, made_up):
    class Kept(made_up):
        tasks: ClassVar[list] = []

        def submit(self, task, context):
            self.tasks.append(task)
            super().submit(task, context)

    flow, _, _ = drive(Kept(), spec=campaign(learn=LEARN))
    board, rounds = flow.board, stage_of(flow).rounds
    moved = [t for t in Kept.tasks if "trained" in t.params]
    first = [t for t in moved if t.name.startswith("learn 1/") and t.params["segment"] == 0]
    assert [t.params["trained"] for t in first] == board.models[rounds[0]["set"]]
    assert [t.params["start"] for t in first] == board.sets[rounds[0]["set"]].chosen[:2]
    assert first[0].params["walker"] != first[1].params["walker"]
    second = [t for t in moved if t.name.startswith("learn 2/") and t.params["segment"] == 0]
    assert [t.params["start"] for t in second] == rounds[0]["ends"]
    assert [t.params["trained"] for t in second] == board.models[rounds[1]["set"]]
    assert all(t.stage == "sample" for t in moved)  # so its frames are found like all others
    assert flow.frames == 50  # and are not counted as the pool's


def test_what_a_volume_may_be_does_not_grow_from_round_to_round(drive, campaign, made_up):
    class Kept(made_up):
        tasks: ClassVar[list] = []

        def submit(self, task, context):
            self.tasks.append(task)
            super().submit(task, context)

    flow, _, _ = drive(Kept(), spec=campaign(learn=LEARN))
    first = flow.board.sets[stage_of(flow).rounds[0]["set"]].chosen[:2]
    moved = [t for t in Kept.tasks if "trained" in t.params]
    assert any(t.params["start"] not in first for t in moved)
    for task in moved:
        origin = first[task.params["walker"][1]]
        assert task.params.get("volume_of", task.params["start"]) == origin
        assert ("volume_of" in task.params) == (task.params["start"] != origin)


def test_the_volume_and_the_heights_of_a_walker_are_compared_with_those_of_its_first_round(tmp_path):
    from ase.build import bulk

    store = Store(tmp_path / "run.zarr")
    task = Task("sample", "pool", {})
    atoms = bulk("Ar", "fcc", a=5.0, cubic=True)
    pool = Frames.build(atoms.numbers, atoms.positions[None], atoms.cell[:][None], task=task.number)
    store.publish(new_record(task, 0), dict(pool.arrays()))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/random-0-abc.pt").touch()
    guards = {"closest": 0.6, "force": 30.0, "volume": 1.5, "temperature": 2.0, "energy": 0.01}
    params = {"guards": guards, "temperature": [100.0, 100.0], "ensemble": "npt", "trained": "abc"}
    grown = bulk("Ar", "fcc", a=5.7, cubic=True)  # where a round ended, inside the guard of its own start
    found = {
        name: driver(Task("sample", name, params | more), Context(tmp_path), store, grown)["limits"]["volume"]
        for name, more in {"first": {}, "later": {"volume_of": f"{task.id}:0"}}.items()
    }
    assert found["first"] == pytest.approx(1.5 * 5.7**3)
    assert found["later"] == pytest.approx(1.5 * 5.0**3)


def test_what_was_learned_counts_whatever_becomes_of_the_last_choice(drive, campaign, made_up):
    def rule(task, tries):
        return "failed" if task.name == "learn 2/choose" else "done"

    for seed in range(4):  # of which some end in round 1
        flow, _, _ = drive(made_up(1, rule), spec=campaign(learn=LEARN | {"rounds": 4}, seed=seed))
        stage, board = stage_of(flow), flow.board
        if "could not be looked at" not in stage.note:
            continue
        assert board.learned == "learn-1"
        assert board.training() is board.sets["learn-1"]
        assert stage.summary(board)["judged"] == "learn-1"
        errors = next(t for t in next(s for s in flow.stages if s.name == "validate").results() if t[0] == "errors")
        assert errors[1] in flow._history.done
        return
    raise AssertionError("no campaign got to round 2")


def test_models_that_could_not_be_trained_are_not_judged(drive, campaign, made_up):
    def rule(task, tries):
        return "failed" if task.name.startswith("learn-1/") else "done"

    flow, _, _ = drive(made_up(1, rule), spec=campaign(learn=LEARN))
    assert "no model to learn with" in stage_of(flow).note
    assert flow.board.models.get("learn-1", []) == []
    assert flow.board.learned == stage_of(flow).rounds[0]["set"]


@pytest.mark.parametrize("held", [True, False])
def test_learning_that_no_model_survived_leaves_something_missing(drive, campaign, made_up, found_by, held):
    cause = {} if held else {"ended": {"0": "It exploded."}}
    found_by(lambda task: {"frames": 3, **cause} if "trained" in task.params else None)
    flow, _, _ = drive(made_up(), spec=campaign(learn=LEARN))
    stage, status = stage_of(flow), flow.status("c", campaign(learn=LEARN).stages, live=False)
    assert stage.held == held == stage.summary(flow.board)["held"] == ("survived" in stage.note)
    assert status["stages"]["learn"]["state"] == ("done" if held else "partial")
    assert status["state"] == ("done" if held else "partial")


def test_a_round_tells_the_frames_with_a_label_and_the_step_of_each_failure(drive, campaign, made_up):
    seen = {}

    def rule(task, tries):  # every second label fails
        return "failed" if task.stage == "label" and seen.setdefault(task.id, len(seen)) % 2 else "done"

    flow, _, _ = drive(made_up(0, rule), spec=campaign(learn=LEARN))
    rounds = stage_of(flow).summary(flow.board)["rounds"]
    assert [r["frames"] for r in rounds] == [len(flow.board.labelled(r["set"])) for r in rounds]
    assert any(r["frames"] < len(flow.board.sets[r["set"]].chosen) for r in rounds)
    for r, told in zip(stage_of(flow).rounds, rounds, strict=True):
        for survived, cause in zip(told["survived"], r["causes"], strict=True):
            steps = round(survived / 0.002)
            assert steps * 0.002 == pytest.approx(survived)
            assert steps % 50 == (7 if cause else 0)  # not that of the last kept frame, of which there is one in 50


def test_a_label_out_of_the_bounds_is_not_trained_on(drive, campaign, made_up, found_by):
    wild = {"energy": -4.0, "atoms": 4, "force": 101.0, "frame": ""}
    found_by(lambda task: wild if task.stage == "label" else None)
    flow, _, _ = drive(made_up(), spec=campaign(learn=LEARN))
    board, rounds = flow.board, stage_of(flow).summary(flow.board)["rounds"]
    first, second = rounds[:2]
    assert first["added"] > 0
    assert first["refused"] == first["added"]
    assert {r["reason"] for r in first["refusals"]} == {"its label has a force of 101 eV/Å, over 100"}
    assert second["frames"] == first["frames"]  # those of the selection are not judged by what a model learns
    assert board.models["learn-1"] == board.models[first["set"]]
    learned = set(board.sets["learn-1"].chosen) - set(board.sets[first["set"]].chosen)
    assert {board.labels[f] for f in learned} == {None}
    assert flow.status("c", campaign(learn=LEARN).stages, live=False)["refused"] >= len(learned)


@pytest.mark.parametrize(
    ("energy", "force", "said"),
    [(-3.5, 29.0, ""), (-3.5, 31.0, "a force of 31"), (-2.0, 1.0, "an energy of -2 eV/atom"), (-3.5, np.nan, "force")],
)
def test_the_bounds_of_a_label(energy, force, said):
    found = beyond(Limits(0.5, 30.0, (-4.0, -3.0)), energy, force)
    assert said in found
    assert bool(found) == bool(said)
    assert beyond(Limits(), energy, force) == ""


@pytest.fixture
def argon():
    """Return a function that makes frames of an argon crystal, moved by some Å, seeded."""

    def argon(n, amplitude, seed, cells=1, **arrays):
        from ase.build import bulk

        atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (cells, 1, 1)
        moved = np.random.default_rng(seed).normal(scale=amplitude, size=(n, len(atoms), 3))
        zeros = {"energy": np.zeros(n), "forces": np.zeros((n, len(atoms), 3)), "stress": np.zeros((n, 3, 3))}
        return Frames.build(atoms.numbers, atoms.positions + moved, atoms.cell[:], **zeros | arrays)

    return argon


@pytest.fixture
def round_of(tmp_path, argon):
    """Return a function that publishes a pool and a round of two walkers, of which one failed, and chooses."""
    store = Store(tmp_path / "run.zarr")
    store.path.mkdir(exist_ok=True)

    def publish(name, frames, **more):
        task = Task("sample", name, {"method": "fake", "name": name})
        frames = frames.with_(task=np.full(len(frames), task.number, dtype="uint64"))
        record = new_record(task, 0)
        record["result"] = {"frames": len(frames)}
        store.publish(record, {**dict(frames.arrays()), **more})
        return task.id

    def round_of(cells=1, calm_ones=1, **changes):
        pool = publish("pool", argon(12, 0.05, 0))
        start = f"{pool}:1" if cells == 1 else publish("larger", argon(1, 0.05, 0, cells)) + ":0"
        calm = publish("calm", argon(10, 0.05, 1, step=np.arange(10)))
        wild = argon(8, 0.05, 2, cells, walker=1, step=np.arange(8))
        last = argon(3, 0.5, 3, cells)
        positions = last.positions.copy()
        positions[2, 1] = positions[2, 0] + 0.1  # the step that failed: two atoms on each other
        before = {"positions": positions, "cell": last.cell, "energy": np.zeros(3), "forces": last.forces}
        before |= {"stress": last.stress, "step": np.array([8, 9, 10])}
        failed = publish("wild", wild, **{f"{BEFORE}1.{name}": value for name, value in before.items()})
        walkers = [[f"{pool}:0", [calm], 10, ""], [start, [failed], 8, "First sign of failure."]]
        walkers += [[f"{pool}:0", [calm], 10, ""]] * (calm_ones - 1)
        params = {
            "method": "novel",
            "round": 1,
            "size": 2,
            "novelty": "rnd",
            "limits": LIMITS,
            "models": [],
            "walkers": walkers,
            "time": 0.1,
            "last": False,
            "seed": 5,
            "trained_on": [f"{pool}:{k}" for k in range(12)],
            "species": ["Ar"],
            "structure": None,
            "representation": REPRESENTATION,
        }
        task = Task("sample", "learn 1/choose", params | changes)
        return task, learning.choose(task, Context(tmp_path), store), (calm, failed)

    return round_of


def test_the_steps_before_a_failure_are_the_novel_ones_and_the_failed_one_is_refused(round_of):
    task, outcome, (calm, failed) = round_of()
    found = outcome.summary
    assert [s["step"] for s in found["source"]] in ([8, 9], [9, 8])
    assert {s["task"] for s in found["source"]} == {failed}
    (refused,) = found["refused"]
    assert refused["frame"] == "walker 1, step 10"
    assert "covalent radii" in refused["reason"]
    assert found["ends"] == [f"{calm}:9", f"{failed}:{7 - learning.BACK}"]
    assert found["figures"]["added"] == 2
    assert outcome.arrays["task"].tolist() == [task.number] * 2
    assert outcome.arrays["index"].tolist() == [0, 1]
    assert outcome.arrays["step"].tolist() == [s["step"] for s in found["source"]]
    assert np.isnan(outcome.arrays["energy"]).all()  # what the model said is no label


@pytest.mark.parametrize(
    ("novelty", "more"),
    [
        ("rnd", {}),
        pytest.param(
            "rematch",
            {"environments": {"cutoff": 5.0, "n_max": 3, "l_max": 2, "sigma": 0.5}, "gamma": 0.1},
            marks=pytest.mark.requires("dscribe"),
        ),
    ],
)
def test_a_walker_with_more_atoms_than_most_is_learned_from(round_of, novelty, more):
    _, outcome, (_, failed) = round_of(cells=2, calm_ones=4, novelty=novelty, **more)
    assert {(s["task"], s["step"]) for s in outcome.summary["source"]} == {(failed, 8), (failed, 9)}
    assert outcome.arrays["numbers"].shape == (2, 8)
    assert [r["frame"] for r in outcome.summary["refused"]] == ["walker 1, step 10"]


def test_nothing_is_added_where_every_walker_survived_or_the_rounds_are_spent(round_of):
    _, last, _ = round_of(last=True)
    assert last.summary["frames"] == 0
    assert last.summary["figures"]["failed"] == 1
    task, _, (calm, _) = round_of()
    walkers = [[task.params["trained_on"][0], [calm], 10, ""]]
    _, calm_round, _ = round_of(walkers=walkers)
    assert calm_round.summary["frames"] == 0
    assert calm_round.summary["figures"]["failed"] == 0
    assert calm_round.summary["figures"]["novelty"][0] > 0


def selection(folder, task):
    """Publish what a selection of 6 of the 12 frames of the pool has learned; return its last task."""
    store = Store(folder / "run.zarr")
    (pool,) = store.collect("sample", task.params["trained_on"])
    selector = RNDStream(6, task.params["seed"])
    selector.offer(Batch(pool.task, pool.index, descriptors=describe(task, folder, pool)))
    selector.finish()
    last = Task("select", "finish", {"size": 6})
    store.publish(new_record(last, 0), {}, selector.state())
    return last.id


def test_the_stream_of_the_selection_goes_on_from_round_to_round(tmp_path, round_of):
    stream = selection(tmp_path, round_of()[0])
    task, first, (_, failed) = round_of(novelty="rnd_stream", stream=stream, candidates=8.0)
    assert {(s["task"], s["step"]) for s in first.summary["source"]} == {(failed, 8), (failed, 9)}
    assert "unlike all that was chosen before" in first.summary["why"][0]
    assert len(first.checkpoint["final"]) == 6 + 2
    store = Store(tmp_path / "run.zarr")
    store.publish(new_record(task, 0), first.arrays, first.checkpoint)
    _, second, _ = round_of(round=2, novelty="rnd_stream", stream=task.id, candidates=8.0)
    assert len(second.checkpoint["final"]) == 6 + 2 + 2
    largest = [outcome.summary["figures"]["novelty"][0] for outcome in (first, second)]
    assert largest[1] < 0.5 * largest[0]  # the same frames once more: they are known by now
    _, calm, _ = round_of(novelty="rnd_stream", stream=stream, candidates=8.0, last=True)
    assert calm.checkpoint is None


@pytest.mark.requires("dscribe")
def test_frames_far_from_the_training_set_by_rematch_are_added(round_of):
    environments = {"cutoff": 5.0, "n_max": 3, "l_max": 2, "sigma": 0.5}
    _, outcome, (_, failed) = round_of(novelty="rematch", environments=environments, gamma=0.1)
    assert {(s["task"], s["step"]) for s in outcome.summary["source"]} == {(failed, 8), (failed, 9)}
    largest, median = outcome.summary["figures"]["novelty"]
    assert 0 < median < 0.5 * largest < 0.5 * np.sqrt(2)
    assert "by REMatch" in outcome.summary["why"][0]


@pytest.mark.parametrize(
    "novelty", ["rnd", "rnd_stream", pytest.param("rematch", marks=pytest.mark.requires("dscribe"))]
)
def test_a_frame_that_cannot_be_described_is_passed_over(tmp_path, round_of, monkeypatch, novelty):
    more = {"environments": {"cutoff": 5.0, "n_max": 3, "l_max": 2, "sigma": 0.5}, "gamma": 0.1, "candidates": 8.0}
    stream = selection(tmp_path, round_of()[0])

    def lame(name):
        whole = getattr(learning, name)

        def described(task, folder, frames):
            found = whole(task, folder, frames)
            found[frames.step == 9] = np.nan
            return found

        monkeypatch.setattr(learning, name, described)

    lame("describe")
    lame("environments")
    _, outcome, _ = round_of(novelty=novelty, stream=stream, size=30, **more)
    assert len(outcome.summary["source"]) == 18  # of 20 sound ones: the walker that held had a step 9 too
    assert all(s["step"] != 9 for s in outcome.summary["source"])


@pytest.mark.parametrize("salt", [0, 1])
def test_each_round_goes_on_from_what_the_stream_learned_last(drive, campaign, made_up, salt):
    spec = campaign(learn=LEARN | {"novelty": "rnd_stream"}, seed=salt)
    seen = []

    class Kept(made_up):
        def submit(self, task, context):
            seen.append(task)
            super().submit(task, context)

    flow, _, _ = drive(Kept(), spec=spec)
    chosen = [t for t in seen if t.params.get("method") == "novel"]
    assert len(chosen) >= 2
    finish = next(t for t in seen if t.name == "rnd_stream/finish")
    assert [t.params["stream"] for t in chosen] == [finish.id, *(t.id for t in chosen[:-1])]
    assert flow.board.stream == finish.id


class Member:
    """A model that adds its own noise to the energy of one atom of every frame that is far from the crystal."""

    def __init__(self, seed):
        self.seed = seed

    def atomic_energies(self, frames):
        rng = np.random.default_rng(self.seed)
        energies = np.zeros(frames.numbers.shape)
        energies[:, 1] = rng.normal(size=len(frames)) * np.abs(frames.positions - frames.positions[0]).max(axis=(1, 2))
        return energies


def test_uncertain_frames_are_those_where_the_members_disagree(argon):
    frames = Frames.concat([argon(6, 0.01, 0), argon(3, 0.6, 1)])
    candidates = learning._Candidates([frames], Limits(0.1))
    novelty, chosen = learning._uncertain([Member(k) for k in range(4)], candidates, 2)
    assert novelty.shape == (9,)
    assert set(chosen) <= {6, 7, 8}
    with pytest.raises(EngineError, match="one member is no ensemble"):
        learning._uncertain([Member(0)], candidates, 2)
