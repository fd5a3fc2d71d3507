"""Selection: a selector sees every shard of the pool once, in a fixed order, while sampling goes on.

The training set comes from a chain of tasks, one a shard, each continuing from the state that the one before it left.
Sets to compare with or to test on are drawn at random once the pool is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.frames import Frames, frame_id, parse_frame_id
from campaign.stages.board import HELD_OUT, RANDOM, Board, FrameSet
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.engines.schnetpack import Descriptor
    from campaign.science.selection import Selector
    from campaign.store.store import Store

VERSION = 1


class Select:
    """Plans the selector's chain, and the random draws that validation asks for.

    Parameters
    ----------
    campaign
        The campaign.
    """

    name = "select"

    def __init__(self, campaign: Campaign) -> None:
        assert campaign.select is not None
        self._seed = campaign.seed
        spec = campaign.select.model_dump(mode="json")
        self.method: str = spec.pop("method")
        self._spec: dict[str, Json] = spec
        self.sets = [FrameSet(self.method, spec["size"], train=True), *_compared_sets(campaign, spec["size"])]
        self._streams = self.method != "random"  # a random pick needs no pass over the frames
        self._position = 0  # next shard of the stream
        self._seen = 0  # frames the stream has brought so far, lost ones counted: the place in the plan
        self._last: str | None = None  # the chain's last planned task
        self.stream: list[str] = []  # the chain's finished tasks
        self._total = 0  # frames the stream will bring, lost ones counted
        self._waiting: dict[str, str] = {}  # task in flight -> its set
        self._planned: set[str] = set()
        self._broken = False

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the chain's next task when its shard is there; then the draws, when the pool is complete."""
        for chosen in self.sets:
            board.sets.setdefault(chosen.name, chosen)
        if board.sampled and not any(s.state == "ready" for s in board.shards):
            for chosen in self.sets:  # every walker was lost at once: there is nothing to pick from
                chosen.closed = True
            return
        if self._streams and self.method not in self._waiting.values():
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
                yield self._link(shard.task.id, self._seen / self._total, f"shard {self._position - 1}")
                return
        if self.method not in self._planned and not self._broken:
            self._planned.add(self.method)
            yield self._link(None, 1.0, "finish")

    def _link(self, shard: str | None, progress: float, name: str) -> Task:
        """Return the task that offers one shard to the selector, or that finishes the stream."""
        inputs = tuple(i for i in (self._last, shard) if i is not None)
        params = {
            "method": self.method,
            **self._spec,
            "seed": self._seed,
            "progress": progress,
            "first": self._last is None,
            "finish": shard is None,
        }
        task = Task("select", f"{self.method}/{name}", params, inputs, VERSION, priority=1)
        self._last = task.id
        self._waiting[task.id] = self.method
        return task

    def _draws(self, board: Board) -> Iterator[Task]:
        """Yield the random draws: those for training first; the test set leaves out all of them."""
        shards = [s.task.id for s in board.shards if s.state == "ready"]
        for number, chosen in enumerate(self.sets):
            if (self._streams and number == 0) or chosen.name in self._planned:
                continue
            avoid = [s for s in self.sets if s.train] if chosen.name == HELD_OUT else []
            if not all(s.closed for s in avoid):
                continue
            params = {
                "method": "draw",
                "size": chosen.size,
                "seed": [self._seed, number],
                "min_distance": self._spec["min_distance"],
                "avoid": sorted(f for s in avoid for f in s.chosen),
            }
            task = Task("select", f"{chosen.name}/draw", params, tuple(shards), VERSION, priority=1)
            self._planned.add(chosen.name)
            self._waiting[task.id] = chosen.name
            yield task

    def commit(self, record: Record, board: Board) -> None:
        """Add the frames that became final to their set."""
        chosen = board.sets[self._waiting.pop(record["task"])]
        if record["state"] != "done":
            chosen.closed = True
            if self._streams and chosen is self.sets[0]:
                chosen.chosen = []  # a part of a pick is not the pick asked for: nothing is trained on it
                self._broken = True
                self._position = len(board.shards)
            return
        if self._streams and chosen is self.sets[0]:
            self.stream.append(record["task"])
        result = record["result"]
        chosen.chosen += result["chosen"]
        chosen.refused += result["refused"]
        chosen.closed = result["finished"]

    def packable(self, board: Board) -> list[list[str]]:
        """Return the finished tasks of the chain."""
        return [self.stream] if self.stream else []

    def total(self, board: Board) -> int:
        """Return the number of tasks: one a shard and one to finish, and the draws."""
        stream = sum(s.state != "lost" for s in board.shards) + 1 if self._streams else 0
        return stream + len(self.sets) - (1 if self._streams else 0)

    def finished(self, board: Board) -> bool:
        """Tell whether every set is complete."""
        return board.sampled and all(s.closed for s in self.sets)


def _compared_sets(campaign: Campaign, size: int) -> list[FrameSet]:
    """Return the sets that validation asks for."""
    found: dict[str, FrameSet] = {}
    for test in campaign.validation:
        if test.method == "errors":
            if RANDOM in test.against and campaign.select is not None and campaign.select.method != RANDOM:
                found[RANDOM] = FrameSet(RANDOM, size, train=True)
            found[HELD_OUT] = FrameSet(HELD_OUT, test.held_out, train=False)
    return list(found.values())


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    if task.params["method"] != "draw":
        from campaign.engines.schnetpack import load_schnetpack

        load_schnetpack()


def work(task: Task, context: Context) -> Outcome:
    """Offer a shard to the selector, finish its stream, or draw frames at random."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    return _draw(task, store) if task.params["method"] == "draw" else _stream(task, store)


def _stream(task: Task, store: Store) -> Outcome:
    p = task.params
    selector = _selector(p)
    inputs = list(task.inputs)
    if not p["first"]:
        selector.load(store.checkpoint(inputs.pop(0)))
    if p["finish"]:
        chosen = selector.finish().chosen
        return _outcome(chosen, [], finished=True)
    frames = store.frames("sample", inputs[0])
    good, refused = _refuse(frames, p["min_distance"])
    offered = frames[np.flatnonzero(good)]
    novelty = np.full(len(frames), np.nan, dtype="float32")
    chosen = []
    if len(offered):
        describe = _descriptor(tuple(sorted(set(frames.numbers[0].tolist()))), p["seed"], **p["representation"])
        offer = selector.offer(offered.task, offered.index, describe(offered), p["progress"])
        novelty[good] = offer.novelty
        chosen = offer.chosen
    seen = {
        "novelty": novelty,
        "task": frames.task,
        "index": frames.index,
        "temperature": frames.temperature,
    }
    outcome = _outcome(chosen, refused, finished=False)
    return Outcome(outcome.summary, seen, selector.state(), outcome.versions)


def _outcome(chosen: list[tuple[int, int]], refused: list[dict[str, str]], finished: bool) -> Outcome:
    summary: dict[str, Json] = {
        "chosen": [frame_id(np.uint64(t), i) for t, i in chosen],
        "refused": refused,
        "finished": finished,
    }
    return Outcome(summary, {})


def _selector(p: dict[str, Json]) -> Selector:
    from campaign.science.rnd import RNDStream

    return RNDStream(p["size"], p["seed"], round(p["candidates"]), p["early"])


@lru_cache(maxsize=4)
def _descriptor(species: tuple[int, ...], seed: int, **representation: Any) -> Descriptor:
    """Return the descriptor, kept between the tasks of a worker: building it costs more than a shard."""
    from campaign.engines.schnetpack import Descriptor

    representation.pop("model")
    return Descriptor(species, seed=seed, **representation)


def _refuse(frames: Frames, min_distance: float) -> tuple[np.ndarray[Any, Any], list[dict[str, str]]]:
    """Return which frames may be selected, and why the others may not."""
    from campaign.science.neighbours import closest_ratio

    ratio = closest_ratio(frames)
    good = ratio >= min_distance
    reasons = [
        {"frame": frames.ids[k], "reason": f"two atoms at {ratio[k]:.2f} of the sum of their covalent radii"}
        for k in np.flatnonzero(~good)
    ]
    return good, reasons


def _draw(task: Task, store: Store) -> Outcome:
    """Draw frames uniformly at random; the pick does not depend on the order of the shards."""
    from campaign.science.selection import RandomSelector

    p = task.params
    avoid = set(p["avoid"])
    spare = p["size"] + len(avoid) + 16  # refusals are rare; more are drawn when these do not suffice
    while True:
        selector = RandomSelector(spare, int(np.random.SeedSequence(p["seed"]).generate_state(1)[0]))
        offered = 0
        for shard in task.inputs:
            place = store.locate("sample", shard)
            n = place.stop - place.start
            offered += n
            selector.offer(np.full(n, int(shard, 16), dtype="uint64"), np.arange(n), None, 0.0)
        chosen: list[tuple[int, int]] = []
        refused: list[dict[str, str]] = []
        for t, i in selector.finish().chosen:
            name = frame_id(np.uint64(t), i)
            if name in avoid or len(chosen) == p["size"]:
                continue
            shard, index = parse_frame_id(name)
            _, reasons = _refuse(store.frames("sample", shard, [index]), p["min_distance"])
            refused += reasons
            if not reasons:
                chosen.append((t, i))
        if len(chosen) == p["size"] or spare >= offered:
            return _outcome(chosen, refused, finished=True)
        spare *= 2
