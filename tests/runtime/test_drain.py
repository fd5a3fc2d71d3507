"""The end of a block in which no task starts: learned from how long tasks take, or fixed in the site file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from campaign.config import load_site
from campaign.runtime.parsl import ParslRunner
from campaign.tasks import Task

SITE = """\
site: s
executors: {cpu: {provider: slurm, cores: 4, walltime: 02:00:00, drain: DRAIN}}
stages: {default: cpu}
"""


@pytest.mark.parametrize(("drain", "expected"), [("auto", 7200 - 1800), ("00:10:00", 6600)])
def test_a_drain_that_the_site_file_fixes_stays(tmp_path: Path, drain: str, expected: int) -> None:
    (tmp_path / "s.yaml").write_text(SITE.replace("DRAIN", drain))
    runner: Any = ParslRunner.__new__(ParslRunner)
    runner._site, runner._drain, runner._answered = load_site(str(tmp_path / "s.yaml")), {}, set()
    executor = SimpleNamespace(launch_cmd="process_worker_pool.py --drain_period=6600 -c 1")
    runner._kernel = SimpleNamespace(executors={"cpu": executor})
    record = {"stage": "sample", "state": "done", "seconds": 1500.0}
    runner._learn([(Task("sample", "walker 0", {}), record)])
    assert f"--drain_period={expected} " in executor.launch_cmd
