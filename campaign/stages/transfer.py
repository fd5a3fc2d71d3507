"""Transfer: the set of another campaign becomes the training set of this one, scaled, its species mapped.

Nothing is sampled, selected or distilled for the new system: the frames of the source's set are read where they lie,
part by part; each part is a shard of the pool, made by a task that is known by the source frames' ids and by what is
done to them. They are chosen already, and labelled as soon as they are there. The factor on lengths is that of two
crystals, relaxed by a task each, or the campaign file's.

Where models are tested, the campaign has a pool of the target beside: sampled, or read from a file. It is drawn from at
random for the test, and for a set to compare with, and for nothing else: no model saw it.

Source: H. Jung et al., Data Distillation for Neural Network Potentials toward Foundational Dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from campaign.config.transfers import FAR
from campaign.science.transfer import ratio
from campaign.stages import transferring
from campaign.stages.board import HELD_OUT, Board, FrameSet
from campaign.stages.selecting import compared_sets
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.stages.transfer_origin import Origin

VERSION = 2

#: The two crystals whose ratio is the factor.
SOURCE, TARGET = "source", "target"


class Transfer:
    """Plans the crystals, the parts, and the random draws that validation asks for.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file to the hash of its content.
    origin
        The frames that are transferred.
    """

    name = "transfer"
    attempts = 2

    def __init__(self, campaign: Campaign, digests: dict[str, str], origin: Origin) -> None:
        assert campaign.transfer is not None
        self.spec, self.origin = campaign.transfer, origin
        self._seed = campaign.seed
        spec: dict[str, Json] = campaign.transfer.model_dump(mode="json")
        self._params: dict[str, Json] = {key: spec[key] for key in ("species", "scale", "strain", "min_distance")}
        self._crystals = _crystals(campaign, digests, origin) if spec["scale"] == "lattice" else {}
        copies = 1 + (campaign.transfer.strain.copies if campaign.transfer.strain else 0)
        self.main = FrameSet(self.name, origin.frames * copies, train=True)
        self.sets = [self.main, *compared_sets(campaign, self.name, self.main.size)]
        self._parts: list[str] = []  # tasks, in the order of the source
        self._results: dict[str, Json] = {}  # settled task -> what it found; None where it could not be done
        self._taken = 0  # parts whose frames are in the set
        self._draws: dict[str, FrameSet] = {}  # task in flight -> the set that it draws
        self._planned: set[str] = set()

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the crystals, then the parts; the draws when the pool beside is complete."""
        board.sets.update({s.name: s for s in self.sets if s.name not in board.sets})
        crystals = {task.id: task for task in self._crystals.values()}
        for task in crystals.values():
            yield from self._new(task)
        if not self._parts and all(c in self._results for c in crystals):
            if any(self._results[c] is None for c in crystals):
                self._give_up()
            elif not self.main.closed:
                for task in self._frames():
                    self._parts.append(task.id)
                    yield from self._new(task)
        yield from self._draw(board)

    def _new(self, task: Task) -> Iterator[Task]:
        if task.id not in self._planned:
            self._planned.add(task.id)
            yield task

    def _frames(self) -> Iterator[Task]:
        crystals = tuple(self._crystals[name].id for name in (SOURCE, TARGET) if name in self._crystals)
        for number, part in enumerate(self.origin.parts):
            params = {"what": "frames", **self._params, "frames": part.frames}
            if params["strain"] is not None:
                params["seed"] = self._seed
            if params["scale"] == "lattice" and self.origin.grown != 1.0:
                params["grown"] = self.origin.grown
            if part.where:
                params |= {"content": self.origin.digest, "rows": part.where[:2]}
            extra = {"path": self.origin.store, "stamp": self.origin.stamp, "where": part.where}
            name = f"{self.origin.run}/part {number}"
            yield Task(self.name, name, params, crystals, VERSION, priority=1, extra=extra)

    def _draw(self, board: Board) -> Iterator[Task]:
        """Yield the random draws from the target's own pool: the test set leaves out those to compare with."""
        if not board.sampled:
            return
        shards = tuple(s.task.id for s in board.shards if s.state == "ready")
        for number, chosen in enumerate(self.sets[1:], 1):
            if chosen in self._draws.values() or chosen.closed:
                continue
            if not shards:  # every walker was lost: there is nothing to draw from
                chosen.closed = True
                continue
            others = [s for s in self.sets[1:] if s.train]
            if (chosen.train and not self.main.closed) or (
                chosen.name == HELD_OUT and not all(s.closed for s in others)
            ):
                continue
            chosen.size = len(self.main.chosen) if chosen.train else chosen.size
            limits = {"min_distance": self.spec.min_distance, "max_force": None, "energy": None, "volume": None}
            avoid = sorted(f for s in others for f in s.chosen) if chosen.name == HELD_OUT else []
            params = {"what": "draw", "size": chosen.size, "seed": [self._seed, number], "limits": limits}
            task = Task(self.name, f"{chosen.name}/draw", params | {"avoid": avoid}, shards, VERSION, priority=1)
            self._draws[task.id] = chosen
            yield from self._new(task)

    def commit(self, record: Record, board: Board) -> None:
        """Take in a crystal, the frames of a part in the order of the source, or a draw."""
        task, done = record["task"], record["state"] == "done"
        self._results[task] = record["result"] if done else None
        drawn = self._draws.get(task)
        if drawn is not None:
            result = self._results[task] or {"chosen": [], "refused": []}
            drawn.chosen, drawn.refused, drawn.closed = result["chosen"], result["refused"], True
            if len(drawn.chosen) < drawn.size:
                n = len(drawn.chosen)
                drawn.note = f"{drawn.name}: only {n} frames could be drawn, not {drawn.size}: all are taken"
            return
        while self._taken < len(self._parts) and self._parts[self._taken] in self._results:
            result = self._results[self._parts[self._taken]] or {"chosen": [], "refused": []}
            self.main.chosen += result["chosen"]
            self.main.refused += result["refused"]
            self._taken += 1
        if self._parts and self._taken == len(self._parts) and not self.main.closed:
            self.main.closed = True
            if len(self.main.chosen) < self.main.size:
                lost = self.main.size - len(self.main.chosen)
                self.main.note = f"transfer: {lost} of {self.main.size} frames were refused or could not be read"

    def _give_up(self) -> None:
        """End without frames: without the factor there are none."""
        for chosen in self.sets:
            chosen.chosen, chosen.closed = [], True

    @property
    def factors(self) -> list[float] | None:
        """The factors along x, y and z; None while they are not known."""
        if self.spec.scale != "lattice":
            return [float(f) for f in np.broadcast_to(np.asarray(self.spec.scale, dtype=float), (3,))]
        source, target = (self._results.get(task.id) for task in self._crystals.values())
        if source is None or target is None:
            return None
        return [float(f) for f in ratio(source["volume"] * self.origin.grown, target["volume"])]

    @property
    def crystals(self) -> dict[str, dict[str, Json]]:
        """What was found of each crystal that is relaxed: lengths (Å), volume (Å^3 an atom), energy (eV an atom)."""
        return {k: self._results[t.id] for k, t in self._crystals.items() if self._results.get(t.id)}

    @property
    def parts(self) -> list[tuple[str, dict[str, Json]]]:
        """The finished parts, in order: task and summary."""
        return [(task, self._results[task]) for task in self._parts if self._results.get(task)]

    @property
    def missing(self) -> int:
        """How many parts are still to be read."""
        return len(self.origin.parts) - sum(task in self._results for task in self._parts)

    @property
    def notes(self) -> list[str]:
        """What people are to know, in sentences."""
        return far(self.factors)

    def packable(self, board: Board) -> list[list[str]]:
        """Return the finished parts."""
        done = [task for task, _ in self.parts]
        return [done] if done else []

    def total(self, board: Board) -> int:
        """Return the number of crystals, parts and draws."""
        if self.main.closed and not self._parts:
            return len(self._planned)
        return len({t.id for t in self._crystals.values()}) + len(self.origin.parts) + len(self.sets) - 1

    def finished(self, board: Board) -> bool:
        """Tell whether every set is complete."""
        return all(s.closed for s in self.sets)


def far(factors: list[float] | None) -> list[str]:
    """Return a sentence where a factor is far from 1."""
    worst = max(factors or [1.0], key=lambda f: abs(np.log(f)))
    if 1 / FAR <= worst <= FAR:
        return []
    return [
        f"transfer: lengths are scaled by {worst:.4g}, far from 1: distances that are usual in the source may mean "
        "little in the target. Look at the errors before the model is trusted, or write another 'scale'."
    ]


def _crystals(campaign: Campaign, digests: dict[str, str], origin: Origin) -> dict[str, Task]:
    """Return the tasks that relax the source's crystal and the target's; one where they are the same."""
    potential = (campaign.transfer.potential if campaign.transfer else None) or campaign.reference
    assert potential is not None  # the campaign file is refused without it
    structure = campaign.system.structure.model_dump(mode="json")
    path = potential.lammps
    own: dict[str, Json] = {"structure": structure, "potential": path, "digest": digests.get(path, "")}
    found = {}
    for name, crystal in ((SOURCE, origin.crystal), (TARGET, own)):
        params = {"what": "lattice", "structure": crystal["structure"], "potential": crystal["digest"]}
        extra = {"potential": crystal["potential"]}
        found[name] = Task("transfer", f"lattice/{name}", params, (), VERSION, priority=1, extra=extra)
    return found


def work(task: Task, context: Context) -> Outcome:
    """Relax a crystal, transfer the frames of a part, or draw frames of the target's own pool."""
    return transferring.work(task, context)
