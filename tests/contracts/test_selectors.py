"""One suite over every selector: sizes, seeds, order, blocks, resuming, refusals, and what nobody hopes for."""

import io

import numpy as np
import pytest

from campaign.config import Campaign
from campaign.config.campaign_file import NOT_YET, Select
from campaign.science.selection import CHOSEN, PASSED, REFUSED, WAITING, Batch
from campaign.science.selectors import SELECTORS, build_selector

#: Selectors whose choice is not decided by the seed, and those that the order of arrival and the blocks may change.
WITHOUT_SEED = {"uniform_time"}
ORDERED = {"rnd_stream"}

#: Column that makes a frame unfit for a selector when it is NaN; random looks at none.
ESSENTIAL = {
    "uniform_time": "time",
    "global_energy": "energy",
    "atomic_energy": "energies",
    "force": "forces",
    "grid": "enthalpy",
    "fps": "descriptors",
    "rnd": "descriptors",
    "rnd_stream": "descriptors",
    "rematch": "environments",
}


#: Packages of the extra ``select``.
PACKAGES = {"fps": "skmatter", "rematch": "dscribe"}


@pytest.fixture(
    params=[pytest.param(m, marks=pytest.mark.requires(PACKAGES[m]) if m in PACKAGES else ()) for m in SELECTORS]
)
def method(request):
    return request.param


def pool(n=120, seed=0):
    """Return every column of ``n`` correlated frames."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n, 4))
    atoms = state[:, :1, None] + 0.3 * rng.normal(size=(n, 5, 1))
    walker = np.arange(n) % 4
    return {
        "task": (np.arange(n) // 40).astype(np.uint64) + np.uint64(2**63),
        "index": (np.arange(n) % 40).astype(np.int32),
        "descriptors": (state @ rng.normal(size=(4, 9)) + 0.1 * rng.normal(size=(n, 9)) + 5).astype(np.float32),
        "environments": np.abs(atoms + rng.normal(size=(1, 5, 6))).astype(np.float32),
        "energy": -3.4 + 0.05 * state[:, 0],
        "enthalpy": -3.4 + 0.05 * state[:, 0] + 0.01 * state[:, 1],
        "energies": -3.4 + 0.1 * atoms[:, :, 0],
        "forces": np.abs(atoms[:, :, 0]),
        "order": np.where(np.arange(n) % 3, state[:, 2], np.nan),
        "volume": 20 + state[:, 1],
        "walker": walker,
        "time": (np.arange(n) // 4 + 0.5) / (n / 4),
    }


def offers(method, columns, size=12, seed=1, block=17, order=None, selector=None, save=None):
    """Offer a pool; return all offers, ``finish`` the last. ``save`` is the block before which it is resumed."""
    selector = selector or build_selector(method, size, seed, {})
    n = len(columns["task"])
    order = np.arange(n) if order is None else order
    found = []
    for number, start in enumerate(range(0, n, block)):
        if number == save:
            selector = resumed(selector, method, size, seed)
        found.append(
            selector.offer(batch(selector, columns, order[start : start + block], min((start + block) / n, 1)))
        )
    if save is not None and save >= -(-n // block):
        selector = resumed(selector, method, size, seed)
    return [*found, selector.finish()]


def batch(selector, columns, rows, progress=1.0):
    """Return rows of a pool as a selector gets them: with what it needs and nothing else."""
    names = {"task", "index", *selector.needs}
    return Batch(progress=progress, **{k: v[rows] for k, v in columns.items() if k in names})


def resumed(selector, method, size, seed):
    """Send the state through a file that holds plain numbers only."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **selector.state())
    file.seek(0)
    after = build_selector(method, size, seed, {})
    with np.load(file, allow_pickle=False) as state:
        assert len(state.files) <= 10
        assert all(state[name].dtype.kind in "iuf" for name in state.files)
        after.load(dict(state))
    return after


def chosen(found):
    return [i for offer in found for i in offer.chosen]


def test_every_selector_of_the_campaign_file_is_here():
    kinds = {kind.model_fields["method"].default for kind in (a.__origin__ for a in Select.__origin__.__args__)}
    assert set(SELECTORS) == kinds
    assert not set(SELECTORS) & NOT_YET["select.method"]
    assert set(ESSENTIAL) == set(SELECTORS) - {"random"}
    for method in SELECTORS:
        system = {"structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3}}
        file = {"campaign": "c", "system": system, "sample": [{"method": "fake", "frames": 9}]}
        spec = Campaign.model_validate({**file, "select": {"method": method, "size": 3}}).select
        assert spec.min_distance == 0.5


def test_exactly_size_frames_each_once_and_from_the_pool(method):
    columns = pool()
    ids = set(zip(columns["task"].tolist(), columns["index"].tolist(), strict=True))
    for size in (1, 2, 12, 119, 120):
        found = offers(method, columns, size)
        picks = chosen(found)
        assert len(picks) == len(set(picks)) == size
        assert set(picks) <= ids
        assert all(type(v) is int for pair in picks for v in pair)


def test_every_choice_has_a_reason_and_every_frame_a_score_and_a_decision(method):
    found = offers(method, pool())
    assert all(len(o.why) == len(o.chosen) and all(o.why) for o in found)
    for offer, n in zip(found, [17] * 7 + [1, 0], strict=True):
        assert offer.scores.shape == offer.decisions.shape == (n,)
        assert (offer.scores.dtype, offer.decisions.dtype) == (np.float32, np.int8)
        assert np.isfinite(offer.scores).all()
        assert set(offer.decisions.tolist()) <= {PASSED, WAITING, CHOSEN}
        assert not offer.refused
    assert found[-1].note == ""


def test_a_pool_smaller_than_size_is_taken_whole(method):
    columns = pool(20)
    picks = chosen(offers(method, columns, size=32, block=6))
    assert sorted(picks) == sorted(zip(columns["task"].tolist(), columns["index"].tolist(), strict=True))
    assert chosen(offers(method, pool(0), size=5)) == []
    assert len(chosen(offers(method, pool(1), size=1))) == 1


def test_the_same_seed_chooses_the_same_and_another_does_not(method):
    runs = [chosen(offers(method, pool(), seed=s)) for s in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert (set(runs[0]) == set(runs[2])) == (method in WITHOUT_SEED)


def test_finish_twice_adds_nothing(method):
    selector = build_selector(method, 8, 0, {})
    assert len(chosen(offers(method, pool(60), selector=selector))) == 8
    assert selector.finish().chosen == []
    assert resumed(selector, method, 8, 0).finish().chosen == []


def test_resumed_at_any_point_it_goes_on_bitwise(method):
    columns = pool(100)
    straight = offers(method, columns)
    for save in range(7):
        again = offers(method, columns, save=save)
        assert chosen(again) == chosen(straight)
        for a, b in zip(again, straight, strict=True):
            np.testing.assert_array_equal(a.scores, b.scores)
            np.testing.assert_array_equal(a.decisions, b.decisions)
            assert a.why == b.why


def test_a_state_does_not_change_when_the_selector_goes_on(method):
    columns = pool(100)
    selector = build_selector(method, 8, 0, {})
    selector.offer(batch(selector, columns, np.arange(30), 0.3))
    state = selector.state()
    copy = {k: v.copy() for k, v in state.items()}
    selector.offer(batch(selector, columns, np.arange(30, 100)))
    selector.finish()
    for k in state:
        np.testing.assert_array_equal(state[k], copy[k])


def test_the_order_of_arrival_does_not_matter_where_it_must_not(method):
    columns = pool()
    straight = chosen(offers(method, columns))
    for seed in range(3):
        other = chosen(offers(method, columns, order=np.random.default_rng(seed).permutation(120)))
        assert len(other) == 12
        if method not in ORDERED:
            assert other == straight


def test_the_blocks_do_not_matter_where_they_must_not(method):
    columns = pool()
    runs = [chosen(offers(method, columns, block=block)) for block in (120, 17, 1)]
    assert {len(set(r)) for r in runs} == {12}
    if method not in ORDERED:
        assert runs[0] == runs[1] == runs[2]


def test_empty_blocks_change_nothing(method):
    columns = pool()
    selector = build_selector(method, 12, 1, {})
    none = batch(selector, columns, np.arange(0), 0.0)
    first = selector.offer(none)
    assert (first.scores.shape, first.decisions.shape, first.chosen) == ((0,), (0,), [])
    selector = resumed(selector, method, 12, 1)
    found = offers(method, columns, selector=selector)
    assert chosen(found) == chosen(offers(method, columns))


def test_unknown_values_are_refused_with_the_reason(method):
    columns = pool()
    bad = [0, 5, 40, 119]
    if method in ESSENTIAL:
        columns[ESSENTIAL[method]] = columns[ESSENTIAL[method]].copy()
        columns[ESSENTIAL[method]][bad] = [np.nan] if columns[ESSENTIAL[method]].ndim == 1 else np.nan
        columns[ESSENTIAL[method]][5] = np.inf
    found = offers(method, columns, size=118)
    picks = chosen(found)
    if method == "random":
        assert len(picks) == 118
        return
    unfit = {(int(columns["task"][k]), int(columns["index"][k])) for k in bad}
    assert len(set(picks)) == 116  # all that can be chosen
    assert not unfit & set(picks)
    refused = {
        start + k: why for start, o in zip(range(0, 120, 17), found[:-1], strict=True) for k, why in o.refused.items()
    }
    assert sorted(refused) == bad
    assert all("not known" in why or "not finite" in why for why in refused.values())
    seen = np.concatenate([o.decisions for o in found])
    np.testing.assert_array_equal(np.flatnonzero(seen == REFUSED), bad)
    assert np.isnan(np.concatenate([o.scores for o in found])[bad]).all()


def test_a_pool_without_a_single_known_value_gives_nothing(method):
    if method == "random":
        pytest.skip("it looks at no value")
    columns = pool(30)
    columns[ESSENTIAL[method]] = np.full_like(columns[ESSENTIAL[method]], np.nan, dtype=np.float64)
    found = offers(method, columns, save=1)
    assert chosen(found) == []
    assert sum(len(o.refused) for o in found) == 30
    whole = pool(40)  # and what comes later counts
    selector = build_selector(method, 5, 0, {})
    selector.offer(batch(selector, columns, np.arange(30), 0.4))
    later = selector.offer(batch(selector, whole, np.arange(30, 40)))
    assert len(chosen([later, selector.finish()])) == 5


def test_frames_that_are_all_alike_can_be_chosen(method):
    columns = pool(40)
    alike = {k: np.repeat(v[:1], 40, axis=0) for k, v in columns.items() if k not in ("task", "index")}
    picks = chosen(offers(method, {**columns, **alike}, size=9, block=7))
    assert len(picks) == len(set(picks)) == 9


def test_memory_does_not_grow_with_the_stream_where_it_must_not(method):
    if SELECTORS[method].whole_pool:
        pytest.skip("it keeps the pool, as it says")
    selector = build_selector(method, 3, 0, {})
    sizes = []
    for part in range(24):
        columns = pool(200, seed=part)
        columns["task"] = columns["task"] + np.uint64(100 * part)
        columns["time"] = (columns["time"] + part) / 24
        selector.offer(batch(selector, columns, np.arange(200), (part + 1) / 24))
        sizes.append(sum(v.nbytes for v in selector.state().values()))
    assert max(sizes[12:]) <= 1.3 * max(sizes[:12]) + 4096


def test_a_size_of_zero_is_no_size(method):
    with pytest.raises(ValueError, match="at least"):
        build_selector(method, 0, 0, {})


def test_what_is_needed_and_not_given_is_said(method):
    selector = build_selector(method, 3, 0, {})
    columns = pool(5)
    bare = Batch(columns["task"], columns["index"])
    if not selector.needs:
        selector.offer(bare)
    else:
        with pytest.raises(ValueError, match="none were given"):
            selector.offer(bare)
