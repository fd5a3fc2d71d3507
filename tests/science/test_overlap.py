"""Distances of trajectories: by definition, and what they say of ones that are alike and ones that are not."""

import numpy as np
import pytest

from campaign.science.overlap import WANDERS, feature_distances, matches, rematch_distances

dscribe = pytest.importorskip("dscribe.kernels")


def test_rematch_distances_are_dscribes_kernel():
    dice = np.random.default_rng(0)
    left, right = ([dice.random((5, 7)) for _ in range(n)] for n in (3, 4))
    kernel = dscribe.REMatchKernel(alpha=0.1, metric="linear", normalize_kernel=True)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (*left, *right)]
    theirs = kernel.create(unit)
    found = rematch_distances(kernel, left, right)
    np.testing.assert_allclose(found, np.sqrt(2 - 2 * theirs[:3, 3:]), atol=1e-6)
    np.testing.assert_allclose(np.diag(rematch_distances(kernel, left, left)), 0.0, atol=1e-6)


def test_feature_distances_count_what_varies():
    x, y = np.array([[0.0, 5.0, 1.0]]), np.array([[3.0, 5.0, 5.0], [0.0, 9.0, 1.0]])
    found = feature_distances(x, y, np.array([1.0, 0.0, 2.0]))  # the second feature never varies
    np.testing.assert_allclose(found, [[np.sqrt((9 + 4) / 2), 0.0]])


def test_runs_that_are_alike_match_and_others_do_not():
    dice = np.random.default_rng(1)
    first, second, other = (dice.normal(size=(200, 3)) for _ in range(3))
    scale = np.ones(3)
    own = feature_distances(first, first, scale)
    assert matches(feature_distances(second, first, scale), own)["share"] > 0.9
    assert matches(feature_distances(other + 8.0, first, scale), own)["share"] == 0.0


def test_a_model_that_stays_where_the_reference_was_once_does_not_cover_it():
    dice = np.random.default_rng(2)
    reference = dice.normal(size=(50, 3))
    frozen = np.repeat(reference[10:11], 50, axis=0)
    scale = np.ones(3)
    own = feature_distances(reference, reference, scale)
    assert matches(feature_distances(frozen, reference, scale), own)["covered"] < 0.5
    other = matches(feature_distances(dice.normal(size=(50, 3)), reference, scale), own)
    assert min(other["share"], other["covered"]) > 0.85
    assert other["wander"] == pytest.approx(1.0, abs=0.3)


def test_neighbours_in_time_are_no_matches():
    """A run that drifts has near neighbours only in time: the limit is the distance of parts far apart."""
    path = np.arange(40.0)[:, None]
    own = feature_distances(path, path, np.ones(1))
    found = matches(own, own)
    assert found["reference"].min() == pytest.approx(10.0)
    np.testing.assert_allclose(found["model"], found["reference"])  # the same exclusion on both sides
    assert found["wander"] > WANDERS


def test_a_short_run_of_the_model_is_compared_along_its_own_time():
    found = matches(np.ones((10, 40)), np.ones((40, 40)))
    assert (found["share"], found["covered"], found["wander"]) == (1.0, 1.0, 1.0)
