"""How full a campaign keeps its allocations, on a real Slurm of four virtual nodes of two cores.

    python benchmarks/allocations.py packing     eight LAMMPS tasks of two ranks each on the four nodes
    python benchmarks/allocations.py walltime    ten minutes of LAMMPS in allocations of two minutes
    python benchmarks/allocations.py waiting     the same of tasks that wait: no matter what else the host does
    python benchmarks/allocations.py             all three

All is counted from the ledger, while work remains: from the start of the first task to the start of the last one.
Cores are those of the virtual nodes; the host has fewer, so tasks take longer than they would, and that is all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import report
from local_slurm import CORES, NODES, Cluster, cluster, write_site
from runs import Table, environment, nickel

from campaign.store.ledger import read_ledger

#: 4 s a segment, whatever else the host does: what is measured is when tasks start, and not how fast they are.
WAITING = """
campaign: waiting
seed: 4
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}}
sample: [{{method: fake, walkers: 8, frames: {frames}, segment: 5, delay: 4.0}}]
"""

#: What is asked; with ``waiting`` the same as with LAMMPS.
ASKED = {
    "packing: utilisation of the cores while work remains": "at least 0.9",
    "walltime: lost in all, share": "under 0.1",
    "waiting: lost in all, share": "under 0.1",
}


@dataclass(frozen=True)
class Use:
    """Core seconds while work remained.

    Attributes
    ----------
    seconds
        From the start of the first task to the start of the last one.
    idle
        Of cores at no task then; where more were held than there should be, they are not set against it.
    redone
        Of attempts that did not end well.
    done
        Of all tasks.
    """

    seconds: float
    idle: float
    redone: float
    done: float


def use(records: Sequence[Any], cores: int, ranks: int = 1) -> Use:
    """Return how a pool of ``cores`` was used by tasks of ``ranks`` cores each."""
    good = [r for r in records if r["state"] == "done"]
    steps = sorted([(r["start"], ranks) for r in good] + [(r["start"] + r["seconds"], -ranks) for r in good])
    last = max(r["start"] for r in good)
    idle, running, since = 0.0, 0, steps[0][0]
    for moment, change in steps:
        idle += max(0.0, min(moment, last) - since) * max(0, cores - running)
        since, running = min(moment, last), running + change
    return Use(
        last - steps[0][0],
        idle,
        ranks * sum(r["seconds"] for r in records if r["state"] != "done"),
        ranks * sum(r["seconds"] for r in good),
    )


class Meter(threading.Thread):
    """Counts the core seconds that Slurm's jobs hold, once a second, until it is stopped."""

    def __init__(self, slurm: Cluster) -> None:
        super().__init__(daemon=True)
        self.slurm, self.held, self.jobs, self.over = slurm, 0.0, set[str](), threading.Event()

    def run(self) -> None:
        before = time.time()
        while not self.over.wait(1.0):
            jobs = [job for job, (_, node) in self.slurm.jobs().items() if node]
            now = time.time()
            self.held += (now - before) * CORES * len(jobs)
            self.jobs |= set(jobs)
            before = now


def campaign(file: Path, site: Path, slurm: Cluster) -> tuple[list[Any], float, Meter]:
    """Run a campaign; return its ledger, the seconds of the command, and what was held."""
    command = [sys.executable, "-m", "campaign.cli", "run", str(file), "--site", str(site)]
    command += ["--root", str(file.parent / "runs")]
    log, meter, began = file.with_suffix(".log"), Meter(slurm), time.time()
    meter.start()
    with log.open("wb") as out:
        code = subprocess.run(command, stdout=out, stderr=out, env=environment(), check=False).returncode
    wall = time.time() - began
    meter.over.set()
    meter.join()
    if code != 0:
        raise SystemExit(f"{file.name} ended with {code}:\n{log.read_text()[-3000:]}")
    return list(read_ledger(file.parent / "runs" / file.stem / "ledger.jsonl")), wall, meter


def packing(table: Table, folder: Path, slurm: Cluster, quick: bool) -> None:
    """Eight tasks of two ranks on four workers of two cores."""
    steps = 20_000 if quick else 100_000
    sample = {"method": "npt", "temperature": [300, 900], "walkers": 8, "ranks": 2, "every": 200, "steps": steps}
    file = nickel(folder, "packing", 3, {**sample, "segment": steps // 200})
    site = write_site(folder / "packing-site.yaml", cores_per_worker=2, walltime="00:30:00")
    records, wall, _ = campaign(file, site, slurm)
    found = use(records, CORES * len(NODES), ranks=2)
    table.add("packing: utilisation of the cores while work remains", 1 - found.idle / (CORES * 4 * found.seconds))
    table.add("packing: workers", len({r["pid"] for r in records}))
    table.add("packing: seconds of a task, mean", found.done / 2 / len(records))
    table.add("packing: command, s", wall)
    page = (file.parent / "runs" / file.stem / "report.html").read_text()
    table.add("packing: Gantt figure in the report", float('data-figure="gantt"' in page))


def walltime(table: Table, folder: Path, slurm: Cluster, quick: bool) -> None:
    """Ten minutes of LAMMPS on two cores, one allocation of two minutes at a time, about 8 s a segment."""
    sample = {"method": "npt", "temperature": [300, 900], "walkers": 8, "every": 200, "segment": 200}
    file = nickel(folder, "walltime", 3, {**sample, "steps": 40_000 * (6 if quick else 19)})
    _in_pieces("walltime", file, table, slurm)


def waiting(table: Table, folder: Path, slurm: Cluster, quick: bool) -> None:
    """Ten minutes of waiting on two cores, one allocation of two minutes at a time."""
    file = folder / "waiting.yaml"
    file.write_text(WAITING.format(frames=5 * (12 if quick else 38)))
    _in_pieces("waiting", file, table, slurm)


def _in_pieces(name: str, file: Path, table: Table, slurm: Cluster) -> None:
    """Run a campaign in one allocation of two minutes after another and say what was lost."""
    site = write_site(file.with_suffix(".site.yaml"), max_blocks=1, walltime="00:02:00")
    records, wall, meter = campaign(file, site, slurm)
    found = use(records, CORES)
    table.add(f"{name}: minutes of work on two cores", found.done / CORES / 60)
    table.add(f"{name}: minutes of the command", wall / 60)
    table.add(f"{name}: allocations", len(meter.jobs))
    table.add(f"{name}: tasks", len({r["task"] for r in records}))
    table.add(f"{name}: longest task, s", max(r["seconds"] for r in records))
    table.add(f"{name}: finished tasks redone", _again(records))
    table.add(f"{name}: lost, work redone, share of the tasks' seconds", found.redone / found.done)
    table.add(f"{name}: lost, cores idle while work remained, share", found.idle / found.done)
    table.add(f"{name}: lost in all, share", (found.redone + found.idle) / found.done)
    table.add(f"{name}: core seconds held from Slurm over those of the tasks", meter.held / found.done)


def _again(records: Sequence[Any]) -> int:
    """Return how many tasks were finished more than once."""
    return sum(n - 1 for n in Counter(r["task"] for r in records if r["state"] == "done").values())


PARTS = {"packing": packing, "walltime": walltime, "waiting": waiting}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=tuple(PARTS))
    parser.add_argument("--quick", action="store_true", help="less work: a few minutes")
    parser.add_argument("--keep", action="store_true", help="keep the run directories")
    options = parser.parse_args()
    table = Table([], {})
    folder = Path(tempfile.mkdtemp(prefix="campaign-allocations-"))
    with cluster() as slurm:
        os.environ["SLURM_CONF"] = slurm.configuration
        for name, part in PARTS.items():
            if options.what in (None, name):
                part(table, folder, slurm, options.quick)
    if options.keep:
        print(json.dumps({"kept": str(folder)}))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    figures = table.figures
    ok = [figures.get("packing: utilisation of the cores while work remains", 1.0) >= 0.9]
    for name in ("walltime", "waiting"):
        ok.append(figures.get(f"{name}: lost in all, share", 0.0) < 0.1)
        ok.append(figures.get(f"{name}: finished tasks redone", 0.0) == 0)
    report("allocations", table.rows, figures, ASKED, ok=all(ok))


if __name__ == "__main__":
    main()
