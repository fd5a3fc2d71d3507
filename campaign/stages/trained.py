"""Trained models as they lie in the store, and as files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from campaign.engines.models import Model, build_model, train
from campaign.frames import Array, Frames
from campaign.store.store import Store
from campaign.tasks import Json, Record

#: Names of a published training's arrays: its weights, and its history (epoch, loss, force RMSE on held-back frames).
WEIGHTS, HISTORY = "weights.", "history"


def train_watched(
    blocks: Sequence[Frames], spec: dict[str, Json], seed: int, folder: Path, delay: float = 0.0
) -> tuple[Model, dict[str, Array], dict[str, Json]]:
    """Train one model; each epoch leaves a line in ``folder`` for the live view.

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

        weights, summary = train(blocks, spec, seed, on_epoch, delay)
    arrays: dict[str, Array] = {WEIGHTS + name: value for name, value in weights.items()}
    arrays[HISTORY] = np.array(history, dtype="float64").reshape(-1, 3)
    return build_model(spec, weights), arrays, {**summary, "model": spec}


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
