"""Parsl's providers: what asks the batch system for the nodes of an executor, and what starts the workers on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from campaign.errors import InputError

if TYPE_CHECKING:
    from campaign.config import Executor

Ask = Callable[[str], tuple[int, str, str]]

#: Seconds between two looks at the queue, at most; a block of a few minutes is looked at more often.
POLL = 60


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
    interval: dict[str, Any] = {"status_polling_interval": min(POLL, max(2, spec.seconds // 20))}
    asked = {} if ask is None else {"execute_wait": lambda self, command, timeout=None: ask(command)}
    kind = type(kinds[spec.provider].__name__, (kinds[spec.provider],), interval | asked)
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


def drain(executor: Any, seconds: int) -> None:
    """Let the workers that a Parsl executor starts from now on take no new task ``seconds`` after their start."""
    executor.launch_cmd = re.sub(r"--drain_period=\w+", f"--drain_period={seconds}", executor.launch_cmd)


def _beside_its_script(launcher: Any) -> Callable[..., str]:
    """Return a launcher's call that puts its file of nodes beside the script: PBS starts jobs in ``$HOME``."""

    def call(self: Any, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        lines = launcher.__call__(self, command, tasks_per_node, nodes_per_block, script_dir)
        return f"cd {shlex.quote(script_dir)}\n{lines}"

    return call
