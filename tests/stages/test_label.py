"""A frame is labelled once, whatever sets it is in."""

import pytest

from campaign.stages.board import FrameSet
from campaign.stages.label import Label, describe
from campaign.tasks import Context, Task

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


CP2K = {"engine": "cp2k", "template": "cp2k/argon.inp", "ladder": ["template", "more_steps", "smear"]}


def test_what_a_rung_computes_decides_the_id_and_how_does_not(campaign, filled):
    def first(label, methods):
        return next(iter(Label(campaign(label=label), {}, methods).plan(filled)))

    base = first(CP2K, ["a", "a", "b"])
    assert base.params == {"engine": "cp2k", "frame": 1, "method": "a"}
    assert base.extra["ladder"] == CP2K["ladder"]
    assert base.extra["methods"] == ["a", "a", "b"]
    same = [
        ({**CP2K, "template": "other.inp"}, ["a", "a", "b"]),
        ({**CP2K, "ranks": 4, "threads": 2, "timeout": 9, "cache": "/shared"}, ["a", "a", "b"]),
        ({**CP2K, "ladder": ["template", {"SCF/MAX_SCF": 900}, "more_steps", "smear"]}, ["a", "a", "a", "b"]),
        ({**CP2K, "ladder": ["template", "more_steps"]}, ["a", "a"]),
        ({**CP2K, "ladder": [*CP2K["ladder"], {"SCF/EPS_SCF": 1e-4}]}, ["a", "a", "b", "c"]),
    ]
    for label, methods in same:
        assert first(label, methods).id == base.id
    for methods in (["c", "c", "b"], ["b", "b", "a"], ["b", "a", "a"]):
        assert first(CP2K, methods).id != base.id


def test_the_ladder_s_length_is_the_number_of_attempts(campaign):
    assert Label(campaign(label=CP2K), {}, ["a", "a", "b"]).attempts == 3
    assert Label(campaign(label={"engine": "fake"}), {}).attempts == 2
    ase = {"engine": "ase", "calculator": "lj", "ladder": [{"rc": 5.0}, {"rc": 4.0}, {"rc": 3.0}]}
    assert Label(campaign(label=ase), {}).attempts == 4


def test_a_cache_does_not_change_ids(campaign, filled):
    plain, cached = (
        next(iter(Label(campaign(label={"engine": "fake", **more}), {}).plan(filled))) for more in ({}, {"cache": "/c"})
    )
    assert plain.id == cached.id
    assert cached.extra["cache"] == "/c"


def test_each_attempt_is_described_by_its_rung(tmp_path):
    extra = {"id": A, "ladder": ["template", {"SCF/EPS_SCF": 1e-4}], "methods": ["a", "b"]}
    task = Task("label", "", {"engine": "cp2k", "frame": 1, "method": "a"}, (A[:16],), extra=extra)
    for attempt, rung in ((0, 0), (1, 1), (5, 1)):
        found = describe(task, Context(tmp_path, attempt=attempt))
        assert (found["rung"], found["settings"]) == (rung, extra["ladder"][rung])
        assert (found["method"], found.get("other_physics", False)) == ("ab"[rung], bool(rung))
    task = Task("label", "", {"engine": "ase", "calculator": "lj", "parameters": {}, "ladder": [{"rc": 4.0}]})
    assert describe(task, Context(tmp_path)) == {"rung": 0, "settings": {}}
    assert describe(task, Context(tmp_path, attempt=3)) == {"rung": 1, "settings": {"rc": 4.0}}
    assert describe(Task("label", "", {"engine": "fake"}), Context(tmp_path)) == {}


def test_the_machine_s_faults_do_not_climb_the_ladder(campaign, drive, made_up, quick):
    """Two faults of the machine, then a failure of the calculation, then a fault again, then it is done."""
    tries = {}

    def failing(task, number):
        if task.stage != "label":
            return "done"
        tries.setdefault(task.id, [])
        return ("lost", "lost", "failed", "lost", "done")[min(number, 4)]

    spec = campaign(label={"engine": "fake", "attempts": 3}, train=None, validate=None)
    flow, _, memory = drive(made_up(failing=failing), spec=spec)
    assert flow.complete()
    lines = [r for r in memory.lines if r["stage"] == "label"]
    for task in tries:
        own = [r for r in lines if r["task"] == task]
        assert [r["attempt"] for r in own] == [0, 0, 0, 1, 1]
        assert [r["state"] for r in own] == ["failed"] * 4 + ["done"]
