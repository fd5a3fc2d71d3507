"""The tests of the physics, on trajectories whose answer is known: verdict, figures of the report, and what is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from campaign.engines.fake import ToyCrystal
from campaign.engines.structures import build_structure
from campaign.frames import Frames
from campaign.report.html import render
from campaign.stages.validate_relax import judge, usual_crystals
from campaign.stages.verdicts import read_result
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record
from campaign.worker import do_task

SPEC = {"ensemble": "nvt", "temperature": 300.0, "pressure": 1.0, "time": 20.0, "timestep": 0.002, "every": 10}


def plant(store, name, spec, segments, reached=None, broken=""):
    """Publish segments (arrays of ``Frames.build``) as one run and return the id of the task that sums it up."""
    done = []
    for k, arrays in enumerate(segments):
        task = Task("validate", f"{name}/segment {k}", {"name": name, "segment": k}, tuple(done[-1:]))
        frames = Frames.build(**arrays, task=task.number)
        kinetic = np.full(len(frames), spec["temperature"])
        store.publish(new_record(task, 0), {**dict(frames.arrays()), "kinetic": kinetic})
        done.append(task.id)
    reached = spec["time"] if reached is None else reached
    result = {
        "segments": done,
        "criteria": [
            {"name": "energy drift", "ok": broken != "energy drift"},
            {"name": "time reached", "ok": reached == spec["time"]},
        ],
        "first_bad": None if reached == spec["time"] else {"criterion": "closest pair"},
        "reached": reached,
        **{k: spec[k] for k in ("ensemble", "temperature", "time")},
    }
    task = Task("validate", name, {"name": name}, tuple(done))
    text = np.frombuffer(json.dumps(result).encode(), dtype="uint8")
    store.publish(new_record(task, 0), {"json": text})
    return task.id


FRAMES = 1000
NUMBERS = np.repeat([11, 17], 32)
CELL = np.eye(3) * 12.0
#: What a worker gets of each test, where nothing is written in the campaign file.
DENSITY = {"method": "density", "reference": None, "threshold": "1 %", "error": None}
DIFFUSION = {"method": "diffusion", "fit": None, "blocks": 5, "threshold": "10 %", "error": None}
CONDUCTIVITY = {
    "method": "conductivity", "charges": {"Na": 1, "Cl": -1}, "fit": [0.3, 1.5], "plateau": [0.3, 1.0],
    "blocks": 5,
    "threshold": "20 %", "error": None,
}  # fmt: skip
RDF = {"method": "rdf", "bins": 60, "cutoff": 6.0, "threshold": 0.1}
RERUN = {"method": "rerun", "frames": 20, "threshold": {"pressure": "500 bar", "energy": None}}
OVERLAP = {"method": "overlap", "distance": "schnet", "frames": 20, "cutoff": 4.0, "gamma": 0.1, "threshold": 0.8}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run.zarr")


@pytest.fixture
def do(store, tmp_path):
    """Return a function that does a test on runs as a worker would; it gives the whole result."""

    def do(params, inputs, spec=SPEC, **changes):
        runs = spec if isinstance(spec, list) else [spec]
        task = Task("validate", params["method"], {**params, "runs": runs, "seed": 1, **changes}, tuple(inputs))
        record = do_task(task, Context(tmp_path))
        assert record["state"] == "done", record["cause"]
        assert record["result"]["method"] == params["method"]
        result = read_result(store, task.id)
        json.dumps(result, allow_nan=False)
        page = render({"validation": [result]})
        assert ("Passed" in page) is (result["pass"] is True)
        assert ("✗ Failed" in page) is (result["pass"] is False)
        assert "nan" not in page.split("<body")[1].split("<script")[0].lower()
        return result

    return do


def liquid(diffusion, seed, frames=FRAMES, dt=0.02):
    """Return wrapped positions of independent ions, in two segments; the first fifth, which does not count, stands."""
    dice = np.random.default_rng(seed)
    step = dice.normal(size=(frames, 64, 3)) * np.sqrt(2 * dt * np.asarray(diffusion)[:, None])
    step[: frames // 5] = 0.0
    x = (dice.random((64, 3)) * 12 + np.cumsum(step, axis=0)) % 12.0
    half = frames // 2
    return [{"numbers": NUMBERS, "positions": part, "cell": CELL} for part in (x[:half], x[half:])]


def test_frames_too_far_apart_and_solids_are_no_diffusion(store, do):
    far = [plant(store, n, SPEC, liquid(two_species(60.0, 60.0), s)) for n, s in (("a", 1), ("b", 2))]
    for params in (DIFFUSION, CONDUCTIVITY):
        found = do(params, far)
        assert not found["pass"]
        assert "which way an atom went is not known. Write a smaller 'every'." in found["cause"]
    solid = []
    for k, name in enumerate("cd"):
        x = 6.0 + 0.2 * np.random.default_rng(k).normal(size=(FRAMES, 64, 3))
        solid.append(plant(store, name, SPEC, [{"numbers": NUMBERS, "positions": x, "cell": CELL}]))
    found = do(DIFFUSION, solid)
    assert not found["pass"]
    assert "Na does not diffuse in the model's run" in found["cause"]


def two_species(na, cl):
    return np.repeat([na, cl], 32)


def test_diffusion_of_each_species(store, do):
    model = plant(store, "a", SPEC, liquid(two_species(1.2, 0.8), 1))
    reference = plant(store, "b", SPEC, liquid(two_species(1.2, 0.8), 2))
    slower = plant(store, "c", SPEC, liquid(two_species(1.2, 0.4), 3))
    found = do(DIFFUSION, (model, reference), threshold="50 %")
    assert found["pass"]
    assert [r["name"] for r in found["rows"]] == ["Na", "Cl"]
    assert found["rows"][0]["most"] == pytest.approx(50 / 3)
    assert found["rows"][0]["exponent"]["model"] == pytest.approx(1.0, abs=0.15)
    for row, true in zip(found["rows"], (1.2, 0.8), strict=True):
        for side in ("model", "reference"):
            assert abs(row[side] - true) < 4 * row[f"{side}_error"]
    found = do(DIFFUSION, (slower, reference), threshold="30 %", error="20 %")
    assert [r["ok"] for r in found["rows"]] == [True, False]
    assert found["cause"] == "Cl: the difference is over its limit."
    absolute = do(DIFFUSION, (slower, reference), threshold="6e-09 m^2/s", error="2e-09 m^2/s")
    assert absolute["pass"]
    assert absolute["rows"][1]["limit"] == pytest.approx(0.6)
    assert absolute["rows"][1]["difference"] == pytest.approx(-0.4, abs=0.15)


def test_an_error_larger_than_what_is_asked_is_said_and_fails(store, do):
    runs = [plant(store, n, SPEC, liquid(two_species(1.0, 1.0), s)) for n, s in (("a", 1), ("b", 2))]
    found = do(DIFFUSION, runs, threshold="30 %", error="1 %")
    assert not found["pass"]
    assert all(r["short"] for r in found["rows"])
    error = found["rows"][0]["error"]
    assert 2 < error < 30
    assert (
        f"a standard error of {error:.2g} %, and 1 % is asked; runs of about {1.5 * 20 * error**2:.2g} ps"
        in found["cause"]
    )
    in_other_unit = do(DIFFUSION, runs, threshold="30 %", error="1e-10 m^2/s")
    assert in_other_unit["rows"][0]["most"] == pytest.approx(1.0 / in_other_unit["rows"][0]["reference"])


def test_a_run_without_room_for_the_lags_says_what_it_needs(store, do):
    runs = [
        plant(store, n, {**SPEC, "time": 4.0}, liquid(two_species(1, 1), s, frames=200))
        for n, s in (("a", 1), ("b", 2))
    ]
    for params, needed in ((DIFFUSION, "12.5"), (CONDUCTIVITY, "18.8")):
        found = do(params, runs, spec={**SPEC, "time": 4.0})
        assert not found["pass"]
        assert (
            f"The run of 4 ps is too short: 5 blocks with the lags of the fit need about {needed} ps" in found["cause"]
        )


def test_conductivity_of_independent_ions(store, do):
    diffusion = two_species(1.2, 0.8)
    true = 16.02176634 * 32 * 2.0 / (12.0**3 * 8.617333262e-5 * 300.0)
    runs = [
        plant(store, n, {**SPEC, "time": 200.0}, liquid(diffusion, s, frames=10_000)) for n, s in (("a", 1), ("b", 2))
    ]
    found = do(CONDUCTIVITY, runs, spec={**SPEC, "time": 200.0}, threshold="60 %", error="40 %")
    assert [r["name"] for r in found["rows"]] == ["Einstein", "Green-Kubo"]
    for row in found["rows"]:
        for side in ("model", "reference"):
            assert 0 < row[f"{side}_error"] < 0.4 * true
            assert abs(row[side] - true) < 4 * row[f"{side}_error"]


def boxes(density, seed, frames=FRAMES):
    """Return frames of a cell that breathes about a density in g/cm^3."""
    from ase.data import atomic_masses

    dice = np.random.default_rng(seed)
    volume = 1.66053906660 * atomic_masses[NUMBERS].sum() / density
    noise = 1.0 + 0.02 * dice.normal(size=frames)
    noise[: frames // 5] += 0.3  # on the way to equilibrium
    length = (volume * noise) ** (1 / 3)
    return [{"numbers": NUMBERS, "positions": np.zeros((frames, 64, 3)), "cell": length[:, None, None] * np.eye(3)}]


def test_density_at_some_temperatures(store, do):
    specs = [{**SPEC, "ensemble": "npt", "temperature": t} for t in (1100.0, 1400.0)]
    true = (1.55, 1.41)
    model = [plant(store, f"m{k}", s, boxes(true[k], k)) for k, s in enumerate(specs)]
    reference = [plant(store, f"r{k}", s, boxes(true[k], k + 9)) for k, s in enumerate(specs)]
    found = do(DENSITY, [*model, *reference], spec=specs)
    assert found["pass"]
    assert [r["name"] for r in found["rows"]] == ["1100 K", "1400 K"]
    for row, density in zip(found["rows"], true, strict=True):
        assert row["model"] == pytest.approx(density, rel=0.005)
        assert row["model_error"] == pytest.approx(density * 0.02 / np.sqrt(800), rel=1.0)
    given = do(DENSITY, model, spec=specs, reference=[1.55, 1.50])
    assert [r["ok"] for r in given["rows"]] == [True, False]
    assert given["rows"][1]["difference"] == pytest.approx(100 * (1.41 / 1.50 - 1), abs=0.5)
    assert given["rows"][1]["reference_error"] == 0
    absolute = do(DENSITY, model, spec=specs, reference=[1.55, 1.50], threshold="0.1 g/cm^3")
    assert absolute["pass"]


def toy_run(store, name, seed, scale, frames=60, shift=0.05, time=20.0):
    """Plant a run of rattled argon with a toy model's energies, forces and stresses; return its id and its frames."""
    crystal = bulk("Ar", a=5.0, cubic=True) * (2, 2, 2)
    dice = np.random.default_rng(seed)
    positions = crystal.positions + shift * dice.normal(size=(frames, len(crystal), 3))
    block = Frames.build(crystal.numbers, positions, np.array(crystal.cell))
    energy, forces, stress = ToyCrystal(scale).evaluate(block)
    arrays = {"numbers": crystal.numbers, "positions": positions, "cell": np.array(crystal.cell)}
    segments = [
        {**arrays, "positions": positions[s], "energy": energy[s], "forces": forces[s], "stress": stress[s]}
        for s in (slice(0, 25), slice(25, frames))
    ]
    return plant(store, name, SPEC, segments), block


def test_rerun_gives_the_difference_of_pressures_and_energies(store, do):
    run, block = toy_run(store, "a", 1, 1.02)
    found = do(RERUN, (run,))
    chosen = np.unique(np.linspace(12, 59, 20).astype(int))
    energy, forces, stress = ToyCrystal().evaluate(block[chosen])
    pressure, per_atom = found["rows"]
    off = -0.02 * np.trace(stress, axis1=1, axis2=2).mean() / 3 * 1.602176634e6
    assert pressure["difference"] == pytest.approx(off, rel=1e-5)
    ideal = 31 * 8.617333262e-5 * 300 / block.volume[0] * 1.602176634e6
    assert pressure["reference"] == pytest.approx(off / 0.02 + ideal, rel=1e-5)
    assert per_atom["difference"] == pytest.approx(0.02 * 1e3 * energy.mean() / 32, rel=1e-6)
    assert found["force_rmse"] == pytest.approx(0.02 * np.sqrt((forces**2).mean()), rel=1e-6)
    assert (per_atom["limit"], per_atom["ok"]) == (None, None)
    assert pressure["most"] == pytest.approx(500 / 3)
    assert do(RERUN, (run,), threshold={"pressure": None, "energy": None})["pass"] is None
    assert abs(off) < 500
    assert found["pass"]
    strict = do(RERUN, (run,), threshold={"pressure": "0.001 GPa", "energy": "1 meV/atom"})
    assert not strict["pass"]
    assert strict["rows"][0]["limit"] == pytest.approx(10.0)


def test_overlap_of_runs_that_are_alike_and_of_others(store, do):
    reference, alike, other = (
        toy_run(store, n, k, 1.0, shift=s)[0] for k, (n, s) in enumerate((("a", 0.05), ("b", 0.05), ("c", 0.3)))
    )
    found = do(OVERLAP, (alike, reference))
    assert found["pass"]
    assert found["share"] >= 0.8
    assert len(found["first"]["model"]["time"]) == 20
    assert found["first"]["reference"]["distance"][0] == pytest.approx(0.0, abs=1e-3)
    far = do(OVERLAP, (other, reference))
    assert far["share"] == 0
    assert not far["pass"]
    pytest.importorskip("dscribe")
    assert do(OVERLAP, (alike, reference), distance="rematch", threshold=0.5)["pass"]
    assert do(OVERLAP, (other, reference), distance="rematch")["share"] == 0


def test_a_run_that_failed_fails_what_works_on_it_and_says_where(store, do):
    bad = plant(store, "bad", SPEC, liquid(two_species(1, 1), 1, frames=100), reached=2.5)
    good = plant(store, "good", SPEC, liquid(two_species(1, 1), 2, frames=100))
    drift = plant(store, "drift", SPEC, liquid(two_species(1, 1), 1, frames=100), broken="energy drift")
    said = "The run with the {}, NVT at 300 K, broke what stability asks for: energy drift."
    for params in (DIFFUSION, CONDUCTIVITY, DENSITY, OVERLAP, RDF):
        found = do(params, (bad, good))
        assert not found["pass"]
        assert found["cause"] == "The run with the model, NVT at 300 K, reached 2.5 of 20 ps: closest pair."
        for runs, side in (((drift, good), "model"), ((good, drift), "reference potential")):
            found = do(params, runs)
            assert not found["pass"]
            assert found["cause"] == said.format(side)
    assert not do(RERUN, (bad,))["pass"]
    assert do(RERUN, (drift,))["cause"] == said.format("model")


def structured(seed, a=5.64, shift=0.3, frames=300):
    """Return frames of rattled rocksalt."""
    crystal = bulk("NaCl", "rocksalt", a=a, cubic=True)
    x = crystal.positions + shift * np.random.default_rng(seed).normal(size=(frames, 8, 3))
    return {"numbers": crystal.numbers, "positions": x, "cell": np.array(crystal.cell)}


def test_structures_alike_pass_and_others_close_pairs_and_noise_do_not(store, do):
    reference, alike, hot, thin = (
        plant(store, name, SPEC, [structured(k, **how)])
        for k, (name, how) in enumerate(
            {"a": {}, "b": {}, "c": {"shift": 0.36}, "d": {"a": 5.75}}.items()
        )
    )  # fmt: skip
    found = do(RDF, (alike, reference))
    assert found["pass"], found["cause"]
    for pair in found["pairs"].values():
        assert 0 < pair["noise"] < RDF["threshold"] / 1.5
    for run in (hot, thin):
        assert "is over its limit of 0.1" in do(RDF, (run, reference))["cause"]
    bound = structured(9)
    first, second = np.flatnonzero(bound["numbers"] == 17)[:2]
    bound["positions"][:, second] = bound["positions"][:, first] + [0, 1.35, 0]
    found = do(RDF, (plant(store, "e", SPEC, [bound]), reference))
    assert "Cl-Cl: the model has pairs at 1.3" in found["cause"]
    short = [plant(store, n, SPEC, [structured(k, frames=12)]) for n, k in (("f", 3), ("g", 4))]
    assert "the runs are too short" in do(RDF, short)["cause"]


def test_usual_crystals_have_the_volume_of_the_system():
    metal = usual_crystals(bulk("Al", a=4.05, cubic=True) * 2)
    salt = usual_crystals(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    assert [c["prototype"] for c in metal] == ["fcc", "bcc", "hcp"]
    assert [c["prototype"] for c in salt] == ["rocksalt", "cesiumchloride", "zincblende"]
    for crystals, volume in ((metal, 4.05**3 / 4), (salt, 5.64**3 / 8)):
        for spec in crystals:
            atoms = build_structure(spec, Path())
            assert atoms.get_volume() / len(atoms) == pytest.approx(volume)


RELAX = {"energy": "20 meV/atom", "absolute": None, "length": "2 %", "angle": "2 deg", "order": True}


def crystal(name, energies, length=4.0, converged=True, angles=(90.0, 90.0, 90.0), bound=True):
    """Return a relaxed structure as ``judge`` takes it: the model's energy and the reference's, the model's length."""
    one = {"bonds": {"Al-Al": 2.8}, "steps": 9, "converged": True, "angles": [90.0] * 3, "volume": 16.0}
    model, reference = ({**one, "energy": e, "lengths": [a] * 3} for e, a in zip(energies, (length, 4.0), strict=True))
    model |= {"converged": converged, "angles": list(angles)}
    return {"name": name, "model": model, "reference": reference | {"bound": bound}}


@pytest.mark.parametrize(
    ("rows", "threshold", "cause"),
    [
        ([crystal("fcc", (-3.41, -3.40)), crystal("bcc", (-3.33, -3.31))], {}, ""),
        # the model counts from another zero: what is left is the same
        ([crystal("fcc", (-13.41, -3.40)), crystal("bcc", (-13.32, -3.31))], {}, ""),
        (
            [crystal("fcc", (-13.41, -3.40)), crystal("bcc", (-13.32, -3.31))],
            {"absolute": "0.5 eV/atom"},
            "fcc: its energy itself is off by -1e+04 meV/atom. bcc: its energy itself is off by -1e+04 meV/atom.",
        ),
        (
            [crystal("fcc", (-3.40, -3.40)), crystal("bcc", (-3.34, -3.31))],
            {},
            "bcc: its energy is off by -30 meV/atom.",
        ),
        (
            [crystal("fcc", (-3.40, -3.40)), crystal("hcp", (-3.405, -3.395))],
            {},
            "The order of energies is hcp < fcc, not fcc < hcp.",
        ),
        ([crystal("fcc", (-3.40, -3.40)), crystal("hcp", (-3.405, -3.395))], {"order": False}, ""),
        ([crystal("fcc", (-3.40, -3.40), 4.1)], {}, "fcc: a length is off by 2.5 %."),
        ([crystal("fcc", (-3.40, -3.40), 4.1)], {"length": "0.2 Å"}, ""),
        ([crystal("fcc", (-3.40, -3.40), 4.1)], {"length": None}, ""),
        # lengths and energy of a crystal that has turned into another
        ([crystal("fcc", (-3.40, -3.40), angles=(60, 75, 120))], {}, "fcc: an angle is off by 30 deg."),
        (
            [crystal("fcc", (-3.40, -3.40), bound=False)],
            {},
            "fcc: with the reference it comes apart, and is no crystal to compare with.",
        ),
        (
            [crystal("fcc", (-3.40, -3.40), converged=False)],
            {},
            "fcc: with the model it did not converge in 9 steps.",
        ),
        (
            [crystal("fcc", (-3.40, -3.40)) | {"model": None, "cause": "It exploded."}],
            {},
            "fcc: the model failed on it: It exploded.",
        ),
    ],
)
def test_relaxed_crystals_are_judged(rows, threshold, cause):
    found = judge([dict(row) for row in rows], RELAX | threshold)
    assert found["cause"].rstrip(".") == cause.rstrip(".")
    assert found["pass"] is (cause == "")
    assert len(found["says"]) == len(rows)


def test_nothing_asked_of_crystals_is_no_verdict_and_a_failure_still_fails():
    nothing = dict.fromkeys(RELAX) | {"order": False}
    assert judge([crystal("fcc", (-3.40, -3.30))], nothing)["pass"] is None
    assert judge([crystal("fcc", (-3.40, -3.30), converged=False)], nothing)["pass"] is False


def relaxing(store, scale):
    record = new_record(Task("train", "x", {}), 0)
    record["result"] = {"model": {"model": "fake"}}
    store.publish(record, {"weights.scale": np.array([scale])})
    return {
        "method": "relax", "models": [record["task"]], "force": 0.005, "steps": 100, "rattle": 0.0, "threshold": RELAX,
    }  # fmt: skip


def prototype(kind, a, cells=(1, 1, 1), element="Ar"):
    return {"prototype": kind, "elements": [element], "a": a, "c": None, "supercell": list(cells), "digest": ""}


def test_crystals_that_come_apart_are_no_crystals(store, do):
    """Purely repulsive: every crystal grows until no pair is within reach, with the model as with the reference."""
    params = relaxing(store, 1.001) | {"structures": [prototype("fcc", 5.0, (2, 1, 1)), prototype("bcc", 4.0)]}
    found = do(params, ())
    assert found["pass"] is False
    assert "Ar fcc: with the reference it comes apart" in found["cause"]
    assert [e["name"] for e in found["structures"]] == ["Ar fcc", "Ar bcc"]
    lengths = found["structures"][0]["model"]["lengths"]
    assert lengths == pytest.approx([lengths[1]] * 3, rel=1e-3)  # a cell's, not the supercell's
    hasty = do(params | {"steps": 1, "force": 1e-9}, ())
    assert "with the model it did not converge in 1 steps" in hasty["cause"]


@pytest.mark.lammps
def test_a_bound_crystal_of_the_embedded_atom_method(store, tmp_path, monkeypatch):
    """The model is the reference itself here: it passes; a rattle lets bcc fall from where its symmetry held it."""
    from campaign.engines.ase_calculator import ClassicalForces
    from campaign.engines.lammps_potential import load_potential
    from campaign.stages import validate_relax

    potential = Path(__file__).parents[2] / "templates/potentials/al_mm.lmp"
    monkeypatch.setattr(validate_relax, "load_models", lambda store, models: [])
    monkeypatch.setattr(validate_relax, "Mean", lambda models: ClassicalForces(load_potential(potential)))
    params = relaxing(store, 1.0) | {"seed": 1}

    def done(**changes):
        task = Task("validate", "relax", {**params, **changes}, extra={"potential": str(potential)})
        assert do_task(task, Context(tmp_path))["state"] == "done"
        return read_result(store, task.id)

    found = done(structures=[prototype("fcc", 4.0, element="Al"), prototype("bcc", 3.2, element="Al")])
    assert found["pass"], found["cause"]
    assert found["structures"][0]["reference"]["bound"]
    held = found["structures"][1]["reference"]["energy"]
    assert held == pytest.approx(-3.3088, abs=1e-3)
    free = done(structures=[prototype("bcc", 3.2, (2, 2, 2), "Al")], rattle=0.05, steps=300)
    assert free["structures"][0]["reference"]["energy"] < held - 0.02
