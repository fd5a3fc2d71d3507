"""Files that lie where a program runs are data: no Python that campaign starts takes them for modules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from campaign.interpreter import module_command, safe_environment

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 1, frames: 4, segment: 2}]
select: {method: random, size: 2}
"""

#: Modules that Python's own start, campaign, Parsl and its workers' start import.
NAMES = ("random", "multiprocessing", "parsl", "yaml", "zmq", "queue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a campaign and with modules of well-known names, which write their own into ``imported``."""
    (tmp_path / "toy.yaml").write_text(TOY)
    for name in NAMES:
        place = tmp_path / name
        place.mkdir()
        text = f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(7)\n"
        (place / "__init__.py").write_text(text)
    return tmp_path


def test_a_campaign_runs_in_a_folder_of_foreign_modules(folder: Path) -> None:
    """Its driver, Parsl's interchange, the workers and those that they spawn."""
    command = module_command("campaign.cli", "run", "toy.yaml", "--root", "runs")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
        said = done.stderr
    except subprocess.TimeoutExpired:
        said = "no end"
    assert not (folder / "imported").exists(), (folder / "imported").read_text()
    assert "4 frames sampled" in done.stdout, said


def test_an_entry_of_pythonpath_that_is_the_working_directory_goes(folder: Path) -> None:
    environment = safe_environment({**os.environ, "PYTHONPATH": f":{os.environ.get('PYTHONPATH', '')}:.:"})
    for command in (module_command("campaign.cli", "--help"), [module_command("x")[0], "-m", "campaign.cli", "--help"]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert not (folder / "imported").exists()
    assert "PYTHONPATH" not in safe_environment({"PYTHONPATH": ":."})
