"""Sampling: walkers that each run a chain of segments; every finished segment is a shard of the pool.

A task is a segment of one walker, or of several that run side by side (``walkers_per_task``), in one MPI job or, with a
model, in one process: its frames are those of one walker after those of another.

A segment that fails is tried once more from its checkpoint at half the time step. A walker that fails again stops
there, and the frames it made are kept: its task is *done*, with ``result["stopped"] = {walker: cause}`` in its record
(so it is known from the store alone), and ``Flow`` counts each stopped walker as a failure. The other walkers of its
task go on: the checkpoint has no restart of the stopped one, and ``result["left"]`` says how many there are. Where none
is left, the rest of the chain is lost. Only a task without a single frame is quarantined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import EngineError, Unphysical
from campaign.frames import Array, Frames
from campaign.stages import learning, sample_file, sample_md, sample_momt
from campaign.stages.board import Board, Shard
from campaign.stages.segments import VERSION, segments_of, set_points
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from ase import Atoms

    from campaign.config import Campaign
    from campaign.engines.walkers import Stretch, Walker
    from campaign.stages.sample_file import Source
    from campaign.store.store import Store

#: Tries of a segment: the second is made at half the time step, and keeps the good frames of a walker that fails again.
ATTEMPTS = 2


class Sample:
    """Plans the segments of every walker.

    A segment continues from the checkpoint of the one before it, so a chain is sequential and chains run side by side.
    A chain whose segment is quarantined, or whose last walker stopped, ends there; the others go on.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file, as the campaign names it, to the hash of its content.
    sources
        Notes of the files of frames that the campaign samples from (``sample_file``).
    """

    name = "sample"
    attempts = ATTEMPTS

    def __init__(self, campaign: Campaign, digests: dict[str, str], sources: Sequence[Source] = ()) -> None:
        files = {source.entry: source for source in sources}
        self.chains: list[list[tuple[Task, int]]] = []
        self._first: list[Task] = []  # tasks that are no shard: they look for the window of MOMT
        for entry, method in enumerate(campaign.sample):
            if method.method == "file":
                self.chains += sample_file.chains(files[entry]) if entry in files else []
            else:
                first, chains = _chains(campaign, digests, entry)
                self._first += first
                self.chains += chains
        self._where = {task.id: (c, k) for c, chain in enumerate(self.chains) for k, (task, _) in enumerate(chain)}
        every = [*self._first, *(task for chain in self.chains for task, _ in chain)]
        self._waits = {task.id: set(task.inputs) for task in every}
        self._followers: dict[str, list[Task]] = {}
        for task in every:
            for needed in task.inputs:
                self._followers.setdefault(needed, []).append(task)
        self._ready = deque(task for task in every if not task.inputs)
        self._shards: dict[str, Shard] = {}
        self._open = len(every)

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the segments whose inputs are settled."""
        if not self._shards:
            longest = max((len(chain) for chain in self.chains), default=0)
            for k in range(longest):  # the order of the stream: segment by segment, walker by walker
                board.shards += [Shard(*chain[k]) for chain in self.chains if k < len(chain)]
            self._shards = {s.task.id: s for s in board.shards}
        while self._ready:
            task = self._ready.popleft()
            lost = [t for t in task.inputs[1:] if t in self._shards and self._shards[t].state == "lost"]
            yield replace(task, extra={**task.extra, "lost": lost}) if lost else task

    def depends(self, task: Task) -> bool:
        """Tell whether other chains go on differently without a task: then no fault of the machine may cost it."""
        return len(self._followers.get(task.id, ())) > 1

    def commit(self, record: Record, board: Board) -> None:
        """Mark the shard ready and what follows possible, or the rest of the chain lost."""
        done = record["state"] == "done"
        if record["task"] in self._where:
            c, k = self._where[record["task"]]
            lost = self.chains[c][k:]
            if done:
                self._shards[record["task"]].state = "ready"
                board.ready.append(record["task"])
                lost = [] if record["result"].get("left", 1) else lost[1:]
        else:  # without a window none of its walkers can start
            starts = [] if done else [self._where[t.id] for t in self._followers[record["task"]]]
            lost = [shard for c, k in starts for shard in self.chains[c][k:]]
        lost = [shard for shard in lost if self._shards[shard[0].id].state != "lost"]
        for task, _ in lost:
            self._shards[task.id].state = "lost"
        self._settle(dict.fromkeys([record["task"], *(task.id for task, _ in lost)]))
        board.sampled = self._open == 0

    def _settle(self, tasks: Iterable[str]) -> None:
        """Take tasks that are done, or will never be, off what others wait for."""
        for settled in tasks:
            self._open -= 1
            for task in self._followers.get(settled, ()):
                waits = self._waits[task.id]
                waits.discard(settled)
                if not waits and self._shards[task.id].state == "expected":
                    self._ready.append(task)

    def packable(self, board: Board) -> list[list[str]]:
        """Return each walker's finished segments: all can be packed, the last can be continued."""
        done = [[t.id for t, _ in chain if self._shards[t.id].state == "ready"] for chain in self.chains]
        return [chain for chain in done if chain]

    def total(self, board: Board) -> int:
        """Return the number of segments, and of the runs that look for a window."""
        return len(self._waits)

    def finished(self, board: Board) -> bool:
        """Tell whether every walker reached its end."""
        return self._open == 0


def _groups(method: Any) -> Iterator[tuple[int, dict[str, Json]]]:
    """Yield each chain of a sampling method: its first walker, and what it does not share with the others.

    Walkers are counted through all points (pressures, or volumes and temperatures) of the method; the walkers of a
    task are all at one point.
    """
    if method.method == "fake":
        yield from ((walker, {}) for walker in range(method.walkers))
        return
    for k, point in enumerate(method.points):
        for start in range(0, method.walkers, method.walkers_per_task):
            count = min(method.walkers_per_task, method.walkers - start)
            yield k * method.walkers + start, {**point, "walkers": count}


def _chains(campaign: Campaign, digests: dict[str, str], entry: int) -> tuple[list[Task], list[list[tuple[Task, int]]]]:
    """Return what comes before the chains of a sampling method, and its chains: each segment as (task, frames).

    The first input of a segment is the one before it. Chains of MOMT that share a bias also have segments of one
    another as inputs.
    """
    method = campaign.sample[entry]
    groups = list(_groups(method))
    name = f"{method.method}{entry or ''}"
    settings = [_settings(campaign, digests, entry, *group) for group in groups]
    shared = method.method == "momt" and method.shared
    before: list[Task] = []
    if method.method == "momt" and method.window == "auto":
        alone = {key: value for key, value in settings[0][1].items() if key != "ranks"}
        before = sample_momt.window_tasks(settings[0][0], method, name, alone, VERSION)
    chains: list[list[tuple[Task, int]]] = [[] for _ in groups]
    done = 0
    for k, frames in enumerate(segments_of(method.frames, method.segment)):
        for c, (common, extra) in enumerate(settings):
            params = {**common, "segment": k, "frames": frames, "first": done}
            if method.method != "fake":
                params["temperature"] = set_points(common["temperature"], done, done + frames, method.frames)
            if k:
                params.pop("prepare", None)
            if method.method == "momt":
                params["learning"] = sample_momt.learns(method, done, shared and len(groups) > 1)
            inputs = [chains[c][-1][0].id] if k else [task.id for task in before]
            if shared and k >= sample_momt.LAG:
                family = range(c - c % sample_momt.FAMILY, len(chains))[: sample_momt.FAMILY]
                inputs += [chains[d][k - sample_momt.LAG][0].id for d in family if d != c]
            first, count = common["walker"][1], common.get("walkers", 1)
            who = f"walker {first}" if count == 1 else f"walkers {first}-{first + count - 1}"
            task = Task("sample", f"{name}/{who}/segment {k}", params, tuple(inputs), VERSION, priority=5, extra=extra)
            chains[c].append((task, frames * count))
        done += frames
    return before, chains


def _settings(
    campaign: Campaign, digests: dict[str, str], entry: int, first: int, point: dict[str, Json]
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return the parameters that all segments of a chain share, and what the worker needs beside them."""
    method = campaign.sample[entry]
    spec = method.model_dump(mode="json")
    structure = campaign.system.structure.model_dump(mode="json")
    common: dict[str, Json] = {
        "method": method.method,
        "structure": {**structure, "digest": digests.get(structure.get("file", ""), "")},
        "walker": [entry, first],
        "seed": campaign.seed,
    }
    if method.method == "fake":
        return common | {k: spec[k] for k in ("displacement", "temperature")}, {"delay": spec["delay"]}
    keys = ["temperature", "timestep", "every", "thermostat", "barostat", "prepare", "ranks"]
    keys += ["temperatures", "window", "order", "learn", "shared"] if method.method == "momt" else []
    common |= {k: spec[k] for k in keys if k in spec} | point
    if method.method == "md":
        common |= {"ensemble": spec["ensemble"], "guards": spec["guards"], "model": digests[spec["model"]]}
        return common, {"model": spec["model"], "device": spec["device"]}
    potential = campaign.system.potential
    assert potential is not None  # the campaign file is refused without it
    ranks = common["ranks"] * common["walkers"]
    wide: dict[str, Json] = {"ranks": ranks} if ranks > 1 else {}
    extra: dict[str, Json] = {"potential": potential.lammps, **wide}
    if method.method == "momt":
        extra |= {"lost": [], "until": common["learn"].pop("until")}
    return common | {"potential": digests[potential.lammps]}, extra


def work(task: Task, context: Context) -> Outcome:
    """Run one segment and return its frames, with the checkpoint that the next one starts from."""
    from campaign.store.store import Store

    if task.params["method"] == "file":
        return sample_file.work_file(task, context)
    if task.params["method"] == "novel":
        return learning.choose(task, context, Store(context.run / "run.zarr"))
    if task.params["method"] == "window":
        return sample_momt.work_window(task, context, _start(task, context))
    store = Store(context.run / "run.zarr")
    before = store.checkpoint(task.inputs[0]) if task.params["segment"] else None
    if task.params["method"] == "fake":
        from campaign.engines.fake import sample

        return sample(task, before, context.run)
    return _lammps_segment(task, context, store, before)


def _lammps_segment(task: Task, context: Context, store: Store, before: dict[str, Any] | None) -> Outcome:
    from campaign.engines import lammps
    from campaign.engines.lammps_mpi import run_job
    from campaign.engines.lammps_potential import PotentialLines, load_potential
    from campaign.engines.walkers import Job, pack_checkpoints

    p = task.params
    atoms = _start(task, context)
    walkers = _walkers(task, context, sample_md.first_cell(task, store, atoms), atoms, before)
    bias, shared = sample_momt.bias(task, store, walkers, len(atoms)) if p["method"] == "momt" else (None, {})
    last = context.attempt + 1 >= p.get("tries", ATTEMPTS)
    job = Job(PotentialLines((), ""), walkers, p["ranks"], last, bias, shared)
    if p["method"] == "md":
        job = replace(job, **sample_md.driver(task, context, store, atoms))
    else:
        job = replace(job, potential=load_potential(context.run / task.extra["potential"]))
    found = run_job(job, context, task)
    stopped = {str(number): stretch.cause for number, stretch in found.items() if stretch.cause}
    with_frames = [(number, stretch) for number, stretch in found.items() if stretch.arrays]
    if not with_frames and "start" not in p:
        raise EngineError(next(iter(stopped.values())))
    none = Frames.build(atoms.numbers, np.zeros((0, len(atoms), 3)), np.zeros((0, 3, 3)))
    frames = Frames.concat([none, *(_frames(task, atoms.numbers, number, stretch) for number, stretch in with_frames)])
    frames = frames.with_(index=np.arange(len(frames), dtype="int32"))
    check_frames(frames)
    summary: dict[str, Json] = {"frames": len(frames)}
    if len(frames):
        kinetic = np.concatenate([stretch.arrays["kinetic"] for _, stretch in with_frames])
        summary |= {"temperature": float(kinetic.mean()), "volume": float(frames.volume.mean())}
    summary |= {"walkers": len(found), "left": len(found) - len(stopped)}
    if bias is not None:
        summary["momt"] = sample_momt.convergence(bias, found)
    if stopped and "start" in p:
        summary["last"] = sample_md.last_steps(found)
    return Outcome(
        summary | ({"ended" if "start" in p else "stopped": stopped} if stopped else {}),
        {**dict(frames.arrays()), **sample_md.before(found)},
        {"restart": pack_checkpoints(found)},
        lammps.versions(),
    )


def _start(task: Task, context: Context) -> Atoms:
    """Return the structure that a task's walkers start from, scaled to their volume where they have one.

    A round of learning starts from a frame that there is.
    """
    from campaign.engines.structures import build_structure

    if "start" in task.params:
        from campaign.store.store import Store

        return Store(context.run / "run.zarr").collect("sample", [task.params["start"]])[0].to_ase()[0]
    atoms = build_structure(task.params["structure"], context.run)
    volume = task.params.get("volume")
    if volume is not None:
        atoms.set_cell(np.array(atoms.cell) * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return atoms


def _walkers(
    task: Task, context: Context, first_cell: Array, atoms: Atoms, before: dict[str, Any] | None
) -> tuple[Walker, ...]:
    """Return the walkers of a task: at their beginning, or those that its checkpoint has not seen stop."""
    from campaign.engines.dynamics import Segment, Start
    from campaign.engines.guards import heights
    from campaign.engines.walkers import Walker, unpack_checkpoints

    p = task.params
    x, y, z = heights(first_cell).tolist()
    segment = Segment(
        frames=p["frames"],
        every=p["every"],
        first=p["first"] * p["every"],
        timestep=p["timestep"],
        temperature=tuple(p["temperature"]),
        pressure=p.get("pressure"),
        thermostat=p["thermostat"],
        barostat=p.get("barostat", 1.0),
        halvings=context.attempt,  # the retry rule: once more from the last checkpoint, at half the time step
        heights=(x, y, z),
        isolated=p.get("ensemble") == "nve",
    )
    if before is not None:
        left = unpack_checkpoints(before["restart"])
        return tuple(Walker(number, segment, restart, extra) for number, (restart, extra) in left.items())
    prepare = tuple((q["temperature"], q["time"], p.get("pressure")) for q in p.get("prepare", ()))
    entry, first = p["walker"]
    walkers = []
    for number in range(first, first + p["walkers"]):
        seed = walker_seed(p["seed"], entry, number)
        start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed, prepare)
        walkers.append(Walker(number, segment, start))
    return tuple(walkers)


def _frames(task: Task, numbers: Any, number: int, stretch: Stretch) -> Frames:
    arrays = {k: v for k, v in stretch.arrays.items() if k != "kinetic"}
    return Frames.build(numbers, **arrays, task=task.number, walker=number)


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
        values = getattr(frames, name)
        bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if bad.any():
            raise Unphysical(f"The {name} of frame {int(np.argmax(bad))} of {len(frames)} are not finite.")
