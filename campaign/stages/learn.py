"""Active learning: dynamics with the model; what it does not know is labelled, added and trained on, until it holds.

A round is walkers driven by the model, each by one member of the ensemble, watched at every step; then, where one of
them failed, a choice among their frames and the steps before each failure: those that are most novel and fit to be
labelled. They make a training set of its own, ``learn-1`` and so on, with all frames of the set before: labels and
training follow as for every other set. The walkers of the next round start where those of the last one ended: a walker
that failed, a few kept frames before. Learning ends with a round in which every walker survives, or with the last.
Source: NPT-RND thesis, chapter 13, generalised: there frames were compared with the training set by REMatch.

Frames are made by the work of ``sample`` (a segment of ``method: md``, the choice in ``learning``), so each has an id
like any frame of the pool; they are no shards of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from campaign.frames import frame_id
from campaign.science.refusals import Limits
from campaign.stages.board import Board, FrameSet
from campaign.stages.segments import VERSION, segments_of, set_points
from campaign.stages.selecting import LIMITS, species_of
from campaign.tasks import Json, Record, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from campaign.config import Campaign
    from campaign.stages.sample_file import Source

#: Of a round, what is told as it is.
FIGURES = ("round", "set", "failed", "walkers", "added", "survived", "novelty")

#: Told apart from the seeds of the sampling entries.
ROUNDS = 0x6C6561726E


@dataclass
class Walker:
    """A walker of a round: where it starts, its segments so far, and how it ended; ``step`` is that of its failure."""

    start: str
    segments: list[str] = field(default_factory=list)
    frames: int = 0
    ended: bool = False
    cause: str = ""
    step: int | None = None


class Learn:
    """Plans the rounds.

    Parameters
    ----------
    campaign
        The campaign.
    sources
        Notes of the files of frames that it samples from (``sample_file``).
    """

    name = "learn"

    def __init__(self, campaign: Campaign, sources: Sequence[Source] = ()) -> None:
        assert campaign.learn is not None
        spec: dict[str, Json] = campaign.learn.model_dump(mode="json")
        self._limits = {key: spec.pop(key) for key in LIMITS}
        self._md: dict[str, Json] = spec.pop("md")
        self._spec = spec
        self._segments = segments_of(campaign.learn.md.frames, self._md["segment"])
        self._seed = campaign.seed
        self._measure = _measure(campaign, sources)
        self._set: FrameSet | None = None  # what the models of this round were trained on
        self._models: list[str] = []
        self._walkers: list[Walker] = []
        self._origins: list[str] = []  # where the walkers of the first round start
        self._waiting: dict[str, int] = {}  # task in flight -> its walker, -1 for the choice
        self._count = 0
        self.done = False
        self.held = False  # whether it ended with a round that every walker survived
        self.note = ""
        self.rounds: list[dict[str, Json]] = []  # figures of each, as its last task found them

    @property
    def refused(self) -> int:
        """Frames that were not fit to be labelled, in all rounds in which some were looked for."""
        return sum(len(r["refusals"]) for r in self.rounds)

    @property
    def unmet(self) -> bool:
        """Whether it ended without what it is for: models that every walker survives with."""
        return self.done and not self.held

    @property
    def notes(self) -> list[str]:
        """What people are to know of how it ended."""
        return [self.note] if self.note else []

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield the next segment of every walker that waits for none, or the choice when all have ended."""
        board.learning = not self.done
        if self.done or -1 in self._waiting.values():
            return
        if self._set is None:
            self._set = next((s for s in board.sets.values() if s.train), None)
        if self._set is None or self._set.name not in board.trained:
            return
        if not self._walkers:
            self._models = list(board.models.get(self._set.name, []))
            if not self._models or not self._set.chosen:
                self._end(board, "learn: there is no model to learn with; see what failed before it")
                return
            self._walkers = self._begin(self._set)
        busy = set(self._waiting.values())
        tasks = [self._segment(k) for k, w in enumerate(self._walkers) if not w.ended and k not in busy]
        if all(walker.ended for walker in self._walkers):
            tasks = [self._choice(self._set, board)]
        self._count += len(tasks)
        yield from tasks

    def _begin(self, trained_on: FrameSet) -> list[Walker]:
        """Return the walkers of a round: where those of the round before ended, the first from the training set."""
        starts = self.rounds[-1]["ends"] if self.rounds else []
        first = [trained_on.chosen[k % len(trained_on.chosen)] for k in range(int(self._md["walkers"]))]
        self._origins = self._origins or first
        return [Walker(starts[k] if k < len(starts) and starts[k] else frame) for k, frame in enumerate(first)]

    def _segment(self, number: int) -> Task:
        walker, number_of = self._walkers[number], len(self.rounds) + 1
        k = len(walker.segments)
        first = sum(self._segments[:k])
        md = self._md
        params: dict[str, Json] = {key: md[key] for key in ("ensemble", "timestep", "every", "thermostat", "guards")}
        params |= {"barostat": md["barostat"], "pressure": md["pressure"]} if md["ensemble"] == "npt" else {}
        total = sum(self._segments)
        params |= {
            "method": "md",
            "tries": 1,  # a failure is what is looked for: no second try at half the time step
            "trained": self._models[number % len(self._models)],
            "start": walker.start,
            "walker": [ROUNDS + number_of, number],
            "walkers": 1,
            "ranks": 1,
            "seed": self._seed,
            "segment": k,
            "frames": self._segments[k],
            "first": first,
            "temperature": set_points(md["temperature"], first, first + self._segments[k], total),
        }
        if walker.start != self._origins[number]:  # what its volume may be does not grow from round to round
            params["volume_of"] = self._origins[number]
        inputs = tuple(walker.segments[-1:])
        task = Task("sample", f"learn {number_of}/walker {number}/segment {k}", params, inputs, VERSION, priority=2)
        self._waiting[task.id] = number
        return task

    def _choice(self, trained_on: FrameSet, board: Board) -> Task:
        number = len(self.rounds) + 1
        params = {
            "method": "novel",
            "round": number,
            "size": self._spec["size"],
            "novelty": self._spec["novelty"],
            "limits": self._limits,
            "models": list(self._models),
            "walkers": [[w.start, w.segments, w.frames, w.cause] for w in self._walkers],
            "time": self._md["timestep"] * self._md["every"],  # not read any more: a part of the task's id
            "last": number == self._spec["rounds"],
            "seed": self._seed,
            **self._measure,
        }
        if self._spec["novelty"] in ("rnd", "rematch"):
            params["trained_on"] = list(trained_on.chosen)
        elif self._spec["novelty"] == "rnd_stream":  # what it learned last: in the round before, or in the selection
            params["stream"] = self.rounds[-1]["task"] if self.rounds else board.stream
        inputs = tuple(s for w in self._walkers for s in w.segments)
        task = Task("sample", f"learn {number}/choose", params, inputs, VERSION, priority=1)
        self._waiting[task.id] = -1
        return task

    def commit(self, record: Record, board: Board) -> None:
        """Go on with the walker, or take in what was chosen."""
        number = self._waiting.pop(record["task"])
        if number < 0:
            self._take(record, board)
            return
        walker, result = self._walkers[number], record["result"]
        if record["state"] != "done":
            walker.ended, walker.cause = True, f"The run could not be done: {record['cause']}"
            return
        walker.segments.append(record["task"])
        walker.frames += int(result["frames"])
        walker.cause = next(iter(result.get("ended", {}).values()), "")
        walker.step = next(iter(result.get("last", {}).values()), None)
        walker.ended = bool(walker.cause) or len(walker.segments) == len(self._segments)

    def _take(self, record: Record, board: Board) -> None:
        """Add the frames of a round as a training set of its own, or end."""
        if record["state"] != "done":
            self._end(board, f"learn: the frames of round {len(self.rounds) + 1} could not be looked at")
            return
        result, before = record["result"], self._set
        assert before is not None
        self.rounds.append(
            {
                **result["figures"],
                "survived": [self._survived(walker) for walker in self._walkers],
                "ends": result["ends"],
                "set": before.name,
                "sources": result["source"],
                "refusals": result["refused"],
                "task": record["task"],
            }
        )
        self._walkers = []
        n, failed = len(self.rounds), result["figures"]["failed"]
        if not failed:
            first = next(s.name for s in board.sets.values() if s.train)
            more = len(board.labelled(before.name)) - len(board.labelled(first))
            after = "from the start" if n == 1 else f"after {more} frames more"
            self.held = True
            self._end(board, f"learn: every walker survived round {n}, {after}")
        elif not result["chosen"]:
            why = "the rounds are spent" if n == self._spec["rounds"] else "no frame is fit to be added"
            who = f"{failed} of {result['figures']['walkers']} walkers"
            self._end(board, f"learn: {who} failed in round {n}, and {why}")
        else:
            fresh = [frame_id(int(record["task"], 16), k) for k in range(result["frames"])]
            self._set = FrameSet(f"learn-{n}", len(before.chosen) + len(fresh), train=True)
            self._set.chosen, self._set.closed = [*before.chosen, *fresh], True
            self._set.counted, self._set.grown = list(before.counted), before.name
            board.sets[self._set.name] = self._set
            label = Limits(max_force=self._spec["label_force"], energy=self._limits["energy"])
            board.bounds |= dict.fromkeys(fresh, label)

    def _survived(self, walker: Walker) -> float:
        """Return how long a walker held, ps: where it was watched, to the step of its failure."""
        step = walker.step if walker.cause and walker.step is not None else walker.frames * self._md["every"]
        return float(round(step * self._md["timestep"], 6))

    def _end(self, board: Board, note: str) -> None:
        """End with the last models that there are: what was learned counts whatever became of the last choice."""
        self.done, self.note = True, note
        board.learning = False
        sets = [*(str(r["set"]) for r in self.rounds), *([self._set.name] if self._set is not None else [])]
        board.learned = next((name for name in reversed(sets) if board.models.get(name)), "")

    def summary(self, board: Board) -> dict[str, Json]:
        """Return what people want to know of the rounds: what ``RUN/learning.json`` holds."""
        rows = []
        for n, r in enumerate(self.rounds, 1):
            labels = board.sets[f"learn-{n}"].refused if f"learn-{n}" in board.sets else []
            refusals = [*r["refusals"], *sorted(labels, key=str)]
            failures = [t for t, cause in zip(r["survived"], r["causes"], strict=True) if cause]
            rows.append(
                {
                    **{key: r[key] for key in FIGURES},
                    "frames": len(board.labelled(r["set"])),
                    "first_failure": min(failures, default=None),
                    "causes": "; ".join(dict.fromkeys(cause for cause in r["causes"] if cause)),
                    "sources": r["sources"],
                    "refusals": refusals,
                    "refused": len(refusals),
                }
            )
        judged = board.training()
        return {
            "note": self.note or "learn: it goes on",
            "held": self.held if self.done else None,
            "judged": judged.name if self.done and judged is not None else None,
            "rounds": rows,
        }

    def total(self, board: Board) -> int:
        """Return the number of tasks: those planned, and those of the present round still to come."""
        if self.done:
            return max(self._count, 1)
        if -1 in self._waiting.values():  # what comes of the choice is not known
            return self._count
        if not self._walkers:
            return self._count + int(self._md["walkers"]) * len(self._segments) + 1
        left = sum(len(self._segments) - len(w.segments) for w in self._walkers if not w.ended)
        return self._count + left - len(self._waiting) + 1

    def finished(self, board: Board) -> bool:
        """Tell whether the last round is over."""
        return self.done


def _measure(campaign: Campaign, sources: Sequence[Source]) -> dict[str, Json]:
    """Return what novelty is measured by beside the models: as in ``select``, the defaults where it says nothing."""
    from campaign.config.selections import REMatch, RNDStream, SchNetRepresentation

    assert campaign.learn is not None
    novelty, select = campaign.learn.novelty, campaign.select
    if novelty == "uq":
        return {}
    if novelty == "rematch":
        found = select if isinstance(select, REMatch) else REMatch(size=1)
        kernel: dict[str, Json] = {"environments": found.environments.model_dump(mode="json"), "gamma": found.gamma}
        return kernel | species_of(campaign, sources)
    represented = getattr(select, "representation", None) or SchNetRepresentation()
    measure: dict[str, Json] = {"representation": represented.model_dump(mode="json"), **species_of(campaign, sources)}
    if novelty == "rnd_stream":
        assert isinstance(select, RNDStream)  # else the file is refused
        measure["candidates"] = select.candidates
    return measure
