"""How few frames predict the others: distillation by uncertainty against random frames, on nickel's MOMT pool.

    python benchmarks/distillation.py                       go on where it stopped, then the table
    python benchmarks/distillation.py --table               the table from the committed numbers alone
    python benchmarks/distillation.py --lengths short --seeds 4 --adds uncertain random

Every cell (length of training, what is added, seed) is a campaign over one pool of 5,000 frames of 32 atoms: it ends
as soon as the mean error of the ensemble on the frames that were not chosen is 1.0 meV/atom, or the iterations are
spent. The short trainings see how few frames do for 2.0 meV/atom; whether more frames help beyond that, the long ones.
Cells of the same seed begin with the same frames and the same models, and share a run directory: the first iteration is
done once. The ensemble of every iteration is also tested on frames of another run, which no cell chooses from: of the
rest of its pool a choice may have taken the difficult part. The numbers of a finished cell stand in
``benchmarks/distillation.json``; a cell that was interrupted continues.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, parser, report
from selection import POOLS, frames_of, median, sampled

Array = npt.NDArray[Any]
Cell = dict[str, Any]

NUMBERS = Path(__file__).resolve().parent / "distillation.json"

#: eV/atom: what is asked, and where a cell ends.
TARGETS = (0.002, 0.001)
#: The paper's: at most this share of the pool for the first of them.
SHARE = 0.17

#: Steps of the optimiser for each member, sizes of the sets, and how many seeds a plain call runs.
LENGTHS: dict[str, dict[str, int]] = {
    "short": {"steps": 1500, "initial": 4, "batch": 4, "iterations": 4},
    "long": {"steps": 6000, "initial": 10, "batch": 30, "iterations": 2},
}
SEEDS = {"short": 8, "long": 2}

#: What is added in each row of the table: keys of ``distill``.
ADDS: dict[str, dict[str, Any]] = {
    "random": {"add": "random"},
    "uncertain": {},
    "uncertain energy": {"score": "energy"},
    "weighted energy": {"add": "weighted", "score": "energy"},
    "uncertain, quarter of forces": {"force_share": 0.25},
}
USUAL = ("random", "uncertain", "weighted energy", "uncertain energy")

DISTILL = {"method": "uq", "members": 5, "train_fraction": 0.8, "target_mae": TARGETS[-1]}
TRAIN = {
    "model": "schnet",
    "features": 32,
    "interactions": 2,
    "cutoff": 6.0,
    "batch": 4,
    "rate": 0.01,
    "loss": {"energy": 0.03, "forces": 0.93, "stress": 0.04},
}
#: Every so many frames of the other run are tested on.
EVERY = 2


# -- campaigns --------------------------------------------------------------------------------------------------------


def run_cell(folder: Path, store: Path, test: Path, cell: Cell) -> Cell:
    """Run one cell as a campaign in this process; return it with the figures of its iterations."""
    from campaign.config import load_campaign, load_site
    from campaign.engines.schnetpack import load_schnetpack
    from campaign.pipeline import Options, run
    from campaign.store.ledger import read_ledger

    load_schnetpack()
    path = folder / "cells" / f"{cell['length']}-{cell['seed']}"
    path.parent.mkdir(exist_ok=True)
    file = folder / f"{cell['length']}-{cell['seed']}.yaml"  # a campaign's files lie below it
    parts = {
        "campaign": "cell",
        "seed": cell["seed"],
        "sample": [{"method": "file", "file": str(store.relative_to(folder)), "segment": 1000}],
        "distill": {**DISTILL, **LENGTHS[cell["length"]], **ADDS[cell["add"]]},
        "label": {"engine": "pool"},
        "train": TRAIN,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in parts.items()]
    file.write_text("\n".join([*lines, f"system: {POOLS['ni'].system}"]))
    status = run(load_campaign(file), load_site("local"), path, Options(until="distill", inline=True))
    if status["failures"]:
        raise SystemExit(f"{path} failed: {status['failures'][0]['cause']}")
    found = json.loads((path / "distillation.json").read_text())
    seconds = {r["task"]: r["seconds"] for r in read_ledger(path / "ledger.jsonl") if r["state"] == "done"}
    trained = sum(seconds[task] for figures in found for task in figures["models"])
    iterations = [{**short(figures), **held_out(path, test, figures["models"])} for figures in found]
    return {**cell, "train_seconds": round(trained, 1), "iterations": iterations}


def short(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an iteration that are kept: eV/atom."""
    calibration = figures["calibration"]
    kept: dict[str, Any] = {k: figures[k] for k in ("size", "pool", "mae", "rmse", "bias")}
    kept |= {f"correlation_{k}": v for k, v in figures["correlation"].items()}
    kept |= {k: calibration[k] for k in ("factor", "ence", "within")}
    kept["curve"] = [[_round(b["predicted"]), _round(b["actual"])] for b in calibration["bins"]]
    return {k: _round(v) for k, v in kept.items()}


def _round(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def held_out(run: Path, test: Path, models: list[str]) -> dict[str, float]:
    """Return how well an ensemble predicts frames of another run: eV/atom, eV/Å."""
    from campaign.engines.models import Mean
    from campaign.frames import Frames
    from campaign.science.metrics import errors
    from campaign.stages.trained import load_models
    from campaign.store.store import Store

    block = Frames.concat(frames_of(test))[::EVERY]
    energy, forces, _ = Mean(load_models(Store(run / "run.zarr"), models, "distill")).evaluate(block)
    of_energy = errors(block.energy / block.n_atoms, energy / block.n_atoms)
    of_forces = errors(block.forces, forces)
    found = {f"test_energy_{k}": _round(float(of_energy[k])) for k in ("mae", "rmse", "max")}
    return found | {f"test_force_{k}": _round(float(of_forces[k])) for k in ("rmse", "l4", "max")}


# -- numbers ----------------------------------------------------------------------------------------------------------


def known() -> list[Cell]:
    """Return the cells that are finished."""
    return json.loads(NUMBERS.read_text())["cells"] if NUMBERS.exists() else []


def keep(cells: list[Cell]) -> None:
    """Write the finished cells, complete or not at all."""
    aside = NUMBERS.with_suffix(".part")
    order = sorted(cells, key=lambda c: (list(LENGTHS).index(c["length"]), list(ADDS).index(c["add"]), c["seed"]))
    rows = ",\n".join(json.dumps(c) for c in order)
    text = {"machine": machine(), "distill": DISTILL, "lengths": LENGTHS, "train": TRAIN}
    aside.write_text(json.dumps(text, indent=1)[:-2] + f',\n"cells": [\n{rows}\n]}}\n')
    aside.rename(NUMBERS)


def of(cells: list[Cell], length: str, add: str, size: int, figure: str) -> dict[int, float]:
    """Return a figure at a size, by seed: of the cells that came so far."""
    return {
        c["seed"]: float(i[figure])
        for c in cells
        if (c["length"], c["add"]) == (length, add)
        for i in c["iterations"]
        if i["size"] == size and i[figure] is not None
    }


def needed(cell: Cell, target: float) -> float:
    """Return the share of the pool with which a cell first reached a target; infinite where it never did."""
    reached = [i["size"] / i["pool"] for i in cell["iterations"] if i["mae"] is not None and i["mae"] <= target]
    return min(reached, default=np.inf)


def between(cell: Cell, target: float) -> float:
    """Return the share at which a target was crossed, on a line between the iterations in logarithms of both."""
    points = [(np.log(i["size"] / i["pool"]), np.log(i["mae"] or np.inf)) for i in cell["iterations"]]
    for (x, y), (x_next, y_next) in pairwise(points):
        if y > np.log(target) >= y_next:
            return float(np.exp(x + (x_next - x) * (np.log(target) - y) / (y_next - y)))
    return needed(cell, target)


def table(cells: list[Cell]) -> list[dict[str, Any]]:
    """Return a row for each size and what was added: medians over the seeds, the MAE with its 90 % interval."""
    rows = []
    for length, size, add in ((n, s, a) for n in LENGTHS for s in sizes(cells, n) for a in ADDS):
        maes = 1e3 * np.array(list(of(cells, length, add, size, "mae").values()))
        if not len(maes):
            continue
        mid, low, high = median(maes)
        row: dict[str, Any] = {"training": length, "frames": str(size), "added": add, "cells": str(len(maes))}
        row["energy MAE, meV/atom"] = f"{mid:.2f} ({low:.2f} to {high:.2f})"
        for name, title, scale, digits in (
            ("rmse", "RMSE", 1e3, 2),
            ("test_energy_mae", "test MAE", 1e3, 2),
            ("test_energy_max", "max", 1e3, 1),
            ("test_force_rmse", "force RMSE, meV/Å", 1e3, 1),
            ("test_force_l4", "L4", 1e3, 0),
            ("correlation_score", "rank correlation: score", 1.0, 2),
            ("correlation_std", "of the energy", 1.0, 2),
            ("factor", "error/UQ", 1.0, 2),
            ("within", "within", 1.0, 2),
        ):
            found = list(of(cells, length, add, size, name).values())
            row[title] = f"{np.median(found) * scale:.{digits}f}" if found else ""
        rows.append(row)
    return rows


def sizes(cells: list[Cell], length: str) -> list[int]:
    """Return the sizes of the sets that cells of a length came to."""
    return sorted({i["size"] for c in cells if c["length"] == length for i in c["iterations"]})


def claims(cells: list[Cell]) -> dict[str, float]:
    """Return the share that each target took, and ratios of errors at the same size, medians over the same seeds."""
    found: dict[str, float] = {}
    for length, add in ((n, a) for n in LENGTHS for a in ADDS):
        mine = [c for c in cells if (c["length"], c["add"]) == (length, add)]
        for target in TARGETS if mine else ():
            shares = np.array([needed(c, target) for c in mine])
            what = f"{length}, {add}: share for {1e3 * target:.1f} meV/atom"
            crossed = float(np.median([between(c, target) for c in mine]))
            for name, value in (("largest", float(shares.max())), ("median, interpolated", crossed)):
                if np.isfinite(value):
                    found[f"{what}, {name}"] = value
            found[f"{what}, cells that reached it"] = float(np.isfinite(shares).mean())
    for length, size, add in ((n, s, a) for n in LENGTHS for s in sizes(cells, n) for a in ADDS if a != "random"):
        for figure in ("mae", "test_energy_mae", "test_force_rmse"):
            one, other = (of(cells, length, a, size, figure) for a in (add, "random"))
            both = sorted(one.keys() & other.keys())
            if size > LENGTHS[length]["initial"] and len(both) > 1:
                mid, low, high = median(np.array([one[s] / other[s] for s in both]))
                name = f"{length}, {size} frames, {figure}: {add} / random"
                found |= {name: mid, f"{name}, low": low, f"{name}, high": high}
    return found


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument("--table", action="store_true", help="run nothing: the table of the known numbers")
    commands.add_argument("--folder", type=Path, help="for the pool and unfinished cells; default a temporary one")
    commands.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    commands.add_argument("--adds", nargs="+", choices=list(ADDS), default=list(USUAL))
    commands.add_argument("--seeds", type=int, help=f"default {SEEDS}")
    commands.add_argument("--workers", type=int, default=1, help="cells at once, a core each")
    options = commands.parse_args()
    cells = known()
    if not options.table and not options.quick:
        run_all(options, options.folder or Path(tempfile.gettempdir()) / "campaign-distillation", cells)
    if not cells:
        raise SystemExit("There are no numbers yet; give this command without --table.")
    figures = claims(cells)
    name = f"short, uncertain: share for {1e3 * TARGETS[0]:.1f} meV/atom, largest"
    report("distillation", table(cells), figures, {name: SHARE}, figures.get(name, np.inf) <= SHARE)


def run_all(options: Any, folder: Path, cells: list[Cell]) -> None:
    """Run the cells that are missing, seed by seed; add each to ``cells`` and to the file as it ends."""
    from runs import say

    done = {(c["length"], c["add"], c["seed"]) for c in cells}
    lanes = {
        (length, seed): [add for add in options.adds if (length, add, seed) not in done]
        for length in options.lengths
        for seed in range(options.seeds or SEEDS[length])
    }
    count, total = 0, sum(map(len, lanes.values()))
    if not total:
        return
    pool = POOLS["ni"]
    store, test = (
        sampled(folder, f"ni-{kind}", sample, pool.system, seed)
        for kind, sample, seed in (("pool", pool.sample, 1), ("test", pool.held_out, 1001))
    )
    start = time.time()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as workers:
        running: set[Future[Cell]] = set()
        waiting = [lane for lane, adds in lanes.items() if adds]
        while waiting or running:
            while waiting and len(running) < options.workers:
                length, seed = lane = waiting.pop(0)
                cell = {"length": length, "add": lanes[lane].pop(0), "seed": seed}
                running.add(workers.submit(run_cell, folder, store, test, cell))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for cell in (future.result() for future in ended):
                cells.append(cell)
                keep(cells)
                lane = (cell["length"], cell["seed"])
                if lanes[lane]:
                    waiting.insert(0, lane)  # one after another: they share a run directory
                count += 1
                last, left = cell["iterations"][-1], (time.time() - start) / count * (total - count)
                found = f"{1e3 * last['mae']:.2f} meV/atom with {last['size']} frames"
                say(f"{cell['length']}, {cell['add']}, {cell['seed']}: {found}; {left / 60:.0f} min left")


if __name__ == "__main__":
    main()
