"""An ensemble a training set; identical sets share their models, empty ones are passed over."""

import pytest

from campaign.stages.board import FrameSet
from campaign.stages.train import Train

A, B, C = (f"{k:016x}:{k}" for k in (1, 2, 3))


def sets(board, main, random, labels):
    board.sets = {
        "main": FrameSet("main", 2, True, main, closed=True),
        "random": FrameSet("random", 2, True, random, closed=True),
        "held_out": FrameSet("held_out", 2, False, [C], closed=True),
    }
    board.labels = labels


def test_members_train_on_the_labels_of_their_set_in_the_order_of_choice(campaign, board, settle):
    sets(board, [B, A], [A], {A: "la", B: "lb"})
    stage = Train(campaign())
    tasks = list(stage.plan(board))
    assert [t.name for t in tasks] == ["main/0", "main/1", "random/0", "random/1"]
    assert [t.inputs for t in tasks] == [("lb", "la")] * 2 + [("la",)] * 2
    assert len({t.id for t in tasks}) == 4
    assert list(stage.plan(board)) == []
    settle(stage, board, tasks[1])
    assert "main" not in board.trained
    settle(stage, board, tasks[0])
    assert board.trained == {"main"}
    assert board.models["main"] == [tasks[0].id, tasks[1].id]  # members in order, whichever ended first
    assert not stage.finished(board)


@pytest.mark.parametrize("late", [False, True])
def test_identical_sets_share_their_models(campaign, board, settle, late):
    sets(board, [A, B], [A, B], {A: "la", B: "lb"})
    stage = Train(campaign())
    board.sets["random"].closed = not late
    tasks = list(stage.plan(board))
    assert [t.name for t in tasks] == ["main/0", "main/1"]
    settle(stage, board, tasks[0])
    if late:  # the second set is complete when one model is done and one is not
        board.sets["random"].closed = True
        assert list(stage.plan(board)) == []
    settle(stage, board, tasks[1])
    assert board.models == {"main": [t.id for t in tasks], "random": [t.id for t in tasks]}
    assert board.trained == {"main", "random"}
    assert stage.finished(board)
    assert stage.total(board) == 2


def test_a_set_without_labels_is_passed_over(campaign, board, settle):
    sets(board, [A], [B], {A: None, B: "lb"})
    stage = Train(campaign())
    tasks = list(stage.plan(board))
    assert [t.name for t in tasks] == ["random/0", "random/1"]
    assert board.trained == {"main"}
    assert stage.total(board) == 2
    for task in tasks:
        settle(stage, board, task)
    assert stage.finished(board)
    assert "main" not in board.models


def test_a_quarantined_label_is_left_out_and_a_failed_member_does_not_stop_the_set(campaign, board, settle):
    sets(board, [A, B], [], {A: None, B: "lb"})
    stage = Train(campaign())
    first, second = stage.plan(board)
    assert first.inputs == ("lb",)
    settle(stage, board, first, "quarantined")
    settle(stage, board, second)
    assert board.models["main"] == [second.id]
    assert stage.finished(board)


def test_nothing_is_trained_before_every_label_is_settled(campaign, board):
    sets(board, [A, B], [A], {A: "la"})
    stage = Train(campaign())
    assert [t.name for t in stage.plan(board)] == ["random/0", "random/1"]
    assert stage.total(board) == 4
    board.labels[B] = None
    assert [t.name for t in stage.plan(board)] == []  # main is now what random is: they share
    assert stage.total(board) == 2


def test_what_decided_which_forces_count_is_read_by_the_members_of_that_set_alone(campaign, board, settle):
    sets(board, [A, B], [A, B], {A: "la", B: "lb"})
    board.sets["main"].counted = ["c0", "c1"]
    tasks = list(Train(campaign()).plan(board))
    assert [t.name for t in tasks] == ["main/0", "main/1", "random/0", "random/1"]  # not the same models
    assert tasks[0].inputs == ("la", "lb", "c0", "c1")
    assert tasks[0].params["choices"] == 2
    assert tasks[2].inputs == ("la", "lb")
    assert "choices" not in tasks[2].params


def test_what_a_model_is_trained_on_does_not_make_it_another_model(campaign, board):
    tasks = {}
    for device in ("cpu", "cuda"):
        sets(board, [A], [], {A: "la"})
        (tasks[device],) = Train(campaign(train={"model": "painn", "device": device})).plan(board)
        board.trained.clear()
    assert tasks["cpu"].id == tasks["cuda"].id
    assert tasks["cuda"].extra == {"device": "cuda"}
    assert {k: v for k, v in tasks["cpu"].params.items() if k != "seed"} == {
        **{"model": "painn", "features": 64, "interactions": 3, "cutoff": 6.0, "epochs": 200, "patience": None},
        **{"batch": 1, "rate": 1e-3, "wall": True},
        "loss": {"kind": "mse", "delta": 0.1, "energy": 0.01, "forces": 0.95, "stress": 0.04},
    }


LEARN = {"md": {"temperature": 100, "time": 1}}


def grown(board, main, fresh, labels):
    """Put a set and one that grew from it on the board, all labelled but for those without a label."""
    board.sets = {
        "main": FrameSet("main", 2, True, main, closed=True),
        "learn-1": FrameSet("learn-1", 3, True, [*main, *fresh], closed=True, grown="main"),
    }
    board.labels = labels


def first_set(stage, board, settle, states=("done", "done")):
    """Train the first of two sets; return its tasks."""
    last = board.sets.pop("learn-1")
    tasks = list(stage.plan(board))
    for task, state in zip(tasks, states, strict=True):
        settle(stage, board, task, state)
    board.sets["learn-1"] = last
    return tasks


def test_members_of_a_set_that_grew_go_on_from_the_same_members_of_the_set_before(campaign, board, settle):
    grown(board, [A], [B, C], {A: "la", B: "lb", C: "lc"})
    board.sets["main"].counted = board.sets["learn-1"].counted = ["c0"]
    stage = Train(campaign(train={"model": "painn", "members": 2, "epochs": 15}, learn=LEARN))
    before = first_set(stage, board, settle)
    tasks = list(stage.plan(board))
    assert [t.name for t in tasks] == ["learn-1/0", "learn-1/1"]
    assert [t.inputs for t in tasks] == [("la", "lb", "lc", "c0", t.id) for t in before]
    assert {(t.params["start"], t.params["fresh"], t.params["choices"], t.params["epochs"]) for t in tasks} == {
        (1, 2, 1, 8)
    }
    assert before[0].params["epochs"] == 15


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        ({}, {"epochs": 100, "rate": 1e-4}),
        ({"epochs": 7, "rate": 2e-4}, {"epochs": 7, "rate": 2e-4}),
        ({"steps": 99}, {"epochs": 100, "steps": 99, "rate": 1e-4}),
        ({"warm_start": False}, {"epochs": 200, "rate": 1e-3}),
    ],
)
def test_how_long_they_go_on(campaign, board, settle, learn, expected):
    grown(board, [A], [B], {A: "la", B: "lb"})
    stage = Train(campaign(train={"model": "painn", "members": 2}, learn=LEARN | learn))
    first_set(stage, board, settle)
    task = next(stage.plan(board))
    assert {k: v for k, v in task.params.items() if k in ("epochs", "steps", "rate")} == expected
    assert ("start" in task.params) == ("warm_start" not in learn)


def test_a_member_whose_training_failed_is_trained_anew(campaign, board, settle):
    grown(board, [A], [B], {A: "la", B: "lb"})
    stage = Train(campaign(train=together(), learn=LEARN))
    last = board.sets.pop("learn-1")
    (whole,) = stage.plan(board)
    settle(stage, board, whole, "quarantined")
    before = list(stage.plan(board))
    for task, state in zip(before, ("done", "quarantined", "done"), strict=True):
        settle(stage, board, task, state)
    board.sets["learn-1"] = last
    tasks = list(stage.plan(board))  # not together: they do not begin alike
    assert [t.inputs for t in tasks] == [("la", "lb", before[0].id), ("la", "lb"), ("la", "lb", before[2].id)]
    assert [t.params["epochs"] for t in tasks] == [100, 200, 100]


def test_members_that_go_on_together_have_all_that_they_go_on_from(campaign, board, settle):
    grown(board, [A], [B], {A: "la", B: "lb"})
    stage = Train(campaign(train=together(), learn=LEARN))
    last = board.sets.pop("learn-1")
    for _ in range(2):
        before = list(stage.plan(board))
        for task in before:
            settle(stage, board, task)
    board.sets["learn-1"] = last
    (whole,) = stage.plan(board)
    assert whole.inputs == ("la", "lb", *(t.id for t in before))
    assert (whole.params["start"], whole.params["fresh"]) == (3, 1)
    settle(stage, board, whole)
    members = list(stage.plan(board))
    assert [t.inputs for t in members] == [("la", "lb", t.id) for t in before]
    for task in members:
        settle(stage, board, task)
    assert board.models["learn-1"] == [t.id for t in members]


def test_where_no_label_of_a_round_came_the_models_are_those_of_the_round_before(campaign, board, settle):
    grown(board, [A], [B], {A: "la", B: None})
    stage = Train(campaign(learn=LEARN))
    before = first_set(stage, board, settle)
    assert list(stage.plan(board)) == []
    assert board.models["learn-1"] == [t.id for t in before]
    assert board.trained == {"main", "learn-1"}


def together(**keys):
    return {"model": "schnet", "members": 3, "together": True, **keys}


def test_members_trained_together_follow_as_the_tasks_that_they_are_alone(campaign, board, settle):
    sets(board, [A, B], [A], {A: "la", B: "lb"})
    alone = {t.name: t.id for t in Train(campaign(train=together(together=False))).plan(board)}
    board.trained.clear()
    stage = Train(campaign(train=together()))
    assert stage.total(board) == 8
    first, second = stage.plan(board)
    assert [t.name for t in (first, second)] == ["main/together", "random/together"]
    assert first.params["seed"] == [[1, 0], [1, 1], [1, 2]]
    assert not list(stage.plan(board))
    settle(stage, board, first)
    members = list(stage.plan(board))
    assert [t.extra for t in members] == [{"taken": first.id}] * 3
    assert not board.trained
    settle(stage, board, second, "quarantined")
    others = list(stage.plan(board))
    assert [t.extra for t in others] == [{}] * 3  # they are trained one by one
    assert {t.name: t.id for t in members + others} == alone
    assert stage.total(board) == 8
    for task in members + others:
        settle(stage, board, task)
    assert stage.finished(board)
    assert board.models["main"] == [t.id for t in members]


def test_identical_sets_are_trained_together_once(campaign, board, settle):
    sets(board, [A, B], [A, B], {A: "la", B: "lb"})
    stage = Train(campaign(train=together()))
    (whole,) = stage.plan(board)
    settle(stage, board, whole)
    members = list(stage.plan(board))
    assert len(members) == 3
    for task in members:
        settle(stage, board, task)
    assert board.models["main"] == board.models["random"] == [t.id for t in members]
    assert stage.finished(board)
    assert stage.total(board) == 4


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, False),
        ({"device": "cuda"}, True),
        ({"device": "cuda", "together": False}, False),
        ({"device": "cuda", "processes": 2, "batch": 2}, False),
        ({"device": "cuda", "members": 1}, False),
        ({"together": True}, True),
        ({"together": True, "members": 1}, False),
    ],
)
def test_members_are_trained_together_on_a_gpu_or_where_it_is_written(campaign, keys, expected):
    assert Train(campaign(train={"model": "schnet", "members": 5, **keys})).together is expected


def test_the_members_of_a_distillation_have_their_device_beside_what_they_are(campaign):
    from campaign.stages.distill import _model

    spec = campaign(train={"model": "so3net", "device": "cuda"})
    model, extra = _model(spec, {"epochs": 7})
    assert extra == {"device": "cuda"}
    assert model["model"] == "so3net"
    assert model["spec"]["epochs"] == 7
    assert "device" not in model["spec"]
