"""``relax``: crystals relaxed with the model and with the reference, cell and all, by one route."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaign.config.quantities import parse
from campaign.engines.models import Mean
from campaign.engines.relax import bound, relax
from campaign.engines.structures import build_structure
from campaign.errors import EngineError
from campaign.stages.reference import reference_forces
from campaign.stages.trained import load_models
from campaign.stages.verdicts import publish
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from ase import Atoms

    from campaign.store.store import Store

#: Energies closer than this are in no order, eV/atom.
SAME = 1e-4


def work_relax(task: Task, context: Context, store: Store) -> Outcome:
    """Relax each structure with the model and with the reference, and compare energies, cells and bonds."""
    p = task.params
    model, reference = Mean(load_models(store, p["models"])), reference_forces(task, context)
    rows = []
    for k, spec in enumerate(p["structures"] or usual_crystals(build_structure(p["system"], context.run))):
        atoms = build_structure(spec, context.run)
        entry: dict[str, Json] = {"name": _name(spec, k), "atoms": len(atoms)}
        if p["rattle"]:
            atoms.rattle(p["rattle"], rng=np.random.default_rng([p["seed"], k]))
        relaxed, entry["reference"] = relax(atoms, reference, p["force"], p["steps"])
        entry["reference"]["bound"] = bound(relaxed, reference, entry["reference"]["energy"])
        cells = spec.get("supercell") or (1, 1, 1)
        try:
            _, entry["model"] = relax(atoms, model, p["force"], p["steps"])
        except EngineError as error:  # the failure is the finding
            entry["model"], entry["cause"] = None, str(error)
        for side in ("model", "reference"):
            if entry[side]:
                entry[side]["lengths"] = [x / n for x, n in zip(entry[side]["lengths"], cells, strict=True)]
        rows.append(entry)
    return publish(judge(rows, p["threshold"]))


def usual_crystals(atoms: Atoms) -> list[dict[str, Json]]:
    """Return the crystals that are relaxed where none are named, at the volume per atom of the system's structure.

    Of one element fcc, bcc and hcp; of two rocksalt, caesium chloride and zincblende.
    """
    volume = float(atoms.get_volume()) / len(atoms)
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    cells: dict[str, float] = {"fcc": 4, "bcc": 2, "hcp": 2**0.5}  # a^3 over the volume of an atom
    if len(elements) > 1:
        cells = {"rocksalt": 8, "cesiumchloride": 2, "zincblende": 8}
    return [
        {"prototype": name, "elements": elements, "a": (n * volume) ** (1 / 3), "c": None, "supercell": [1, 1, 1]}
        for name, n in cells.items()
    ]


def _name(spec: dict[str, Json], number: int) -> str:
    if spec.get("file"):
        return f"{number + 1} {Path(spec['file']).stem}"
    return f"{''.join(spec['elements'])} {spec['prototype']}"


def judge(rows: list[dict[str, Json]], threshold: dict[str, Json]) -> dict[str, Json]:
    """Return the verdict on relaxed structures.

    Energies are compared over the lowest structure of the reference: a model may count energies from another zero. What
    comes apart with the reference is no crystal to compare with.

    Parameters
    ----------
    rows
        For each structure its ``name``, and as ``model`` (None where it failed) and ``reference`` what ``relax`` found.
    threshold
        ``energy``, ``absolute``, ``length``, ``angle`` (with their units, or None) and ``order``, as in the campaign
        file.
    """
    energy = parse(threshold["energy"], "energy")[0] if threshold["energy"] else math.inf
    absolute = parse(threshold["absolute"], "energy")[0] if threshold["absolute"] else math.inf
    length, relative = parse(threshold["length"], "length") if threshold["length"] else (math.inf, True)
    angle = parse(threshold["angle"], "angle")[0] if threshold["angle"] else math.inf
    lowest = min(range(len(rows)), key=lambda k: float(rows[k]["reference"]["energy"]))
    zero = {side: (rows[lowest][side] or {}).get("energy", math.nan) for side in ("model", "reference")}
    causes = []
    for entry in rows:
        name, ours, theirs = entry["name"], entry["model"], entry["reference"]
        bad = []
        for side, found in (("model", ours), ("reference", theirs)):
            if found is None:
                bad.append(f"the model failed on it: {entry['cause']}")
            elif not found["converged"]:
                bad.append(f"with the {side} it did not converge in {found['steps']} steps")
        if not theirs.get("bound", True):
            bad.append("with the reference it comes apart, and is no crystal to compare with")
        if ours is not None:
            over = {side: entry[side]["energy"] - zero[side] for side in ("model", "reference")}
            off = over["model"] - over["reference"]
            entry["over_lowest"] = over
            entry["energy_difference"], entry["energy_offset"] = off, ours["energy"] - theirs["energy"]
            if not abs(off) <= energy:
                bad.append(f"its energy is off by {1e3 * off:.3g} meV/atom")
            if not abs(entry["energy_offset"]) <= absolute:
                bad.append(f"its energy itself is off by {1e3 * entry['energy_offset']:.3g} meV/atom")
            worst = _worst(ours, theirs, relative)
            entry["length_difference"] = worst
            if not worst <= length:
                bad.append(f"a length is off by {worst:.3g} {'%' if relative else 'Å'}")
            turned = max(abs(a - b) for a, b in zip(ours["angles"], theirs["angles"], strict=True))
            entry["angle_difference"] = turned
            entry["volume_difference"] = 100.0 * (ours["volume"] / theirs["volume"] - 1.0)
            if not turned <= angle:
                bad.append(f"an angle is off by {turned:.3g} deg")
        entry["ok"] = not bad
        if bad:
            causes.append(f"{name}: {', and '.join(bad)}.")
    order = {s: _order(rows, s) for s in ("model", "reference")}
    if threshold["order"] and not _same_order(rows):
        causes.append(f"The order of energies is {' < '.join(order['model'])}, not {' < '.join(order['reference'])}.")
    asked = threshold["order"] or any(threshold[k] for k in ("energy", "absolute", "length", "angle"))
    differences = [e["energy_difference"] for e in rows if e["model"] is not None]
    return {
        "method": "relax",
        "pass": False if causes else True if asked else None,
        "cause": " ".join(causes),
        "headline": {"energy": max(map(abs, differences), default=None)},
        "threshold": threshold,
        "says": [_says(entry, relative) for entry in rows],
        "structures": rows,
        "lowest": rows[lowest]["name"],
        "order": order,
        "length_in": "%" if relative else "Å",
    }


def _worst(ours: dict[str, Json], theirs: dict[str, Json], relative: bool) -> float:
    """Return the largest difference of a cell length or a bond, in per cent or in Å."""
    pairs = list(zip(ours["lengths"], theirs["lengths"], strict=True))
    pairs += [(ours["bonds"].get(bond, math.inf), b) for bond, b in theirs["bonds"].items()]
    return float(max(abs(a - b) * (100.0 / b if relative else 1.0) for a, b in pairs))


def _order(rows: list[dict[str, Json]], side: str) -> list[str]:
    known = [e for e in rows if e[side] is not None]
    return [e["name"] for e in sorted(known, key=lambda e: float(e[side]["energy"]))]


def _same_order(rows: list[dict[str, Json]]) -> bool:
    """Tell whether no two structures that the reference tells apart have their energies the other way round."""
    known = [(e["reference"]["energy"], e["model"]["energy"]) for e in rows if e["model"] is not None]
    return all(not (a[0] < b[0] - SAME and a[1] > b[1]) for a in known for b in known)


def _says(entry: dict[str, Json], relative: bool) -> str:
    if entry["model"] is None:
        return f"{entry['name']}: the model failed"
    over = entry["over_lowest"]
    mine, theirs = (1e3 * over[side] for side in ("model", "reference"))
    return (
        f"{entry['name']}: {mine:.1f} meV/atom over the lowest, reference {theirs:.1f}; "
        f"lengths within {entry['length_difference']:.2g} {'%' if relative else 'Å'}, "
        f"angles within {entry['angle_difference']:.2g} deg"
    )
