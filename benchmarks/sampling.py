"""Sampling by plain dynamics: frames a second into the store, a volume against lmp, a grid of volumes.

    python benchmarks/sampling.py                 every section
    python benchmarks/sampling.py rate nacl       some of them

rate    two NPT walkers of 108 nickel atoms on two cores, every 50th step into Zarr, against two lmp without output
keep    segments of one walker with all that becomes of them, against LAMMPS alone, in turns in one process
nacl    mean volume of molten NaCl at 1400 K from a campaign's pool, against lmp on the same potential lines
grid    templates/nacl-nvt-grid.yaml, shortened: density, pressure and energy at each volume
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ase.build import bulk
from ase.data import atomic_masses
from common import interleaved, parser, report
from runs import (
    TEMPLATES,
    Plain,
    Table,
    end_plain,
    joined,
    mean_of,
    nickel,
    run_campaign,
    sampling_of,
    say,
    score,
    start_plain,
)

from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.lammps import BAR, Lammps
from campaign.engines.lammps_potential import load_potential
from campaign.frames import Frames
from campaign.science.momt import BOLTZMANN
from campaign.store.store import Store
from campaign.tasks import Task, new_record

SECTIONS = ("rate", "keep", "nacl", "grid")

#: MD steps between frames; the share of a point of the grid that is left out of its means.
EVERY, EARLY = 50, 0.25

#: Molten NaCl: K; steps between LAMMPS's lines; how it is melted and settled (K, ps).
MOLTEN, THERMO, MELT = 1400.0, 10, ((2500.0, 6.0), (1400.0, 10.0))

#: What is asked, by the name of the figure: at most where it says "z" or "least", at least elsewhere.
ASKED: dict[str, float] = {
    "keep campaign / LAMMPS alone": 0.95,
    "nacl z": 3.0,
    "grid least A^3 of 200 atoms": 6000.0,
    "grid most A^3 of 200 atoms": 9000.0,
}

#: Volumes are set to so much, relative.
ROUNDING = 1e-6

NACL = """
campaign: {name}
seed: 1
system:
  structure: {{prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [{n}, {n}, {n}]}}
  potential: {{lammps: potentials/nacl_bmhtf.lmp}}
sample:
  - {sample}
"""


@dataclass(frozen=True)
class Sizes:
    """How much is done: MD steps of each walker, rounds, repeats of the NaCl cell."""

    folder: Path
    steps: int = 200_000  # of rate
    segment: int = 250  # frames, of rate
    rounds: int = 3
    nacl: int = 50_000
    cells: int = 3
    melt: float = 1.0  # share of NaCl's preparation that is done
    grid: int = 1_000


def pair(folder: Path, runs: list[Plain]) -> tuple[list[float], list[Any], float]:
    """Run lmp on several scripts side by side; return LAMMPS's own seconds, the volumes, and the wall seconds."""
    start = time.perf_counter()
    processes = [start_plain(folder / str(k), run) for k, run in enumerate(runs)]
    ends = [end_plain(folder / str(k), process) for k, process in enumerate(processes)]
    return [seconds for seconds, _ in ends], [volumes for _, volumes in ends], time.perf_counter() - start


def rate(sizes: Sizes, table: Table) -> None:
    """Measure frames a second of a campaign with two walkers, and what two lmp would give; in turns."""
    spec = {"method": "npt", "temperature": 2000, "walkers": 2, "steps": sizes.steps, "timestep": 0.002}
    spec |= {"every": EVERY, "segment": sizes.segment}
    nickel_108 = bulk("Ni", "fcc", a=3.52, cubic=True) * (3, 3, 3)
    plain = Plain(TEMPLATES / "potentials" / "ni.lmp", nickel_108, 2000.0, sizes.steps)
    frames = 2 * (sizes.steps // EVERY)
    ours, steady, theirs = [], [], []

    def campaign(k: int) -> None:
        run = run_campaign(nickel(sizes.folder, f"rate-{sizes.steps}-{sizes.segment}-{k}", 3, spec, k), workers=2)
        found = sum(len(block) for block in run.frames())
        if found != frames:
            raise SystemExit(f"The pool holds {found} frames in place of {frames}.")
        ours.append(frames / run.wall)
        steady.append(frames / run.spans()[0])

    def peer(k: int) -> None:
        loops, _, _ = pair(sizes.folder / f"rate-lmp-{k}", [replace(plain, seed=10 * k + j) for j in (1, 2)])
        theirs.append(frames / max(loops))

    for k in range(1, sizes.rounds + 1):
        for work in (campaign, peer)[:: 1 if k % 2 else -1]:
            work(k)
        say(f"rate, round {k}: {ours[-1]:.0f} ({steady[-1]:.0f} without start-up), lmp {theirs[-1]:.0f} frames/s")
    table.add("rate frames/s, the whole command", median(ours))
    table.add("rate frames/s, first task's start to last task's end", median(steady))
    table.add("rate frames/s, two lmp without output, their loops alone", median(theirs))
    table.add("rate campaign / lmp, whole", median(a / b for a, b in zip(ours, theirs, strict=True)))
    table.add("rate campaign / lmp, without start-up", median(a / b for a, b in zip(steady, theirs, strict=True)))


def keep(sizes: Sizes, table: Table) -> None:
    """Time segments with all that becomes of them (start, frames, store, checkpoint) against LAMMPS alone, in turns.

    One walker on one core, in one process: what ``rate`` measures, without what else the machine is doing.
    """
    structure = bulk("Ni", "fcc", a=3.52, cubic=True) * (3, 3, 3)
    potential = load_potential(TEMPLATES / "potentials" / "ni.lmp")
    store = Store(sizes.folder / "keep.zarr")
    segment = Segment(sizes.segment, EVERY, 0, 0.002, (2000.0, 2000.0), 1.0)
    start = Start(structure.numbers, structure.positions, np.array(structure.cell), 1, ((4000.0, 2.0, 1.0),))
    state = {"checkpoint": run_segment(potential, segment, start)[1], "count": 0}

    def ours() -> None:
        arrays, checkpoint = run_segment(potential, segment, state["checkpoint"])
        task = Task("sample", "keep", {"number": state["count"]})
        frames = Frames.build(
            structure.numbers, **{k: v for k, v in arrays.items() if k != "kinetic"}, task=task.number
        )
        left = {"restart": np.frombuffer(checkpoint, dtype="uint8")}
        store.publish(new_record(task, 0), dict(frames.arrays()), left)
        state.update(checkpoint=checkpoint, count=state["count"] + 1)

    with Lammps(potential) as alone:
        alone.restart(state["checkpoint"])
        alone.command("timestep 0.002")
        alone.command("fix md all npt temp 2000.0 2000.0 0.1 iso 1.0 1.0 1.0")
        steps = sizes.segment * EVERY
        alone.command(f"thermo {steps}")
        alone.command("run 100 post no")
        theirs = lambda: alone.command(f"run {steps} pre no post no")  # noqa: E731
        seconds = interleaved({"ours": ours, "theirs": theirs}, 4 * sizes.rounds)
    table.add("keep frames/s into Zarr, one walker", sizes.segment / seconds["ours"])
    table.add("keep the same steps of LAMMPS alone", sizes.segment / seconds["theirs"])
    table.add("keep campaign / LAMMPS alone", seconds["theirs"] / seconds["ours"])


def nacl(sizes: Sizes, table: Table) -> None:
    """Compare the mean volume of molten NaCl from a campaign with that of lmp: two runs of each."""
    melt = tuple((t, ps * sizes.melt) for t, ps in MELT)
    spec = {"method": "npt", "temperature": MOLTEN, "walkers": 2, "steps": sizes.nacl, "timestep": 0.002}
    spec |= {"every": THERMO, "segment": 500, "prepare": [{"temperature": t, "time": ps} for t, ps in melt]}
    name = f"nacl-{sizes.cells}-{sizes.nacl}"
    file = nickel(sizes.folder, name, 1, spec)  # the potentials, and the name
    file.write_text(NACL.format(name=name, n=sizes.cells, sample=json.dumps(spec)))
    run = run_campaign(file, workers=2)
    series = run.series()
    ours = joined([mean_of(series["volume"][series["walker"] == w]) for w in (0, 1)])
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * ((sizes.cells,) * 3)
    plain = Plain(TEMPLATES / "potentials" / "nacl_bmhtf.lmp", atoms, MOLTEN, sizes.nacl, melt, THERMO)
    seconds, volumes, wall = pair(sizes.folder / "nacl-lmp", [replace(plain, seed=seed) for seed in (11, 12)])
    theirs = joined([mean_of(v) for v in volumes])
    z = score(ours, theirs)
    table.add(f"nacl mean volume of {len(atoms)} atoms, A^3", ours[0], f"{ours[0]:.1f} +- {ours[1]:.1f}")
    table.add("nacl the same from lmp", theirs[0], f"{theirs[0]:.1f} +- {theirs[1]:.1f}")
    table.add("nacl z", abs(z), f"{z:+.2f}")
    table.add("nacl wall s, campaign", run.wall)
    table.add("nacl wall s, lmp", wall, f"{wall:.1f} (the production {max(seconds):.1f})")


def grid(sizes: Sizes, table: Table) -> None:
    """Run the grid of volumes and temperatures, and print what comes of each volume."""
    file = sampling_of("nacl-nvt-grid", sizes.folder, sizes.grid)
    if sizes.melt < 1.0:
        file.write_text(file.read_text().replace("time: 6", f"time: {6 * sizes.melt:g}"))
    run = run_campaign(file, workers=2)
    first = next(run.frames())
    atoms, mass = first.n_atoms, float(atomic_masses[first.numbers[0]].sum())
    series = run.series()
    late = series["step"] > series["step"].max() * EARLY  # it starts at the melt's temperature
    series = {name: array[late] for name, array in series.items()}
    volumes = series["volume"]
    pressure = -series["trace"] / 3 + atoms * BOLTZMANN * series["temperature"] / volumes  # the virial's, and k T's
    for volume in np.unique(volumes.round(3)):
        here = np.isclose(volumes, volume, rtol=ROUNDING)
        means = []
        for t in np.unique(series["temperature"][here]):
            at = here & (series["temperature"] == t)
            bar, energy = pressure[at].mean() * BAR, series["energy"][at].mean() / atoms
            means.append(f"{t:.0f} K {bar / 1000:+.2f} kbar {energy:.4f} eV/atom")
        density = mass / volume * 1.66053907
        name = f"grid {volume:.0f} A^3, {volume / atoms * 200:.0f} of 200 atoms, {density:.3f} g/cm^3"
        overall = pressure[here].mean() * BAR / 1000
        table.add(f"{name}, kbar", overall, f"mean {overall:+.2f}; " + "; ".join(means))
        table.figures[f"{name}, eV/atom"] = float(series["energy"][here].mean() / atoms)
    table.add("grid least A^3 of 200 atoms", volumes.min() / atoms * 200, f"{volumes.min() / atoms * 200:.0f}")
    table.add("grid most A^3 of 200 atoms", volumes.max() / atoms * 200, f"{volumes.max() / atoms * 200:.0f}")
    table.add("grid wall s", run.wall)


def reached(figures: dict[str, float]) -> dict[str, bool]:
    """Return, for what is asked of the sections that were run, whether it was reached."""
    found = {}
    for name, limit in ASKED.items():
        if name in figures:
            low = name.endswith(" z") or " least " in name
            found[name] = figures[name] <= limit * (1 + ROUNDING) if low else figures[name] >= limit * (1 - ROUNDING)
    return found


def main() -> None:
    """Run the benchmark."""
    commands = parser(__doc__)
    commands.formatter_class = argparse.RawDescriptionHelpFormatter
    commands.description = __doc__
    commands.add_argument("sections", nargs="*", help=f"which of {', '.join(SECTIONS)}; default all", metavar="SECTION")
    commands.add_argument("--folder", type=Path, help="where the runs are kept; default a temporary folder")
    commands.add_argument("--steps", type=int, help="MD steps of each walker in rate (200,000)")
    commands.add_argument("--segment", type=int, help="frames of a segment in rate (250)")
    commands.add_argument("--rounds", type=int, help="of rate (3)")
    commands.add_argument("--nacl", type=int, help="MD steps of each walker in nacl (50,000)")
    commands.add_argument("--grid", type=int, help="MD steps at each point of the grid (1,000)")
    options = commands.parse_args()
    if set(options.sections) - set(SECTIONS):
        commands.error(f"the sections are {', '.join(SECTIONS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="campaign-sampling-"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(folder.resolve())
    if options.quick:
        sizes = replace(sizes, steps=5_000, segment=50, rounds=1, nacl=1_000, cells=2, melt=0.02, grid=200)
    given = {k: getattr(options, k) for k in ("steps", "segment", "rounds", "nacl", "grid")}
    sizes = replace(sizes, **{k: v for k, v in given.items() if v is not None})
    table = Table([], {})
    works = {"rate": rate, "keep": keep, "nacl": nacl, "grid": grid}
    try:
        for section in options.sections or SECTIONS:
            works[section](sizes, table)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    ok = reached(table.figures)
    # runs of a few hundred steps have settled nowhere: the quick run shows the figures and asks nothing of them
    report("sampling", table.rows, table.figures, {k: ASKED[k] for k in ok}, ok=options.quick or all(ok.values()))


if __name__ == "__main__":
    main()
