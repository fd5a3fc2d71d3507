"""Uncertainty of an ensemble, on data made up so that the answer is known."""

import numpy as np
import pytest

from campaign.science import uncertainty


def test_members_that_only_move_energy_between_species_agree():
    """One Na to one Cl: what is moved from all Na to all Cl is in no energy, and is no uncertainty."""
    rng = np.random.default_rng(0)
    kind = np.array([0, 1] * 4)
    truth = rng.normal(size=(6, 8))
    moved = np.array([0.3, -0.2, 0.05])
    energies = np.stack([truth + m * np.where(kind == 0, 1.0, -1.0) for m in moved])
    assert uncertainty.atomic_std(energies).min() > 0.1
    means = np.stack([energies[:, :, kind == s].mean(axis=(1, 2)) for s in (0, 1)], axis=1)
    shift = uncertainty.gauge(means, np.array([[4, 4]]))
    np.testing.assert_allclose(shift.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(uncertainty.atomic_std(energies - shift[:, kind][:, None]), 0.0, atol=1e-12)


def test_a_shift_that_changes_energies_stays_an_uncertainty():
    means = np.array([[1.0, 2.0], [1.5, 2.5]])
    one_more_each = uncertainty.gauge(means, np.array([[4, 4]]))
    np.testing.assert_allclose(one_more_each, 0.0, atol=1e-12)
    told_apart = uncertainty.gauge(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[4, 4], [2, 6]]))
    np.testing.assert_allclose(told_apart, 0.0, atol=1e-12)
    single = uncertainty.gauge(np.array([[1.0], [1.7]]), np.array([[32]]))
    np.testing.assert_allclose(single, 0.0, atol=1e-12)


def test_gauge_of_unequal_composition_adds_up_to_nothing():
    shift = uncertainty.gauge(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]), np.array([[2, 1]]))
    np.testing.assert_allclose(shift @ [2, 1], 0.0, atol=1e-12)
    assert np.abs(shift).max() > 0.1


def test_std_is_that_of_the_population_and_needs_two():
    energies = np.array([[[1.0]], [[2.0]], [[3.0]]])
    assert uncertainty.atomic_std(energies)[0, 0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two members"):
        uncertainty.atomic_std(energies[:1])


def test_frames_are_drawn_as_often_as_they_are_uncertain():
    scores = np.array([1.0, 2.0, 5.0, 0.0])
    uniform = np.random.default_rng(6).random((40000, 4))
    first = np.array([np.argmax(uncertainty.drawn(scores, u)) for u in uniform])
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 40000, scores / 8.0, atol=0.01)
    rows = np.argsort(-uncertainty.drawn(np.array([1.0, np.nan, np.inf, 0.0]), uniform[0]))
    assert set(rows[:2]) == {1, 2}  # what is not finite is never left out
    assert rows[3] == 3


def test_the_most_uncertain_atoms_of_all_frames_together():
    std = [np.array([0.1, 0.9, 0.2]), np.array([0.8, 0.7]), np.array([0.0, np.nan, 0.05])]
    found = uncertainty.most_uncertain(std, 0.5)
    assert [f.tolist() for f in found] == [[False, True, False], [True, True], [False, True, False]]
    assert sum(f.sum() for f in uncertainty.most_uncertain(std, 0.51)) == 5  # rounded up
    assert all(f.all() for f in uncertainty.most_uncertain(std, 1.0))
    assert uncertainty.most_uncertain([], 0.5) == []
    assert sum(f.sum() for f in uncertainty.most_uncertain([np.ones(4)] * 5, 0.3)) == 6  # ties change no count


def test_a_frame_is_judged_by_its_worst_atom_or_their_mean():
    std = np.array([[0.0, 0.9], [0.5, 0.5]])
    assert uncertainty.frame_scores(std).argmax() == 0
    assert uncertainty.frame_scores(std, "mean").argmax() == 1


def test_fingerprints_know_neither_order_nor_number_of_atoms():
    energies = np.random.default_rng(1).normal(size=(3, 5, 12))
    found = uncertainty.fingerprints(energies)
    assert found.shape == (5, 3 * uncertainty.QUANTILES)
    shuffled = energies[:, :, np.random.default_rng(2).permutation(12)]
    np.testing.assert_array_equal(uncertainty.fingerprints(shuffled), found)
    assert uncertainty.fingerprints(energies[:, :, :7]).shape == found.shape


def test_near_duplicates_do_not_all_enter():
    """Ten copies of the most uncertain frame and ten different ones: one copy and the different ones."""
    rng = np.random.default_rng(3)
    features = np.concatenate([np.ones((10, 4)) + 1e-6 * rng.normal(size=(10, 4)), 10 * rng.normal(size=(10, 4))])
    scores = np.concatenate([np.full(10, 2.0) + 0.01 * np.arange(10), np.linspace(1.0, 1.5, 10)])
    taken = uncertainty.thin(scores, features, 11)
    assert taken[0] == 9  # the most uncertain of all
    assert len([k for k in taken if k < 10]) == 1
    assert sorted(uncertainty.thin(scores, features, 50)) == list(range(20))


def test_among_frames_that_differ_the_most_uncertain_are_taken():
    features = 100.0 * np.eye(8)
    scores = np.array([3.0, 1.0, 7.0, 5.0, 2.0, 8.0, 4.0, 6.0])
    assert uncertainty.thin(scores, features, 3) == [5, 2, 7]


def test_thinning_does_not_stop_at_copies_or_at_what_is_not_finite():
    assert uncertainty.thin(np.array([1.0, 2.0, 3.0]), np.zeros((3, 2)), 2) == [2, 1]
    assert uncertainty.thin(np.array([1.0, np.inf, 3.0]), np.array([[0.0], [np.nan], [5.0]]), 1) == [1]
    assert uncertainty.thin(np.zeros(0), np.zeros((0, 2)), 3) == []


def test_rank_correlation():
    x = np.arange(20.0)
    assert uncertainty.rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert uncertainty.rank_correlation(x, -(x**3)) == pytest.approx(-1.0)
    assert abs(uncertainty.rank_correlation(*np.random.default_rng(4).normal(size=(2, 4000)))) < 0.05
    assert uncertainty.rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])) == pytest.approx(1.0)
    assert uncertainty.rank_correlation(np.ones(5), np.arange(5.0)) is None
    assert uncertainty.rank_correlation(np.zeros(0), np.zeros(0)) is None


def test_calibration_of_errors_that_are_drawn_from_the_uncertainty():
    rng = np.random.default_rng(5)
    std = rng.uniform(0.5, 2.0, 50000)
    good = uncertainty.calibration(std, rng.normal(size=50000) * std)
    assert good["factor"] == pytest.approx(1.0, abs=0.02)
    assert good["within"] == pytest.approx(0.683, abs=0.01)
    assert good["ence"] < 0.05
    assert [r["count"] for r in good["bins"]] == [5000] * 10
    predicted = [r["predicted"] for r in good["bins"]]
    assert predicted == sorted(predicted)
    bold = uncertainty.calibration(std / 4.0, rng.normal(size=50000) * std)
    assert bold["factor"] == pytest.approx(4.0, rel=0.03)
    assert bold["ence"] > 2.0


def test_calibration_of_little_or_nothing():
    assert uncertainty.calibration(np.zeros(0), np.zeros(0)) == {
        "bins": [], "factor": None, "ence": None, "within": None,
    }  # fmt: skip
    found = uncertainty.calibration(np.array([0.0, 1.0, np.nan]), np.array([0.1, -1.0, 1.0]))
    assert [r["count"] for r in found["bins"]] == [1, 1]
    assert found["within"] == 0.5
