"""Diffusion and conductivity of trajectories whose answer is known, and against definitions written out."""

import numpy as np
import pytest
from ase import Atoms
from ase.md.analysis import DiffusionCoefficient

from campaign.science import transport
from campaign.science.transport import BOLTZMANN, TooCoarse, TooShort


def walk(frames, atoms, diffusion, dt, seed):
    """Return the (n, a, 3) path of independent walkers with a diffusion coefficient in Å^2/ps."""
    step = np.random.default_rng(seed).normal(scale=np.sqrt(2 * diffusion * dt), size=(frames, atoms, 3))
    return np.cumsum(step, axis=0)


def test_msd_is_its_definition():
    x = walk(120, 70, 1.0, 0.1, 0) + 1e3  # more atoms than are transformed at a time
    written_out = [((x[k:] - x[: len(x) - k]) ** 2).sum(axis=2).mean() for k in range(len(x))]
    np.testing.assert_allclose(transport.msd(x), written_out, rtol=1e-9, atol=1e-9)


def test_wrapped_positions_in_a_skewed_and_breathing_cell_are_unwrapped():
    """The atoms' own motion is found whatever the cell does: neither the images nor the breathing are motion."""
    cell = np.array([[8.0, 0, 0], [3.0, 9.0, 0], [-2.0, 1.5, 7.0]])
    x = walk(400, 5, 2.0, 0.02, 1)
    still = np.repeat(cell[None], len(x), axis=0)
    scaled = np.linalg.solve(cell.T, x.reshape(-1, 3).T).T.reshape(x.shape)
    wrapped = (scaled - np.floor(scaled)) @ cell
    np.testing.assert_allclose(transport.unwrap(wrapped, still) - wrapped[0], x - x[0], atol=1e-9)
    breath = 1.0 + 0.05 * np.sin(0.3 * np.arange(len(x)))
    cells = still * breath[:, None, None]
    rest = np.repeat(wrapped[:1], len(x), axis=0) * breath[:, None, None]  # scaled coordinates that do not change
    np.testing.assert_allclose(transport.unwrap(rest, cells), np.repeat(wrapped[:1], len(x), axis=0), atol=1e-9)


def test_drift_of_the_whole_is_no_diffusion():
    x = walk(50, 4, 1.0, 0.1, 2)
    masses = np.array([1.0, 2.0, 3.0, 4.0])
    drift = 0.7 * np.arange(50)[:, None, None] * np.array([1.0, -2.0, 0.5])
    still = transport.without_drift(x, masses)
    np.testing.assert_allclose(transport.without_drift(x + drift, masses), still, atol=1e-9)
    np.testing.assert_allclose(np.einsum("a,nai->ni", masses, still), 0.0, atol=1e-9)


def test_walkers_of_known_diffusion():
    dt, true = 0.05, 1.1
    x = walk(20_000, 16, true, dt, 3)
    plan = transport.plan(len(x), dt, 5)
    assert (plan.first, plan.last, plan.length) == (10, 100, 4000)
    found = transport.diffusion(x, plan)
    assert 0.0 < found.error < 0.05
    assert abs(found.value - true) < 4 * found.error
    np.testing.assert_allclose(found.curve[1:], 6 * true * found.time[1:], rtol=0.1)


def test_wrapped_walkers_diffuse_as_ase_says_of_the_path_itself():
    """ASE is given the path as it was made; what is tested sees it wrapped, with all origins and in blocks."""
    from ase.units import fs

    dt_fs, frames, box = 20.0, 4000, 9.0
    dt = dt_fs / 1000
    x = walk(frames, 40, 1.3, dt, 4)
    cells = np.repeat(box * np.eye(3)[None], frames, axis=0)
    plan = transport.plan(frames, dt, 5, (0.5, 4.0))
    found = transport.diffusion(transport.unwrap(x % box, cells), plan)
    images = [Atoms("H40", positions=p) for p in x[::10]]
    peer = DiffusionCoefficient(images, timestep=10 * dt_fs * fs)
    peer.calculate(ignore_n_images=0, number_of_segments=10)  # one origin each, lags up to 8 ps
    theirs = float(np.ravel(peer.get_diffusion_coefficients()[0])[0]) * fs * 1000  # Å^2/ps
    assert found.value == pytest.approx(theirs, rel=0.08)
    assert found.exponent == pytest.approx(1.0, abs=0.05)


def test_msd_and_unwrapping_are_those_of_mdanalysis():
    """``NoJump`` and ``EinsteinMSD``: pip install mdanalysis tidynamics (they are no part of the environment)."""
    mda = pytest.importorskip("MDAnalysis")
    pytest.importorskip("tidynamics")
    from MDAnalysis.analysis.msd import EinsteinMSD
    from MDAnalysis.transformations.nojump import NoJump

    box, x = 9.0, walk(300, 6, 1.3, 0.02, 4)
    universe = mda.Universe.empty(6, trajectory=True)
    universe.load_new((x % box).astype("float32"), dimensions=np.array([box] * 3 + [90.0] * 3))
    universe.trajectory.add_transformations(NoJump())
    theirs = EinsteinMSD(universe, select="all", msd_type="xyz", fft=True).run()
    ours = transport.msd(transport.unwrap(x % box, np.repeat(box * np.eye(3)[None], 300, axis=0)))
    np.testing.assert_allclose(ours, theirs.results.timeseries, rtol=1e-5, atol=1e-4)


def test_frames_too_far_apart_are_refused_and_not_aliased():
    """64 ions of D = 1.2 in a box of 13.6 Å: at 20 ps between frames half of the motion would be lost, unseen."""
    box = 13.6
    for dt, fine in ((0.02, True), (0.4, True), (1.0, False), (20.0, False)):
        x = walk(500, 64, 1.2, dt, 1) % box
        cells = np.repeat(box * np.eye(3)[None], 500, axis=0)
        if fine:
            transport.unwrap(x, cells, dt)
        else:
            with pytest.raises(TooCoarse, match=rf"{dt:g} ps apart, .* Write a smaller 'every'"):
                transport.unwrap(x, cells, dt)


def test_atoms_that_rattle_about_their_sites_do_not_diffuse():
    x = 0.2 * np.random.default_rng(0).normal(size=(2000, 16, 3))
    assert abs(transport.diffusion(x, transport.plan(2000, 0.05, 5)).exponent) < 0.2


CHARGES = np.repeat([1.0, -1.0], 32)


def test_independent_ions_conduct_as_nernst_and_einstein_say():
    dt, volume, temperature, diffusions = 0.05, 2000.0, 1400.0, (1.2, 0.8)
    x = np.concatenate([walk(40_000, 32, d, dt, k) for k, d in enumerate(diffusions)], axis=1)
    true = transport.S_PER_CM * 32 * sum(diffusions) / (volume * BOLTZMANN * temperature)
    moment = transport.dipole(x, CHARGES)
    plan = transport.plan(len(x), dt, 10)
    einstein = transport.einstein_conductivity(moment, volume, temperature, plan)
    kubo = transport.green_kubo_conductivity(moment, volume, temperature, plan, (0.5, 1.5))
    for found in (einstein, kubo):
        assert found.error < 0.1 * true
        assert abs(found.value - true) < 4 * found.error


@pytest.mark.parametrize("stride", [1, 4])
def test_a_current_with_a_known_green_kubo_integral(stride):
    """An Ornstein-Uhlenbeck current: <J(0) . J(t)> = 3 s^2 exp(-t / tau), whose integral is 3 s^2 tau.

    Each frame has the exact displacement since the one before. A stride coarser than tau does not change the integral.
    """
    tau, s, dt, n = 0.1, 2.0, 0.02, 400_000
    dice = np.random.default_rng(5)
    keep = np.exp(-dt / tau)
    covariance = s**2 * np.array(
        [
            [1 - keep**2, tau * (1 - keep) ** 2],
            [tau * (1 - keep) ** 2, tau**2 * (2 * dt / tau - 3 + 4 * keep - keep**2)],
        ]
    )
    kicks = dice.multivariate_normal([0, 0], covariance, size=(n, 3))
    current = s * dice.normal(size=3)
    moment = np.zeros((n, 3))
    for k in range(1, n):
        moment[k] = moment[k - 1] + tau * (1 - keep) * current + kicks[k, :, 1]
        current = keep * current + kicks[k, :, 0]
    moment = moment[::stride]
    volume, temperature = 1500.0, 1300.0
    true = transport.S_PER_CM * s**2 * tau / (volume * BOLTZMANN * temperature)
    plan = transport.plan(len(moment), dt * stride, 10)
    kubo = transport.green_kubo_conductivity(moment, volume, temperature, plan, (0.5, 1.0))
    einstein = transport.einstein_conductivity(moment, volume, temperature, plan)
    assert kubo.value == pytest.approx(true, rel=0.05)
    assert abs(kubo.value - true) < 4 * kubo.error
    assert abs(einstein.value - true) < 4 * einstein.error


def test_units():
    """1 e^2 Å^2/ps over 1 Å^3 and 1 eV, in S/cm."""
    e = 1.602176634e-19
    siemens_per_metre = e**2 * 1e-20 / 1e-12 / (1e-30 * e)
    assert pytest.approx(siemens_per_metre / 100, rel=1e-9) == transport.S_PER_CM


def test_a_trajectory_without_room_says_how_long_it_should_be():
    with pytest.raises(TooShort) as caught:
        transport.plan(100, 0.02, 5)
    enough = round(caught.value.needed / 0.02) + 5
    assert transport.plan(enough, 0.02, 5).blocks == 5
    with pytest.raises(TooShort):
        transport.plan(1000, 0.02, 5, (1.0, 4.0))
    assert transport.plan(2100, 0.02, 5, (1.0, 4.0)).last == 200
