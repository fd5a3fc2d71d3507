"""Models, validation results, and what became of labels, rounds and distillations, as files of the run directory."""

from __future__ import annotations

import json
from pathlib import Path

from campaign.flow import Flow
from campaign.stages import transferred
from campaign.stages.distill import Distill
from campaign.stages.labelled import summary
from campaign.stages.learn import Learn
from campaign.stages.trained import export_model, load_model, model_path
from campaign.stages.transfer import Transfer
from campaign.stages.validate import Validate
from campaign.stages.verdicts import read_result
from campaign.store.groups import translate
from campaign.store.store import Store
from campaign.tasks import Json


def write_outputs(flow: Flow, run: Path, store: Store) -> None:
    """Write models, validation results, what became of the labels, and a distillation's figures, of what is finished.

    Raises
    ------
    StoreError
        The run directory cannot be written.
    """
    try:
        _write_models(flow, run / "models", store)
        results = {f"{name}.json": json.dumps(result) + "\n" for name, result in validation(flow, store)}
        for path in (run / "validation").glob("*.json"):
            if path.name not in results:  # of a test that is no longer asked for
                path.unlink()
        for name, text in results.items():
            (run / "validation" / name).write_text(text)
        moved = flow.stage(Transfer)
        if any(flow.board.labels.values()) or (moved is not None and moved.parts):
            text = json.dumps(summary(flow.board, store, flow.failures) | transfer(flow), indent=1)
            (run / "labels.json").write_text(text + "\n")
        if rounds := learning(flow):
            (run / "learning.json").write_text(json.dumps(rounds, indent=1))
        distill = flow.stage(Distill)
        if distill is not None and distill.iterations:
            (run / "distillation.json").write_text(json.dumps(distill.iterations, indent=1) + "\n")
    except OSError as error:
        raise translate(error, run) from error


def _write_models(flow: Flow, folder: Path, store: Store) -> None:
    """Make ``folder`` hold the models of this campaign and no others; the task in a file's name says which it is."""
    wanted = {task: model_path(folder, store.locate("train", task).record) for task in models(flow)}
    for task, path in wanted.items():
        if not path.exists():  # lost, or continued from the store alone
            export_model(load_model(store, task), path)
    for path in set(folder.glob("*.pt")) - set(wanted.values()):
        path.unlink()


def transfer(flow: Flow) -> dict[str, Json]:
    """Return what ``RUN/labels.json`` says beside of a transfer: what it was, and the source of every frame."""
    stage = flow.stage(Transfer)
    if stage is None:
        return {}
    return {"transfer": transferred.summary(stage), "sources": transferred.origins(stage)}


def models(flow: Flow) -> list[str]:
    """Return the finished training tasks of all sets."""
    return [task for tasks in flow.board.models.values() for task in tasks]


def validation(flow: Flow, store: Store) -> list[tuple[str, dict[str, Json]]]:
    """Return each finished test: its name in the run directory, and its result."""
    stage = flow.stage(Validate)
    if stage is None:
        return []
    against = {name: {"compared_with": found} for name, found in stage.compared_with().items()}
    return [(name, read_result(store, task) | against.get(name, {})) for name, task in stage.results()]


def learning(flow: Flow) -> dict[str, Json]:
    """Return the rounds of active learning, and how it ended; nothing where there was none."""
    stage = flow.stage(Learn)
    return stage.summary(flow.board) if stage is not None and (stage.rounds or stage.done) else {}
