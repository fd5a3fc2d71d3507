"""SIGKILL at random moments over every stage, resumed each time: is anything lost, doubled, redone or different?

A small real campaign (LAMMPS, RND, SchNetPack under Parsl) runs twice: once undisturbed, once killed again and again:
the driver, a worker, or every process at once. The two runs are then compared frame by frame, bit by bit.

    python benchmarks/kill.py --kills 20
    python benchmarks/kill.py --method momt                          two chains that share a bias through the store
    python benchmarks/kill.py --method momt --walkers-per-task 2     each of them an MPI job of two walkers
    python benchmarks/kill.py --method npt --ranks 2                 each walker on two MPI ranks

The last three only sample; where there are MPI ranks, one of those is killed now and then too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from common import report
from runs import SITE, TEMPLATES

from campaign.engines.walkers import unpack_checkpoints
from campaign.frames import LAYOUT
from campaign.pipeline import survey
from campaign.stages.trained import WEIGHTS
from campaign.store.ledger import read_ledger
from campaign.store.store import Store
from campaign.tasks import TOKEN_VARIABLE

CAMPAIGN = """
campaign: kill
seed: 3
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
  potential: {lammps: argon.lmp}
sample:
  - {method: npt, temperature: [60, 120], walkers: 3, steps: 24000, timestep: 0.004, every: 50, segment: 40}
select: {method: rnd_stream, size: 12, representation: {model: schnet, features: 16, interactions: 1, cutoff: 5.0}}
label: {engine: lammps}
train: {model: schnet, members: 2, features: 16, interactions: 1, cutoff: 5.0, epochs: 150}
validate:
  - {method: errors, held_out: 20, against: [random], threshold: {forces: 1.0}}
  - {method: stability, ensemble: nvt, temperature: 80, time: 3, timestep: 0.004}
  - {method: rdf, cutoff: 5.0, threshold: 5.0}
"""
#: Sampling alone, two chains of it.
SAMPLING = """
campaign: kill
seed: 3
system:
  structure: {{prototype: fcc, elements: [Ni], a: 3.52, supercell: [2, 2, 2]}}
  potential: {{lammps: potentials/ni.lmp}}
sample:
  - {{{keys}, walkers: {walkers}, walkers_per_task: {each}, ranks: {ranks},
     steps: {steps}, every: 25, segment: {segment}}}
"""
KEYS = {
    "npt": "method: npt, temperature: [1500, 2500]",
    "momt": "method: momt, temperature: 2000, temperatures: [900, 3500], window: [-4.75, -4.05]",
}
#: Molecular dynamics with a trained SchNet.
DRIVEN = """
campaign: kill
seed: 3
system:
  structure: {{prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}}
sample:
  - {{method: md, model: model.pt, ensemble: npt, temperature: [300, 600], timestep: 0.001,
     walkers: {walkers}, walkers_per_task: {each}, steps: {steps}, every: 25, segment: 40}}
"""
POTENTIAL = """# elements: Ar
pair_style lj/cut 8.5
pair_coeff 1 1 0.010325 3.405
"""

#: How often a kill waits until a worker is at a task; without, those that follow another one meet a driver that starts.
AT_WORK = 0.8


def start(folder: Path, root: str, log: Path) -> subprocess.Popen[bytes]:
    """Start (or continue) the campaign as a user would, in a process group of its own."""
    command = [sys.executable, "-m", "campaign.cli", "run", str(folder / "kill.yaml"), "--root", str(folder / root)]
    if (folder / "site.yaml").exists():
        command += ["--site", str(folder / "site.yaml")]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def lines(run: Path) -> int:
    """Return the number of lines in the ledger."""
    path = run / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def family(run: Path) -> list[psutil.Process]:
    """Return every process that the present driver started, by the token in its environment."""
    found = []
    try:
        token = json.loads((run / "driver.lock").read_text())["token"]
    except (OSError, ValueError):
        return []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def at_work(run: Path, process: subprocess.Popen[bytes], rank: bool) -> bool:
    """Tell whether a worker of this very driver is at a task; with ``rank``, whether MPI ranks of it run."""
    try:
        if json.loads((run / "driver.lock").read_text())["pid"] != process.pid:
            return False
        marks = {path.name.split()[-1] for path in (run / "logs" / "workers").iterdir()}
    except (OSError, ValueError, KeyError):
        return False
    return any(_is_rank(_command(p)) if rank else str(p.pid) in marks for p in family(run))


def kill(process: subprocess.Popen[bytes], run: Path, how: str, rng: random.Random) -> str:
    """Kill the driver, one of its workers, one MPI rank, or everything; return what was killed."""
    children = family(run)
    ranks = [p for p in children if _is_rank(_command(p))]
    if how == "rank" and ranks:
        rng.choice(ranks).kill()
        return "rank"
    workers = [p for p in children if "spawn_main" in " ".join(_command(p))]
    if how == "worker" and workers:
        rng.choice(workers).kill()
        return "worker"
    process.kill()
    if how != "driver":
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()
    return "driver" if how == "driver" else "group"


def _is_rank(words: list[str]) -> bool:
    """Tell whether a process is an MPI rank of a segment, and not the launcher or what started that."""
    return words[1:4] == ["-P", "-m", "campaign.engines.lammps_mpi"]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def aims(reference: Path, kills: int, rng: random.Random, longest: float) -> list[tuple[int, str, float]]:
    """Return (line of the ledger, stage, most seconds after it) to kill at: stages in turn, a random task of each.

    ``longest`` bounds those seconds: long enough to come to the middle of a task.
    """
    records = read_ledger(reference / "ledger.jsonl")
    stages = list(dict.fromkeys(r["stage"] for r in records))
    found = []
    for k in range(kills):
        line = rng.choice([n for n, r in enumerate(records) if r["stage"] == stages[k % len(stages)]])
        found.append((line, records[line]["stage"], min(records[line]["seconds"], longest) + 0.3))
    return sorted(found)


def disturbed(
    folder: Path, root: str, places: list[tuple[int, str, float]], rng: random.Random, kinds: tuple[str, ...]
) -> tuple[Counter[str], Counter[str]]:
    """Run the campaign to its end, killing it at each of these places that it reaches; return (how, where)."""
    run = folder / root / "kill"
    kills = len(places)
    modes = [kinds[k % len(kinds)] for k in range(kills)]
    rng.shuffle(modes)
    how: Counter[str] = Counter()
    where: Counter[str] = Counter()
    process = start(folder, root, folder / "killed.log")
    for (line, stage, most), mode in zip(places, modes, strict=True):
        while lines(run) < line and process.poll() is None:
            time.sleep(0.02)
        limit = time.time() + (30.0 if rng.random() < AT_WORK else 0.0)
        while time.time() < limit and process.poll() is None and not at_work(run, process, mode == "rank"):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, most))
        if process.poll() is not None:
            process = start(folder, root, folder / "killed.log")
            time.sleep(rng.uniform(0, 4.0))
        if process.poll() is not None:  # the campaign is complete: nothing is left to kill
            break
        where[stage] += 1
        how[kill(process, run, mode, rng)] += 1
        if process.poll() is not None:
            process = start(folder, root, folder / "killed.log")
    code = process.wait()
    while code != 0:  # a run that ended by a lost worker may ask for the same command once more
        process = start(folder, root, folder / "killed.log")
        code = process.wait()
        how["extra start"] += 1
        if how["extra start"] > 3:
            raise SystemExit((folder / "killed.log").read_text()[-3000:])
    return how, where


def differences(one: Path, other: Path) -> dict[str, int]:
    """Return how many frames, labels, picks and weights of two runs are not bitwise the same."""
    (a, _), (b, _) = survey(one), survey(other)
    stores = [Store(one / "run.zarr"), Store(other / "run.zarr")]
    found = {"lost": 0, "duplicated": 0, "frames": 0, "checkpoints": 0, "selection": 0, "labels": 0, "models": 0}
    pools = []
    for flow, store in zip((a, b), stores, strict=True):
        frames: dict[str, bytes] = {}
        for block in store.stream("sample", [s.task.id for s in flow.board.shards if s.state == "ready"]):
            for k, name in enumerate(block.ids):
                found["duplicated"] += name in frames
                frames[name] = b"".join(np.ascontiguousarray(getattr(block, f)[k]).tobytes() for f in LAYOUT)
        pools.append(frames)
    found["lost"] = len(pools[0].keys() ^ pools[1].keys())
    found["frames"] = sum(pools[0][k] != pools[1][k] for k in pools[0].keys() & pools[1].keys())
    ready = [{s.task.id for s in flow.board.shards if s.state == "ready"} for flow in (a, b)]
    found["checkpoints"] = sum(_left(stores[0], task) != _left(stores[1], task) for task in ready[0] & ready[1])
    for name in a.board.sets:
        found["selection"] += a.board.sets[name].chosen != b.board.sets[name].chosen
    found["labels"] = _labels(a.board.labels, b.board.labels, stores)
    for name, models in a.board.models.items():
        for x, y in zip(models, b.board.models.get(name, [""] * len(models)), strict=True):
            found["models"] += x != y or _weights(stores[0], x) != _weights(stores[1], y)
    return found


def _labels(one: dict[str, str | None], other: dict[str, str | None], stores: list[Store]) -> int:
    wrong = len(one.keys() ^ other.keys())
    for frame in one.keys() & other.keys():
        blocks = [store.frames("label", str(labels[frame])) for store, labels in zip(stores, (one, other), strict=True)]
        same = all(np.array_equal(getattr(blocks[0], f), getattr(blocks[1], f), equal_nan=True) for f in LAYOUT)
        wrong += not same
    return wrong


def _left(store: Store, task: str) -> dict[str, bytes]:
    """Return what a segment left to the next, of each of its walkers: the LAMMPS restart, and the bias of MOMT."""
    found = {}
    for number, (restart, extra) in unpack_checkpoints(store.checkpoint(task)["restart"]).items():
        found |= {f"{number}/{name}": a.tobytes() for name, a in extra.items()} | {f"{number}/restart": restart}
    return found


def _weights(store: Store, task: str) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in store.arrays("train", task).items() if k.startswith(WEIGHTS)}


def redone(run: Path) -> int:
    """Return how many tasks were finished more than once."""
    done = Counter(r["task"] for r in read_ledger(run / "ledger.jsonl") if r["state"] == "done")
    return sum(n - 1 for n in done.values())


def write(folder: Path, options: argparse.Namespace) -> None:
    """Write the campaign, its potential and, where it needs cores for MPI ranks, its site."""
    each, ranks = options.walkers_per_task, options.ranks
    if (options.method, each, ranks) == ("npt", 1, 1):
        (folder / "kill.yaml").write_text(CAMPAIGN.replace("24000", "12000") if options.quick else CAMPAIGN)
        (folder / "argon.lmp").write_text(POTENTIAL)
        return
    if options.method == "md":
        from md import potential

        potential().export(folder / "model.pt")
        steps = 25 * 40 * (4 if options.quick else 16)
        (folder / "kill.yaml").write_text(DRIVEN.format(walkers=2 * each, each=each, steps=steps))
        return
    shutil.copytree(TEMPLATES / "potentials", folder / "potentials")
    segment = 80 if each * ranks == 1 else 320  # launching MPI ranks takes longer than the short one
    steps = 25 * segment * ((4 if options.quick else 20) if each * ranks == 1 else (2 if options.quick else 10))
    text = SAMPLING.format(
        keys=KEYS[options.method], walkers=2 * each, each=each, ranks=ranks, steps=steps, segment=segment
    )
    (folder / "kill.yaml").write_text(text)
    if each * ranks > 1:
        (folder / "site.yaml").write_text(SITE.format(workers=1, cores=each * ranks))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one kill of each kind")
    parser.add_argument("--method", choices=sorted([*KEYS, "md"]), default="npt", help="of sampling; md: by a model")
    parser.add_argument("--ranks", type=int, default=1, help="MPI ranks of each walker")
    parser.add_argument(
        "--walkers-per-task", type=int, default=1, help="walkers of each MPI job; of md, of each process"
    )
    parser.add_argument("--keep", action="store_true", help="keep the two run directories")
    options = parser.parse_args()
    if options.method == "md" and options.ranks > 1:
        parser.error("--method md: a model drives the atoms in one process; leave --ranks out")
    mpi = options.ranks * options.walkers_per_task > 1 and options.method != "md"  # whose walkers share a process
    kinds = ("driver", "worker", "group", "rank") if mpi else ("driver", "worker", "group")
    kills = len(kinds) if options.quick else options.kills
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="campaign-kill-"))
    write(folder, options)
    began = time.time()
    if start(folder, "whole", folder / "whole.log").wait() != 0:
        raise SystemExit((folder / "whole.log").read_text()[-3000:])
    whole = time.time() - began
    reference = folder / "whole" / "kill"
    expected = lines(reference)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    rng = random.Random(options.seed)
    how: Counter[str] = Counter()
    where: Counter[str] = Counter()
    found: Counter[str] = Counter()
    began, landed, runs = time.time(), 0, 0
    while landed < kills and runs < kills:  # a run that ends before every kill was made is followed by another
        root = f"killed-{runs}"
        runs += 1
        more = disturbed(folder, root, aims(reference, kills - landed, rng, 3.0 if mpi else 0.7), rng, kinds)
        how += more[0]
        where += more[1]
        found.update(differences(reference, folder / root / "kill"))
        found["redone"] += redone(folder / root / "kill")
        landed = sum(how[k] for k in kinds)
    seconds = time.time() - began
    frames = runs * sum(s.frames for s in survey(reference)[0].board.shards if s.state == "ready")
    rows = [
        ("sampling", f"{options.method}, {options.walkers_per_task} walkers a task, {options.ranks} ranks a walker"),
        ("tasks", expected),
        ("campaigns killed on the way", runs),
        ("kills", ", ".join(f"{n} {k}" for k, n in sorted(how.items()))),
        ("aimed at a task of", ", ".join(f"{n} {k}" for k, n in where.items())),
        ("seconds, undisturbed / killed", f"{whole:.0f} / {seconds:.0f}"),
        ("frames lost / duplicated", f"{found['lost']} / {found['duplicated']}"),
        ("frames compared, every column", frames),
        ("frames / labels / models that differ", f"{found['frames']} / {found['labels']} / {found['models']}"),
        ("checkpoints that differ (restart and bias)", found["checkpoints"]),
        ("sets whose selection differs", found["selection"]),
        ("finished tasks redone", found["redone"]),
    ]
    figures = {**found, "kills": landed, "tasks": expected, "frames compared": frames}
    asked = {**dict.fromkeys(found, 0), "kills": kills}
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    report(
        "kill",
        [{"what": a, "figure": b} for a, b in rows],
        figures,
        asked,
        ok=landed >= kills and all(v == 0 for v in found.values()),
    )


if __name__ == "__main__":
    main()
