"""The worker's side of distillation: members trained on frames of the pool, the pool scored, the next frames chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines.models import Model, versions
from campaign.errors import EngineError
from campaign.frames import Array, Frames, frame_id, parse_frame_id
from campaign.science import uncertainty
from campaign.science.refusals import Limits, refusals
from campaign.science.selection import Batch, RandomSelector, Reservoir, frame_hash
from campaign.science.selectors import build_selector
from campaign.stages.selecting import COLUMNS
from campaign.stages.trained import counted_of, execution_of, load_models, pack_counted, train_watched
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.store.store import Store

#: Frames from which correlation and calibration are found; of a larger pool a random part.
SAMPLE = 50_000

#: Frames over which the members' energies of the species are compared (``uncertainty.gauge``).
REFERENCE = 32

#: What a frame must have to be trained on.
LABELS = ("energy", "forces", "stress")


def first(task: Task, store: Store) -> Outcome:
    """Draw the frames to begin with; refused ones are passed over.

    Raises
    ------
    EngineError
        No frame can be trained on.
    """
    p = task.params
    limits, seed = Limits(**p["limits"]), int(np.random.SeedSequence(p["seed"]).generate_state(1)[0])
    spare, offered = 2 * p["size"] + 16, 0
    while True:
        selector, offered = RandomSelector(spare, seed), 0
        for shard, rows in zip(task.inputs, p["rows"], strict=True):
            index = np.arange(_count(store, shard)) if rows is None else np.array(rows)
            selector.offer(Batch(np.full(len(index), int(shard, 16), dtype="uint64"), index))
            offered += len(index)
        chosen: list[str] = []
        refused: list[dict[str, str]] = []
        drawn = [frame_id(np.uint64(t), i) for t, i in selector.finish().chosen]
        while drawn and len(chosen) < p["size"]:
            missing = p["size"] - len(chosen)
            part, drawn = drawn[:missing], drawn[missing:]
            reasons: dict[str, str] = {}
            for block in store.collect("sample", part):
                ids = block.ids
                reasons |= {ids[k]: reason for k, reason in unfit(block, limits).items()}
            chosen += [frame for frame in part if frame not in reasons]
            refused += [{"frame": frame, "reason": reasons[frame]} for frame in part if frame in reasons]
        if len(chosen) == p["size"] or spare >= offered:
            break
        spare *= 4
    if not chosen:
        raise EngineError(
            f"distill: none of {offered} frames can be trained on (the first: {refused[0]['reason']}). "
            "Sample with a potential, or from a file that has energies, forces and stresses."
        )
    short = len(chosen) < p["size"]
    note = f"uq: only {len(chosen)} frames could be chosen, not {p['size']}: all are taken" if short else ""
    found = {"chosen": chosen, "refused": refused if short else [], "finished": short, "note": note}
    return Outcome({**found, "why": ["drawn at random"] * len(chosen)}, {})


def train_member(task: Task, context: Context, store: Store) -> Outcome:
    """Train one member on its random part of the frames chosen so far, and test it on the others of them.

    The inputs are the tasks that chose the frames. Where ``atoms`` is true, all but the first say of which atoms the
    forces count.
    """
    p = task.params
    frames = chosen_by(store, task.inputs)
    rng = np.random.default_rng(p["seed"])
    n = min(len(frames), max(2, round(p["fraction"] * len(frames))))
    mine = np.zeros(len(frames), dtype=bool)
    mine[rng.choice(len(frames), n, replace=False)] = True
    blocks = store.collect("sample", [f for f, m in zip(frames, mine, strict=True) if m])
    seed = int(np.random.SeedSequence(p["seed"]).generate_state(1)[0])
    counted = counted_of(store, task.inputs[1:] if p.get("atoms") else [], blocks)
    folder = context.folder(task)
    execution = execution_of(task, context)
    model, arrays, summary = train_watched(blocks, counted, p["spec"], seed, folder, execution)
    rest = store.collect("sample", [f for f, m in zip(frames, mine, strict=True) if not m])
    off = [model.atomic_energies(b).sum(axis=1) - b.energy for b in rest]
    errors = [np.abs(d) / b.n_atoms for d, b in zip(off, rest, strict=True)]
    mae = float(np.concatenate(errors).mean()) if errors else math.nan
    summary |= {"frames": n, "of": len(frames), "validation_mae": mae if math.isfinite(mae) else None}
    scratch = (execution.checkpoint,) if execution.checkpoint else ()
    return Outcome(summary, arrays, versions=versions(p["model"]), scratch=scratch)


def score(task: Task, store: Store) -> Outcome:
    """Score the frames of a piece of the pool: uncertainty, its part in the energy, and the true error.

    The result has ``score`` (n,) eV, ``std`` and ``error`` (n,) eV/atom, and the frames' ids. The score is the
    uncertainty of the frame's energy itself (eV/atom) where that is asked for.
    """
    p = task.params
    m = p["members"]
    models = load_models(store, task.inputs[:m], "distill")
    shift = _reference(store, models, task.inputs[m])
    limits = Limits(**p["limits"])
    empty = np.zeros(0, dtype=np.float32)
    parts: dict[str, list[Array]] = {"score": [empty], "std": [empty], "error": [empty]}
    ids: dict[str, list[Array]] = {"task": [np.zeros(0, dtype=np.uint64)], "index": [np.zeros(0, dtype=np.int32)]}
    refused: list[dict[str, str]] = []
    for shard, rows in zip(task.inputs[m + 1 :], p["rows"], strict=True):
        frames = store.frames("sample", shard, rows)
        good, reasons = _fit(frames, limits)
        refused += reasons
        if not len(good):
            continue
        energies = np.stack([model.atomic_energies(good) for model in models])
        total = energies.sum(axis=2)
        atoms = good.n_atoms
        std = uncertainty.atomic_std(energies - shift.of(good))
        of_energy = total.std(axis=0, ddof=1) / atoms
        parts["score"].append(of_energy if p["score"] == "energy" else uncertainty.frame_scores(std, p["score"]))
        parts["std"].append(of_energy)
        parts["error"].append((total.mean(axis=0) - good.energy) / atoms)
        ids["task"].append(good.task)
        ids["index"].append(good.index)
    arrays = {name: np.concatenate(found).astype(np.float32) for name, found in parts.items()}
    arrays |= {name: np.concatenate(found) for name, found in ids.items()}
    summary: dict[str, Json] = {"frames": len(arrays["score"]), "refused": refused if p["refusals"] else []}
    return Outcome(summary, arrays, versions=versions(p["model"]))


class Shift:
    """What is taken from each member's atomic energies because no energy of a frame can show it."""

    def __init__(self, models: Sequence[Model], blocks: Sequence[Frames]) -> None:
        self._kinds = np.unique(np.concatenate([b.numbers.ravel() for b in blocks]))
        s = len(self._kinds)
        sums, atoms = np.zeros((len(models), s)), np.zeros(s)
        compositions: set[tuple[int, ...]] = set()
        for block in blocks:
            there = block.numbers[:, :, None] == self._kinds  # (n, a, s)
            sums += np.stack([np.einsum("na,nas->s", model.atomic_energies(block), there) for model in models])
            atoms += there.sum(axis=(0, 1))
            compositions |= {tuple(row) for row in there.sum(axis=1).tolist()}
        self._shift = uncertainty.gauge(sums / atoms, np.array(sorted(compositions)))

    def of(self, frames: Frames) -> Array:
        """Return (m, n, a) eV; nothing for a species that was not compared."""
        there = frames.numbers[:, :, None] == self._kinds
        return np.asarray(np.einsum("ms,nas->mna", self._shift, there))


def _reference(store: Store, models: Sequence[Model], drawn: str) -> Shift:
    """Return the members' shift over the first of the frames that a task drew."""
    return Shift(models, store.collect("sample", chosen_by(store, [drawn])[:REFERENCE]))


def choose(task: Task, store: Store) -> Outcome:
    """Judge the ensemble by the frames that were not chosen, and choose the next ones unless that is enough.

    Where ``force_share`` is given, it is decided here of which atoms of the chosen frames the forces count.
    """
    p = task.params
    m, c = p["members"], p["chain"]
    models, chain, scores = task.inputs[:m], task.inputs[m : m + c], task.inputs[m + c :]
    taken = chosen_by(store, chain)
    thinned = p["add"] == "uncertain"
    room = math.ceil(p["candidates"] * p["batch"]) if thinned else p["batch"]
    rest = _Rest(room, p["seed"], p["add"], p["iteration"])
    known = _by_task(taken)
    refused: list[dict[str, str]] = []
    for piece in scores:
        rest.add(store.arrays("distill", piece), known)
        refused += store.locate("distill", piece).record["result"]["refused"]
    figures = {"iteration": p["iteration"], "members": m, "size": len(taken), **rest.figures(len(taken))}
    mae = figures["mae"]
    enough = mae is not None and mae <= p["target_mae"]
    finished = enough or p["last"] or not len(rest.top)
    chosen: list[str] = []
    why: list[str] = []
    if not finished:
        candidates = [frame_id(t, i) for t, i in rest.ids]
        if not thinned:
            how = "drawn at random" if p["add"] == "random" else "drawn, as likely as it is uncertain"
            chosen, why = candidates, [how] * len(candidates)
        else:
            features = _fingerprints(store, load_models(store, models, "distill"), candidates)
            rows = uncertainty.thin(rest.top, features, p["batch"])
            chosen = [candidates[k] for k in rows]
            what = "its energy is" if p["score"] == "energy" else "the energies of its atoms are"
            unit = "eV/atom" if p["score"] == "energy" else "eV"
            why = [f"{what} uncertain by {rest.top[k]:.3g} {unit}" for k in rows]
    arrays: dict[str, Array] = {}
    if chosen and "force_share" in p:
        ensemble = load_models(store, models, "distill")
        std = _atomic_std(store, ensemble, chosen, _reference(store, ensemble, chain[0]))
        arrays = pack_counted(uncertainty.most_uncertain(std, p["force_share"]))
    found = {"chosen": chosen, "why": why, "refused": refused, "finished": finished, "figures": figures}
    return Outcome({**found, "note": _note(figures, p["target_mae"], enough) if finished else ""}, arrays)


def _note(figures: dict[str, Json], target: float, enough: bool) -> str:
    if not figures["rest"]:
        return f"uq: all {figures['size']} frames were chosen, and none is left to judge by"
    mae = "energies that are not finite" if figures["mae"] is None else f"{1e3 * figures['mae']:.3g} meV/atom"
    found = f"uq: {figures['size']} of {figures['pool']} frames ({figures['share']:.1%}) predict the others to {mae}"
    return found if enough else f"{found}; {1e3 * target:.3g} were asked for, and the iterations are spent"


class _Rest:
    """The frames that were not chosen, seen piece by piece in constant memory.

    Parameters
    ----------
    room
        How many of the most uncertain are kept: ``top`` (k,) their scores, by falling score, and ``ids``.
    seed
        Which frames stand for all where they are more than ``SAMPLE``, and of the draws.
    add
        Keep frames that are "weighted" (drawn, as likely as their score is large) or "random" ones instead.
    iteration
        Each draws anew.
    """

    def __init__(self, room: int, seed: int, add: str = "uncertain", iteration: int = 0) -> None:
        self.top = np.zeros(0)
        self.ids: list[tuple[Any, Any]] = []
        self._room, self._seed, self._add, self._iteration = room, seed, add, iteration
        self._count, self._pool = 0, 0
        self._sums = np.zeros(3)  # of the error's size, its square, and itself
        self._sample = Reservoir(SAMPLE, 3)

    def add(self, scored: dict[str, Array], taken: dict[int, Array]) -> None:
        """See the frames of one piece."""
        self._pool += len(scored["score"])
        left = np.ones(len(scored["score"]), dtype=bool)
        for number in np.unique(scored["task"]):
            if int(number) in taken:
                left &= (scored["task"] != number) | ~np.isin(scored["index"], taken[int(number)])
        part = {name: values[left] for name, values in scored.items()}
        values = np.stack([part[n].astype(np.float64) for n in ("score", "std", "error")], axis=1)
        self._count += len(values)
        error = values[:, 2]
        self._sums += [np.abs(error).sum(), (error**2).sum(), error.sum()]
        ids = np.stack([part["task"].astype(np.uint64), part["index"].astype(np.uint64)], axis=1)
        hashes = frame_hash(self._seed, part["task"], part["index"])
        self._sample.add(hashes, ids, values)
        worth = values[:, 0]
        if self._add == "random":
            worth = hashes.astype(np.float64)
        elif self._add == "weighted":
            dice = int(np.random.SeedSequence([self._seed, self._iteration]).generate_state(1)[0])
            uniform = (frame_hash(dice, part["task"], part["index"]) >> np.uint64(12)).astype(np.float64)
            worth = uncertainty.drawn(worth, (uniform + 0.5) / 2.0**52)
        worst = np.concatenate([self.top, np.where(np.isfinite(worth), worth, np.inf)])
        names = [*self.ids, *zip(part["task"], part["index"], strict=True)]
        order = np.argsort(-worst, kind="stable")[: self._room]
        self.top, self.ids = worst[order], [names[k] for k in order]

    def figures(self, size: int) -> dict[str, Json]:
        """Return how good and how well judged the ensemble is (eV/atom); None for what is not finite."""
        score, std, error = self._sample.values.T
        finite = np.isfinite(self._sample.values).all(axis=1)
        mae, square, bias = (float(s) / self._count if self._count else math.nan for s in self._sums)
        off = np.abs(error[finite])
        return {
            "pool": self._pool,
            "rest": self._count,
            "share": size / max(self._pool, 1),
            "mae": mae if math.isfinite(mae) else None,
            "rmse": math.sqrt(square) if math.isfinite(square) else None,
            "bias": bias if math.isfinite(bias) else None,  # an error that all frames share is in no uncertainty
            "correlation": {
                "score": uncertainty.rank_correlation(score[finite], off),
                "std": uncertainty.rank_correlation(std[finite], off),
            },
            "calibration": uncertainty.calibration(std, error),
        }


def grid(task: Task, store: Store) -> Outcome:
    """Choose uniformly over a grid in enthalpy and order, in one pass.

    Raises
    ------
    EngineError
        No frame can be chosen.
    """
    p = task.params
    selector = build_selector("grid", p["size"], p["seed"], {"bins": tuple(p["bins"])})
    limits = Limits(**p["limits"])
    refused: list[dict[str, str]] = []
    for shard, rows in zip(task.inputs, p["rows"], strict=True):
        good, reasons = _fit(store.frames("sample", shard, rows), limits)
        refused += reasons
        if len(good):
            columns: dict[str, Any] = {name: COLUMNS[name](good) for name in selector.needs}
            offer = selector.offer(Batch(good.task, good.index, **columns))
            refused += [{"frame": good.ids[k], "reason": reason} for k, reason in offer.refused.items()]
    found = selector.finish()
    if not found.chosen:
        raise EngineError(f"distill: no frame can be chosen (the first: {refused[0]['reason']}); sample others.")
    chosen = [frame_id(np.uint64(t), i) for t, i in found.chosen]
    return Outcome({"chosen": chosen, "why": found.why, "refused": refused, "finished": True}, {})


def unfit(frames: Frames, limits: Limits) -> dict[int, str]:
    """Return which frames are never chosen: their row, and the first reason."""
    found = refusals(frames, limits)
    for name in LABELS:
        known = np.isfinite(getattr(frames, name)).reshape(len(frames), -1).all(axis=1)
        for k in np.flatnonzero(~known):
            found.setdefault(int(k), f"its {name} {'are' if name == 'forces' else 'is'} not known")
    return found


def _fit(frames: Frames, limits: Limits) -> tuple[Frames, list[dict[str, str]]]:
    """Return the frames that may be chosen, and the others with their reasons."""
    reasons = unfit(frames, limits)
    ids = frames.ids
    rows = np.array([k for k in range(len(frames)) if k not in reasons], dtype=np.int64)
    return frames[rows], [{"frame": ids[k], "reason": reasons[k]} for k in sorted(reasons)]


def chosen_by(store: Store, tasks: Sequence[str]) -> list[str]:
    """Return the frames that finished tasks chose, in order."""
    return [f for task in tasks for f in store.locate("distill", task).record["result"]["chosen"]]


def _by_task(frames: Sequence[str]) -> dict[int, Array]:
    """Return the indices of frames by the number of their task."""
    found: dict[int, list[int]] = {}
    for frame in frames:
        task, index = parse_frame_id(frame)
        found.setdefault(int(task, 16), []).append(index)
    return {task: np.array(indices) for task, indices in found.items()}


def _atomic_std(store: Store, models: Sequence[Model], ids: Sequence[str], shift: Shift) -> list[Array]:
    """Return (a,) the uncertainty of each atom of each frame, eV, in the order of ``ids``."""
    found: dict[str, Array] = {}
    for block in store.collect("sample", ids):
        energies = np.stack([model.atomic_energies(block) for model in models])
        found |= dict(zip(block.ids, uncertainty.atomic_std(energies - shift.of(block)), strict=True))
    return [found[f] for f in ids]


def _fingerprints(store: Store, models: Sequence[Model], ids: Sequence[str]) -> Array:
    """Return (n, d) what tells frames apart, in the order of ``ids``."""
    found: dict[str, Array] = {}
    for block in store.collect("sample", ids):
        rows = uncertainty.fingerprints(np.stack([model.atomic_energies(block) for model in models]))
        found |= dict(zip(block.ids, rows, strict=True))
    return np.stack([found[f] for f in ids])


def _count(store: Store, shard: str) -> int:
    place = store.locate("sample", shard)
    return place.stop - place.start
