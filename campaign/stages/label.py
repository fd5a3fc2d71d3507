"""Labelling: one single point a frame, as soon as the frame is chosen; a failed one is quarantined, others go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from campaign.frames import parse_frame_id
from campaign.stages.board import Board
from campaign.tasks import Context, Json, Outcome, Record, Task

if TYPE_CHECKING:
    from campaign.config import Campaign

VERSION = 1


class Label:
    """Plans one task for every chosen frame; a frame that is in two sets is labelled once.

    Parameters
    ----------
    campaign
        The campaign.
    digests
        Path of each data file to the hash of its content.
    """

    name = "label"

    def __init__(self, campaign: Campaign, digests: dict[str, str]) -> None:
        from campaign.config import LammpsLabel

        assert campaign.label is not None
        spec = campaign.label.model_dump(mode="json")
        self._params: dict[str, Json] = {"engine": spec["engine"]}
        self._extra: dict[str, Json] = {}
        self._fail: set[int] = set()
        if isinstance(campaign.label, LammpsLabel):
            potential = campaign.label.potential or campaign.system.potential
            assert potential is not None  # the campaign file is refused without it
            path = potential.lammps
            self._params["potential"] = digests[path]
            self._extra["potential"] = path
        elif spec["engine"] == "ase":
            self._params |= {k: spec[k] for k in ("calculator", "parameters")}
        elif spec["engine"] == "fake":
            self._fail = set(spec["fail"])
            self._extra["delay"] = spec["delay"]
        self.attempts: int = spec["attempts"]
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
        """Note the frame's label, or that it has none."""
        board.labels[self._frame_of[record["task"]]] = record["task"] if record["state"] == "done" else None

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


def work(task: Task, context: Context) -> Outcome:
    """Label one frame of the pool and check the result."""
    from campaign.engines import labellers
    from campaign.store.store import Store

    source = Store(context.run / "run.zarr").frames("sample", task.inputs[0], [task.params["frame"]])
    labelled = labellers.label(source, task, context)
    summary: dict[str, Json] = {"energy": float(labelled.energy[0]), "frame": task.extra["id"]}
    return Outcome(summary, dict(labelled.arrays()), versions=labellers.versions(task.params["engine"]))
