"""Selection evenly along time: what most training sets in the literature are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from campaign.frames import Array
from campaign.science.selection import Batch, Offer, Reservoir, check_size, ended, frame_hash, judged


class UniformTime:
    """Frames at evenly spaced times of the walkers' runs, from the walkers in turn.

    The j-th of ``size`` frames stands for the time (j + 1/2) / size of a walker's planned run. Of the frames within
    half a spacing of it one is taken from the walker that gave fewest so far, the nearest in time of those; where
    there is none (a walker was lost) the nearest in time of all. One pass: of the stream a sample that depends on the
    frames' ids alone is kept, of ``SPARE`` frames for each one to choose, so a larger pool gives times that are off by
    a small part of the spacing. Deterministic, whatever the seed; the order of arrival does not matter. The score is
    the time.

    Parameters
    ----------
    size
        How many frames to choose.
    seed
        Not used.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"walker", "time"})
    whole_pool: ClassVar[bool] = False
    measures_novelty: ClassVar[bool] = False

    #: Frames kept for each one to choose.
    SPARE = 32

    def __init__(self, size: int, seed: int) -> None:
        self.size = check_size(size)
        self._kept = Reservoir(max(self.SPARE * size, 1024), 2)
        self._finished = False

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames with ``walker`` and ``time``; none is final before ``finish``."""
        time = batch.column("time").astype(np.float64)
        values = np.column_stack([batch.column("walker").astype(np.float64), time])
        good = np.asarray(np.isfinite(values).all(axis=1))
        hashes = frame_hash(0, batch.task[good], batch.index[good])
        waiting = np.zeros(len(batch), dtype=bool)
        waiting[good] = self._kept.add(hashes, batch.ids[good], values[good])
        return judged(time, good, waiting, "its time is not known")

    def finish(self) -> Offer:
        """Choose; a second call chooses no more."""
        rows, walker, time = self._kept.rows, self._kept.values[:, 0], self._kept.values[:, 1]
        count = 0 if self._finished else min(self.size, len(rows))
        self._finished = True
        free = np.ones(len(rows), dtype=bool)
        taken: dict[float, int] = {}
        chosen, why = [], []
        for j in range(count):
            target = (j + 0.5) / count
            away = np.abs(time - target)
            near = np.flatnonzero(free & (away <= 0.5 / count))
            if len(near):
                given = np.array([taken.get(w, 0) for w in walker[near]])
                best = int(near[np.lexsort((walker[near], away[near], given))[0]])
            else:
                best = int(np.argmin(np.where(free, away, np.inf)))
            free[best] = False
            taken[walker[best]] = taken.get(walker[best], 0) + 1
            chosen.append((int(rows[best, 1]), int(rows[best, 2])))
            why.append(f"nearest to {target:.3g} of a run")
        return ended(chosen, why)

    def state(self) -> dict[str, Array]:
        """Return ``kept`` (k, 3) uint64, ``values`` (k, 2): walker and time, and ``finished`` (1,)."""
        return {
            "kept": self._kept.rows.copy(),
            "values": self._kept.values.copy(),
            "finished": np.array([self._finished], dtype=np.int64),
        }

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        self._kept.rows = np.array(state["kept"], dtype=np.uint64).reshape(-1, 3)
        self._kept.values = np.array(state["values"], dtype=np.float64).reshape(-1, 2)
        self._finished = bool(state["finished"][0])
