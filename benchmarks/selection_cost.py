"""What selection costs: a frame of a stream of any length, a pool against the published batch, one core against LAMMPS.

    python benchmarks/selection_cost.py                 every section
    python benchmarks/selection_cost.py stream pool     some of them

stream  seconds a frame and peak memory of ``rnd_stream`` for 10^3 to 10^6 descriptors that are made as they are offered
pool    20,000 frames of shaken NaCl, 128 chosen: ``rnd_stream``, the batch algorithms, skmatter's farthest points
ranks   frames that one LAMMPS rank of the quickstart makes, and that one core describes and selects

Every measurement is a process of its own with one thread; seconds are those of its core, after everything was loaded
and compiled. Peak memory is counted from there too: Python and its libraries are not in it.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy's products too

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import parser, report

from campaign.frames import Array
from campaign.science.distillation import Distillation, Moments
from campaign.science.rnd import RNDStream, rnd_batch
from campaign.science.selection import Batch

SECTIONS = ("stream", "pool", "ranks")
ASKED = {
    "us a frame, largest / smallest": "<= 1.15",
    "peak MB, largest - smallest": "<= 50",
    "batch as published / rnd_stream": ">= 20",
    "ranks that one core keeps up with": ">= 20",
}

#: Frames of a block; picks of ``stream`` and ``pool``; frames of the pool.
BLOCK, FEW, PICKS, POOL = 64, 32, 128, 20_000

#: The Letter names no settings for training g. These: every step of Adam sees all of T, until the error of T's worst
#: frame is this part of the mean of f^2; with the rate (of 0.0005, 0.001 and 0.002) that gets there soonest. The looser
#: one leaves a tenth of f's size: hardly converged, and shown for what it costs.
CONVERGED, LOOSELY = (1e-3, 1e-3), (1e-2, 2e-3)
MOST_STEPS = 2000

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


# -- in a process of its own -------------------------------------------------------------------------------------------


def memory(what: str) -> float:
    """Return resident memory now (``VmRSS``) or at most so far (``VmHWM``), MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("Memory is read from /proc/self/status, which only Linux has.")


def core(work: Callable[[], Any]) -> float:
    """Return the seconds of this process that the work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def made(n: int, d: int, seed: int) -> Iterator[Batch]:
    """Yield a stream of ``n`` frames with descriptors of 12 modes and noise."""
    rng = np.random.default_rng(seed)
    modes = np.random.default_rng(0).normal(size=(12, d)).astype(np.float32)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = rng.standard_normal((m, 12), dtype=np.float32) @ modes
        x += 0.3 * rng.standard_normal((m, d), dtype=np.float32)
        yield block(x + np.float32(5.0), start, (start + m) / n)


def block(x: Array, start: int, progress: float) -> Batch:
    return Batch(np.zeros(len(x), np.uint64), np.arange(start, start + len(x), dtype=np.int32), progress, descriptors=x)


def warm() -> None:
    """Load and compile all that a selector uses, with descriptors that need no memory to speak of."""
    selector = RNDStream(2, 0, candidates=2)
    for batch in made(2 * BLOCK, 2, 0):
        selector.offer(batch)
    selector.finish()


def stream_cost(n: int, d: int, early: float, repeats: int) -> dict[str, float]:
    """Return seconds a frame, the peak memory, and how many frames were taken early, of streams."""
    warm()
    start = memory("VmRSS")
    seconds, taken = [], 0
    for repeat in range(repeats):
        selector, total, taken = RNDStream(FEW, repeat, early=early), 0.0, 0
        for batch in made(n, d, repeat):
            before = time.process_time()
            offer = selector.offer(batch)
            total += time.process_time() - before
            taken += len(offer.chosen)
        seconds.append(total / n)
    return {"frame": median(seconds), "peak": memory("VmHWM") - start, "taken": float(taken)}


def offered(file: Path) -> tuple[RNDStream, float]:
    """Offer the pool in ``file`` block by block as it is read; return the selector and its seconds."""
    selector, seconds = RNDStream(PICKS, 0), 0.0
    with file.open("rb") as opened:
        n, d = (int(k) for k in np.fromfile(opened, np.int64, 2))
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            batch = block(np.fromfile(opened, np.float32, m * d).reshape(m, d), start, (start + m) / n)
            seconds += core(lambda batch=batch: selector.offer(batch))
    return selector, seconds


def published(x: Array, size: int, seed: int, tolerance: float, rate: float) -> int:
    """Choose by the algorithm as it is published; return the steps of Adam that it took.

    All of the pool goes through both networks for each choice, and after each g learns all of T until it converges.
    """
    moments = Moments(x.shape[1])
    for start in range(0, len(x), 4096):  # in parts: they are summed in float64
        moments.add(x[start : start + 4096])
    x = moments.normalise(x)
    networks = Distillation(x.shape[1], seed, steps=MOST_STEPS, batch=size, tolerance=tolerance)
    chosen: list[int] = []
    steps = 0
    while len(chosen) < size:
        novelty = networks.novelty(x)
        novelty[chosen] = -np.inf
        chosen.append(int(np.argmax(novelty)))
        steps += networks.fit(x[chosen], rate)
    return steps


def pool_cost(method: str, file: str, repeats: int) -> dict[str, float]:
    """Return the seconds and the peak memory of one way to choose from the pool in ``file``."""
    warm()
    if method == "rnd_stream":
        start, seconds = memory("VmRSS"), []
        for _ in range(repeats):
            selector, total = offered(Path(file))
            seconds.append(total + core(selector.finish))
        return {"seconds": median(seconds), "peak": memory("VmHWM") - start}
    work = _choose(method)
    start, seconds = memory("VmRSS"), []
    n, d = (int(k) for k in np.fromfile(file, np.int64, 2))
    x = np.fromfile(file, np.float32, offset=16).reshape(n, d)
    notes: list[Any] = []
    for _ in range(repeats):
        seconds.append(core(lambda: notes.append(work(x))))
    found = {"seconds": median(seconds), "peak": memory("VmHWM") - start}
    return found | ({"steps": float(notes[0])} if method.startswith("published") else {})


def _choose(method: str) -> Callable[[Array], Any]:
    """Return what chooses from a pool by a method, with all that it needs loaded."""
    if method == "fps":
        from campaign.science.selectors_pool import FPS

        def farthest(x: Array) -> Any:
            selector = FPS(min(PICKS, len(x)), 0)
            selector.offer(block(x, 0, 1.0))
            return selector.finish()

        farthest(np.eye(3, dtype=np.float32))
        return farthest
    if method == "rnd":
        return lambda x: rnd_batch(x, PICKS, 0)
    return lambda x: published(x, PICKS, 0, *(LOOSELY if method.endswith("loosely") else CONVERGED))


def rank_cost(frames: int, repeats: int) -> dict[str, float]:
    """Return the frames a second of core that one rank of the quickstart makes, and that are described and selected."""
    from campaign.config import load_campaign
    from campaign.engines.descriptors import Descriptor
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.lammps_potential import load_potential
    from campaign.engines.structures import build_structure
    from campaign.frames import Frames

    campaign = load_campaign(TEMPLATES / "quickstart.yaml").spec
    method: Any = campaign.sample[0]
    assert campaign.system.potential is not None
    potential = load_potential(TEMPLATES / campaign.system.potential.lammps)
    atoms = build_structure(campaign.system.structure.model_dump(mode="json"), TEMPLATES)
    prepare = tuple((p.temperature, p.time, method.pressure) for p in method.prepare)
    ramp = tuple(method.temperature)
    first = Segment(1, method.every, 0, method.timestep, (ramp[0], ramp[0]), method.pressure)
    begin = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 1, prepare)
    _, checkpoint = run_segment(potential, first, begin)  # melted and settled: it has no part in the rate
    segment = Segment(frames, method.every, method.every, method.timestep, (ramp[0], sum(ramp) / 2), method.pressure)
    found: list[dict[str, Array]] = []
    making = core(lambda: found.append(run_segment(potential, segment, checkpoint)[0]))
    pool = Frames.build(atoms.numbers, **{k: v for k, v in found[0].items() if k != "kinetic"})
    pool = Frames.concat([pool] * -(-512 // len(pool)))
    spec: Any = campaign.select
    settings = spec.representation.model_dump(mode="json")
    describe = Descriptor(np.unique(atoms.numbers).tolist(), seed=1, **settings | {"device": "cpu"})

    def select() -> None:
        selector = RNDStream(spec.size, 1)
        for start in range(0, len(pool), BLOCK):
            part = pool[start : start + BLOCK]
            selector.offer(block(describe(part), start, min((start + BLOCK) / len(pool), 1.0)))
        selector.finish()

    select()
    taking = median(core(select) for _ in range(repeats))
    return {"made": frames / making, "taken": len(pool) / taking}


def describe_pool(file: str, n: int) -> dict[str, float]:
    """Write the descriptors of ``n`` shaken frames of NaCl: cells of many sizes, atoms more or less displaced."""
    from ase.build import bulk

    from campaign.engines.descriptors import Descriptor
    from campaign.frames import Frames

    rng = np.random.default_rng(0)
    cell = bulk("NaCl", "rocksalt", a=6.2, cubic=True) * (2, 2, 2)
    scale, noise = rng.uniform(0.95, 1.05, n), rng.uniform(0.2, 0.6, n)
    describe = Descriptor([11, 17], seed=0, cutoff=4.0, device="cpu")
    with Path(file).open("wb") as opened:
        np.array([n, describe.dimension], dtype=np.int64).tofile(opened)
        for start in range(0, n, 500):
            at = slice(start, min(start + 500, n))
            shifts = rng.normal(size=(at.stop - start, len(cell), 3)) * noise[at, None, None]
            positions = (cell.positions + shifts) * scale[at, None, None]
            cells = np.array(cell.cell) * scale[at, None, None]
            describe(Frames.build(cell.numbers, positions, cells)).astype(np.float32).tofile(opened)
    return {"dimension": float(describe.dimension)}


WORKS: dict[str, Callable[..., dict[str, float]]] = {
    "stream": stream_cost,
    "pool": pool_cost,
    "ranks": rank_cost,
    "describe": describe_pool,
}


# -- the table ---------------------------------------------------------------------------------------------------------


def apart(work: str, *arguments: Any) -> dict[str, float]:
    """Do a work in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", json.dumps([work, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def stream(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure streams of several lengths in turns; what else the machine does only adds, so the least of them counts.

    A frame's cost is that of a stream from which nothing is taken before its end. What training g costs, once for each
    frame taken early, is the rest of what a stream takes as campaigns run it.
    """
    sizes = (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    rows, ratios, ranges, figures = [], [], [], {}
    for d in (256,) if quick else (128, 256):
        bare: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
        for _ in range(3):
            for n in sizes:
                bare[n].append(apart("stream", n, d, 0.0, max(1, 20_000 // n)))
        frame = {n: min(f["frame"] for f in bare[n]) for n in sizes}
        picking = {n: apart("stream", n, d, 0.5, max(1, 20_000 // n)) for n in sizes}
        peak = [max(f["peak"] for f in (*bare[n], picking[n])) for n in sizes]
        picks = {n: (picking[n]["frame"] - frame[n]) * n / picking[n]["taken"] for n in sizes}
        for n, most in zip(sizes, peak, strict=True):
            row: dict[str, Any] = {"": f"rnd_stream, d = {d}, {n:,} frames, {FEW} picks", "us/frame": 1e6 * frame[n]}
            row["with early picks"] = 1e6 * picking[n]["frame"]
            if n <= 10_000:  # later it is lost in the noise
                row["ms/early pick"] = 1e3 * picks[n]
            rows.append(row | {"peak MB": most})
        ratios.append(max(frame.values()) / min(frame.values()))
        ranges.append(max(peak) - min(peak))
        figures |= {f"us a frame, d = {d}": 1e6 * frame[sizes[-1]], f"ms an early pick, d = {d}": 1e3 * picks[10_000]}
    return rows, figures | {
        "us a frame, largest / smallest": max(ratios),
        "peak MB, largest - smallest": max(ranges),
    }


def pool(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure the ways to choose from one pool."""
    methods = {
        "rnd_stream": ("rnd_stream, offered and finished", 9),
        "rnd": ("rnd (f kept, g trained on parts of T)", 1 if quick else 3),
        "published": (f"batch as published, g within {CONVERGED[0]:g}", 1),
        "published loosely": (f"batch as published, g within {LOOSELY[0]:g}", 1),
        "fps": ("farthest points, skmatter", 1 if quick else 3),
    }
    if quick:
        methods.pop("published loosely")
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "descriptors")
        dimension = int(apart("describe", file, POOL)["dimension"])
        found = {name: apart("pool", name, file, repeats) for name, (_, repeats) in methods.items()}
    once = found["rnd_stream"]["seconds"]
    rows = []
    for name, (text, _) in methods.items():
        f = found[name]
        row = {"": f"{text}: {POOL:,} frames, d = {dimension}, {PICKS} picks", "s": f["seconds"]}
        rows.append(row | {"times rnd_stream": f["seconds"] / once, "peak MB": f["peak"]})
        if "steps" in f:
            rows[-1]["Adam steps"] = int(f["steps"])
    figures = {"rnd_stream s": once, "rnd_stream peak MB": found["rnd_stream"]["peak"]}
    figures |= {"rnd / rnd_stream": found["rnd"]["seconds"] / once}
    figures |= {"batch as published / rnd_stream": found["published"]["seconds"] / once}
    if not quick:
        figures["batch as published, loosely / rnd_stream"] = found["published loosely"]["seconds"] / once
    return rows, figures | {"fps s": found["fps"]["seconds"], "fps peak MB": found["fps"]["peak"]}


def ranks(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure what one LAMMPS rank makes and one core of selection takes."""
    found = apart("ranks", 8 if quick else 64, 3 if quick else 7)
    rows = [
        {"": "frames made by one LAMMPS rank of the quickstart", "frames/s": found["made"]},
        {"": "frames described and selected by one core", "frames/s": found["taken"]},
    ]
    figures = {"frames/s made": found["made"], "frames/s taken": found["taken"]}
    return rows, figures | {"ranks that one core keeps up with": found["taken"] / found["made"]}


def met(name: str, value: float) -> bool:
    sign, limit = ASKED[name].split()
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    options.add_argument("--work", help="one measurement, as JSON: what the processes of this script do")
    chosen = options.parse_args()
    if chosen.work:
        name, *arguments = json.loads(chosen.work)
        print(json.dumps(WORKS[name](*arguments)))
        return
    if set(chosen.sections) - set(SECTIONS):
        options.error(f"the sections are {', '.join(SECTIONS)}")
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for section in chosen.sections or SECTIONS:
        more, numbers = {"stream": stream, "pool": pool, "ranks": ranks}[section](chosen.quick)
        rows += more
        figures |= numbers
    asked = {name: text for name, text in ASKED.items() if name in figures}
    report("selection_cost", rows, figures, asked, all(met(name, figures[name]) for name in asked))


if __name__ == "__main__":
    main()
