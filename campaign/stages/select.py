"""Selection: a selector sees every shard of the pool once, in a fixed order, while sampling goes on.

The training set comes from a chain of tasks, one a shard, each continuing from the state that the one before it left.
Selectors that need the whole pool at once have a task a shard too, which only describes its frames, in any order; one
more reads them all. Sets to compare with or to test on are drawn at random once the pool is complete.
What the workers do is in ``selecting``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from campaign.science.selectors import SELECTORS
from campaign.stages.board import HELD_OUT, Board, FrameSet, Shard
from campaign.stages.selecting import LIMITS, compared_sets, draw, finish_pool, look_at, species_of, stream
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.stages.sample_file import Source

VERSION = 4

#: Keys that say what the frames are described by.
DESCRIBES = ("representation", "environments")


class Select:
    """Plans the selector's tasks, and the random draws that validation asks for.

    Parameters
    ----------
    campaign
        The campaign.
    sources
        Notes of the files of frames that it samples from (``sample_file``).
    """

    name = "select"

    def __init__(self, campaign: Campaign, sources: Sequence[Source] = ()) -> None:
        assert campaign.select is not None
        self._seed = campaign.seed
        spec: dict[str, Json] = campaign.select.model_dump(mode="json")
        self.method: str = spec.pop("method")
        self._size: int = spec.pop("size")
        self._limits = {key: spec.pop(key) for key in LIMITS}
        self._describes: dict[str, Json] = {key: spec.pop(key) for key in DESCRIBES if key in spec}
        if self._describes:
            self._describes |= species_of(campaign, sources)
        self._options = spec  # what the selector itself takes
        potential = campaign.system.potential
        self._potential = potential.lammps if potential else ""
        self._distilled = campaign.distill is not None  # then the frames are chosen from once more, and not trained on
        self.sets = [FrameSet(self.method, self._size, train=not self._distilled)]
        if not self._distilled:
            self.sets += compared_sets(campaign, self.method, self._size)
        self._streams = self.method != "random"  # a random pick needs no pass over the frames
        self._pool: bool = SELECTORS[self.method].whole_pool
        self.measures_novelty: bool = SELECTORS[self.method].measures_novelty
        self._timed = "time" in SELECTORS[self.method].needs
        self._position = 0  # next shard of the stream
        self._seen = 0  # frames the stream has brought so far, lost ones counted: the place in the plan
        self._last: str | None = None  # the chain's last planned task
        self.stream: list[str] = []  # the finished tasks of the training set
        self._looks: dict[str, str] = {}  # shard -> the task that describes it, where they are no chain
        self._numbers: dict[str, int] = {}  # shard -> its place in the pool
        self._total = 0  # frames the stream will bring, lost ones counted
        self._lengths: dict[int, int] = {}  # frames of a walker's planned run, by entry of ``sample``
        self._waiting: dict[str, str] = {}  # task in flight -> its set
        self._planned: set[str] = set()
        self._broken = False

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the chain's next task when its shard is there; then the draws, when the pool is complete."""
        if self._distilled:
            board.source = self.sets[0]
        else:
            board.sets.update({s.name: s for s in self.sets if s.name not in board.sets})
        if board.sampled and not any(s.state == "ready" for s in board.shards):
            for chosen in self.sets:  # every walker was lost at once: there is nothing to pick from
                chosen.closed = True
            return
        if self._pool:
            yield from self._look_at_pool(board)
        elif self._streams and self.method not in self._waiting.values():
            yield from self._next_of_stream(board)
        if board.sampled:
            yield from self._draws(board)

    def _next_of_stream(self, board: Board) -> Iterator[Task]:
        self._total = self._total or sum(s.frames for s in board.shards)
        while self._position < len(board.shards):
            shard = board.shards[self._position]
            if shard.state == "expected":
                return
            self._position += 1
            self._seen += shard.frames
            if shard.state == "ready":
                yield self._link(shard, self._seen / self._total, board)
                return
        if self.method not in self._planned and not self._broken:
            self._planned.add(self.method)
            yield self._link(None, 1.0, board)

    def _link(self, shard: Shard | None, progress: float, board: Board) -> Task:
        """Return the task that offers one shard to the selector, or that finishes the stream."""
        inputs = tuple(i for i in (self._last, shard.task.id if shard else None) if i is not None)
        params = {
            "method": self.method,
            "size": self._size,
            "options": self._options,
            "limits": self._limits,
            **self._describes,
            "seed": self._seed,
            "progress": progress,
            "first": self._last is None,
            "finish": shard is None,
        }
        if self._timed and shard:
            params["times"] = self._times(shard, board)
        name = f"shard {self._position - 1}" if shard else "finish"
        moved = shard is not None and shard.task.params["method"] not in ("file", "fake")
        extra = {"potential": self._potential if moved else ""}
        task = Task("select", f"{self.method}/{name}", params, inputs, VERSION, priority=1, extra=extra)
        self._last = task.id
        self._waiting[task.id] = self.method
        return task

    def _times(self, shard: Shard, board: Board) -> list[int]:
        """Return a shard's entry of ``sample``, its first place, steps between places, and places of a planned run."""
        if not self._lengths:
            for other in board.shards:
                entry, _, _, stop = _places(other)
                self._lengths[entry] = max(self._lengths.get(entry, 0), stop)
        entry, start, step, _ = _places(shard)
        return [entry, start, step, self._lengths[entry]]

    def _look_at_pool(self, board: Board) -> Iterator[Task]:
        """Yield a task for each shard that is there now; when all are settled, the one that chooses."""
        self._numbers = self._numbers or {shard.task.id: k for k, shard in enumerate(board.shards)}
        for shard in board.ready[len(self._looks) :]:
            params = {
                "method": self.method,
                "whole_pool": True,
                "limits": self._limits,
                **self._describes,
                "seed": self._seed,
                "finish": False,
            }
            name = f"{self.method}/shard {self._numbers[shard]}"
            task = Task("select", name, params, (shard,), VERSION, priority=1)
            self._looks[shard] = task.id
            self._waiting[task.id] = self.method
            yield task
        if board.sampled and self.method not in self._waiting.values() and self.method not in self._planned:
            self._planned.add(self.method)
            done = set(self.stream)
            every = [self._looks[s.task.id] for s in board.shards if s.task.id in self._looks]
            self.stream = [task for task in every if task in done]  # in the order of the pool
            params = {
                "method": self.method,
                "whole_pool": True,
                "size": self._size,
                "options": self._options,
                "seed": self._seed,
                "finish": True,
            }
            task = Task("select", f"{self.method}/finish", params, tuple(self.stream), VERSION, priority=1)
            self._last = task.id
            self._waiting[task.id] = self.method
            yield task

    def _draws(self, board: Board) -> Iterator[Task]:
        """Yield the random draws: those for training first; the test set leaves out all of them."""
        for number, chosen in enumerate(self.sets):
            if (self._streams and number == 0) or chosen.name in self._planned:
                continue
            avoid = [s for s in self.sets if s.train] if chosen.name == HELD_OUT else []
            if not all(s.closed for s in avoid):
                continue
            shards = tuple(s.task.id for s in board.shards if s.state == "ready")
            params = {
                "method": "draw",
                "size": chosen.size,
                "seed": [self._seed, number],
                "limits": self._limits,
                "avoid": sorted(f for s in avoid for f in s.chosen),
            }
            task = Task("select", f"{chosen.name}/draw", params, shards, VERSION, priority=1)
            self._planned.add(chosen.name)
            self._waiting[task.id] = chosen.name
            yield task

    def commit(self, record: Record, board: Board) -> None:
        """Add the frames that became final to their set."""
        name = self._waiting.pop(record["task"])
        chosen = next(s for s in self.sets if s.name == name)
        mine = self._streams and chosen is self.sets[0]
        last = not self._pool or record["task"] == self._last
        if record["state"] != "done":
            if mine and not last:
                return  # the frames of one shard could not be described: the others are chosen from
            chosen.closed = True
            if mine:
                chosen.chosen = []  # a part of a pick is not the pick asked for: nothing is trained on it
                self._broken = True
                self._position = len(board.shards)
            return
        if mine:
            self.stream.append(record["task"])
            if self.measures_novelty and record["result"]["finished"]:
                board.stream = record["task"]
        result = record["result"]
        chosen.chosen += result["chosen"]
        chosen.refused += result["refused"]
        chosen.closed = result["finished"]
        if chosen.closed and not chosen.chosen:
            chosen.note = f"{chosen.name}: no frame could be chosen; 'campaign export RUN rejected FILE' says why"
        elif chosen.closed and len(chosen.chosen) < chosen.size:
            chosen.note = result.get("note") or (
                f"{chosen.name}: only {len(chosen.chosen)} frames could be chosen, not {chosen.size}: all are taken"
            )

    def packable(self, board: Board) -> list[list[str]]:
        """Return the finished tasks of the training set."""
        return [self.stream] if self.stream else []

    def total(self, board: Board) -> int:
        """Return the number of tasks: one a shard and one to finish, and the draws."""
        stream = sum(s.state != "lost" for s in board.shards) + 1 if self._streams else 0
        return stream + len(self.sets) - (1 if self._streams else 0)

    def finished(self, board: Board) -> bool:
        """Tell whether every set is complete."""
        return board.sampled and all(s.closed for s in self.sets)


def _places(shard: Shard) -> tuple[int, int, int, int]:
    """Return a shard's entry of ``sample``, its first place in a walker's run, the steps between, where it ends."""
    p = shard.task.params
    if p["method"] == "file":
        return p["entry"], p["start"], p["every"], p["stop"]
    return p["walker"][0], p["first"], 1, p["first"] + p["frames"]


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    if task.params.get("representation", {}).get("model") == "schnet":
        from campaign.engines.schnetpack import load_schnetpack

        load_schnetpack()


def work(task: Task, context: Context) -> Outcome:
    """Offer a shard to the selector or finish its stream, describe one, or draw frames at random."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if task.params["method"] == "draw":
        return draw(task, store)
    if task.params.get("whole_pool"):
        return finish_pool(task, store) if task.params["finish"] else look_at(task, store, context.run)
    return stream(task, store, context.run)
