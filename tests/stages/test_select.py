"""The selector sees the shards in one order, whatever order they come in; the draws do not disturb it."""

import pytest

from campaign.config import Campaign
from campaign.science.selectors import SELECTORS
from campaign.stages.sample import Sample
from campaign.stages.sample_file import Source
from campaign.stages.select import Select, species_of


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


STREAMS = sorted(name for name, kind in SELECTORS.items() if not kind.whole_pool and name != "random")
POOLS = sorted(name for name, kind in SELECTORS.items() if kind.whole_pool)


@pytest.mark.parametrize("method", STREAMS)
def test_every_selector_of_a_stream_is_a_chain(campaign, board, settle, method):
    spec = campaign(select={"method": method, "size": 6})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    finish(sample, board, settle)
    chain = []
    while tasks := list(select.plan(board)):
        for task in tasks:
            settle(select, board, task)
            chain += [task] if task.params["method"] == method else []
    assert len(chain) == 9
    assert [t.inputs for t in chain[1:-1]] == [
        (before.id, shard.task.id) for before, shard in zip(chain[:-2], board.shards[1:], strict=True)
    ]
    assert {"representation", "species"} <= chain[0].params.keys() or method != "rnd_stream"


@pytest.mark.parametrize("method", POOLS)
def test_a_selector_of_the_pool_looks_at_shards_in_any_order(campaign, board, settle, method):
    spec = campaign(select={"method": method, "size": 6})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    settle(sample, board, board.shards[1].task)
    (first,) = select.plan(board)
    assert first.inputs == (board.shards[1].task.id,)
    assert "size" not in first.params  # another size describes nothing again
    finish(sample, board, settle)
    others = [t for t in select.plan(board) if t.params["method"] == method]
    assert len(others) == 7
    for task in [*others[::-1], first]:
        assert not any(t.name.endswith("finish") for t in select.plan(board))
        settle(select, board, task, result={"chosen": [], "refused": [], "finished": False})
    (last,) = (t for t in select.plan(board) if t.params["method"] == method)
    by_shard = {t.inputs[0]: t.id for t in [first, *others]}
    assert last.inputs == tuple(by_shard[s.task.id] for s in board.shards)
    settle(select, board, last, result={"chosen": ["a:0"], "refused": [], "finished": True})
    assert board.sets[method].closed
    assert select.packable(board) == [[*last.inputs, last.id]]


def test_a_shard_that_cannot_be_described_is_left_out(campaign, board, settle):
    spec = campaign(select={"method": "rnd", "size": 6})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    finish(sample, board, settle)
    looks = [t for t in select.plan(board) if t.params["method"] == "rnd"]
    for task in looks:
        state = "quarantined" if task is looks[2] else "done"
        settle(select, board, task, state, {"chosen": [], "refused": [], "finished": False})
    (last,) = (t for t in select.plan(board) if t.params["method"] == "rnd")
    assert last.inputs == tuple(t.id for t in looks if t is not looks[2])
    settle(select, board, last, "quarantined")
    assert board.sets["rnd"].closed
    assert list(select.plan(board)) or select.total(board)
    assert board.sets["rnd"].chosen == []


def test_the_times_of_a_shard(campaign, board):
    spec = campaign(select={"method": "uniform_time", "size": 4})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    assert [select._times(s, board) for s in board.shards] == [
        [0, 0, 1, 20],
        [0, 0, 1, 20],
        [1, 0, 1, 10],
        [0, 8, 1, 20],
        [0, 8, 1, 20],
        [1, 5, 1, 10],
        [0, 16, 1, 20],
        [0, 16, 1, 20],
    ]


def test_a_pool_that_is_too_small_is_taken_whole_and_that_is_said(campaign, board, settle):
    spec = campaign(select={"method": "random", "size": 100})
    sample, select = Sample(spec, {}), Select(spec)
    list(sample.plan(board))
    finish(sample, board, settle)
    (task,) = list(select.plan(board))
    settle(select, board, task, result={"chosen": ["a:0", "a:1"], "refused": [], "finished": True})
    assert board.sets["random"].note == "random: only 2 frames could be chosen, not 100: all are taken"
    assert board.sets["held_out"].note == ""


def test_the_species_are_those_of_the_whole_campaign(campaign):
    def source(species):
        return Source(0, "a.extxyz", "/a.extxyz", [], "", 1, 64, [], species, [])

    spec = campaign()
    assert species_of(spec, []) == {"species": ["Ar"], "structure": None}
    assert species_of(spec, [source(["Na", "Cl"])]) == {"species": ["Ar", "Cl", "Na"], "structure": None}
    file = {"method": "file", "file": "a.extxyz"}
    assert species_of(campaign(sample=[file]), [source(["Na"]), source(["K"])])["species"] == ["K", "Na"]
    other = campaign(system={"structure": {"file": "start.extxyz"}})
    assert species_of(other, []) == {"species": [], "structure": {"file": "start.extxyz"}}
    packing = campaign(system={"structure": {"packing": {"Na": 4, "Cl": 4}, "density": 1.0}})
    assert species_of(packing, [])["species"] == ["Cl", "Na"]
    assert isinstance(packing, Campaign)
