"""The driver as a batch job of its own: ``campaign run --detach``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from campaign.config import Executor, Site
from campaign.errors import InputError
from campaign.interpreter import module_command

#: Seconds before the end of its job at which the driver is told to end, and its next job is submitted; at most a
#: quarter of the job.
WARNING = 120


def job_of(site: Site) -> Executor:
    """Return what the driver's job asks for: ``driver`` of the site file, or one core as the default stage has it.

    Raises
    ------
    InputError
        The site has no batch system.
    """
    found: Executor | None = site.driver
    if found is None:
        usual = site.executors[site.stages.get("default", next(iter(site.stages.values())))]
        alone = {
            "nodes": 1,
            "cores": 1,
            "workers": "auto",
            "cores_per_worker": 1,
            "nodes_per_worker": 0,
            "gpus": 0,
            "start": (),
        }
        options = {k: v for k, v in usual.options.items() if k not in ("gpus_per_node", "gres", "mem_per_node")}
        if usual.provider == "slurm":
            options["exclusive"] = False
        found = usual.model_copy(update={**alone, "options": options})
    if found.provider == "local":
        why = "lets no job drive a campaign (driver: local)" if site.driver else "has no batch system"
        raise InputError(f"--detach: site {site.name} {why}; leave it out, and start with: nohup campaign run ... &")
    if found.provider == "slurm":  # the jobs that follow one another write to the same file
        append = "\n".join(
            filter(None, [str(found.options.get("scheduler_options", "")), "#SBATCH --open-mode=append"])
        )
        found = found.model_copy(update={"options": {**found.options, "scheduler_options": append}})
    return found


def cost_of(spec: Executor) -> str:
    """Return what the driver's job takes, in words."""
    part = spec.provider == "pbs" or not spec.options.get("exclusive", True)
    cores = f"{spec.cores_of_node} core{'s' if spec.cores_of_node > 1 else ''}"
    return f"{cores if part else 'a whole node'} for {spec.walltime}, and again for as long until all is done"


def command_of(spec: Executor, words: Sequence[str], folder: Path) -> str:
    """Return the lines of the driver's job: run the campaign, and go on in another job where the time is up.

    That other job is submitted before the driver is told to end, and waits for the end of this one: however long the
    driver then takes, and even if it is killed, the campaign goes on. Not earlier: until then ``scancel`` or ``qdel``
    of this job ends the campaign, and a job that waits for another one gains no priority by its age.

    Parameters
    ----------
    spec
        The job.
    words
        The arguments of ``campaign``.
    folder
        Where the command was given.
    """
    seconds = max(1, spec.seconds - min(WARNING, spec.seconds // 4))
    campaign = shlex.join(module_command("campaign.cli", *words))
    job, again = "$PBS_JOBID", "qsub -W depend=afterany:"
    if spec.provider == "slurm":
        job, again = "$SLURM_JOB_ID", "sbatch --dependency=afterany:"
    options = "".join(
        f" {flag} {shlex.quote(str(spec.options[key]))}"
        for key, flag in (("queue", "-q"), ("account", "-A"))
        if spec.provider == "pbs" and key in spec.options
    )
    return "\n".join(
        [
            f"cd {shlex.quote(str(folder))}",
            f"JOB={job}",
            # a job that this one submits is not a part of it
            'for name in ${!SLURM_@}; do [ "$name" = SLURM_CONF ] || unset "$name"; done',
            f"{campaign} &",
            "DRIVER=$!",
            f'next() {{ {again}"$JOB"{options} "$SCRIPTS/$JOBNAME"; }}',
            f"(sleep {seconds} > /dev/null 2>&1 && {{ next || {{ sleep 20; next; }}; kill -TERM $DRIVER; }}) &",
            "WATCH=$!",
            "wait $DRIVER",
            "code=$?",
            'if kill $WATCH 2> /dev/null; then exit "$code"; fi',  # its time was not up
        ]
    )


def submit_driver(site: Site, run: Path, words: Sequence[str], folder: Path) -> str:
    """Submit the driver's job and return its id in the batch system.

    Parameters
    ----------
    site
        The machine.
    run
        The run directory; the job's script and output go to ``logs/driver`` in it.
    words, folder
        As in ``command_of``.

    Raises
    ------
    InputError
        The batch system refused it.
    """
    from parsl.launchers import SimpleLauncher
    from parsl.providers.errors import SubmitException

    from campaign.runtime.providers import provider

    spec = job_of(site)
    scripts = run.resolve() / "logs" / "driver"
    scripts.mkdir(parents=True, exist_ok=True)
    lines = [*site.environment, f"export SCRIPTS={shlex.quote(str(scripts))}"]
    parsl = provider(spec, "\n".join(lines))
    parsl.launcher = SimpleLauncher()
    parsl.script_dir = str(scripts)
    try:
        return str(parsl.submit(command_of(spec, words, folder), 1, "campaign.driver"))
    except SubmitException as error:
        said = (error.stderr or error.stdout or str(error)).strip().splitlines()
        raise InputError(
            f"site {site.name}: the batch system refused the driver's job ({said[-1] if said else error}); correct "
            "driver in the site file"
        ) from error
