"""The extended ensemble: equations against finite differences and against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from scipy.interpolate import BSpline

from campaign.science import momt
from campaign.science.momt import BOLTZMANN, Ensemble, Learning, Order, Window

WINDOW = Window(-4.75, -4.05, 900.0, 3500.0)
CRYSTALS = {
    "fcc": ("Ni", {"a": 3.52, "cubic": True}, (2, 2, 2)),
    "bcc": ("Nb", {"a": 3.3, "cubic": True}, (3, 3, 3)),
    "hcp": ("Ti", {"a": 2.95}, (3, 4, 2)),
    "diamond": ("Si", {"a": 5.43, "cubic": True}, (2, 2, 2)),
    "rocksalt": ("NaCl", {"a": 5.64, "cubic": True}, (2, 2, 3)),
    "sc": ("Po", {"a": 3.35}, (3, 3, 3)),
    "cesiumchloride": ("CsCl", {"a": 4.12}, (3, 3, 3)),
    "zincblende": ("ZnS", {"a": 5.41, "cubic": True}, (2, 2, 2)),
}


def ensemble(bins=(24, 20), **learning):
    spec = {"bins": bins, "width": 1.5, "height": 0.1, "hold": 0, "rate": 240.0, **learning}
    return Ensemble(32, 2000.0, 1e-6, WINDOW, Learning(**spec))


def evaluate(h, q, spec, grid):
    out = np.zeros(4)
    momt.effective(h, q, spec.parameters(), grid, np.zeros((2, 2, 4)), out)
    return out


def crystal(kind):
    symbol, options, repeats = CRYSTALS[kind]
    unit = bulk(symbol, kind, **options)
    return unit, unit * repeats, Order.of_crystal(unit.get_scaled_positions(), repeats, np.array(unit.cell))


def q_of(atoms, order):
    waves, sums = np.zeros((2, 3 + len(order.signs), len(atoms))), np.zeros((len(order.signs), 2))
    momt.structure_sums(atoms.positions, np.linalg.inv(np.array(atoms.cell)), order.base, order.signs, waves, sums)
    return momt.order_of(sums, len(atoms), order.strength), waves, sums


def test_without_a_bias_lambda_is_t0_over_t_and_the_temperature_is_linear_in_the_enthalpy():
    spec, grid = ensemble(), np.zeros((24, 20))
    for h, t in ((-4.75, 900.0), (-4.4, 2200.0), (-4.05, 3500.0)):
        _, scale, slope, bias = evaluate(h, 0.4, spec, grid)
        assert scale == pytest.approx(2000.0 / t, rel=1e-12)
        assert slope == bias == 0.0


@pytest.mark.parametrize("h", [-4.9, -4.751, -4.7499, -4.6, -4.4123, -4.0501, -4.049, -3.9])
@pytest.mark.parametrize("q", [0.0005, 0.03, 0.5, 0.77, 0.9995])
def test_lambda_and_the_slope_in_q_are_the_derivatives_of_s(h, q):
    spec = ensemble()
    spec = Ensemble(**{**spec.__dict__, "limits": (-1e9, 1e9)})
    grid = np.random.default_rng(3).normal(size=(24, 20)) * 3.0
    d = 1e-6

    def s(dh, dq):
        return evaluate(h + dh, q + dq, spec, grid)[momt.ENTROPY]

    _, scale, slope, _ = evaluate(h, q, spec, grid)
    kt = BOLTZMANN * 2000.0
    assert scale == pytest.approx((s(d, 0) - s(-d, 0)) / (2 * d) * kt / 32, rel=2e-6, abs=1e-6)
    assert slope == pytest.approx((s(0, d) - s(0, -d)) / (2 * d), rel=2e-6, abs=1e-5)


def test_the_bias_is_a_cubic_b_spline_mirrored_at_the_edges():
    grid = np.random.default_rng(4).normal(size=(9, 1))
    spec = ensemble(bins=(9, 1))
    coefficients = grid[[3, 2, 1, *range(9), 7, 6, 5], 0]
    peer = BSpline(np.arange(-5, 14), coefficients, 3)
    for h in np.linspace(-4.75, -4.05, 37):
        u = (h + 4.75) / 0.7 * 8
        assert evaluate(h, 0.0, spec, grid)[momt.BIAS] == pytest.approx(float(peer(u)), abs=1e-12)


def test_a_deposit_is_a_gaussian_with_its_mirror_images():
    grid, lines = np.zeros((24, 20)), np.zeros((2, 24))
    momt.deposit(grid, 0.0, 7.3, 0.5, 1.5, lines)
    i, j = np.arange(24)[:, None], np.arange(20)
    gauss = np.exp(-(((j - 7.3) / 1.5) ** 2) / 2) * (abs(j - 7.3) < 6)
    want = 0.5 * np.exp(-((i / 1.5) ** 2) / 2) * (abs(i) < 6) * gauss * 2  # the image at the edge is the same
    assert np.allclose(grid, want, atol=1e-14)
    # far from the edges the whole of it lies on the grid
    grid[:] = 0
    momt.deposit(grid, 12.0, 10.0, 1.0, 1.5, lines)
    assert grid.sum() == pytest.approx(2 * np.pi * 1.5**2, rel=1e-3)


def test_the_height_of_a_deposit_falls_as_one_over_their_number():
    p = ensemble().parameters()
    assert momt.height_of(0.0, p) == 0.1
    assert momt.height_of(4799.0, p) == pytest.approx(0.05)
    held = ensemble(hold=5000).parameters()
    assert momt.height_of(4999.0, held) == 0.1
    assert momt.height_of(5000.0, held) == pytest.approx(240 / 5001)


def test_turns_are_cosine_and_sine_to_rounding():
    angles = np.concatenate([np.linspace(-3, 3, 4801), np.random.default_rng(1).normal(size=5000) * 40])
    c, s = angles.copy(), np.zeros_like(angles)
    momt.turns(c, s)
    exact = 2 * np.pi * (angles - np.round(angles))
    assert np.abs(c - np.cos(exact)).max() < 5e-16
    assert np.abs(s - np.sin(exact)).max() < 5e-16


@pytest.mark.parametrize("kind", CRYSTALS)
def test_q_is_one_for_the_crystal_in_any_place_and_of_any_size_and_small_for_random_atoms(kind):
    _, atoms, order = crystal(kind)
    assert q_of(atoms, order)[0] == pytest.approx(1.0, abs=1e-12)
    atoms.positions += [0.31, -7.2, 100.3]
    atoms.set_cell(np.array(atoms.cell) * 1.13, scale_atoms=True)
    assert q_of(atoms, order)[0] == pytest.approx(1.0, abs=1e-10)
    atoms.set_scaled_positions(np.random.default_rng(1).random((len(atoms), 3)))
    assert q_of(atoms, order)[0] < 0.4


@pytest.mark.parametrize("kind", CRYSTALS)
def test_q_is_the_formula_and_its_forces_are_its_gradient(kind):
    _, atoms, order = crystal(kind)
    rng = np.random.default_rng(7)
    atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.3
    atoms.set_cell(np.array(atoms.cell) @ (np.eye(3) + np.tril(rng.normal(size=(3, 3)) * 0.03)), scale_atoms=True)
    q, waves, sums = q_of(atoms, order)
    rho = np.exp(2j * np.pi * atoms.get_scaled_positions() @ order.vectors.T).mean(axis=0)
    assert q == pytest.approx(np.sqrt((abs(rho) ** 2).mean()) / order.strength, rel=1e-12)
    n, k = len(atoms), len(order.signs)
    gradient = np.zeros((n, 3))
    factor = 1.0 / (q * k * order.strength**2 * n**2)
    inverse = np.linalg.inv(np.array(atoms.cell))
    momt.order_forces(factor, inverse, order.base, order.signs, waves, sums, gradient)
    d = 1e-5
    for i, a in ((0, 0), (3, 1), (n - 1, 2)):
        moved = []
        for sign in (1, -1):
            other = atoms.copy()
            other.positions[i, a] += sign * d
            moved.append(q_of(other, order)[0])
        assert gradient[i, a] == pytest.approx((moved[0] - moved[1]) / (2 * d), rel=1e-6, abs=1e-9)
    assert np.abs(gradient.sum(axis=0)).max() < 1e-12  # no force on the whole


def test_the_reflections_are_those_of_the_textbook():
    def indices(kind):
        _, _, order = crystal(kind)
        return len(order.signs), sorted(np.abs(order.vectors // np.array(CRYSTALS[kind][2])).max(axis=0).tolist())

    assert indices("fcc") == (4, [1, 1, 1])
    assert indices("bcc") == (6, [1, 1, 1])
    assert indices("rocksalt") == (3, [2, 2, 2])
    assert indices("hcp")[0] == 6
    assert crystal("hcp")[2].strength == pytest.approx(np.sqrt(3) / 2)
    assert crystal("diamond")[2].strength == pytest.approx(np.sqrt(0.5))


def test_round_trips_count_the_way_there_and_back():
    spec = ensemble()
    h = np.array([-4.7, -4.5, -4.2, -4.6, -4.7, -4.1, -4.3, -4.7])
    q = np.array([0.9, 0.4, 0.1, 0.1, 0.9, 0.1, 0.4, 0.1])  # the last is a turned crystal: neither
    assert momt.round_trips(h, q, spec) == 1.5


def test_coverage_and_flatness():
    visits = np.zeros((4, 5), "int64")
    visits[:2] = 10
    assert momt.coverage(visits) == (0.5, 1.0)
    assert momt.coverage(np.zeros((2, 2))) == (0.0, 0.0)


def test_reweighting_gives_the_mean_of_another_temperature():
    """Enthalpies drawn flat with S = ln(density of states): the mean at T is known in closed form."""
    rng = np.random.default_rng(0)
    n_dof, t = 60, 1500.0
    h = rng.uniform(2.0, 20.0, 400_000)  # density of states h^(n_dof/2 - 1): S = its logarithm is a flat histogram
    entropy = (n_dof / 2 - 1) * np.log(h)
    mean, error = momt.reweighted(h, momt.log_weight(entropy, h, t))
    assert abs(mean - n_dof / 2 * BOLTZMANN * t) < 3 * error
    assert error < 0.01
    assert momt.worth(np.zeros(50)) == pytest.approx(50.0)
    assert momt.worth(np.array([0.0] + [-50.0] * 49)) == pytest.approx(1.0)


def test_an_ensemble_and_an_order_parameter_survive_json():
    import json

    spec, order = ensemble(), crystal("hcp")[2]
    assert Ensemble.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    back = Order.from_json(json.loads(json.dumps(order.to_json())))
    assert (back.vectors == order.vectors).all()
    assert back.strength == order.strength


def test_plain_python_gives_what_compiled_code_gives():
    if not momt.COMPILED:
        pytest.skip("numba is not installed: plain Python is all there is")
    spec, grid = ensemble(), np.random.default_rng(2).normal(size=(24, 20))
    outs = []
    for function in (momt.effective, momt.effective.py_func):
        out = np.zeros(4)
        function(-4.4321, 0.3456, spec.parameters(), grid, np.zeros((2, 2, 4)), out)
        outs.append(out)
    assert np.allclose(*outs, rtol=1e-13)
