"""Distillation: members side by side, pieces side by side, then a choice; whatever fails, and in whatever order."""

import hashlib

import numpy as np
import pytest

from campaign.errors import InputError
from campaign.flow import Flow
from campaign.stages.board import FrameSet, Shard
from campaign.stages.distill import PIECE, Distill
from campaign.stages.distilling import _Rest
from campaign.tasks import Task

UQ = {"method": "uq", "members": 3, "iterations": 2, "initial": 4, "batch": 2}
VALIDATE = [{"method": "errors", "held_out": 5, "against": ["random"]}]


@pytest.fixture
def spec(campaign):
    """Return a function that builds a campaign that distills its pool."""

    def spec(select=None, **changes):
        return campaign(select=select, distill=UQ | changes, validate=VALIDATE)

    return spec


def pool(board, frames=(500, 500, 500)):
    tasks = [Task("sample", f"shard {k}", {"method": "fake", "k": k}) for k in range(len(frames))]
    board.shards = [Shard(t, n, "ready") for t, n in zip(tasks, frames, strict=True)]
    board.sampled = True
    return [t.id for t in tasks]


def names(tasks):
    return [t.name for t in tasks]


def step(stage, board, settle, state="done"):
    """Do all that is possible now."""
    tasks = list(stage.plan(board))
    for task in tasks:
        settle(stage, board, task, state)
    return tasks


def test_an_iteration_is_its_members_then_the_pieces_then_a_choice(spec, board, settle):
    a, b, c = pool(board)
    stage = Distill(spec())
    (first,) = step(stage, board, settle)
    assert (first.name, first.inputs) == ("uq/first", (a, b, c))
    assert len(board.sets["uq"].chosen) == 4  # they can be labelled at once
    members = step(stage, board, settle)
    assert names(members) == [f"uq/iteration 0/train {k}" for k in range(3)]
    assert all(t.inputs == (first.id,) for t in members)
    assert len({t.id for t in members}) == 3
    pieces = step(stage, board, settle)
    assert [t.inputs[4:] for t in pieces] == [(a, b), (c,)]  # about PIECE frames each
    assert PIECE == 1024
    assert pieces[0].inputs[:4] == (*(t.id for t in members), first.id)
    (choice,) = step(stage, board, settle)
    assert choice.name == "uq/iteration 0/choose"
    assert choice.inputs == (*(t.id for t in members), first.id, *(t.id for t in pieces))
    again = step(stage, board, settle)
    assert all(t.inputs == (first.id, choice.id) for t in again)
    assert not {t.id for t in again} & {t.id for t in members}


def test_tasks_are_those_that_were_counted(spec, board, settle):
    pool(board)
    stage = Distill(spec())
    expected = stage.total(board)
    done = 0
    while tasks := step(stage, board, settle):
        done += len(tasks)
        assert stage.total(board) == expected
    assert done == expected == 1 + 3 * (3 + 2 + 1) + 2
    assert stage.finished(board)
    assert [len(s.chosen) for s in board.sets.values()] == [8, 8, 5]
    assert board.sets["uq"].note == "all spent"


def test_nothing_happens_before_the_pool_is_complete(spec, board):
    pool(board)
    board.sampled = False
    stage = Distill(spec())
    assert list(stage.plan(board)) == []
    assert not stage.finished(board)


def test_another_target_trains_and_scores_nothing_again(spec, board, settle):
    pool(board)
    found = []
    for target in (0.001, 0.002):
        stage = Distill(spec(target_mae=target))
        board.sets = {}
        tasks = [t for _ in range(4) for t in step(stage, board, settle)]
        found.append({t.name: t.id for t in tasks})
    same = {name for name in found[0] if found[0][name] == found[1][name]}
    assert set(found[0]) - same == {"uq/iteration 0/choose"}


def test_which_forces_count_is_told_by_the_tasks_that_chose(spec, board, settle):
    pool(board)
    every, some = Distill(spec()), Distill(spec(force_share=0.25))
    plans = []
    for stage in (every, some):
        board.sets = {}
        plans.append([t for _ in range(12) for t in step(stage, board, settle)])
    assert [t.name for t in plans[0]] == [t.name for t in plans[1]]
    assert not any("atoms" in t.params or "force_share" in t.params for t in plans[0])
    shares = [t.params.get("force_share") for t in plans[1] if t.params["what"] == "choose"]
    assert shares == [0.25] * 3
    # no ensemble stood behind the first frames: all their forces count
    members = [t for t in plans[1] if t.params["what"] == "train"]
    assert [t.params.get("atoms", False) for t in members] == [False] * 3 + [True] * 6
    choices = [t.id for t in plans[1] if t.params["what"] == "choose"]
    assert board.sets["uq"].counted == choices[:2]  # the last chose nothing
    assert members[-1].inputs[1:] == tuple(choices[:2])


def test_a_member_that_fails_is_left_out_and_one_alone_is_no_ensemble(spec, board, settle):
    pool(board)
    for failing, goes_on in ((1, True), (2, False)):
        board.sets = {}
        stage = Distill(spec())
        step(stage, board, settle)
        for k, task in enumerate(list(stage.plan(board))):
            settle(stage, board, task, "quarantined" if k < failing else "done")
        after = list(stage.plan(board))
        assert bool(after) == goes_on
        if goes_on:
            assert after[0].params["members"] == 2
        else:
            assert stage.finished(board)
            assert [s.chosen for s in board.sets.values()] == [[], [], []]


def test_a_piece_that_fails_is_left_out(spec, board, settle):
    pool(board)
    stage = Distill(spec())
    step(stage, board, settle)
    members = step(stage, board, settle)
    lost, kept = stage.plan(board)
    settle(stage, board, lost, "quarantined")
    settle(stage, board, kept)
    (choice,) = stage.plan(board)
    assert choice.inputs[len(members) + 1 :] == (kept.id,)


@pytest.mark.parametrize("phase", [0, 2, 3])
def test_a_distillation_that_fails_leaves_nothing_to_train_on(spec, board, settle, phase):
    pool(board)
    stage = Distill(spec())
    for _ in range(phase):
        step(stage, board, settle)
    step(stage, board, settle, "quarantined")
    assert stage.finished(board)
    assert list(stage.plan(board)) == []
    assert not any(s.chosen for s in board.sets.values())


def test_an_empty_pool_ends_at_once(spec, board):
    board.sampled = True
    stage = Distill(spec())
    assert list(stage.plan(board)) == []
    assert stage.finished(board)


def test_a_selection_is_distilled_and_neither_labelled_nor_trained_on(campaign, drive, made_up):
    """The frames of the selection come in the order of the pool, those of other shards not at all."""
    flow, _, _ = drive(made_up(3), spec=campaign(distill=UQ, validate=VALIDATE))
    board = flow.board
    assert list(board.sets) == ["uq", "random", "held_out"]
    picked = board.source.chosen
    assert picked
    stage = flow.stages[2]
    rows = {s: r for piece in stage._pieces for s, r in zip(*piece, strict=True)}
    assert sorted(f"{s}:{i}" for s, some in rows.items() for i in some) == sorted(picked)
    order = [s.task.id for s in board.shards]
    assert list(rows) == [s for s in order if s in rows]
    labelled = {f for s in board.sets.values() for f in s.chosen}
    assert set(board.labels) == labelled
    assert set(board.models) == {"uq", "random"}
    assert flow.complete()
    assert "distill" in flow.status("x", [s.name for s in flow.stages], live=False)["stages"]


def test_a_selection_of_nothing_ends_at_once(campaign, board):
    pool(board)
    board.source = FrameSet("rnd_stream", 6, train=False, closed=True)
    stage = Distill(campaign(distill=UQ))
    assert list(stage.plan(board)) == []
    assert stage.finished(board)


def test_the_grid_is_one_task(campaign, board, settle):
    pool(board)
    stage = Distill(campaign(select=None, distill={"method": "grid", "size": 7}, validate=VALIDATE))
    tasks = [t for _ in range(3) for t in step(stage, board, settle)]
    assert names(tasks) == ["grid/grid", "random/draw", "held_out/draw"]
    assert stage.finished(board)
    assert stage.total(board) == 3


# -- in any order, killed anywhere --------------------------------------------------------------------------------


def failing(salt):
    """Return a rule by which labels and trainings fail for good, and the machine now and then."""

    def rule(task, tries):
        u = int(hashlib.blake2b(f"{salt}/{task.id}".encode(), digest_size=6).hexdigest(), 16) / 2**48
        share = {"label": 0.2, "distill": 0.1 if task.params.get("what") in ("train", "score") else 0.0}
        if u < share.get(task.stage, 0.0):
            return "failed"
        return "lost" if u > 0.9 and tries == 0 else "done"

    return rule


def outcome(flow, runner):
    board = flow.board
    return {
        "sets": {n: (s.chosen, s.refused, s.note) for n, s in board.sets.items()},
        "models": dict(board.models),
        "done": sorted(runner.order),
        "iterations": flow.stages[1].iterations,
        "status": flow.status("x", [s.name for s in flow.stages], live=False)["stages"],
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("salt", range(6))
def test_the_order_of_the_workers_and_kills_change_nothing(drive, made_up, memory, spec, salt):
    rule = failing(salt) if salt else lambda task, tries: "done"
    whole, runner, _ = drive(made_up(99, rule), spec=spec())
    assert isinstance(whole, Flow)
    assert all(s.finished(whole.board) for s in whole.stages)
    expected = outcome(whole, runner)
    assert outcome(*drive(made_up(7, rule), spec=spec())[:2]) == expected
    for stop in range(0, len(runner.order), 7):
        kept = memory()
        before = made_up(stop, rule, stop)
        with pytest.raises(KeyboardInterrupt):
            drive(before, kept, spec())
        flow, after, _ = drive(made_up(stop + 1, rule), kept, spec())
        assert not set(before.order) & set(after.order)
        after.order += [t for t in kept.history().done if t not in after.order]
        assert outcome(flow, after) == expected


# -- the frames that were not chosen ------------------------------------------------------------------------------


def scored(n=500, seed=0):
    rng = np.random.default_rng(seed)
    std = rng.uniform(0.001, 0.01, n)
    return {
        "score": (std * 3).astype(np.float32),
        "std": std.astype(np.float32),
        "error": (std * rng.normal(size=n)).astype(np.float32),
        "task": np.repeat(np.array([7, 8], dtype=np.uint64), n // 2),
        "index": np.tile(np.arange(n // 2, dtype=np.int32), 2),
    }


def test_the_rest_is_judged_without_what_was_chosen():
    data = scored()
    rest = _Rest(10, seed=1)
    rest.add(data, {8: np.arange(250)})
    found = rest.figures(250)
    assert (found["pool"], found["rest"], found["share"]) == (500, 250, 0.5)
    assert found["mae"] == pytest.approx(np.abs(data["error"][:250]).mean(), rel=1e-6)
    assert found["bias"] == pytest.approx(data["error"][:250].mean(), rel=1e-5)
    worst = np.argsort(-data["score"][:250])[:10]
    assert [(int(t), int(i)) for t, i in rest.ids] == [(7, int(k)) for k in worst]
    assert found["correlation"]["std"] > 0.2
    assert found["calibration"]["factor"] == pytest.approx(1.0, abs=0.2)


def test_pieces_say_what_the_whole_says(monkeypatch):
    monkeypatch.setattr("campaign.stages.distilling.SAMPLE", 100)  # a pool larger than what is kept of it
    data = scored()
    whole, pieces = _Rest(20, 1), _Rest(20, 1)
    whole.add(data, {7: np.array([3, 5])})
    for k in range(0, 500, 50):
        pieces.add({name: v[k : k + 50] for name, v in data.items()}, {7: np.array([3, 5])})
    assert pieces.ids == whole.ids
    a, b = whole.figures(2), pieces.figures(2)
    assert a.pop("mae") == pytest.approx(b.pop("mae"))
    assert a.pop("rmse") == pytest.approx(b.pop("rmse"))
    assert a.pop("bias") == pytest.approx(b.pop("bias"))
    assert a == b
    assert sum(row["count"] for row in a["calibration"]["bins"]) == 100


@pytest.mark.parametrize("add", ["weighted", "random"])
def test_a_draw_depends_neither_on_the_pieces_nor_on_what_was_drawn_before(add):
    data = scored()
    found = []
    for iteration, size in ((0, 500), (0, 50), (1, 500)):
        rest = _Rest(30, 1, add, iteration)
        for k in range(0, 500, size):
            rest.add({name: v[k : k + size] for name, v in data.items()}, {7: np.array([3, 5])})
        found.append({(int(t), int(i)) for t, i in rest.ids})
    assert found[0] == found[1]
    assert len(found[0]) == 30
    assert not found[0] & {(7, 3), (7, 5)}
    assert (found[0] == found[2]) == (add == "random")  # random frames are one shuffle of the pool, taken in turn


def test_a_weighted_draw_prefers_the_uncertain_and_takes_others_too():
    data = scored()
    rest = _Rest(100, 1, "weighted")
    rest.add(data, {})
    score = {(int(t), int(i)): s for t, i, s in zip(data["task"], data["index"], data["score"], strict=True)}
    mine = np.array([score[int(t), int(i)] for t, i in rest.ids])
    assert np.median(data["score"]) < np.median(mine)
    assert mine.min() < np.median(data["score"])


def test_what_is_not_finite_is_never_left_out():
    data = scored()
    data["score"][4], data["error"][4] = np.nan, np.nan
    rest = _Rest(3, seed=1)
    rest.add(data, {})
    assert rest.figures(0)["mae"] is None  # so no target is met
    assert (int(rest.ids[0][0]), int(rest.ids[0][1])) == (7, 4)


# -- the campaign file --------------------------------------------------------------------------------------------

TEXT = """campaign: d
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3}}
sample: [{sample}]
distill: {{method: {distill}}}
label: {{{label}}}
{train}
"""


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        ({"distill": "uq, members: 1"}, 5, "distill.members"),
        ({"distill": "uq, train_fraction: 0"}, 5, "distill.train_fraction"),
        ({"distill": "uq, initial: 1"}, 5, "distill.initial"),
        ({"distill": "grid"}, 5, "distill.size"),
        ({"distill": "rnd"}, 5, "write one of uq, grid"),
        ({"label": "engine: ase, calculator: lj"}, 6, "distillation works with the energies and forces"),
        ({"train": ""}, 5, "'distill' works on the results of 'train'"),
    ],
)
def test_a_wrong_section_is_said_with_its_line(tmp_path, change, line, says):
    from campaign.config import load_campaign

    good = {
        "sample": "{method: fake, frames: 20}",
        "distill": "uq",
        "label": "engine: fake",
        "train": "train: {model: fake}",
    }
    file = tmp_path / "d.yaml"
    file.write_text(TEXT.format(**good))
    assert load_campaign(file).spec.stages == ("sample", "distill", "label", "train")
    file.write_text(TEXT.format(**(good | change)))
    with pytest.raises(InputError) as error:
        load_campaign(file)
    assert [p for p in error.value.problems if f":{line}: " in p and says in p], error.value.problems


def test_frames_of_another_potential_are_refused(tmp_path):
    from campaign.config import load_campaign

    for name in ("a", "b"):
        (tmp_path / f"{name}.lmp").write_text("# elements: Ar\npair_style lj/cut 8.5\npair_coeff 1 1 0.0104 3.4\n")
    text = TEXT.format(
        sample="{method: nvt, temperature: 50, steps: 1000}",
        distill="uq",
        label="engine: lammps, potential: {lammps: OWN}",
        train="train: {model: schnet}",
    ).replace("a: 5.3}", "a: 5.3}\n  potential: {lammps: a.lmp}")
    file = tmp_path / "d.yaml"
    file.write_text(text.replace("OWN", "a.lmp"))
    load_campaign(file)
    file.write_text(text.replace("OWN", "b.lmp"))
    with pytest.raises(InputError, match=r"label.potential.lammps: distillation works with .* got 'b.lmp'"):
        load_campaign(file)
