"""Several walkers that run a segment together: what they need, what they leave, and how it is kept."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines.batched import Batch, Share
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.guards import Limits, Watch
from campaign.engines.lammps import External
from campaign.engines.lammps_model import Forces
from campaign.engines.lammps_potential import PotentialLines
from campaign.engines.model_files import load_model_file
from campaign.errors import EngineError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Walker:
    """One walker's part of a job.

    Attributes
    ----------
    number
        Which walker of its sampling method it is.
    segment
        What it runs.
    start
        Its beginning, or its checkpoint.
    extra
        What the external force of the segment before it left (``External.checkpoint``).
    """

    number: int
    segment: Segment
    start: Start | bytes
    extra: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A segment of one or several walkers with all that it needs, ready to be run here or by MPI ranks.

    Attributes
    ----------
    potential
        What drives the atoms.
    walkers
        Who runs; each on as many ranks as the others.
    ranks
        MPI ranks of each walker.
    last
        Whether this is the last attempt: then a walker that fails ends with the frames it has, and the others go on.
    bias
        What adds forces to the potential's (JSON-able); None for nothing.
    arrays
        What the bias, or the watch on a model, needs beside it, the same for all walkers.
    model
        File of a trained model that drives the atoms in place of the potential's lines; empty for none. It drives all
        walkers from this process (``run_driven``).
    device
        What the model runs on, ``cpu`` or ``cuda``.
    limits
        With a model: at which first sign of failure a walker stops (fields of ``guards.Limits``).
    """

    potential: PotentialLines
    walkers: tuple[Walker, ...]
    ranks: int = 1
    last: bool = False
    bias: dict[str, Any] | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    model: str = ""
    device: str = "cpu"
    limits: dict[str, Any] | None = None


@dataclass(frozen=True)
class Stretch:
    """What a walker's segment left behind.

    Attributes
    ----------
    arrays
        Its frames, as ``run_segment`` returns them; nothing where it stopped before the first.
    checkpoint
        What its next segment starts from; nothing where it stopped.
    extra
        What the external force, or the watch, left for the next segment; the steps before its failure where the watch
        stopped it.
    cause
        Why it stopped; empty where it reached the segment's end.
    """

    arrays: Mapping[str, Array]
    checkpoint: bytes
    extra: Mapping[str, Array] = field(default_factory=dict)
    cause: str = ""


def make_external(job: Job, walker: Walker, comm: Any, exchange: Any) -> External | None:
    """Build what adds forces to a walker's potential, on each of its MPI ranks.

    Parameters
    ----------
    job, walker
        ``job.bias`` and ``job.arrays`` say what to build, ``walker.extra`` from where it goes on.
    comm
        mpi4py communicator of the walker's ranks; None in a process without MPI.
    exchange
        Joins the ranks of the same number of all walkers of the job; None in a process without MPI.
    """
    if job.bias is None:
        return None
    from campaign.engines.lammps_momt import build

    return build(job.bias, job.arrays, walker.extra, comm, exchange)


def run_driven(job: Job) -> dict[int, Stretch]:
    """Run the walkers of a job with a model, in this process; where there are several, in one forward a step.

    Returns
    -------
    dict
        What each walker left, by its number, in the order of the job.

    Raises
    ------
    EngineError, MachineFault
        As ``run_walker``; of the first walker that failed.
    """
    model = load_model_file(Path(job.model), job.device)
    if len(job.walkers) == 1:  # without threads
        return {job.walkers[0].number: run_walker(job, job.walkers[0], model=model)}
    found = Batch(model).run([partial(_run_share, job, walker) for walker in job.walkers])
    return {walker.number: stretch for walker, stretch in zip(job.walkers, found, strict=True)}


def _run_share(job: Job, walker: Walker, share: Share) -> Stretch:
    return run_walker(job, walker, model=share)


def run_walker(
    job: Job, walker: Walker, comm: Any = None, exchange: Any = None, model: Forces | Share | None = None
) -> Stretch:
    """Run one walker's segment, on every one of its MPI ranks; with the job's model if that is given.

    On the last attempt a walker that left the physics ends with the frames it has (``Stretch.cause``), and answers the
    exchanges of the others to their end.

    Raises
    ------
    EngineError
        It failed, and this is not the last attempt; or one of its ranks failed alone (``error.alone``).
    MachineFault
        No memory, or no space for the checkpoint.
    """
    external = make_external(job, walker, comm, exchange)
    watch = None
    if job.limits is not None:
        watch = Watch(job.arrays["numbers"], Limits(**job.limits), walker.extra or None)
    try:
        arrays, checkpoint = run_segment(job.potential, walker.segment, walker.start, model, comm, external, watch)
        return Stretch(arrays, checkpoint, _left_by(external, arrays) if watch is None else watch.state())
    except EngineError as error:
        if not job.last or error.alone:
            raise
        good = error.frames or {}
        if external is not None:
            external.drain(walker.segment.frames - (len(good["step"]) if good else 0))
        return Stretch(good, b"", {} if watch is None else watch.frames(), cause=str(error))


def _left_by(external: External | None, frames: dict[str, Array]) -> dict[str, Array]:
    """Return what the external force leaves for the next segment; its error carries the segment's frames."""
    try:
        return {} if external is None else external.checkpoint()
    except EngineError as error:
        error.frames = frames
        raise


def pack_checkpoints(found: Mapping[int, Stretch]) -> Array:
    """Return what the next segment of a task's walkers starts from, as bytes; a stopped walker leaves nothing."""
    arrays: dict[str, Array] = {}
    for number, stretch in found.items():
        if not stretch.cause:
            arrays[f"{number}/restart"] = np.frombuffer(stretch.checkpoint, dtype="uint8")
            arrays |= {f"{number}/extra/{name}": np.asarray(value) for name, value in stretch.extra.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return np.frombuffer(file.getvalue(), dtype="uint8")


def unpack_checkpoints(packed: Array) -> dict[int, tuple[bytes, dict[str, Array]]]:
    """Return restart and ``extra`` of each walker that ``pack_checkpoints`` packed."""
    with np.load(io.BytesIO(packed.tobytes()), allow_pickle=False) as arrays:
        numbers = [int(name.partition("/")[0]) for name in arrays if name.endswith("/restart")]
        return {
            number: (
                arrays[f"{number}/restart"].tobytes(),
                {name.split("/", 2)[2]: arrays[name] for name in arrays if name.startswith(f"{number}/extra/")},
            )
            for number in numbers
        }
