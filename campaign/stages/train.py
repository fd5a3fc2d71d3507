"""Training: an ensemble for every training set, its members side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from campaign.errors import EngineError
from campaign.stages.board import Board
from campaign.stages.trained import counted_of, execution_of, export_model, model_path, split_extra, train_watched
from campaign.tasks import Context, Outcome, Record, Task, new_record

if TYPE_CHECKING:
    from campaign.config import Campaign

VERSION = 2


class Train:
    """Plans the members of an ensemble once a training set is labelled.

    Parameters
    ----------
    campaign
        The campaign.
    """

    name = "train"

    def __init__(self, campaign: Campaign) -> None:
        assert campaign.train is not None
        spec, self._extra = split_extra(campaign.train.model_dump(mode="json"))
        self._members: int = spec.pop("members")
        self._spec = spec
        self._seed = campaign.seed
        self._sets_of: dict[str, list[str]] = {}
        self._settled: dict[str, str] = {}  # task -> its state
        self._open: dict[str, int] = {}

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the members for each training set whose labels are all settled."""
        for chosen in board.sets.values():
            if not chosen.train or chosen.name in self._open or not board.set_settled(chosen.name):
                continue
            frames = board.labelled(chosen.name)
            if not frames:  # nothing was selected or every label failed: those failures are reported already
                self._open[chosen.name] = 0
                board.trained.add(chosen.name)
                continue
            labels = tuple(str(board.labels[f]) for f in frames)
            choices = tuple(chosen.counted)
            self._open[chosen.name] = self._members
            for member in range(self._members):
                params = {**self._spec, "seed": [self._seed, member]}
                if choices:
                    params["choices"] = len(choices)
                name = f"{chosen.name}/{member}"
                task = Task("train", name, params, labels + choices, VERSION, priority=3, extra=self._extra)
                self._sets_of.setdefault(task.id, []).append(chosen.name)
                if len(self._sets_of[task.id]) == 1:
                    yield task
                elif task.id in self._settled:  # two sets of the same frames share their models
                    self._account(task.id, chosen.name, board)

    def commit(self, record: Record, board: Board) -> None:
        """Add the model to its set's ensemble."""
        self._settled[record["task"]] = record["state"]
        for name in self._sets_of[record["task"]]:
            self._account(record["task"], name, board)

    def _account(self, task: str, name: str, board: Board) -> None:
        if self._settled[task] == "done":
            board.models.setdefault(name, []).append(task)
            board.models[name].sort(key=list(self._sets_of).index)  # members in order, whichever ended first
        self._open[name] -= 1
        if self._open[name] == 0:
            board.trained.add(name)

    def total(self, board: Board) -> int:
        """Return the number of models: those planned, and those of the sets still to be labelled."""
        return len(self._sets_of) + self._members * sum(s.train and n not in self._open for n, s in board.sets.items())

    def finished(self, board: Board) -> bool:
        """Tell whether every ensemble is settled."""
        return all(s.name in board.trained for s in board.sets.values() if s.train)


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    from campaign.engines.models import load

    load(task.params["model"])


def work(task: Task, context: Context) -> Outcome:
    """Train one model on the labelled frames; each epoch leaves a line in the task's folder for the live view.

    A training that was killed goes on from its checkpoint in that folder.

    The last inputs, as many as ``choices`` says, are the tasks that decided of which atoms the forces count.
    """
    from campaign.engines.models import versions
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if not task.inputs:
        raise EngineError("There is no labelled frame to train on: every label failed, see campaign status.")
    labels = len(task.inputs) - task.params.get("choices", 0)
    blocks = store.collect("label", [f"{i}:0" for i in task.inputs[:labels]])
    counted = counted_of(store, task.inputs[labels:], blocks)
    seed = int(np.random.SeedSequence(task.params["seed"]).generate_state(1)[0])
    spec = {k: v for k, v in task.params.items() if k not in ("seed", "choices")}
    folder = context.folder(task)
    execution = execution_of(task, folder)
    model, arrays, summary = train_watched(blocks, spec, seed, folder, execution, counted)
    export_model(model, model_path(context.run / "models", new_record(task, context.attempt)))
    scratch = (execution.checkpoint,) if execution.checkpoint else ()
    return Outcome(summary, arrays, versions=versions(task.params["model"]), scratch=scratch)
