"""Tests of the physics that a model gives: density, diffusion, conductivity, the reference along its trajectory.

All work on runs that ``validate_runs`` planned and ``validate_md`` made: their first fifth is the way to equilibrium,
and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.config.quantities import PERCENT, parse, unit_of
from campaign.frames import Array
from campaign.science import transport
from campaign.science.blocks import KNOWN, Agreement, compare, mean_and_error, settled, whole
from campaign.stages.reference import reference_forces
from campaign.stages.verdicts import Pair, compared, failed, read_result, row
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.store.store import Store

#: g/mol over Å^3 in g/cm^3.
GRAMS = 1.66053906660
#: Å^2/ps, as people write it.
DIFFUSION = "10^-8 m^2/s"
#: Points of a curve that the report draws.
POINTS = 200
#: Exponents of the mean square displacement that are diffusion: in a solid it is 0, before the first collisions 2. Of
#: molten NaCl, 64 ions, from lags of 0.5 ps on, it is 0.89 to 1.03 in runs of 40 ps.
DIFFUSIVE = (0.7, 1.3)


@dataclass(frozen=True)
class Trajectory:
    """The settled part of a run.

    Attributes
    ----------
    numbers : (a,)
    positions : (n, a, 3)
        Å.
    cells : (n, 3, 3)
        Å.
    dt, time, temperature
        ps between frames; ps of the whole run; K of the thermostat.
    """

    numbers: Array
    positions: Array
    cells: Array
    dt: float
    time: float
    temperature: float

    @property
    def volumes(self) -> Array:
        """Return (n,) Å^3."""
        return np.asarray(np.abs(np.linalg.det(self.cells)))

    def displaced(self) -> Array:
        """Return (n, a, 3) where the atoms have gone, without the drift of the whole, Å."""
        from ase.data import atomic_masses

        moved = transport.unwrap(self.positions, self.cells, self.dt)
        return transport.without_drift(moved, atomic_masses[self.numbers])


def trajectory(store: Store, run: str, spec: dict[str, Json]) -> Trajectory:
    """Read the settled part of a run, and of its arrays only what moves.

    Parameters
    ----------
    store
        The store.
    run
        Task that summed the run up.
    spec
        How it was run (``validate_runs.KEYS``).
    """
    parts = [store.arrays("validate", s, ("numbers", "positions", "cell")) for s in read_result(store, run)["segments"]]
    first = settled(sum(len(p["cell"]) for p in parts))
    positions, cells = (np.concatenate([p[name] for p in parts])[first:] for name in ("positions", "cell"))
    numbers = np.concatenate([p["numbers"] for p in parts])[0].astype(int)
    return Trajectory(numbers, positions, cells, spec["timestep"] * spec["every"], spec["time"], spec["temperature"])


def unsound(store: Store, model: Sequence[str], reference: Sequence[str] = ()) -> str:
    """Say which of some runs broke a criterion of stability, and how; nothing where none did.

    What is read from a run that drifts, or ended early, says nothing: neither of the model, nor to compare it with.
    """
    for side, runs in (("model", model), ("reference potential", reference)):
        for run in runs:
            found = read_result(store, run)
            broken = [c["name"] for c in found["criteria"] if not c["ok"]]
            if not broken:
                continue
            which = f"The run with the {side}, {found['ensemble'].upper()} at {found['temperature']:g} K,"
            if "time reached" in broken:
                bad = (found["first_bad"] or {}).get("criterion", "no frame was kept")
                return f"{which} reached {found['reached']:g} of {found['time']:g} ps: {bad}."
            return f"{which} broke what stability asks for: {', '.join(broken)}."
    return ""


def agree(model: Pair, reference: Pair, p: dict[str, Json], kind: str) -> tuple[Agreement, str]:
    """Compare a value of a test with its own threshold; return also the unit of the difference."""
    limit, relative = parse(p["threshold"], kind)
    most = limit / KNOWN
    if p.get("error") is not None:
        most, percent = parse(p["error"], kind)
        if percent != relative and reference[0]:
            most *= abs(reference[0]) / 100.0 if percent else 100.0 / abs(reference[0])
    return compare(model, reference, limit, most, relative), unit_of(kind, relative)


def work_density(task: Task, context: Context, store: Store) -> Outcome:
    """Compare the densities at some temperatures."""
    from ase.data import atomic_masses

    p = task.params
    runs = p["runs"]
    mine, others = task.inputs[: len(runs)], task.inputs[len(runs) :]
    if cause := unsound(store, mine, others):
        return failed("density", p["threshold"], cause)

    def density(run: str, spec: dict[str, Json]) -> Pair:
        found = trajectory(store, run, spec)
        return mean_and_error(GRAMS * atomic_masses[found.numbers].sum() / found.volumes)

    entries = []
    for k, spec in enumerate(runs):
        model = density(mine[k], spec)
        reference = density(others[k], spec) if others else (p["reference"][k], 0.0)
        name = f"{spec['temperature']:g} K"
        entries.append(row(name, "g/cm^3", model, reference, *agree(model, reference, p, "density")))
    more: dict[str, Json] = {"temperatures": [s["temperature"] for s in runs], "given": not others}
    return compared("density", entries, p["threshold"], runs[0]["time"], more)


def work_diffusion(task: Task, context: Context, store: Store) -> Outcome:
    """Compare the self-diffusion of each species."""
    from ase.data import chemical_symbols

    p = task.params
    (spec,) = p["runs"]
    if cause := unsound(store, task.inputs[:1], task.inputs[1:]):
        return failed("diffusion", p["threshold"], cause)
    found: list[dict[int, transport.Measured]] = []
    for run in task.inputs:
        path = trajectory(store, run, spec)
        try:
            plan = transport.plan(len(path.positions), path.dt, p["blocks"], _window(p))
        except transport.TooShort as error:
            return _too_short("diffusion", p, spec["time"], error)
        try:
            moved = path.displaced()
        except transport.TooCoarse as error:
            return failed("diffusion", p["threshold"], str(error))
        found.append({int(z): transport.diffusion(moved[:, path.numbers == z], plan) for z in np.unique(path.numbers)})
    model, reference = found
    entries, curves = [], {}
    for z, theirs in reference.items():
        name, ours = chemical_symbols[z], model[z]
        pairs = (ours.value, ours.error), (theirs.value, theirs.error)
        agreement, unit = agree(*pairs, p, "diffusion")
        entries.append(row(name, DIFFUSION, *pairs, agreement, unit if unit == PERCENT else DIFFUSION))
        entries[-1]["exponent"] = {"model": ours.exponent, "reference": theirs.exponent}
        curves[name] = _curves(ours, theirs)
    lags = {"fit": [plan.first * plan.dt, plan.last * plan.dt], "blocks": plan.blocks}
    if cause := _not_diffusive(entries):
        return failed("diffusion", p["threshold"], cause)
    return compared("diffusion", entries, p["threshold"], spec["time"], {"curves": curves, "run": spec, **lags})


def _not_diffusive(entries: Sequence[dict[str, Json]]) -> str:
    """Say of which species the mean square displacement is no straight line through the lags: a slope says nothing."""
    for entry in entries:
        for side, exponent in entry["exponent"].items():
            if not DIFFUSIVE[0] <= exponent <= DIFFUSIVE[1]:
                low, high = DIFFUSIVE
                return (
                    f"{entry['name']} does not diffuse in the {side}'s run: between the lags of the fit its mean "
                    f"square displacement grows as time to the power {exponent:.2g}, and {low:g} to {high:g} is asked. "
                    "Write later lags as 'fit' and a longer 'time', or test no diffusion of what is solid."
                )
    return ""


def work_conductivity(task: Task, context: Context, store: Store) -> Outcome:
    """Compare the ionic conductivity, by Einstein and by Green-Kubo."""
    from ase.data import chemical_symbols

    p = task.params
    (spec,) = p["runs"]
    if cause := unsound(store, task.inputs[:1], task.inputs[1:]):
        return failed("conductivity", p["threshold"], cause)
    found = []
    for run in task.inputs:
        path = trajectory(store, run, spec)
        try:
            plan = transport.plan(len(path.positions), path.dt, p["blocks"], _window(p))
            longest = transport.plan(len(path.positions), path.dt, p["blocks"], (plan.dt, p["plateau"][1]))
        except transport.TooShort as error:
            return _too_short("conductivity", p, spec["time"], error)
        charges = np.array([p["charges"][chemical_symbols[z]] for z in path.numbers])
        try:
            moment = transport.dipole(path.displaced(), charges)
        except transport.TooCoarse as error:
            return failed("conductivity", p["threshold"], str(error))
        volume = float(path.volumes.mean())
        einstein = transport.einstein_conductivity(moment, volume, path.temperature, plan)
        kubo = transport.green_kubo_conductivity(moment, volume, path.temperature, longest, tuple(p["plateau"]))
        found.append({"Einstein": einstein, "Green-Kubo": kubo})
    model, reference = found
    entries, curves = [], {}
    for name, theirs in reference.items():
        ours = model[name]
        pairs = (ours.value, ours.error), (theirs.value, theirs.error)
        entries.append(row(name, "S/cm", *pairs, *agree(*pairs, p, "conductivity")))
        curves[name] = _curves(ours, theirs)
    lags = {"fit": [plan.first * plan.dt, plan.last * plan.dt], "blocks": plan.blocks, "plateau": p["plateau"]}
    return compared("conductivity", entries, p["threshold"], spec["time"], {"curves": curves, "run": spec, **lags})


def _window(p: dict[str, Json]) -> tuple[float, float] | None:
    return (p["fit"][0], p["fit"][1]) if p["fit"] else None


def _too_short(method: str, p: dict[str, Json], time: float, error: transport.TooShort) -> Outcome:
    """Say how long a run must be for the lags and blocks that are asked for, the way to equilibrium included."""
    cause = (
        f"The run of {time:g} ps is too short: {p['blocks']} blocks with the lags of the fit need about "
        f"{whole(error.needed):.3g} ps. Write a longer 'time', fewer 'blocks' or a shorter 'fit'."
    )
    return failed(method, p["threshold"], cause)


def _curves(model: transport.Measured, reference: transport.Measured) -> dict[str, list[float]]:
    """Return two curves, thinned, as JSON."""
    keep = np.unique(np.linspace(0, len(model.time) - 1, min(POINTS, len(model.time))).astype(int))
    parts = {"time": model.time, "model": model.curve, "reference": reference.curve}
    return {name: [float(f"{x:.6g}") for x in values[keep]] for name, values in parts.items()}


def work_rerun(task: Task, context: Context, store: Store) -> Outcome:
    """Compare pressure and energy of the model and of the reference along the model's trajectory."""
    from ase.units import kB

    from campaign.engines.lammps import BAR
    from campaign.frames import Frames

    p = task.params
    (spec,) = p["runs"]
    if cause := unsound(store, task.inputs):
        return failed("rerun", p["threshold"], cause)
    segments = read_result(store, task.inputs[0])["segments"]
    counts = np.array([len(store.arrays("validate", s, ("energy",))["energy"]) for s in segments])
    first = settled(int(counts.sum()))
    chosen = np.unique(np.linspace(first, counts.sum() - 1, min(p["frames"], counts.sum() - first)).astype(int))
    blocks, kinetic = [], []
    for k, segment in enumerate(segments):
        start = int(counts[:k].sum())
        rows = chosen[(chosen >= start) & (chosen < start + counts[k])] - start
        if len(rows):
            blocks.append(store.frames("validate", segment, rows.tolist()))
            kinetic.append(store.arrays("validate", segment, ("kinetic",))["kinetic"][rows])
    frames = Frames.concat(blocks)
    energy, forces, stress = reference_forces(task, context).evaluate(frames)
    ideal = (frames.n_atoms - 1) * kB * np.concatenate(kinetic) / frames.volume  # the centre of mass is at rest
    ours, theirs = (BAR * (ideal - np.trace(s, axis1=1, axis2=2) / 3.0) for s in (frames.stress, stress))
    entries = [_along("pressure", "bar", ours, theirs, p["threshold"]["pressure"])]
    mine, other = (1e3 * e / frames.n_atoms for e in (frames.energy, energy))
    entries.append(_along("energy", "meV/atom", mine, other, p["threshold"]["energy"]))
    series = {"time": spec["timestep"] * spec["every"] * (chosen + 1), "model": ours, "reference": theirs}
    more: dict[str, Json] = {
        "run": spec,
        "force_rmse": float(np.sqrt(((frames.forces - forces) ** 2).mean())),
        "series": {k: [float(f"{x:.6g}") for x in v] for k, v in series.items()},
    }
    return compared("rerun", entries, p["threshold"], spec["time"], more)


def _along(name: str, unit: str, ours: Array, theirs: Array, asked: str | None) -> dict[str, Json]:
    """Compare two series of the same frames: what counts is the error of their difference, not of their means."""
    limit = np.inf
    if asked is not None:
        limit = parse(asked, name)[0] * (1e3 if name == "energy" else 1.0)
    found = Agreement(*mean_and_error(ours - theirs), limit, limit / KNOWN)
    entry = row(name, unit, mean_and_error(ours), mean_and_error(theirs), found, unit)
    return entry if asked is not None else entry | {"ok": None, "short": False, "limit": None, "most": None}


def work_overlap(task: Task, context: Context, store: Store) -> Outcome:
    """Ask whether the model's frames lie as near to the reference's as those to each other."""
    from campaign.science.overlap import WANDERS, matches
    from campaign.stages.verdicts import publish

    p = task.params
    (spec,) = p["runs"]
    if cause := unsound(store, task.inputs[:1], task.inputs[1:]):
        return failed("overlap", p["threshold"], cause)
    sides, rows = zip(*(_spread(trajectory(store, run, spec), p["frames"]) for run in task.inputs), strict=True)
    describe, distances = _distances(p, np.unique(sides[0].numbers).tolist())
    times = [spec["timestep"] * spec["every"] * r for r in rows]
    model, reference = (describe(frames) for frames in sides)
    to_first = [distances(side, reference[:1], reference)[:, 0] for side in (model, reference)]
    own = distances(reference, reference, reference)
    found = matches(distances(model, reference, reference), own)
    share = min(found["share"], found["covered"])
    said = (
        f"{100 * found['share']:.0f} % of the model's frames are within {found['limit']:.3g} of the reference's, and "
        f"{100 * found['covered']:.0f} % of the reference's within it of the model's, as 95 % of the reference's own "
        f"are of each other; at least {100 * p['threshold']:g} % of both is asked"
    )
    causes = []
    if found["wander"] > WANDERS:
        causes.append(
            f"The reference's run has not settled: its ends are {found['wander']:.2g} times as far apart as its "
            "neighbouring quarters. Write a longer 'time'."
        )
    if found["share"] < p["threshold"]:
        causes.append("The model goes where the reference does not.")
    if found["covered"] < p["threshold"]:
        causes.append("The reference goes where the model does not.")
    return publish(
        {
            "method": "overlap",
            "pass": not causes,
            "cause": " ".join(causes),
            "headline": {"share": share},
            "threshold": p["threshold"],
            "says": [said],
            "rows": [],
            "run": spec,
            "distance": p["distance"],
            "share": found["share"],
            "covered": found["covered"],
            "limit": found["limit"],
            "nearest": {k: [round(float(x), 6) for x in found[k]] for k in ("model", "reference")},
            "first": {
                name: {"time": np.round(t, 4).tolist(), "distance": np.round(d, 6).tolist()}
                for name, t, d in zip(("model", "reference"), times, to_first, strict=True)
            },
        }
    )


def _spread(path: Trajectory, frames: int) -> tuple[Any, Array]:
    """Return evenly spaced frames of a trajectory, and the number of each since its settled part began."""
    from campaign.frames import Frames

    rows = np.unique(np.linspace(0, len(path.positions) - 1, min(frames, len(path.positions))).astype(int))
    return Frames.build(path.numbers, path.positions[rows], path.cells[rows]), rows


def _distances(p: dict[str, Json], species: list[int]) -> tuple[Any, Any]:
    """Return what describes a block of frames, and what gives the (n, m) distances of two descriptions.

    The latter also takes the description of the whole reference, which says what is near and what is far.
    """
    from campaign.engines.descriptors import Descriptor
    from campaign.science.overlap import feature_distances, rematch_distances

    if p["distance"] == "rematch":
        from dscribe.kernels import REMatchKernel

        kernel = REMatchKernel(alpha=p["gamma"], metric="linear", normalize_kernel=True)
        soap = Descriptor(species, model="soap", cutoff=p["cutoff"])
        return soap.atoms, lambda a, b, whole: rematch_distances(kernel, a, b)
    schnet = Descriptor(species, p["seed"], cutoff=p["cutoff"], device="cpu")
    return schnet, lambda a, b, whole: feature_distances(a, b, whole.astype(float).std(axis=0))
