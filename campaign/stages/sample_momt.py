"""What MOMT adds to sampling: the window that is found first, the bias that walkers share, its convergence.

Walkers of one task exchange their deposits over MPI (``campaign.engines.lammps_momt``). Walkers of different tasks
share through the store: a segment takes in what the other chains had laid down two segments before, so that a chain may
run ahead of another by one segment before it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import EngineError
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from ase import Atoms

    from campaign.config.campaign_file import MOMT
    from campaign.engines.walkers import Stretch, Walker
    from campaign.science.momt import Learning, Order
    from campaign.store.store import Store

#: A chain takes in the deposits of others as of this many segments before.
LAG = 2

#: So many chains share a bias; the next ones share another. (All with all would make a segment's inputs as many as the
#: chains.) A chain may have many walkers in it.
FAMILY = 32

#: Time to settle at an end of the window, time to average there (ps), and how much hotter than the hot end the crystal
#: is melted.
SETTLE, AVERAGE, MELT = 4.0, 16.0, 1.3

#: A liquid has less than this many times the volume that the walkers start from.
VAPOUR = 2.5

#: Frames in an average.
WINDOW_FRAMES = 200


def window_tasks(common: dict[str, Json], method: MOMT, name: str, extra: dict[str, Json], version: int) -> list[Task]:
    """Return the two short NPT runs that find the window: the solid at its cold end, the liquid at its hot end.

    Parameters
    ----------
    common
        Parameters that all tasks of the method share.
    method
        The sampling method.
    name
        For people.
    extra, version
        Of the tasks.
    """
    keep = ("structure", "order", "seed", "timestep", "thermostat", "barostat", "pressure", "potential")
    tasks = []
    for end, t in zip(("cold", "hot"), method.temperatures, strict=True):
        params = {k: common[k] for k in keep} | {"method": "window", "temperature": t, "melt": end == "hot"}
        params["entry"] = common["walker"][0]
        tasks.append(Task("sample", f"{name}/window, {end} end", params, (), version, priority=4, extra=extra))
    return tasks


def order_parameter(wanted: str, structure: dict[str, Json], atoms: int) -> Order | None:
    """Return the order parameter of a cell; None for none.

    Parameters
    ----------
    wanted
        Name of a crystal, ``none``, or ``auto`` for the structure's own prototype.
    structure
        As in the campaign file.
    atoms
        In the cell.
    """
    from ase.build import bulk

    from campaign.config.campaign_file import PROTOTYPES
    from campaign.engines.structures import CUBIC
    from campaign.science.momt import Order

    own = structure.get("prototype")
    name = own or "none" if wanted == "auto" else wanted
    if name == "none":
        return None
    symbols = "NaCl" if PROTOTYPES[name] == 2 else "Ni"
    unit = bulk(symbols, name, a=1.0, **({"cubic": True} if name in CUBIC else {}))
    n = round((atoms / len(unit)) ** (1 / 3))
    repeats = tuple(structure["supercell"]) if name == own else (n, n, n)
    return Order.of_crystal(unit.get_scaled_positions(), repeats, np.array(unit.cell))


def learning_of(spec: dict[str, Json], atoms: int, ordered: bool) -> Learning:
    """Return how the bias is learned: what the campaign file says, and what suits the cell where it says nothing."""
    from campaign.science.momt import Learning

    default = Learning.of_size(atoms, ordered)
    given = {k: v for k, v in spec.items() if v is not None}
    bins = tuple(given.pop("bins", default.bins))
    return replace(default, **given, bins=bins if ordered else (bins[0], 1))


def learns(method: MOMT, first: int, sharing: bool) -> bool:
    """Tell whether a segment learns.

    Parameters
    ----------
    method
        The sampling method.
    first
        Frames before the segment.
    sharing
        Whether chains share: those stop early enough for all deposits to have reached all before ``until``, so that
        from there on every walker has the same bias and it never changes.
    """
    if method.learn.until is None:
        return True
    ahead = (LAG - 1) * method.segment if sharing else 0
    return (first + ahead) * method.every < method.learn.until


def work_window(task: Task, context: Context, atoms: Atoms) -> Outcome:
    """Run plain NPT at one end of the window and return its enthalpies, eV/atom."""
    from campaign.engines import lammps
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.lammps_potential import load_potential
    from campaign.stages.sample import walker_seed

    p = task.params
    t, pressure, dt = p["temperature"], p["pressure"], p["timestep"]
    melt = [(MELT * t, SETTLE, pressure)] if p["melt"] else []
    seed = walker_seed(p["seed"], p["entry"], 2**31 + int(p["melt"]))  # no walker has these numbers
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed, (*melt, (t, SETTLE, pressure)))
    every = max(1, round(AVERAGE / dt / WINDOW_FRAMES))
    segment = Segment(
        WINDOW_FRAMES, every, 0, dt, (t, t), pressure, p["thermostat"], p["barostat"], halvings=context.attempt
    )
    end = f"The run that looks for the window's {'hot' if p['melt'] else 'cold'} end, at {t:g} K: "
    try:
        arrays, _ = run_segment(load_potential(context.run / task.extra["potential"]), segment, start)
    except EngineError as error:
        raise EngineError(f"{end}{error} Write other 'temperatures', or a window.") from error
    volume = np.linalg.det(arrays["cell"])
    h = (arrays["energy"] + pressure / lammps.BAR * volume) / len(atoms)
    order = order_parameter(p["order"], p["structure"], len(atoms))
    q = float("nan")
    if order is not None:
        scaled = np.linalg.solve(arrays["cell"].transpose(0, 2, 1), arrays["positions"].transpose(0, 2, 1))
        rho = np.exp(2j * np.pi * order.vectors @ scaled).mean(axis=2)
        q = float(np.sqrt((np.abs(rho) ** 2).mean(axis=1)).mean() / order.strength)
    _check_end(end, p["melt"], q, float(volume.mean() / atoms.get_volume()))
    summary = {"frames": 0, "enthalpy": float(h.mean()), "error": _error(h), "order": q if order is not None else None}
    return Outcome(summary, {"enthalpy": h}, versions=lammps.versions())


def _check_end(end: str, melted: bool, q: float, growth: float) -> None:
    """Refuse an end of the window that is not the phase it stands for: q is NaN where there is no order parameter."""
    if not melted and q < 0.5:
        raise EngineError(
            f"{end}it is no crystal (Q = {q:.2f}; 1 is the perfect one). Lower the first of 'temperatures', start from "
            "the crystal that 'order' names, or write a window."
        )
    if melted and q > 0.35:
        raise EngineError(f"{end}it did not melt (Q = {q:.2f}). Raise the second of 'temperatures', or write a window.")
    if melted and growth > VAPOUR:
        raise EngineError(
            f"{end}it is no liquid: it has {growth:.1f} times the volume of the start. Raise 'pressure', lower the "
            "second of 'temperatures', or write a window."
        )


def _error(x: Any) -> float:
    blocks = np.array([b.mean() for b in np.array_split(x, 10)])
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks)))


def bias(
    task: Task, store: Store, walkers: Sequence[Walker], atoms: int
) -> tuple[dict[str, Json], dict[str, np.ndarray[Any, Any]]]:
    """Return what a job's walkers need of the extended ensemble: JSON, and the deposits of other chains.

    Raises
    ------
    EngineError
        The two ends of the window that was looked for are one: the crystal does not melt at its hot end, say.
    """
    from campaign.engines.lammps import BAR
    from campaign.engines.walkers import unpack_checkpoints
    from campaign.science.momt import Ensemble, Window

    p = task.params
    order = order_parameter(p["order"], p["structure"], atoms)
    learning = learning_of(p["learn"], atoms, order is not None)
    inputs = list(task.inputs)
    extra = walkers[0].extra
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    if p["segment"]:
        inputs.pop(0)
        low, high = (float(h) for h in extra["window"])
    elif p["window"] != "auto":
        low, high = p["window"]
    else:
        ends = [inputs.pop(0), inputs.pop(0)]
        low, high = (float(store.arrays("sample", e)["enthalpy"].mean()) for e in ends)
        if not high > low:
            raise EngineError(
                f"The solid has {low:.4g} eV/atom at {p['temperatures'][0]:g} K and the liquid {high:.4g} at "
                f"{p['temperatures'][1]:g} K: that is no window. Write one, or other temperatures."
            )
    if inputs:
        others = np.array(extra.get("others", np.zeros((len(inputs), *learning.bins))))
        counts = np.array(extra.get("others_counts", np.zeros(len(inputs), "int64")))
        for k, other in enumerate(inputs):
            if other in task.extra["lost"]:  # that chain ended before: what it had laid down stays
                continue
            left = unpack_checkpoints(store.checkpoint(other)["restart"])
            if left:
                found = next(iter(left.values()))[1]
                others[k], counts[k] = found["own"], found["counts"][0]
        arrays = {"others": others, "others_counts": counts}
    ensemble = Ensemble(
        atoms,
        p["temperature"][0],
        p["pressure"] / BAR,
        Window.of(low, high, *p["temperatures"]),
        learning,
    )
    reflections = None if order is None else order.to_json()
    spec = {"ensemble": ensemble.to_json(), "order": reflections, "learn": p["learning"], "shared": p["shared"]}
    return spec, arrays


def convergence(spec: dict[str, Json], found: dict[int, Stretch]) -> dict[str, Json]:
    """Return the figures of a task for its record: round trips, coverage and flatness of each walker so far."""
    from campaign.science.momt import coverage

    walkers = {}
    for number, stretch in found.items():
        if stretch.extra:
            share, flatness = coverage(stretch.extra["visits"])
            trips = float(stretch.extra["counts"][3]) / 2
            walkers[str(number)] = {"trips": trips, "coverage": share, "flatness": flatness}
    window = spec["ensemble"]["window"]
    learning = {**spec["ensemble"]["learning"], "on": spec["learn"]}
    return {"window": [window["low"], window["high"]], "walkers": walkers, "learning": learning}
