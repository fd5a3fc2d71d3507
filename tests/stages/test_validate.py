"""Every test is done once, as soon as what it needs is there, or given up for a reason; none is silently missing."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
from ase.io import read

from campaign.engines.fake import ToyCrystal, sample
from campaign.engines.schnetpack import network
from campaign.frames import Frames
from campaign.report.html import render
from campaign.results.export import export
from campaign.stages.board import Board, FrameSet
from campaign.stages.validate import Validate
from campaign.stages.validate_md import frames_of
from campaign.stages.verdicts import read_result
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
    runs = ["reference", "reference", "reference/segment 0", "reference/segment 0"]
    runs += ["stability", "stability", "stability/segment 0", "stability/segment 0"]
    assert names == ["errors", "rdf", "rdf", *runs]
    assert len({t.id for t in tasks}) == 11
    assert stage.finished(ready)
    assert stage.total(ready) == 11
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
    assert [t.name for t in stage.plan(ready)] == ["reference/segment 0"] * 2


def md_tests(segment):
    """Return the tests of a campaign whose runs of 50 frames have segments of ``segment``."""
    run = {"method": "stability", "temperature": 100, "time": 1, "segment": segment}
    return [run, {"method": "rdf"}, run]


def test_a_run_is_a_chain_of_segments_and_a_verdict_on_all_of_them(campaign, ready, settle):
    stage = Validate(campaign(validate=md_tests(20)), {})
    assert stage.total(ready) == 9  # a run with the model and one without, three segments and a verdict each; the RDF
    seen = []
    while tasks := list(stage.plan(ready)):
        for task in tasks:
            settle(stage, ready, task)
        seen += tasks
    chains = [[t for t in seen if t.name.startswith(f"{name}/")] for name in ("stability", "reference")]
    for chain, name in zip(chains, ("stability", "reference"), strict=True):
        first = [t for t in chain if t.params["seed"][0] == 1]
        assert [(t.params["first"], t.params["frames"]) for t in first] == [(0, 20), (20, 20), (40, 10)]
        assert [t.inputs for t in first] == [(), (first[0].id,), (first[1].id,)]
        (verdict, *_) = (t for t in seen if t.name == name)
        assert verdict.inputs == tuple(t.id for t in first)
    assert stage.finished(ready)
    assert stage.total(ready) == len(seen)


def test_while_the_training_set_grows_the_reference_runs_alone_go_on(campaign, ready, settle):
    ready.learning = True
    stage = Validate(campaign(), {})
    seen = run(stage, ready, settle)
    assert {kind(t) for t in seen} == {"reference"}
    assert not stage.finished(ready)
    ready.learning = False
    ready.sets["learn-1"] = FrameSet("learn-1", 3, True, [A, B], closed=True, grown="main")
    ready.learned, ready.models["learn-1"] = "learn-1", ["l0", "l1"]
    ready.trained.add("learn-1")
    rest = run(stage, ready, settle)
    assert "reference" not in {kind(t) for t in rest}  # they do not depend on what was learned
    assert all(t.params["models"] == ["l0", "l1"] for t in rest if kind(t) == "stability")
    assert stage.finished(ready)
    everything = run(Validate(campaign(), {}), ready, settle)
    assert {t.id for t in everything} == {t.id for t in seen + rest}


def test_a_run_is_watched_as_its_test_of_stability_asks(campaign, ready, settle):
    own = {"method": "rdf", "temperature": 100, "time": 1}
    test = {"method": "stability", "temperature": 100, "time": 1}
    usual = run(Validate(campaign(validate=[own, test]), {}), ready, settle)
    guards = {"closest": 0.6, "force": 30.0, "volume": 3.0, "temperature": 2.0, "energy": 0.01}
    wide = run(Validate(campaign(validate=[own, test | {"guards": {"volume": 3}}]), {}), ready, settle)
    same = run(Validate(campaign(validate=[own, test | {"guards": {"volume": 1.5}}]), {}), ready, settle)
    assert [t.id for t in same] == [t.id for t in usual]
    assert [t.name for t in wide] == [t.name for t in usual]
    for one, other in zip(usual, wide, strict=True):
        if kind(one) == "stability":  # whichever test asked for the run first
            assert other.params == one.params | {"guards": guards}
        elif kind(one) == "reference":
            assert other.id == one.id


@pytest.mark.lammps
def test_wider_guards_let_a_run_pass_and_are_in_its_verdict(toy, do):
    _, frames, _, model = toy
    start = {**DYNAMICS, "time": 1.0, "start": frames.ids[:2], "method": "stability", "models": [model(1.0)]}
    guards = {"closest": 0.6, "force": 30.0, "volume": 1.5, "temperature": 2.0}
    _, usual = do(start | {"guards": guards})
    assert usual["pass"]
    worst = {c["name"]: c["worst"] for c in usual["criteria"]}
    _, narrow = do(start | {"guards": guards | {"force": 0.5 * worst["largest force"]}})
    assert not narrow["pass"]
    assert narrow["first_bad"]["criterion"] == "largest force"
    (criterion,) = (c for c in narrow["criteria"] if c["name"] == "largest force")
    assert criterion["limit"] == pytest.approx(0.5 * worst["largest force"])


def test_a_run_that_fails_ends_there_and_is_judged(campaign, ready, settle):
    stage = Validate(campaign(validate=md_tests(10)[:2]), {})
    seen = []
    while tasks := list(stage.plan(ready)):
        for task in tasks:
            failure = "It exploded." if task.name == "stability/segment 1" else ""
            settle(stage, ready, task, result={"method": "stability", "failure": failure})
        seen += tasks
    names = [t.name for t in seen]
    assert [n for n in names if n.startswith("stability")] == [
        "stability/segment 0",
        "stability/segment 1",
        "stability",
    ]
    assert sum(n.startswith("reference/") for n in names) == 5
    assert "rdf" in names
    assert stage.finished(ready)
    assert stage.total(ready) == len(seen)


def test_a_test_more_before_the_others_reruns_no_dynamics(campaign, ready, settle):
    tests = md_tests(20)
    before, after = (
        {t.id for t in run(Validate(campaign(validate=v), {}), ready, settle) if t.name != "errors"}
        for v in (tests, [{"method": "errors"}, *tests])
    )
    assert before == after
    other = [{**tests[0], "temperature": 101}]
    seeds = {tuple(t.params["seed"]) for t in run(Validate(campaign(validate=[*tests, *other]), {}), ready, settle)[:4]}
    assert len(seeds) == 2


def test_no_verdict_hides_another_and_none_is_silently_missing(campaign, drive, made_up):
    """Two tests of stability: each has its verdict in the status, by the name of its file."""
    flow, _, _ = drive(made_up())
    names = ["errors", "stability", "rdf", "stability-3", "rdf-4", "rdf-5"]
    assert flow.status("x", campaign().stages, live=False)["verdicts"] == dict.fromkeys(names, True)
    stage = flow.stages[-1]
    assert stage.standing(flow.board) == {"asked": 6, "left": [], "over": True}


def test_a_test_that_cannot_be_made_is_told(campaign, ready, settle):
    stage = Validate(campaign(), {})
    assert stage.standing(ready) == {
        "asked": 6, "left": ["errors", "stability", "rdf", "stability-3", "rdf-4", "rdf-5"], "over": False,
    }  # fmt: skip
    ready.labels[C] = None  # every held-out label was set aside
    run(stage, ready, settle)
    assert stage.standing(ready) == {"asked": 6, "left": ["errors"], "over": True}


def test_what_is_compared_with_is_named_and_whether_the_labels_are_made_with_it(campaign):
    system = {"structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3}, "potential": {"lammps": "ar.lmp"}}
    tests = [{"method": "stability", "temperature": 100, "time": 1}, {"method": "rdf"}, {"method": "relax"}]
    tests += [{"method": "density", "temperatures": [90], "time": 1, "reference": [1.0]}]
    for label, own in (({"engine": "lammps"}, True), ({"engine": "ase", "calculator": "lj"}, False)):
        stage = Validate(campaign(system=system, label=label, validate=tests), {})
        found = {"file": "ar.lmp", "trained": own}
        assert stage.compared_with() == {"rdf": found, "relax": found}  # the density was given
    assert Validate(campaign(validate=tests), {}).compared_with() == {}


def test_without_the_set_to_compare_with_the_errors_are_still_told(campaign, ready, settle):
    del ready.models["random"]
    stage = Validate(campaign(), {})
    errors = next(t for t in run(stage, ready, settle) if t.name == "errors")
    assert errors.params["models"] == {"main": ["m0", "m1"]}
    assert stage.finished(ready)


def kind(task):
    """Return what a task is for, a segment as its run."""
    return task.name.partition("/")[0]


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
        tasks = run(stage, ready, settle, lambda task, bad=bad: "quarantined" if kind(task) in bad else "done")
        assert stage.finished(ready)
        assert len({t.id for t in tasks}) == len(tasks)
        assert stage.total(ready) >= len(tasks)
        done = sum(kind(t) not in bad for t in tasks)
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


def segments(params, folder):
    """Do the segments of a run, ``SEGMENT`` frames each, and return their ids; of no other test."""
    if params["method"] not in ("stability", "reference"):
        return ()
    frames, done = round(params["time"] / params["timestep"] / params["every"]), []
    for k, first in enumerate(range(0, frames, SEGMENT)):
        spec = {**params, "segment": k, "frames": min(SEGMENT, frames - first), "first": first}
        task = Task("validate", params["method"], spec, tuple(done[-1:]))
        known = Store(folder / "run.zarr").scan().get(task.id)
        record = known or do_task(task, Context(folder))
        assert record["state"] == "done", record["cause"]
        done.append(task.id)
        if record["result"]["failure"]:
            break
    return tuple(done)


@pytest.fixture
def do(toy, tmp_path):
    """Return a function that does a test as a worker would; it gives the task's id and the whole result."""

    def do(params, inputs=()):
        task = Task("validate", params["method"], params, inputs or segments(params, tmp_path))
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
SEGMENT = 50
RDF = {"method": "rdf", "bins": 40, "cutoff": 4.5, "threshold": 0.3}


@pytest.mark.lammps
@pytest.mark.parametrize("scale", [-1e9, 1e7, np.nan])
@pytest.mark.parametrize("ensemble", ["npt", "nvt"])
def test_a_model_that_explodes_at_once_gets_its_verdict(toy, do, scale, ensemble):
    store, frames, _, model = toy
    dynamics = {**DYNAMICS, "ensemble": ensemble, "start": frames.ids[:2]}
    run, stability = do({**dynamics, "method": "stability", "models": [model(scale)]})
    assert stability["pass"] is False
    assert stability["reached"] == 0
    sign, reached = stability["criteria"]
    assert not sign["ok"]
    assert sign["name"] == ("energy" if np.isnan(scale) else "largest force")
    assert f"step 0: {sign['name']}" in reached["cause"]
    first = {"time": 0.0, "step": 0, "criterion": sign["name"]}
    assert stability["first_bad"] == first | {"frame": None if np.isnan(scale) else f"{run}:0"}
    assert len(store.frames("validate", run)) == (0 if np.isnan(scale) else 1)
    reference, _ = do({**dynamics, "method": "reference", "time": 0.2})
    _, rdf = do(RDF, (run, reference))
    assert rdf["pass"] is False
    assert rdf["headline"] == {"worst": None}
    page = render({"validation": [stability, rdf]})
    assert "Failed" in page
    assert escape(sign["name"]) in page
    assert "nan" not in page.split("<body")[1].split("<script")[0].lower()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e200])
def test_predictions_that_are_not_finite_fail_and_are_still_told(toy, do, scale):
    _, _, labels, model = toy
    models = {"main": [model(scale)], "random": [model(1.0)]}
    for limit in (None, "0.1 eV/Å"):
        _, errors = do({"method": "errors", "models": models, "threshold": {"forces": limit}}, labels)
        assert errors["pass"] is (None if limit is None and scale == 1e200 else False)  # large is finite
    if scale != 1e200:
        assert errors["headline"]["main"] == {"force_rmse": None, "force_l4": None}
        assert "not finite" in errors["cause"]
        assert render({"validation": [errors]})
    assert errors["headline"]["random"]["force_rmse"] == pytest.approx(0, abs=1e-9)
    models = {"main": models["random"], "random": models["main"]}
    _, errors = do({"method": "errors", "models": models, "threshold": {"forces": "20 %"}}, labels)
    assert errors["pass"]  # the set only compared with does not decide


@pytest.mark.lammps
def test_the_tests_of_a_nearly_right_model_pass(toy, do):
    """The worker's side: errors, dynamics with a model, its reference and their RDFs, in a real store."""
    store, frames, labels, model = toy
    models = [model(scale) for scale in (0.998, 1.001)]
    dynamics = {**DYNAMICS, "start": frames.ids[:2]}
    _, errors = do({"method": "errors", "models": {"main": models}, "threshold": {"forces": "1 %"}}, labels)
    mean = 0.9995  # of the two scales
    expected = float(np.sqrt(np.mean((1 - mean) ** 2 * ToyCrystal().evaluate(frames)[1] ** 2)))
    assert errors["sets"]["main"]["forces"]["rmse"] == pytest.approx(expected, rel=1e-6)
    assert errors["held_out"] == 4
    assert errors["pass"]
    spread = float(np.sqrt(np.mean(ToyCrystal().evaluate(frames)[1] ** 2)))
    (judged,) = errors["judged"]
    assert judged["limit"] == pytest.approx(1e3 * 0.01 * spread)
    strict = {"method": "errors", "models": {"main": models}, "threshold": {"forces": f"{expected / 2} eV/Å"}}
    _, errors = do(strict, labels)
    assert not errors["pass"]
    assert errors["cause"].startswith("The force RMSE of ")
    model, stability = do({**dynamics, "method": "stability", "models": models})
    assert stability["reached"] == pytest.approx(3.0)
    assert [c["name"] for c in stability["criteria"] if not c["ok"]] == []
    reference, _ = do({**dynamics, "method": "reference"})
    first, second = (frames_of(store, read_result(store, run)["segments"]) for run in (model, reference))
    assert len(first) == len(second) == 150
    assert len(store.frames("validate", model)) == 0  # nothing failed
    np.testing.assert_array_equal(first.step, 10 * np.arange(1, 151))
    np.testing.assert_allclose(first.positions[0], second.positions[0], atol=1e-3)  # the same start
    _, found = do(RDF, (model, reference))
    assert found["pass"]
    assert list(found["pairs"]) == ["Ar-Ar"]


def test_a_model_that_predicts_nothing_fails_however_small_the_forces_are(toy, do):
    """Its error is the spread of the forces, 100 %: the defaults of the campaign file ask for a part of that."""
    from campaign.config.validations import Thresholds

    _, _, labels, model = toy
    usual = Thresholds().model_dump(mode="json")
    _, errors = do({"method": "errors", "models": {"main": [model(0.0)]}, "threshold": usual}, labels)
    assert errors["pass"] is False
    (judged,) = errors["judged"]
    assert judged["value"] == pytest.approx(5 * judged["limit"])
    more = {"l4": "1 %", "energy": "1e-06 meV/atom", "stress": "1e-06 GPa"}
    _, errors = do({"method": "errors", "models": {"main": [model(1.001)]}, "threshold": usual | more}, labels)
    assert [j["ok"] for j in errors["judged"]] == [True, True, False, False]
    stress = errors["sets"]["main"]["stress"]["rmse"]
    assert errors["judged"][3]["value"] == pytest.approx(stress * 160.2176634)
    assert errors["judged"][3]["limit"] == pytest.approx(1e-6)


KILLED = """
import json, sys
from pathlib import Path
from campaign.store.store import Store
from campaign.tasks import Context, Task
from campaign.worker import do_task

folder = Path(sys.argv[1])
params, frames = json.loads((folder / "params.json").read_text())
done = []
for k, first in enumerate(range(0, frames, 60)):
    task = Task("validate", "md", {**params, "segment": k, "frames": 60, "first": first}, tuple(done[-1:]))
    if task.id not in Store(folder / "run.zarr").scan():
        print("begin", flush=True)
        assert do_task(task, Context(folder))["state"] == "done"
    done.append(task.id)
(folder / "segments.json").write_text(json.dumps(done))
"""


@pytest.mark.lammps
def test_a_run_that_is_killed_goes_on_to_bitwise_the_same_frames_and_verdict(toy, tmp_path):
    _, frames, _, model = toy
    times = {"time": 2.4, "timestep": 0.002, "every": 2}
    params = {**DYNAMICS, **times, "method": "stability", "models": [model(1.001)], "start": frames.ids[:2]}
    (tmp_path / "params.json").write_text(json.dumps([params, 600]))
    folders = [tmp_path / "quiet", tmp_path / "killed"]
    for folder in folders:
        shutil.copytree(tmp_path / "run.zarr", folder / "run.zarr")
        shutil.copy(tmp_path / "params.json", folder)
    kills, pauses = 0, [0.02, 0.1, 0.2, 0.05, 0.3, 0.15]
    for folder in folders:
        while not (folder / "segments.json").exists():
            run = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
            if folder.name == "killed" and kills < len(pauses):
                begun = run.stdout.readline()
                time.sleep(pauses[kills])
                run.send_signal(signal.SIGKILL)
                kills += bool(begun)
            run.communicate()
            assert run.returncode in (0, -signal.SIGKILL)
    assert kills == len(pauses)
    done = [json.loads((folder / "segments.json").read_text()) for folder in folders]
    assert done[0] == done[1]
    assert len(done[0]) == 10
    quiet, killed = (Store(folder / "run.zarr") for folder in folders)
    for task in done[0]:
        other = killed.arrays("validate", task)
        for name, array in quiet.arrays("validate", task).items():
            np.testing.assert_array_equal(other[name], array, err_msg=name)
        for name, array in quiet.checkpoint(task).items():
            np.testing.assert_array_equal(killed.checkpoint(task)[name], array, err_msg=name)
    verdict = Task("validate", "stability", params, tuple(done[0]))
    for folder in folders:
        assert do_task(verdict, Context(folder))["state"] == "done"
    assert read_result(quiet, verdict.id) == read_result(killed, verdict.id)
    assert read_result(quiet, verdict.id)["reached"] == pytest.approx(2.4)


@pytest.mark.lammps
def test_a_model_that_cannot_run_at_all_is_a_failed_task_and_no_verdict(toy, tmp_path):
    """It knows other elements: that says nothing of how stable its dynamics is."""
    store, frames, _, _ = toy
    spec = {"model": "schnet", "features": 4, "interactions": 1, "cutoff": 4.0}
    weights = {f"weights.{k}": v.numpy() for k, v in network(spec, 0).state_dict().items()}
    weights |= {"weights.reference.numbers": np.array([11, 17]), "weights.reference.energies": np.zeros(2)}
    other = Task("train", "other", {})
    record = new_record(other, 0)
    record["result"] = {"model": spec}
    store.publish(record, weights | {"weights.scale": np.ones(1)})
    params = {**DYNAMICS, "method": "stability", "models": [other.id], "start": frames.ids[:2]}
    segment = Task("validate", "stability/segment 0", {**params, "segment": 0, "frames": 5, "first": 0})
    record = do_task(segment, Context(tmp_path))
    assert record["state"] == "failed"
    assert "knows Na, Cl, and the frames also hold Ar" in record["cause"]


@pytest.mark.lammps
def test_the_first_sign_of_failure_ends_a_run_and_the_steps_before_it_are_kept(toy, do, tmp_path):
    """Ever hotter than it may be, and one segment after another: the steps before are those of both segments."""
    store, frames, _, model = toy
    weak = {**DYNAMICS, "ensemble": "npt", "pressure": -3e4, "every": 2, "start": frames.ids[:2]}
    run, found = do({**weak, "method": "stability", "models": [model(1.0)]})
    assert not found["pass"]
    assert {"volume", "time reached"} <= {c["name"] for c in found["criteria"] if not c["ok"]}
    before = store.frames("validate", run)
    assert len(before) == 21
    np.testing.assert_array_equal(np.diff(before.step), 1)
    limit = 1.5 * frames[:2].volume.mean()
    assert (before.volume[:-1] <= limit).all()
    assert before.volume[-1] > limit
    assert found["first_bad"]["step"] == before.step[-1]
    assert found["first_bad"]["frame"] == f"{run}:20"
    assert found["first_bad"]["time"] == pytest.approx(0.002 * before.step[-1])
    again = ToyCrystal().evaluate(before)
    for name, values in zip(("energy", "forces", "stress"), again, strict=True):
        np.testing.assert_allclose(getattr(before, name), values, atol=1e-12, err_msg=name)
    kept = frames_of(store, found["segments"])
    assert kept.step[-1] < before.step[-1] <= kept.step[-1] + 2
    assert (kept.volume <= limit).all()
    assert json.dumps(read_result(store, run), allow_nan=False)
    assert f"{run}:20" in render({"validation": [found]})

    class Done(Validate):
        def __init__(self):
            pass

        def runs(self):
            return [run]

    flow = SimpleNamespace(stage=lambda kind: Done() if kind is Validate else None, board=Board())
    assert export(flow, store, "failed", tmp_path / "failed.extxyz") == 21
    atoms = read(tmp_path / "failed.extxyz", index=":")
    assert [a.info["step"] for a in atoms] == before.step.tolist()
    np.testing.assert_allclose(atoms[-1].get_forces(), before.forces[-1], atol=1e-7)


def test_a_run_that_several_tests_ask_for_is_made_once(campaign, ready, settle):
    tests = [
        {"method": "stability", "temperature": 100, "time": 1},
        {"method": "rdf"},
        {"method": "diffusion"},
        {"method": "rerun"},
        {"method": "overlap", "temperature": 100, "time": 1},
        {"method": "density", "temperatures": [80, 100], "time": 1},
        {"method": "diffusion", "temperature": 80, "time": 1, "segment": 20},
        {"method": "rdf", "ensemble": "nvt", "temperature": 100, "time": 1},
        {"method": "density", "temperatures": [90], "time": 1, "reference": [1.0]},
        {"method": "relax", "structures": [{"prototype": "fcc", "elements": ["Ar"], "a": 5.3}]},
    ]
    stage = Validate(campaign(validate=tests), {})
    total = stage.total(ready)
    tasks = run(stage, ready, settle)
    assert stage.finished(ready)
    assert total == stage.total(ready) == len(tasks)
    wholes = [t for t in tasks if "segment" not in t.params]
    kelvins = {name: sorted((t.params["ensemble"], t.params["temperature"]) for t in wholes if t.name == name)
               for name in ("stability", "reference")}  # fmt: skip
    assert kelvins["stability"] == [("npt", 80.0), ("npt", 90.0), ("npt", 100.0), ("nvt", 100.0)]
    assert kelvins["reference"] == [("npt", 80.0), ("npt", 100.0), ("nvt", 100.0)]  # 90 K: its density was given
    by_id = {t.id: t for t in wholes}

    def inputs(number):
        (task,) = (t for t in wholes if t.id == dict(stage.results())[number])
        return [(by_id[i].name, by_id[i].params["ensemble"], by_id[i].params["temperature"]) for i in task.inputs]

    one = [("stability", "npt", 100.0), ("reference", "npt", 100.0)]
    for name in ("rdf", "diffusion", "overlap"):
        assert inputs(name) == one
    assert inputs("rerun") == one[:1]
    assert inputs("density") == [("stability", "npt", 80.0), *one[:1], ("reference", "npt", 80.0), one[1]]
    assert inputs("diffusion-6") == [("stability", "npt", 80.0), ("reference", "npt", 80.0)]
    assert inputs("rdf-7") == [("stability", "nvt", 100.0), ("reference", "nvt", 100.0)]
    assert inputs("density-8") == [("stability", "npt", 90.0)]
    names = [n for n, _ in stage.results()]
    assert names == [
        "stability", "rdf", "diffusion", "rerun", "overlap", "density", "diffusion-6", "rdf-7", "density-8", "relax",
    ]  # fmt: skip
    seeds = {tuple(t.params["seed"]) for t in wholes if t.name == "stability"}
    assert len(seeds) == 4
    assert len(stage.runs()) == 4


MISSING = {
    "stability": {"rdf", "diffusion", "rerun", "density", "stability"},
    "reference": {"rdf", "diffusion", "density"},
}


@pytest.mark.parametrize("fails", MISSING)
def test_tests_without_their_runs_are_given_up(campaign, ready, settle, fails):
    tests = [
        {"method": "stability", "temperature": 100, "time": 1},
        *({"method": m} for m in ("rdf", "diffusion", "rerun")),
        {"method": "density", "temperatures": [100], "time": 1},
        {"method": "relax", "structures": [{"prototype": "fcc", "elements": ["Ar"], "a": 5.3}]},
    ]
    stage = Validate(campaign(validate=tests), {})
    run(stage, ready, settle, lambda task: "quarantined" if kind(task) == fails else "done")
    assert stage.finished(ready)
    assert {n for n, _ in stage.results()} == {t["method"] for t in tests} - MISSING[fails]


def test_the_reference_is_what_the_labels_are_made_with(campaign, ready, settle):
    lammps = {"engine": "lammps", "potential": {"lammps": "b.lmp"}}
    system = {"structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3}, "potential": {"lammps": "a.lmp"}}
    tests = [{"method": "stability", "temperature": 100, "time": 1}, {"method": "rdf"}, {"method": "rerun"}]
    digests = {"a.lmp": "A", "b.lmp": "B"}
    for label, expected in ((lammps, "B"), ({"engine": "lammps"}, "A")):
        stage = Validate(campaign(validate=tests, label=label, system=system), digests)
        tasks = run(stage, ready, settle)
        found = {t.params["potential"] for t in tasks if kind(t) in ("reference", "rerun")}
        assert found == {expected}
