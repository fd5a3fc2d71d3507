"""Labelling: one single point a frame, as soon as the frame is chosen; a failed one is quarantined, others go on.

A calculation that fails is tried again one rung further up a ladder of settings. The number of the attempt, which the
ledger keeps over kills and resumes, is the number of the rung; a fault of the machine repeats the rung.

A label's id is that of the frame and of what the first rung computes: what the label is meant to be. Later rungs may be
edited and added without anything finished being redone. So the same id means the same result where a label is of the
first rung's physics. One that a rung of other physics rescued is the exception, and is recorded as such: its record
has the hash of what it is (``method``) and ``other_physics``, and ``RUN/labels.json`` names its frame. A cache knows a
label by what its own rung computes, and never gives one of other physics.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaign.frames import Frames, parse_frame_id
from campaign.science.refusals import beyond
from campaign.stages.board import Board
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign
    from campaign.store.label_cache import LabelCache

VERSION = 1


class Label:
    """Plans one task for every chosen frame; a frame that is in two sets is labelled once.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file to the hash of its content.
    methods
        Of each rung of CP2K's ladder, the hash of what may change its result (``inputs.label_methods``).
    """

    name = "label"

    def __init__(self, campaign: Campaign, digests: dict[str, str], methods: Sequence[str] = ()) -> None:
        assert campaign.label is not None
        spec = campaign.label.model_dump(mode="json")
        self._params: dict[str, Json] = {"engine": spec["engine"]}
        self._extra: dict[str, Json] = {}
        self._fail: set[int] = set()
        self.attempts: int = campaign.label.attempts
        if spec.get("cache"):
            self._extra["cache"] = spec["cache"]
        if spec["engine"] == "lammps":
            potential = campaign.reference
            assert potential is not None  # the campaign file is refused without it
            path = potential.lammps
            self._params["potential"] = digests[path]
            self._extra["potential"] = path
        elif spec["engine"] == "cp2k":
            # what the label is to be; how it is got to may be edited without anything finished being redone
            self._params["method"] = methods[0]
            self._extra |= {k: spec[k] for k in ("template", "ladder", "ranks", "threads", "timeout")}
            self._extra["methods"] = list(methods)
        elif spec["engine"] == "ase":
            self._params |= {k: spec[k] for k in ("calculator", "parameters")}
            if spec["ladder"]:
                self._params["ladder"] = spec["ladder"]
                self.attempts = max(self.attempts, 1 + len(spec["ladder"]))
        elif spec["engine"] == "fake":
            self._fail = set(spec["fail"])
            self._extra["delay"] = spec["delay"]
        self._versions: set[str] = set()  # of the program that labels
        self._rescued: Counter[str] = Counter()  # rung -> labels of it that are of other physics
        self._notes: Counter[str] = Counter()  # what is wrong with the cache -> labels that say so
        self._frame_of: dict[str, str] = {}
        self._frames: set[str] = set()
        self._read: dict[str, int] = {}  # frames taken from each set so far

    def plan(self, board: Board) -> Iterator[Task]:
        """Yield a task for every frame that was chosen since the last call."""
        fresh: list[tuple[str, int]] = []
        for priority, chosen in enumerate(board.sets.values()):
            start = self._read.get(chosen.name, 0)
            fresh += [(frame, priority) for frame in chosen.chosen[start:]]
            self._read[chosen.name] = len(chosen.chosen)
        for frame, priority in fresh:
            if frame in self._frames:  # it is in another set too
                continue
            self._frames.add(frame)
            source, index = parse_frame_id(frame)
            params = {**self._params, "frame": index}
            if index in self._fail:
                params["fail"] = True
            name = f"{self._params['engine']}/{frame}"
            extra = {**self._extra, "id": frame}
            task = Task("label", name, params, (source,), VERSION, priority=2 + (priority > 0), extra=extra)
            self._frame_of[task.id] = frame
            yield task

    def commit(self, record: Record, board: Board) -> None:
        """Note the frame's label, or that it has none; one out of the frame's bounds is refused."""
        frame = self._frame_of[record["task"]]
        board.labels[frame] = record["task"] if record["state"] == "done" else None
        if record["state"] == "done":
            program, result = self._params["engine"], record["result"]
            if frame in board.bounds and "force" in result:
                reason = beyond(board.bounds[frame], result["energy"] / result["atoms"], result["force"])
                if reason:
                    board.labels[frame] = None
                    last = [s for s in board.sets.values() if frame in s.chosen][-1]
                    last.refused.append({"frame": frame, "reason": reason})
            self._versions |= {str(v) for name, v in record["versions"].items() if name == program}
            self._rescued.update([str(result.get("rung_name"))] if result.get("other_physics") else [])
            self._notes.update([said] if (said := result.get("cache", "")) not in ("", "found", "kept") else [])

    @property
    def notes(self) -> list[str]:
        """What people are to know of the labels, in sentences; mostly nothing."""
        found = []
        if self._rescued:
            n, rungs = self._rescued.total(), ", ".join(sorted(self._rescued))
            are, whose = ("is", "its frame") if n == 1 else ("are", "their frames")
            known = f"{n} of {len(self._frame_of)} labels {are}"
            found.append(f"{known} of other physics than the template's (rung {rungs}); RUN/labels.json names {whose}.")
        if len(self._versions) > 1:
            which = f"{self._params['engine']} ({', '.join(sorted(self._versions))})"
            found.append(f"Labels come from different versions of {which}; RUN/labels.json counts them.")
        if self._notes:
            more = f" ({self._notes.total()} labels, this being the first)" if self._notes.total() > 1 else ""
            found.append(f"The cache of labels: {next(iter(self._notes))}{more}")
        return found

    def give_up(self, record: Record, run: Path) -> None:
        """Note with the task's files that its frame is quarantined; the ledger says so by now."""
        if self._params["engine"] == "cp2k" and not record["transient"]:  # of the machine's faults nothing is learnt
            from campaign.engines import cp2k

            cp2k.give_up(run / "tasks" / record["task"])

    def packable(self, board: Board) -> list[list[str]]:
        """Return the finished labels."""
        return [[task for task in board.labels.values() if task]]

    def total(self, board: Board) -> int:
        """Return how many frames are labelled at least: those chosen, and those still to be."""
        missing = sum(max(0, s.size - len(s.chosen)) for s in board.sets.values() if not s.closed)
        return len(self._frame_of) + missing

    def finished(self, board: Board) -> bool:
        """Tell whether every set is complete and settled."""
        return all(s.closed for s in board.sets.values()) and len(board.labels) == len(self._frame_of)


def describe(task: Task, context: Context) -> dict[str, Json]:
    """Return what this attempt at a label was, for the ledger: its rung, its settings, what the engine says of it."""
    from campaign.engines import labellers

    found: dict[str, Json] = {}
    if "ladder" in task.extra:  # of CP2K
        number = min(context.attempt, len(task.extra["ladder"]) - 1)
        found = {"rung": number, "settings": task.extra["ladder"][number], **_physics(task, context)}
    elif "ladder" in task.params:  # arguments of an ASE calculator
        number = min(context.attempt, len(task.params["ladder"]))
        found = {"rung": number, "settings": task.params["ladder"][number - 1] if number else {}}
    said = {k: v for k, v in labellers.report(task, context).items() if k != "cause"}  # the record has it
    if "rung" in said:
        said["rung_name"] = said.pop("rung")
    return found | said


def _physics(task: Task, context: Context) -> dict[str, Json]:
    """Return the hash of what this attempt computes, and whether it is something else than the label was meant to be.

    Nothing where all attempts of an engine compute the same.
    """
    methods = task.extra.get("methods")
    if not methods:
        return {}
    method = methods[min(context.attempt, len(methods) - 1)]
    return {"method": method} if method == task.params["method"] else {"method": method, "other_physics": True}


def tidy(task: Task, context: Context) -> None:
    """Remove what was kept for another try: the label is stored."""
    if task.params["engine"] == "cp2k":
        from campaign.engines import cp2k

        cp2k.tidy(context.run / "tasks" / task.id)


def work(task: Task, context: Context) -> Outcome:
    """Label one frame of the pool and check the result; one that the cache has is published without running anything.

    The record's summary holds the energy (eV), the largest force (eV/Å), the number of atoms, the frame's id, the rung,
    and what the engine says of its calculation.
    """
    from campaign.engines import labellers
    from campaign.store.label_cache import LabelCache
    from campaign.store.store import Store

    frame = Store(context.run / "run.zarr").frames("sample", task.inputs[0], [task.params["frame"]])
    cache = LabelCache(Path(task.extra["cache"])) if task.extra.get("cache") else None
    if cache is not None:
        found = _look(cache, frame, task, context)
        if cache.damaged:  # said here too: this attempt may fail
            with suppress(OSError), (context.run / "logs" / "label_cache.log").open("a") as log:
                log.write("".join(f"{said}\n" for said in cache.damaged))
        if found is not None:
            return found
    labelled = labellers.label(frame, task, context)
    about = describe(task, context)
    versions = labellers.versions(task.params["engine"])
    if "version" in about:
        versions[task.params["engine"]] = str(about["version"])
    summary = _summary(labelled, task) | about
    if cache is not None:
        kept = {k: v for k, v in about.items() if k != "other_physics"} | {"versions": versions}
        notes = [*cache.damaged, cache.put(_key(frame, task, context), labelled, kept)]
        summary["cache"] = " ".join(dict.fromkeys(note for note in notes if note)) or "kept"
    return Outcome(summary, dict(labelled.arrays()), versions=versions)


def _summary(labelled: Frames, task: Task) -> dict[str, Json]:
    force = float(np.linalg.norm(labelled.forces[0], axis=1).max())
    energy = float(labelled.energy[0])
    return {"energy": energy, "force": force, "atoms": labelled.n_atoms, "frame": task.extra["id"]}


def _look(cache: LabelCache, frame: Frames, task: Task, context: Context) -> Outcome | None:
    """Return what the cache has of this frame by this method, checked like any label."""
    from campaign.engines.labellers import check_labels
    from campaign.errors import Unphysical

    key = _key(frame, task, context)
    found = cache.get(key, frame.n_atoms)
    if found is None:
        return None
    try:
        labelled = check_labels(frame, found.energy, found.forces, found.stress)
    except Unphysical as error:
        cache.damaged.append(f"The cached label {cache.path(key)} cannot be right ({error}); it is computed again.")
        return None
    about = {k: v for k, v in found.about.items() if k != "versions"} | _physics(task, context)
    summary = _summary(labelled, task) | about | {"cache": "found"}
    return Outcome(summary, dict(labelled.arrays()), versions=found.about["versions"])


def _key(frame: Frames, task: Task, context: Context) -> str:
    """Return the name of a label in the cache: by what this attempt computes, whatever ladder it is a rung of."""
    from campaign.store.label_cache import label_key

    params = {k: v for k, v in task.params.items() if k != "frame"}
    if "methods" in task.extra:
        params["method"] = _physics(task, context)["method"]
    return label_key(frame, json.dumps([VERSION, params], sort_keys=True))
