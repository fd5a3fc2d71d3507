"""A verdict on molecular dynamics: each criterion alone breaks it, and the first bad frame is named."""

import json

import numpy as np
import pytest
from ase.build import bulk

from campaign.frames import Frames
from campaign.science.criteria import (
    ENERGY_DRIFT,
    ENERGY_NOISE,
    GUARDS,
    TEMPERATURE_DRIFT,
    fitted_change,
    judge,
)

ASKED = {
    "time": 2.0,
    "timestep": 0.002,
    "every": 50,
    "temperature": 300.0,
    "pressure": 1.0,
    "ensemble": "npt",
}
N = 20  # frames: 2 ps at 0.1 ps


def run(n=N):
    """Return a quiet run, its kinetic temperatures and its start."""
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    frames = Frames.build(
        atoms.numbers,
        atoms.positions + 0.05 * rng.normal(size=(n, 8, 3)),
        np.array(atoms.cell),
        energy=-25.0 + 0.05 * rng.normal(size=n),
        forces=rng.normal(size=(n, 8, 3)),
        task=7,
        step=50 * np.arange(1, n + 1),
    )
    return frames, 300 + 20 * rng.normal(size=n), frames[:1]


def broken(result):
    return {c["name"] for c in result["criteria"] if not c["ok"]}


def test_a_quiet_run_passes_and_its_result_is_json():
    frames, kinetic, start = run()
    result = judge(frames, kinetic, start, ASKED)
    assert broken(result) == set()
    assert result["pass"] is True
    assert result["first_bad"] is None
    assert result["reached"] == pytest.approx(2.0)
    assert len(result["criteria"]) == 7
    np.testing.assert_allclose(result["series"]["time"], 0.1 * np.arange(1, N + 1))
    np.testing.assert_allclose(result["series"]["energy"], frames.energy / 8, atol=1e-5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_collapsed_pair_is_found_at_its_frame():
    frames, kinetic, start = run()
    x = frames.positions.copy()
    x[13, 1] = x[13, 0] + [1.2, 0, 0]  # Na and Cl: radii sum to 2.68 Å
    result = judge(frames.with_(positions=x), kinetic, start, ASKED)
    assert broken(result) == {"closest pair"}
    first = {"time": pytest.approx(1.4), "criterion": "closest pair", "frame": frames.ids[13], "step": 700}
    assert result["first_bad"] == first
    worst = next(c for c in result["criteria"] if c["name"] == "closest pair")
    assert worst["worst"] < GUARDS["closest"] == worst["limit"]


def test_a_large_force_is_found_whatever_its_direction():
    frames, kinetic, start = run()
    forces = frames.forces.copy()
    forces[4, 7] = GUARDS["force"] / np.sqrt(3) * 1.01 * np.array([1, -1, 1])  # no component alone is over the limit
    result = judge(frames.with_(forces=forces), kinetic, start, ASKED)
    assert broken(result) == {"largest force"}
    assert result["first_bad"]["frame"] == frames.ids[4]


def test_a_cell_grown_by_half_is_found():
    frames, kinetic, start = run()
    scale = np.linspace(1, (GUARDS["volume"] * 1.02) ** (1 / 3), N)[:, None, None]
    grown = frames.with_(cell=frames.cell * scale, positions=frames.positions * scale)
    result = judge(grown, kinetic, start, ASKED)
    assert broken(result) == {"volume"}
    assert result["first_bad"]["frame"] == frames.ids[N - 1]


def test_what_is_asked_takes_the_place_of_the_usual_limits():
    frames, kinetic, start = run()
    scale = np.linspace(1, 1.8 ** (1 / 3), N)[:, None, None]
    grown = frames.with_(cell=frames.cell * scale, positions=frames.positions * scale)
    wide = judge(grown, kinetic, start, ASKED | {"guards": GUARDS | {"volume": 2.0}})
    assert "volume" not in broken(wide)
    assert next(c for c in wide["criteria"] if c["name"] == "volume")["limit"] == 2.0
    narrow = {"closest": 1.5, "force": 1e-3, "volume": 0.5, "temperature": 0.5}
    assert {"closest pair", "largest force", "volume", "temperature"} <= broken(
        judge(frames, kinetic, start, ASKED | {"guards": narrow})
    )


def test_the_usual_limits_are_those_of_the_campaign_file():
    from campaign.config.learning import Guards

    usual = Guards().model_dump()
    assert {name: usual[name] for name in GUARDS} == GUARDS


def test_a_hot_frame_and_a_warm_half_are_two_things():
    frames, kinetic, start = run()
    hot = kinetic.copy()
    hot[3] = 300 * GUARDS["temperature"] * 1.01
    assert broken(judge(frames, hot, start, ASKED)) == {"temperature"}
    warm = kinetic.copy()
    limits = {c["name"]: c["limit"] for c in judge(frames, kinetic, start, ASKED)["criteria"]}
    assert limits["temperature drift"] == pytest.approx(3 * np.sqrt(2 / 24 / 15), rel=1e-6)  # 8 atoms, 1.5 ps: noise
    warm[N // 5 :] += 300 * (limits["temperature drift"] + 0.05)
    result = judge(frames, warm, start, ASKED)
    assert broken(result) == {"temperature drift"}
    assert result["first_bad"] is None  # no single frame is bad
    assert broken(judge(frames, kinetic - 120, start, ASKED)) == {"temperature drift"}


def test_the_temperature_of_a_long_run_is_judged_by_the_limit_alone():
    frames, kinetic, start = run(2000)
    asked = {**ASKED, "time": 200.0}
    assert broken(judge(frames, kinetic, start, asked)) == set()
    assert broken(judge(frames, kinetic - 300 * TEMPERATURE_DRIFT * 1.1, start, asked)) == {"temperature drift"}


@pytest.mark.parametrize("sign", [1, -1])
def test_an_energy_that_drifts_is_found_and_equilibration_is_not(sign):
    frames, kinetic, start = run()
    time = 0.1 * np.arange(1, N + 1)
    drift = sign * 8 * 2 * ENERGY_DRIFT * np.maximum(time - 1.0, 0)
    assert broken(judge(frames.with_(energy=frames.energy + drift), kinetic, start, ASKED)) == {"energy drift"}
    early = sign * 8 * 5 * ENERGY_DRIFT * np.minimum(time, 0.4)  # the first fifth
    assert broken(judge(frames.with_(energy=frames.energy + early), kinetic, start, ASKED)) == set()
    frames, kinetic, start = run(400)
    jump = frames.energy + sign * 8 * 0.5 * (np.arange(400) >= 190)  # before the middle
    asked = {**ASKED, "time": 80.0, "every": 100}
    assert broken(judge(frames.with_(energy=jump), kinetic, start, asked)) == {"energy drift"}


def test_a_cell_that_collapses_is_found():
    frames, kinetic, start = run()
    scale = np.linspace(1, (GUARDS["volume"] * 1.02) ** (-1 / 3), N)[:, None, None]
    result = judge(frames.with_(cell=frames.cell * scale, positions=frames.positions * scale), kinetic, start, ASKED)
    assert broken(result) == {"volume"}
    worst = next(c for c in result["criteria"] if c["name"] == "volume")["worst"]
    assert worst == pytest.approx(1 / GUARDS["volume"] / 1.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_steady_drift_shows_in_a_quiet_run_and_not_in_the_noise_of_a_few_hot_atoms(sign):
    """0.16 eV/atom after the first fifth; the crystal and its melt are 0.16 apart."""
    frames, kinetic, start = run(500)
    asked = {**ASKED, "every": 10, "time": 10.0}
    drift = sign * 8 * 0.2 * np.linspace(0, 1, 500)
    assert broken(judge(frames.with_(energy=frames.energy + drift), kinetic, start, asked)) == {"energy drift"}
    hot = frames.energy + 8 * 0.1 * np.random.default_rng(1).normal(size=10).repeat(50)  # slow: 1 ps a value
    assert broken(judge(frames.with_(energy=hot), kinetic, start, asked)) == set()


@pytest.mark.parametrize("memory", [1, 10, 20])
def test_the_error_of_a_fitted_change_is_its_spread_over_many_runs(memory):
    """Noise that forgets itself after up to 0.4 ps; the estimate is never much too small."""
    rng = np.random.default_rng(3)
    time, keep = 0.02 * np.arange(250), np.exp(-2 / memory) if memory > 1 else 0.0
    noise = rng.normal(size=(300, 750))
    for k in range(1, 750):
        noise[:, k] = keep * noise[:, k - 1] + np.sqrt(1 - keep**2) * noise[:, k]
    found = np.array([fitted_change(time, 3.0 + values[500:]) for values in noise])
    spread = found[:, 0].std()
    assert 0.85 * spread < found[:, 1].mean()
    assert (np.abs(found[:, 0]) > 4 * found[:, 1]).mean() < 0.01
    if memory == 20:
        assert found[:, 1].mean() < 2 * spread
    shift = [fitted_change(time, 3.0 + 7.0 * time / time[-1] + values[500:])[0] for values in noise[:5]]
    np.testing.assert_allclose(shift, 7.0 + found[:5, 0])


def test_the_drift_that_matters_is_seen_through_a_sudden_change():
    """A crystal that melts at once in the middle of the second half: a step, not a line."""
    time = 0.02 * np.arange(250)
    noise = 0.013 * np.random.default_rng(0).normal(size=250)  # 64 atoms
    change, error = fitted_change(time, np.where(time < 2.5, 0.0, 0.16) + noise)
    assert change > max(ENERGY_DRIFT, ENERGY_NOISE * error)


@pytest.mark.lammps
def test_a_short_run_of_the_right_potential_from_near_equilibrium_passes():
    from pathlib import Path

    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.lammps_potential import load_potential

    potential = load_potential(Path(__file__).parents[2] / "templates/potentials/nacl_bmhtf.lmp")
    atoms = bulk("NaCl", "rocksalt", a=5.95, cubic=True) * (2, 2, 2)
    asked = {**ASKED, "time": 5.0, "temperature": 1100.0}
    segment = Segment(50, 50, 0, 0.002, (1100.0, 1100.0), 1.0)
    begin = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 11, ((1100.0, 1.0, 1.0),))
    arrays, _ = run_segment(potential, segment, begin)
    kinetic = arrays.pop("kinetic")
    frames = Frames.build(atoms.numbers, **arrays, task=1)
    result = judge(frames, kinetic, frames, asked)
    assert broken(result) == set()
    drift = next(c for c in result["criteria"] if c["name"] == "energy drift")
    assert drift["limit"] < 0.15


def test_a_run_without_a_frame_fails_with_its_cause():
    frames, kinetic, start = run()
    result = judge(frames[:0], kinetic[:0], start, ASKED, "Atoms were lost: 3 of 8 are left.")
    assert result["pass"] is False
    assert result["reached"] == 0
    assert broken(result) == {"time reached"}
    assert result["criteria"][0]["cause"] == "Atoms were lost: 3 of 8 are left."
    assert result["first_bad"] == {"time": 0.0, "criterion": "Atoms were lost: 3 of 8 are left.", "frame": None}
    assert not any(result["series"].values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_run_that_ended_early_fails_with_its_cause():
    frames, kinetic, start = run(6)
    result = judge(frames, kinetic, start, ASKED, "LAMMPS: Lost atoms.")
    assert broken(result) == {"time reached"}
    assert result["reached"] == pytest.approx(0.6)
    assert result["first_bad"] == {
        "time": pytest.approx(0.6),
        "criterion": "LAMMPS: Lost atoms.",
        "frame": frames.ids[-1],
        "step": 300,
    }
    assert "time reached" in broken(judge(frames, kinetic, start, ASKED))


def test_a_run_of_one_frame_is_judged():
    frames, kinetic, start = run(1)
    result = judge(frames, kinetic, start, {**ASKED, "time": 0.1})
    assert result["pass"] is True


def test_a_long_series_is_thinned_and_keeps_its_ends():
    frames, kinetic, start = run(1201)
    result = judge(frames, kinetic, start, {**ASKED, "time": 120.1})
    assert len(result["series"]["time"]) <= 500
    assert result["series"]["time"][0] == pytest.approx(0.1)
    assert result["series"]["time"][-1] == pytest.approx(120.1)


def test_a_sign_between_the_kept_frames_breaks_its_criterion():
    frames, kinetic, start = run(12)
    volume = float(start.volume[0])
    seen = {
        "closest pair": (0.55, 0.6, "of the covalent radii", 0.55),
        "largest force": (44.0, 30.0, "eV/Å", 44.0),
        "volume": (1.6 * volume, 1.5 * volume, "Å^3", 1.6),
        "temperature": (900.0, 600.0, "K", 3.0),
        "energy": (None, None, "", None),
    }
    for name, (value, limit, unit, worst) in seen.items():
        sign = {"criterion": name, "step": 613, "value": value, "limit": limit, "unit": unit}
        result = judge(frames, kinetic, start, ASKED, f"First sign of failure: {name}.", sign)
        assert broken(result) == {name, "time reached"}
        (found,) = (c for c in result["criteria"] if c["name"] == name)
        assert found["worst"] == (None if worst is None else pytest.approx(worst))
        assert result["reached"] == pytest.approx(1.226)
        assert result["first_bad"] == {
            "time": pytest.approx(1.226),
            "criterion": name,
            "frame": frames.ids[-1],
            "step": 613,
        }
        json.dumps(result, allow_nan=False)
        none = judge(frames[:0], kinetic[:0], start, ASKED, "First sign.", {**sign, "step": 3})
        assert broken(none) == {name, "time reached"}
        assert none["first_bad"] == {"time": pytest.approx(0.006), "criterion": name, "frame": None, "step": 3}
