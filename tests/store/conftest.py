"""Frames and records to fill a store with: what a task holds follows from its id, so any copy can be checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from campaign.frames import LAYOUT, Frames
from campaign.tasks import Record, Task, new_record


class Maker:
    """Makes tasks' results, always the same for the same number."""

    def task(self, number: int, stage: str = "sample") -> Task:
        return Task(stage, f"walker 0/segment {number}", {"segment": number})

    def record(self, number: int, stage: str = "sample") -> Record:
        record = new_record(self.task(number, stage), 0)
        record["result"] = {"segment": number}
        return record

    def frames(self, number: int, n: int = 5, atoms: int = 8) -> Frames:
        rng = np.random.default_rng(number)
        return Frames.build(
            rng.integers(1, 90, atoms),
            rng.normal(size=(n, atoms, 3)),
            np.eye(3) * 9 + rng.normal(size=(n, 3, 3)),
            energy=rng.normal(size=n),
            forces=rng.normal(size=(n, atoms, 3)),
            stress=(s := rng.normal(size=(n, 3, 3))) + s.transpose(0, 2, 1),
            task=self.task(number).number,
            walker=number % 3,
            step=np.arange(n) * 100,
            temperature=300.0,
        )

    def publish(self, store: Any, number: int, n: int = 5, atoms: int = 8, checkpoint: bool = True) -> str:
        record = self.record(number)
        state = {"state": np.array([number, n])} if checkpoint else None
        assert store.publish(record, dict(self.frames(number, n, atoms).arrays()), state)
        return record["task"]

    def same(self, found: Frames, wanted: Frames) -> None:
        for name in LAYOUT:
            a, b = getattr(found, name), getattr(wanted, name)
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert a.tobytes() == b.tobytes(), f"{name} is not bitwise the same"


@pytest.fixture(scope="session")
def make() -> Maker:
    return Maker()
