"""``rdf``: partial radial distribution functions of a run with the model, against the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from campaign.science.blocks import FEWEST, settled
from campaign.stages import validate_md
from campaign.stages.validate_physics import unsound
from campaign.stages.verdicts import publish, read_result
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.science.rdf import Distribution
    from campaign.store.store import Store


def work_rdf(task: Task, context: Context, store: Store) -> Outcome:
    """Compare each pair of species: what noise does not explain, and where the first pairs are."""
    from campaign.science.rdf import CORE, KNOWN, compare_rdf, distributions

    p = task.params
    most = p["threshold"] / KNOWN
    if cause := unsound(store, task.inputs[:1], task.inputs[1:]):
        return _nothing(p, cause)
    sides = []
    for run in task.inputs:
        frames = validate_md.frames_of(store, read_result(store, run)["segments"])
        counted = frames[settled(len(frames)) :]
        if len(counted) < FEWEST:
            return _nothing(
                p, f"A run of {len(frames)} frames is too short: write a longer 'time' or a smaller 'every'."
            )
        sides.append(distributions(counted, p["cutoff"], p["bins"]))
    model, reference = sides
    pairs, causes = {}, []
    for name, theirs in reference.items():
        found = compare_rdf(model[name], theirs)
        if found.too_near:
            causes.append(
                f"{name}: the model has pairs at {found.model_core:.2f} Å, under {CORE:g} times the reference's "
                f"shortest distance, {found.reference_core:.2f} Å."
            )
        elif not found.noise <= most and found.difference <= p["threshold"] + found.noise:
            causes.append(
                f"{name}: the runs are too short: two with the same potential would differ by {found.noise:.2g}, and "
                f"{most:.2g} is asked; write a longer 'time'."
            )
        elif found.difference > p["threshold"]:
            causes.append(f"{name}: the difference of {found.difference:.2g} is over its limit of {p['threshold']:g}.")
        pairs[name] = {
            **_curves(model[name], theirs),
            "difference": found.difference,
            "noise": found.noise,
            "core": {"model": found.model_core, "reference": found.reference_core},
        }
    return publish(
        {
            "method": "rdf",
            "pass": not causes,
            "cause": " ".join(causes),
            "headline": {"worst": max(v["difference"] for v in pairs.values())},
            "threshold": p["threshold"],
            "pairs": pairs,
        }
    )


def _curves(model: Distribution, reference: Distribution) -> dict[str, Json]:
    parts = {"r": model.r, "model": model.g, "reference": reference.g}
    return {name: np.round(values, 4).tolist() for name, values in parts.items()}


def _nothing(p: dict[str, Json], cause: str) -> Outcome:
    """Return the verdict on runs from which nothing is read."""
    result: dict[str, Json] = {"method": "rdf", "pass": False, "cause": cause, "headline": {"worst": None}}
    return publish({**result, "threshold": p["threshold"], "pairs": {}})
