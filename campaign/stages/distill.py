"""Distillation: the few frames of a pool from which a model can predict the others.

The frames must have energies, forces and stresses already: those of the potential they were sampled with. Then no
labeller is asked, and the error of a model is known for every frame.

``uq`` begins with a few frames at random and repeats, at most so many times: an ensemble is trained, each member on its
own random part of the frames chosen so far; all frames are scored, each by the uncertainty of its atoms, which is the
standard deviation of their energies over the members; the most uncertain frames that are not alike are added. It ends
as soon as the ensemble's mean energy of the frames that were not chosen is good enough. Source: H. Jung et al., Data
Distillation for Neural Network Potentials toward Foundational Dataset. By option only the forces on the most uncertain
atoms of the frames added count (``force_share``); which these are is decided, and stored, when the frames are chosen.

An iteration is the members' training side by side, then the scoring of pieces of the pool side by side, then one task
that chooses. Each is a task like any other: known by what decides its result, and never done twice. What was chosen is
read from the records of the tasks that chose it, so that no task carries a list that grows.

``grid`` takes as many frames from every cell of a grid in enthalpy and order: the baseline, without a model.
What the workers do is in ``distilling``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from campaign.frames import parse_frame_id
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.distilling import choose, first, grid, score, train_member
from campaign.stages.selecting import LIMITS, compared_sets, draw
from campaign.stages.trained import split_extra
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign

VERSION = 3

#: Frames that one task scores, about: minutes for a small network on one core.
PIECE = 1024

#: Told apart from the seeds of the draws.
FIRST = 0x666972

#: A piece of what is distilled: shards, and the rows of each that take part (None: all).
Piece = tuple[list[str], list[list[int] | None]]


class Distill:
    """Plans the iterations, and the random draws that validation asks for.

    Parameters
    ----------
    campaign
        The campaign.
    """

    name = "distill"

    def __init__(self, campaign: Campaign) -> None:
        assert campaign.distill is not None
        self._seed = campaign.seed
        spec: dict[str, Json] = campaign.distill.model_dump(mode="json")
        self.method: str = spec.pop("method")
        self._limits = {key: spec.pop(key) for key in LIMITS}
        self._spec = spec
        self._model, self._extra = _model(campaign, spec)
        self._atoms = spec.get("force_share", 1.0) < 1.0  # not every atom's force counts
        size = spec["size"] if self.method == "grid" else spec["initial"] + spec["iterations"] * spec["batch"]
        self._main = FrameSet(self.method, size, train=True)
        self.sets = [self._main, *compared_sets(campaign, self.method, size)]
        self._selected = campaign.select is not None
        self._pieces: list[Piece] | None = None
        self._phase = "grid" if self.method == "grid" else "first"
        self._iteration = 0
        self._chain: list[str] = []  # tasks that chose, in order
        self._models: dict[int, str] = {}  # this iteration's members
        self._scores: dict[int, str] = {}  # this iteration's pieces
        self._waiting: dict[str, int | str] = {}  # task in flight -> number in its phase, or the set it draws
        self._count = 0  # tasks planned
        self.iterations: list[dict[str, Json]] = []  # figures of each, as its last task found them

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the tasks of the next phase when the one before is settled; the draws when all is chosen."""
        board.sets.update({s.name: s for s in self.sets if s.name not in board.sets})
        if not board.sampled or (self._selected and not (board.source and board.source.closed)) or self._waiting:
            return
        if self._pieces is None:
            self._pieces = _pieces(board)
            self._main.refused += board.source.refused if board.source else []
            if not self._pieces:  # every walker was lost, or nothing was selected
                self._give_up()
        if not self._main.closed:
            yield from self._next()
        elif self._main.chosen:
            yield from self._draws(board)

    def _next(self) -> Iterator[Task]:
        pieces = self._pieces or []
        shards = tuple(s for piece in pieces for s in piece[0])
        rows = [r for piece in pieces for r in piece[1]]
        models = tuple(self._models[k] for k in sorted(self._models))
        seed: list[int] = [self._seed, self._iteration]
        if self._phase == "grid":
            params = {"size": self._spec["size"], "bins": self._spec["bins"], "seed": self._seed, "rows": rows}
            yield self._task("grid", 0, {**params, "limits": self._limits}, shards)
        elif self._phase == "first":
            params = {"size": self._spec["initial"], "seed": [self._seed, FIRST], "rows": rows, "limits": self._limits}
            yield self._task("first", 0, params, shards)
        elif self._phase == "train":
            for k in range(self._spec["members"]):
                params = {**self._model, "fraction": self._spec["train_fraction"], "seed": [*seed, k]}
                if self._atoms and self._iteration:
                    params["atoms"] = True
                yield self._task("train", k, params, tuple(self._chain))
        elif self._phase == "score":
            for k, (ids, some) in enumerate(pieces):
                params = {"members": len(models), "rows": some, "score": self._spec["score"], "limits": self._limits}
                params["refusals"] = self._iteration == 0  # they are the same every time
                yield self._task("score", k, params, (*models, self._chain[0], *ids))
        else:
            scores = tuple(self._scores[k] for k in sorted(self._scores))
            params = {key: self._spec[key] for key in ("batch", "candidates", "target_mae")}
            params |= {"members": len(models), "chain": len(self._chain), "iteration": self._iteration}
            params["last"] = self._iteration == self._spec["iterations"]
            params |= {"seed": self._seed, "add": self._spec["add"], "score": self._spec["score"]}
            if self._atoms:
                params["force_share"] = self._spec["force_share"]
            yield self._task("choose", 0, params, (*models, *self._chain, *scores))

    def _task(self, what: str, number: int, params: dict[str, Json], inputs: tuple[str, ...]) -> Task:
        place = f"iteration {self._iteration}/{what} {number}" if what in ("train", "score") else what
        name = f"uq/iteration {self._iteration}/choose" if what == "choose" else f"{self.method}/{place}"
        model = {"model": self._model["model"]} if what in ("train", "score", "choose") else {}
        task = Task(self.name, name, {"what": what, **params, **model}, inputs, VERSION, 1, self._extra)
        self._waiting[task.id] = number
        self._count += 1
        return task

    def _draws(self, board: Board) -> Iterator[Task]:
        """Yield the random draws: the set to compare with has as many frames; the test set leaves all of them out."""
        for number, chosen in enumerate(self.sets):
            train = [s for s in self.sets if s.train]
            ready = chosen.name != HELD_OUT or all(s.closed for s in train)
            if chosen.closed or not ready or self._waiting:
                continue
            avoid = sorted(f for s in train for f in s.chosen) if chosen.name == HELD_OUT else []
            chosen.size = len(self._main.chosen) if chosen.train else chosen.size
            params = {"what": "draw", "size": chosen.size, "seed": [self._seed, number]}
            params |= {"limits": self._limits, "avoid": avoid}
            shards = tuple(s.task.id for s in board.shards if s.state == "ready")
            task = Task(self.name, f"{chosen.name}/draw", params, shards, VERSION, 1)
            self._waiting[task.id] = chosen.name
            self._count += 1
            yield task

    # -- what was done ---------------------------------------------------------------------------------------------

    def commit(self, record: Record, board: Board) -> None:
        """Take in a member, the scores of a piece, or frames that were chosen; they are final at once."""
        number = self._waiting.pop(record["task"])
        done = record["state"] == "done"
        if isinstance(number, str):
            chosen = next(s for s in self.sets if s.name == number)
            self._close(chosen, record["result"] if done else {"chosen": [], "refused": []})
        elif self._phase in ("train", "score"):
            if done:
                (self._models if self._phase == "train" else self._scores)[number] = record["task"]
            if not self._waiting:
                self._settle()
        elif not done:
            self._give_up()
        elif self._phase == "grid":
            self._close(self._main, record["result"])
        else:
            self._take(record)

    def _settle(self) -> None:
        """Go on with the members, or the pieces, that there are; one member is no ensemble."""
        if self._phase == "train" and len(self._models) >= 2:
            self._phase = "score"
        elif self._phase == "score" and self._scores:
            self._phase = "choose"
        else:
            self._give_up()

    def _take(self, record: Record) -> None:
        result = record["result"]
        self._main.chosen += result["chosen"]
        self._main.refused += result["refused"]
        if self._phase == "choose":
            self.iterations.append({**result["figures"], "models": [self._models[k] for k in sorted(self._models)]})
            self._iteration += 1
            if self._atoms and result["chosen"]:
                self._main.counted.append(record["task"])
        self._chain.append(record["task"])
        self._models, self._scores, self._phase = {}, {}, "train"
        if result["finished"]:
            self._main.size, self._main.closed = len(self._main.chosen), True
            self._main.note = result["note"]

    def _close(self, chosen: FrameSet, result: dict[str, Json]) -> None:
        chosen.chosen, chosen.closed = result["chosen"], True
        chosen.refused += result["refused"]
        if len(chosen.chosen) < chosen.size:
            n = len(chosen.chosen)
            chosen.note = f"{chosen.name}: only {n} frames could be chosen, not {chosen.size}: all are taken"

    def _give_up(self) -> None:
        """End without frames: a part of a choice is not the choice asked for, and nothing is trained on it."""
        for chosen in self.sets:
            chosen.chosen, chosen.counted, chosen.closed = [], [], True

    def total(self, board: Board) -> int:
        """Return the number of tasks: those planned, and until all is chosen what the iterations left may take."""
        draws = len(self.sets) - 1
        if self._main.closed:
            return max(self._count, 1) if not self._main.chosen else self._drawn() + draws
        if self.method == "grid":
            return 1 + draws
        if self._pieces is not None:
            pieces = len(self._pieces)
        else:
            frames = sum(s.frames for s in board.shards)
            pieces = -(-min(frames, board.source.size if board.source else frames) // PIECE) or 1
        return 1 + (1 + int(self._spec["iterations"])) * (int(self._spec["members"]) + pieces + 1) + draws

    def _drawn(self) -> int:
        """Return how many tasks chose, and led to what was chosen."""
        drawn = sum(s.closed for s in self.sets[1:]) + sum(isinstance(n, str) for n in self._waiting.values())
        return self._count - drawn

    def finished(self, board: Board) -> bool:
        """Tell whether every set is complete."""
        return board.sampled and all(s.closed for s in self.sets) and not self._waiting


def _model(campaign: Campaign, spec: dict[str, Json]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return what the members are (``{model, spec}``), and what does not decide their result."""
    assert campaign.train is not None
    model, extra = split_extra(campaign.train.model_dump(mode="json"))
    model.pop("members")
    if "wall" in model:
        model["wall"] = False  # the network is to be judged, not what stands before its holes
    for key in ("epochs", "steps"):
        if "epochs" in model and spec.get(key):
            model[key] = spec[key]
    # each member has frames of its own, and is one of many: they are trained one by one, in one process
    alone = {key: value for key, value in extra.items() if key in ("delay", "device")}
    return {"model": model["model"], "spec": model}, alone


def _pieces(board: Board) -> list[Piece]:
    """Return what is distilled, in pieces of about ``PIECE`` frames, in the order of the pool."""
    rows: dict[str, list[int]] = {}
    for frame in board.source.chosen if board.source else []:
        task, index = parse_frame_id(frame)
        rows.setdefault(task, []).append(index)
    found: list[Piece] = []
    room = 0
    for shard in board.shards:
        if shard.state != "ready" or (board.source and shard.task.id not in rows):
            continue
        some = sorted(rows[shard.task.id]) if board.source else None
        count = len(some) if some is not None else shard.frames
        if not found or room < count:
            found.append(([], []))
            room = PIECE
        found[-1][0].append(shard.task.id)
        found[-1][1].append(some)
        room -= count
    return found


def load(task: Task) -> None:
    """Load what the work needs, once a worker."""
    from campaign.engines.models import load

    load(task.params.get("model", "fake"))


def work(task: Task, context: Context) -> Outcome:
    """Do one step of a distillation."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if task.params["what"] == "train":
        return train_member(task, context, store)
    return {"first": first, "score": score, "choose": choose, "grid": grid, "draw": draw}[task.params["what"]](
        task, store
    )
