"""Parsl as the runner: one HighThroughputExecutor for each pool of workers in the site file."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.errors import InputError
from campaign.tasks import TOKEN_VARIABLE, Context, Record, Task, Work, new_record

if TYPE_CHECKING:
    from concurrent.futures import Future

    from campaign.config import Executor, Site


#: Seconds to wait for more once a record is there: those that come together share one flush of the ledger.
GATHER = 0.01


class ParslRunner:
    """Sends tasks to Parsl's workers.

    Parameters
    ----------
    work
        Does a task; importable on the workers.
    site
        The machine: which executor runs which stage.
    logs
        Folder for Parsl's own files.
    token
        Written into the environment of everything started here (``store.rundir.end_leftovers``).
    """

    def __init__(self, work: Work, site: Site, logs: Path, token: str) -> None:
        from parsl.config import Config
        from parsl.dataflow.dflow import DataFlowKernel

        self._work = work
        self._site = site
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        os.environ[TOKEN_VARIABLE] = token
        os.environ["SPT_NOENV"] = "1"  # Parsl renames its processes; keep their environment, and the token, readable
        # Parsl finds interchange.py and process_worker_pool.py on PATH.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._close_log = _log(logs)
        config = Config(
            executors=executors(site, token),
            run_dir=str(logs),
            retries=0,
            strategy="simple",
            initialize_logging=False,
        )
        self._kernel = DataFlowKernel(config)

    def submit(self, task: Task, context: Context) -> None:
        """Queue a task on its stage's executor; a lower priority number runs first."""
        future = self._kernel.submit(
            self._work,
            app_args=(task.to_json(), context.to_json()),
            executors=[self._site.executor_for(task.stage)],
            cache=False,
            ignore_for_cache=(),
            app_kwargs={"parsl_resource_specification": {"priority": task.priority}},
        )
        sent = time.time()
        future.add_done_callback(lambda done: self._records.put(_record_of(done, task, context, sent)))

    def wait(self, seconds: float) -> list[Record]:
        """Return every record that came in; wait up to ``seconds`` for the first."""
        found: list[Record] = []
        try:
            found.append(self._records.get(timeout=seconds))
            time.sleep(GATHER)
            while True:
                found.append(self._records.get_nowait())
        except queue.Empty:
            return found

    def close(self) -> None:
        """Stop the workers; tasks in flight are abandoned."""
        self._kernel.cleanup()
        self._close_log()


def _log(logs: Path) -> Callable[[], None]:
    """Let Parsl write ``logs/parsl.log``; return what ends that.

    Blocks, scaling and losses are in it. Parsl's own choice, a dozen lines a task, costs a third of the driver's
    time when tasks are short.
    """
    import parsl

    logs.mkdir(parents=True, exist_ok=True)
    close = parsl.set_file_logger(str(logs / "parsl.log"), level=logging.INFO)
    logging.getLogger("parsl").setLevel(logging.INFO)
    logging.getLogger("parsl.dataflow.dflow").setLevel(logging.WARNING)
    return close  # type: ignore[no-any-return]


def _record_of(future: Future[Any], task: Task, context: Context, sent: float) -> Record:
    error = future.exception()
    if error is None:
        return future.result()  # type: ignore[no-any-return]
    # the work itself never raises, so this is the machine's doing: a worker or node lost, a block cancelled.
    record = new_record(task, context.attempt)
    record["state"], record["transient"] = "failed", True
    record["start"], record["seconds"] = sent, time.time() - sent
    record["cause"] = " ".join(f"{type(error).__name__}: {error}".split())
    return record


def executors(site: Site, token: str) -> list[Any]:
    """Return a HighThroughputExecutor for each of the site's executors that a stage uses."""
    used = {site.executor_for(stage) for stage in ("sample", "select", "label", "train", "validate")}
    return [_executor(site, name, token) for name in sorted(used)]


def _executor(site: Site, name: str, token: str) -> Any:
    from parsl.executors import HighThroughputExecutor

    spec = site.executors[name]
    local = spec.provider == "local"
    return HighThroughputExecutor(
        label=name,
        address="127.0.0.1" if local else None,
        provider=_provider(spec, _worker_init(site, spec, token)),
        max_workers_per_node=site.workers_per_node(name),
        cores_per_worker=spec.cores_per_worker,
        available_accelerators=spec.gpus,
        prefetch_capacity=0,  # a task is handed out when a worker is free, so priorities count
        interchange_launch_cmd=[sys.executable, "-m", "campaign.runtime.interchange"],
        heartbeat_period=5,
        heartbeat_threshold=20,  # s; how long workers outlive a driver that was killed
        poll_period=10,  # ms
        encrypted=True,
    )


def _worker_init(site: Site, spec: Executor, token: str) -> str:
    """Return the shell lines run before a worker starts: the site's own, then what campaign needs."""
    lines = [*site.environment]
    lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        lines.append(f"export {name}={spec.cores_per_worker}")
    lines.append(f"export {TOKEN_VARIABLE}={token} SPT_NOENV=1")
    return "\n".join(lines)


def _provider(spec: Executor, worker_init: str) -> Any:
    from parsl.launchers import SimpleLauncher, SrunLauncher
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    blocks = {"init_blocks": 1, "min_blocks": 0, "max_blocks": spec.max_blocks}
    if spec.provider == "local":
        return LocalProvider(worker_init=worker_init, launcher=SimpleLauncher(), **blocks)
    batch = {"nodes_per_block": spec.nodes, "walltime": spec.walltime, "worker_init": worker_init, **blocks}
    options = dict(spec.options)
    if spec.provider == "slurm":
        return SlurmProvider(launcher=SrunLauncher(), **batch, **options)
    if spec.provider == "pbs":
        return PBSProProvider(cpus_per_node=spec.cores, launcher=SimpleLauncher(), **batch, **options)
    raise InputError(f"Provider {spec.provider} is not known; use local, slurm or pbs.")
