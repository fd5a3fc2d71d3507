"""``errors``: what the models say of held-out frames, against their labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.config.quantities import parse
from campaign.engines.models import Mean
from campaign.stages.trained import load_models
from campaign.stages.verdicts import publish
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.store.store import Store

#: Points of a parity plot that are kept for the report.
PARITY_POINTS = 2000

#: What is judged by each key of the threshold: the quantity, its measure, the kind and unit of its limit, what that is
#: of the quantity's own unit (eV/atom, eV/Å, eV/Å^3), and what people call it.
JUDGED: dict[str, tuple[str, str, str, str, float, str]] = {
    "forces": ("forces", "rmse", "force", "meV/Å", 1e3, "force RMSE"),
    "l4": ("forces", "l4", "force", "meV/Å", 1e3, "force L4 norm"),
    "energy": ("energy", "rmse", "energy", "meV/atom", 1e3, "energy RMSE"),
    "stress": ("stress", "rmse", "pressure", "GPa", 160.2176634, "stress RMSE"),
}


def work_errors(task: Task, context: Context, store: Store) -> Outcome:
    """Evaluate the models of each training set on the held-out frames; those of the first set are judged."""
    from ase.data import chemical_symbols

    from campaign.science.metrics import errors

    blocks = store.collect("label", [f"{i}:0" for i in task.inputs])
    sets: dict[str, Json] = {}
    parity: dict[str, Json] = {}
    for name, models in task.params["models"].items():
        model = Mean(load_models(store, models))
        found = [model.evaluate(b) for b in blocks]
        energy = _pairs([(b.energy / b.n_atoms, f[0] / b.n_atoms) for b, f in zip(blocks, found, strict=True)])
        forces = _pairs([(b.forces.reshape(-1, 3), f[1].reshape(-1, 3)) for b, f in zip(blocks, found, strict=True)])
        stress = _pairs([(b.stress, f[2]) for b, f in zip(blocks, found, strict=True)])
        numbers = np.concatenate([b.numbers.ravel() for b in blocks])
        sets[name] = {"energy": errors(*energy), "forces": errors(*forces), "stress": errors(*stress)}
        sets[name]["species"] = {
            chemical_symbols[z]: errors(forces[0][numbers == z], forces[1][numbers == z]) for z in np.unique(numbers)
        }
        parity[name] = {"energy": _thin(*energy), "forces": _thin(*forces)}
    main = next(iter(sets))
    spread = float(np.sqrt(np.mean(np.concatenate([b.forces.ravel() for b in blocks]) ** 2)))
    return publish(
        {
            "method": "errors",
            "set": main,
            **judge(sets[main], spread, task.params["threshold"]),
            "headline": {n: {f"force_{k}": s["forces"][k] for k in ("rmse", "l4")} for n, s in sets.items()},
            "threshold": task.params["threshold"],
            "held_out": sum(len(b) for b in blocks),
            "sets": sets,
            "parity": parity,
        }
    )


def judge(found: dict[str, Json], spread: float, threshold: dict[str, Json]) -> dict[str, Json]:
    """Return ``pass``, ``cause``, and as ``judged`` each error with its limit, both in the unit that it is shown in.

    Parameters
    ----------
    found
        Errors of energy (eV/atom), forces (eV/Å) and stress (eV/Å^3).
    spread
        Root mean square of the reference's forces, eV/Å: the RMSE of a model that predicts none. Percentages are of it.
    threshold
        Limits by the keys of ``JUDGED``, with their units; None where nothing is asked.
    """
    if not all(math.isfinite(found[k]["max"]) for k in ("energy", "forces", "stress")):
        cause = "The model gave energies, forces or stresses that are not finite."
        return {"pass": False, "cause": cause, "judged": [], "spread": spread}
    rows: list[dict[str, Json]] = []
    causes = []
    for key, (quantity, measure, kind, unit, factor, what) in JUDGED.items():
        asked = threshold.get(key)
        if asked is None:
            continue
        limit, relative = parse(asked, kind)
        if relative:
            limit *= spread / 100.0
        scale = factor / 1.602176634e6 if kind == "pressure" else factor  # limits of stresses come in bar
        value = found[quantity][measure]
        entry = {"name": what, "value": factor * value, "limit": scale * limit, "unit": unit, "asked": asked}
        entry["ok"] = bool(entry["value"] <= entry["limit"])
        rows.append(entry)
        if not entry["ok"]:
            of = f" ({asked} of the spread of the reference's forces)" if relative else ""
            causes.append(
                f"The {what} of {entry['value']:.3g} {unit} is over its limit of {entry['limit']:.3g} {unit}{of}."
            )
    passed = not causes if rows else None
    return {"pass": passed, "cause": " ".join(causes), "judged": rows, "spread": spread}


def _pairs(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _thin(reference: Any, predicted: Any) -> list[list[float]]:
    """Return at most PARITY_POINTS evenly spaced points."""
    x, y = np.ravel(reference), np.ravel(predicted)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), PARITY_POINTS)).astype(int))
    return [np.round(x[keep], 5).tolist(), np.round(y[keep], 5).tolist()]
