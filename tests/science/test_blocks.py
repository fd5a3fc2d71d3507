"""Error bars that know about memory."""

import numpy as np
import pytest

from campaign.science.blocks import bracketed, compare, mean_and_error


def autoregressive(memory, n, seed):
    """Return a series of unit variance whose values forget themselves after about ``memory`` steps."""
    dice = np.random.default_rng(seed)
    keep = np.exp(-1.0 / memory)
    noise = dice.normal(size=n) * np.sqrt(1.0 - keep**2)
    out = np.empty(n)
    out[0] = dice.normal()
    for k in range(1, n):
        out[k] = keep * out[k - 1] + noise[k]
    return out


@pytest.mark.parametrize("memory", [0.01, 5.0, 25.0])
def test_the_error_is_the_spread_of_repeated_means(memory):
    n = 4096
    true = np.sqrt((1 + np.exp(-1 / memory)) / (1 - np.exp(-1 / memory)) / n)  # of an autoregressive series
    found = [mean_and_error(autoregressive(memory, n, seed)) for seed in range(40)]
    assert np.std([m for m, _ in found]) == pytest.approx(true, rel=0.35)
    assert np.median([e for _, e in found]) == pytest.approx(true, rel=0.35)


@pytest.mark.parametrize(("memory", "least"), [(40.0, 0.9), (80.0, 0.8)])
def test_the_error_of_a_series_not_much_longer_than_its_memory(memory, least):
    """A twentieth and a tenth of the series; means of five blocks alone claim 0.8 and 0.65 of the truth."""
    n = 800
    found = np.array([mean_and_error(autoregressive(memory, n, seed)) for seed in range(150)])
    known = np.isfinite(found[:, 1])
    assert known.mean() > 0.9
    assert found[known, 1].mean() > least * found[:, 0].std()


def test_a_series_that_remembers_its_beginning_has_no_error():
    assert np.isnan(mean_and_error(np.linspace(0.0, 1.0, 100) + 0.01 * np.cos(np.arange(100.0)))[1])
    white = [mean_and_error(np.random.default_rng(k).normal(size=100))[1] for k in range(100)]
    assert np.isfinite(white).all()


def test_too_few_values_have_no_error():
    assert np.isnan(mean_and_error(np.arange(4.0))[1])
    assert np.isnan(mean_and_error(np.zeros(0))).all()
    assert mean_and_error(np.full(5, 2.0)) == (2.0, 0.0)


def test_a_difference_that_is_not_known_well_enough_does_not_pass():
    good = compare((1.02, 0.002), (1.0, 0.002), limit=3.0, most=3.0, relative=True)
    assert good.ok
    assert good.difference == pytest.approx(2.0)
    assert good.error == pytest.approx(0.2 * np.sqrt(2))
    assert not compare((1.04, 0.002), (1.0, 0.002), 3.0, 3.0, relative=True).ok
    noisy = compare((1.0, 0.1), (1.0, 0.1), 3.0, 3.0, relative=True)
    assert noisy.short
    assert not noisy.ok
    far = compare((1.9, 0.1), (1.0, 0.1), 3.0, 1.0, relative=True)  # whatever its noise
    assert (far.short, far.ok) == (False, False)
    assert compare((1.0, np.nan), (1.0, 0.0), 3.0, 3.0, relative=True).short


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.1184, 0.0062, "1.118(6)"),
        (3.885, 0.118, "3.88(12)"),
        (1234.0, 43.0, "1230(40)"),
        (0.5, 0.00097, "0.5000(10)"),
        (0.5, 0.00099999, "0.5000(10)"),
        (1234.0, 143.0, "1230(140)"),
        (0.5, 0.0, "0.5"),
        (2.0, np.nan, "2"),
        (np.nan, 1.0, "not known"),
        (-0.02, 0.3, "0.0(3)"),
    ],
)
def test_a_value_with_its_error_in_brackets(value, error, text):
    assert bracketed(value, error) == text
