"""What errors cost: the values, the slopes, and who counts more."""

import numpy as np
import pytest
import torch

from campaign.science.losses import KINDS, fourth_power, penalty


def errors(n=40, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(n, 3)) * scale)


def test_values_are_those_of_their_formulas():
    e = errors()
    x = e.numpy()
    assert float(penalty(e, "mse")) == pytest.approx(np.mean(x**2), rel=1e-12)
    assert float(penalty(e, "l4")) == pytest.approx(np.mean(x**4) ** 0.5, rel=1e-12)
    h = np.where(np.abs(x) <= 0.2, x**2, 0.4 * np.abs(x) - 0.04)
    assert (np.abs(x) > 0.2).any()
    assert float(penalty(e, "huber", 0.2)) == pytest.approx(h.mean(), rel=1e-12)
    assert float(penalty(e, "huber", 1e3)) == pytest.approx(np.mean(x**2), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_derivatives_of_the_values(kind):
    e = errors().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: penalty(x, kind, 0.2), (e,), eps=1e-7, atol=1e-8)
    slope = torch.autograd.grad(penalty(e, kind, 0.2), e)[0]
    way = errors(seed=1)
    up, down = (penalty(e.detach() + s * 1e-6 * way, kind, 0.2) for s in (1, -1))
    assert float((slope * way).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_quadratic_in_a_common_factor(kind):
    e = errors()
    assert float(penalty(7.0 * e, kind, 7.0 * 0.2)) == pytest.approx(49.0 * float(penalty(e, kind, 0.2)), rel=1e-9)


def test_an_outlier_pulls_more_in_l4_and_less_in_huber():
    e = torch.full((100,), 0.05, dtype=torch.float64)
    e[0] = 1.0

    def pull(kind):
        x = e.clone().requires_grad_()
        slope = torch.autograd.grad(penalty(x, kind, 0.1), x)[0]
        return float(slope[0] / slope[1])

    assert pull("mse") == pytest.approx(20.0)
    assert pull("huber") == pytest.approx(2.0)
    assert pull("l4") == pytest.approx(20.0**3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_costs_nothing_and_has_no_slope(kind):
    e = torch.zeros((5, 3), requires_grad=True)
    cost = penalty(e, kind)
    assert float(cost) == pytest.approx(0.0, abs=1e-9)
    assert not torch.autograd.grad(cost, e)[0].any()


def test_steps_of_l4_go_down_the_slope_of_the_root_over_all_frames():
    """And not down that of a root a step, where a frame of large errors weighs by its square alone."""
    e = torch.cat([errors(scale=0.1), errors(seed=1, scale=2.0), errors(seed=2, scale=0.1)]).requires_grad_()
    whole = penalty(e, "l4")
    expected = torch.autograd.grad(whole, e)[0]
    fourth = fourth_power(e.detach())
    steps = [penalty(part, "l4", fourth=fourth) for part in e.split(40)]
    assert float(sum(steps)) / 3 == pytest.approx(float(whole), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(sum(steps) / 3, e)[0], expected, rtol=1e-12, atol=0)
    own = torch.autograd.grad(sum(penalty(part, "l4") for part in e.split(40)) / 3, e)[0]
    pull = [float(g[40:80].norm() / g[:40].norm()) for g in (expected, own)]
    assert pull[0] == pytest.approx(20.0**3, rel=0.5)
    assert pull[1] == pytest.approx(20.0, rel=0.5)


def fitted(kind, way):
    """Fit a line to frames of 8 points, one frame a step; some frames are bent. Return the errors, and ``way``'s best.

    ``way``: tangent (what training does) or step (a root of each step's own mean).
    """
    from scipy.optimize import minimize

    rng = np.random.default_rng(5)
    x = torch.tensor(rng.normal(size=(30, 8, 3)))
    y = x @ x.new_tensor([1.0, -2.0, 0.5]) + torch.tensor(0.1 * rng.normal(size=(30, 8)))
    y[:3] += (x[:3] ** 2) @ x.new_tensor([1.0, 0.0, -0.5])
    w = torch.zeros(3, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=3e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-2, total_steps=2000, pct_start=0.1)
    fourth, mean = x.new_tensor(1.0), w.detach().clone()
    for frame in rng.integers(30, size=2000):
        errors = x[frame] @ w - y[frame]
        optimizer.zero_grad()
        penalty(errors, kind, fourth=fourth if way == "tangent" else None).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            fourth.lerp_(fourth_power(errors), 0.01)
            mean.lerp_(w, 0.01)
    best = minimize(lambda p: np.mean((x.numpy() @ p - y.numpy()) ** 4), mean.numpy()).fun ** 0.25
    return (x @ mean - y).numpy(), best


def test_l4_leaves_smaller_outliers_than_mse():
    """Not so where each step takes a root of its own: that ends where mse does, if the outliers are in a few frames."""
    squares, _ = fitted("mse", "tangent")
    errors, best = fitted("l4", "tangent")
    own, _ = fitted("l4", "step")

    def l4(e):
        return np.mean(e**4) ** 0.25

    assert l4(errors) < 1.01 * best
    assert l4(squares) > 1.05 * best
    assert np.abs(errors).max() < 0.9 * np.abs(squares).max()
    assert np.mean(errors**2) > np.mean(squares**2)
    assert l4(own) > 1.05 * best


def test_the_tangent_of_l4_lies_above_its_root_and_touches_it():
    e = errors()
    root = float(penalty(e, "l4"))
    for factor in (0.1, 0.9, 1.1, 10.0):
        assert float(penalty(e, "l4", fourth=factor * fourth_power(e))) > root
    assert float(penalty(e, "l4", fourth=fourth_power(e))) == pytest.approx(root, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_several_models_at_once_cost_what_each_does(kind):
    e = torch.stack([errors(seed=s) for s in range(3)])
    fourth = torch.tensor([1e-3, 2e-3, 5e-3], dtype=e.dtype)
    found = penalty(e, kind, 0.2, fourth, keep=1)
    torch.testing.assert_close(found, torch.stack([penalty(x, kind, 0.2, f) for x, f in zip(e, fourth, strict=True)]))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no loss l3; the kinds are mse, huber, l4"):
        penalty(errors(), "l3")
