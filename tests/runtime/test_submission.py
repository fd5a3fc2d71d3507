"""The script of a block on every site that comes with campaign, as Parsl's own providers write it.

``CAMPAIGN_WRITE_GOLDEN=1`` writes them anew: look at the difference before it is committed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.config import load_site, site_names
from campaign.runtime.submission import submission

GOLDEN = Path(__file__).parents[1] / "golden"

BLOCKS = [
    (name, executor)
    for name in site_names()
    for executor, spec in load_site(name).executors.items()
    if spec.provider != "local"
]


def script(site: str, executor: str) -> str:
    """Return a script with this machine's own folder left out."""
    return submission(load_site(site), executor).replace(str(Path(sys.executable).parent), "ENVIRONMENT/bin")


@pytest.mark.parametrize(("site", "executor"), BLOCKS)
def test_the_script_of_a_block_is_as_it_was(site: str, executor: str) -> None:
    path = GOLDEN / f"{site}-{executor}.sh"
    found = script(site, executor)
    if os.environ.get("CAMPAIGN_WRITE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_no_script_is_left_of_a_site_that_is_gone() -> None:
    assert {p.stem for p in GOLDEN.glob("*.sh")} == {f"{site}-{executor}" for site, executor in BLOCKS}


@pytest.mark.parametrize(("site", "executor"), BLOCKS)
def test_a_script_is_one_that_bash_can_read(site: str, executor: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script(site, executor), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_workers_of_a_pbs_block_are_started_by_the_machines_own_mpiexec(tmp_path: Path) -> None:
    """Not by the one that comes with campaign's environment, which stands before it on PATH by then."""
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "mpiexec").write_text('#!/bin/sh\necho "the machine: $*"\n')
    (machine / "mpiexec").chmod(0o755)
    for program in ("sh", "sort", "getconf", "cat", "chmod", "dirname"):
        (machine / program).symlink_to(str(shutil.which(program)))
    scripts = tmp_path / "RUN" / "logs" / "submit_scripts"
    scripts.mkdir(parents=True)
    text = script("polaris", "cpu").replace("ENVIRONMENT/bin", str(Path(sys.executable).parent))
    done = subprocess.run(
        ["/bin/bash"], input=text, capture_output=True, text=True, cwd=tmp_path, env={"PATH": str(machine)}
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("the machine")]
    assert line.startswith("the machine: --cpu-bind none --ppn 1 --depth=64 -n 10 --hostfile ")
    assert [p.name for p in tmp_path.glob("*.nodes")] == []  # in a job this is $HOME
    assert [p.read_text() for p in scripts.glob("*.nodes")] == ["localhost\n"]
