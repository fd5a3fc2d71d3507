"""How good the selected frames are: models trained on the picks of every method, tested on frames that none saw.

    python benchmarks/selection.py                              go on where it stopped, then table and figure
    python benchmarks/selection.py --table                      table and figure from the committed numbers alone
    python benchmarks/selection.py --pools ni --seeds 4 --sizes 32 64 --methods random rnd_stream

Every cell (pool, method, size, seed) is a campaign of its own: the pool is read from the run that sampled it, frames
are selected, labelled and trained on, and molecular dynamics is driven by the bare model (without the wall that keeps
atoms apart). Models of all cells are trained the same way, by the same number of steps. The numbers of a finished cell
stand in ``benchmarks/selection.json``; a cell that was interrupted continues. The seed is the campaign's: of the
selector, of the descriptor, of the first weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, parser, report

Array = npt.NDArray[Any]
Cell = dict[str, Any]

HERE = Path(__file__).resolve().parent
NUMBERS, FIGURE = HERE / "selection.json", HERE.parent / "docs" / "selection.png"
TEMPLATES = HERE.parent / "templates"

#: The descriptor of the methods that have one, and what is changed of it in variants that are compared beside them.
#: The cutoff is 1.25 times the distance of nearest neighbours in the crystal (``Pool.near``).
DESCRIPTOR = {"model": "schnet", "features": 64, "interactions": 3, "pooling": "species_extremes"}

#: What each row of the table is: the method, and changes of the descriptor where it has one.
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "rnd_stream": {"method": "rnd_stream", "representation": {}},
    "rnd": {"method": "rnd", "representation": {}},
    "fps": {"method": "fps", "representation": {}},
    "uniform_time": {"method": "uniform_time"},
    "global_energy": {"method": "global_energy"},
    "atomic_energy": {"method": "atomic_energy"},
    "force": {"method": "force"},
    "grid": {"method": "grid"},
    "rematch": {"method": "rematch"},
    "rnd_stream, 6 Å": {"method": "rnd_stream", "representation": {"cutoff": 6.0}},
    "rnd_stream, mean": {"method": "rnd_stream", "representation": {"pooling": "mean"}},
    "rnd_stream, species_std": {"method": "rnd_stream", "representation": {"pooling": "species_std"}},
    "rnd_stream, mean, 6 Å": {"method": "rnd_stream", "representation": {"cutoff": 6.0, "pooling": "mean"}},
}
#: Those that the figure shows, and those that a plain call runs.
SHOWN = ("random", "uniform_time", "global_energy", "fps", "rnd", "rnd_stream")
USUAL = tuple(name for name in METHODS if "," not in name)
SIZES, SEEDS = (8, 16, 32, 64, 128), 8

#: Of the bootstrap: samples, and the interval's ends.
SAMPLES, ENDS = 2000, (5.0, 95.0)


@dataclass(frozen=True)
class Pool:
    """A pool, frames to test on from walkers of another seed, and how its models are trained.

    ``system`` and ``sample`` are those of a campaign file; ``near`` is the cutoff of the descriptor, ``cutoff`` that of
    the models, Å; ``steps`` of the optimiser are the same for every size.
    """

    system: str
    sample: str
    near: float
    cutoff: float
    temperature: float
    steps: int
    held_out: str


_SALT = """
  structure: {{prototype: rocksalt, elements: [{metal}, Cl], a: {a}, supercell: [2, 2, 2]}}
  potential: {{lammps: potentials/{file}.lmp}}
"""
_RAMP = """
  - {method: npt, temperature: [1100, 1700], pressure: 1.0, walkers: 8, steps: 25600, every: 100,
     prepare: [{temperature: 1800, time: 4}, {temperature: 1100, time: 2}]}
"""
_NICKEL = """
  structure: {prototype: fcc, elements: [Ni], a: 3.52, supercell: [2, 2, 2]}
  potential: {lammps: potentials/ni.lmp}
"""
_MOMT = """
  - {{method: momt, temperature: 2000, temperatures: [900, 3500], window: [-4.75, -4.05], steps: {steps}, every: 50}}
"""
POOLS = {
    "nacl": Pool(_SALT.format(metal="Na", a=5.64, file="nacl_bmhtf"), _RAMP, 3.5, 8.0, 1400.0, 2000, _RAMP),
    "kcl": Pool(_SALT.format(metal="K", a=6.29, file="kcl_bmhtf"), _RAMP, 3.9, 8.0, 1400.0, 2000, _RAMP),
    "ni": Pool(_NICKEL, _MOMT.format(steps=250_000), 3.1, 5.0, 2000.0, 2000, _MOMT.format(steps=100_000)),
}


# -- campaigns --------------------------------------------------------------------------------------------------------


def sampled(folder: Path, name: str, sample: str, system: str, seed: int) -> Path:
    """Sample, on all cores, as a user would; return the run's store. One that is complete is not run again."""
    from runs import run_campaign

    pools = folder / "pools"
    for place in (folder, pools):
        shutil.copytree(TEMPLATES / "potentials", place / "potentials", dirs_exist_ok=True)
    file = pools / f"{name}.yaml"
    file.write_text(f"campaign: {name}\nseed: {seed}\nsystem: {system}sample: {sample}")
    return run_campaign(file, workers=2).path / "run.zarr"


def run_cell(folder: Path, store: Path, test: Path, cell: Cell) -> Cell:
    """Run one cell as a campaign in this process; return it with its figures."""
    from campaign.config import load_campaign, load_site
    from campaign.engines.schnetpack import load_schnetpack
    from campaign.pipeline import Options, run

    load_schnetpack()
    name = "-".join(str(cell[k]) for k in ("pool", "method", "size", "seed")).lower()
    name = "".join(c if c.isalnum() else "-" for c in name)
    path, file = folder / "cells" / name, folder / f"{name}.yaml"  # above the pool, which it names
    file.write_text(cell_text(store.relative_to(folder), cell))
    loaded, site = load_campaign(file), load_site("local")
    before = peak("VmRSS")
    run(loaded, site, path, Options(until="select", inline=True))
    memory = peak("VmHWM") - before
    status = run(loaded, site, path, Options(inline=True))
    found = {**cell, **figures(path, test, status), "select_mb": round(memory, 1)}
    shutil.rmtree(path)
    file.unlink()
    return found


def cell_text(store: Path, cell: Cell) -> str:
    """Return the campaign file of a cell."""
    pool, size = POOLS[cell["pool"]], cell["size"]
    kept = size - max(1, round(0.1 * size))  # frames held back to choose the best epoch
    train = {"model": "schnet", "features": 32, "interactions": 2, "cutoff": pool.cutoff, "batch": 1, "rate": 0.01}
    train |= {"epochs": max(1, round(pool.steps / kept)), "wall": False}
    select = dict(METHODS[cell["method"]])
    if "representation" in select:
        select["representation"] = {**DESCRIPTOR, "cutoff": pool.near, **select["representation"]}
    stability = {"method": "stability", "temperature": pool.temperature, "time": 2.0}
    parts = {
        "campaign": "cell",
        "seed": cell["seed"],
        "sample": [{"method": "file", "file": str(store)}],
        "select": {**select, "size": size},
        "label": {"engine": "pool"},
        "train": train,
        "validate": [stability],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in parts.items()]
    return "\n".join([*lines, f"system: {pool.system}"])


def figures(run: Path, test: Path, status: dict[str, Any]) -> Cell:
    """Return what a finished cell is judged by: eV, eV/Å, eV/Å^3, seconds."""
    from campaign.engines.schnetpack import Potential
    from campaign.science.metrics import errors
    from campaign.store.ledger import read_ledger

    (file,) = (run / "models").glob("*.pt")
    model = Potential.load(file)
    pairs: dict[str, list[tuple[Array, Array]]] = {"energy": [], "force": [], "stress": []}
    for block in frames_of(test):
        energy, forces, stress = model.evaluate(block)
        pairs["energy"].append((block.energy / block.n_atoms, energy / block.n_atoms))
        pairs["force"].append((block.forces, forces))
        pairs["stress"].append((block.stress, stress))
    found: Cell = {}
    for name, parts in pairs.items():
        norms = errors(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
        found |= {f"{name}_{k}": float(f"{v:.5g}") for k, v in norms.items()}
    seconds = dict.fromkeys(("select", "train"), 0.0)
    for record in read_ledger(run / "ledger.jsonl"):
        if record["stage"] in seconds and record["state"] == "done":
            seconds[record["stage"]] += record["seconds"]
    found |= {f"{k}_s": round(v, 2) for k, v in seconds.items()}
    return {**found, "survived": bool(status["verdicts"]["stability"])}


def frames_of(store: Path) -> Iterator[Any]:
    """Yield the frames of a run's pool."""
    from campaign.store import frame_stores
    from campaign.store.store import Store

    yield from Store(store).stream("sample", [part.where for part in frame_stores.scan(store)])


def peak(what: str) -> float:
    """Return resident memory now (``VmRSS``) or at most so far (``VmHWM``), MB; 0 where Linux does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(what)), 0.0)


# -- numbers ----------------------------------------------------------------------------------------------------------


def known() -> list[Cell]:
    """Return the cells that are finished."""
    return json.loads(NUMBERS.read_text())["cells"] if NUMBERS.exists() else []


def keep(cells: list[Cell]) -> None:
    """Write the finished cells, complete or not at all."""
    aside = NUMBERS.with_suffix(".part")
    order = sorted(cells, key=lambda c: (c["pool"], list(METHODS).index(c["method"]), c["size"], c["seed"]))
    rows = ",\n".join(json.dumps(c) for c in order)
    aside.write_text(f'{{"machine": {json.dumps(machine())},\n"cells": [\n{rows}\n]}}\n')
    aside.rename(NUMBERS)


def values(cells: list[Cell], pool: str, method: str, size: int, figure: str) -> Array:
    """Return a figure of all seeds of a cell, in the order of the seeds."""
    mine = [c for c in cells if (c["pool"], c["method"], c["size"]) == (pool, method, size)]
    return np.array([float(c[figure]) for c in sorted(mine, key=lambda c: int(c["seed"]))])


def median(x: Array) -> tuple[float, float, float]:
    """Return the median and the ends of its bootstrapped 90 % interval."""
    dice = np.random.default_rng(0)
    again = np.median(x[dice.integers(len(x), size=(SAMPLES, len(x)))], axis=1)
    low, high = np.percentile(again, ENDS)
    return float(np.median(x)), float(low), float(high)


def table(cells: list[Cell]) -> list[dict[str, Any]]:
    """Return a row a pool, method and size."""
    rows = []
    for pool in POOLS:
        for size in sorted({c["size"] for c in cells if c["pool"] == pool}):
            for method in METHODS:
                l4 = values(cells, pool, method, size, "force_l4") * 1e3
                if not len(l4):
                    continue
                mid, low, high = median(l4)
                row: dict[str, Any] = {"pool": pool, "frames": str(size), "method": method, "seeds": str(len(l4))}
                row["force L4, meV/Å"] = f"{mid:.0f} ({low:.0f} to {high:.0f})"
                for name, title, scale, digits in (
                    ("force_rmse", "RMSE", 1e3, 1),
                    ("force_max", "max", 1e3, 0),
                    ("energy_mae", "energy MAE, meV/atom", 1e3, 2),
                    ("select_s", "selection, s", 1.0, 1),
                    ("select_mb", "MB", 1.0, 0),
                ):
                    row[title] = f"{np.median(values(cells, pool, method, size, name)) * scale:.{digits}f}"
                survived = values(cells, pool, method, size, "survived")
                row["MD survives"] = f"{int(survived.sum())} of {len(survived)}"
                rows.append(row)
    return rows


def claims(cells: list[Cell], pool: str) -> dict[str, float]:
    """Return what is asked of ``rnd_stream`` on a pool: ratios of median force L4, below 1 where it is better."""
    found: dict[str, float] = {}
    best = np.inf
    for size in sorted({c["size"] for c in cells if c["pool"] == pool}):
        mine = values(cells, pool, "rnd_stream", size, "force_l4")
        chance = values(cells, pool, "random", size, "force_l4")
        if not len(mine) or not len(chance):
            continue
        best = min(best, median(mine)[2] / float(np.median(chance)))
        if size not in (32, 64):
            continue
        for other in ("random", "uniform_time", "global_energy", "rnd", "fps"):
            theirs = values(cells, pool, other, size, "force_l4")
            if len(theirs):
                found[f"{pool}, {size} frames: rnd_stream / {other}"] = float(np.median(mine) / np.median(theirs))
    if np.isfinite(best):
        found[f"{pool}: upper end of rnd_stream / median of random, best size"] = best
    return found


def reached(name: str, value: float) -> bool:
    """Tell whether a ratio is what is asked of it."""
    return value <= (1.05 if name.endswith("/ rnd") else 1.0)


def draw(cells: list[Cell]) -> None:
    """Write the figure: force L4 against frames, a panel a pool, medians with their intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pools = [p for p in POOLS if any(c["pool"] == p for c in cells)]
    titles = {"nacl": "NaCl, 64 atoms", "kcl": "KCl, 64 atoms", "ni": "Ni, 32 atoms, MOMT"}
    figure, axes = plt.subplots(1, len(pools), figsize=(5.2 * len(pools), 3.8), squeeze=False, layout="constrained")
    for axis, pool in zip(axes[0], pools, strict=True):
        for number, method in enumerate(SHOWN):
            sizes = sorted({c["size"] for c in cells if (c["pool"], c["method"]) == (pool, method)})
            if not sizes:
                continue
            mid, low, high = np.array([median(values(cells, pool, method, s, "force_l4") * 1e3) for s in sizes]).T
            at = np.array(sizes) * 1.03 ** (number - 2.5)  # beside each other
            line = {"lw": 2.2, "zorder": 3} if method == "rnd_stream" else {"lw": 1.2, "alpha": 0.85}
            axis.errorbar(
                at, mid, [mid - low, high - mid], fmt="o-", color=f"C{number}", ms=4, capsize=2, label=method, **line
            )
        axis.set(xscale="log", yscale="log", xlabel="frames in training", title=titles[pool])
        axis.set_xticks(SIZES, [str(s) for s in SIZES])
        low, high = axis.get_ylim()
        shown = [v for v in (20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800) if low <= v <= high]
        axis.set_yticks(shown, [str(v) for v in shown])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("force L4 error, meV/Å")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument("--table", action="store_true", help="run nothing: table and figure of the known numbers")
    commands.add_argument("--folder", type=Path, help="where pools and unfinished cells lie; default a temporary one")
    commands.add_argument("--pools", nargs="+", choices=list(POOLS), default=["nacl"])
    commands.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(USUAL))
    commands.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    commands.add_argument("--seeds", type=int, default=SEEDS)
    commands.add_argument("--workers", type=int, default=2, help="cells at once, a core each")
    options = commands.parse_args()
    if options.quick:
        options.table = True
    folder = options.folder or Path(tempfile.gettempdir()) / "campaign-selection"
    cells = known()
    if not options.table:
        run_all(options, folder, cells)
    if not cells:
        raise SystemExit("There are no numbers yet; give this command without --table.")
    draw(cells)
    ratios = {k: v for pool in POOLS for k, v in claims(cells, pool).items()}
    asked = {name: 1.05 if name.endswith("/ rnd") else 1.0 for name in ratios}
    report("selection", table(cells), ratios, asked, bool(ratios) and all(reached(k, v) for k, v in ratios.items()))


def run_all(options: Any, folder: Path, cells: list[Cell]) -> None:
    """Run the cells that are missing, seed by seed; add each to ``cells`` and to the file as it ends."""
    done = {(c["pool"], c["method"], c["size"], c["seed"]) for c in cells}
    wanted = [
        {"pool": pool, "method": method, "size": size, "seed": seed}
        for seed in range(options.seeds)
        for pool in options.pools
        for size in options.sizes
        for method in options.methods
        if (pool, method, size, seed) not in done
    ]
    from runs import say

    stores = {}
    for name in dict.fromkeys(c["pool"] for c in wanted):
        pool = POOLS[name]
        stores[name] = tuple(
            sampled(folder, f"{name}-{kind}", sample, pool.system, seed)
            for kind, sample, seed in (("pool", pool.sample, 1), ("test", pool.held_out, 1001))
        )
    start = time.time()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as workers:
        futures = [workers.submit(run_cell, folder, *stores[c["pool"]], c) for c in wanted]
        for number, future in enumerate(as_completed(futures), 1):
            cell = future.result()
            cells.append(cell)
            keep(cells)
            left = (time.time() - start) / number * (len(wanted) - number)
            what = ", ".join(str(cell[k]) for k in ("pool", "method", "size", "seed"))
            say(f"{what}: L4 {1e3 * cell['force_l4']:.0f} meV/Å; {left / 60:.0f} min left")


if __name__ == "__main__":
    main()
