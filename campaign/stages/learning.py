"""The worker's side of active learning: of the frames of a round, those worth a label; and how the round went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science import uncertainty
from campaign.science.distillation import Distillation, Moments
from campaign.science.overlap import rematch_distances
from campaign.science.refusals import Limits, refusals
from campaign.science.rnd import RNDStream
from campaign.science.selection import Batch
from campaign.stages.distilling import Shift
from campaign.stages.sample_md import BEFORE
from campaign.stages.selecting import describe, environments
from campaign.stages.trained import load_models
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.engines.models import Model
    from campaign.store.store import Store

#: Of the most uncertain frames, so many times as are wanted are thinned to those unlike each other.
CANDIDATES = 8

#: (n,) novelty of the candidates, which to take, and what was learned for the next round to go on from.
Judged = tuple[Array, list[int], dict[str, Array] | None]

#: What the figure of a novelty is.
UNITS = {
    "uq": "eV, the largest uncertainty of an atom",
    "rnd": "unlike the training set",
    "rnd_stream": "unlike all that was chosen before",
    "rematch": "from the nearest frame of the training set, by REMatch",
}

#: A walker that failed goes on from so many kept frames before.
BACK = 5


def choose(task: Task, context: Context, store: Store) -> Outcome:
    """Choose what to add after a round of dynamics with the model; nothing where every walker survived.

    The candidates are the kept frames of all walkers and, where a walker failed, the steps before; whatever is not fit
    to be labelled is refused with its reason. The result has copies of the chosen frames, whose ids are this task's.
    All of them have the same number of atoms: where walkers differ in that, those of the most novel one are taken.

    Its summary holds ``frames``, ``why`` and ``source`` (task, step and walker) of each; ``refused``; ``ends``, the
    frame from which each walker goes on (empty: it begins anew); and ``figures`` of the round: walkers ``failed``,
    ``causes`` of each walker, ``novelty`` (largest and median) of all candidates.
    """
    p = task.params
    kept = [_kept(store, segments) for _, segments, _, _ in p["walkers"]]
    ends = enumerate(p["walkers"])
    last_steps = [_before(store, start, segments[-1], k) for k, (start, segments, _, _) in ends if segments]
    limits = Limits(**p["limits"])
    sizes = _by_size([f for f in [*kept, *last_steps] if len(f)], limits)
    failed = [cause for _, _, _, cause in p["walkers"] if cause]
    judged = [(c, *_judged(task, context.run, store, c)) for c in sizes if c.blocks]
    candidates, _, pick, learned = max(judged, key=_most, default=(_Candidates([], limits), np.zeros(0), [], None))
    chosen = pick if failed and not p["last"] else []
    novelty = np.concatenate([np.zeros(0), *(found for _, found, _, _ in judged)])
    finite = novelty[np.isfinite(novelty)]
    summary: dict[str, Json] = {
        "frames": len(chosen),
        "chosen": len(chosen),
        "why": [f"novelty {novelty[k]:.3g} {UNITS[p['novelty']]}" for k in chosen],
        "source": [candidates.source(k) for k in chosen],
        "refused": [r for c in sizes for r in c.refused] if failed else [],
        "ends": [_end(f, limits, bool(w[3])) for f, w in zip(kept, p["walkers"], strict=True)],
        "figures": {
            "round": p["round"],
            "failed": len(failed),
            "walkers": len(p["walkers"]),
            "causes": [cause for _, _, _, cause in p["walkers"]],
            "added": len(chosen),
            "novelty": [float(finite.max()), float(np.median(finite))] if len(finite) else None,
        },
    }
    frames = candidates.take(chosen, task.number) if candidates.blocks else None
    arrays = dict(frames.arrays()) if frames is not None else {}
    return Outcome(summary, arrays, learned if chosen else None)


def _judged(task: Task, folder: Path, store: Store, candidates: _Candidates) -> Judged:
    """Return (n,) the novelty of each candidate, which to take, and what the next round goes on from."""
    p = task.params
    if p["novelty"] == "uq":
        return *_uncertain(load_models(store, p["models"]), candidates, p["size"]), None
    if p["novelty"] == "rematch":
        return *_unmatched(task, folder, store, candidates), None
    if p["novelty"] == "rnd_stream":
        return _continued(task, folder, store, candidates)
    return *_unlike(task, folder, store, candidates), None


def _kept(store: Store, segments: Sequence[str]) -> Frames:
    """Return the kept frames of a walker, in order."""
    return Frames.concat(store.frames("sample", task) for task in segments) if segments else _NONE


_NONE = Frames.build(np.zeros(0), np.zeros((0, 0, 3)), np.zeros((0, 3, 3)))


def _before(store: Store, start: str, segment: str, walker: int) -> Frames:
    """Return the steps before a walker's failure, the failed one included; none where it did not fail."""
    prefix = f"{BEFORE}{walker}."
    found = store.arrays("sample", segment).items()
    arrays = {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}
    if not arrays:
        return _NONE
    numbers = store.collect("sample", [start])[0].numbers[0]
    return Frames.build(numbers, **arrays, task=int(segment, 16), walker=walker)


def _end(frames: Frames, limits: Limits, failed: bool) -> str:
    """Return the frame from which a walker goes on: its last; where it failed, one well before.

    Empty where there is none so early, and it begins anew: what comes just before a failure, and a start from which
    it failed at once, is on its way to it whatever the model.
    """
    bad = refusals(frames, limits) if len(frames) else {}
    good = [k for k in range(len(frames) - (BACK if failed else 0)) if k not in bad]
    return frames.ids[good[-1]] if good else ""


def _by_size(blocks: Sequence[Frames], limits: Limits) -> list[_Candidates]:
    """Return the candidates of each number of atoms that walkers have; mostly there is one."""
    found: dict[int, list[Frames]] = {}
    for block in blocks:
        found.setdefault(block.n_atoms, []).append(block)
    return [_Candidates(same, limits) for same in found.values()]


def _most(judged: tuple[_Candidates, Array, list[int], dict[str, Array] | None]) -> float:
    """Return the largest novelty of some candidates: what is not finite is beyond all."""
    novelty = judged[1][~np.isnan(judged[1])]
    return float(novelty.max()) if len(novelty) else -np.inf


class _Candidates:
    """The frames of a round that are fit to be labelled, all of the same number of atoms.

    Parameters
    ----------
    blocks
        All frames.
    limits
        What they must keep to.
    """

    def __init__(self, blocks: Sequence[Frames], limits: Limits) -> None:
        self.blocks: list[Frames] = []
        self.refused: list[dict[str, str]] = []
        for block in blocks:
            reasons = refusals(block, limits)
            who = [f"walker {w}, step {s}" for w, s in zip(block.walker, block.step, strict=True)]
            self.refused += [{"frame": who[k], "reason": reasons[k]} for k in sorted(reasons)]
            rows = np.array([k for k in range(len(block)) if k not in reasons], dtype=np.int64)
            if len(rows):
                self.blocks.append(block[rows])
        self._ends = np.cumsum([len(b) for b in self.blocks])

    def place(self, row: int) -> tuple[int, int]:
        """Return block and row within it of a frame, counted through all blocks."""
        block = int(np.searchsorted(self._ends, row, side="right"))
        return block, row - (int(self._ends[block - 1]) if block else 0)

    def source(self, row: int) -> dict[str, Json]:
        """Return where a frame comes from."""
        block, k = self.place(row)
        frames = self.blocks[block]
        return {"task": f"{int(frames.task[k]):016x}", "walker": int(frames.walker[k]), "step": int(frames.step[k])}

    def take(self, rows: Sequence[int], task: int) -> Frames:
        """Return frames as those of a task, without energies and forces: what a model says is no label."""
        places = [self.place(row) for row in rows]
        found = Frames.concat([self.blocks[b][k : k + 1] for b, k in places]) if places else self.blocks[0][:0]
        keep = {name: getattr(found, name) for name in ("walker", "step", "temperature", "pressure")}
        return Frames.build(found.numbers, found.positions, found.cell, **keep, task=task)


def _uncertain(models: Sequence[Model], candidates: _Candidates, size: int) -> tuple[Array, list[int]]:
    """Return (n,) the largest uncertainty of an atom in each candidate, eV, and which to take: high, and not alike."""
    if len(models) < 2:
        raise EngineError("learn: one member is no ensemble; train two or more, or write 'novelty: rnd'.")
    parts = [np.stack([m.atomic_energies(block) for m in models]) for block in candidates.blocks]
    shift = Shift(models, candidates.blocks)
    pairs = zip(parts, candidates.blocks, strict=True)
    scores = np.concatenate([uncertainty.frame_scores(uncertainty.atomic_std(e - shift.of(b))) for e, b in pairs])
    features = np.concatenate([uncertainty.fingerprints(e) for e in parts])
    order = np.argsort(-np.where(np.isfinite(scores), scores, np.inf), kind="stable")[: CANDIDATES * size]
    return scores, [int(order[k]) for k in uncertainty.thin(scores[order], features[order], size)]


def _unlike(task: Task, folder: Path, store: Store, candidates: _Candidates) -> tuple[Array, list[int]]:
    """Return (n,) the novelty of each candidate and which to take, by random network distillation.

    g is trained on the training set first, then on each frame as it is taken.
    """
    p = task.params
    known = _sound(np.concatenate([describe(task, folder, b) for b in store.collect("sample", p["trained_on"])]))[1]
    fresh = np.concatenate([describe(task, folder, block) for block in candidates.blocks])
    rows, found = _sound(fresh)
    moments = Moments(fresh.shape[1])
    for part in (known, found):
        moments.add(part)
    learnt, z = moments.stretch(known), moments.stretch(found)
    networks = Distillation(z.shape[1], p["seed"])
    for _ in range(max(1, len(learnt) // networks.batch)):
        networks.fit(learnt)
    first = novelty = networks.novelty(z)
    taken: list[int] = []
    while len(taken) < min(p["size"], len(z)):
        row = int(np.argmax(np.where(np.isin(np.arange(len(z)), taken), -np.inf, novelty)))
        taken.append(row)
        networks.fit(np.concatenate([learnt, z[taken]]))
        novelty = networks.novelty(z)
    return _spread(first, rows, len(fresh)), [int(rows[k]) for k in taken]


def _continued(task: Task, folder: Path, store: Store, candidates: _Candidates) -> Judged:
    """Return (n,) the novelty of each candidate when it came, which to take, and what was learned.

    The stream of the selection goes on, block by block: its networks know all frames that were chosen from the pool,
    and those of the rounds before. What the pool had left over is no candidate any more.
    """
    p = task.params
    state = store.checkpoint(p["stream"])
    state |= {name: state[name][:0] for name in ("candidates", "candidate_ids")}
    selector = RNDStream(len(state["final"]) + p["size"], p["seed"], p["candidates"], early=0.0)
    selector.load(state)
    scores, first = [], 0
    for block in candidates.blocks:
        rows = np.arange(first, first + len(block))
        found = describe(task, folder, block)
        scores.append(selector.offer(Batch(np.zeros(len(rows)), rows, descriptors=found)).scores)
        first += len(block)
    return np.concatenate(scores), [row for _, row in selector.finish().chosen], selector.state()


def _unmatched(task: Task, folder: Path, store: Store, candidates: _Candidates) -> tuple[Array, list[int]]:
    """Return (n,) the REMatch distance of each candidate to the nearest frame of the training set, and which to take.

    Those that are farthest, from the training set and from those that were taken.
    """
    from dscribe.kernels import REMatchKernel

    p = task.params
    kernel = REMatchKernel(alpha=p["gamma"], metric="linear", normalize_kernel=True)
    blocks = store.collect("sample", p["trained_on"])
    known = [atoms for block in blocks for atoms in _sound(environments(task, folder, block))[1]]
    fresh = np.concatenate([environments(task, folder, block) for block in candidates.blocks])
    rows, sound = _sound(fresh)
    found = list(sound)
    if not found:
        return _spread(np.zeros(0), rows, len(fresh)), []
    first = away = rematch_distances(kernel, found, known).min(axis=1)
    taken: list[int] = []
    while len(taken) < min(p["size"], len(found)):
        taken.append(int(np.argmax(np.where(np.isin(np.arange(len(found)), taken), -np.inf, away))))
        away = np.minimum(away, rematch_distances(kernel, found, [found[taken[-1]]])[:, 0])
    return _spread(first, rows, len(fresh)), [int(rows[k]) for k in taken]


def _sound(described: Array) -> tuple[Array, Array]:
    """Return which frames could be described, and the descriptions of those."""
    rows = np.flatnonzero(np.isfinite(described).reshape(len(described), -1).all(axis=1))
    return rows, described[rows]


def _spread(values: Array, rows: Array, n: int) -> Array:
    """Return (n,) values at their rows; NaN for a frame that could not be described, and is not chosen."""
    found = np.full(n, np.nan)
    found[rows] = values
    return found
