"""Selectors: which frames of a stream to label. One interface; every selector sees each frame once.

The interface and the uniform random pick are here; the others are in ``selectors`` (the registry) and beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from campaign.frames import Array

#: What a selector made of a frame when it saw it: never to be chosen, passed by for good, waiting, chosen.
REFUSED, PASSED, WAITING, CHOSEN = -1, 0, 1, 2

#: A frame as selectors name it: (task, index).
Id = tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """``n`` frames offered to a selector. Beside task, index and progress only what it ``needs`` is there.

    Attributes
    ----------
    task, index : (n,) uint64 and (n,) int32
        Ids of the frames.
    progress
        The part of the stream that has been seen once this block is counted, 0 to 1.
    descriptors : (n, d) float
        One row a frame (no unit).
    environments : (n, a, d) float
        One row an atom (no unit).
    energy, enthalpy : (n,) float
        eV/atom; the enthalpy is E + pV at the barostat's pressure, E where there is none.
    energies : (n, a) float
        Energies of the atoms, eV.
    forces : (n, a) float
        Lengths of the forces, eV/Å.
    order : (n,) float
        Order parameter Q (no unit), NaN where there is none.
    volume : (n,) float
        Å^3/atom.
    walker, time : (n,) int64 and (n,) float
        Which walker, and which part of its planned run it has done, 0 to 1.
    """

    task: Array
    index: Array
    progress: float = 1.0
    descriptors: Array | None = None
    environments: Array | None = None
    energy: Array | None = None
    enthalpy: Array | None = None
    energies: Array | None = None
    forces: Array | None = None
    order: Array | None = None
    volume: Array | None = None
    walker: Array | None = None
    time: Array | None = None

    def __len__(self) -> int:
        return len(self.task)

    def column(self, name: str) -> Array:
        """Return an array that must be there, each row finite or refused by the selector."""
        found: Array | None = getattr(self, name)
        if found is None:
            raise ValueError(f"This selector chooses by the frames' {name}, and none were given; offer them.")
        return np.asarray(found)

    @property
    def ids(self) -> Array:
        """(n, 2) uint64: task and index."""
        return np.stack([_words(self.task), _words(self.index)], axis=1)


@dataclass(frozen=True, eq=False, slots=True)
class Offer:
    """What a selector made of a block of frames, or of the end of the stream.

    Attributes
    ----------
    scores : (n,) float32
        What each offered frame was judged by (each selector says what that is); NaN for a frame that was refused.
    decisions : (n,) int8
        REFUSED, PASSED, WAITING or CHOSEN. What is waiting may still be passed by later.
    chosen
        (task, index) of the frames that became final now; they may have been offered earlier.
    why
        Why each of ``chosen`` was.
    refused
        Row of the block -> why that frame can never be chosen.
    note
        What is to be said about the whole choice; empty for nothing.
    """

    scores: Array
    decisions: Array
    chosen: list[Id] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    note: str = ""


def ended(chosen: Sequence[Id], why: Sequence[str], note: str = "") -> Offer:
    """Return the offer of a ``finish``, which sees no frame."""
    return Offer(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int8), list(chosen), list(why), note=note)


def judged(scores: Array, good: Array, waiting: Array, reason: str) -> Offer:
    """Return the offer of a block from which nothing is final yet.

    Parameters
    ----------
    scores : (n,) float
        What the frames are judged by.
    good, waiting : (n,) bool
        Those that can be chosen at all, and those that wait.
    reason
        Why the others cannot.
    """
    decisions = np.where(good, np.where(waiting, WAITING, PASSED), REFUSED).astype(np.int8)
    shown = np.where(good, scores, np.nan).astype(np.float32)
    return Offer(shown, decisions, refused={int(k): reason for k in np.flatnonzero(~good)})


class Selector(Protocol):
    """Consumes a stream of frames and chooses ``size`` of them.

    The same seed and the same sequence of offers give the same choice, also when ``state`` was taken and given to a
    new selector (made with the same arguments) by ``load`` at any point of the stream.

    Attributes
    ----------
    needs
        Which arrays of a ``Batch`` it looks at.
    whole_pool
        Whether it keeps all that it was offered: such a selector is offered the pool at once, at the end.
    measures_novelty
        Whether its scores say how new a frame was when it was offered.
    """

    needs: ClassVar[frozenset[str]]
    whole_pool: ClassVar[bool]
    measures_novelty: ClassVar[bool]

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames, which may be empty."""
        ...

    def finish(self) -> Offer:
        """Choose the rest: in total exactly ``size`` frames, or all that could be chosen if they are fewer."""
        ...

    def state(self) -> dict[str, Array]:
        """Return everything the rest of the stream depends on, as a few numeric arrays."""
        ...

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state`` of a selector made with the same arguments."""
        ...


def check_size(size: int) -> int:
    """Return a size of at least 1."""
    if size < 1:
        raise ValueError(f"A selector must choose at least one frame, got a size of {size}.")
    return size


class Reservoir:
    """The ``room`` frames with the smallest hashes of those added: which they are depends on no order.

    Attributes
    ----------
    rows : (k, 3) uint64
        Hash, task and index, by rising hash.
    values : (k, v) float64
        What was added with them.
    """

    def __init__(self, room: int, width: int = 0) -> None:
        self.room = room
        self.rows = np.zeros((0, 3), dtype=np.uint64)
        self.values = np.zeros((0, width))

    def add(self, hashes: Array, ids: Array, values: Array) -> Array:
        """Add (n,) hashes, (n, 2) ids and (n, v) values; return (n,) bool, which of them are kept now."""
        rows = np.concatenate([self.rows, np.column_stack([hashes, ids]).astype(np.uint64)])
        order = by_hash(rows)[: self.room]
        kept = np.zeros(len(rows), dtype=bool)
        kept[order] = True
        found = kept[len(self.rows) :]
        self.values = np.concatenate([self.values, values])[order]
        self.rows = rows[order]
        return found


class RandomSelector:
    """A uniform random pick: the frames with the ``size`` smallest hashes of (seed, task, index).

    Which frames are picked does not depend on the order in which they come. Scores are 0.

    Parameters
    ----------
    size
        How many frames to pick.
    seed
        Another seed, another pick.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    whole_pool: ClassVar[bool] = False
    measures_novelty: ClassVar[bool] = False

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = check_size(size), seed
        self._kept = Reservoir(size)
        self._final = 0

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames; none is final before ``finish``."""
        hashes = frame_hash(self.seed, batch.task, batch.index)
        waiting = self._kept.add(hashes, batch.ids, np.zeros((len(batch), 0)))
        return judged(np.zeros(len(batch)), np.ones(len(batch), dtype=bool), waiting, "")

    def finish(self) -> Offer:
        """Choose the frames with the smallest hashes; a second call chooses no more."""
        chosen = [(int(t), int(i)) for _, t, i in self._kept.rows[self._final :]]
        self._final = len(self._kept.rows)
        return ended(chosen, ["drawn at random"] * len(chosen))

    def state(self) -> dict[str, Array]:
        """Return ``kept`` (k, 3) uint64 and ``final`` (1,) int64."""
        return {"kept": self._kept.rows.copy(), "final": np.array([self._final], dtype=np.int64)}

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._kept.rows = np.array(state["kept"], dtype=np.uint64).reshape(-1, 3)
        self._kept.values = np.zeros((len(self._kept.rows), 0))
        self._final = int(state["final"][0])


def frame_hash(seed: int, task: Array, index: Array) -> Array:
    """Return (n,) uint64, uniform hashes of (seed, task, index): three rounds of splitmix64 (Steele et al. 2014)."""
    seeded = _mix(np.full(len(task), seed & (2**64 - 1), dtype=np.uint64))
    return _mix(_mix(seeded ^ _words(task)) ^ _words(index))


def by_hash(rows: Array) -> Array:
    """Return the order of rows (hash, task, index) by hash, and by id where two hashes are the same."""
    return np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))


def _words(values: Array) -> Array:
    return np.asarray(values).astype(np.uint64)


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
