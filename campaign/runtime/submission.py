"""The submission script of a site's block, as Parsl's own provider writes it, with the scheduler left out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign.config import Site


def submission(site: Site, name: str) -> str:
    """Return the script that asks for a block of executor ``name``, after the line that submits it.

    Ports, addresses and folders that are known only in a run are written in capitals.
    """
    found: list[str] = []

    def take(command: str, script: Path) -> None:
        place = str(script.parents[3])
        text = f"# {' '.join(command.split())}\n{script.read_text()}".replace(str(script), "SCRIPT")
        found.append(text.replace(f"{place}/RUN", "RUN"))

    submit(site, name, take)
    return re.sub(r"campaign\.[\w.-]+\.\d+\.\d+", f"campaign.{name}", found[0]).strip() + "\n"


def submit(site: Site, name: str, take: Callable[[str, Path], Any]) -> None:
    """Let Parsl write a block's script; hand ``take`` the command that would submit it, and the script."""
    from campaign.runtime.parsl import executor

    def answer(command: str) -> tuple[int, str, str]:
        words = command.split()
        if words[0] in ("sbatch", "qsub"):
            take(command, Path(words[-1]))
        return 0, "Submitted batch job 1" if words[0] == "sbatch" else "1", ""

    parsl = executor(site, name, "TOKEN", answer)
    with tempfile.TemporaryDirectory() as folder:
        scripts = Path(folder) / "RUN" / "logs" / "submit_scripts"
        scripts.mkdir(parents=True)
        parsl.run_dir = str(scripts.parent)
        parsl.worker_port = "PORT"
        parsl.cert_dir = parsl.logconf_path = f"{scripts.parent}/{name}"
        parsl.initialize_scaling()
        parsl.provider.script_dir = str(scripts)
        parsl.provider.submit(parsl.launch_cmd.format(block_id="BLOCK"), 1, f"campaign.{name}")
