"""The batch job that the driver itself runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.config import load_site, site_names
from campaign.errors import InputError
from campaign.runtime.driver_job import command_of, cost_of, job_of

SITE = """\
site: s
executors: {cpu: {provider: PROVIDER, nodes: 4, cores: 64, walltime: 00:20:00, options: {account: me}}}
stages: {default: cpu}
"""


def site(folder: Path, text: str) -> object:
    (folder / "s.yaml").write_text(text)
    return load_site(str(folder / "s.yaml"))


def test_without_a_word_on_it_the_job_is_one_core_of_the_default_executor(tmp_path: Path) -> None:
    job = job_of(site(tmp_path, SITE.replace("PROVIDER", "slurm")))  # type: ignore[arg-type]
    assert (job.nodes, job.cores, job.walltime) == (1, 1, "00:20:00")
    assert job.options["account"] == "me"
    assert job.options["exclusive"] is False
    assert "exclusive" not in job_of(site(tmp_path, SITE.replace("PROVIDER", "pbs"))).options  # type: ignore[arg-type]


def test_the_site_file_may_say_what_the_job_asks_for(tmp_path: Path) -> None:
    text = (
        SITE.replace("PROVIDER", "slurm")
        + "driver: {provider: slurm, cores: 2, walltime: 24:00:00, options: {qos: long}}\n"
    )
    job = job_of(site(tmp_path, text))  # type: ignore[arg-type]
    assert (job.cores, job.seconds, job.options["qos"]) == (2, 86400, "long")


def test_a_site_without_a_batch_system_has_no_such_job() -> None:
    with pytest.raises(InputError, match="site local has no batch system"):
        job_of(load_site("local"))


#: A driver that is told to end, takes its time over it, and is killed in the end.
DRIVER = "#!/bin/bash\ntrap 'sleep 0.5; echo ended; kill -9 $$' TERM\necho \"$@\"\n"

#: A program that says how it was called.
SAYS = '#!/bin/sh\necho "$(basename $0) $*"\n'


@pytest.mark.parametrize(
    ("provider", "driver", "expected", "said"),
    [
        ("pbs", "exit 0", 0, []),
        ("slurm", "exit 1", 1, []),
        ("slurm", "kill -9 $$", 137, []),
        ("pbs", "while :; do sleep 0.1; done", 0, ["qsub -W depend=afterany:77 -A me /run/logs/j", "ended"]),
        ("slurm", "while :; do sleep 0.1; done", 0, ["sbatch --dependency=afterany:7 /run/logs/j", "ended"]),
    ],
)
def test_the_job_ends_as_the_driver_does_and_another_one_is_there_before_its_time_is_up(
    tmp_path: Path, provider: str, driver: str, expected: int, said: list[str]
) -> None:
    """However the driver ends when it is told to: the next job was submitted before."""
    spec = job_of(site(tmp_path, SITE.replace("PROVIDER", provider)))  # type: ignore[arg-type]
    for name, text in {"driver": f"{DRIVER}{driver}", "qsub": SAYS, "sbatch": SAYS}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    lines = command_of(spec, ["run", "a file.yaml"], tmp_path)
    assert "sleep 1080 " in lines
    lines = lines.replace("sleep 1080 ", "sleep 1 ").replace(sys.executable, str(tmp_path / "driver"))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SCRIPTS": "/run/logs", "JOBNAME": "j"}
    environment |= {"SLURM_JOB_ID": "7", "PBS_JOBID": "77", "SLURM_NTASKS": "9", "SLURM_CONF": "kept"}
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, env=environment, timeout=20)
    assert done.returncode == expected
    first, *rest = done.stdout.splitlines()
    assert first.endswith("-m campaign.cli run a file.yaml")
    assert rest == said


def test_what_the_driver_takes_is_said() -> None:
    assert cost_of(job_of(load_site("perlmutter"))) == "1 core for 48:00:00, and again for as long until all is done"
    assert cost_of(job_of(load_site("frontier"))).startswith("a whole node for 24:00:00")
    with pytest.raises(InputError, match="site stampede3 lets no job drive a campaign"):
        job_of(load_site("stampede3"))


def test_the_sites_give_the_driver_more_time_than_a_block_has() -> None:
    """What it asked for ends with it: one of the length of a block would spend its time in the queue."""
    for name in site_names():
        found = load_site(name)
        if found.driver is not None and found.driver.provider != "local":
            longest = max(spec.seconds for spec in found.executors.values())
            assert found.driver.seconds >= 4 * longest or name == "aurora", name  # prod gives one node no more
