"""Labelling with everything that goes wrong: is a label wrong, lost, doubled or redone, or a cause not true?

A stand-in for CP2K on PATH (``fake_cp2k.py``: it reads the real input and writes the real output) crashes, is killed,
hangs, does not converge, cuts its output, writes NaN, garbage or another number of atoms, fills the disk, or converges
only on the third rung of the ladder, from the wavefunction of the second. The driver is killed meanwhile, and the same
command given again: what came to its end, converged or not, must not run again. Then the labels a second come from two
workers with an engine of 0.1 s. With a program of 0.1 s in place of CP2K the figure is said and not asked: it tells
what starting a program costs on this machine.

    python benchmarks/faults.py             200 frames, 10 kills of the driver (minutes)
    python benchmarks/faults.py --quick     40 frames, 2 kills
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from common import parser, report
from fake_cp2k import K
from kill import kill

from campaign.pipeline import status_of, survey
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

HERE = Path(__file__).resolve().parent
#: Labels a second on two workers at 0.1 s each, as a share of the ideal 20.
THROUGHPUT_ASKED = 0.85

#: Fault -> (frames of it in 200, whether it gets its label in the end, what the cause must say).
FAULTS = {
    "good": (72, True, ""),
    "rung3": (24, True, ""),
    "crash_once": (12, True, ""),
    "killed_once": (12, True, ""),
    "disk_once": (4, True, ""),
    "crash": (10, False, r"Cholesky decompose failed: the matrix is not positive definite"),
    "segfault": (10, False, r"signal 11|segmentation fault"),
    "killed": (10, False, r"killed \(signal 9\)"),
    "hang": (6, False, r"was stopped after .* s"),
    "unconverged": (10, False, r"SCF did not converge"),
    "truncated": (10, False, r"is cut off after"),
    "nan": (10, False, r"energy is not finite"),
    "atoms": (5, False, r"computed 3 atoms; the frame has 4"),
    "garbage": (5, False, r"is not CP2K's"),
}

CAMPAIGN = """
campaign: faults
seed: 1
max_failed: 1.0
system: {{structure: {{prototype: fcc, elements: [Ar], a: 5.3}}}}
sample: [{{method: file, file: frames.extxyz, segment: 20}}]
select: {{method: random, size: {frames}, min_distance: 0}}
label: {{{label}}}
"""
#: Both later rungs start from the wavefunction of the attempt before.
LADDER = "[template, more_steps, {{SCF/MAX_SCF: 300, restart: true}}]"
CP2K = f"engine: cp2k, template: argon.inp, timeout: {{timeout}}, ladder: {LADDER}"
SITE = "site: two\nexecutors: {cpu: {provider: local, workers: 2}}\nstages: {default: cpu}\n"


@dataclass(frozen=True)
class Place:
    """A folder with a campaign of frames that go wrong.

    Attributes
    ----------
    folder
        The campaign, its site and files, the stand-in and its log.
    faults
        x of each frame's first atom (6 decimals) to what happens to it.
    """

    folder: Path
    faults: dict[str, str]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "runs" / "faults"

    def start(self) -> subprocess.Popen[bytes]:
        """Start (or continue) the campaign as a user would."""
        words = [sys.executable, "-m", "campaign.cli", "run", "faults.yaml", "--site", "site.yaml"]
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "FAKE_CP2K": str(self.folder / "fake" / "plan.json")}
        with (self.folder / "output").open("ab") as out:
            return subprocess.Popen(
                words, cwd=self.folder, stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def log(self) -> list[dict[str, Any]]:
        """Return what the stand-in did."""
        path = self.folder / "fake" / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(positions: np.ndarray[Any, Any]) -> str:
    """Return by what a frame is known to the stand-in."""
    return f"{positions[0, 0]:.6f}"


def prepare(folder: Path, faults: list[str], label: str, seconds: float) -> Place:
    """Write a campaign with a frame for each fault."""
    rng = np.random.default_rng(0)
    images, plan = [], {}
    for fault in faults:
        positions = np.round(rng.uniform(0, 5.0, (4, 3)), 6)
        images.append(Atoms("Ar4", positions=positions, cell=[5.3, 5.4, 5.5], pbc=True))
        plan[key(positions)] = fault
    if len(plan) < len(faults):
        raise SystemExit("Two frames have the same first coordinate; choose another seed.")
    for name in ("bin", "fake/once"):
        (folder / name).mkdir(parents=True)
    write(folder / "frames.extxyz", images)
    (folder / "fake" / "plan.json").write_text(json.dumps({"faults": plan, "seconds": seconds}))
    program = folder / "bin" / "cp2k.psmp"
    program.write_text(f"#!{sys.executable} -IS\n" + (HERE / "fake_cp2k.py").read_text())
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "faults.yaml").write_text(CAMPAIGN.format(frames=len(faults), label=label))
    shutil.copy(HERE / "fake_cp2k.inp", folder / "argon.inp")
    (folder / "BASIS").write_text("Ar TOY\n 1\n")
    (folder / "POTENTIAL").write_text("Ar TOY\n 1\n")
    (folder / "site.yaml").write_text(SITE)
    return Place(folder, plan)


def drive(place: Place, kills: int, every: int, rng: random.Random) -> Counter[str]:
    """Run the campaign to its end, killing its driver each time so many more calculations were started."""
    found: Counter[str] = Counter()
    process = place.start()
    for k in range(kills):
        while len(place.log()) < (k + 1) * every:
            if process.poll() is not None:
                process = _again(place, process, found)
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is None:
            found[kill(process, place.run, rng.choice(["driver", "group"]), rng)] += 1
        process = place.start()
    while process.wait() not in (0, 1) or _stopped(place):
        process = _again(place, process, found)
    return found


def _stopped(place: Place) -> bool:
    """Tell whether the run stopped before its end (a full disk), so that the user gives the same command again."""
    return bool(status_of(place.run)["state"] in ("interrupted", "pending"))


def _again(place: Place, process: subprocess.Popen[bytes], found: Counter[str]) -> subprocess.Popen[bytes]:
    if process.returncode not in (0, 1, -9):
        raise SystemExit((place.folder / "output").read_text()[-3000:])
    found["stopped by a full disk"] += 1
    if found["stopped by a full disk"] > 40:
        raise SystemExit("The run does not come to its end:\n" + (place.folder / "output").read_text()[-3000:])
    return place.start()


def expected(positions: np.ndarray[Any, Any], volume: float) -> tuple[float, Any, Any]:
    """Return what the stand-in's energy, forces and stress are, computed here."""
    away = positions - positions.mean(axis=0)
    return 0.5 * K * float((away**2).sum()), -K * away, K * away.T @ away / volume


def judge(place: Place) -> tuple[dict[str, float], Counter[str]]:
    """Return what is not as it must be, by name, and how often each fault was met."""
    flow, _ = survey(place.run)
    store = Store(place.run / "run.zarr")
    status = status_of(place.run)
    causes = {f["frame"]: f for f in status["failures"]}
    wrong = dict.fromkeys(("wrong labels", "lost", "untrue causes", "false quarantine", "bad labelled", "no rung"), 0)
    met: Counter[str] = Counter()
    keys = {}
    for frame, task in flow.board.labels.items():
        source, index = frame.split(":")
        block = store.frames("sample", source, [int(index)])
        name = key(block.positions[0])
        keys[frame] = name
        fault = place.faults[name]
        met[fault] += 1
        _, good, cause = FAULTS[fault]
        if task is None:
            wrong["false quarantine"] += good
            said = causes[frame]
            whole = len(said["attempts"]) == 3 and all(re.search(cause, a["cause"]) for a in said["attempts"])
            wrong["untrue causes"] += not good and not (re.search(cause, said["cause"]) and whole)
            continue
        wrong["bad labelled"] += not good
        label = store.frames("label", task)
        energy, forces, stress = expected(block.positions[0], float(block.volume[0]))
        right = abs(label.energy[0] - energy) < 1e-9 and np.abs(label.forces[0] - forces).max() < 1e-9
        right = right and np.abs(label.stress[0] - stress).max() < 1e-9
        wrong["wrong labels"] += not right or label.ids != [frame]
        result = store.locate("label", task).record["result"]
        wrong["no rung"] += fault == "rung3" and (result["rung"], len(result["settings"])) != (2, 1)
    wrong["lost"] = len(place.faults) - len(flow.board.labels)
    done = [r for r in read_ledger(place.run / "ledger.jsonl") if r["stage"] == "label" and r["state"] == "done"]
    wrong["doubled"] = len(done) - len({r["task"] for r in done})
    when = {keys[r["name"].partition("/")[2]]: r["start"] + r["seconds"] for r in done}
    starts = [entry for entry in place.log() if entry["what"] == "start"]
    ends = Counter(entry["key"] for entry in place.log() if entry["what"] == "end")
    wrong["redone"] = sum(e["time"] > when.get(e["key"], np.inf) for e in starts) + sum(n - 1 for n in ends.values())
    failed = Counter((e["key"], e["attempt"]) for e in place.log() if e["what"] == "unconverged")  # finished, too
    wrong["redone"] += sum(n - 1 for n in failed.values())
    later = [e for e in starts if place.faults[e["key"]] in ("rung3", "unconverged") and e["attempt"] != "attempt-0"]
    wrong["not restarted"] = sum(e["guess"] != "found" for e in later)
    return wrong, met


def throughput(folder: Path, frames: int, label: str) -> float:
    """Return labels a second in the steady state, from the first label's start to the last one's end."""
    place = prepare(folder, ["good"] * frames, label, 0.1)
    if place.start().wait() != 0:
        raise SystemExit((place.folder / "output").read_text()[-3000:])
    done = [r for r in read_ledger(place.run / "ledger.jsonl") if r["stage"] == "label" and r["state"] == "done"]
    return len(done) / (max(r["start"] + r["seconds"] for r in done) - min(r["start"] for r in done))


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=("faults", "throughput"), help="one part of it")
    options.add_argument("--keep", action="store_true", help="keep the run directories")
    given = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="campaign-faults-"))
    kills = 2 if given.quick else given.kills
    counts = {f: max(1, n // 5) if given.quick else n for f, (n, _, _) in FAULTS.items()}
    faults = [f for f, n in counts.items() for _ in range(n)]
    rng = random.Random(given.seed)
    rng.shuffle(faults)
    rows: list[tuple[str, object]] = []
    figures: dict[str, float] = {}
    asked: dict[str, float | str] = {}
    if given.only != "throughput":
        place = prepare(folder / "faults", faults, CP2K.format(timeout=2), 0.0)
        began = time.time()
        how = drive(place, kills, max(5, len(faults) // (kills + 1)), rng)
        wrong, met = judge(place)
        killed = how["driver"] + how["group"]
        rows += [
            ("frames", len(faults)),
            ("faults", ", ".join(f"{n} {f}" for f, n in sorted(met.items()))),
            ("runs ended early", ", ".join(f"{n} {k}" for k, n in sorted(how.items()))),
            ("calculations started", sum(e["what"] == "start" for e in place.log())),
            ("seconds", f"{time.time() - began:.0f}"),
            *wrong.items(),
        ]
        figures |= {**wrong, "kills": killed, "frames": len(faults)}
        asked |= {**dict.fromkeys(wrong, 0), "kills": kills}
    if given.only != "faults":
        count = 60 if given.quick else 200
        rate = throughput(folder / "fast", count, "engine: fake, delay: 0.1")
        real = throughput(folder / "cp2k", count, CP2K.format(timeout=60))
        rows += [
            ("labels/s, engine of 0.1 s, 2 workers", f"{rate:.1f}"),
            (f"share of the ideal 20/s (at least {THROUGHPUT_ASKED})", f"{rate / 20:.2f}"),
            ("labels/s, a program of 0.1 s in place of CP2K", f"{real:.1f}"),
        ]
        figures |= {"throughput": rate / 20, "program throughput": real / 20}
        asked |= {"throughput": THROUGHPUT_ASKED, "program throughput": "said, not asked"}
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    exact = {k: v for k, v in asked.items() if k not in ("kills", "throughput", "program throughput")}
    ok = all(figures[k] == v for k, v in exact.items())
    ok = ok and figures.get("kills", kills) >= kills and figures.get("throughput", 1.0) >= THROUGHPUT_ASKED
    report("faults", [{"what": a, "figure": b} for a, b in rows], figures, asked, ok=ok)


if __name__ == "__main__":
    main()
