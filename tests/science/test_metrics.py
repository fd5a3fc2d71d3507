"""Error norms against their definitions."""

import numpy as np
import pytest

from campaign.science.metrics import errors


def test_norms():
    found = errors([[0.0, 0.0], [1.0, 1.0]], [[1.0, -2.0], [1.0, 4.0]])
    assert found == pytest.approx({"mae": 1.5, "rmse": np.sqrt(14 / 4), "l4": (98 / 4) ** 0.25, "max": 3.0})


def test_huge_errors_do_not_overflow_and_perfect_ones_are_zero():
    assert errors([0.0], [1e100])["l4"] == pytest.approx(1e100)
    assert errors([1.0], [1.0]) == {"mae": 0.0, "rmse": 0.0, "l4": 0.0, "max": 0.0}


def test_a_prediction_that_is_not_finite_shows():
    assert all(np.isnan(v) for v in errors([0.0, 1.0], [np.nan, 1.0]).values())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        errors([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="empty"):
        errors([], [])
