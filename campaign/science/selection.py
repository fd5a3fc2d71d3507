"""Selectors: which frames of a stream to label. One interface; every selector sees each frame once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from campaign.frames import Array


@dataclass(frozen=True, eq=False, slots=True)
class Offer:
    """What a selector made of a block of frames.

    Attributes
    ----------
    novelty : (n,) float32
        How new each offered frame was when it was offered (no unit; 0 where the selector does not measure it, NaN for
        a frame whose descriptor is not finite: such a frame is never chosen).
    chosen
        (task, index) of the frames that became final now; they may have been offered earlier.
    """

    novelty: Array
    chosen: list[tuple[int, int]]


class Selector(Protocol):
    """Consumes a stream of frames and chooses ``size`` of them.

    The same seed and the same sequence of offers give the same choice, also when ``state`` was taken and given to a
    new selector (made with the same arguments) by ``load`` at any point of the stream.
    """

    needs_descriptors: bool

    def offer(self, task: Array, index: Array, descriptors: Array | None, progress: float) -> Offer:
        """See ``n`` frames: task (n,) uint64, index (n,) int32, descriptors (n, d) float32 or None.

        ``progress`` is the part of the stream seen once this block is counted, 0 to 1.
        """
        ...

    def finish(self) -> Offer:
        """Choose the rest: in total exactly ``size`` frames, or all that were offered if they are fewer."""
        ...

    def state(self) -> dict[str, Array]:
        """Return everything the rest of the stream depends on, as a few numeric arrays."""
        ...

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state`` of a selector made with the same arguments."""
        ...


class RandomSelector:
    """A uniform random pick: the frames with the ``size`` smallest hashes of (seed, task, index).

    Which frames are picked does not depend on the order in which they come.

    Parameters
    ----------
    size
        How many frames to pick.
    seed
        Another seed, another pick.
    """

    needs_descriptors = False

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"A selector must choose at least one frame, got a size of {size}.")
        self.size = size
        self.seed = seed
        self._kept = np.zeros((0, 3), dtype=np.uint64)  # hash, task, index
        self._final = 0

    def offer(self, task: Array, index: Array, descriptors: Array | None, progress: float) -> Offer:
        """See ``n`` frames; none is final before ``finish``. ``descriptors`` and ``progress`` are not used."""
        rows = np.stack([frame_hash(self.seed, task, index), _words(task), _words(index)], axis=1)
        rows = np.concatenate([self._kept, rows])
        order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
        self._kept = rows[order[: self.size]]
        return Offer(np.zeros(len(task), dtype=np.float32), [])

    def finish(self) -> Offer:
        """Choose the frames with the smallest hashes; a second call chooses no more."""
        chosen = [(int(t), int(i)) for _, t, i in self._kept[self._final :]]
        self._final = len(self._kept)
        return Offer(np.zeros(0, dtype=np.float32), chosen)

    def state(self) -> dict[str, Array]:
        """Return ``kept`` (k, 3) uint64 and ``final`` (1,) int64."""
        return {"kept": self._kept.copy(), "final": np.array([self._final], dtype=np.int64)}

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._kept = np.array(state["kept"], dtype=np.uint64).reshape(-1, 3)
        self._final = int(state["final"][0])


def frame_hash(seed: int, task: Array, index: Array) -> Array:
    """Return (n,) uint64, uniform hashes of (seed, task, index): three rounds of splitmix64 (Steele et al. 2014)."""
    seeded = _mix(np.full(len(task), seed & (2**64 - 1), dtype=np.uint64))
    return _mix(_mix(seeded ^ _words(task)) ^ _words(index))


def _words(values: Array) -> Array:
    return np.asarray(values).astype(np.uint64)


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
