"""What each sampling method did: its frames, and how far the walkers of MOMT have come."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from campaign.errors import StoreError
from campaign.flow import Flow
from campaign.stages.sample import Sample
from campaign.store.store import Store
from campaign.tasks import Json, Record, Task

#: Points of the figure of a walker's enthalpy, and cells along each axis of the map of visits, at most.
SERIES_POINTS, MAP_CELLS = 2000, 120

#: A finished segment: its task and its record.
Segment = tuple[Task, Record]


def sampling(flow: Flow, store: Store) -> list[dict[str, Json]]:
    """Return what each sampling method of the campaign did, in the order of its file."""
    stage = flow.stage(Sample)
    ready = {s.task.id for s in flow.board.shards if s.state == "ready"}
    entries: dict[str, list[list[tuple[Task, int]]]] = {}
    for chain in stage.chains if stage is not None else []:
        if chain:
            entries.setdefault(chain[0][0].name.partition("/")[0], []).append(chain)
    out = []
    for name, chains in entries.items():
        done = [[(t, store.locate("sample", t.id).record) for t, _ in chain if t.id in ready] for chain in chains]
        out.append(_method(name, chains, done) | {"momt": _momt(store, done) if _is_momt(chains) else None})
    return out


def _is_momt(chains: Sequence[Sequence[tuple[Task, int]]]) -> bool:
    return bool(chains[0][0][0].params["method"] == "momt")


def _method(name: str, chains: Sequence[Sequence[tuple[Task, int]]], done: list[list[Segment]]) -> dict[str, Json]:
    """Return the figures that every sampling method has."""
    results = [record["result"] for chain in done for _, record in chain]
    asked = np.array([t for chain in chains for task, _ in chain for t in np.ravel(task.params.get("temperature", []))])
    file = chains[0][0][0].params["method"] == "file"  # its chains are shards of the file
    kelvin = [(r["temperature"], r["frames"]) for r in results if r.get("temperature") is not None]
    return {
        "name": name,
        "walkers": None if file else sum(int(chain[0][0].params.get("walkers", 1)) for chain in chains),
        "steps": max((_steps(task) for chain in done for task, _ in chain), default=0) or None,
        "frames": sum(int(r["frames"]) for r in results),
        "planned": sum(frames for chain in chains for _, frames in chain),
        "set": [float(asked.min()), float(asked.max())] if asked.size else [],
        "mean": sum(t * n for t, n in kelvin) / n_all if (n_all := sum(n for _, n in kelvin)) else None,
        "stopped": sum(len(r.get("stopped", {})) for r in results),
    }


def _steps(task: Task) -> int:
    """Return how many MD steps a walker has made at a segment's end; 0 where it makes none."""
    p = task.params
    return int((p["first"] + p["frames"]) * p["every"]) if "first" in p and "every" in p else 0


def _momt(store: Store, chains: list[list[Segment]]) -> dict[str, Json] | None:
    """Return how far the walkers of a MOMT method have come; None before any has finished a segment."""
    chains = [chain for chain in chains if chain]
    if not chains:
        return None
    p = chains[0][0][0].params
    crystal = p["structure"].get("prototype") if p["order"] == "auto" else p["order"]
    ordered = crystal not in (None, "none")
    walkers: dict[int, dict[str, Json]] = {}
    last: dict[str, list[int]] = {}  # task to the walkers whose last finished segment it is
    window: list[float] = []
    for chain in chains:
        latest = {}
        for task, record in chain:
            found = record["result"].get("momt") or {"walkers": {}}
            window = found.get("window") or window
            for key, figures in found["walkers"].items():
                empty: dict[str, Json] = {"number": int(key), "stopped": "", "steps": []}
                walker = walkers.setdefault(int(key), empty)
                walker["steps"].append(_steps(task))
                for name in ("trips", "coverage", "flatness"):
                    walker.setdefault(name, []).append(figures.get(name))
                latest[int(key)] = task.id
            for key, cause in record["result"].get("stopped", {}).items():
                walkers.setdefault(int(key), {"number": int(key), "steps": []})["stopped"] = cause
        for number, name in latest.items():
            last.setdefault(name, []).append(number)
    series = _enthalpies(store, [task for task, _ in chains[0]], ordered)
    return {
        "window": window,
        "temperatures": p["temperatures"],
        "auto": p["window"] == "auto",
        "shared": p["shared"],
        "until": chains[0][0][0].extra.get("until"),
        "ordered": ordered,
        "walkers": [walkers[k] for k in sorted(walkers)],
        "map": _map(store, last, window),
        "series": series,
    }


def _map(store: Store, last: dict[str, list[int]], window: Sequence[float]) -> dict[str, Json]:
    """Return the visits of all walkers, from the last checkpoint of each, and whose could not be read.

    Parameters
    ----------
    store
        The store.
    last
        Task to the walkers whose last finished segment it is: a walker that stopped is not in later checkpoints.
    window
        eV/atom.
    """
    from campaign.engines.walkers import unpack_checkpoints
    from campaign.science.momt import coverage

    total: Any = None
    missing = []
    for task, numbers in last.items():
        try:
            left = unpack_checkpoints(store.checkpoint(task)["restart"])
        except (StoreError, KeyError, ValueError, zipfile.BadZipFile):  # removed, or of another version
            left = {}
        for number in numbers:
            visits = left[number][1].get("visits") if number in left else None
            if visits is None or visits.ndim != 2 or (total is not None and visits.shape != total.shape):
                missing.append(number)
            else:
                total = visits.astype("int64") if total is None else total + visits
    if total is None or len(window) != 2:
        return {}
    share, _ = coverage(total)
    ends = ((window[0], window[1]), (0.0, 1.0))
    edges = [np.linspace(low, high, n + 1) for (low, high), n in zip(ends, total.shape, strict=True)]
    for axis, n in enumerate(total.shape):
        starts = np.arange(0, n, -(-n // MAP_CELLS))
        total = np.add.reduceat(total, starts, axis=axis)
        edges[axis] = edges[axis][[*starts, n]]
    h, q = (e.tolist() for e in edges)
    return {"h": h, "q": q, "visits": total.tolist(), "coverage": share, "missing": missing}


def _enthalpies(store: Store, tasks: Sequence[Task], ordered: bool) -> dict[str, Json]:
    """Return the enthalpy (eV/atom) and order of a chain's first walker along its steps, thinned, shard by shard."""
    from campaign.engines.lammps import BAR

    p = tasks[0].params
    walker = int(p["walker"][1])
    atoms = store.frames("sample", tasks[0].id, [0]).n_atoms
    every = max(1, -(-sum(t.params["frames"] for t in tasks) // SERIES_POINTS))
    out: dict[str, list[Any]] = {"step": [], "h": [], "q": []}
    seen = 0
    for task in tasks:
        part = store.arrays("sample", task.id, ("walker", "step", "energy", "cell"))
        mine = np.flatnonzero(part["walker"] == walker)
        rows = mine[(np.arange(seen, seen + len(mine)) % every) == 0]
        seen += len(mine)
        if len(rows):
            volume = np.abs(np.linalg.det(part["cell"][rows]))
            out["h"] += ((part["energy"][rows] + p["pressure"] / BAR * volume) / atoms).tolist()
            out["step"] += part["step"][rows].tolist()
            out["q"] += _order(store, task, rows) if ordered else []
    return {"walker": walker, **out}


def _order(store: Store, task: Task, rows: Any) -> list[float | None]:
    """Return the order of some frames of a task; None where the store does not have it."""
    try:
        order = store.arrays("sample", task.id, ("order",))["order"][rows]
    except StoreError:
        return [None] * len(rows)
    return [float(q) if np.isfinite(q) else None for q in order]
