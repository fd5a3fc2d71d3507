"""The batch job that the driver itself runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.config import load_site
from campaign.errors import InputError
from campaign.runtime.driver_job import command_of, job_of

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


@pytest.mark.parametrize(("exit_code", "expected"), [(0, 0), (1, 1), (124, 42)])
def test_the_job_ends_as_the_driver_does_and_follows_itself_when_its_time_is_up(
    tmp_path: Path, exit_code: int, expected: int
) -> None:
    """``timeout`` says 124 where it ended the driver; it and ``qsub`` are stand-ins that tell how they were called."""
    spec = job_of(site(tmp_path, SITE.replace("PROVIDER", "pbs")))  # type: ignore[arg-type]
    for name, code in {"timeout": exit_code, "qsub": 42}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\nshift 0; echo "{name} $*"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    lines = command_of(spec, ["run", "a file.yaml"], tmp_path)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SCRIPTS": "/run/logs", "JOBNAME": "j"}
    environment |= {"SLURM_NTASKS": "9", "SLURM_CONF": "kept"}
    done = subprocess.run(["bash", "-c", f"{lines}"], capture_output=True, text=True, env=environment)
    assert done.returncode == expected
    first, *rest = done.stdout.splitlines()
    assert first == f"timeout --signal=TERM 1080 {sys.executable} -P -m campaign.cli run a file.yaml"
    assert rest == (["qsub -A me /run/logs/j"] if exit_code == 124 else [])
