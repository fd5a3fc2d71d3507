"""What a campaign costs its driver as it grows: tasks that do nothing, then 10^6 frames by an engine that does nothing.

python benchmarks/scale.py              1,000 to 100,000 no-op tasks; 10^6 frames in 1,000 and in 10,000 tasks
python benchmarks/scale.py --quick      a hundredth of it
python benchmarks/scale.py --most       also 10^6 frames in 100,000 tasks, 4 million files for a while, not flushed

Every step is a process of its own, as a user's commands are: run, the same command again, status, report; its start and
end are in its seconds. The driver does the tasks itself (``--inline``): the seconds of their own records, which engine
and store took, are left out of ``driver ms a task``, and so is packing. CPU and peak memory are of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import report

ASKED = {"ms a task": 1.0, "MB": 500.0, "resume s": 5.0}

#: One campaign file for all: of a no-op campaign only the name is used.
FILE = """
campaign: scale
seed: 1
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.3, supercell: [1, 1, 1]}}
sample: [{{method: fake, walkers: {walkers}, frames: {frames}, segment: {segment}, displacement: 0.1}}]
select: {{method: random, size: 100}}
"""

#: Atoms of its cell.
ATOMS = 4

#: Tasks of frames beyond which nothing is flushed to the disk: that is a worker's time, and would take an hour.
FLUSHED = 10_000

#: Walkers of the campaign of frames, at most.
WALKERS = 100


class Noop:
    """A stage of tasks that do nothing."""

    name = "noop"

    def __init__(self, count: int) -> None:
        self._count = self._left = count
        self._planned = False

    def plan(self, board: Any) -> Iterator[Any]:
        """Yield every task, once."""
        from campaign.tasks import Task

        if not self._planned:
            self._planned = True
            for k in range(self._count):
                yield Task("noop", f"noop {k}", {"number": k})

    def commit(self, record: Any, board: Any) -> None:
        """Count."""
        self._left -= 1

    def total(self, board: Any) -> int:
        """Return the number of tasks."""
        return self._count

    def finished(self, board: Any) -> bool:
        """Tell whether all are done."""
        return self._left == 0


def nothing(task: Any, before: Any, folder: Path) -> Any:
    """Stand in for the toy crystal's own segments: frames that are no crystal's, and cost no time."""
    import numpy as np

    from campaign.frames import Frames
    from campaign.tasks import Outcome

    n, first = task.params["frames"], task.params["first"]
    frames = Frames.build(
        np.full(ATOMS, 18),
        np.random.default_rng(first).normal(size=(n, ATOMS, 3)),
        np.eye(3) * 5.3,
        energy=np.zeros(n),
        forces=np.zeros((n, ATOMS, 3)),
        stress=np.zeros((n, 3, 3)),
        task=task.number,
        walker=task.params["walker"][1],
        step=first + 1 + np.arange(n),
        temperature=300.0,
    )
    return Outcome({"frames": n, "temperature": 300.0}, dict(frames.arrays()), {"count": np.array([first + n])})


# -- one step, in a process of its own ---------------------------------------------------------------------------------


def step(what: str, folder: Path, noop: int) -> dict[str, float]:
    """Do one of a user's commands on the campaign in ``folder``; return what it cost."""
    from campaign import pipeline
    from campaign.config import load_campaign, load_site
    from campaign.engines import fake
    from campaign.store import groups

    found: dict[str, float] = {}
    if noop:
        pipeline.stages_of = lambda *_, **__: [Noop(noop)]  # type: ignore[assignment]
    fake.sample = nothing
    if (folder / "not flushed").exists():
        groups.flush = lambda path: None
    run = folder / "run"
    if what == "run":
        pack = pipeline._pack

        def counted(flow: Any, directory: Any) -> None:
            found["files"] = max(found.get("files", 0), _files(run))
            start = time.perf_counter()
            pack(flow, directory)
            found["packing"] = found.get("packing", 0.0) + time.perf_counter() - start

        pipeline._pack = counted
        status = pipeline.run(
            load_campaign(folder / "scale.yaml"), load_site("local"), run, pipeline.Options(inline=True)
        )
        found["frames"] = status["frames"]
    elif what == "status":
        found["frames"] = pipeline.status_of(run)["frames"]
    else:
        pipeline.report_of(run)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1024}


def _files(run: Path) -> float:
    """Return the files and folders of a run; small groups are all alike, so that a few of each kind tell of all."""
    total = float(sum(_entries(path) for path in run.iterdir() if path.name != "run.zarr"))
    for kind in (run / "run.zarr").glob("*/"):
        members = [Path(entry.path) for entry in os.scandir(kind)]
        total += len(members) / max(1, len(members[:50])) * sum(_entries(path) for path in members[:50])
    return total


def _entries(path: Path) -> int:
    return 1 + (sum(len(folders) + len(files) for _, folders, files in os.walk(path)) if path.is_dir() else 0)


# -- what is asked of each ---------------------------------------------------------------------------------------------


def measure(what: str, folder: Path, noop: int) -> dict[str, float]:
    """Do a step in a new process and return its figures, with the seconds of the whole process."""
    command = [sys.executable, __file__, "--step", what, "--noop", str(noop), "--folder", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} of {folder.name} failed: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.perf_counter() - start}


def campaign(folder: Path, tasks: int, frames: int = 0) -> dict[str, Any]:
    """Run a campaign, then everything that one asks of a finished one; return its row of the table."""
    from campaign.store.ledger import read_ledger

    folder.mkdir()
    walkers = max(1, min(WALKERS, tasks // 10))
    text = FILE.format(walkers=walkers, frames=max(1, frames // walkers), segment=max(1, frames // tasks))
    (folder / "scale.yaml").write_text(text)
    noop = 0 if frames else tasks
    if frames and tasks > FLUSHED:
        (folder / "not flushed").touch()
    first = measure("run", folder, noop)
    again, status, page = (measure(what, folder, noop) for what in ("run", "status", "report"))
    records = read_ledger(folder / "run" / "ledger.jsonl")
    if len(records) < tasks or len({r["task"] for r in records}) != len(records):
        raise SystemExit(f"The ledger has {len(records)} lines for {tasks} tasks.")
    if frames and not first["frames"] == again["frames"] == status["frames"] == frames:
        raise SystemExit(f"{status['frames']} frames are there, not {frames}.")
    size = sum(p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file() and p.name != "ledger.jsonl")
    work = sum(r["seconds"] for r in records) + first["packing"] if frames else 0.0
    return {
        "tasks": tasks,
        "frames": frames,
        "run s": first["seconds"],
        "driver ms a task": 1000 * (first["seconds"] - work) / tasks,
        "CPU s a 1,000": 1000 * first["cpu"] / tasks,
        "packing s": first["packing"] if frames else "",
        "peak MB": max(m["mb"] for m in (first, again, status, page)),
        "ledger MB": (folder / "run" / "ledger.jsonl").stat().st_size / 1e6,
        "files a 1,000 in the run": first["files"] / tasks * 1000,
        "and packed": _files(folder / "run") / tasks * 1000,
        "store MB": size / 1e6,
        "resume s": again["seconds"],
        "resume CPU s": again["cpu"],
        "status s": status["seconds"],
        "report s": page["seconds"],
    }


def main() -> None:
    """Run the benchmark, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it, within a minute")
    parser.add_argument("--most", action="store_true", help="10^6 frames in 100,000 tasks too")
    parser.add_argument("--step", choices=("run", "status", "report"), help=argparse.SUPPRESS)
    parser.add_argument("--noop", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.folder, options.noop)))
        return
    scale = 100 if options.quick else 1
    plans = [(tasks // scale, 0) for tasks in (1_000, 10_000, 100_000) if tasks >= 10 * scale]
    plans += [(tasks // scale, 10**6 // scale) for tasks in (1_000, 10_000, 100_000)[: 2 + options.most]]
    with tempfile.TemporaryDirectory(prefix="campaign-scale-") as name:
        rows = []
        for k, (tasks, frames) in enumerate(plans):
            rows.append(campaign(Path(name) / str(k), tasks, frames))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    largest = max((row for row in rows if not row["frames"]), key=lambda row: row["tasks"])
    figures = {
        "ms a task": largest["driver ms a task"],
        "MB": max(row["peak MB"] for row in rows),
        "resume s": largest["resume s"],
    }
    report("scale", rows, figures, ASKED, ok=all(figures[k] <= limit for k, limit in ASKED.items()))


if __name__ == "__main__":
    main()
