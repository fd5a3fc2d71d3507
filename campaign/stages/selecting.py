"""The worker's side of selection: frames from the store, what a selector needs of them, its choice into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.errors import EngineError, Unphysical
from campaign.frames import Array, Frames, frame_id, parse_frame_id
from campaign.science.refusals import Limits, refusals
from campaign.science.selection import REFUSED, Batch, Offer, RandomSelector, Selector
from campaign.science.selectors import SELECTORS, build_selector
from campaign.stages.board import HELD_OUT, RANDOM, FrameSet
from campaign.tasks import Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.engines.descriptors import Descriptor
    from campaign.stages.sample_file import Source
    from campaign.store.store import Store

#: Keys of every ``select`` and ``distill`` section that say which frames are refused.
LIMITS = ("min_distance", "max_force", "energy", "volume")

#: How the methods that cannot do without say what a pool has not.
REQUIRED = {
    "energies": "energies of single atoms",
    "forces": "forces",
    "energy": "energies",
    "enthalpy": "energies",
}


def stream(task: Task, store: Store, folder: Path) -> Outcome:
    """Offer a shard to the selector, or finish its stream."""
    p = task.params
    selector = build_selector(p["method"], p["size"], p["seed"], p["options"])
    inputs = list(task.inputs)
    if not p["first"]:
        selector.load(store.checkpoint(inputs.pop(0)))
    if p["finish"]:
        last = selector.finish()
        for name in selector.needs & set(REQUIRED) if not last.chosen else ():
            raise _lacking(p["method"], name, "no frame that is not refused has them")
        outcome = _outcome(last, [], finished=True)
        # what it has learned may be gone on from (``learn``)
        return replace(outcome, checkpoint=selector.state()) if selector.measures_novelty else outcome
    frames = store.frames("sample", inputs[0])
    offer, seen, refused = _offer(task, frames, selector, folder)
    outcome = _outcome(offer, refused, finished=False)
    return Outcome(outcome.summary, seen, selector.state())


def look_at(task: Task, store: Store, folder: Path) -> Outcome:
    """Describe a shard for a selector that needs the whole pool."""
    frames = store.frames("sample", task.inputs[0])
    keep = _Keep(SELECTORS[task.params["method"]].needs)
    offer, seen, refused = _offer(task, frames, keep, folder)
    for name, values in keep.kept.items():
        seen[name] = np.full((len(frames), *values.shape[1:]), np.nan, dtype=np.float32)
        seen[name][seen["decision"] != REFUSED] = values
    return Outcome(_outcome(offer, refused, finished=False).summary, seen)


def finish_pool(task: Task, store: Store) -> Outcome:
    """Choose from all shards that were described."""
    p = task.params
    selector = build_selector(p["method"], p["size"], p["seed"], p["options"])
    for look in task.inputs:
        there = store.arrays("select", look)
        rows = there["decision"] != REFUSED
        features = {name: there[name][rows] for name in selector.needs if name in there}
        if rows.any():
            selector.offer(Batch(there["task"][rows], there["index"][rows], **features))
    return _outcome(selector.finish(), [], finished=True)


class _Keep:
    """Stands for a selector of the whole pool while its shards are described: it keeps the features of one block."""

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs
        self.measures_novelty = False
        self.kept: dict[str, Array] = {}

    def offer(self, batch: Batch) -> Offer:
        good = np.ones(len(batch), dtype=bool)
        for name in self.needs:
            good &= np.isfinite(batch.column(name)).reshape(len(batch), -1).all(axis=1)
        self.kept = {name: batch.column(name)[good] for name in self.needs}
        decisions = np.where(good, 1, REFUSED).astype(np.int8)
        reason = f"its {' and '.join(sorted(self.needs))} are not finite"
        refused = {int(k): reason for k in np.flatnonzero(~good)}
        return Offer(np.zeros(len(batch), dtype=np.float32), decisions, refused=refused)


def _offer(
    task: Task, frames: Frames, selector: Selector | _Keep, folder: Path
) -> tuple[Offer, dict[str, Array], list[dict[str, str]]]:
    """Offer the frames of a shard that are not refused.

    Returns
    -------
    tuple
        What the selector made of them; of every frame of the shard id, temperature, score (or novelty) and decision;
        and the frames that can never be chosen with the reasons.
    """
    reasons = refusals(frames, _limits(task))
    species: list[int] = []
    if "species" in task.params:
        species = _species(task, folder)
        reasons |= {k: r for k, r in _strangers(frames, species).items() if k not in reasons}
    rows = np.array([k for k in range(len(frames)) if k not in reasons], dtype=np.int64)
    score = np.full(len(frames), np.nan, dtype=np.float32)
    decision = np.full(len(frames), REFUSED, dtype=np.int8)
    offer = Offer(score[:0], decision[:0])
    if len(rows):
        offer = selector.offer(_batch(task, frames, rows, selector.needs, species))
        score[rows], decision[rows] = offer.scores, offer.decisions
        reasons |= {int(rows[k]): reason for k, reason in offer.refused.items()}
    seen: dict[str, Array] = {
        "novelty" if selector.measures_novelty else "score": score,
        "decision": decision,
        "task": frames.task,
        "index": frames.index,
        "temperature": frames.temperature,
    }
    ids = frames.ids
    return offer, seen, [{"frame": ids[k], "reason": reasons[k]} for k in sorted(reasons)]


def _limits(task: Task) -> Limits:
    limits: dict[str, Any] = task.params["limits"]
    return Limits(**limits)


def _outcome(offer: Offer, refused: list[dict[str, str]], finished: bool) -> Outcome:
    summary: dict[str, Json] = {
        "chosen": [frame_id(np.uint64(t), i) for t, i in offer.chosen],
        "why": offer.why,
        "refused": refused,
        "finished": finished,
    }
    if offer.note:
        summary["note"] = offer.note
    return Outcome(summary, {})


def _species(task: Task, folder: Path) -> list[int]:
    """Return the atomic numbers of the whole campaign."""
    from ase.data import atomic_numbers

    found = {atomic_numbers[symbol] for symbol in task.params["species"]}
    if task.params["structure"]:
        from campaign.engines.structures import build_structure

        found |= {int(z) for z in build_structure(task.params["structure"], folder).numbers}
    return sorted(found)


def _strangers(frames: Frames, species: list[int]) -> dict[int, str]:
    """Return the frames with elements that were not to be expected, and which they are."""
    from ase.data import chemical_symbols

    found = {}
    for k in np.flatnonzero(~np.isin(frames.numbers, species).all(axis=1)):
        names = ", ".join(chemical_symbols[z] for z in sorted({int(z) for z in frames.numbers[k]} - set(species)))
        found[int(k)] = (
            f"it has {names}, which neither the structure nor the first and last frames of the files have; "
            "put a frame with it first in its file"
        )
    return found


def _batch(task: Task, shard: Frames, rows: Array, needs: frozenset[str], species: list[int]) -> Batch:
    """Return the frames of a shard at ``rows`` with what a selector needs of them."""
    p, frames = task.params, shard[rows]
    columns: dict[str, Array] = {name: make(frames) for name, make in COLUMNS.items() if name in needs}
    potential = task.extra.get("potential")
    for name in set(columns) & set(REQUIRED) if potential else ():  # of a file other shards may have them
        if not np.isfinite(columns[name]).any():
            raise _lacking(p["method"], name, f"the potential {potential} does not give them")
    if "descriptors" in needs:
        kind = _descriptor(tuple(species), p["seed"], **p["representation"])
        columns["descriptors"] = _described(frames, kind, (kind.dimension,))
    if "environments" in needs:
        columns["environments"] = _environments(task, frames, species)
    if "time" in needs:
        entry, start, step, length = p["times"]
        _, first, walker = np.unique(shard.walker, return_index=True, return_inverse=True)
        place = np.arange(len(shard)) - first[walker]  # the walkers of a shard follow one another in it
        columns["walker"] = frames.walker.astype(np.int64) + (entry << 32)
        columns["time"] = (start + step * (place[rows] + 0.5)) / max(length, 1)
    return Batch(frames.task, frames.index, p.get("progress", 1.0), **columns)


def _lacking(method: str, column: str, where: str) -> EngineError:
    """Return the error of a method that chooses by what the frames have not."""
    return EngineError(
        f"select.method: {method} chooses by the {REQUIRED[column]} of the sampled frames, and there are none: "
        f"{where}. Sample with a potential that gives them, or choose another method."
    )


def _enthalpy(frames: Frames) -> Array:
    from ase.units import bar

    pressure = np.where(np.isfinite(frames.pressure), frames.pressure, 0.0) * bar
    return np.asarray((frames.energy + pressure * frames.volume) / frames.n_atoms)


#: Columns of a batch that follow from the frames alone.
COLUMNS: dict[str, Callable[[Frames], Array]] = {
    "energy": lambda frames: np.asarray(frames.energy / frames.n_atoms),
    "enthalpy": _enthalpy,
    "energies": lambda frames: frames.energies,
    "forces": lambda frames: np.asarray(np.linalg.norm(frames.forces, axis=2)),
    "order": lambda frames: frames.order,
    "volume": lambda frames: np.asarray(frames.volume / frames.n_atoms),
}


def describe(task: Task, folder: Path, frames: Frames) -> Array:
    """Return (n, d) the descriptors of frames, as a task's ``representation`` says; NaN where there are none."""
    kind = _descriptor(tuple(_species(task, folder)), task.params["seed"], **task.params["representation"])
    return _described(frames, kind, (kind.dimension,))


def environments(task: Task, folder: Path, frames: Frames) -> Array:
    """Return (n, a, d) the SOAP environments of frames, as a task's ``environments`` says; NaN where there are none."""
    return _environments(task, frames, _species(task, folder))


def _environments(task: Task, frames: Frames, species: list[int]) -> Array:
    soap = _descriptor(tuple(species), 0, model="soap", pooling="mean", **task.params["environments"])
    return _described(frames, soap.atoms, (frames.n_atoms, soap.width))


@lru_cache(maxsize=4)
def _descriptor(species: tuple[int, ...], seed: int, **representation: Any) -> Descriptor:
    """Return the descriptor, kept between the tasks of a worker: building it costs more than a shard."""
    from campaign.engines.descriptors import Descriptor

    return Descriptor(species, seed=seed, **representation)


def _described(frames: Frames, describe: Callable[[Frames], Array], shape: tuple[int, ...]) -> Array:
    """Return what describes the frames, (n, *shape); NaN for one in which neighbours cannot be found."""
    try:
        return describe(frames)
    except Unphysical:
        if len(frames) == 1:
            return np.full((1, *shape), np.nan, dtype=np.float32)
        return np.concatenate([_described(frames[k : k + 1], describe, shape) for k in range(len(frames))])


def compared_sets(campaign: Campaign, method: str, size: int) -> list[FrameSet]:
    """Return the sets that validation asks for beside the ``size`` frames that ``method`` chooses."""
    found: dict[str, FrameSet] = {}
    for test in campaign.validation:
        if test.method == "errors":
            if RANDOM in test.against and method != RANDOM:
                found[RANDOM] = FrameSet(RANDOM, size, train=True)
            found[HELD_OUT] = FrameSet(HELD_OUT, test.held_out, train=False)
    return list(found.values())


def species_of(campaign: Campaign, sources: Sequence[Source]) -> dict[str, Json]:
    """Return the elements of the whole campaign: of its files of frames, and of the structure that is moved.

    Those of a structure's file are read by the worker.
    """
    found = {element for source in sources for element in source.species}
    if all(m.method == "file" for m in campaign.sample) and found:
        return {"species": sorted(found), "structure": None}
    structure: dict[str, Json] = campaign.system.structure.model_dump(mode="json")
    found |= {*structure.get("elements", ()), *structure.get("packing", ())}
    return {"species": sorted(found), "structure": {"file": structure["file"]} if "file" in structure else None}


def draw(task: Task, store: Store) -> Outcome:
    """Draw frames uniformly at random; the pick does not depend on the order of the shards."""
    p = task.params
    avoid = set(p["avoid"])
    spare = p["size"] + len(avoid) + 16  # refusals are rare; more are drawn when these do not suffice
    while True:
        selector = RandomSelector(spare, int(np.random.SeedSequence(p["seed"]).generate_state(1)[0]))
        offered = 0
        for shard in task.inputs:
            place = store.locate("sample", shard)
            n = place.stop - place.start
            offered += n
            selector.offer(Batch(np.full(n, int(shard, 16), dtype="uint64"), np.arange(n)))
        chosen: list[tuple[int, int]] = []
        refused: list[dict[str, str]] = []
        for t, i in selector.finish().chosen:
            name = frame_id(np.uint64(t), i)
            if name in avoid or len(chosen) == p["size"]:
                continue
            shard, index = parse_frame_id(name)
            reasons = refusals(store.frames("sample", shard, [index]), _limits(task))
            if reasons:
                refused.append({"frame": name, "reason": reasons[0]})
            else:
                chosen.append((t, i))
        if len(chosen) == p["size"] or spare >= offered:
            why = ["drawn at random"] * len(chosen)
            return _outcome(Offer(np.zeros(0), np.zeros(0), chosen, why), refused, finished=True)
        spare *= 2
