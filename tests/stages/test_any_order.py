"""Whatever order the workers finish in, whatever fails, whenever the driver is killed: the same campaign comes out."""

import hashlib

import pytest

from campaign.flow import TooManyFailures

pytestmark = pytest.mark.usefixtures("quick")

#: The draws and the chain are few: they fail only where a test says so.
RARE = {"sample": 0.15, "select": 0.04, "label": 0.3, "train": 0.2, "validate": 0.2}


def chance(*words):
    return int(hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=6).hexdigest(), 16) / 2**48


def failing(salt, scale=1.0):
    """Return a rule by which tasks fail for good, at first, or by the machine's fault."""

    def rule(task, tries):
        u = chance(salt, task.id)
        if u < scale * RARE[task.stage]:
            return "failed"
        if u > 0.93 and tries == 0:
            return "lost"
        return "done"

    return rule


def outcome(flow, runner):
    """Return all that may not depend on the order."""
    _, select, _, _, validate = flow.stages
    board = flow.board
    return {
        "shards": [(s.task.id, s.state) for s in board.shards],
        "stream": select.stream,
        "sets": {n: (s.chosen, s.refused, s.closed) for n, s in board.sets.items()},
        "labels": dict(board.labels),
        "models": dict(board.models),
        "trained": set(board.trained),
        "tests": validate.results(),
        "failures": {r["task"] for r in flow.failures},
        "done": sorted(runner.order),
        "status": flow.status("x", [s.name for s in flow.stages], live=False)["stages"],
    }


def check_ended(flow):
    for stage in flow.stages:
        assert stage.finished(flow.board), stage.name
        counts = flow.counts[stage.name]
        assert counts.flying == 0
        assert counts.done + counts.failed <= stage.total(flow.board)
    assert list(flow.board.sets) == ["rnd_stream", "random", "held_out"]
    assert all(s.closed for s in flow.board.sets.values())


@pytest.mark.parametrize("salt", range(12))
def test_the_order_of_the_workers_changes_nothing(drive, made_up, salt):
    rule = failing(salt, 0 if salt == 0 else 1.0)
    first = None
    for order in range(8):
        flow, runner, _ = drive(made_up(order, rule))
        check_ended(flow)
        found = outcome(flow, runner)
        first = first or found
        assert found == first
    states = {s["state"] for s in first["status"].values()}
    if first["failures"]:
        assert "partial" in states
        assert not flow.complete()
    else:
        assert states == {"done"}
        assert flow.complete()
        assert all(s["done"] == s["total"] for s in first["status"].values())


@pytest.mark.parametrize("salt", range(4))
def test_a_driver_killed_anywhere_comes_to_the_same_end(drive, made_up, memory, salt):
    rule = failing(salt, 0 if salt == 0 else 1.0)
    whole, runner, _ = drive(made_up(99, rule))
    expected = outcome(whole, runner)
    for stop in range(0, len(runner.order) - 2, 3):  # a wait brings up to three
        kept = memory()
        before = made_up(stop, rule, stop)
        with pytest.raises(KeyboardInterrupt):
            drive(before, kept)
        flow, after, _ = drive(made_up(stop + 1, rule), kept)
        assert not set(before.order) & set(after.order)  # nothing finished is done again
        after.order += [t for t in kept.history().done if t not in after.order]
        assert outcome(flow, after) == expected
        third, nothing, _ = drive(made_up(0, rule), kept)
        assert nothing.order == []  # a third driver has nothing to do
        assert [s.finished(third.board) for s in third.stages] == [True] * 5


@pytest.mark.parametrize("salt", range(4))
def test_members_trained_together_come_to_the_same_end_in_any_order_and_after_kills(
    drive, made_up, memory, campaign, salt
):
    """Salt 0 fails nothing; others fail some of the tasks that train members together, or their members."""
    spec = campaign(train={"model": "schnet", "members": 3, "together": True})
    rule = failing(salt, 0 if salt == 0 else 1.0)
    whole, runner, _ = drive(made_up(99, rule), spec=spec)
    check_ended(whole)
    expected = outcome(whole, runner)
    for stop in range(0, len(runner.order) - 2, 5):
        kept = memory()
        with pytest.raises(KeyboardInterrupt):
            drive(made_up(stop, rule, stop), kept, spec)
        flow, after, _ = drive(made_up(stop + 1, rule), kept, spec)
        after.order += [t for t in kept.history().done if t not in after.order]
        assert outcome(flow, after) == expected
    counts = expected["status"]["train"]
    assert counts["done"] + counts["failed"] == counts["total"] >= 4  # two sets of the same frames share theirs


@pytest.mark.parametrize("stage", ["sample", "select", "label", "train", "validate"])
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_a_stage_that_fails_never_hangs_the_campaign(drive, made_up, stage, which):
    seen = []

    def rule(task, tries):
        if task.stage != stage:
            return "done"
        if task.id not in seen:
            seen.append(task.id)
        wanted = {"all": True, "first": seen.index(task.id) == 0, "last": seen.index(task.id) == 5}
        return "failed" if wanted[which] else "done"

    for order in range(3):
        seen.clear()
        flow, _, _ = drive(made_up(order, rule))
        check_ended(flow)
        status = flow.status("x", [s.name for s in flow.stages], live=False)
        assert status["state"] == ("partial" if flow.failures else "done")
        if which != "last":
            assert flow.failures
            assert status["stages"][stage]["state"] == "partial"


def test_a_machine_that_finishes_nothing_stops_the_campaign(drive, made_up):
    with pytest.raises(TooManyFailures, match="had to fail"):
        drive(made_up(0, lambda task, tries: "lost"))


def test_a_segment_is_tried_once_more_with_its_number_of_the_attempt(drive, made_up):
    """The second attempt is what halves the time step."""
    runner = made_up(0, lambda task, tries: "failed" if task.stage == "sample" and tries == 0 else "done")
    _, _, memory = drive(runner)
    attempts = [(r["state"], r["attempt"]) for r in memory.lines if r["stage"] == "sample"]
    assert sorted(set(attempts)) == [("done", 1), ("failed", 0)]
    assert not memory.quarantined
