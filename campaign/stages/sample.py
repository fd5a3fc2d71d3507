"""Sampling: walkers that each run a chain of segments; every finished segment is a shard of the pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import Unphysical
from campaign.frames import Frames
from campaign.stages.board import Board, Shard
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign

VERSION = 1


class Sample:
    """Plans the segments of every walker.

    A segment continues from the checkpoint of the one before it, so a walker's chain is sequential and walkers run side
    by side. A walker whose segment is quarantined ends there; the others go on.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file, as the campaign names it, to the hash of its content.
    """

    name = "sample"
    attempts = 2  # the second at half the time step

    def __init__(self, campaign: Campaign, digests: dict[str, str]) -> None:
        self.chains = [
            _chain(campaign, digests, entry, walker)
            for entry, method in enumerate(campaign.sample)
            for walker in range(method.walkers)
        ]
        self._where = {task.id: (c, k) for c, chain in enumerate(self.chains) for k, (task, _) in enumerate(chain)}
        self._ready = deque(chain[0][0] for chain in self.chains)
        self._shards: dict[str, Shard] = {}
        self._open = len(self._where)

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield each walker's next segment once the one before it is done."""
        if not self._shards:
            longest = max(len(chain) for chain in self.chains)
            for k in range(longest):  # the order of the stream: segment by segment, walker by walker
                board.shards += [Shard(*chain[k]) for chain in self.chains if k < len(chain)]
            self._shards = {s.task.id: s for s in board.shards}
        while self._ready:
            yield self._ready.popleft()

    def commit(self, record: Record, board: Board) -> None:
        """Mark the shard ready and the walker's next segment possible, or the rest of the walker lost."""
        c, k = self._where[record["task"]]
        chain = self.chains[c]
        if record["state"] == "done":
            self._shards[record["task"]].state = "ready"
            self._open -= 1
            if k + 1 < len(chain):
                self._ready.append(chain[k + 1][0])
        else:
            for task, _ in chain[k:]:
                self._shards[task.id].state = "lost"
                self._open -= 1
        board.sampled = self._open == 0

    def packable(self, board: Board) -> list[list[str]]:
        """Return each walker's finished segments: all can be packed, the last can be continued."""
        done = [[t.id for t, _ in chain if self._shards[t.id].state == "ready"] for chain in self.chains]
        return [chain for chain in done if chain]

    def total(self, board: Board) -> int:
        """Return the number of segments."""
        return len(self._where)

    def finished(self, board: Board) -> bool:
        """Tell whether every walker reached its end."""
        return self._open == 0


def _chain(campaign: Campaign, digests: dict[str, str], entry: int, walker: int) -> list[tuple[Task, int]]:
    """Return one walker's segments as (task, frames), each with the id of the one before it as its input."""
    method = campaign.sample[entry]
    spec = method.model_dump(mode="json")
    sizes = _segments(method.frames, method.segment)
    structure = campaign.system.structure.model_dump(mode="json")
    common: dict[str, Json] = {
        "method": method.method,
        "structure": {**structure, "digest": digests.get(structure.get("file", ""), "")},
        "walker": [entry, walker],
        "seed": campaign.seed,
    }
    extra: dict[str, Json] = {}
    if method.method == "fake":
        common |= {k: spec[k] for k in ("displacement", "temperature")}
        extra["delay"] = spec["delay"]
    else:
        potential = campaign.system.potential
        assert potential is not None  # the campaign file is refused without it
        keys = ("timestep", "every", "thermostat", "barostat", "pressure", "prepare", "ranks")
        common |= {k: spec[k] for k in keys if k in spec}
        common["potential"] = digests[potential.lammps]
        extra["potential"] = potential.lammps
    chain: list[tuple[Task, int]] = []
    done = 0
    for k, frames in enumerate(sizes):
        params = {**common, "segment": k, "frames": frames, "first": done}
        if method.method != "fake":
            params["temperature"] = _ramp(method.temperature, done, done + frames, method.frames)
        if k:
            params.pop("prepare", None)
        inputs = (chain[-1][0].id,) if chain else ()
        name = f"{method.method}{entry or ''}/walker {walker}/segment {k}"
        chain.append((Task("sample", name, params, inputs, VERSION, priority=5, extra=extra), frames))
        done += frames
    return chain


def _segments(frames: int, size: int) -> list[int]:
    """Return the frames of each segment; a short last one."""
    return [size] * (frames // size) + ([frames % size] if frames % size else [])


def _ramp(temperature: Any, start: int, stop: int, total: int) -> list[float]:
    """Return the set points (K) at the start and the end of a segment."""
    if isinstance(temperature, int | float):
        return [float(temperature)] * 2
    low, high = temperature
    return [low + (high - low) * k / total for k in (start, stop)]


def work(task: Task, context: Context) -> Outcome:
    """Run one segment and return its frames, with the checkpoint that the next one starts from."""
    from campaign.store.store import Store

    before = Store(context.run / "run.zarr").checkpoint(task.inputs[0]) if task.inputs else None
    if task.params["method"] == "fake":
        from campaign.engines.fake import sample

        return sample(task, before, context.run)
    return _lammps_segment(task, context, before)


def _lammps_segment(task: Task, context: Context, before: dict[str, Any] | None) -> Outcome:
    from campaign.engines import lammps
    from campaign.engines.lammps_mpi import Job, run_job
    from campaign.engines.lammps_potential import load_potential
    from campaign.engines.structures import build_structure

    p = task.params
    atoms = build_structure(p["structure"], context.run)
    segment = lammps.Segment(
        frames=p["frames"],
        every=p["every"],
        first=p["first"] * p["every"],
        timestep=p["timestep"],
        temperature=tuple(p["temperature"]),
        pressure=p.get("pressure"),
        thermostat=p["thermostat"],
        barostat=p.get("barostat", 1.0),
        halvings=context.attempt,  # the retry rule: once more from the last checkpoint, at half the time step
    )
    start: lammps.Start | bytes
    if before is not None:
        start = before["restart"].tobytes()
    else:
        prepare = tuple((q["temperature"], q["time"], p.get("pressure")) for q in p.get("prepare", ()))
        seed = walker_seed(p["seed"], *p["walker"])
        start = lammps.Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed, prepare)
    job = Job(load_potential(context.run / task.extra["potential"]), segment, start)
    arrays, checkpoint = run_job(job, p["ranks"], context, task)
    numbers = atoms.numbers
    frames = Frames.build(
        numbers, **{k: v for k, v in arrays.items() if k != "kinetic"}, task=task.number, walker=p["walker"][1]
    )
    check_frames(frames)
    return Outcome(
        {"frames": len(frames), "temperature": float(arrays["kinetic"].mean()), "volume": float(frames.volume.mean())},
        dict(frames.arrays()),
        {"restart": np.frombuffer(checkpoint, dtype="uint8")},
        lammps.versions(),
    )


def walker_seed(seed: int, entry: int, walker: int) -> int:
    """Return the random seed of a walker: different for every walker, the same in every run."""
    return int(np.random.SeedSequence([seed, entry, walker]).generate_state(1, np.uint32)[0])


def check_frames(frames: Frames) -> None:
    """Refuse a segment that holds a number that is not finite.

    Raises
    ------
    Unphysical
        Names the array and the first bad frame.
    """
    for name in ("positions", "cell", "energy", "forces", "stress"):
        bad = ~np.isfinite(getattr(frames, name)).reshape(len(frames), -1).all(axis=1)
        if bad.any():
            raise Unphysical(f"The {name} of frame {int(np.argmax(bad))} of {len(frames)} are not finite.")
