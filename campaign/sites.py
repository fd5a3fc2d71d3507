"""A site before core-hours are spent: what is asked for, what the batch system refuses, what its workers see."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config import check_filled_in
from campaign.config.fields import suggest
from campaign.config.site_checks import check_driver_filled_in
from campaign.errors import CampaignError, InputError
from campaign.runtime.patience import IDLE, REFUSED
from campaign.runtime.providers import no_batch_system
from campaign.stages.probe import no_room
from campaign.tasks import Context, Json, Record, Task

if TYPE_CHECKING:
    from campaign.config import Executor, Site

#: What Parsl says of a job that ended before its workers were heard of.
UNHEARD = "workers failed to register"

#: What is said here of such a job where its node sees the folder: Slurm wrote the job's output there.
ENDED = "its job ended before its workers started"

#: Of what a job writes into its error output before its workers start, the lines that tell of something missing.
AMISS = re.compile(r"not found|no such|unknown|error|cannot|unable|denied", re.IGNORECASE)

#: What Slurm's commands say on a machine that has them and no controller: nothing about the site.
AWAY = "configuration source|contact slurm controller|Connection refused|Zero Bytes|timed out|was stopped after"

#: What Parsl says of a worker of another minor version of Python, or of another Parsl: it takes none.
MISMATCH = "Manager version info (.+) does not match interchange version info (.+)"

#: The remedy where a worker's Python is not the driver's.
SAME = "activate the same environment in the site file's environment"

#: Ranks that each engine is started on in a test, where a worker has as many cores.
RANKS = 2


def describe(site: Site) -> Iterator[str]:
    """Yield the lines that say what a site will be asked for: blocks, submission scripts, launch lines."""
    for name, spec in site.executors.items():
        stages = [stage for stage, place in site.stages.items() if place == name]
        yield f"executor {name} ({', '.join(stages) or 'no stage'}): {_blocks(spec)}"
        yield f"  {_workers(site, name)}"
        if spec.provider == "local":
            continue
        yield f"  no task starts in the last {spec.drain_seconds} s of a block, or in as long as tasks are seen to take"
        from campaign.runtime.submission import submission

        yield "  the script of a block:"
        yield from (f"    {line}" for line in submission(site, name).splitlines())
    yield from _launches(site.launch, "")
    for name, spec in site.executors.items():
        yield from _launches(spec.launch, f" on {name}")


def _workers(site: Site, name: str) -> str:
    """Say how many workers an executor has, and how large they are."""
    spec = site.executors[name]
    if spec.nodes_per_worker:
        each, count = spec.nodes_per_worker, site.workers_per_block(name)
        nodes = f"{each} whole node{'s' if each > 1 else ''}, {site.cores_of_worker(name)} cores"
        others = ", also for larger tasks of other stages"
        return f"{count} worker{'s' if count > 1 else ''} a block, each with {nodes}{others}"
    workers = site.workers_per_node(name)
    cores = f"{spec.cores_per_worker} core{'s' if spec.cores_per_worker > 1 else ''}"
    gpus = f", {spec.gpus} GPUs dealt out to them" if spec.gpus else ""
    return f"{workers} worker{'s' if workers > 1 else ''} of {cores} on a node{gpus}"


def _launches(launch: Mapping[str, Sequence[str]], where: str) -> Iterator[str]:
    for engine, words in launch.items():
        line = " ".join(words).replace("{ranks}", str(RANKS)).replace("{node_count}", "1")
        yield f"{engine}{where} on {RANKS} ranks: {line}{' python ...' if engine != 'cp2k' else ''}"


def _blocks(spec: Executor) -> str:
    if spec.provider == "local":
        return "this machine, no batch system"
    nodes = f"{spec.nodes} node{'s' if spec.nodes > 1 else ''}"
    blocks = f"{spec.max_blocks} block{'s' if spec.max_blocks > 1 else ''}"
    return f"{blocks} at most at once, each a job of {nodes} for {spec.walltime}; others follow until all is done"


# --- what the batch system refuses -------------------------------------------------------------------------------


def refused(site: Site) -> list[str]:
    """Return a line for each executor in use that the batch system would refuse, with its remedy; submit nothing.

    Only where this machine has the batch system's commands: elsewhere nothing is known.
    """
    used = dict.fromkeys([*site.stages.values(), *site.wide])
    problems: list[str] = []
    for name in used:
        spec = site.executors[name]
        where = f"site {site.name}: executors.{name}.options"
        unset = check_filled_in(site, name)
        problems += unset
        if unset:
            continue
        if spec.provider == "slurm" and shutil.which("sbatch"):
            problems += _refused_by_slurm(site, name)
        if spec.provider == "pbs" and shutil.which("qstat"):
            problems += _unknown_queue(where, str(spec.options.get("queue", "")))
    return problems + _driver_refused(site)


def _driver_refused(site: Site) -> list[str]:
    """Return a line where Slurm would refuse the job that the site file describes for the driver."""
    from campaign.runtime.driver_job import job_of

    known = site.driver is not None and site.driver.provider == "slurm" and shutil.which("sbatch")
    if not known or check_driver_filled_in(site):  # --detach says what is not filled in
        return []
    alone = site.model_copy(update={"executors": {"driver": job_of(site)}, "stages": {"default": "driver"}})
    return [line.replace("executors.driver", "driver", 1) for line in _refused_by_slurm(alone, "driver")]


def _refused_by_slurm(site: Site, name: str) -> list[str]:
    """Let Slurm check a block's script (``sbatch --test-only``)."""
    from campaign.runtime.submission import submit

    said: list[str] = []

    def take(command: str, script: Path) -> None:
        try:
            _ask(["sbatch", "--test-only", str(script)])
        except CampaignError as error:
            if not re.search(AWAY, str(error)):
                said.append(str(error))

    submit(site, name, take)
    return [_slurm_remedy(site, name, text) for text in said]


def _ask(command: list[str]) -> str:
    from campaign.engines import process

    with tempfile.TemporaryDirectory() as folder:
        return process.run(command, Path(folder), 60.0)


def _words(command: list[str]) -> list[str]:
    """Return what a command of the batch system prints, word by word; nothing where it fails."""
    try:
        return _ask(command).split()
    except CampaignError:
        return []


def _slurm_remedy(site: Site, name: str, said: str) -> str:
    """Return Slurm's refusal as a line with its remedy."""
    spec = site.executors[name]
    here = f"site {site.name}: executors.{name}"
    said = re.sub(r" \(/.*\)$", "", said.rpartition("error: ")[2] or said).rstrip(".")
    if "partition" in said.lower() and "account" not in said.lower():
        partitions = [word.rstrip("*") for word in _words(["sinfo", "--noheader", "--format=%P"])]
        remedy = suggest(str(spec.options.get("partition", "")), partitions) if partitions else "see: sinfo"
        got = spec.options.get("partition", "no partition")
        return f"{here}.options.partition: Slurm refuses it ({said}), got {got}; {remedy}"
    if "account" in said.lower():
        got = spec.options.get("account", "no account")
        remedy = "write the account that your hours are on (sacctmgr show associations user=$USER)"
        return f"{here}.options.account: Slurm refuses it ({said}), got {got}; {remedy}"
    if "time limit" in said.lower():
        limits = ", ".join(_words(["sinfo", "--noheader", "--format=%P=%l"]))
        return f"{here}.walltime: Slurm refuses it ({said}), got {spec.walltime}; the partitions' limits are {limits}"
    if "qos" in said.lower():
        return f"{here}.options.qos: Slurm refuses it ({said}), got {spec.options.get('qos')}; see: sacctmgr show qos"
    if "node" in said.lower() or "processors" in said.lower():
        sizes = ", ".join(_words(["sinfo", "--noheader", "--format=%P=%D*%c"]))
        return (
            f"{here}: Slurm has no such nodes ({said}), got nodes: {spec.nodes}, cores: {spec.cores_of_node}; write "
            f"what a partition has (partition=nodes*CPUs: {sizes})"
        )
    return f"{here}.options: Slurm refuses a block ({said}); correct them"


def _unknown_queue(where: str, queue: str) -> list[str]:
    try:
        lines = _ask(["qstat", "-Q"]).splitlines()
    except CampaignError as error:
        return [f"{where}: PBS does not answer ({error}); try again later"]
    queues = [line.split()[0] for line in lines[2:] if line.split()]
    if not queue or queue in queues:
        return []
    return [f"{where}.queue: PBS has no such queue, got {queue}; {suggest(queue, queues)}"]


# --- what the workers see ----------------------------------------------------------------------------------------


def try_site(site: Site, patience: float = 120.0, root: Path | None = None) -> Iterator[str]:
    """Run one tiny task on each executor of a site and yield lines about each that answers.

    Parameters
    ----------
    site
        The site. Its executors are tried one after another, also those that no stage uses.
    patience
        Seconds to wait for each: the queue's time is in it.
    root
        A folder as run directories have; the present one by default.

    Raises
    ------
    InputError
        With a line for each executor that gave no answer or is not fit to run campaigns, after all were tried.
    """
    root = Path.cwd() if root is None else root.resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--root: {root} cannot be made ({error.strerror}); name another place") from error
    problems = [f"site {site.name}: {fault}" for fault in no_room(root)]
    if problems:
        raise InputError(*problems)
    problems += _driver_refused(site)
    for name in site.executors:
        alone = {"executors": {name: site.executors[name]}, "stages": {"default": name}, "driver": None}
        start = time.time()
        single = site.model_copy(update=alone)
        where = f"site {site.name}: executor {name}"
        away = no_batch_system(site.executors[name])
        faults = [f"{where}: {away}"] if away else refused(single)
        if faults:
            problems += faults
            continue
        record, words = _answer(single, patience, root)
        if record is None:
            waited = min(patience, time.time() - start)
            problems.append(f"{where}: no worker answered in {waited:.3g} s; {_silence(words)}")
        elif found := re.search(MISMATCH, record["cause"]):
            problems.append(f"{where}: the worker has {found[1]}, and this machine {found[2]}; {SAME}")
        elif record["state"] != "done":
            problems.append(f"{where}: no worker answered; {_silence(words or record['cause'])}")
        else:
            yield from _told(name, record, time.time() - start)
            problems += [f"{where}: {fault}" for fault in _faults(single, name, record)]
    if problems:
        raise InputError(*problems)


def _silence(words: str) -> str:
    if not words:
        return "look at the queue and at the executor's options; a queue may take longer: --patience SECONDS"
    if words == IDLE:
        return (
            f"{IDLE}; compare cores, cores_per_worker and binding with what the node has; workers that are slow to "
            "start may take longer: --patience SECONDS"
        )
    if words == ENDED:
        return f"{ENDED}, and without a word; look for a line of environment that ends it"
    if UNHEARD in words:
        return (
            "its job ended without a word, so the node does not see this folder: name one that all nodes share with "
            "--root"
        )
    return f"the last that was said of its job: {words}"


def _told(name: str, record: Record, seconds: float) -> Iterator[str]:
    python = record["versions"]["python"]
    others = "".join(f", {k} {v}" for k, v in record["versions"].items() if k != "python")
    yield f"executor {name}: host {record['host']} answered after {seconds:.1f} s, Python {python}{others}"
    seen = record["result"]
    if not seen:
        return
    yield f"  node {seen['node']}: {seen['cores']} cores and {seen['gpus']} GPUs seen by the worker"
    yield "  the folder is shared and takes data" if not seen["faults"] else "  the folders are not fit: see below"
    for engine, found in seen["engines"].items():
        if "error" not in found:
            yield f"  {engine} {found['version']}: {found['ranks']} MPI rank{'s' * (found['ranks'] > 1)} seen"
    yield from (f"  its job said: {line}" for line in seen.get("said", ()))


def _faults(site: Site, name: str, record: Record) -> Iterable[str]:
    """Yield what is wrong with what a worker saw, each with its remedy."""
    spec, seen = site.executors[name], record["result"]
    python = record["versions"]["python"]
    if python != platform.python_version():
        yield f"the worker's Python {python} is not this one ({platform.python_version()}); {SAME}"
    yield from seen.get("faults", ())
    workers = site.workers_per_node(name)
    if seen and spec.provider != "local" and spec.binding == "none" and seen["cores"] < spec.cores_of_node:
        yield (
            f"the node is said to have {spec.cores_of_node} cores, and a worker may use {seen['cores']} of them; write "
            f"cores: {seen['cores']}, or leave out what keeps it to them (options, start)"
        )
    if seen and 0 < seen.get("blind", 0) < workers:
        yield (
            f"{seen['blind']} of the node's {workers} workers see no GPU; ask for all GPUs under options, and write as "
            "many under gpus"
        )
    elif seen and spec.gpus and not seen["gpus"]:
        yield (
            f"the node is said to have {spec.gpus} GPUs, and the worker sees none; ask for them under options "
            "(gpus_per_node or gres; pbs: select_options), or install a torch with CUDA or ROCm"
        )
    asked = _ranks(spec)
    for engine, found in seen.get("engines", {}).items():
        if "error" in found:
            yield f"launch.{engine}: it does not start on the node: {found['error']} {_launch_remedy(found['error'])}"
        elif found["ranks"] != asked:
            yield (
                f"launch.{engine}: {found['ranks']} MPI rank{'s' if found['ranks'] > 1 else ''} started, not {asked}; "
                "name the launcher of the MPI that the engine was built with"
            )
        elif found.get("cores", seen["cores"]) < seen["cores"] and workers > 1:
            yield (
                f"launch.{engine}: its ranks are kept to {found['cores']} of the worker's {seen['cores']} cores, and "
                "tasks that share a node would all be started on the same; srun: leave out --cpus-per-task, here and "
                "under start, and write --cpu-bind=none; mpiexec: -bind-to none"
            )


def _launch_remedy(said: str) -> str:
    if "was not found" in said:
        return "Load its module under environment, or write its full path."
    if "was stopped after" in said:
        return "mpiexec cannot start ranks inside an srun step: there, write srun --mpi=pmi2 --overlap."
    return "Correct it in the site file."


def _ranks(spec: Executor) -> int:
    """Return how many ranks a test starts: one at least on each node of a worker."""
    return max(RANKS, spec.nodes_per_worker) if spec.nodes_per_worker else min(RANKS, spec.cores_per_worker)


def _answer(site: Site, patience: float, root: Path) -> tuple[Record | None, str]:
    """Return what a task on a site's one executor left behind, None where nothing came in time; and what was said."""
    from campaign.runtime.parsl import ParslRunner
    from campaign.worker import run_task

    ((name, spec),) = site.executors.items()
    with tempfile.TemporaryDirectory(prefix="campaign-site-", dir=root) as folder, contextlib.ExitStack() as held:
        word = uuid.uuid4().hex
        file = held.enter_context((Path(folder) / "word").open("w"))
        file.write(word)
        file.flush()
        with contextlib.suppress(OSError):  # no locks: the worker tells
            fcntl.flock(file, fcntl.LOCK_EX)
        params: dict[str, Json] = {
            "word": word,
            "ranks": _ranks(spec),
            "gpus": spec.gpus,
            "engines": list(site.launch_on(name)),
            "scratch": site.scratch,
        }
        end = time.time() + patience
        runner = ParslRunner(run_task, site, Path(folder) / "logs", uuid.uuid4().hex, patience=2 * patience)
        try:
            # one at each worker that has GPUs of its own: some may see none
            count = site.workers_per_node(name) if spec.gpus and not spec.nodes_per_worker else 1
            for k in range(count):
                again = params | {"number": k, "of": count, "engines": [] if k else params["engines"]}
                runner.submit(Task("probe", f"try {k}", again, extra={"ranks": _ranks(spec)}), Context(Path(folder)))
            records: list[Record] = []
            while len(records) < count and time.time() < end and not runner.words().startswith(REFUSED):
                records += runner.wait(1.0)
            words = "" if records and records[0]["state"] == "done" else runner.words()
            said = _amiss(Path(folder) / "logs")
        finally:
            runner.close()
        scripts = Path(folder) / "logs"
        if UNHEARD in words and spec.provider == "slurm" and any(scripts.glob("*/submit_scripts/*.stdout")):
            words = ENDED
    records.sort(key=lambda record: record["result"].get("number", 0))
    if count > 1 and records:
        records[0]["result"]["blind"] = sum(r["state"] == "done" and not r["result"]["gpus"] for r in records)
    if records and records[0]["result"]:
        records[0]["result"]["said"] = said
    return (records[0] if records else None), words


def _amiss(logs: Path) -> list[Json]:
    """Return what jobs wrote into their error output of something missing, such as a module; three lines at most."""
    found: dict[str, Json] = {}
    for path in sorted(logs.glob("*/submit_scripts/*.stderr")):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            found |= {
                re.sub(r"^\S*submit_scripts/\S+: ", "", line.strip())[:200]: None
                for line in lines
                if AMISS.search(line)
            }
    return list(found)[:3]
