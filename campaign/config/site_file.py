"""The site file as frozen models: the facts of a machine, and no physics."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from campaign.config.fields import Count, FileName, Model, NonNegativeInteger, Scalars, integer, suggest, wrong
from campaign.errors import InputError

#: Engines that a site may have a launch command for.
ENGINES = ("lammps", "cp2k", "train")

#: What ``options`` may hold for each provider: the names of Parsl's own provider arguments.
OPTIONS: dict[str, tuple[str, ...]] = {
    "local": (),
    "slurm": (
        "partition",
        "account",
        "qos",
        "constraint",
        "clusters",
        "mem_per_node",
        "gres",
        "gpus_per_node",
        "scheduler_options",
        "exclusive",
    ),
    "pbs": ("account", "queue", "scheduler_options", "select_options"),
}


def _count_or_auto(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and not value.isdigit():
        raise wrong("a whole number or auto is needed", suggest(value, ["auto"]) + " or a whole number")
    count = integer(value)
    if count < 1:
        raise wrong("must be at least 1", "write a whole number of at least 1, or auto")
    return count


def _seconds(clock: str) -> int:
    """Return the seconds of HH:MM:SS."""
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def cores_here() -> int:
    """Return the cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CountOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)]


#: Of the driver's job, auto is one.
OneOrMore = Annotated[Count, BeforeValidator(lambda value: 1 if value == "auto" else value)]


class Executor(Model):
    """One pool of workers: where its nodes come from and how they are cut up."""

    provider: Literal["local", "slurm", "pbs"] = Field(description="where nodes come from", examples=["local"])
    nodes: Count = Field(1, description="nodes of a block (one job of the batch system)")
    cores: CountOrAuto = Field("auto", description="cores of a node; auto is for the local provider")
    workers: CountOrAuto = Field("auto", description="workers of a node; auto is one for each cores_per_worker cores")
    cores_per_worker: Count = Field(1, description="cores of a worker: as many as the MPI ranks of its walkers")
    nodes_per_worker: NonNegativeInteger = Field(
        0,
        description="whole nodes of a worker, for MPI tasks larger than a node; 0 is for workers within a node",
    )
    gpus: NonNegativeInteger = Field(0, description="GPUs of a node")
    max_blocks: Count = Field(1, description="most blocks held at once")
    walltime: str = Field(
        "01:00:00", pattern=r"^[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]$", description="of a block, as HH:MM:SS"
    )
    drain: str = Field(
        "auto",
        pattern=r"^(auto|[0-9]{1,3}:[0-5][0-9]:[0-5][0-9])$",
        description="end of a block in which no task starts, as HH:MM:SS; auto is a twentieth of the walltime, and as "
        "long as tasks are seen to take",
    )
    binding: str = Field(
        "none",
        pattern=r"^(none|block|block-reverse|alternating|list:[0-9,:-]+)$",
        description="of each worker to cores of its own: none, block, block-reverse, alternating or list:0-7:8-15",
    )
    start: tuple[str, ...] = Field(
        (), description="options of the srun (slurm) or mpiexec (pbs) that starts the workers on a block's nodes"
    )
    launch: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="the command in front of an engine, where the site's own does not serve here"
    )
    options: Scalars = Field(default_factory=dict, description="the provider's own: partition, account, queue ...")

    @property
    def seconds(self) -> int:
        """The walltime of a block (s)."""
        return _seconds(self.walltime)

    @property
    def drain_seconds(self) -> int:
        """The end of a block in which no task starts (s)."""
        return self.seconds // 20 if self.drain == "auto" else _seconds(self.drain)

    @property
    def cores_of_node(self) -> int:
        """Cores of one node (of this machine, where a local executor says auto)."""
        if isinstance(self.cores, int):
            return self.cores
        if self.provider == "local":
            return cores_here()
        return int(self.workers) * self.cores_per_worker


class Driver(Executor):
    """The job of the driver itself."""

    cores: OneOrMore = Field(1, description="cores of the driver's job; auto is one")


class Site(Model):
    """A whole site file."""

    name: str = Field(
        alias="site",
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        max_length=64,
        description="lower-case letters, digits, - and _, starting with a letter or digit",
        examples=["local"],
    )
    description: str = Field("", description="one line about the machine")
    executors: dict[str, Executor] = Field(
        min_length=1, description="pools of workers by name", examples=["{cpu: {provider: local}}"]
    )
    stages: dict[str, str] = Field(description="the executor of each stage", examples=["{default: cpu}"])
    launch: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="the command in front of each engine, as a list with {ranks} to fill, and {node}, {nodes}, "
        "{node_count}, {ranks_per_node}",
    )
    environment: tuple[str, ...] = Field((), description="shell lines run before the workers start")
    driver: Driver | None = Field(None, description="the job of the driver itself (run --detach): one core, for long")
    scratch: FileName | None = Field(None, description="folder on the nodes for engines' temporary files (TMPDIR)")

    def launch_on(self, executor: str) -> dict[str, tuple[str, ...]]:
        """Return the command in front of each engine on an executor: its own, or else the site's."""
        return {**self.launch, **self.executors[executor].launch}

    def launch_training(self, executor: str) -> tuple[str, ...]:
        """Return the command in front of a training on several processes: its own, or else that of LAMMPS."""
        found = self.launch_on(executor)
        return found.get("train", found.get("lammps", ()))

    @property
    def wide(self) -> list[str]:
        """The executors whose workers are whole nodes."""
        return [name for name, found in self.executors.items() if found.nodes_per_worker]

    def place(self, stage: str, ranks: int = 1, threads: int = 1) -> str:
        """Return the name of the executor that runs a task of ``stage``, by what it needs.

        It is the stage's own where the task fits a worker of it; else the smallest of those whose workers are whole
        nodes. Where it fits nowhere it is the stage's own again: ``check_together`` has said so before.
        """
        own = self.executor_for(stage)
        if self.fits(own, ranks, threads):
            return own
        wide = [name for name in self.wide if self.executors[name].gpus >= self.executors[own].gpus]
        wide = [name for name in wide if self.fits(name, ranks, threads)]
        return min(wide, key=self.cores_of_worker, default=own)

    def fits(self, executor: str, ranks: int, threads: int = 1) -> bool:
        """Tell whether a worker of ``executor`` has a core for each thread of a task's MPI ranks."""
        nodes = self.executors[executor].nodes_per_worker
        each = self.cores_per_node(executor) if nodes else self.executors[executor].cores_per_worker
        return -(-ranks // max(1, nodes)) * threads <= each

    def cores_of_worker(self, executor: str) -> int:
        """Return the cores of one worker of ``executor``."""
        found = self.executors[executor]
        nodes = found.nodes_per_worker
        return nodes * self.cores_per_node(executor) if nodes else found.cores_per_worker

    def workers_per_block(self, executor: str) -> int:
        """Return the workers of one block of ``executor``."""
        found = self.executors[executor]
        if found.nodes_per_worker:
            return found.nodes // found.nodes_per_worker
        return self.workers_per_node(executor) * found.nodes

    def executor_for(self, stage: str) -> str:
        """Return the name of the executor that runs ``stage``.

        Raises
        ------
        InputError
            If the site has neither an executor for the stage nor a default.
        """
        found = self.stages.get(stage, self.stages.get("default"))
        if found is None:
            raise InputError(
                f"site {self.name}: stages.{stage}: no executor runs this stage, got nothing; "
                f"write 'default: {next(iter(self.executors))}' under stages"
            )
        return found

    def cores_per_node(self, executor: str) -> int:
        """Return the cores of one node of ``executor``."""
        return self.executors[executor].cores_of_node

    def workers_per_node(self, executor: str) -> int:
        """Return the workers on one node of ``executor``, with auto resolved."""
        found = self.executors[executor]
        if isinstance(found.workers, int):
            return found.workers
        workers = max(1, self.cores_per_node(executor) // found.cores_per_worker)
        return min(workers, found.gpus) if found.gpus else workers
