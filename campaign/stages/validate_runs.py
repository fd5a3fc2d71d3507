"""The molecular dynamics that tests ask for: each run once, whoever asks, with the model and with the reference.

A run is a chain of segments and a task that sums them up; its plan is here, its work in ``validate_md``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from campaign.config.learning import Guards
from campaign.science.blocks import settled, whole
from campaign.science.transport import TooShort
from campaign.science.transport import plan as lay_out
from campaign.tasks import Json, Task

#: What a run is; ``segment`` only says how it is cut.
KEYS = ("ensemble", "temperature", "pressure", "time", "timestep", "every")

#: What no run with a model may do.
USUAL: dict[str, Json] = Guards().model_dump(mode="json")

#: Tests that need no run of the reference potential beside the model's.
ALONE = ("stability", "rerun")


@dataclass(frozen=True)
class Run:
    """Molecular dynamics that one or more tests ask for.

    Attributes
    ----------
    spec
        ``KEYS`` and ``segment``, as in the campaign file, and the ``guards`` of a test of stability.
    seed
        Of the velocities: the campaign's, and a hash of what the run is. The place of a test in the campaign file is
        no part of it: another test before it changes no run.
    """

    spec: dict[str, Json]
    seed: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Frames that are kept."""
        frames: float = self.spec["time"] / (self.spec["timestep"] * self.spec["every"])
        return max(1, round(frames))

    @property
    def segments(self) -> int:
        """Segments; the last may be a short one."""
        return -(-self.frames // int(self.spec["segment"]))

    def params(self, start: list[str]) -> dict[str, Json]:
        """Return what decides the frames of a run with the reference, with those that it may start from."""
        return {**{k: self.spec[k] for k in KEYS}, "seed": list(self.seed), "start": start}

    @property
    def guarded(self) -> dict[str, Json]:
        """The ``guards`` of a run with the model, where a test asks for others than the usual ones."""
        guards = self.spec.get("guards", USUAL)
        return {} if guards == USUAL else {"guards": guards}


def runs_of(tests: Sequence[Any], seed: int) -> tuple[list[Run], dict[int, list[int]]]:
    """Return each run once, and the runs that each test works on, by its number in the campaign file.

    Parameters
    ----------
    tests
        ``Campaign.validation``.
    seed
        The campaign's.
    """
    runs: list[Run] = []
    known: dict[tuple[Json, ...], int] = {}
    needs: dict[int, list[int]] = {}
    before: list[int] = []
    for number, test in enumerate(tests):
        needs[number] = list(before) if hasattr(test, "temperature") else []
        for k, spec in enumerate(_described(test)):
            key = tuple(None if n == "pressure" and spec["ensemble"] == "nvt" else spec[n] for n in KEYS)
            if key not in known:
                known[key] = len(runs)
                runs.append(Run(spec, (seed, _hash(key))))
            runs[known[key]].spec.update({n: spec[n] for n in ("guards",) if n in spec})
            needs[number] = [known[key]] if k == 0 else [*needs[number], known[key]]
        if test.method == "stability":
            before = needs[number]
    return runs, needs


def _hash(key: tuple[Json, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=4).digest(), "big")


def _described(test: Any) -> Iterator[dict[str, Json]]:
    """Yield the runs that a test describes itself."""
    keys = (*KEYS, "segment")
    if test.method == "density":
        for temperature in test.temperatures:
            mine = {"ensemble": "npt", "temperature": temperature}
            yield mine | {k: getattr(test, k) for k in keys if k not in mine}
    elif getattr(test, "temperature", None) is not None:
        guards = getattr(test, "guards", None)
        yield {k: getattr(test, k) for k in keys} | ({"guards": guards.model_dump(mode="json")} if guards else {})


def too_short(tests: Sequence[Any], seed: int) -> Iterator[tuple[int, float, float]]:
    """Yield each test whose lags and blocks have no room in its run: number, time of the run, and what it needs, ps.

    Parameters
    ----------
    tests, seed
        As of ``runs_of``.
    """
    runs, needs = runs_of(tests, seed)
    for number, test in enumerate(tests):
        if test.method not in ("diffusion", "conductivity"):
            continue
        spec, frames = runs[needs[number][0]].spec, runs[needs[number][0]].frames
        dt = spec["timestep"] * spec["every"]
        try:
            lay_out(frames - settled(frames), dt, test.blocks, test.fit)
            if test.method == "conductivity":
                lay_out(frames - settled(frames), dt, test.blocks, (dt, test.plateau[1]))
        except TooShort as error:
            yield number, spec["time"], whole(error.needed)


@dataclass
class Chain:
    """A run as tasks: segments, each with the one before it as its input, and the one that sums them up.

    Attributes
    ----------
    run
        What is run.
    segments
        Ids of those planned so far.
    lost
        Whether a segment could not be done.
    ended
        Whether the run failed, at the end of its last segment.
    whole
        The task that sums them up, once it is planned.
    """

    run: Run
    segments: list[str] = field(default_factory=list)
    lost: bool = False
    ended: bool = False
    whole: str | None = None

    def plan(self, whole: Task, settled: Mapping[str, str]) -> Iterator[Task]:
        """Yield the next segment, and after the last one ``whole``, which sums them up.

        Parameters
        ----------
        whole
            Without inputs; its name and its parameters are the segments' too.
        settled
            Task id to state of what is settled.
        """
        if self.lost or self.whole is not None:
            return
        length = int(self.run.spec["segment"])
        done = self.segments
        while not done or settled.get(done[-1]) is not None:
            k = len(done)
            if done and settled[done[-1]] != "done":
                self.lost = True
                return
            if k == self.run.segments or self.ended:
                task = replace(whole, inputs=tuple(done))
                self.whole = task.id
                yield task
                return
            first = k * length
            params = {**whole.params, "segment": k, "frames": min(length, self.run.frames - first), "first": first}
            task = replace(whole, name=f"{whole.name}/segment {k}", params=params, inputs=tuple(done[-1:]))
            done.append(task.id)
            yield task

    @property
    def to_come(self) -> int:
        """How many segments are still to be planned, as far as is known."""
        return 0 if self.lost or self.ended else self.run.segments - len(self.segments)
