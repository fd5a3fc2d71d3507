"""Trained models as they lie in the store, and as files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from campaign.engines.checkpoints import NAME, Execution
from campaign.engines.models import Model, build_model, train
from campaign.frames import Array, Frames
from campaign.store.store import Store
from campaign.tasks import Json, Record, Task

#: Names of a published training's arrays: its weights, and its history (epoch, loss, force RMSE on held-back frames).
WEIGHTS, HISTORY = "weights.", "history"

#: Names of the arrays of a choice that say of which atoms the forces count: one entry an atom, atoms of each frame.
COUNTED, ATOMS = "counted", "atoms"


def execution_of(task: Task, folder: Path) -> Execution:
    """Return how a task's training is carried out: its checkpoint in the task's ``folder``, and its extras."""
    return Execution(folder / NAME, task.extra.get("device", "cpu"), task.extra.get("delay", 0.0))


def split_extra(spec: dict[str, Json]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return a model's keys of the campaign file that decide its weights, and those that do not."""
    extra: dict[str, Json] = {key: spec[key] for key in ("delay", "device") if key in spec}
    return {key: value for key, value in spec.items() if key not in extra}, extra


def train_watched(
    blocks: Sequence[Frames],
    spec: dict[str, Json],
    seed: int,
    folder: Path,
    execution: Execution,
    counted: Sequence[Array] | None = None,
) -> tuple[Model, dict[str, Array], dict[str, Json]]:
    """Train one model; each epoch leaves a line in ``folder`` for the live view.

    ``counted``, if given, tells for each block (n, a) which atoms' forces count (``counted_of``). A training that was
    killed is continued from ``execution.checkpoint``, which is to be removed once the result is published.

    Returns
    -------
    tuple
        The model, what is published of it (``load_model`` reads it), and its summary, with its spec as ``model``.
    """
    history: list[list[float]] = []
    with (folder / "epochs.jsonl").open("w", buffering=1) as lines:

        def on_epoch(values: dict[str, float]) -> None:
            history.append([values["epoch"], values["loss"], values["force_rmse"]])
            lines.write(json.dumps(values) + "\n")

        weights, summary = train(blocks, spec, seed, on_epoch, execution, counted)
    arrays: dict[str, Array] = {WEIGHTS + name: value for name, value in weights.items()}
    arrays[HISTORY] = np.array(history, dtype="float64").reshape(-1, 3)
    return build_model(spec, weights), arrays, {**summary, "model": spec}


def pack_counted(counted: Sequence[Array]) -> dict[str, Array]:
    """Return what is stored of the atoms whose forces count, frame by frame in the order in which they were chosen."""
    flat = np.concatenate([np.zeros(0, dtype=bool), *counted])
    return {COUNTED: flat.astype(np.uint8), ATOMS: np.array([len(c) for c in counted], dtype=np.int32)}


def counted_of(store: Store, choices: Sequence[str], blocks: Sequence[Frames]) -> list[Array] | None:
    """Return for each block (n, a) which atoms' forces count, as the tasks that chose the frames decided.

    All atoms of a frame that none of them chose count; None where there are no such tasks.
    """
    if not choices:
        return None
    known: dict[str, Array] = {}
    for task in choices:
        found = store.arrays("distill", task)
        parts = np.split(found[COUNTED].astype(bool), np.cumsum(found[ATOMS])[:-1])
        known |= dict(zip(store.locate("distill", task).record["result"]["chosen"], parts, strict=True))
    return [np.stack([known.get(f, np.ones(b.n_atoms, dtype=bool)) for f in b.ids]) for b in blocks]


def load_models(store: Store, tasks: Sequence[str], stage: str = "train") -> list[Model]:
    """Return finished models from the store."""
    return [load_model(store, task, stage) for task in tasks]


def load_model(store: Store, task: str, stage: str = "train") -> Model:
    """Return one finished model from the store."""
    arrays = store.arrays(stage, task)
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    summary: dict[str, Json] = store.locate(stage, task).record["result"]
    return build_model(summary["model"], weights)


def export_model(model: Model, path: Path) -> None:
    """Write a model, complete or not at all; it loads outside of campaign with ``weights_only``."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    model.export(aside)
    aside.rename(path)


def model_path(folder: Path, record: Record) -> Path:
    """Return where the model of a training lies, by its record: ``SET-MEMBER-TASK.pt``."""
    return folder / f"{record['name'].replace('/', '-')}-{record['task']}.pt"
