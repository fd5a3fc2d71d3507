"""Every test is done once, as soon as what it needs is there, or given up for a reason; none is silently missing."""

import itertools
import json
from html import escape

import numpy as np
import pytest

from campaign.engines.fake import ToyCrystal, sample
from campaign.frames import Frames
from campaign.report.html import render
from campaign.stages.board import FrameSet
from campaign.stages.validate import Validate, read_result
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record
from campaign.worker import do_task

A, B, C = (f"{k:016x}:{k}" for k in (1, 2, 3))


@pytest.fixture
def ready(board):
    """A board on which everything went well."""
    board.sampled = True
    board.sets = {
        "main": FrameSet("main", 2, True, [A], closed=True),
        "random": FrameSet("random", 2, True, [B], closed=True),
        "held_out": FrameSet("held_out", 2, False, [C], closed=True),
    }
    board.labels = {A: "la", B: "lb", C: "lc"}
    board.models = {"main": ["m0", "m1"], "random": ["r0"]}
    board.trained = {"main", "random"}
    return board


def run(stage, board, settle, states=lambda task: "done"):
    """Settle everything the stage plans; return the tasks."""
    seen = []
    while tasks := list(stage.plan(board)):
        for task in tasks:
            settle(stage, board, task, states(task))
        seen += tasks
    return seen


def test_each_test_is_done_once_and_an_identical_one_shares_it(campaign, ready, settle):
    stage = Validate(campaign(), {})
    tasks = run(stage, ready, settle)
    names = sorted(t.name for t in tasks)
    assert names == ["errors", "rdf", "rdf", "reference", "reference", "stability", "stability"]
    assert len({t.id for t in tasks}) == 7
    assert stage.finished(ready)
    assert stage.total(ready) == 7
    assert [n for n, _ in stage.results()] == [
        "errors", "stability", "rdf", "stability-3", "rdf-4", "rdf-5",
    ]  # fmt: skip
    assert stage.results()[4][1] == stage.results()[5][1]
    errors = next(t for t in tasks if t.name == "errors")
    assert errors.params["models"] == {"main": ["m0", "m1"], "random": ["r0"]}
    assert errors.inputs == ("lc",)


def test_a_rdf_compares_the_run_before_it_with_its_own_reference(campaign, ready, settle):
    stage = Validate(campaign(), {})
    tasks = run(stage, ready, settle)
    by_id = {t.id: t for t in tasks}
    for rdf in (t for t in tasks if t.name == "rdf"):
        model, reference = (by_id[i] for i in rdf.inputs)
        assert (model.name, reference.name) == ("stability", "reference")
        for key in ("temperature", "seed", "start", "ensemble", "time"):
            assert model.params[key] == reference.params[key]
    assert {t.params["temperature"] for t in tasks if t.name == "reference"} == {100.0, 200.0}


def test_the_reference_runs_before_the_model_is_trained(campaign, ready, settle):
    ready.trained, ready.models = set(), {}
    stage = Validate(campaign(), {})
    assert [t.name for t in stage.plan(ready)] == ["reference", "reference"]


def test_without_the_set_to_compare_with_the_errors_are_still_told(campaign, ready, settle):
    del ready.models["random"]
    stage = Validate(campaign(), {})
    errors = next(t for t in run(stage, ready, settle) if t.name == "errors")
    assert errors.params["models"] == {"main": ["m0", "m1"]}
    assert stage.finished(ready)


LACKS = ["main model", "random model", "held out", "main set"]
FAILS = ["errors", "stability", "reference", "rdf"]


@pytest.mark.parametrize("lacks", [c for n in range(5) for c in itertools.combinations(LACKS, n)])
def test_it_ends_whatever_is_missing_and_whatever_fails(campaign, ready, settle, lacks):
    if "main model" in lacks:
        del ready.models["main"]
    if "random model" in lacks:
        del ready.models["random"]
    if "held out" in lacks:
        ready.labels[C] = None
    if "main set" in lacks:
        ready.sets["main"].chosen.clear()
        ready.models.pop("main", None)
    for fails in (c for n in range(5) for c in itertools.combinations(FAILS, n)):
        stage = Validate(campaign(), {})
        bad = set(fails)
        tasks = run(stage, ready, settle, lambda task, bad=bad: "quarantined" if task.name in bad else "done")
        assert stage.finished(ready)
        assert len({t.id for t in tasks}) == len(tasks)
        assert stage.total(ready) >= len(tasks)
        done = sum(t.name not in bad for t in tasks)
        everything = not bad and not set(lacks) - {"random model"}
        assert (done == stage.total(ready)) == everything  # the status shows that something is missing
        main = "main model" not in lacks and "main set" not in lacks
        results = {name for name, _ in stage.results()}
        assert ("errors" in results) == (main and "held out" not in lacks and "errors" not in bad)
        assert ("stability" in results) == (main and "stability" not in bad)
        assert ("rdf" in results) == (main and not bad & {"stability", "reference", "rdf"})


@pytest.fixture
def toy(tmp_path):
    """A store with a pool of toy argon and its labels; gives it, the frames, their labels, and how to make a model."""
    structure = {"prototype": "fcc", "elements": ["Ar"], "a": 5.0, "supercell": [2, 2, 2]}
    params = {"structure": structure, "seed": 1, "walker": [0, 0], "first": 0, "frames": 4, "displacement": 0.05}
    pool = Task("sample", "pool", {**params, "temperature": 250.0})
    store = Store(tmp_path / "run.zarr")
    outcome = sample(pool, None, tmp_path)
    store.publish(new_record(pool, 0), outcome.arrays)
    frames = Frames(**outcome.arrays)
    labels = []
    for k in range(4):
        task = Task("label", "x", {"frame": k})
        store.publish(new_record(task, 0), dict(frames[k : k + 1].arrays()))
        labels.append(task.id)

    def model(scale):
        task = Task("train", "x", {"scale": str(scale)})
        record = new_record(task, 0)
        record["result"] = {"model": {"model": "fake"}}
        store.publish(record, {"weights.scale": np.array([scale])})
        return task.id

    return store, frames, tuple(labels), model


@pytest.fixture
def do(toy, tmp_path):
    """Return a function that does a test as a worker would; it gives the task's id and the whole result."""

    def do(params, inputs=()):
        task = Task("validate", params["method"], params, inputs)
        record = do_task(task, Context(tmp_path))
        assert record["state"] == "done", record["cause"]
        assert record["result"]["method"] == params["method"]
        json.dumps(record, allow_nan=False)
        result = read_result(toy[0], task.id)
        json.dumps(result, allow_nan=False)
        return task.id, result

    return do


DYNAMICS = {
    "ensemble": "npt", "temperature": 250.0, "pressure": 1e4, "time": 3.0, "timestep": 0.002, "every": 10,
    "seed": [1, 0],
}  # fmt: skip
RDF = {"method": "rdf", "bins": 40, "cutoff": 4.5, "threshold": 0.2}


@pytest.mark.lammps
@pytest.mark.parametrize("scale", [-1e9, 1e7, np.nan])
@pytest.mark.parametrize("ensemble", ["npt", "nvt"])
def test_a_model_that_explodes_at_once_gets_its_verdict(toy, do, scale, ensemble):
    store, frames, _, model = toy
    dynamics = {**DYNAMICS, "ensemble": ensemble, "start": frames.ids[:2]}
    run, stability = do({**dynamics, "method": "stability", "models": [model(scale)]})
    assert stability["pass"] is False
    assert stability["reached"] == 0
    (criterion,) = stability["criteria"]
    assert criterion["cause"]
    assert "rank" not in criterion["cause"]
    assert stability["first_bad"] == {"time": 0.0, "criterion": criterion["cause"], "frame": None}
    assert len(store.frames("validate", run)) == 0
    reference, _ = do({**dynamics, "method": "reference", "time": 0.2})
    _, rdf = do(RDF, (run, reference))
    assert rdf["pass"] is False
    assert rdf["headline"] == {"worst": None}
    page = render({"validation": [stability, rdf]})
    assert "Failed" in page
    assert escape(criterion["cause"]) in page
    assert "nan" not in page.split("<body")[1].split("<script")[0].lower()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e200])
def test_predictions_that_are_not_finite_fail_and_are_still_told(toy, do, scale):
    _, _, labels, model = toy
    models = {"main": [model(scale)], "random": [model(1.0)]}
    for limit in (None, 0.1):
        _, errors = do({"method": "errors", "models": models, "threshold": {"forces": limit}}, labels)
        assert errors["pass"] is (limit is None and scale == 1e200)  # large is finite
    if scale != 1e200:
        assert errors["headline"]["main"] == {"force_rmse": None, "force_l4": None}
        assert "not finite" in errors["cause"]
        assert render({"validation": [errors]})
    assert errors["headline"]["random"]["force_rmse"] == pytest.approx(0, abs=1e-9)
    models = {"main": models["random"], "random": models["main"]}
    _, errors = do({"method": "errors", "models": models, "threshold": {"forces": 0.1}}, labels)
    assert errors["pass"]  # the set only compared with does not decide


@pytest.mark.lammps
def test_the_tests_of_a_nearly_right_model_pass(toy, do):
    """The worker's side: errors, dynamics with a model, its reference and their RDFs, in a real store."""
    store, frames, labels, model = toy
    models = [model(scale) for scale in (0.998, 1.001)]
    dynamics = {**DYNAMICS, "start": frames.ids[:2]}
    _, errors = do({"method": "errors", "models": {"main": models}, "threshold": {"forces": 0.1}}, labels)
    mean = 0.9995  # of the two scales
    expected = float(np.sqrt(np.mean((1 - mean) ** 2 * ToyCrystal().evaluate(frames)[1] ** 2)))
    assert errors["sets"]["main"]["forces"]["rmse"] == pytest.approx(expected, rel=1e-6)
    assert errors["held_out"] == 4
    assert errors["pass"]
    strict = {"method": "errors", "models": {"main": models}, "threshold": {"forces": expected / 2}}
    assert not do(strict, labels)[1]["pass"]
    model, stability = do({**dynamics, "method": "stability", "models": models})
    assert stability["reached"] == pytest.approx(3.0)
    assert [c["name"] for c in stability["criteria"] if not c["ok"]] == []
    reference, _ = do({**dynamics, "method": "reference"})
    first, second = store.frames("validate", model), store.frames("validate", reference)
    np.testing.assert_allclose(first.positions[0], second.positions[0], atol=1e-3)  # the same start
    _, found = do(RDF, (model, reference))
    assert found["pass"]
    assert list(found["pairs"]) == ["Ar-Ar"]
