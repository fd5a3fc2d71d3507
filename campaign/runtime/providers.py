"""Parsl's providers: what asks the batch system for the nodes of an executor, and what starts the workers on them."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.errors import InputError

if TYPE_CHECKING:
    from campaign.config import Executor

Ask = Callable[[str], tuple[int, str, str]]

#: Seconds between two looks at the queue, at most; a block of a few minutes is looked at more often.
POLL = 60

#: The file beside the scripts of a driver's jobs that says which jobs were submitted, and how long that holds (s): a
#: batch system may give its numbers to other jobs after years.
JOBS, KNOWN = "jobs", 30 * 86400


def provider(spec: Executor, init: str, ask: Ask | None = None) -> Any:
    """Return Parsl's provider of an executor's nodes.

    Parameters
    ----------
    spec
        The executor.
    init
        Shell lines run in each job before its workers start.
    ask
        Stands in for the batch system: a command of its goes in, exit code and printed texts come out.
    """
    from parsl.launchers import MpiExecLauncher, SimpleLauncher, SrunLauncher
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    # none is asked for before there is a task for it: a node of GPUs would wait for the training from the first day
    blocks = {"init_blocks": 0, "min_blocks": 0, "max_blocks": spec.max_blocks}
    if spec.provider == "local":
        return LocalProvider(worker_init=init, launcher=SimpleLauncher(), **blocks)
    kinds = {"slurm": SlurmProvider, "pbs": PBSProProvider}
    if spec.provider not in kinds:
        raise InputError(f"Provider {spec.provider} is not known; use local, slurm or pbs.")
    own: dict[str, Any] = {
        "status_polling_interval": min(POLL, max(2, spec.seconds // 20)),
        "submit": _noted(kinds[spec.provider], spec.provider),
    }
    own["execute_wait"] = (
        _known(kinds[spec.provider]) if ask is None else lambda self, command, timeout=None: ask(command)
    )
    kind = type(kinds[spec.provider].__name__, (kinds[spec.provider],), own)
    batch = {"nodes_per_block": spec.nodes, "walltime": spec.walltime, "worker_init": init, "cmd_timeout": 60, **blocks}
    options = dict(spec.options)
    start = shlex.join(spec.start)
    if spec.provider == "slurm":
        if not options.get("exclusive", True):  # a part of a node: say which
            batch["cores_per_node"] = spec.cores_of_node
        launcher = SimpleLauncher() if spec.nodes_per_worker else SrunLauncher(overrides=start)
        return kind(launcher=launcher, **batch, **options)
    several = not spec.nodes_per_worker and (spec.nodes > 1 or bool(spec.start))
    in_scripts = type("MpiExecLauncher", (MpiExecLauncher,), {"__call__": _beside_its_script(MpiExecLauncher)})
    launcher = in_scripts(bind_cmd="--cpu-bind", overrides=start) if several else SimpleLauncher()
    return kind(cpus_per_node=spec.cores_of_node, launcher=launcher, **batch, **options)


def no_batch_system(spec: Executor) -> str:
    """Return a sentence where this machine cannot ask an executor's batch system for nodes; nothing where it can."""
    program = {"slurm": "sbatch", "pbs": "qsub"}.get(spec.provider)
    if program is None or shutil.which(program):
        return ""
    return f"this machine has no {program}; type the command on a login node of the site, or choose another site"


def once(spec: Executor) -> Executor:
    """Return an executor whose jobs Slurm does not start again by itself after a node failed.

    Another block is asked for at once; Slurm's own comes two minutes later, and maybe for a driver that is gone.
    """
    if spec.provider != "slurm":
        return spec
    lines = [str(spec.options.get("scheduler_options", "")), "#SBATCH --no-requeue"]
    return spec.model_copy(update={"options": {**spec.options, "scheduler_options": "\n".join(filter(None, lines))}})


def _noted(parsl: Any, name: str) -> Callable[..., str]:
    """Return a provider's ``submit`` that writes down each job, for ``end_jobs`` of another driver."""

    def submit(self: Any, command: str, tasks_per_node: int, job_name: str = "campaign") -> str:
        job = str(parsl.submit(self, command, tasks_per_node, job_name))
        with (Path(self.script_dir) / JOBS).open("a") as file:
            file.write(f"{name} {job}\n")
        return job

    return submit


def _known(parsl: Any) -> Callable[..., tuple[int, str, str]]:
    """Return a provider's ``execute_wait`` for which a job that Slurm has forgotten is over.

    Parsl takes the error of ``squeue`` for no answer, and would believe for ever that the job runs.
    """

    def execute_wait(self: Any, command: str, timeout: int | None = None) -> tuple[int, str, str]:
        code, out, error = parsl.execute_wait(self, command, timeout)
        if code and command.startswith("squeue") and "Invalid job id" in error:
            return 0, "", ""
        return code, out, error

    return execute_wait


def end_jobs(logs: Path, seconds: int = 30) -> None:
    """Cancel the jobs of earlier drivers: those of one that was killed would hold nodes, or wait for them, in vain.

    Parameters
    ----------
    logs
        The folder of Parsl's own files in the run directory.
    seconds
        How long the batch system may take; what it does not cancel ends by itself when it hears from no driver.
    """
    from parsl.utils import execute_wait

    for noted in sorted(logs.glob(f"*/submit_scripts/{JOBS}")):
        fresh = time.time() - noted.stat().st_mtime < KNOWN
        found = re.findall(r"^(slurm|pbs) ([\w.@\[\]-]+)$", noted.read_text(), re.MULTILINE) if fresh else []
        for name, program in (("slurm", "scancel"), ("pbs", "qdel")):
            jobs = [job for kind, job in found if kind == name]
            if jobs:
                with contextlib.suppress(Exception):
                    execute_wait(shlex.join([program, *jobs]), seconds)
        noted.unlink()


def drain(executor: Any, seconds: int) -> None:
    """Let the workers that a Parsl executor starts from now on take no new task ``seconds`` after their start."""
    executor.launch_cmd = re.sub(r"--drain_period=\w+", f"--drain_period={seconds}", executor.launch_cmd)


def _beside_its_script(launcher: Any) -> Callable[..., str]:
    """Return a launcher's call that puts its file of nodes beside the script: PBS starts jobs in ``$HOME``."""

    def call(self: Any, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        lines = launcher.__call__(self, command, tasks_per_node, nodes_per_block, script_dir)
        return f"cd {shlex.quote(script_dir)}\n{lines}"

    return call
