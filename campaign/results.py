"""What people open: models as files, validation as JSON, the report; and exports. All made from the store, any time."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from campaign import __version__
from campaign.errors import InputError, StoreError
from campaign.flow import Flow
from campaign.frames import Frames
from campaign.stages import transferred
from campaign.stages.board import FrameSet
from campaign.stages.distill import Distill
from campaign.stages.labelled import collect, references, summary
from campaign.stages.learn import Learn
from campaign.stages.sample import Sample
from campaign.stages.select import Select
from campaign.stages.trained import HISTORY, export_model, load_model, model_path
from campaign.stages.transfer import Transfer
from campaign.stages.validate import Validate
from campaign.stages.verdicts import read_result
from campaign.store.groups import translate
from campaign.store.ledger import read_ledger
from campaign.store.store import QUARANTINE, Store
from campaign.tasks import Json, Record, Task

#: Points of the selection figure, beside the chosen frames.
NOVELTY_POINTS = 5000

#: Points of the figure of a walker's enthalpy, and cells along each axis of the map of visits, at most.
SERIES_POINTS, MAP_CELLS = 2000, 120

#: A finished segment: its task and its record.
Segment = tuple[Task, Record]


def write_outputs(flow: Flow, run: Path, store: Store) -> None:
    """Write models, validation results, what became of the labels, and a distillation's figures, of what is finished.

    Raises
    ------
    StoreError
        The run directory cannot be written.
    """
    try:
        _write_models(flow, run / "models", store)
        results = {f"{name}.json": json.dumps(result) + "\n" for name, result in _validation(flow, store)}
        for path in (run / "validation").glob("*.json"):
            if path.name not in results:  # of a test that is no longer asked for
                path.unlink()
        for name, text in results.items():
            (run / "validation" / name).write_text(text)
        moved = _transfer(flow)
        if any(flow.board.labels.values()) or (moved is not None and moved.parts):
            text = json.dumps(summary(flow.board, store, flow.failures) | _transferred(flow), indent=1)
            (run / "labels.json").write_text(text + "\n")
        figures = [i for stage in flow.stages if isinstance(stage, Distill) for i in stage.iterations]
        learn = _learning(flow)
        if learn:
            (run / "learning.json").write_text(json.dumps(learn, indent=1))
        if figures:
            (run / "distillation.json").write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise translate(error, run) from error


def _transfer(flow: Flow) -> Transfer | None:
    return next((s for s in flow.stages if isinstance(s, Transfer)), None)


def _transferred(flow: Flow) -> dict[str, Json]:
    """Return what ``RUN/labels.json`` says beside of a transfer: what it was, and the source of every frame."""
    stage = _transfer(flow)
    if stage is None:
        return {}
    return {"transfer": transferred.summary(stage), "sources": transferred.origins(stage)}


def _write_models(flow: Flow, folder: Path, store: Store) -> None:
    """Make ``folder`` hold the models of this campaign and no others; the task in a file's name says which it is."""
    wanted = {task: model_path(folder, store.locate("train", task).record) for task in _models(flow)}
    for task, path in wanted.items():
        if not path.exists():  # lost, or continued from the store alone
            export_model(load_model(store, task), path)
    for path in set(folder.glob("*.pt")) - set(wanted.values()):
        path.unlink()


def write_report(flow: Flow, run: Path, store: Store, status: dict[str, Json]) -> Path:
    """Write ``RUN/report.html`` and return its path."""
    from campaign.report.html import render

    data = {
        "status": status,
        "validation": [result for _, result in _validation(flow, store)],
        "tests": _standing(flow),
        "sampling": _sampling(flow, store),
        "selection": _selection(flow, store),
        "transfer": _transferred(flow),
        "training": _training(flow, store),
        "learning": _learning(flow),
        "sizes": {name: len(flow.board.labelled(name)) for name, s in flow.board.sets.items() if s.train},
        "tasks": read_ledger(run / "ledger.jsonl"),
        "about": _about(run),
    }
    path = run / "report.html"
    aside = path.with_name(".report.html")
    try:
        aside.write_text(render(data), encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        raise translate(error, path) from error
    return path


def headline(folder: Path) -> list[str]:
    """Return a line or more a validation, from ``RUN/validation``."""
    return [line for path in sorted(folder.glob("*.json")) for line in _headline(json.loads(path.read_text()))]


def hints(failures: Sequence[dict[str, Json]], run: Path) -> list[str]:
    """Return a line for each kind of failure: what becomes of it, and what the user can do."""
    aside = [(run / "run.zarr" / QUARANTINE / f["task"]).is_dir() for f in failures]
    lines = []
    if any(aside):
        lines.append("failed tasks stay aside until the same command is given with --retry-quarantined")
    if not all(aside):  # of tasks that are done
        lines.append("walkers that stopped are not started again: the frames they made are kept")
    return lines


def _headline(result: dict[str, Json]) -> list[str]:
    verdict = "not judged" if result["pass"] is None else "pass" if result["pass"] else "FAIL"
    limit: Json = result.get("threshold", {})
    if result["method"] == "errors":
        lines = []
        for name, errors in result["sets"].items():
            rmse, l4 = _milli(errors["forces"]["rmse"], 1), _milli(errors["forces"]["l4"], 1)
            lines.append(
                f"errors      {name:<12} force RMSE {rmse} meV/Å, L4 {l4}, "
                f"energy {_milli(errors['energy']['rmse'], 2)} meV/atom on {result['held_out']} held-out frames"
            )
        asked = [f"{j['name']} at most {j['limit']:.3g} {j['unit']}" for j in result["judged"]]
        said = f"{', '.join(asked)} is asked" if asked else result["cause"] or "nothing is asked"
        return [*lines, f"errors      {verdict}: {said}"]
    if result["method"] == "stability":
        where = f"{result['ensemble'].upper()} at {result['temperature']:g} K"
        return [f"stability   {verdict}: {result['reached']:g} of {result['time']:g} ps {where}"]
    if "says" in result:
        lines = [f"{result['method']:<11} {said}" for said in result["says"]]
        return [*lines, f"{result['method']:<11} {verdict}{': ' if result['cause'] else ''}{result['cause']}"]
    worst = result["headline"]["worst"]
    found = "no run to compare" if worst is None else f"{worst:.3f} beyond noise"
    cause = f": {result['cause']}" if result["cause"] else ""
    return [f"{result['method']:<11} {verdict}: {found}, at most {limit:g} is asked{cause}"]


def _milli(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{1e3 * value:.{digits}f}"


def _models(flow: Flow) -> list[str]:
    return [task for models in flow.board.models.values() for task in models]


def _validate(flow: Flow) -> Validate | None:
    return next((s for s in flow.stages if isinstance(s, Validate)), None)


def _standing(flow: Flow) -> dict[str, Json]:
    """Return how many tests are asked for and which have no verdict; nothing where the stage is not driven."""
    stage = _validate(flow)
    return stage.standing(flow.board) if stage is not None else {}


def _validation(flow: Flow, store: Store) -> list[tuple[str, dict[str, Json]]]:
    stage = _validate(flow)
    if stage is None:
        return []
    against = {name: {"compared_with": found} for name, found in stage.compared_with().items()}
    return [(name, read_result(store, task) | against.get(name, {})) for name, task in stage.results()]


def _training(flow: Flow, store: Store) -> list[dict[str, Json]]:
    found = []
    for task in _models(flow):
        history = store.arrays("train", task, (HISTORY,))[HISTORY]
        name = store.locate("train", task).record["name"]
        epoch, loss, force = (history[:, k].tolist() for k in range(3))
        found.append({"name": name, "epoch": epoch, "loss": loss, "force_rmse": force})
    return found


def _learning(flow: Flow) -> dict[str, Json]:
    """Return the rounds of active learning, and how it ended; nothing where there was none."""
    stage = next((s for s in flow.stages if isinstance(s, Learn)), None)
    return stage.summary(flow.board) if stage is not None and (stage.rounds or stage.done) else {}


def _sampling(flow: Flow, store: Store) -> list[dict[str, Json]]:
    """Return what each sampling method of the campaign did, in the order of its file."""
    stage = next((s for s in flow.stages if isinstance(s, Sample)), None)
    ready = {s.task.id for s in flow.board.shards if s.state == "ready"}
    entries: dict[str, list[list[tuple[Task, int]]]] = {}
    for chain in stage.chains if stage is not None else []:
        if chain:
            entries.setdefault(chain[0][0].name.partition("/")[0], []).append(chain)
    out = []
    for name, chains in entries.items():
        done = [[(t, store.locate("sample", t.id).record) for t, _ in chain if t.id in ready] for chain in chains]
        out.append(_method(name, chains, done) | {"momt": _momt(store, done) if _is_momt(chains) else None})
    return out


def _is_momt(chains: Sequence[Sequence[tuple[Task, int]]]) -> bool:
    return bool(chains[0][0][0].params["method"] == "momt")


def _method(name: str, chains: Sequence[Sequence[tuple[Task, int]]], done: list[list[Segment]]) -> dict[str, Json]:
    """Return the figures that every sampling method has."""
    results = [record["result"] for chain in done for _, record in chain]
    asked = np.array([t for chain in chains for task, _ in chain for t in np.ravel(task.params.get("temperature", []))])
    file = chains[0][0][0].params["method"] == "file"  # its chains are shards of the file
    kelvin = [(r["temperature"], r["frames"]) for r in results if r.get("temperature") is not None]
    return {
        "name": name,
        "walkers": None if file else sum(int(chain[0][0].params.get("walkers", 1)) for chain in chains),
        "steps": max((_steps(task) for chain in done for task, _ in chain), default=0) or None,
        "frames": sum(int(r["frames"]) for r in results),
        "planned": sum(frames for chain in chains for _, frames in chain),
        "set": [float(asked.min()), float(asked.max())] if asked.size else [],
        "mean": sum(t * n for t, n in kelvin) / n_all if (n_all := sum(n for _, n in kelvin)) else None,
        "stopped": sum(len(r.get("stopped", {})) for r in results),
    }


def _steps(task: Task) -> int:
    """Return how many MD steps a walker has made at a segment's end; 0 where it makes none."""
    p = task.params
    return int((p["first"] + p["frames"]) * p["every"]) if "first" in p and "every" in p else 0


def _momt(store: Store, chains: list[list[Segment]]) -> dict[str, Json] | None:
    """Return how far the walkers of a MOMT method have come; None before any has finished a segment."""
    chains = [chain for chain in chains if chain]
    if not chains:
        return None
    p = chains[0][0][0].params
    crystal = p["structure"].get("prototype") if p["order"] == "auto" else p["order"]
    ordered = crystal not in (None, "none")
    walkers: dict[int, dict[str, Json]] = {}
    last: dict[str, list[int]] = {}  # task to the walkers whose last finished segment it is
    window: list[float] = []
    for chain in chains:
        latest = {}
        for task, record in chain:
            found = record["result"].get("momt") or {"walkers": {}}
            window = found.get("window") or window
            for key, figures in found["walkers"].items():
                empty: dict[str, Json] = {"number": int(key), "stopped": "", "steps": []}
                walker = walkers.setdefault(int(key), empty)
                walker["steps"].append(_steps(task))
                for name in ("trips", "coverage", "flatness"):
                    walker.setdefault(name, []).append(figures.get(name))
                latest[int(key)] = task.id
            for key, cause in record["result"].get("stopped", {}).items():
                walkers.setdefault(int(key), {"number": int(key), "steps": []})["stopped"] = cause
        for number, name in latest.items():
            last.setdefault(name, []).append(number)
    series = _enthalpies(store, [task for task, _ in chains[0]], ordered)
    return {
        "window": window,
        "temperatures": p["temperatures"],
        "auto": p["window"] == "auto",
        "shared": p["shared"],
        "until": chains[0][0][0].extra.get("until"),
        "ordered": ordered,
        "walkers": [walkers[k] for k in sorted(walkers)],
        "map": _map(store, last, window),
        "series": series,
    }


def _map(store: Store, last: dict[str, list[int]], window: Sequence[float]) -> dict[str, Json]:
    """Return the visits of all walkers, from the last checkpoint of each, and whose could not be read.

    Parameters
    ----------
    store
        The store.
    last
        Task to the walkers whose last finished segment it is: a walker that stopped is not in later checkpoints.
    window
        eV/atom.
    """
    from campaign.engines.walkers import unpack_checkpoints
    from campaign.science.momt import coverage

    total: Any = None
    missing = []
    for task, numbers in last.items():
        try:
            left = unpack_checkpoints(store.checkpoint(task)["restart"])
        except (StoreError, KeyError, ValueError, zipfile.BadZipFile):  # removed, or of another version
            left = {}
        for number in numbers:
            visits = left[number][1].get("visits") if number in left else None
            if visits is None or visits.ndim != 2 or (total is not None and visits.shape != total.shape):
                missing.append(number)
            else:
                total = visits.astype("int64") if total is None else total + visits
    if total is None or len(window) != 2:
        return {}
    share, _ = coverage(total)
    ends = ((window[0], window[1]), (0.0, 1.0))
    edges = [np.linspace(low, high, n + 1) for (low, high), n in zip(ends, total.shape, strict=True)]
    for axis, n in enumerate(total.shape):
        starts = np.arange(0, n, -(-n // MAP_CELLS))
        total = np.add.reduceat(total, starts, axis=axis)
        edges[axis] = edges[axis][[*starts, n]]
    h, q = (e.tolist() for e in edges)
    return {"h": h, "q": q, "visits": total.tolist(), "coverage": share, "missing": missing}


def _enthalpies(store: Store, tasks: Sequence[Task], ordered: bool) -> dict[str, Json]:
    """Return the enthalpy (eV/atom) and order of a chain's first walker along its steps, thinned, shard by shard."""
    from campaign.engines.lammps import BAR

    p = tasks[0].params
    walker = int(p["walker"][1])
    atoms = store.frames("sample", tasks[0].id, [0]).n_atoms
    every = max(1, -(-sum(t.params["frames"] for t in tasks) // SERIES_POINTS))
    out: dict[str, list[Any]] = {"step": [], "h": [], "q": []}
    seen = 0
    for task in tasks:
        part = store.arrays("sample", task.id, ("walker", "step", "energy", "cell"))
        mine = np.flatnonzero(part["walker"] == walker)
        rows = mine[(np.arange(seen, seen + len(mine)) % every) == 0]
        seen += len(mine)
        if len(rows):
            volume = np.abs(np.linalg.det(part["cell"][rows]))
            out["h"] += ((part["energy"][rows] + p["pressure"] / BAR * volume) / atoms).tolist()
            out["step"] += part["step"][rows].tolist()
            out["q"] += _order(store, task, rows) if ordered else []
    return {"walker": walker, **out}


def _order(store: Store, task: Task, rows: Any) -> list[float | None]:
    """Return the order of some frames of a task; None where the store does not have it."""
    try:
        return [_number(q) for q in store.arrays("sample", task.id, ("order",))["order"][rows]]
    except StoreError:
        return [None] * len(rows)


def _selection(flow: Flow, store: Store) -> dict[str, Json]:
    """Return novelty along the stream, thinned, with every chosen frame."""
    distilled = next((s.sets[0] for s in flow.stages if isinstance(s, Distill)), None)
    if distilled is not None and distilled.chosen:  # what was selected before it is neither labelled nor trained on
        source = flow.board.source
        return {
            "method": distilled.name,
            "novelty": [],
            "temperature": [],
            "chosen": [],
            "refused": distilled.refused,
            "note": distilled.note,
            "seen": len(source.chosen) if source is not None else flow.frames,
            "picked": len(distilled.chosen),
        }
    moved = _transfer(flow)
    if moved is not None:
        found = moved.main
        return {
            "method": moved.name,
            "novelty": [],
            "temperature": [],
            "chosen": [],
            "refused": found.refused,
            "note": found.note,
            "seen": moved.origin.frames,
            "picked": len(found.chosen),
        }
    stage = next((s for s in flow.stages if isinstance(s, Select)), None)
    if stage is None or not (stage.stream or stage.sets[0].chosen):
        return {}
    total = flow.frames
    step = max(1, total // NOVELTY_POINTS)
    wanted = set(stage.sets[0].chosen)
    novelty: list[float | None] = []
    temperature: list[float | None] = []
    chosen: list[int] = []
    seen = 0
    for task in stage.stream:
        if not stage.measures_novelty:
            place = store.locate("select", task)
            seen += place.stop - place.start
            continue
        part = store.arrays("select", task)
        if "novelty" not in part:
            continue
        ids = [f"{int(t):016x}:{int(i)}" for t, i in zip(part["task"], part["index"], strict=True)]
        for k, name in enumerate(ids):
            if name in wanted or (seen + k) % step == 0:
                if name in wanted:
                    chosen.append(len(novelty))
                novelty.append(_number(part["novelty"][k]))
                temperature.append(_number(part["temperature"][k]))
        seen += len(ids)
    return {
        "method": stage.method,
        "novelty": novelty,
        "temperature": temperature,
        "chosen": chosen,
        "refused": stage.sets[0].refused,
        "note": stage.sets[0].note,
        "seen": seen if stage.stream else flow.frames,
        "picked": len(wanted),
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _about(run: Path) -> dict[str, Json]:
    from importlib.metadata import version

    names = ("lammps", "torch", "schnetpack", "parsl", "zarr", "ase", "numpy")
    return {
        "campaign": __version__,
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {n: version(n) for n in names},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "file": (run / "campaign.yaml").read_text(),
    }


def export(flow: Flow, store: Store, what: str, to: Path) -> int:
    """Write frames to a file of another program.

    Parameters
    ----------
    flow
        A surveyed campaign.
    store
        Its store.
    what
        ``pool``, ``selected`` (the training set with the cheap potential's labels), ``labelled`` (the training set with
        its labels), ``rejected`` (refused by the selector or quarantined by the labeller, with the reason) or
        ``failed`` (the steps before a run with the model failed, energies and forces the model's).
    to
        ``*.extxyz``, ``*.db`` or ``*.zarr``; it must not exist.

    Returns
    -------
    int
        Number of frames.

    Raises
    ------
    InputError
        Nothing of that kind, an unknown format, or a file in the way.
    """
    from campaign.store.export import WRITERS

    writer = WRITERS.get(to.suffix)
    if writer is None:
        raise InputError(f"{to}: the format is taken from the name; write a name ending in {', '.join(WRITERS)}.")
    if to.exists():
        raise InputError(f"{to}: this file is there already; remove it or write another name.")
    if not to.parent.is_dir():
        raise InputError(f"{to}: there is no folder {to.parent}; make it first.")
    reasons: dict[str, str] = {}
    energies: dict[str, float] = {}
    blocks: Iterator[Frames]
    training = flow.board.training() or FrameSet("", 0, train=True)
    if what == "pool":
        blocks = store.stream("sample", [s.task.id for s in flow.board.shards if s.state == "ready"])
    elif what == "selected":
        blocks = iter(store.collect("sample", training.chosen))
    elif what == "labelled":
        labelled = collect(flow.board, store)
        energies, blocks = references(labelled), iter(labelled)
    elif what == "rejected":
        reasons = _rejected(flow)
        blocks = iter(store.collect("sample", list(reasons)))
    elif what == "failed":
        runs = [run for s in flow.stages if isinstance(s, Validate) for run in s.runs()]
        runs = [run for run in runs if read_result(store, run).get("before")]
        blocks = store.stream("validate", runs)
    else:
        raise InputError(f"WHAT: one of pool, selected, labelled, rejected, failed is needed, got {what!r}.")
    stage = _transfer(flow)
    sources = {k: transferred.as_text(v) for k, v in transferred.origins(stage).items()} if stage else {}
    count = writer(blocks, to, reasons, energies, sources)
    if count == 0:
        raise InputError(f"There are no {what} frames yet; nothing was written. See campaign status.")
    return count


def _rejected(flow: Flow) -> dict[str, str]:
    """Return frame id to the reason why it was not used."""
    found = {r["frame"]: r["reason"] for s in flow.board.sets.values() for r in s.refused}
    for record in flow.failures:
        if record["stage"] == "label":
            found[record["name"].split("/", 1)[1]] = record["cause"]
    return found
