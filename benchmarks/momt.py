"""MOMT sampling: what a step costs, how fast it learns, walkers that share a bias, thermodynamics, other metals.

    python benchmarks/momt.py                     every section
    python benchmarks/momt.py learn thermo        some of them
    python benchmarks/momt.py --folder DIR ...    keeps the runs: a later section, or call, takes those that are there

cost    us a step of plain NPT, of MOMT with the compiled callback and with the Python one, on one trajectory
learn   nickel of 32 and 108 atoms: seconds, round trips, share of bins visited; plain lmp beside it
shared  two walkers that share a bias on two cores against one walker on one core: round trips a second
thermo  reweighted means of 108 atoms against plain NPT at six temperatures, and the melting temperature
metals  aluminium and niobium with the window found automatically
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from common import interleaved, parser, report
from runs import (
    TEMPLATES,
    Array,
    Plain,
    Run,
    Table,
    end_plain,
    enthalpy,
    joined,
    mean_of,
    nickel,
    run_campaign,
    sampling_of,
    say,
    score,
    start_plain,
)

from campaign.engines import dynamics
from campaign.engines.dynamics import Segment, Start, run_segment
from campaign.engines.guards import Guard
from campaign.engines.lammps import BAR, Lammps
from campaign.engines.lammps_momt import BiasState, Momt
from campaign.engines.lammps_potential import load_potential
from campaign.science import momt
from campaign.science.momt import Ensemble, Learning, Order, Window

SECTIONS = ("cost", "learn", "shared", "thermo", "metals")

#: What nickel is sampled with: K, eV/atom, ps, MD steps between frames, frames in a segment by the atoms.
T0, COLD, HOT, LOW, HIGH, TIMESTEP, EVERY = 2000.0, 900.0, 3500.0, -4.75, -4.05, 0.002, 50
SEGMENT = {32: 500, 108: 250}
SOLID, LIQUID = (1200.0, 1400.0, 1600.0), (2200.0, 2400.0, 2600.0)

#: Thermodynamics leaves out this share of a run, in which the deposits are high, and errors come from so many blocks of
#: the rest.
EARLY, BLOCKS = 0.25, 10

#: What is asked, by the name of the figure: at most where it ends in "z", "%" or "s", at least elsewhere.
ASKED: dict[str, float] = {
    "cost 32 MOMT compiled, overhead %": 15.0,
    "cost 108 MOMT compiled, overhead %": 12.0,
    "learn 32 trips per million steps": 100.0,
    "learn 108 trips per million steps": 30.0,
    "learn 32 bins visited": 0.85,
    "learn 108 bins visited": 0.85,
    "learn 32 wall s": 60.0,
    "learn 108 wall s": 200.0,
    "shared ratio": 1.7,
    "thermo largest z": 3.0,
    "metals al-momt trips per million steps": 30.0,
    "metals nb-momt trips per million steps": 30.0,
}


@dataclass(frozen=True)
class Sizes:
    """How much is done: MD steps, seeds, rounds."""

    folder: Path
    steps: int = 1_000_000
    plain: int = 100_000  # of lmp
    shared: int = 1_000_000
    segment: int = 4000  # frames, of shared
    seeds: int = 3  # of shared
    reference: int = 200_000  # of plain NPT in thermo
    runs: int = 3  # of thermo
    melt: float = 4.0  # ps
    rounds: int = 30
    frames: int = 40  # of a piece in cost


def crystal(atoms: int) -> tuple[Any, Order]:
    """Return nickel of so many atoms, and its order parameter."""
    n = round((atoms / 4) ** (1 / 3))
    unit = bulk("Ni", "fcc", a=3.52, cubic=True)
    return unit * (n, n, n), Order.of_crystal(unit.get_scaled_positions(), (n, n, n), np.array(unit.cell))


def ensemble(atoms: int, low: float = LOW, high: float = HIGH) -> Ensemble:
    """Return the extended ensemble of nickel."""
    return Ensemble(atoms, T0, 1.0 / BAR, Window(low, high, COLD, HOT), Learning.of_size(atoms))


# -- what a step costs ------------------------------------------------------------------------------------------------


class Walker:
    """A walker that goes on piece by piece in one LAMMPS, with what ``run_segment`` does at every frame."""

    def __init__(self, atoms: int, external: Momt | None, total: int, energies: bool = True) -> None:
        structure, _ = crystal(atoms)
        self.external, self.total, self.step = external, total, 0
        segment = Segment(1, EVERY, 0, TIMESTEP, (T0, T0), 1.0)
        potential = load_potential(TEMPLATES / "potentials" / "ni.lmp")
        self.lammps = Lammps(potential, external=external, energies=energies)
        start = Start(structure.numbers, structure.positions, np.array(structure.cell), 1, ((T0, 2.0, 1.0),))
        dynamics._begin(self.lammps, start, segment, TIMESTEP)
        self.lammps.command("reset_timestep 0")
        dynamics._integrate(self.lammps, segment, total * TIMESTEP, TIMESTEP, segment.temperature)
        if external is not None:
            external.begin(0)
        self.lammps.command(f"thermo {EVERY}")
        self.guard = Guard(self.lammps.numbers(), None)
        self.kept: list[dict[str, Array]] = []

    def piece(self, frames: int) -> None:
        """Make some frames."""
        self.kept = []
        for _ in range(frames):
            pre = "no" if self.step else "yes"
            self.lammps.command(f"run {EVERY} pre {pre} post no start 0 stop {self.total}")
            self.step += EVERY
            state = self.lammps.state()
            self.guard.check(state, self.lammps.temperature(), T0, self.step)
            if self.external is not None:
                self.external.exchange()
            self.kept.append(state)


def cost(sizes: Sizes, table: Table) -> None:
    """Time plain NPT and MOMT on one trajectory: the bias is flat, and is learned with deposits next to nothing high.

    All that MOMT does at a step is done, and what LAMMPS has to do is the same to the last bit. MOMT needs the energy
    at every step; once LAMMPS has to give energies of the atoms at all, it then adds those up at every step too. So
    both are timed without energies of the atoms, and with them.
    """
    for atoms in (32, 108):
        total = EVERY * sizes.frames * (sizes.rounds + 1)
        order = crystal(atoms)[1]
        flat = ensemble(atoms)
        flat = replace(
            flat,
            window=Window(LOW, HIGH, T0, T0, stiffness=0.0),
            learning=replace(flat.learning, height=1e-200),
        )

        def biased(use_numba: bool, flat: Ensemble = flat, order: Order = order) -> Momt:
            return Momt(flat, order, BiasState.empty(flat.learning.bins), use_numba=use_numba)

        walkers = {
            "plain NPT": Walker(atoms, None, total, energies=False),
            "MOMT compiled": Walker(atoms, biased(True), total, energies=False),
            "MOMT Python": Walker(atoms, biased(False), total, energies=False),
            "plain NPT, energies of atoms": Walker(atoms, None, total),
            "MOMT compiled, energies of atoms": Walker(atoms, biased(True), total),
        }
        for walker in walkers.values():
            walker.piece(sizes.frames)  # compiles, touches everything once
        works: Mapping[str, Callable[[], object]] = {
            name: lambda walker=walker: walker.piece(sizes.frames)  # type: ignore[misc]
            for name, walker in walkers.items()
        }
        seconds = interleaved(works, sizes.rounds)
        last = [walker.kept[-1]["positions"] for walker in walkers.values()]
        if not all((x == last[0]).all() for x in last):
            raise SystemExit("The trajectories differ: what is compared is not the same work.")
        us = {name: s / (sizes.frames * EVERY) * 1e6 for name, s in seconds.items()}
        for name, value in us.items():
            kind, comma, rest = name.partition(", ")
            plain = us[f"plain NPT{comma}{rest}"]
            over = "" if kind == "plain NPT" else f" ({100 * (value / plain - 1):+.0f}%)"
            table.add(f"cost {atoms} {name}, us a step", value, f"{value:.1f}{over}")
            if over:
                table.figures[f"cost {atoms} {name}, overhead %"] = 100 * (value / plain - 1)


# -- how fast it learns -----------------------------------------------------------------------------------------------


def walk(sizes: Sizes, atoms: int, steps: int, seed: int = 1, **more: Any) -> Run:
    """Run MOMT of nickel as a campaign; ``more`` are keys of the sampling method."""
    spec = {
        "method": "momt",
        "temperature": T0,
        "temperatures": [COLD, HOT],
        "window": [LOW, HIGH],
        "steps": steps,
        "timestep": TIMESTEP,
        "every": EVERY,
        "segment": SEGMENT[atoms],
        **more,
    }
    together = spec.get("walkers_per_task", 1)
    name = f"ni-{atoms}-{steps}-x{spec.get('walkers', 1)}-s{spec['segment']}-{seed}"
    return run_campaign(nickel(sizes.folder, name, round((atoms / 4) ** (1 / 3)), spec, seed), cores=together)


@dataclass(frozen=True)
class Progress:
    """What came of a run of MOMT, over all its walkers.

    Attributes
    ----------
    steps
        MD steps of all walkers.
    trips, trips_seen
        Round trips: counted at every deposit (checkpoint), and from the frames.
    visited, visited_seen
        Share of bins: of those looked at with every deposit, and of those that a frame lies in.
    flatness
        10th percentile over mean of the visited bins.
    outside
        Share of frames outside the window.
    window
        eV/atom.
    """

    steps: int
    trips: float
    trips_seen: float
    visited: float
    visited_seen: float
    flatness: float
    outside: float
    window: tuple[float, float]


def progress(run: Run) -> Progress:
    """Look through the pool and the last checkpoints of a run."""
    last, series = run.last(), run.series()
    atoms = next(run.frames()).n_atoms
    first = next(iter(last.values()))
    low, high = (float(h) for h in first["window"])
    visits = np.sum([extra["visits"] for extra in last.values()], axis=0)
    h = enthalpy(series) / atoms
    q = np.clip(np.nan_to_num(series["order"]), 0.0, 1.0)
    spec = ensemble(atoms, low, high)
    seen = np.histogram2d(h, q, bins=visits.shape, range=[[low, high], [0.0, 1.0]])[0]
    each = [series["walker"] == w for w in np.unique(series["walker"])]
    return Progress(
        steps=int(sum(series["step"][mask].max() for mask in each)),
        trips=float(sum(int(extra["counts"][3]) for extra in last.values())) / 2,
        trips_seen=sum(momt.round_trips(h[mask], q[mask], spec) for mask in each),
        visited=momt.coverage(visits)[0],
        visited_seen=float(np.count_nonzero(seen) / seen.size),
        flatness=momt.coverage(visits)[1],
        outside=float(((h < low) | (h > high)).mean()),
        window=(low, high),
    )


def tell(table: Table, name: str, found: Progress) -> None:
    """Add what came of a run."""
    millions = found.steps / 1e6
    table.add(f"{name} trips per million steps", found.trips / millions)
    table.add(f"{name} the same, seen in the frames", found.trips_seen / millions)
    table.add(f"{name} bins visited", found.visited)
    table.add(f"{name} bins with a frame", found.visited_seen)
    table.add(f"{name} flatness", found.flatness)
    table.add(f"{name} frames outside the window", found.outside)


def learn(sizes: Sizes, table: Table) -> None:
    """Run MOMT of 32 and 108 atoms as campaigns, and lmp beside them.

    A run of 108 atoms makes about 30 round trips, give or take 5: what counts is the mean of those of ``thermo``.
    """
    for atoms in (32, 108):
        run = walk(sizes, atoms, sizes.steps)
        span, _ = run.spans()
        name = f"learn {atoms}"
        table.add(f"{name} wall s", run.wall, f"{run.wall:.1f} (tasks alone {span:.1f})")
        tell(table, name, progress(run))
        if atoms == 108 and sizes.runs > 1:
            found = [progress(walk(sizes, atoms, sizes.steps, seed)) for seed in range(1, sizes.runs + 1)]
            rates = [p.trips / p.steps * 1e6 for p in found]
            mean, error = float(np.mean(rates)), float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
            each = " ".join(f"{r:g}" for r in rates)
            table.add(f"{name} trips, mean of {len(rates)} runs", mean, f"{mean:.1f} +- {error:.1f} ({each})")
            table.figures[f"{name} trips per million steps"] = mean
        plain = Plain(TEMPLATES / "potentials" / "ni.lmp", crystal(atoms)[0], T0, sizes.plain)
        folder = sizes.folder / f"lmp-{atoms}"
        loop, _ = end_plain(folder, start_plain(folder, plain))
        scaled = loop * sizes.steps / sizes.plain
        table.add(f"{name} s of lmp, plain NPT without output", scaled, f"{scaled:.1f} (from {sizes.plain} steps)")
        table.add(
            f"{name} campaign / lmp", run.wall / scaled, f"{run.wall / scaled:.3f} (tasks alone {span / scaled:.3f})"
        )


# -- walkers that share a bias ----------------------------------------------------------------------------------------


def shared(sizes: Sizes, table: Table) -> None:
    """Count round trips a second of two walkers with one bias, and of one walker."""
    both = {"walkers": 2, "walkers_per_task": 2, "segment": sizes.segment}
    kinds = {"1 walker, 1 core": {"segment": sizes.segment}, "2 walkers, 1 bias, 2 cores": both}
    trips: dict[str, list[float]] = {kind: [] for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(1, sizes.seeds + 1):
        for kind in list(kinds)[:: 1 if seed % 2 else -1]:
            run = walk(sizes, 32, sizes.shared, seed, **kinds[kind])
            trips[kind].append(progress(run).trips)
            seconds[kind].append(run.spans()[1])  # one task at a time: launching and storing are in it
            say(f"shared, seed {seed}, {kind}: {trips[kind][-1]:g} trips in {seconds[kind][-1]:.1f} s")
    rates, errors = {}, {}
    for kind in kinds:
        count, each = sum(trips[kind]), np.array(trips[kind]) / np.array(seconds[kind])
        rates[kind] = count / sum(seconds[kind])
        poisson = 1 / np.sqrt(count) if count else np.inf
        scatter = each.std(ddof=1) / np.sqrt(len(each)) / each.mean() if len(each) >= 3 and each.mean() else 0.0
        errors[kind] = max(poisson, scatter)
        text = f"{rates[kind]:.3f} +- {rates[kind] * errors[kind]:.3f} ({count:g} trips in {sum(seconds[kind]):.0f} s)"
        table.add(f"shared {kind}, trips/s", rates[kind], text)
    one, two = kinds
    if rates[one]:
        ratio, error = rates[two] / rates[one], float(np.hypot(errors[one], errors[two]))
        table.add("shared ratio", ratio, f"{ratio:.2f} +- {ratio * error:.2f}")
        table.figures["shared ratio error"] = ratio * error


# -- thermodynamics ---------------------------------------------------------------------------------------------------


def log_weights(series: Mapping[str, Array], temperature: float) -> Array:
    """Return the logarithm of the weight of each frame at a temperature: the one place where that is chosen."""
    return momt.log_weight(series["bias"], enthalpy(series), temperature)


def settled(run: Run) -> dict[str, Array]:
    """Return the frames of one walker after the first part of its run."""
    series = run.series()
    keep = slice(int(EARLY * len(series["step"])), None)
    return {name: array[keep] for name, array in series.items()}


def is_liquid(series: Mapping[str, Array], atoms: int) -> Array:
    """Tell which frames are liquid; all others count as the crystal."""
    p = ensemble(atoms).parameters()
    h = enthalpy(series) / atoms
    return np.array([momt.phase_of(a, b, p) == 1 for a, b in zip(h, series["order"], strict=True)])


def _melting(series: Mapping[str, Array], liquid: Array) -> float:
    """Return the temperature at which both phases weigh the same; NaN where there is only one of them."""

    def excess(t: float) -> float:
        w = log_weights(series, t)
        return float(np.logaddexp.reduce(w[liquid]) - np.logaddexp.reduce(w[~liquid]))

    low, high = COLD, HOT
    if not liquid.any() or liquid.all() or excess(low) > 0 or excess(high) < 0:
        return float("nan")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return (low + high) / 2


def melting(series: Mapping[str, Array], atoms: int) -> tuple[float, float]:
    """Return the melting temperature, K, and its standard error from a jackknife over blocks of the run."""
    liquid = is_liquid(series, atoms)
    blocks = np.array_split(np.arange(len(liquid)), BLOCKS)
    left = []
    for block in blocks:
        rest = np.delete(np.arange(len(liquid)), block)
        left.append(_melting({name: array[rest] for name, array in series.items()}, liquid[rest]))
    error = np.sqrt((BLOCKS - 1) / BLOCKS * ((np.array(left) - np.mean(left)) ** 2).sum())
    return _melting(series, liquid), float(error)


def plain_npt(sizes: Sizes, temperature: float) -> dict[str, Array]:
    """Return energy and volume of plain NPT of 108 atoms: a liquid at temperatures where that is stable."""
    structure, _ = crystal(108)
    melt = ((4500.0, sizes.melt, 1.0),) if temperature in LIQUID else ()
    start = Start(
        structure.numbers, structure.positions, np.array(structure.cell), 7, (*melt, (temperature, sizes.melt, 1.0))
    )
    segment = Segment(sizes.reference // EVERY, EVERY, 0, TIMESTEP, (temperature, temperature), 1.0)
    arrays, _ = run_segment(load_potential(TEMPLATES / "potentials" / "ni.lmp"), segment, start)
    return {"energy": arrays["energy"], "volume": np.abs(np.linalg.det(arrays["cell"]))}


def thermo(sizes: Sizes, table: Table) -> None:
    """Compare reweighted means of MOMT with plain NPT, and estimate the melting temperature.

    The bias goes on learning, with deposits that become ever smaller. One that is frozen is exact in principle, and in
    this cell leaves the walker for half a million steps in a crystal that has turned.
    """
    atoms = 108
    runs = [settled(walk(sizes, atoms, sizes.steps, seed)) for seed in range(1, sizes.runs + 1)]
    scores = []
    for t in (*SOLID, *LIQUID):
        plain = plain_npt(sizes, t)
        weights = [log_weights(series, t) for series in runs]
        worth = sum(float(np.exp(2 * np.logaddexp.reduce(w) - np.logaddexp.reduce(2 * w))) for w in weights)
        for name, unit, value in (
            ("h", "eV/atom", lambda s: enthalpy(s) / atoms),
            ("V", "A^3/atom", lambda s: s["volume"] / atoms),
        ):
            ours = joined([momt.reweighted(value(s), w, BLOCKS) for s, w in zip(runs, weights, strict=True)])
            theirs = mean_of(value(plain), BLOCKS)
            scores.append(score(ours, theirs))
            text = f"{ours[0]:.4f}({ours[1]:.4f}) NPT {theirs[0]:.4f}({theirs[1]:.4f}) z {scores[-1]:+.1f}"
            table.add(f"thermo {name} at {t:.0f} K, {unit}", ours[0], f"{text}, worth {worth:.0f} frames")
    table.add("thermo largest z", max(map(abs, scores)))
    value, error = joined([melting(series, atoms) for series in runs])
    table.add("thermo melting temperature, K", value, f"{value:.0f} +- {error:.0f}")
    table.figures["thermo melting temperature error, K"] = error


# -- other metals -----------------------------------------------------------------------------------------------------


def metals(sizes: Sizes, table: Table) -> None:
    """Run the templates with automatic windows, their sampling only."""
    for template in ("al-momt", "nb-momt"):
        run = run_campaign(sampling_of(template, sizes.folder, sizes.steps))
        found = progress(run)
        low, high = found.window
        table.add(f"metals {template} window, eV/atom", high - low, f"{low:.4f} to {high:.4f}")
        table.add(f"metals {template} wall s", run.wall)
        tell(table, f"metals {template}", found)


# -- the command ------------------------------------------------------------------------------------------------------


def sizes_of(options: argparse.Namespace, folder: Path) -> Sizes:
    """Return how much is done: ``--quick``, and what was given."""
    quick = {"steps": 20_000, "plain": 5_000, "shared": 20_000, "segment": 100, "seeds": 1, "reference": 2_000}
    sizes = Sizes(folder, **(quick | {"melt": 0.5, "rounds": 2, "frames": 4} if options.quick else {}))
    given = {k: v for k, v in vars(options).items() if k in Sizes.__dataclass_fields__ and v is not None}
    return replace(sizes, **{k: v for k, v in given.items() if k != "folder"})


def reached(figures: Mapping[str, float]) -> dict[str, bool]:
    """Return, for what is asked of the sections that were run, whether it was reached."""
    found = {k: limit for k, limit in ASKED.items() if k in figures}
    return {
        k: figures[k] <= limit if k.endswith((" z", " s", "%")) else figures[k] >= limit for k, limit in found.items()
    }


def main() -> None:
    """Run the benchmark."""
    commands = parser(__doc__)
    commands.formatter_class = argparse.RawDescriptionHelpFormatter
    commands.description = __doc__
    commands.add_argument("sections", nargs="*", help=f"which of {', '.join(SECTIONS)}; default all", metavar="SECTION")
    commands.add_argument("--folder", type=Path, help="where the runs are kept; default a temporary folder")
    commands.add_argument("--steps", type=int, help="MD steps of learn, thermo and metals (1,000,000)")
    commands.add_argument("--plain", type=int, help="MD steps of lmp in learn (100,000)")
    commands.add_argument("--shared", type=int, help="MD steps of a walker in shared (1,000,000)")
    commands.add_argument("--segment", type=int, help="frames of a segment in shared (4000)")
    commands.add_argument("--seeds", type=int, help="of shared (3)")
    commands.add_argument("--runs", type=int, help="MOMT runs of thermo, each with a seed of its own (3)")
    commands.add_argument("--reference", type=int, help="MD steps of plain NPT in thermo (200,000)")
    commands.add_argument("--rounds", type=int, help="of cost (30)")
    options = commands.parse_args()
    if set(options.sections) - set(SECTIONS):
        commands.error(f"the sections are {', '.join(SECTIONS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="campaign-momt-"))
    folder.mkdir(parents=True, exist_ok=True)
    table = Table([], {})
    sizes = sizes_of(options, folder.resolve())
    works = {"cost": cost, "learn": learn, "shared": shared, "thermo": thermo, "metals": metals}
    try:
        for section in options.sections or SECTIONS:
            works[section](sizes, table)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    ok = reached(table.figures)
    # a run of seconds learns nothing: the quick run shows the figures and asks nothing of them
    report("momt", table.rows, table.figures, {k: ASKED[k] for k in ok}, ok=options.quick or all(ok.values()))


if __name__ == "__main__":
    main()
