"""Every selector: sizes, seeds, resuming; and what each is for."""

import numpy as np
import pytest

from campaign.science.rnd import Distillation, Moments, RNDStream, rnd_batch
from campaign.science.selection import RandomSelector

MAKE = {"random": RandomSelector, "rnd_stream": RNDStream}


def stream(n=400, d=12, block=23, seed=0):
    """Correlated descriptors in blocks: (task, index, descriptors, progress)."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) + 0.1 * rng.normal(size=(n, d)) + 5).astype(np.float32)
    task = (np.arange(n) // 50).astype(np.uint64) + np.uint64(2**63)
    index = np.arange(n) % 50
    for start in range(0, n, block):
        at = slice(start, start + block)
        yield task[at].astype(np.uint64), index[at].astype(np.int32), x[at], min((start + block) / n, 1.0)


def choose(selector, blocks):
    offers = [selector.offer(*b) for b in blocks]
    return [o.novelty for o in offers], [i for o in [*offers, selector.finish()] for i in o.chosen]


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def test_exactly_size_frames_each_once_and_from_the_stream(make):
    blocks = list(stream())
    _, chosen = choose(make(32, seed=1), blocks)
    offered = {(int(t), int(i)) for b in blocks for t, i in zip(b[0], b[1], strict=True)}
    assert len(chosen) == len(set(chosen)) == 32
    assert set(chosen) <= offered
    assert all(type(v) is int for pair in chosen for v in pair)


def test_all_frames_if_fewer_were_offered(make):
    blocks = list(stream(n=20, block=6))
    _, chosen = choose(make(32, seed=1), blocks)
    assert len(set(chosen)) == 20
    assert choose(make(5, seed=1), [])[1] == []


def test_the_seed_decides(make):
    runs = [choose(make(16, seed=s), stream())[1] for s in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert set(runs[0]) != set(runs[2])


def test_finish_twice_adds_nothing(make):
    selector = make(8, seed=0)
    choose(selector, stream(n=60))
    assert selector.finish().chosen == []


def test_resumed_at_any_point_it_goes_on_bitwise(make):
    blocks = list(stream(n=200))
    novelty, chosen = choose(make(16, seed=5), blocks)
    for stop in range(len(blocks) + 1):
        before = make(16, seed=5)
        got = [before.offer(*b) for b in blocks[:stop]]
        state = {k: np.array(v) for k, v in before.state().items()}
        assert len(state) <= 10
        assert all(v.dtype.kind in "iuf" for v in state.values())
        after = make(16, seed=5)
        after.load(state)
        got += [after.offer(*b) for b in blocks[stop:]]
        assert [i for o in [*got, after.finish()] for i in o.chosen] == chosen
        for a, b in zip(got, novelty, strict=True):
            assert a.novelty.dtype == np.float32
            np.testing.assert_array_equal(a.novelty, b)


def test_state_does_not_change_when_the_selector_goes_on(make):
    blocks = list(stream(n=100))
    selector = make(8, seed=0)
    selector.offer(*blocks[0])
    state = selector.state()
    copy = {k: v.copy() for k, v in state.items()}
    choose(selector, blocks[1:])
    for k in state:
        np.testing.assert_array_equal(state[k], copy[k])


def test_random_does_not_depend_on_the_order_and_is_uniform():
    blocks = list(stream())
    assert sorted(choose(RandomSelector(16, 0), blocks)[1]) == sorted(choose(RandomSelector(16, 0), blocks[::-1])[1])
    counts = np.zeros(50)
    for seed in range(400):
        task, index = np.full(50, 7, np.uint64), np.arange(50, dtype=np.int32)
        selector = RandomSelector(10, seed)
        selector.offer(task, index, None, 1.0)
        for _, i in selector.finish().chosen:
            counts[i] += 1
    assert abs(counts - 80).max() < 5 * np.sqrt(80 * 0.8)


def test_early_frames_follow_the_quota():
    selector = RNDStream(32, seed=0, early=0.5)
    final = 0
    for block in stream():
        final += len(selector.offer(*block).chosen)
        assert final == int(0.5 * 32 * block[3] + 1e-9)
    assert final == 16
    assert sum(len(RNDStream(8, 0, early=0.0).offer(*b).chosen) for b in stream()) == 0


def test_memory_is_bounded():
    selector = RNDStream(4, seed=0, candidates=3)
    for block in stream(n=300):
        selector.offer(*block)
        assert len(selector.state()["candidates"]) <= 12


def test_near_duplicates_do_not_all_pass():
    """200 copies (but for noise) of each of 3 rare states, far out, in 2,000 ordinary frames."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 16)).astype(np.float32)
    rare = rng.normal(size=(3, 16)) * 4
    label = np.full(2000, -1)
    for k in range(3):
        at = rng.choice(np.flatnonzero(label < 0), 200, replace=False)
        label[at] = k
        x[at] = rare[k] + 0.02 * rng.normal(size=(200, 16))
    selector = RNDStream(24, seed=0)
    chosen = []
    for s in range(0, 2000, 50):
        rows = np.arange(s, s + 50)
        chosen += selector.offer(np.zeros(50, np.uint64), rows.astype(np.int32), x[rows], (s + 50) / 2000).chosen
    chosen += selector.finish().chosen
    picks = np.bincount(label[[i for _, i in chosen]] + 1, minlength=4)[1:]
    assert (picks >= 1).all()
    assert picks.max() <= 6  # by rank of the first novelty they would take all 24


def test_one_pass_covers_the_pool_nearly_as_well_as_the_batch():
    x = np.concatenate([b[2] for b in stream(n=2000)])
    index = {
        pair: k
        for k, pair in enumerate((int(t), int(i)) for b in stream(n=2000) for t, i in zip(b[0], b[1], strict=True))
    }
    moments = Moments(x.shape[1])
    moments.add(x)
    z = moments.normalise(x)

    def radius(rows):
        return np.linalg.norm(z[:, None] - z[None, rows], axis=2).min(axis=1).max()

    once = [index[p] for p in choose(RNDStream(32, 0), stream(n=2000))[1]]
    batch = rnd_batch(x, 32, 0)
    drawn = np.mean([radius(np.random.default_rng(s).choice(2000, 32, replace=False)) for s in range(5)])
    assert len(set(batch.tolist())) == 32
    assert radius(batch) < 0.9 * drawn
    assert radius(once) < 0.9 * drawn


def test_batch_of_a_small_pool_takes_it_all():
    assert sorted(rnd_batch(np.eye(5), 9, 0)) == list(range(5))


def test_a_descriptor_that_is_not_finite_is_never_chosen():
    task, index, x, _ = next(stream())
    x = x.copy()
    x[3, 2] = np.inf
    selector = RNDStream(30, seed=0)
    offer = selector.offer(task, index, x, 1.0)
    assert np.isnan(offer.novelty[3])
    assert np.isfinite(np.delete(offer.novelty, 3)).all()
    chosen = offer.chosen + selector.finish().chosen
    assert len(chosen) == 22
    assert (int(task[3]), 3) not in chosen


def test_training_takes_the_novelty_away_where_it_was_trained():
    x = np.random.default_rng(0).normal(size=(8, 10))
    nets = Distillation(10, seed=0, steps=400)
    before = nets.novelty(x)
    assert nets.fit(x[:4]) < 400
    after = nets.novelty(x)
    assert after[:4].max() < 0.01 * before.mean()
    assert after[4:].min() > 5 * after[:4].max()


def test_running_moments_are_those_of_the_whole():
    x = np.concatenate([b[2] for b in stream()]).astype(np.float64)
    x[:, 0] = 3.0
    moments = Moments(12)
    for block in np.array_split(x, 7):
        moments.add(block)
    np.testing.assert_allclose(moments.values[0], x.mean(axis=0))
    z = moments.normalise(x)
    np.testing.assert_allclose(z.std(axis=0)[1:], 1.0)
    assert (z[:, 0] == 0).all()
