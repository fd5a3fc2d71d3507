"""Trained models as they lie in the store, and as files."""

from __future__ import annotations

import uuid
from pathlib import Path

from campaign.engines.models import Model, build_model
from campaign.store.store import Store
from campaign.tasks import Json, Record

#: Names of a published training's arrays: its weights, and its history (epoch, loss, force RMSE on held-back frames).
WEIGHTS, HISTORY = "weights.", "history"


def load_models(store: Store, tasks: list[str]) -> list[Model]:
    """Return finished models from the store."""
    return [load_model(store, task) for task in tasks]


def load_model(store: Store, task: str) -> Model:
    """Return one finished model from the store."""
    arrays = store.arrays("train", task)
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    summary: dict[str, Json] = store.locate("train", task).record["result"]
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
