"""Faults of every kind on a real Slurm, for half an hour: is anything lost, doubled, redone or different?

A small real campaign (LAMMPS, RND, SchNetPack) runs through ``site_configs/slurm.yaml`` on four virtual nodes, once
undisturbed, then again and again under faults. Each run under faults is then compared with the first one, bit by bit.

    python benchmarks/chaos.py                             200 faults or 30 minutes, whatever comes first
    python benchmarks/chaos.py --faults 40 --minutes 6
    python benchmarks/chaos.py --quick                     each kind once: a few minutes

A fault is one of these: a worker killed; a node killed (its slurmd and all that runs there) and returned some seconds
later; a job cancelled; slurmctld stopped and started up to a minute later; the interchange killed; submissions refused
for a while, with a job cancelled so that one is made; the driver killed, and the same command given again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from common import report
from kill import POTENTIAL, differences, family, lines, redone, start
from local_slurm import Cluster, cluster, write_site
from runs import environment, say

from campaign.pipeline import survey
from campaign.store.ledger import read_ledger

CAMPAIGN = """
campaign: kill
seed: 3
system:
  structure: {{prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}}
  potential: {{lammps: argon.lmp}}
sample:
  - {{method: npt, temperature: [40, 70], walkers: 6, steps: {steps}, timestep: 0.004, every: 200, segment: 80}}
select: {{method: rnd_stream, size: 12, representation: {{model: schnet, features: 16, interactions: 1, cutoff: 5.0}}}}
label: {{engine: lammps}}
train: {{model: schnet, members: 2, features: 16, interactions: 1, cutoff: 5.0, epochs: 40}}
validate:
  - {{method: errors, held_out: 20, against: [random], threshold: {{forces: 1.0}}}}
  - {{method: stability, ensemble: nvt, temperature: 80, time: 3, timestep: 0.004}}
  - {{method: rdf, cutoff: 5.0, threshold: 5.0}}
"""

#: How often a worker that is at a task is looked for, and a driver that has begun; else any.
AT_WORK = 0.8
#: How often a campaign that ended by itself with something missing is started again before that is the result.
ENDS = 3


class Storm:
    """Does the faults to one run of the campaign, and undoes those that end by themselves.

    Parameters
    ----------
    cluster
        The Slurm.
    folder
        Of the campaign file and the logs.
    rng
        Decides what is hit, and for how long.
    """

    def __init__(self, cluster: Cluster, folder: Path, rng: random.Random) -> None:
        self.cluster, self.folder, self.rng = cluster, folder, rng
        self.done: Counter[str] = Counter()
        self.stopped: list[str] = []  # the last words of drivers that gave up
        self._mends: list[tuple[float, Callable[[], None]]] = []
        self._deck: list[str] = []
        self._down: set[str] = set()  # "scheduler", "partition": what is away now

    def begin(self, root: str) -> None:
        """Start the campaign of this root."""
        self.root, self.run, self._seen = root, self.folder / root / "kill", -1
        self._start()

    def _start(self) -> None:
        self.driver: subprocess.Popen[bytes] = start(self.folder, self.root, self.folder / f"{self.root}.log")

    def goes_on(self) -> bool:
        """Tell whether the campaign is not complete yet; one that gave up is noted, and started again."""
        code = self.driver.poll()
        if code is None:
            return True
        if code == 0:
            return False
        self.stopped.append((self.folder / f"{self.root}.log").read_text()[-1500:])
        say(f"{self.root} ended with {code}")
        if len(self.stopped) > ENDS:
            raise SystemExit(self.stopped[-1])
        self._start()
        return True

    def strike(self) -> bool:
        """Do a fault, of a kind whose turn it is and that is possible now; tell whether there was one.

        Not before something came to its end since the one before: where nothing can, nothing can go on.
        """
        if not self._moved():
            return False
        if not self._deck:
            self._deck = self.rng.sample(list(KINDS), len(KINDS))
        for kind in list(self._deck):
            if KINDS[kind](self):
                self._deck.remove(kind)
                self.done[kind] += 1
                self._seen = self._finished()
                now = time.strftime("%H:%M:%S")
                say(f"{now} {sum(self.done.values())}: {kind}; {lines(self.run)} lines in the ledger of {self.root}")
                return True
        return False

    def mend(self, all_of_it: bool = False) -> None:
        """Undo what is due, or all of it."""
        due = [m for m in self._mends if all_of_it or m[0] <= time.time()]
        self._mends = [m for m in self._mends if m not in due]
        for _, undo in sorted(due, key=lambda m: m[1] != self._start_scheduler):  # the others need it
            undo()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self._mends.append((time.time() + seconds, undo))

    def _moved(self) -> bool:
        """Tell whether a task came to its end since the last fault."""
        return self._finished() > self._seen

    def _finished(self) -> int:
        ledger = self.run / "ledger.jsonl"
        return ledger.read_bytes().count(b'"state":"done"') if ledger.exists() else -1

    # -- the kinds -------------------------------------------------------------------------------------------------

    def worker(self) -> bool:
        """Kill a worker, most often one that is at a task."""
        ours = {p.pid: p for p in family(self.run)}
        ledger = self.run / "ledger.jsonl"
        known = ledger.read_text() if ledger.exists() else ""
        workers, busy = [], []
        for mark in (self.run / "logs" / "workers").glob("*"):
            process = ours.get(int(mark.name.split()[-1]))
            if process is not None:
                workers.append(process)
                if f'"task":"{mark.read_text()[:16]}"' not in known:
                    busy.append(process)
        if not workers or (not busy and self.rng.random() < AT_WORK):
            return False
        return _kill(self.rng.choice(busy or workers))

    def node(self) -> bool:
        """Kill a node that is in use, at most two at once; it is back after some seconds."""
        if self._down or len(self.cluster.away()) > 1:
            return False
        nodes = [n for state, n in self.cluster.jobs().values() if state == "RUNNING" and n not in self.cluster.away()]
        if not nodes:
            return False
        name = self.rng.choice(nodes)
        self.cluster.kill_node(name)

        def back() -> None:
            if "scheduler" in self._down:
                self._later(2.0, back)
            else:
                self.cluster.return_node(name)

        self._later(self.rng.uniform(2.0, 15.0), back)
        return True

    def job(self) -> bool:
        """Cancel a job that runs."""
        jobs = [] if "scheduler" in self._down else [j for j, (s, _) in self.cluster.jobs().items() if s == "RUNNING"]
        if jobs:
            self.cluster.call("scancel", self.rng.choice(jobs))
        return bool(jobs)

    def scheduler(self) -> bool:
        """Stop slurmctld for up to a minute, most often for less."""
        if self._down:
            return False
        self.cluster.stop("slurmctld")
        self._down.add("scheduler")
        longest = 60.0 if self.rng.random() < 0.25 else 20.0
        self._later(self.rng.uniform(5.0, longest), self._start_scheduler)
        return True

    def _start_scheduler(self) -> None:
        self.cluster.start_controller()
        up = time.time() + 20
        while not self.cluster.states() and time.time() < up:
            time.sleep(0.2)
        self._down.discard("scheduler")

    def administer(self) -> None:
        """Return nodes that Slurm has set aside, as an administrator would (its jobs' processes ended too late)."""
        if "scheduler" not in self._down:
            for name, state in self.cluster.states().items():
                if state.startswith("drain"):
                    self.cluster.call("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def interchange(self) -> bool:
        """Kill Parsl's interchange."""
        found = [p for p in family(self.run) if "interchange" in " ".join(_command(p))]
        return bool(found) and _kill(self.rng.choice(found))

    def refused(self) -> bool:
        """Have submissions refused for some seconds, and cancel a job so that one is made."""
        if self._down or not self.job():
            return False
        self.cluster.call("scontrol", "update", "partition=work", "state=inactive")
        self._down.add("partition")

        def back() -> None:
            self.cluster.call("scontrol", "update", "partition=work", "state=up")
            self._down.discard("partition")

        self._later(self.rng.uniform(8.0, 20.0), back)
        return True

    def kill_driver(self) -> bool:
        """Kill the driver, and give the same command again."""
        try:
            begun = json.loads((self.run / "driver.lock").read_text())["pid"] == self.driver.pid
        except (OSError, ValueError, KeyError):
            begun = False
        if self.driver.poll() is not None or (not begun and self.rng.random() < AT_WORK):
            return False
        self.driver.kill()
        self.driver.wait()
        self._start()
        return True


#: What each kind of fault is called, and what does it.
KINDS: dict[str, Callable[[Storm], bool]] = {
    "worker killed": Storm.worker,
    "node killed and returned": Storm.node,
    "job cancelled": Storm.job,
    "scheduler down": Storm.scheduler,
    "interchange killed": Storm.interchange,
    "submission refused": Storm.refused,
    "driver killed and resumed": Storm.kill_driver,
}


def _kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def disturbed(storm: Storm, root: str, faults: int, end: float, gap: float) -> None:
    """Run the campaign to its end, with faults about every ``gap`` seconds until ``end`` or until there were enough."""
    storm.begin(root)
    due = looked = time.time() + gap
    while storm.goes_on():
        storm.mend()
        if time.time() > looked:
            looked = time.time() + 10.0
            storm.administer()
        over = time.time() > end or sum(storm.done.values()) >= faults
        if not over and time.time() >= due and storm.strike():
            due = time.time() + storm.rng.uniform(0.5, 1.5) * gap
        time.sleep(0.2)
    storm.mend(all_of_it=True)


def refusals(run: Path) -> int:
    """Return how many submissions the batch system refused."""
    return (run / "logs" / "parsl.log").read_text().count("Submit command failed")


def undisturbed(folder: Path) -> tuple[Path, float]:
    """Run the campaign without faults, unless that was done before; return its run directory and its seconds."""
    note, began = folder / "whole.seconds", time.time()
    if not note.exists():
        if start(folder, "whole", folder / "whole.log").wait() != 0:
            raise SystemExit((folder / "whole.log").read_text()[-3000:])
        note.write_text(f"{time.time() - began:.1f}")
    return folder / "whole" / "kill", float(note.read_text())


def rage(storm: Storm, reference: Path, faults: int, minutes: float, whole: float) -> tuple[list[Path], Counter[str]]:
    """Run the campaign under faults, again and again until there were enough.

    Parameters
    ----------
    storm
        Does the faults.
    reference
        The undisturbed run.
    faults, minutes
        After so many, or so long, there are no more.
    whole
        Seconds that the undisturbed run took.

    Returns
    -------
    list, Counter
        The run directories, and what was found in them that is not as in the undisturbed one.
    """
    runs: list[Path] = []
    found: Counter[str] = Counter()
    began = time.time()
    # so many that the campaign is hit ten times or more, and not so many that no task comes to its end
    end, gap = began + 60 * minutes, max(min(8.0, 54 * minutes / faults), whole / 10)
    while sum(storm.done.values()) < faults and time.time() < end:
        storm.cluster.reset()
        root = f"disturbed-{os.getpid()}-{len(runs)}"
        try:
            disturbed(storm, root, faults, end, gap)
        finally:
            storm.driver.kill()
        runs.append(storm.run)
        found.update(differences(reference, storm.run))
        found["redone"] += redone(storm.run)
        say(f"{root}: complete after {time.time() - began:.0f} s; {dict(found)}")
    found["campaigns that gave up"] = len(storm.stopped)
    return runs, found


def options_of() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="no fault after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="each kind once")
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep; an undisturbed run there is taken")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    options = options_of()
    faults = len(KINDS) if options.quick else options.faults
    folder = options.keep or Path(tempfile.mkdtemp(prefix="campaign-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kill.yaml").write_text(CAMPAIGN.format(steps=64000 if options.quick else 128000))
    (folder / "argon.lmp").write_text(POTENTIAL)
    write_site(folder / "site.yaml", workers=1, walltime="00:05:00")
    with cluster() as slurm:
        os.environ.update(environment() | {"SLURM_CONF": slurm.configuration})
        reference, whole = undisturbed(folder)
        tasks = len({r["task"] for r in read_ledger(reference / "ledger.jsonl")})
        say(f"undisturbed: {tasks} tasks in {whole:.0f} s")
        storm = Storm(slurm, folder, random.Random(options.seed))
        began = time.time()
        runs, found = rage(storm, reference, faults, options.minutes, whole)
        seconds = time.time() - began
    lost = sum(r["state"] == "failed" and r["transient"] for run in runs for r in read_ledger(run / "ledger.jsonl"))
    frames = len(runs) * sum(s.frames for s in survey(reference)[0].board.shards if s.state == "ready")
    made = sum(storm.done.values())
    rows = [
        *((f"faults: {kind}", storm.done[kind]) for kind in KINDS),
        ("faults in all", made),
        ("campaigns under faults / tasks of each", f"{len(runs)} / {tasks}"),
        ("seconds: undisturbed / all under faults", f"{whole:.0f} / {seconds:.0f}"),
        ("attempts that the machine lost, made again", lost),
        ("submissions that the scheduler refused, made again", sum(refusals(run) for run in runs)),
        ("frames lost / duplicated", f"{found['lost']} / {found['duplicated']}"),
        ("frames compared, every column", frames),
        ("frames / labels / models that differ", f"{found['frames']} / {found['labels']} / {found['models']}"),
        ("checkpoints / selections that differ", f"{found['checkpoints']} / {found['selection']}"),
        ("finished tasks redone", found["redone"]),
        ("campaigns that gave up", found["campaigns that gave up"]),
    ]
    enough = made >= faults or (not options.quick and seconds >= 60 * options.minutes)
    if options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    report(
        "chaos",
        [{"what": a, "figure": b} for a, b in rows],
        {**found, "faults": made, "tasks": tasks, "frames compared": frames, "lost attempts": lost},
        {**dict.fromkeys(found, 0), "faults": f"{faults}, or {options.minutes:g} minutes"},
        ok=enough and all(storm.done[kind] for kind in KINDS) and all(v == 0 for v in found.values()),
    )


if __name__ == "__main__":
    main()
