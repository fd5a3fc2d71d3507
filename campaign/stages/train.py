"""Training: an ensemble for every training set, its members side by side.

Members that are trained together are trained by one task, which publishes all of them; each member is then a task of
its own that takes what is there, with the name, the record and the files of one that was trained alone. Where that one
task fails, the members train alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from campaign.engines.models import TOGETHER
from campaign.errors import EngineError, StoreError
from campaign.stages.board import Board
from campaign.stages.trained import (
    counted_of,
    execution_of,
    export_model,
    model_path,
    pack_members,
    split_extra,
    take_member,
    train_watched,
    watched,
)
from campaign.tasks import Context, Outcome, Record, Task, new_record

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.frames import Array, Frames
    from campaign.store.store import Store

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
        wanted = self._extra.pop("together", None)
        usual = self._extra.get("device") == "cuda" and "processes" not in self._extra and spec["model"] in TOGETHER
        #: whether members are trained by one task
        self.together: bool = self._members > 1 and (usual if wanted is None else wanted)
        self._whole: dict[str, list[Task]] = {}  # task that trains members together -> these members
        self._ready: deque[Task] = deque()

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the members for each training set whose labels are all settled, or what trains them together."""
        for chosen in board.sets.values():
            if not chosen.train or chosen.name in self._open or not board.set_settled(chosen.name):
                continue
            frames = board.labelled(chosen.name)
            if not frames:  # nothing was selected or every label failed: those failures are reported already
                self._open[chosen.name] = 0
                board.trained.add(chosen.name)
                continue
            inputs = (*(str(board.labels[f]) for f in frames), *chosen.counted)
            self._open[chosen.name] = self._members
            new = []
            for member in range(self._members):
                task = self._task(chosen.name, member, len(chosen.counted), inputs)
                self._sets_of.setdefault(task.id, []).append(chosen.name)
                if len(self._sets_of[task.id]) == 1:
                    new.append(task)
                elif task.id in self._settled:  # two sets of the same frames share their models
                    self._account(task.id, chosen.name, board)
            if self.together and new:
                seeds = [task.params["seed"] for task in new]
                whole = replace(new[0], name=f"{chosen.name}/together", params={**new[0].params, "seed": seeds})
                self._whole[whole.id] = new
                self._ready.append(whole)
            else:
                self._ready += new
        while self._ready:
            yield self._ready.popleft()

    def _task(self, name: str, member: int, choices: int, inputs: tuple[str, ...]) -> Task:
        params = {**self._spec, "seed": [self._seed, member]}
        if choices:
            params["choices"] = choices
        return Task("train", f"{name}/{member}", params, inputs, VERSION, priority=3, extra=self._extra)

    def commit(self, record: Record, board: Board) -> None:
        """Add the model to its set's ensemble, or let the members that were trained together follow."""
        if record["task"] in self._whole:
            there = {"taken": record["task"]} if record["state"] == "done" else {}
            self._ready += [replace(task, extra=self._extra | there) for task in self._whole[record["task"]]]
            return
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
        """Return the number of trainings: those planned, and those of the sets still to be labelled."""
        left = sum(s.train and n not in self._open for n, s in board.sets.items())
        return len(self._sets_of) + len(self._whole) + (self._members + self.together) * left

    def finished(self, board: Board) -> bool:
        """Tell whether every ensemble is settled."""
        return all(s.name in board.trained for s in board.sets.values() if s.train)


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    from campaign.engines.models import load

    load(task.params["model"])


def work(task: Task, context: Context) -> Outcome:
    """Train one model on the labelled frames; each epoch leaves a line in the task's folder for the live view.

    A training that was killed goes on from its checkpoint in that folder. A list of seeds stands for several models,
    trained together; a member of them, whose extra ``taken`` names that task, is taken from there.

    The last inputs, as many as ``choices`` says, are the tasks that decided of which atoms the forces count.
    """
    from campaign.engines.models import versions
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if not task.inputs:
        raise EngineError("There is no labelled frame to train on: every label failed, see campaign status.")
    execution, folder = execution_of(task, context), context.folder(task)
    scratch = (execution.checkpoint,) if execution.checkpoint else ()
    programs = versions(task.params["model"])
    if isinstance(task.params["seed"][0], list):
        return replace(_work_together(task, context, store), versions=programs, scratch=scratch)
    spec, found = _spec(task), None
    if "taken" in task.extra:
        try:
            found = take_member(store, task.extra["taken"], task.params["seed"], spec, folder, execution)
        except StoreError:  # no longer there: it is trained alone
            found = None
    if found is None:
        found = train_watched(*_frames(task, store), spec, _seed(task.params["seed"]), folder, execution)
    model, arrays, summary = found
    export_model(model, model_path(context.run / "models", new_record(task, context.attempt)))
    return Outcome(summary, arrays, versions=programs, scratch=scratch)


def _work_together(task: Task, context: Context, store: Store) -> Outcome:
    """Train all members of an ensemble, and publish them under their numbers."""
    from campaign.engines.models import train_ensemble

    blocks, counted = _frames(task, store)
    execution, seeds = execution_of(task, context), [_seed(words) for words in task.params["seed"]]
    with watched(context.folder(task), execution.tensorboard) as watch:
        found = train_ensemble(blocks, _spec(task), seeds, watch, execution, counted)
    arrays, summaries = pack_members(found)
    return Outcome({"members": summaries, "seeds": task.params["seed"]}, arrays)


def _frames(task: Task, store: Store) -> tuple[list[Frames], list[Array] | None]:
    """Return the labelled blocks of a task, and of which atoms the forces count."""
    labels = len(task.inputs) - task.params.get("choices", 0)
    blocks = store.collect("label", [f"{i}:0" for i in task.inputs[:labels]])
    return blocks, counted_of(store, task.inputs[labels:], blocks)


def _seed(words: list[int]) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _spec(task: Task) -> dict[str, object]:
    return {k: v for k, v in task.params.items() if k not in ("seed", "choices")}
