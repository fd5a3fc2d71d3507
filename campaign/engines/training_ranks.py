"""A training over several processes: ``train`` writes it down and launches this module, which each MPI rank runs.

Each rank takes a part of every batch and all add up their gradients (``torch.distributed``: gloo on CPUs, nccl on
GPUs), so the weights are those of one process but for the order of a sum. The ranks are launched by the site's own
command, on one node or on several, and find each other through MPI.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines import process
from campaign.engines.checkpoints import Execution, WarmStart
from campaign.engines.schnetpack_steps import Alone
from campaign.errors import CampaignError, EngineError, MachineFault
from campaign.frames import LAYOUT, Array, Frames
from campaign.interpreter import module_command

if TYPE_CHECKING:
    import torch

#: In the folder of a try: what is trained, what came out, and what went wrong.
JOB, BLOCKS, RESULT, TOLD, FAILURE = "job.json", "frames.npz", "model.npz", "told.json", "failure.json"

#: The worker's cores go to the ranks.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Ranks(Alone):
    """The ranks of an MPI launch, joined by ``torch.distributed``.

    Parameters
    ----------
    world
        mpi4py communicator of all of them.
    device
        ``cpu`` or ``cuda``.
    """

    def __init__(self, world: Any, device: str) -> None:
        import torch.distributed as dist
        from mpi4py import MPI

        self._world, self._dist = world, dist
        self.rank, self.size = world.rank, world.size
        node = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local = node.rank
        host = socket.gethostname()
        if node.size == world.size:  # gloo looks for the network of the host's name, which need not be one
            host = "127.0.0.1"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        host, port = world.bcast((host, 0), 0)
        make = dist.TCPStore  # type: ignore[attr-defined]
        if self.rank == 0:
            store = make(host, 0, self.size, True, wait_for_workers=False)
            port = store.port
        port = world.bcast(port, 0)
        if self.rank > 0:
            store = make(host, port, self.size, False)
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    def add(self, values: torch.Tensor) -> None:
        """Add up what each process has, in place."""
        self._dist.all_reduce(values)

    def wait(self) -> None:
        """Wait for the others."""
        self._world.Barrier()

    def close(self) -> None:
        """Part."""
        self._dist.destroy_process_group()


def train(
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    on_epoch: Callable[[dict[str, float]], None],
    counted: Sequence[Array] | None,
    execution: Execution,
    start: WarmStart | None = None,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Train one model over ``execution.processes`` MPI ranks; ``on_epoch`` is called when all is done.

    Until then the first rank writes what it gets, a line an epoch, to ``execution.lines``. A try has a folder of its
    own, beside the checkpoint, which only a failed one leaves behind.

    Raises
    ------
    EngineError
        As ``schnetpack_train.train``, by the word of the ranks.
    MachineFault
        The site's launch command failed, or the ranks ended without a word.
    """
    assert execution.checkpoint is not None
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=execution.checkpoint.parent))
    _write(folder, frames, spec, seed, counted, execution, start)
    words = process.fill(execution.launch, execution.processes)
    try:
        process.run(
            [*words, *module_command("campaign.engines.training_ranks", str(folder))],
            folder,
            environment=_ONE_THREAD,
        )
    except EngineError as error:
        if not (folder / FAILURE).exists():
            raise MachineFault(f"The MPI ranks ended without a result: {error}") from error
        found = json.loads((folder / FAILURE).read_text())
        raise (EngineError if found["kind"] == "EngineError" else MachineFault)(found["message"]) from error
    if not (folder / RESULT).exists():
        raise MachineFault(f"The MPI ranks ended well and left no model ({folder}); check launch.train of the site.")
    with np.load(folder / RESULT, allow_pickle=False) as found:
        weights = {k: found[k] for k in found}
    told = json.loads((folder / TOLD).read_text())
    for left in execution.checkpoint.parent.glob("ranks-*"):  # its content is in hand; those of killed tries
        shutil.rmtree(left, ignore_errors=True)
    for values in told["history"]:
        on_epoch(values)
    summary = told["summary"]
    # JSON made text of what were numbers
    summary["elements_reference"] = {int(z): e for z, e in summary["elements_reference"].items()}
    return weights, summary


def _write(
    folder: Path,
    frames: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    counted: Sequence[Array] | None,
    execution: Execution,
    start: WarmStart | None,
) -> None:
    """Write what the ranks need: numbers as JSON, arrays as npz."""
    arrays = {f"{k}/{name}": value for k, block in enumerate(frames) for name, value in block.arrays()}
    arrays |= {f"{k}/counted": value for k, value in enumerate(counted or ())}
    if start is not None:
        arrays |= {f"{k}/fresh": value for k, value in enumerate(start.fresh)}
        arrays |= {f"start/{name}": value for name, value in start.weights[0].items()}
    np.savez(folder / BLOCKS, allow_pickle=False, **arrays)
    how = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(execution).items()}
    job = {"spec": dict(spec), "seed": seed, "blocks": len(frames), "counted": counted is not None, "execution": how}
    job["start"] = start is not None
    (folder / JOB).write_text(json.dumps(job))


def _read(folder: Path) -> tuple[list[Frames], list[Array] | None, dict[str, Any], Execution, WarmStart | None]:
    job = json.loads((folder / JOB).read_text())
    how = job["execution"]
    for name in ("checkpoint", "lines", "tensorboard"):
        how[name] = None if how[name] is None else Path(how[name])
    with np.load(folder / BLOCKS, allow_pickle=False) as found:
        blocks = [Frames(*(found[f"{k}/{name}"] for name in LAYOUT)) for k in range(job["blocks"])]
        counted = [found[f"{k}/counted"] for k in range(job["blocks"])] if job["counted"] else None
        start = None
        if job["start"]:
            weights = {name.removeprefix("start/"): found[name] for name in found if name.startswith("start/")}
            start = WarmStart([weights], [found[f"{k}/fresh"] for k in range(job["blocks"])])
    return blocks, counted, job, Execution(**how), start


def main(folder: Path) -> None:
    """Train the job in ``folder`` with the other ranks; the first leaves the model there."""
    from mpi4py import MPI

    world, finished = MPI.COMM_WORLD, False
    try:
        blocks, counted, job, execution, start = _read(folder)
        if world.size != execution.processes:
            raise MachineFault(
                f"{world.size} MPI ranks were started instead of {execution.processes}: correct launch.train of the "
                "site."
            )
        _train(folder, world, blocks, counted, job, execution, start)
        finished = True
    except Exception as error:  # of one rank or of all: whoever is there
        traceback.print_exc()
        _leave(error, folder, world.rank)
    finally:
        if not finished:
            sys.stderr.flush()
            world.Abort(1)  # ends every rank, also one that waits for this one


def _train(
    folder: Path,
    world: Any,
    blocks: list[Frames],
    counted: list[Array] | None,
    job: dict[str, Any],
    execution: Execution,
    start: WarmStart | None,
) -> None:
    import torch

    from campaign.engines import schnetpack_train
    from campaign.engines.devices import require_device

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    require_device(execution.device, "train.device")
    ranks = Ranks(world, execution.device)
    history: list[dict[str, float]] = []
    lines = execution.lines.open("w", buffering=1) if ranks.rank == 0 and execution.lines is not None else None

    def on_epoch(values: dict[str, float]) -> None:
        history.append(values)
        if lines is not None:
            lines.write(json.dumps(values) + "\n")

    alone = replace(execution, processes=1)
    weights, summary = schnetpack_train.train(blocks, job["spec"], job["seed"], on_epoch, counted, alone, ranks, start)
    if ranks.rank == 0:
        told = {"summary": summary, "history": history}
        (folder / TOLD).write_text(json.dumps(told))
        aside = folder / f".{RESULT}"
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **weights)
        aside.rename(folder / RESULT)
    ranks.wait()
    ranks.close()


def _leave(error: Exception, folder: Path, rank: int) -> None:
    """Write the error where ``train`` finds it, complete or not at all.

    What nobody foresaw would come again, and is final, as in one process; but torch says by a ``RuntimeError`` that
    another rank has ended.
    """
    message = str(error) if isinstance(error, CampaignError) else f"{type(error).__name__}: {error}"
    machine = isinstance(error, CampaignError | OSError | MemoryError | RuntimeError)
    kind = "EngineError" if isinstance(error, EngineError) or not machine else "MachineFault"
    if kind == "MachineFault" and (folder / FAILURE).exists():  # most often a rank whose peer has said why it ended
        return
    aside = folder / f".failure-{rank}"
    aside.write_text(json.dumps({"message": message, "kind": kind}))
    aside.rename(folder / FAILURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
