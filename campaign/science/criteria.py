"""When has molecular dynamics with a model failed? The criteria of the RND paper and of the NPT study before it.

Failure = drift of energy or temperature, atoms on top of each other, very large forces (Finkbeiner, Tovey and Holm,
PRL 132, 167301, 2024), or a volume above 1.5 times the equilibrium volume.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from campaign.frames import Array, Frames
from campaign.science.blocks import settled
from campaign.science.neighbours import closest_ratio, minimum_distance

#: Where nothing is asked: closest pair over the sum of covalent radii, below which the atoms have collapsed on each
#: other; largest force on any atom, eV/Å; volume over the equilibrium volume, or that over the volume; kinetic
#: temperature over its set point.
GUARDS = {"closest": 0.6, "force": 30.0, "volume": 1.5, "temperature": 2.0}
#: Mean temperature after the first fifth away from its set point, as a fraction; noise of a short run is allowed for.
TEMPERATURE_DRIFT = 0.15
#: Change of the potential energy after the first fifth (fitted line), eV/atom: below it nothing has happened. Melting,
#: the smallest change that matters, is 0.16 for NaCl.
ENERGY_DRIFT = 0.05
#: So many standard errors of that change are noise, where they are more than the limit above.
ENERGY_NOISE = 4.0
#: Time after which the energy has forgotten itself, ps: 0.33 to 0.40 measured for 64 atoms of NaCl at 1400 K and 1 bar
#: from the spread of changes over 2.5, 5 and 10 ps (barostat 1 ps), less for the crystal at 900 K.
ENERGY_MEMORY = 0.4
#: Blocks that this part is cut into where its own noise is measured.
BLOCKS = 10
#: Time after which a thermostatted temperature has forgotten itself, ps.
MEMORY = 0.1
#: Points of a series that the report draws.
POINTS = 500


def judge(
    run: Frames,
    kinetic: Array,
    equilibrium: Frames,
    asked: dict[str, Any],
    failure: str = "",
    sign: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge a run.

    Parameters
    ----------
    run
        Its frames, in order; none where it failed before the first that is kept.
    kinetic : (n,)
        Kinetic temperatures, K.
    equilibrium
        Frames near the run's temperature, whose mean volume (Å^3) counts as the equilibrium's.
    asked
        ``time`` (ps), ``timestep`` (ps), ``every``, ``temperature`` (K), ``pressure`` (bar), ``ensemble``, and
        ``guards``, in place of ``GUARDS``.
    failure
        Why it ended early, if it did.
    sign
        The first sign of failure, where the run was watched at every step and stopped there (``guards.FirstSign``).

    Returns
    -------
    dict
        pass, headline, criteria, first_bad, series: what the report shows.
    """
    if not len(run):
        return _nothing(asked, failure, sign, float(equilibrium.volume.mean()))
    dt = asked["every"] * asked["timestep"]
    time = dt * (1 + np.arange(len(run)))
    force = np.linalg.norm(run.forces, axis=2).max(axis=1)
    broken, criteria = _guarded(run, kinetic, force, float(equilibrium.volume.mean()), asked)
    criteria += _drifts(run, kinetic, time, asked["temperature"])
    reached = float(time[-1])
    if sign is not None:
        reached = max(reached, sign["step"] * asked["timestep"])
        _add_sign(criteria, sign, asked, float(equilibrium.volume.mean()))
    whole = not failure and reached >= asked["time"] - dt
    criteria.append(_time_reached(asked, reached, whole, failure))
    series = {
        "time": time,
        "temperature": kinetic,
        "energy": run.energy / run.n_atoms,
        "volume": run.volume / run.n_atoms,
        "max_force": force,
        "min_distance": minimum_distance(run),
    }
    keep = np.unique(np.linspace(0, len(run) - 1, min(len(run), POINTS)).astype(int))
    return {
        "method": "stability",
        "pass": all(c["ok"] for c in criteria),
        "headline": {"reached": reached, "volume": float(run.volume.mean() / run.n_atoms)},
        **{k: asked[k] for k in ("ensemble", "temperature", "pressure", "time")},
        "reached": reached,
        "criteria": criteria,
        "first_bad": _first_bad(run, time, reached, broken, sign, failure),
        "series": {k: np.round(v[keep], 5).tolist() for k, v in series.items()},
    }


def _guarded(
    run: Frames, kinetic: Array, force: Array, equilibrium: float, asked: dict[str, Any]
) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """Return which frames break each guard, and the criteria on them; ``equilibrium`` is a volume, Å^3."""
    ratio = closest_ratio(run)
    volume = run.volume / equilibrium
    guards = GUARDS | asked.get("guards", {})
    closest, hardest, largest, hottest = (guards[name] for name in GUARDS)
    swollen = (volume > largest) | (volume < 1.0 / largest)  # a cell that collapses is as bad as one that grows
    extreme = volume[np.argmax(np.abs(np.log(volume)))]
    hot = kinetic > hottest * asked["temperature"]
    each = {
        "closest pair": (ratio < closest, closest, ratio.min(), "of the covalent radii"),
        "largest force": (force > hardest, hardest, force.max(), "eV/Å"),
        "volume": (swollen, largest, extreme, "of the equilibrium"),
        "temperature": (hot, hottest, kinetic.max() / asked["temperature"], "of the set point"),
    }
    criteria = [
        {"name": name, "limit": limit, "worst": float(worst), "unit": unit, "ok": not over.any()}
        for name, (over, limit, worst, unit) in each.items()
    ]
    return {name: over for name, (over, *_) in each.items()}, criteria


def _first_bad(
    run: Frames, time: Array, reached: float, broken: dict[str, Array], sign: dict[str, Any] | None, failure: str
) -> dict[str, Any] | None:
    """Return when and how a run went wrong first: at a frame, between two, or in the end; None where it did not."""
    bad = np.logical_or.reduce(list(broken.values()))
    if bad.any():
        k = int(np.argmax(bad))
        criterion = next(name for name, over in broken.items() if over[k])
        return {"time": float(time[k]), "criterion": criterion, "frame": run.ids[k], "step": int(run.step[k])}
    if sign is not None:
        return {"time": reached, "criterion": sign["criterion"], "frame": run.ids[-1], "step": sign["step"]}
    if failure:
        return {"time": reached, "criterion": failure, "frame": run.ids[-1], "step": int(run.step[-1])}
    return None


def _time_reached(asked: dict[str, Any], reached: float, ok: bool, failure: str) -> dict[str, Any]:
    return {"name": "time reached", "limit": asked["time"], "worst": reached, "unit": "ps", "ok": ok, "cause": failure}


def _add_sign(criteria: list[dict[str, Any]], sign: dict[str, Any], asked: dict[str, Any], volume: float) -> None:
    """Enter a sign seen between the kept frames, which may themselves keep every criterion.

    A sign comes in its own unit; the volume and the temperature of a verdict are relative.
    """
    scale = {"volume": volume, "temperature": float(asked["temperature"])}.get(sign["criterion"], 1.0)
    value, limit = (None if sign[name] is None else sign[name] / scale for name in ("value", "limit"))
    for criterion in criteria:
        if criterion["name"] == sign["criterion"] and value is not None:
            worst = min if sign["criterion"] == "closest pair" else max
            criterion.update(worst=float(worst(value, criterion["worst"])), ok=False)
            return
    unit = {"volume": "of the equilibrium", "temperature": "of the set point"}.get(sign["criterion"], sign["unit"])
    criteria.append({"name": sign["criterion"], "limit": limit, "worst": value, "unit": unit, "ok": False})


def _nothing(asked: dict[str, Any], failure: str, sign: dict[str, Any] | None, volume: float) -> dict[str, Any]:
    """Return the verdict on a run of which no frame was kept."""
    reached = sign["step"] * asked["timestep"] if sign else 0.0
    criteria: list[dict[str, Any]] = []
    if sign is not None:
        _add_sign(criteria, sign, asked, volume)
    broken = sign["criterion"] if sign else failure or "no frame was kept"
    first = {"time": reached, "criterion": broken, "frame": None}
    return {
        "method": "stability",
        "pass": False,
        "headline": {"reached": reached, "volume": None},
        **{k: asked[k] for k in ("ensemble", "temperature", "pressure", "time")},
        "reached": reached,
        "criteria": [*criteria, _time_reached(asked, reached, False, failure)],
        "first_bad": first | ({"step": sign["step"]} if sign else {}),
        "series": {},
    }


def _drifts(run: Frames, kinetic: Array, time: Array, temperature: float) -> list[dict[str, Any]]:
    """Return the criteria on what comes after the first fifth; the campaign file refuses runs too short to tell."""
    first = settled(len(run))
    if len(run) < 10:
        return []
    span = float(time[-1] - time[first])
    off = float(kinetic[first:].mean() / temperature - 1.0)
    # The kinetic energy of N atoms fluctuates by sqrt(2/3N) of itself: three standard errors are noise, not drift.
    noise = 3 * np.sqrt(2 / (3 * run.n_atoms) / max(1.0, span / MEMORY))
    change, error = fitted_change(time[first:], run.energy[first:] / run.n_atoms)
    limit = float(max(TEMPERATURE_DRIFT, noise))
    most = max(ENERGY_DRIFT, ENERGY_NOISE * error)
    return [
        {
            "name": "temperature drift",
            "limit": limit,
            "worst": off,
            "unit": "of the set point",
            "ok": abs(off) <= limit,
        },
        {
            "name": "energy drift",
            "limit": most,
            "worst": change,
            "unit": "eV/atom",
            "ok": abs(change) <= most,
        },
    ]


def fitted_change(time: Array, values: Array) -> tuple[float, float]:
    """Return the change of a series along its fitted line, and the standard error of that change.

    White noise of standard deviation s about the line gives sqrt(12 / n) s for n values; values close in time are not
    independent. Two estimates are made and the larger one counts: the one from the means of ``BLOCKS`` blocks about
    their own line, which sees slow noise (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461, 1989), and sqrt(12 M / T) s
    with M = ``ENERGY_MEMORY`` and T the time, which does not depend on few blocks of a short run.

    Parameters
    ----------
    time, values : (n,)
        At least three points; time in ps.

    Returns
    -------
    change, error
        In the unit of ``values``.
    """
    span = float(time[-1] - time[0])
    slope, offset = np.polyfit(time, values, 1)
    spread = float((values - slope * time - offset).std())
    error = spread * np.sqrt(12 * min(1.0, ENERGY_MEMORY / span))
    if len(time) >= BLOCKS:
        t, v = (np.array([block.mean() for block in np.array_split(x, BLOCKS)]) for x in (time, values))
        rest = v - np.polyval(np.polyfit(t, v, 1), t)
        error = max(error, span * np.sqrt((rest**2).sum() / (BLOCKS - 2) / ((t - t.mean()) ** 2).sum()))
    return float(slope) * span, float(error)
