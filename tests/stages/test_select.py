"""The selector sees the shards in one order, whatever order they come in; the draws do not disturb it."""

import pytest

from campaign.stages.sample import Sample
from campaign.stages.select import Select


@pytest.fixture
def stages(campaign, board):
    sample, select = Sample(campaign(), {}), Select(campaign())
    list(sample.plan(board))
    return sample, select


def finish(sample, board, settle, lost=()):
    """Settle every segment; the chains of the shards in ``lost`` end there."""
    for k, shard in enumerate(board.shards):
        if shard.state == "expected":
            settle(sample, board, shard.task, "quarantined" if k in lost else "done")


def run_chain(select, board, settle):
    """Settle what the selector plans until nothing is left; return the tasks of the chain."""
    found = []
    while tasks := list(select.plan(board)):
        for task in tasks:
            settle(select, board, task)
            found += [task] if task.params["method"] == "rnd_stream" else []
    return found


def test_the_selector_waits_for_the_next_shard_of_the_order(stages, board, settle):
    sample, select = stages
    shards = board.shards
    settle(sample, board, shards[1].task)
    settle(sample, board, shards[2].task)
    assert list(select.plan(board)) == []
    settle(sample, board, shards[0].task)
    seen = run_chain(select, board, settle)
    assert [t.inputs[-1] for t in seen] == [s.task.id for s in shards[:3]]
    assert [t.inputs[:-1] for t in seen] == [(), (seen[0].id,), (seen[1].id,)]
    assert [t.params["first"] for t in seen] == [True, False, False]
    total = sum(s.frames for s in shards)
    assert [t.params["progress"] for t in seen] == [8 / total, 16 / total, 21 / total]


def test_one_link_at_a_time(stages, board, settle):
    sample, select = stages
    settle(sample, board, board.shards[0].task)
    settle(sample, board, board.shards[1].task)
    (first,) = select.plan(board)
    assert list(select.plan(board)) == []
    settle(select, board, first)
    (second,) = select.plan(board)
    assert second.inputs == (first.id, board.shards[1].task.id)


def test_lost_shards_are_skipped_and_count_for_the_progress(stages, board, settle):
    sample, select = stages
    finish(sample, board, settle, lost={1})
    assert [s.state for s in board.shards] == ["ready", "lost", "ready", "ready", "lost", "ready", "ready", "lost"]
    chain = run_chain(select, board, settle)
    ready = [s.task.id for s in board.shards if s.state == "ready"]
    assert [t.inputs[-1] for t in chain[:-1]] == ready
    assert chain[-1].params["finish"]
    assert [round(50 * t.params["progress"]) for t in chain] == [8, 21, 29, 42, 46, 50]
    assert all(s.closed for s in board.sets.values())
    assert select.finished(board)
    assert select.total(board) == len(chain) + 2
    assert select.packable(board) == [[t.id for t in chain]]


def test_a_failed_draw_does_not_break_the_chain(stages, board, settle):
    sample, select = stages
    finish(sample, board, settle)
    tasks = list(select.plan(board))
    names = {t.name: t for t in tasks}
    settle(select, board, names["random/draw"], "quarantined")  # while the chain is on its first shard
    settle(select, board, names["rnd_stream/shard 0"])
    chain = run_chain(select, board, settle)
    assert len(chain) == 8  # the other shards, and the end
    assert board.sets["random"].closed
    assert board.sets["random"].chosen == []
    assert board.sets["rnd_stream"].closed
    assert select.finished(board)


def test_the_chain_does_not_wait_for_the_draws(stages, board, settle):
    sample, select = stages
    finish(sample, board, settle)
    first = list(select.plan(board))
    assert sorted(t.name for t in first) == ["random/draw", "rnd_stream/shard 0"]
    settle(select, board, next(t for t in first if t.name != "random/draw"))
    assert [t.name for t in select.plan(board)] == ["rnd_stream/shard 1"]


def test_the_test_set_is_drawn_last_and_leaves_the_training_sets_out(stages, board, settle):
    sample, select = stages
    finish(sample, board, settle)
    run_chain(select, board, settle)
    training = set(board.sets["rnd_stream"].chosen) | set(board.sets["random"].chosen)
    held_out = board.sets["held_out"].chosen
    assert len(held_out) == 5
    assert not training & set(held_out)
    assert len(set(board.sets["random"].chosen)) == 6


def test_a_broken_chain_closes_its_set_with_what_it_had(stages, board, settle):
    sample, select = stages
    settle(sample, board, board.shards[0].task)
    (first,) = select.plan(board)
    settle(select, board, first, "quarantined")
    finish(sample, board, settle)
    assert run_chain(select, board, settle) == []
    assert select.finished(board)
    assert board.sets["held_out"].chosen  # the draws went on


def test_a_pool_that_is_lost_as_a_whole_closes_every_set(stages, board, settle):
    sample, select = stages
    finish(sample, board, settle, lost={0, 1, 2})
    assert list(select.plan(board)) == []
    assert select.finished(board)
    assert all(s.closed and not s.chosen for s in board.sets.values())


def test_a_random_selection_needs_no_stream(campaign, board, settle):
    spec = campaign(select={"method": "random", "size": 4})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    settle(sample, board, board.shards[0].task)
    assert list(select.plan(board)) == []
    finish(sample, board, settle)
    run_chain(select, board, settle)
    assert list(board.sets) == ["random", "held_out"]  # it is its own comparison
    assert len(board.sets["random"].chosen) == 4
    assert select.finished(board)
    assert select.total(board) == 2
