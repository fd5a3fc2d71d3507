"""What people see of the labels: how many, how they came about, and the reference energies in their total energies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from campaign.frames import Frames
from campaign.science.references import offsets, reference_energies
from campaign.stages.board import Board
from campaign.tasks import Json, Record

if TYPE_CHECKING:
    from campaign.store.store import Store


def references(blocks: Sequence[Frames]) -> dict[str, float]:
    """Return the reference energy of an atom of each element, eV, fitted to labelled frames; empty without any.

    Source: least squares over the compositions (``science.references.reference_energies``).
    """
    from ase.data import chemical_symbols

    if not blocks:
        return {}
    numbers, energies = reference_energies(blocks)
    return {chemical_symbols[int(z)]: float(e) for z, e in zip(numbers, energies, strict=True)}


def collect(board: Board, store: Store) -> list[Frames]:
    """Return the labelled frames of the training set, in blocks of equal numbers of atoms."""
    training = board.training()
    labels = {frame: str(board.labels[frame]) for frame in board.labelled(training.name)} if training else {}
    return store.collect("label", list(labels), labels)


def summary(board: Board, store: Store, failures: Sequence[Record]) -> dict[str, Json]:
    """Return what ``RUN/labels.json`` holds.

    Returns
    -------
    dict
        ``labelled``, ``quarantined``, ``out_of_bounds`` (of what was learned, labels that were refused), ``from_cache``
        (counts); ``engine``; ``rungs`` (rung -> frames it labelled);
        ``rung_names`` (the same by name); ``methods`` (hash of what was computed -> labels) and ``other_physics``
        (frames whose label is of another method than meant, by a later rung); ``versions`` (program -> version ->
        labels); ``seconds`` of the attempts that succeeded; ``warnings`` (labels with any); of the training set
        ``reference_energies`` (element -> eV an atom), and what is left of its energies without them
        (``interaction``: mean and standard deviation, eV an atom); and ``failures`` (frame, cause, folder).
    """
    tasks = [task for task in board.labels.values() if task]
    records = [store.locate("label", task).record for task in tasks]
    results = [record["result"] for record in records]
    blocks = collect(board, store)
    none = {frame for frame, task in board.labels.items() if task is None}
    refused = none & {r["frame"] for s in board.sets.values() for r in s.refused}
    rungs = Counter(str(r["rung"]) for r in results if "rung" in r)
    names = Counter(str(r["rung_name"]) for r in results if r.get("rung_name"))
    methods = Counter(str(r["method"]) for r in results if r.get("method"))
    versions: dict[str, Counter[str]] = {}
    for record in records:
        for name, text in record["versions"].items():
            versions.setdefault(name, Counter())[str(text)] += 1
    found: dict[str, Json] = {
        "labelled": len(tasks),
        "quarantined": len(none - refused),
        "out_of_bounds": len(refused),
        "from_cache": sum(1 for r in results if r.get("cache") == "found"),
        "engine": records[0]["name"].partition("/")[0] if records else None,
        "rungs": dict(sorted(rungs.items())),
        "rung_names": dict(names),
        "methods": dict(sorted(methods.items())),
        "other_physics": sorted(str(r["frame"]) for r in results if r.get("other_physics")),
        "versions": {name: dict(sorted(counts.items())) for name, counts in sorted(versions.items())},
        "seconds": sum(record["seconds"] for record in records),
        "warnings": sum(1 for r in results if r.get("warnings")),
        "units": "eV; a frame's offset is the sum of its atoms' reference energies; energies include it",
        "reference_energies": references(blocks),
        "interaction": _interaction(blocks),
        "failures": [
            {"frame": r["name"].partition("/")[2], "cause": r["cause"], "folder": f"tasks/{r['task']}"}
            for r in failures
            if r["stage"] == "label"
        ],
    }
    return found


def _interaction(blocks: Sequence[Frames]) -> dict[str, float] | None:
    """Return mean and standard deviation of the energies without their reference energies, eV an atom."""
    if not blocks:
        return None
    numbers, energies = reference_energies(blocks)
    left = np.concatenate([(b.energy - offsets(b, numbers, energies)) / b.n_atoms for b in blocks])
    return {"mean": float(left.mean()), "std": float(left.std())}
