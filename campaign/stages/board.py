"""What the stages tell each other: a blackboard. No stage calls another; each reads and writes here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from campaign.tasks import Record, Task

if TYPE_CHECKING:
    from campaign.science.refusals import Limits

#: The set that the models to be compared with are trained on, and the one that all models are tested on.
RANDOM, HELD_OUT = "random", "held_out"


@dataclass
class Shard:
    """One finished or expected segment of the pool, in the fixed order of the stream."""

    task: Task
    frames: int
    state: str = "expected"  # then "ready" or "lost"


@dataclass
class FrameSet:
    """Frames picked for one purpose: the training set, the one it is compared with, the held-out test set."""

    name: str
    size: int
    train: bool
    chosen: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    closed: bool = False
    note: str = ""  # what people should know of it, such as that the pool had fewer frames
    counted: list[str] = field(default_factory=list)  # tasks that say of which atoms of its frames the forces count
    grown: str = ""  # the set of which it has all frames and more, and whose models may be gone on from


@dataclass
class Board:
    """The state of a campaign as its stages see it.

    Attributes
    ----------
    shards
        The pool, in the order in which every selector sees it: segment by segment, walker by walker.
    ready
        The tasks of the shards that are there, in the order in which they came.
    source
        What was selected to be distilled: neither labelled nor trained on; None where there is no such thing.
    sets
        Picked frames by the name of the set.
    labels
        Frame id to the label task that is done; None where the frame is quarantined, or its label out of ``bounds``.
    bounds
        Frame id to what its label must keep to: of frames of which only a model has said that they are fit.
    models
        Set name to its finished training tasks.
    trained
        Sets for which every training is settled.
    learning
        Whether the training set still grows (``learn``): what its models are worth is asked at the end.
    learned
        The set that it ended with; empty where nothing was learned.
    stream
        The task that ended the selection, where what it has learned can be gone on from (its checkpoint); or empty.
    """

    shards: list[Shard] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    sampled: bool = False
    source: FrameSet | None = None
    sets: dict[str, FrameSet] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    bounds: dict[str, Limits] = field(default_factory=dict)
    models: dict[str, list[str]] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    learning: bool = False
    learned: str = ""
    stream: str = ""

    def training(self) -> FrameSet | None:
        """Return the training set: what was chosen, grown by what was learned; None while nothing is planned."""
        if self.learned:
            return self.sets[self.learned]
        return next((s for s in self.sets.values() if s.train), None)

    def labelled(self, name: str) -> list[str]:
        """Return the frames of a set that have a label, in the order in which they were chosen."""
        return [f for f in self.sets[name].chosen if self.labels.get(f)]

    def set_settled(self, name: str) -> bool:
        """Tell whether a set is complete and each of its frames is labelled or quarantined."""
        chosen = self.sets[name]
        return chosen.closed and all(f in self.labels for f in chosen.chosen)


class Stage(Protocol):
    """The driver's side of a stage. The worker's side is the module's ``work(task, context) -> Outcome``."""

    name: str

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the tasks that became possible; each once."""

    def commit(self, record: Record, board: Board) -> None:
        """Take in a task that is done, or quarantined."""

    def total(self, board: Board) -> int:
        """Return how many tasks there will be, as far as known now."""

    def finished(self, board: Board) -> bool:
        """Tell whether every task the stage will ever have is settled."""
