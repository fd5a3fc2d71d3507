"""What each selector is for; what holds for all of them is in ``contracts/test_selectors``."""

import os
import subprocess
import sys

import numpy as np
import pytest

from campaign.science import distillation
from campaign.science.distillation import Distillation, Moments, farthest
from campaign.science.rnd import RNDStream, rnd_batch
from campaign.science.selection import CHOSEN, PASSED, REFUSED, WAITING, Batch, RandomSelector
from campaign.science.selectors_histogram import AtomicEnergy, Force, GlobalEnergy, Grid, Histogram
from campaign.science.selectors_pool import FPS, REMatch
from campaign.science.selectors_time import UniformTime


def stream(n=400, d=12, block=23, seed=0):
    """Correlated descriptors in blocks."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) + 0.1 * rng.normal(size=(n, d)) + 5).astype(np.float32)
    task = (np.arange(n) // 50).astype(np.uint64) + np.uint64(2**63)
    index = np.arange(n) % 50
    for start in range(0, n, block):
        at = slice(start, start + block)
        progress = min((start + block) / n, 1.0)
        yield Batch(task[at].astype(np.uint64), index[at].astype(np.int32), progress, descriptors=x[at])


def frames(n, **columns):
    """Offer ``n`` frames of one task at once."""
    return Batch(np.full(n, 7, np.uint64), np.arange(n, dtype=np.int32), **columns)


def choose(selector, blocks):
    offers = [selector.offer(b) for b in blocks]
    return [o.scores for o in offers], [i for o in [*offers, selector.finish()] for i in o.chosen]


def test_random_does_not_depend_on_the_order_and_is_uniform():
    blocks = list(stream())
    assert sorted(choose(RandomSelector(16, 0), blocks)[1]) == sorted(choose(RandomSelector(16, 0), blocks[::-1])[1])
    counts = np.zeros(50)
    for seed in range(400):
        selector = RandomSelector(10, seed)
        selector.offer(frames(50))
        for _, i in selector.finish().chosen:
            counts[i] += 1
    assert abs(counts - 80).max() < 5 * np.sqrt(80 * 0.8)


def test_early_frames_keep_to_the_quota():
    selector, final = RNDStream(32, seed=0, early=0.5), 0
    for block in stream(n=1000):
        offer = selector.offer(block)
        final += len(offer.chosen)
        assert (offer.decisions == CHOSEN).sum() == len(offer.chosen)  # what is taken early is of this block
        assert final <= int(0.5 * 32 * block.progress + 1e-9)
    assert final >= 12  # the threshold steers itself to the quota
    assert len(selector.finish().chosen) == 32 - final
    assert sum(len(RNDStream(8, 0, early=0.0).offer(b).chosen) for b in stream()) == 0


def test_neither_early_nor_late_frames_are_favoured():
    """Of a stream without order, each quarter gives about a quarter of the choice."""
    quarter = np.zeros(4)
    for seed in range(16):
        x = np.concatenate([b.descriptors for b in stream(n=1200, seed=seed)])
        x = x[np.random.default_rng(seed).permutation(1200)]
        blocks = [
            Batch(
                np.zeros(40, np.uint64),
                np.arange(s, s + 40, dtype=np.int32),
                (s + 40) / 1200,
                descriptors=x[s : s + 40],
            )
            for s in range(0, 1200, 40)
        ]
        _, chosen = choose(RNDStream(16, seed=seed, steps=30), blocks)
        quarter += np.bincount([i // 300 for _, i in chosen], minlength=4)
    assert quarter.sum() == 256
    assert quarter.min() >= 40  # 64, less three and a half of the standard deviations of a fair draw
    assert quarter.max() <= 95


def test_memory_is_bounded():
    selector = RNDStream(4, seed=0, candidates=3)
    for block in stream(n=300):
        selector.offer(block)
        state = selector.state()
        assert len(state["candidates"]) <= 12
        assert len(state["recent"]) <= RNDStream.RECENT


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
    for early in (0.5, 0.0):  # without early frames g learns nothing until the end
        selector = RNDStream(24, seed=0, early=early)
        chosen = []
        for s in range(0, 2000, 50):
            rows = np.arange(s, s + 50, dtype=np.int32)
            chosen += selector.offer(Batch(np.zeros(50, np.uint64), rows, (s + 50) / 2000, descriptors=x[rows])).chosen
        chosen += selector.finish().chosen
        picks = np.bincount(label[[i for _, i in chosen]] + 1, minlength=4)[1:]
        assert (picks >= 1).all()
        assert picks.max() <= 6  # by rank of the first novelty they would take all 24


def test_near_duplicates_in_one_block_do_not_all_pass():
    """A late block of copies of a new state: one is taken, and the candidates are not crowded out."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1000, 16)).astype(np.float32)
    x[600:664] = 8 * rng.normal(size=16) + 0.01 * rng.normal(size=(64, 16))
    for early in (0.5, 0.0):
        selector = RNDStream(16, seed=1, early=early)
        chosen = []
        for s in range(0, 1000, 40):
            rows = np.arange(s, s + 40, dtype=np.int32)
            chosen += selector.offer(Batch(np.zeros(40, np.uint64), rows, (s + 40) / 1000, descriptors=x[rows])).chosen
        chosen += selector.finish().chosen
        copies = sum(600 <= i < 664 for _, i in chosen)
        assert 1 <= copies <= 3


def test_decisions_say_what_became_of_each_frame():
    blocks = list(stream(n=300))
    selector = RNDStream(8, seed=0, candidates=2)
    seen = [selector.offer(b) for b in blocks]
    assert {int(d) for o in seen for d in o.decisions} == {PASSED, WAITING, CHOSEN}
    last = selector.finish()
    waited = {
        (int(t), int(i))
        for b, o in zip(blocks, seen, strict=True)
        for t, i in zip(b.task[o.decisions == WAITING], b.index[o.decisions == WAITING], strict=True)
    }
    assert set(last.chosen) <= waited
    assert all("novelty" in why for o in [*seen, last] for why in o.why)


def test_one_pass_covers_the_pool_nearly_as_well_as_the_batch():
    blocks = list(stream(n=2000))
    x = np.concatenate([b.descriptors for b in blocks])
    ids = [(int(t), int(i)) for b in blocks for t, i in zip(b.task, b.index, strict=True)]
    index = {pair: k for k, pair in enumerate(ids)}
    moments = Moments(x.shape[1])
    moments.add(x)
    z = moments.stretch(x)

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


def test_uniform_time_is_even_in_time_and_over_walkers():
    n, walkers = 100, 6
    time = np.tile((np.arange(n) + 0.5) / n, walkers)
    walker = np.repeat(np.arange(walkers), n)
    for size in (4, 12, 50):
        selector = UniformTime(size, 0)
        selector.offer(frames(n * walkers, time=time, walker=walker))
        rows = np.array([i for _, i in selector.finish().chosen])
        np.testing.assert_allclose(np.sort(time[rows]), (np.arange(size) + 0.5) / size, atol=0.011)
        given = np.bincount(walker[rows], minlength=walkers)
        assert given.max() - given.min() <= 1


def test_uniform_time_goes_on_where_walkers_were_lost():
    time = np.concatenate([(np.arange(100) + 0.5) / 100, (np.arange(30) + 0.5) / 100])
    selector = UniformTime(10, 0)
    selector.offer(frames(130, time=time, walker=np.repeat([0, 1], [100, 30])))
    rows = np.array([i for _, i in selector.finish().chosen])
    np.testing.assert_allclose(np.sort(time[rows]), (np.arange(10) + 0.5) / 10, atol=0.011)
    assert (rows >= 100).sum() in (1, 2)  # of the three picks where both walkers have frames


def histogram(values, low, high, bins):
    return np.histogram(values, np.linspace(low, high, bins + 1))[0]


def test_global_energy_is_flat_where_the_pool_is_not():
    rng = np.random.default_rng(0)
    energy = np.concatenate([rng.normal(-3.4, 0.02, 5000), rng.uniform(-3.6, -3.2, 200)])
    selector = GlobalEnergy(32, 0)
    for part in np.array_split(np.arange(5200), 40):
        selector.offer(Batch(np.zeros(len(part), np.uint64), part.astype(np.int32), energy=energy[part]))
    last = selector.finish()
    found = histogram(energy[[i for _, i in last.chosen]], -3.6, -3.2, 8)
    assert found.min() >= 3
    assert found.max() <= 6
    assert histogram(energy, -3.6, -3.2, 8).max() > 1500
    assert last.why[0].startswith("energies of -3.")


def test_atomic_energies_and_forces_of_the_choice_are_flatter_than_those_of_a_draw():
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(size=2000) * 0.5)
    values = np.abs(rng.normal(size=(2000, 8))) * scale[:, None]
    for kind, column in ((AtomicEnergy, "energies"), (Force, "forces")):
        selector = kind(24, 0)
        selector.offer(frames(2000, **{column: values}))
        rows = [i for _, i in selector.finish().chosen]
        edges = 0.0, values.max(), 10
        drawn = histogram(values[rng.choice(2000, 24, replace=False)].ravel(), *edges)
        found = histogram(values[rows].ravel(), *edges)
        assert (found > 0).sum() > (drawn > 0).sum() + 2
        assert found.max() < 0.7 * drawn.max()


def test_grid_takes_as_many_from_every_cell():
    rng = np.random.default_rng(2)
    solid = np.stack([rng.normal(-4.6, 0.01, 900), rng.normal(0.8, 0.01, 900)])
    liquid = np.stack([rng.normal(-4.2, 0.01, 60), rng.normal(0.1, 0.01, 60)])
    between = np.array([[-4.4, -4.4], [0.5, 0.4]])
    enthalpy, order = np.concatenate([solid, liquid, between], axis=1)
    selector = Grid(6, 0, bins=(4, 4))
    selector.offer(frames(962, enthalpy=enthalpy, order=order, volume=np.full(962, 12.0)))
    rows = [i for _, i in selector.finish().chosen]
    assert {960, 961} <= set(rows)  # cells with one frame give it
    assert sum(900 <= i < 960 for i in rows) >= 1
    mixed = Grid(8, 0, bins=(4, 4))  # frames without an order are on a grid of their own
    mixed.offer(frames(962, enthalpy=enthalpy, order=np.where(np.arange(962) < 500, order, np.nan), volume=order + 12))
    why = mixed.finish().why
    assert any("orders of" in w for w in why)
    assert any("volumes of" in w for w in why)


def test_bins_do_not_depend_on_the_order_in_which_the_range_grows():
    values = np.concatenate([np.random.default_rng(3).normal(size=500), [40.0, -1e6, 3e-9, 0.0]])
    states = []
    for order in (np.arange(504), np.arange(504)[::-1], np.argsort(values)):
        histogram = Histogram(5, (16,))
        for part in np.array_split(order, 29):
            ids = np.stack([np.zeros(len(part)), part], axis=1).astype(np.uint64)
            histogram.add(part.astype(np.uint64) * np.uint64(2654435761), ids, values[part, None, None])
        states.append(histogram.state())
        assert len(histogram.frames) <= 5 * 16
    for state in states[1:]:
        for name in state:
            np.testing.assert_array_equal(state[name], states[0][name])


@pytest.mark.requires("skmatter")
def test_farthest_points_are_those_of_a_plain_loop():
    x = np.concatenate([b.descriptors for b in stream(n=200)]).astype(np.float64)
    selector = FPS(12, 3)
    selector.offer(frames(200, descriptors=x))
    rows = [i for _, i in selector.finish().chosen]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    away = np.full(200, np.inf)
    expected = [rows[0]]
    while len(expected) < 12:
        away = np.minimum(away, np.linalg.norm(z - z[expected[-1]], axis=1))
        expected.append(int(np.argmax(away)))
    assert rows == expected


@pytest.mark.requires("dscribe")
def test_rematch_takes_the_unlike_and_stops_at_its_threshold():
    rng = np.random.default_rng(5)
    kinds = np.abs(rng.normal(size=(3, 6, 10)))
    environments = np.repeat(kinds, 10, axis=0) + 0.01 * rng.random((30, 6, 10))
    selector = REMatch(3, 0)
    selector.offer(frames(30, environments=environments))
    assert sorted(i // 10 for _, i in selector.finish().chosen) == [0, 1, 2]
    selector = REMatch(20, 0, threshold=0.05)
    selector.offer(frames(30, environments=environments))
    last = selector.finish()
    assert len(last.chosen) == 3
    assert last.note == "3 frames were chosen, not 20: every other is closer than 0.05 to them"


def test_refused_frames_have_no_score():
    (block, *_) = stream()
    x = block.descriptors.copy()
    x[3, 2] = np.inf
    selector = RNDStream(30, seed=0)
    offer = selector.offer(Batch(block.task, block.index, 1.0, descriptors=x))
    assert np.isnan(offer.scores[3])
    assert offer.decisions[3] == REFUSED
    assert np.isfinite(np.delete(offer.scores, 3)).all()


def test_training_takes_the_novelty_away_where_it_was_trained():
    x = np.random.default_rng(0).normal(size=(8, 10))
    nets = Distillation(10, seed=0, steps=400)
    before = nets.novelty(x)
    assert nets.fit(x[:4]) < 400
    after = nets.novelty(x)
    assert after[:4].max() < 0.01 * before.mean()
    assert after[4:].min() > 5 * after[:4].max()


def test_training_converges_on_more_frames_than_a_step_sees():
    """Longer steps go in circles once there are some 40 frames, and g forgets as much as it learns."""
    x = np.random.default_rng(1).normal(size=(96, 128)).astype(np.float32)
    others = np.random.default_rng(2).normal(size=(96, 128)).astype(np.float32)
    nets = Distillation(128, seed=0)
    steps = [nets.fit(x[: k + 1]) for k in range(96)]
    assert np.mean(steps[-16:]) < 90  # of 100: it ends because g fits
    assert nets.novelty(x).mean() < 0.05 * nets.novelty(others).mean()


def test_the_few_steps_of_a_stream_tell_what_was_taken():
    x = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    others = np.random.default_rng(2).normal(size=(64, 128)).astype(np.float32)
    selector = RNDStream(4, 0)
    nets = Distillation(128, seed=0, steps=selector.steps, batch=RNDStream.BATCH)
    before = []
    for k in range(64):
        before.append(nets.novelty(x[k : k + 1])[0])
        nets.fit(x[: k + 1], RNDStream.RATE)
    assert nets.novelty(x).mean() < 0.35 * nets.novelty(others).mean()
    assert nets.novelty(x[-1:])[0] < 0.35 * before[-1]


def test_a_given_target_and_given_weights_change_nothing():
    x = np.random.default_rng(0).normal(size=(40, 20)).astype(np.float32)
    nets, again = Distillation(20, seed=3), Distillation(20, seed=3)
    nets.fit(x[:9])
    again.weights = nets.weights.copy()
    np.testing.assert_array_equal(nets.novelty(x, nets.target(x)), nets.novelty(x))
    np.testing.assert_array_equal(again.novelty(x), nets.novelty(x))
    assert nets.fit(x[:10]) == again.fit(x[:10])
    np.testing.assert_array_equal(again.weights, nets.weights)


CHOICE = """
import numpy as np
from campaign.science.distillation import Distillation
from campaign.science.rnd import RNDStream
from campaign.science.selection import Batch
x = np.random.default_rng(0).standard_normal((2000, 256), dtype=np.float32)
selector, chosen = RNDStream(32, 0), []
for s in range(0, 2000, 50):
    rows = np.arange(s, s + 50, dtype=np.int32)
    chosen += selector.offer(Batch(np.zeros(50, np.uint64), rows, (s + 50) / 2000, descriptors=x[s : s + 50])).chosen
print([i for _, i in [*chosen, *selector.finish().chosen]])
nets = Distillation(256, 0)
print([nets.predict(x[:k]).tobytes().hex()[-64:] + str(nets.predict(x[:k]).sum()) for k in (33, 300, 500, 513)])
"""


def test_the_choice_does_not_depend_on_the_threads_of_matrix_products():
    found = {}
    for threads in "124":
        names = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", CHOICE], env={**os.environ, **names}, capture_output=True, text=True, check=True
        )
        found[threads] = done.stdout
    assert len(set(found.values())) == 1
    assert found["1"].splitlines()[0].count(",") == 31


def test_farthest_points_start_far_out_and_are_never_twice_the_same():
    points = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    rows = farthest(points, 30)
    away = (points**2).sum(axis=1)
    for k in rows:
        assert away[k] >= 0.9999 * away.max()
        away = np.minimum(away, ((points - points[k]) ** 2).sum(axis=1))
    assert sorted(farthest(np.repeat(points[:2], 20, axis=0), 40)) == list(range(40))
    assert sorted(farthest(np.zeros((7, 3), np.float32), 7)) == list(range(7))


def test_without_a_compiler_the_same_comes_out(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    compiled, plain = Distillation(12, seed=0), Distillation(12, seed=0)
    compiled.fit(x)
    rows = farthest(x, 20)
    monkeypatch.setattr(distillation, "available", lambda: False)
    plain.fit(x)
    np.testing.assert_allclose(plain.weights, compiled.weights, atol=1e-4)
    assert np.abs(plain.weights - Distillation(12, seed=0).weights).max() > 0.01
    np.testing.assert_array_equal(farthest(x, 20), rows)
    assert sorted(farthest(np.zeros((7, 3), np.float32), 7)) == list(range(7))


def test_running_moments_are_those_of_the_whole():
    x = np.concatenate([b.descriptors for b in stream()]).astype(np.float64)
    x[:, 0] = 3.0
    moments = Moments(12)
    for block in np.array_split(x, 7):
        moments.add(block)
    np.testing.assert_allclose(moments.values[0], x.mean(axis=0))
    z = moments.normalise(x)
    np.testing.assert_allclose(z.std(axis=0)[1:], 1.0)
    assert (z[:, 0] == 0).all()


def test_features_are_stretched_up_to_ten_deviations():
    moments = Moments(2)
    moments.add(np.array([[-1.0, 3.0], [1.0, 3.0]]))
    far = np.array([[-0.5, 3.0], [3.0, 3.0], [-10.0, 3.0], [20.0, 3.0]])
    np.testing.assert_allclose(moments.stretch(far), [[-0.25, 0.0], [9.0, 0.0], [-100.0, 0.0], [200.0, 0.0]])


@pytest.mark.parametrize("method", [lambda x: rnd_batch(x, 8, 0), lambda x: stream_of(x, 8)])
def test_one_feature_far_out_is_taken_before_many_a_little_off(method):
    """A close contact: 6 deviations in 2 of 200 features, among frames that differ as much in all of them together."""
    rng = np.random.default_rng(3)
    for outlier in (137, 850):
        x = rng.normal(size=(1000, 200))
        x[outlier, :2] = 6.0
        assert outlier in method(x)


def stream_of(x, size):
    """Return the rows that one pass takes, in blocks of 50."""
    selector, n = RNDStream(size, 0), len(x)
    for s in range(0, n, 50):
        index = np.arange(s, s + 50, dtype=np.int32)
        selector.offer(Batch(np.zeros(50, np.uint64), index, (s + 50) / n, descriptors=x[s : s + 50]))
    selector.finish()
    return [i for _, i in selector.state()["final_ids"].tolist()]
