"""Walkers are chains: a segment after the one before it, a lost walker ends alone, the stream's order is fixed."""

import pytest

from campaign.stages.sample import Sample, check_frames, walker_seed
from campaign.tasks import Task

MD = {"walkers": 2, "steps": 110, "every": 10, "segment": 4}
SYSTEM = {
    "structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3},
    "potential": {"lammps": "potentials/ar.lmp"},
}
DIGESTS = {"potentials/ar.lmp": "abc"}


def md(campaign, **changes):
    entry = {"method": "npt", "temperature": [100, 210], **MD, **changes}
    return Sample(campaign(system=SYSTEM, sample=[entry]), DIGESTS)


def test_the_stream_goes_segment_by_segment_walker_by_walker(campaign, board):
    stage = Sample(campaign(), {})
    first = list(stage.plan(board))
    names = [s.task.name for s in board.shards]
    # two walkers of 8 + 8 + 4 frames, and one of a second entry of 5 + 5
    assert names == [
        "fake/walker 0/segment 0",
        "fake/walker 1/segment 0",
        "fake1/walker 0/segment 0",
        "fake/walker 0/segment 1",
        "fake/walker 1/segment 1",
        "fake1/walker 0/segment 1",
        "fake/walker 0/segment 2",
        "fake/walker 1/segment 2",
    ]
    assert [s.frames for s in board.shards] == [8, 8, 5, 8, 8, 5, 4, 4]
    assert [t.name for t in first] == names[:3]
    assert stage.total(board) == 8
    assert list(stage.plan(board)) == []
    assert len(board.shards) == 8


def test_a_segment_follows_the_one_before_it_and_a_lost_walker_ends_alone(campaign, board, settle):
    stage = Sample(campaign(), {})
    a, b, c = stage.plan(board)
    settle(stage, board, b, "quarantined")
    assert [s.state for s in board.shards] == [
        "expected", "lost", "expected", "expected", "lost", "expected", "expected", "lost",
    ]  # fmt: skip
    assert list(stage.plan(board)) == []
    settle(stage, board, c)
    (d,) = stage.plan(board)
    assert d.inputs == (c.id,)
    settle(stage, board, d)
    settle(stage, board, a)
    while not stage.finished(board):
        assert not board.sampled
        (task,) = stage.plan(board)
        settle(stage, board, task)
    assert board.sampled
    assert list(stage.plan(board)) == []
    assert [len(chain) for chain in stage.packable(board)] == [3, 2]


def test_a_ramp_runs_over_all_segments_without_a_step(campaign):
    for chain in md(campaign).chains:
        spans = [t.params["temperature"] for t, _ in chain]
        assert spans == [[100, 140], [140, 180], [180, 210]]
        assert [t.params["first"] for t, _ in chain] == [0, 4, 8]
        assert [t.params["frames"] for t, _ in chain] == [4, 4, 3]
    (constant, _), *_ = md(campaign, temperature=90).chains[0]
    assert constant.params["temperature"] == [90.0, 90.0]


def test_only_the_first_segment_is_prepared(campaign):
    chain = md(campaign, prepare=[{"temperature": 300, "time": 1}]).chains[0]
    assert ["prepare" in t.params for t, _ in chain] == [True, False, False]


def test_what_decides_the_frames_decides_the_id_and_nothing_else_does(campaign):
    base = md(campaign).chains[0][0][0].id
    assert md(campaign).chains[0][0][0].id == base
    for change in ({"timestep": 0.001}, {"pressure": 2.0}, {"thermostat": 0.2}, {"temperature": 100}, {"ranks": 2}):
        assert md(campaign, **change).chains[0][0][0].id != base, change
    assert md(campaign, walkers=3).chains[0][0][0].id == base  # another walker changes no other walker
    entry = {"method": "npt", "temperature": [100, 210], **MD}
    other = Sample(campaign(system=SYSTEM, sample=[entry]), {"potentials/ar.lmp": "changed"})
    assert other.chains[0][0][0].id != base


def test_a_task_has_several_walkers_of_one_point(campaign, board):
    stage = md(campaign, walkers=5, walkers_per_task=2, pressure=[1.0, 1000.0])
    firsts = [(c[0][0].name, c[0][0].params["walker"], c[0][0].params["pressure"], c[0][1]) for c in stage.chains]
    assert firsts == [
        ("npt/walkers 0-1/segment 0", [0, 0], 1.0, 8),
        ("npt/walkers 2-3/segment 0", [0, 2], 1.0, 8),
        ("npt/walker 4/segment 0", [0, 4], 1.0, 4),
        ("npt/walkers 5-6/segment 0", [0, 5], 1000.0, 8),
        ("npt/walkers 7-8/segment 0", [0, 7], 1000.0, 8),
        ("npt/walker 9/segment 0", [0, 9], 1000.0, 4),
    ]
    list(stage.plan(board))
    assert sum(s.frames for s in board.shards) == 10 * 11
    assert len({t.id for chain in stage.chains for t, _ in chain}) == 18
    # one pressure, written as a list or not, is the same calculation
    assert md(campaign, pressure=[1.0]).chains[1][2][0].id == md(campaign, pressure=1.0).chains[1][2][0].id


def test_a_grid_is_every_volume_at_every_temperature(campaign):
    entry = {"method": "nvt_grid", "volumes": [140, 150], "temperatures": [80, 90, 100], **MD}
    stage = Sample(campaign(system=SYSTEM, sample=[entry]), DIGESTS)
    points = [(t.params["volume"], t.params["temperature"], t.params["walker"][1]) for (t, _), *_ in stage.chains]
    grid = [(v, [t, t]) for v in (140.0, 150.0) for t in (80.0, 90.0, 100.0) for _ in range(2)]
    assert points == [(v, t, k) for k, (v, t) in enumerate(grid)]
    assert not any("pressure" in t.params for chain in stage.chains for t, _ in chain)


def test_a_chain_goes_on_with_the_walkers_that_are_left_and_ends_with_the_last(campaign, board, settle):
    stage = md(campaign, walkers=4, walkers_per_task=2)
    a, b = stage.plan(board)
    settle(stage, board, a, result={"frames": 5, "walkers": 2, "left": 1, "stopped": {"1": "It met another."}})
    settle(stage, board, b, result={"frames": 3, "walkers": 2, "left": 0, "stopped": {"2": "x", "3": "y"}})
    (c,) = stage.plan(board)
    assert c.inputs == (a.id,)
    assert [s.state for s in board.shards] == ["ready", "ready", "expected", "lost", "expected", "lost"]
    settle(stage, board, c, result={"frames": 1, "walkers": 1, "left": 0, "stopped": {"0": "z"}})
    assert list(stage.plan(board)) == []
    assert stage.finished(board)
    assert board.sampled
    assert [len(chain) for chain in stage.packable(board)] == [2, 1]


def test_walkers_have_seeds_of_their_own():
    seeds = {walker_seed(s, e, w) for s in range(3) for e in range(3) for w in range(20)}
    assert len(seeds) == 180


def test_frames_that_are_not_finite_are_refused():
    import numpy as np

    from campaign.errors import Unphysical
    from campaign.frames import Frames

    good = Frames.build(
        np.array([18]), np.zeros((3, 1, 3)), np.eye(3), energy=1.0, forces=np.zeros((3, 1, 3)), stress=np.eye(3)
    )
    check_frames(good)
    forces = good.forces.copy()
    forces[2, 0, 1] = np.inf
    with pytest.raises(Unphysical, match="forces of frame 2 of 3"):
        check_frames(good.with_(forces=forces))
    assert isinstance(Task("sample", "x", {}).id, str)


# --- MOMT: a window that is looked for first, chains that share a bias


def momt(campaign, **changes):
    return md(campaign, **{"method": "momt", "temperature": 85, "temperatures": [40, 160], "walkers": 3, **changes})


def test_the_window_is_looked_for_before_any_walker_starts(campaign, board, settle):
    stage = momt(campaign)
    cold, hot = stage.plan(board)
    assert (cold.params["temperature"], cold.params["melt"]) == (40.0, False)
    assert (hot.params["temperature"], hot.params["melt"]) == (160.0, True)
    assert len(board.shards) == 9  # they are none
    assert stage.total(board) == 11
    settle(stage, board, hot)
    assert list(stage.plan(board)) == []
    settle(stage, board, cold)
    firsts = list(stage.plan(board))
    assert [t.inputs for t in firsts] == [(cold.id, hot.id)] * 3
    assert len(list(momt(campaign, window=[-0.1, -0.05]).plan(type(board)()))) == 3


def test_without_a_window_no_walker_starts(campaign, board, settle):
    stage = momt(campaign)
    cold, hot = stage.plan(board)
    settle(stage, board, cold, "quarantined")
    assert not board.sampled
    settle(stage, board, hot)
    assert board.sampled
    assert {s.state for s in board.shards} == {"lost"}
    assert list(stage.plan(board)) == []
    assert stage.finished(board)


def test_chains_that_share_take_in_the_segments_of_the_others_two_before(campaign, board, settle):
    stage = momt(campaign, window=[-0.1, -0.05])
    a, b, c = ([t for t, _ in chain] for chain in stage.chains)
    assert a[1].inputs == (a[0].id,)
    assert a[2].inputs == (a[1].id, b[0].id, c[0].id)
    list(stage.plan(board))
    settle(stage, board, a[0])
    assert list(stage.plan(board)) == [a[1]]  # one ahead of the others, and no further
    settle(stage, board, a[1])
    assert list(stage.plan(board)) == []
    settle(stage, board, b[0])
    assert list(stage.plan(board)) == [b[1]]
    settle(stage, board, c[0], "quarantined")  # who is lost is not waited for
    assert [t.id for t in stage.plan(board)] == [a[2].id]
    settle(stage, board, a[2])
    settle(stage, board, b[1])
    assert [t.id for t in stage.plan(board)] == [b[2].id]
    settle(stage, board, b[2])
    assert board.sampled
    alone = momt(campaign, window=[-0.1, -0.05], shared=False)
    assert all(len(t.inputs) <= 1 for chain in alone.chains for t, _ in chain)


def test_the_order_parameter_is_the_prototypes_own_or_fits_the_cell():
    from campaign.stages.sample_momt import learning_of, order_parameter

    spec = {"prototype": "fcc", "supercell": [2, 3, 4]}
    assert order_parameter("auto", spec, 96).base.tolist() == [2, 3, 4]
    assert order_parameter("bcc", {"packing": {"Ni": 54}}, 54).base.tolist() == [3, 3, 3]
    assert order_parameter("auto", {"packing": {"Ni": 54}}, 54) is None
    assert order_parameter("none", spec, 96) is None
    given = {"every": 5, "bins": [7, 9], "width": None, "height": 0.2, "hold": 0, "rate": None}
    learning = learning_of(given, 32, ordered=True)
    assert (learning.every, learning.bins, learning.height, learning.hold, learning.width) == (5, (7, 9), 0.2, 0, 1.5)
    assert learning_of(given, 32, ordered=False).bins == (7, 1)


def test_many_chains_share_in_families(campaign):
    stage = momt(campaign, window=[-0.1, -0.05], walkers=70)
    third = [chain[2][0] for chain in stage.chains]
    assert [len(t.inputs) for t in third] == [32] * 64 + [6] * 6
    assert set(third[69].inputs[1:]) == {stage.chains[c][0][0].id for c in range(64, 69)}


def test_the_bias_stops_early_enough_to_be_one_and_the_same_from_there(campaign):
    def learning(**changes):
        stage = momt(campaign, window=[-0.1, -0.05], learn={"until": 80}, **changes)
        return [[t.params["learning"] for t, _ in chain] for chain in stage.chains]

    assert learning(walkers=1) == [[True, True, False]]
    assert learning() == [[True, False, False]] * 3  # what they laid down comes to the others two segments later
    assert learning(shared=False) == [[True, True, False]] * 3


def test_followers_are_told_who_is_lost_and_no_machine_may_lose_one(campaign, board, settle):
    stage = momt(campaign, window=[-0.1, -0.05])
    a, b, c = ([t for t, _ in chain] for chain in stage.chains)
    assert stage.depends(a[0])
    assert not stage.depends(a[2])
    assert not md(campaign).depends(md(campaign).chains[0][0][0])
    list(stage.plan(board))
    for task, state in ((a[0], "done"), (b[0], "done"), (c[0], "quarantined"), (a[1], "done")):
        settle(stage, board, task, state)
    third = next(t for t in stage.plan(board) if t.id == a[2].id)
    assert third.extra["lost"] == [c[0].id]
