"""Training: an ensemble for every training set, its members side by side.

Members that are trained together are trained by one task, which publishes all of them; each member is then a task of
its own that takes what is there, with the name, the record and the files of one that was trained alone. Where that one
task fails, the members train alone.

The members of a set that has grown (``learn``) go on from the weights of the same members of the set before, unless
that is not wanted, or there are no such weights because that training failed: then they are trained anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from campaign.engines.models import TOGETHER
from campaign.errors import EngineError, StoreError
from campaign.stages.board import Board, FrameSet
from campaign.stages.trained import (
    counted_of,
    execution_of,
    export_model,
    model_path,
    pack_members,
    split_extra,
    take_member,
    train_watched,
    warm_start,
    watched,
)
from campaign.tasks import Context, Json, Outcome, Record, Task, new_record

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.engines.checkpoints import WarmStart
    from campaign.frames import Array, Frames
    from campaign.store.store import Store

VERSION = 2

#: A member that goes on has this part of the passes, and of the rate, of one that begins, where nothing is written: at
#: the whole rate SchNets of six frames of molten NaCl forgot all they knew, and learned nothing more.
SHORTER, SLOWER = 2, 10


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
        self._warm = retraining(campaign)
        self._tasks: dict[str, list[Task]] = {}  # set -> its members
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
            self._open[chosen.name] = self._members
            self._tasks[chosen.name] = self._members_of(chosen, frames, board)
            new = []
            for task in self._tasks[chosen.name]:
                self._sets_of.setdefault(task.id, []).append(chosen.name)
                if len(self._sets_of[task.id]) == 1:
                    new.append(task)
                elif task.id in self._settled:  # two sets of the same frames share their models
                    self._account(task.id, chosen.name, board)
            if self.together and new and len({"start" in task.params for task in new}) == 1:
                whole = _joined(new, f"{chosen.name}/together")
                self._whole[whole.id] = new
                self._ready.append(whole)
            else:
                self._ready += new
        while self._ready:
            yield self._ready.popleft()

    def _members_of(self, chosen: FrameSet, frames: list[str], board: Board) -> list[Task]:
        """Return the trainings of a set; where nothing of it is new, those of the set that it grew from."""
        before = self._tasks.get(chosen.grown, [])
        fresh = len(frames) - len(board.labelled(chosen.grown)) if before else 0
        if before and not fresh:
            return before
        inputs = (*(str(board.labels[f]) for f in frames), *chosen.counted)
        found = []
        for member in range(self._members):
            params: dict[str, Json] = {**self._spec, "seed": [self._seed, member]}
            params |= {"choices": len(chosen.counted)} if chosen.counted else {}
            start: tuple[str, ...] = ()
            if self._warm is not None and before and self._settled.get(before[member].id) == "done":
                params |= {**self._warm, "start": 1, "fresh": fresh}
                start = (before[member].id,)
            name = f"{chosen.name}/{member}"
            found.append(Task("train", name, params, (*inputs, *start), VERSION, priority=3, extra=self._extra))
        return found

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


def retraining(campaign: Campaign) -> dict[str, Json] | None:
    """Return what differs from ``train`` in the training of members that go on; None where all are trained anew."""
    train, learn = campaign.train, campaign.learn
    if learn is None or train is None or learn.warm_start is False or train.model == "gap":
        return None
    found: dict[str, Json] = {}
    if train.model != "fake":
        found["epochs"] = learn.epochs or -(-train.epochs // SHORTER)
        found |= {"steps": learn.steps} if learn.steps else {}
        found["rate"] = learn.rate or train.rate / SLOWER
    return found


def _joined(members: list[Task], name: str) -> Task:
    """Return the task that trains members together: their seeds, and what each of them goes on from."""
    params = {**members[0].params, "seed": [task.params["seed"] for task in members]}
    inputs = members[0].inputs
    if "start" in params:
        params["start"] = len(members)
        inputs = (*inputs[:-1], *(task.inputs[-1] for task in members))
    return replace(members[0], name=name, params=params, inputs=inputs)


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    from campaign.engines.models import load

    load(task.params["model"])


def work(task: Task, context: Context) -> Outcome:
    """Train one model on the labelled frames; each epoch leaves a line in the task's folder for the live view.

    A training that was killed goes on from its checkpoint in that folder. A list of seeds stands for several models,
    trained together; a member of them, whose extra ``taken`` names that task, is taken from there.

    Behind the labels, the inputs are as many tasks as ``choices`` says, which decided of which atoms the forces count,
    and as many trainings as ``start`` says, which are gone on from: the last of the labels, as many as ``fresh`` says,
    are those that these have not seen.
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
        blocks, counted, start = _frames(task, store)
        found = train_watched(blocks, counted, spec, _seed(task.params["seed"]), folder, execution, start)
    model, arrays, summary = found
    export_model(model, model_path(context.run / "models", new_record(task, context.attempt)))
    return Outcome(summary, arrays, versions=programs, scratch=scratch)


def _work_together(task: Task, context: Context, store: Store) -> Outcome:
    """Train all members of an ensemble, and publish them under their numbers."""
    from campaign.engines.models import train_ensemble

    blocks, counted, start = _frames(task, store)
    execution, seeds = execution_of(task, context), [_seed(words) for words in task.params["seed"]]
    with watched(context.folder(task), execution.tensorboard) as watch:
        found = train_ensemble(blocks, _spec(task), seeds, watch, execution, counted, start)
    arrays, summaries = pack_members(found)
    return Outcome({"members": summaries, "seeds": task.params["seed"]}, arrays)


def _frames(task: Task, store: Store) -> tuple[list[Frames], list[Array] | None, WarmStart | None]:
    """Return the labelled blocks of a task, of which atoms the forces count, and what is gone on from."""
    choices, starts, fresh = (task.params.get(name, 0) for name in ("choices", "start", "fresh"))
    models = len(task.inputs) - starts
    labels, decided = task.inputs[: models - choices], task.inputs[models - choices : models]
    blocks = store.collect("label", [f"{i}:0" for i in labels])
    start = warm_start(store, task.inputs[models:], labels[-fresh:], blocks) if starts else None
    return blocks, counted_of(store, decided, blocks), start


def _seed(words: list[int]) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _spec(task: Task) -> dict[str, object]:
    return {k: v for k, v in task.params.items() if k not in ("seed", "choices", "start", "fresh")}
