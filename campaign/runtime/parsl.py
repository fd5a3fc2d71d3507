"""Parsl as the runner: an executor for each pool of workers in the site file.

Workers within a node are those of a HighThroughputExecutor. Those of whole nodes are an MPIExecutor's: they sit on the
first node of a block, and each task is given nodes of the block for its MPI ranks. All tasks of such an executor get as
many nodes (``nodes_per_worker``), and a block has no more workers than it has room for: Parsl's own queue for tasks
that must wait for nodes loses some, and can loop for ever (Parsl#3829, #3800).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import queue
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from campaign.errors import InputError
from campaign.interpreter import SAFE_PATH, module_command
from campaign.leftovers import end_leftovers, sockets_of
from campaign.runtime.patience import AT_WORK, BAD, IDLE, InterchangeLost, cut_off, executor_class, give_up_late
from campaign.runtime.providers import Ask, drain, end_jobs, no_batch_system, once, provider
from campaign.tasks import TOKEN_VARIABLE, Context, Record, Task, Work, new_record, pack, unpack_record

if TYPE_CHECKING:
    from concurrent.futures import Future

    from campaign.config import Executor, Site


#: Seconds between Parsl's looks at its blocks; it starts the first one at the first look (its default waits 5 s).
#: How often a scheduler is asked is the provider's own interval.
LOOK = 0.2

#: Seconds to wait for more once a record is there: those that come together share one flush of the ledger.
GATHER = 0.02

#: Seconds that an interchange may take to say which workers there are.
ANSWER = 30.0

#: The file, beside Parsl's own, in which a driver leaves how long its tasks took.
LEARNED = "drain.json"

#: How often to start Parsl where its interchange is killed meanwhile.
STARTS = 5

#: How much longer than the longest so far a task may well take.
MARGIN = 1.2


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
        Written into the environment of everything started here (``leftovers.end_leftovers``).
    patience
        Seconds of silence, with tasks sent and no worker at any of them, after which the workers are started afresh.
    """

    def __init__(self, work: Work, site: Site, logs: Path, token: str, patience: float = 60.0) -> None:
        self._work = work
        self._site = site
        self._logs = logs
        self._token = token
        self._patience = self._usual = patience
        self._count = itertools.count(1)
        self._reached: set[str] = set()  # executors whose batch system is there
        self._flying: dict[str, tuple[Task, Context]] = {}
        self._heard = time.time()
        # executor -> seconds at the end of its blocks in which no task starts, as the driver before this one left it
        self._drain = _learned(logs / LEARNED, site)
        self._records: queue.SimpleQueue[tuple[int, Record]] = queue.SimpleQueue()
        os.environ[TOKEN_VARIABLE] = token
        os.environ["SPT_NOENV"] = "1"  # Parsl renames its processes; keep their environment, and the token, readable
        # Parsl finds interchange.py and process_worker_pool.py on PATH.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._close_log = _log(logs)
        end_jobs(logs)
        self._kernel = self._start()

    def _start(self) -> Any:
        """Start Parsl; once more where its interchange was killed while it started."""
        for _ in range(STARTS - 1):
            with contextlib.suppress(InterchangeLost):
                return self._start_once()
        return self._start_once()

    def _start_once(self) -> Any:
        from parsl.config import Config
        from parsl.dataflow.dflow import DataFlowKernel

        self._answered: set[str] = set()  # executors whose workers have done something
        self._met: dict[str, float] = {}  # Parsl's managers of workers: when each was seen first (s since the epoch)
        shutil.rmtree(self._logs / "workers", ignore_errors=True)
        (self._logs / "workers").mkdir(parents=True, exist_ok=True)
        config = Config(
            executors=executors(self._site, self._token),
            run_dir=str(self._logs),
            retries=0,
            strategy="simple",
            strategy_period=LOOK,
            initialize_logging=False,
        )
        kernel = DataFlowKernel(config)
        for name, seconds in self._drain.items():
            drain(kernel.executors[name], self._site.executors[name].seconds - seconds)
        return kernel

    def submit(self, task: Task, context: Context) -> None:
        """Queue a task on its stage's executor; a lower priority number runs first.

        Raises
        ------
        InputError
            This machine has not the commands of the executor's batch system.
        """
        name = self._site.place(task.stage, task.ranks, task.threads)
        if name not in self._reached:
            fault = no_batch_system(self._site.executors[name])
            if fault:
                raise InputError(f"site {self._site.name}: executors.{name}: {fault}")
            self._reached.add(name)
        launch = {engine: list(words) for engine, words in self._site.launch_on(name).items()}
        context = replace(context, sent=next(self._count), launch=launch)
        self._flying[task.id] = (task, context)
        self._heard = time.time()
        future = self._kernel.submit(
            self._work,
            app_args=(pack(task, context),),
            executors=[name],
            cache=False,
            ignore_for_cache=(),
            app_kwargs=_scheduling(task, self._site.executors[name].nodes_per_worker),
        )
        sent = time.time()
        future.add_done_callback(lambda done: self._records.put((context.sent, _record_of(done, task, context, sent))))

    def wait(self, seconds: float) -> list[Record]:
        """Return every record that came in; wait up to ``seconds`` for the first."""
        arrived: list[tuple[int, Record]] = []
        try:
            arrived.append(self._records.get(timeout=seconds))
            time.sleep(GATHER)
            while True:
                arrived.append(self._records.get_nowait())
        except queue.Empty:
            pass
        # A try that was given up (``_start_afresh``) may still answer: its record is not wanted any more.
        wanted = [r for sent, r in arrived if r["task"] in self._flying and self._flying[r["task"]][1].sent == sent]
        done = [(self._flying.pop(record["task"])[0], record) for record in wanted]
        for name in {self._site.place(t.stage, t.ranks, t.threads) for t, r in done if r["transient"]}:
            self._kernel.executors[name].look_soon()
        if wanted:
            self._heard = time.time()
            if any(r["state"] == "done" for r in wanted):
                self._patience = self._usual
            self._learn(done)
        elif self._silent():
            return self._start_afresh()
        return wanted

    def _learn(self, done: list[tuple[Task, Record]]) -> None:
        """Let the blocks that are asked for from now on start no task that their time would not suffice for."""
        for task, record in done:
            name = self._site.place(task.stage, task.ranks, task.threads)
            spec = self._site.executors[name]
            needed = self._drain.get(name, spec.drain_seconds)
            self._answered.add(name)
            if spec.drain != "auto" or spec.provider == "local":
                continue  # fixed in the site file, or without an end
            if record["state"] == "done" and record["seconds"] * MARGIN > needed:
                # half of the block at most: with longer tasks it would stand idle more than it loses
                self._drain[name] = min(math.ceil(record["seconds"] * MARGIN), spec.seconds // 2)
                drain(self._kernel.executors[name], spec.seconds - self._drain[name])

    def _silent(self) -> bool:
        """Tell whether tasks wait for an executor that has workers, but none of them is at any of its tasks.

        Parsl's workers can get into that state: one killed while it waits for a task takes the lock of the queue with
        it. An interchange that was killed looks the same.
        """
        if not self._flying:
            return False
        if any(cut_off(e) for e in self._kernel.executors.values()):
            return True
        if time.time() - self._heard < self._patience:
            return False
        marks: dict[str, set[str]] = {}  # executor -> its tasks in flight
        for task, context in self._flying.values():
            name = self._site.place(task.stage, task.ranks, task.threads)
            marks.setdefault(name, set()).add(context.mark(task.id))
        workers = (self._logs / "workers").iterdir()
        begun = {path.read_text().strip() for path in workers if _lives(path.name)}
        # those that are at long tasks, or where none has come up yet, are not meant
        idle = [name for name, waiting in marks.items() if not waiting & begun and name in self._answered]
        if any(self._has_workers(self._kernel.executors[name]) for name in idle):
            return True
        self._heard = time.time()  # the batch system is waited for, or workers that come up
        return False

    def _has_workers(self, executor: Any) -> bool:
        """Tell whether workers of an executor had time to take a task, or its interchange does not answer."""
        from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

        try:
            managers = executor.command_client.run("MANAGERS", timeout_s=ANSWER)
        except (CommandClientBadError, CommandClientTimeoutError):
            return True
        takers = [m["manager"] for m in managers if m["active"] and not m["draining"]]
        # a slow start is not silence
        return any(time.time() - self._met.setdefault(name, time.time()) > self._patience for name in takers)

    def _start_afresh(self) -> list[Record]:
        """End all workers, start new ones, and hand every task in flight back as lost by the machine."""
        in_two = any(cut_off(e) for e in self._kernel.executors.values())
        sockets = sockets_of(self._token)
        _give_up(self._kernel)
        end_leftovers(self._token, sockets)
        begun = {path.read_text().strip() for path in (self._logs / "workers").iterdir()}
        lost = [new_record(task, context.attempt) for task, context in self._flying.values()]
        for record, (task, context) in zip(lost, self._flying.values(), strict=True):
            record["state"], record["transient"] = "failed", True
            record["blame"] = 0.5 if context.mark(task.id) in begun else 0.0
            record["cause"] = "No worker took up a task any more; the workers are started afresh."
        self._flying.clear()
        if not in_two:
            self._patience *= 2  # a slow file system must not be restarted for ever
        self._kernel = self._start()
        self._heard = time.time()
        return lost

    def words(self) -> str:
        """Return the last that a block left in its error output, or else what the batch system said of it."""
        for executor in self._kernel.executors.values():
            for block in reversed(list(getattr(executor, "status_facade", {}).values())):
                lines = [line.strip() for line in (block.stderr_summary or "").splitlines() if line.strip()]
                idle = IDLE if block.state.name == "RUNNING" else ""
                said = lines[-1] if lines else " ".join((block.message or "").split()) or idle
                if said:
                    return said[:400]
        return ""

    def waits_for(self) -> str:
        """Return what keeps the tasks in flight from being done: jobs in the queue, or refused; nothing if they are."""
        waiting, refused = 0, ""
        blocks = {n: list(getattr(e, "status_facade", {}).values()) for n, e in self._kernel.executors.items()}
        if any(s.state.name in AT_WORK for states in blocks.values() for s in states):
            return ""  # most often: there may be very many tasks in flight to look at
        for name in {self._site.place(t.stage, t.ranks, t.threads) for t, _ in self._flying.values()}:
            states = blocks.get(name, [])
            if self._site.executors[name].provider == "local":
                return ""
            pending = sum(s.state.name == "PENDING" for s in states)
            waiting += pending
            if states and not pending and states[-1].state.name in BAD:
                text = " ".join(f"{states[-1].message or ''} {states[-1].stderr_summary or ''}".split())
                said = text.rpartition("stderr=")[2][:300]  # Parsl's own words come before that
                refused = f"executor {name} has no job ({said}); one is asked for again and again"
        jobs = f"{waiting} job{'s' if waiting > 1 else ''} in the queue" if waiting else ""
        return refused or jobs

    def close(self) -> None:
        """Stop the workers and end the jobs; tasks in flight are abandoned."""
        with contextlib.suppress(OSError):  # the next driver would learn it again
            (self._logs / LEARNED).write_text(json.dumps(self._drain))
        sockets = sockets_of(self._token)
        _give_up(self._kernel)
        for name, executor in self._kernel.executors.items():
            if name in self._site.executors and self._site.executors[name].provider != "local":
                _cancel_left(executor)
        end_leftovers(self._token, sockets)
        self._close_log()


def _lives(name: str) -> bool:
    """Tell whether the worker of a mark (``HOST PID``) may be alive: one on another host may."""
    host, _, pid = name.rpartition(" ")
    if host != socket.gethostname():
        return True
    try:
        return bool(psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _give_up(kernel: Any, seconds: float = 20.0) -> None:
    """Close a Parsl kernel and end its blocks; wait for that a while at most.

    Parsl itself would wait for ever for the answer of an interchange that has ended, and leave the blocks in the queue.
    """
    lost = any(cut_off(e) for e in kernel.executors.values())
    closing = threading.Thread(target=_end_blocks if lost else kernel.cleanup, args=[kernel] * lost, daemon=True)
    closing.start()
    closing.join(seconds)


def _learned(path: Path, site: Site) -> dict[str, int]:
    """Return what an earlier driver learned of a site's executors: half of a block at most, nothing that is fixed."""
    try:
        found = {str(name): int(seconds) for name, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    specs = {name: spec for name, spec in site.executors.items() if spec.provider != "local" and spec.drain == "auto"}
    return {name: min(found[name], spec.seconds // 2) for name, spec in specs.items() if name in found}


def _cancel_left(executor: Any) -> None:
    """Cancel the jobs that Parsl left: those of an executor that it gave up, or that it had no time to cancel."""
    left = [job for job, known in executor.provider.resources.items() if not known["status"].terminal]
    if left:
        with contextlib.suppress(Exception):  # no answer: they end when their workers hear from no driver
            executor.provider.cancel(left)


def _end_blocks(kernel: Any) -> None:
    """Ask for no more blocks, and cancel those there are."""
    from parsl.utils import Timer

    Timer.close(kernel.job_status_poller, 2.0)  # its own close would ask the interchange first
    for executor in kernel.executors.values():
        jobs = getattr(executor, "blocks_to_job_id", None)  # Parsl's own threads have none
        if jobs is None:
            continue
        blocks = [b for b, status in executor.status_facade.items() if b in jobs and not status.terminal]
        with contextlib.suppress(Exception):  # they end by themselves when they hear from nobody
            executor.provider.cancel([jobs[b] for b in blocks])
        if not cut_off(executor):
            executor.shutdown()


def _log(logs: Path) -> Callable[[], None]:
    """Let Parsl write ``logs/parsl.log``; return what ends that.

    Blocks, scaling and losses are in it. Parsl's own choice, a dozen lines a task, costs a third of the driver's
    time when tasks are short.
    """
    logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(logs / "parsl.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    logger = logging.getLogger("parsl")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    for part in ("jobs", "providers", "launchers", "executors.status_handling"):
        logging.getLogger(f"parsl.{part}").setLevel(logging.INFO)

    def close() -> None:
        logger.removeHandler(handler)
        handler.close()

    return close


def _record_of(future: Future[Any], task: Task, context: Context, sent: float) -> Record:
    error = future.exception()
    if error is None:
        return unpack_record(future.result())
    # the work itself never raises, so this is the machine's doing: a worker or node lost, a block cancelled.
    record = new_record(task, context.attempt)
    record["state"], record["transient"] = "failed", True
    record["start"], record["seconds"] = sent, time.time() - sent
    record["cause"] = " ".join(f"{type(error).__name__}: {error}".split())
    if type(error).__name__ != "WorkerLost":  # a node, or a block: less likely to be the task's doing
        record["blame"] = 0.5
    return record


def _scheduling(task: Task, nodes: int) -> dict[str, Any]:
    """Return what Parsl is told of a task beside its work: its nodes where it takes whole ones, or its priority.

    Without a priority a task comes last, in the order of sending: nothing to say for the common ones.
    """
    if nodes:
        count = min(nodes, task.ranks)
        told = {"num_nodes": nodes, "ranks_per_node": -(-task.ranks // count), "num_ranks": task.ranks}
        return {"parsl_resource_specification": told}
    return {} if task.priority >= 5 else {"parsl_resource_specification": {"priority": task.priority}}


def executors(site: Site, token: str) -> list[Any]:
    """Return Parsl's executor for each of the site's that a stage uses, or that a task of many ranks may go to."""
    return [executor(site, name, token) for name in sorted({*site.stages.values(), *site.wide})]


def executor(site: Site, name: str, token: str, ask: Ask | None = None) -> Any:
    """Return Parsl's executor for one of the site's pools of workers, not started."""
    spec = site.executors[name]
    local = spec.provider == "local"
    workers: dict[str, Any] = {
        "max_workers_per_node": site.workers_per_node(name),
        "cores_per_worker": spec.cores_per_worker,
        "available_accelerators": accelerators(spec.gpus, site.workers_per_node(name)),
        "cpu_affinity": spec.binding,
    }
    if spec.nodes_per_worker:  # the launch commands are the site's own: Parsl's is only the prefix that it offers
        launcher = "srun" if spec.provider == "slurm" else "mpiexec"
        workers = {"max_workers_per_block": site.workers_per_block(name), "mpi_launcher": launcher}
    made = executor_class(bool(spec.nodes_per_worker))(
        label=name,
        address="127.0.0.1" if local else "ADDRESSES" if ask else None,  # None: all that this machine has
        provider=provider(once(spec), _worker_init(site, spec, token), ask),
        prefetch_capacity=0,  # a task is handed out when a worker is free, so priorities count
        heartbeat_period=5,
        heartbeat_threshold=20,  # s; how long workers outlive a driver that was killed
        poll_period=10,  # ms
        encrypted=True,
        block_error_handler=give_up_late,
        **workers,
        drain_period=None if local else spec.seconds - spec.drain_seconds,
    )
    made.interchange_launch_cmd = module_command("campaign.runtime.interchange")
    return made


def accelerators(gpus: int, workers: int) -> list[str]:
    """Return the GPUs of each worker of a node, as CUDA_VISIBLE_DEVICES names them; all are dealt out.

    Parsl starts no more workers than there are entries.
    """
    count = min(gpus, workers)
    return [",".join(str(k) for k in range(w * gpus // count, (w + 1) * gpus // count)) for w in range(count)]


def _worker_init(site: Site, spec: Executor, token: str) -> str:
    """Return the shell lines run before a worker starts: the site's own, then what campaign needs."""
    lines = [*site.environment]
    if site.scratch is not None:
        lines.append(f"mkdir -p {shlex.quote(site.scratch)} && export TMPDIR={shlex.quote(site.scratch)}")
    if (
        spec.provider == "pbs" and not spec.nodes_per_worker
    ):  # the workers of a block are started by the machine's mpiexec, not by this Python's
        lines.append('MPIEXEC=$(command -v mpiexec); mpiexec() { "$MPIEXEC" "$@"; }')
    lines.append(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        lines.append(f"export {name}={spec.cores_per_worker}")
    lines.append(f"export {TOKEN_VARIABLE}={token} SPT_NOENV=1 {SAFE_PATH}=1")
    return "\n".join(lines)
