"""A frame is labelled once, whatever sets it is in."""

import pytest

from campaign.stages.board import FrameSet
from campaign.stages.label import Label

A, B, C = (f"{k:016x}:{k}" for k in (1, 2, 3))


@pytest.fixture
def filled(board):
    board.sets = {
        "main": FrameSet("main", 2, True, [A, B], closed=True),
        "random": FrameSet("random", 2, True, [B, C], closed=True),
    }
    return board


def test_one_task_a_frame_although_two_sets_share_it(campaign, filled, settle):
    stage = Label(campaign(), {})
    tasks = list(stage.plan(filled))
    assert [t.extra["id"] for t in tasks] == [A, B, C]
    assert [t.inputs for t in tasks] == [(f.split(":")[0],) for f in (A, B, C)]
    assert [t.params["frame"] for t in tasks] == [1, 2, 3]
    assert tasks[0].priority < tasks[2].priority  # the training set first
    assert list(stage.plan(filled)) == []
    for task in tasks:
        assert not stage.finished(filled)
        settle(stage, filled, task)
    assert stage.finished(filled)
    assert filled.labelled("random") == [B, C]
    assert stage.total(filled) == 3


def test_a_shared_frame_that_was_told_to_fail_fails_once(campaign, filled, settle):
    stage = Label(campaign(label={"engine": "fake", "fail": [2]}), {})
    tasks = list(stage.plan(filled))
    assert [t.params.get("fail", False) for t in tasks] == [False, True, False]  # the shared one
    for task in tasks:
        settle(stage, filled, task, "quarantined" if task.params.get("fail") else "done")
    assert stage.finished(filled)
    assert filled.labels[B] is None
    assert filled.labelled("main") == [A]
    assert filled.set_settled("main")
    assert filled.set_settled("random")


def test_frames_are_labelled_as_soon_as_they_are_chosen(campaign, board):
    stage = Label(campaign(), {})
    board.sets = {"main": FrameSet("main", 5, True)}
    assert list(stage.plan(board)) == []
    assert not stage.finished(board)
    board.sets["main"].chosen.append(A)
    assert [t.extra["id"] for t in stage.plan(board)] == [A]
    assert stage.total(board) == 5
    board.sets["main"].chosen += [B, C]
    assert [t.extra["id"] for t in stage.plan(board)] == [B, C]
    board.sets["main"].closed = True
    assert stage.total(board) == 3


def test_the_reference_potential_decides_the_id(campaign, filled):
    system = {
        "structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3},
        "potential": {"lammps": "cheap.lmp"},
    }
    digests = {"cheap.lmp": "1", "dear.lmp": "2"}
    cheap = campaign(system=system, label={"engine": "lammps"})
    dear = campaign(system=system, label={"engine": "lammps", "potential": {"lammps": "dear.lmp"}})
    first, second = (next(iter(Label(c, digests).plan(filled))) for c in (cheap, dear))
    assert (first.params["potential"], second.params["potential"]) == ("1", "2")
    assert (first.extra["potential"], second.extra["potential"]) == ("cheap.lmp", "dear.lmp")
    assert first.id != second.id
