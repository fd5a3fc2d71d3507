"""The Zarr store of a run: what is finished, and everything a resume needs.

``run.zarr/KIND/ID`` is the result of task ID (``groups.py``). When a run has nothing in flight, the many small groups
of a kind are packed into a few large ones, ``run.zarr/KIND/pack-…``, so that parallel file systems survive 10^7 frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from campaign.errors import SchemaError, StoreError
from campaign.frames import ADDED, LAYOUT, Frames, parse_frame_id
from campaign.store import groups
from campaign.store.checkpoints import CHECKPOINT, Checkpoints
from campaign.store.packs import PACK, Batch, Place, even, frames_in
from campaign.tasks import Record

Array = npt.NDArray[Any]

#: Raised when the layout on disk changes; an older store is migrated or refused (``_check_schema``).
SCHEMA = 1

#: Where each stage's results lie. Stages that are not here leave no arrays: their record in the ledger is all.
KINDS = {
    "sample": "pool",
    "select": "selected",
    "distill": "checkpoints",
    "transfer": "pool",
    "label": "labelled",
    "train": "checkpoints",
    "validate": "checkpoints",
}

#: Records of calculations that failed for good.
QUARANTINE = "quarantined"

FRAME_ARRAYS = tuple(LAYOUT)


class Store:
    """``RUN/run.zarr``.

    Workers publish into it (``publish``) and read their inputs from it; the driver keeps the index of what is finished.

    Parameters
    ----------
    path
        The ``run.zarr`` folder; made where absent.

    Raises
    ------
    SchemaError
        It was written by a version with another layout.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, Place] = {}
        self._packs: set[str] = set()
        self.checkpoints = Checkpoints(path / "checkpoints", self.aside)
        if (path / groups.META).exists():
            _check_schema(path)
        else:
            _create(path)

    @property
    def aside(self) -> Path:
        """Where groups are written before they are published: the same file system, outside the store."""
        return self.path.parent / "tmp"

    # -- what is finished ------------------------------------------------------------------------------------------

    def scan(self) -> dict[str, Record]:
        """Return the record of every finished task, read from the groups' own attributes."""
        for kind in dict.fromkeys(KINDS.values()):
            for path in groups.subgroups(self.path / kind):
                if path.name.startswith(PACK):
                    self._index_pack(path)
                elif not path.name.startswith(CHECKPOINT):
                    self._index(path)
        return {task: place.record for task, place in self._places.items()}

    def quarantined(self) -> dict[str, Record]:
        """Return the record of every task that failed for good."""
        found = [_record(groups.attributes(p), p) for p in groups.subgroups(self.path / QUARANTINE)]
        return {r["task"]: r for r in found}

    def _index(self, path: Path) -> Place:
        attributes = groups.attributes(path)
        place = Place(path, _record(attributes, path), 0, int(attributes.get("rows", 0)), packed=False)
        self._places.setdefault(path.name, place)
        return self._places[path.name]

    def _index_pack(self, path: Path) -> None:
        if str(path) in self._packs:
            return
        self._packs.add(str(path))
        start = 0
        table = groups.attributes(path).get("tasks")
        for entry in table if isinstance(table, list) else [{}]:
            record = _record(entry, path)
            stop = start + int(entry["rows"])
            self._places[record["task"]] = Place(path, record, start, stop, packed=True)
            start = stop

    def locate(self, stage: str, task: str) -> Place:
        """Return where the result of a finished task lies.

        Raises
        ------
        StoreError
            The store has no result of that task.
        """
        place = self._places.get(task)
        if place is not None and place.path.exists():
            return place
        kind = self.path / KINDS[stage]
        if (kind / task / groups.META).exists():
            self._places.pop(task, None)
            return self._index(kind / task)
        for path in groups.subgroups(kind):
            if path.name.startswith(PACK):
                self._index_pack(path)
        place = self._places.get(task)
        if place is None or not place.path.exists():
            raise StoreError(f"{self.path} has no result of {stage} task {task}: it was removed, or never finished.")
        return place

    # -- writing ---------------------------------------------------------------------------------------------------

    def publish(
        self, record: Record, arrays: Mapping[str, Array], checkpoint: Mapping[str, Array] | None = None
    ) -> bool:
        """Publish a finished task: its arrays, its record in the attributes, and what the next task continues from.

        Parameters
        ----------
        record
            The attempt that succeeded.
        arrays
            The result. Where all have the same first axis (frames), the group can be packed later. Those of
            ``frames.ADDED`` that are NaN throughout are left out: two files fewer each.
        checkpoint
            State for the task that continues this one. It is published first, so a finished task always has it.

        The group's name is not flushed to disk here: ``flush_names`` does that for all that came in together, before
        anybody counts on them.

        Returns
        -------
        bool
            False when another process had published the same task before.
        """
        task, kind = record["task"], KINDS[record["stage"]]
        arrays = {name: a for name, a in arrays.items() if name not in ADDED or not np.isnan(a).all()}
        if checkpoint is not None:
            self.checkpoints.publish(task, checkpoint)
        attributes = {"record": record, "rows": frames_in(arrays)}
        return groups.publish(self.path / kind / task, self.aside, arrays, attributes, named=False)

    def flush_names(self, stages: Iterable[str]) -> None:
        """Flush the names of all groups that tasks of these stages published, so that they survive a node that dies."""
        try:
            for kind in sorted({KINDS[stage] for stage in stages if stage in KINDS}):
                if (self.path / kind).is_dir():
                    groups.flush(self.path / kind)
        except OSError as error:
            raise groups.translate(error, self.path) from error

    def checkpoint(self, task: str) -> dict[str, Array]:
        """Return what a finished task left for the one that continues it.

        Raises
        ------
        StoreError
            There is none.
        """
        return self.checkpoints.read(task)

    def quarantine(self, record: Record) -> None:
        """Remember that a task failed for good."""
        groups.publish(self.path / QUARANTINE / record["task"], self.aside, {}, {"record": record})

    def release(self, task: str) -> None:
        """Forget that a task failed, so that it is tried again."""
        self._discard([self.path / QUARANTINE / task])

    def _discard(self, paths: Iterable[Path]) -> None:
        try:
            groups.discard(paths, self.aside)
        except OSError as error:
            raise groups.translate(error, self.path) from error

    # -- reading ---------------------------------------------------------------------------------------------------

    def arrays(self, stage: str, task: str, names: tuple[str, ...] = ()) -> dict[str, Array]:
        """Return arrays of a finished task (all of them, or those named)."""
        return self._read(stage, task, names, None)

    def frames(self, stage: str, task: str, index: Sequence[int] | None = None) -> Frames:
        """Return the frames of a finished task, or those at ``index``, as a block.

        Arrays of ``frames.ADDED`` that are not there are NaN: an older version did not know them, and ``publish``
        leaves out those that would hold nothing else.

        Raises
        ------
        StoreError
            The store has no such task, or the task no such frame.
        """
        there = groups.found(self.locate(stage, task).path, ADDED)
        names = tuple(name for name in FRAME_ARRAYS if name not in ADDED or name in there)
        return Frames.build(**self._read(stage, task, names, index))

    def _read(self, stage: str, task: str, names: tuple[str, ...], index: Sequence[int] | None) -> dict[str, Array]:
        place = self.locate(stage, task)
        try:
            return groups.read_arrays(place.path, names, _rows_of(place, index))
        except StoreError:
            if place.path.exists():
                raise
            place = self.locate(stage, task)  # a driver packed it while it was read
            return groups.read_arrays(place.path, names, _rows_of(place, index))

    def collect(self, stage: str, ids: Sequence[str], by: Mapping[str, str] | None = None) -> list[Frames]:
        """Return frames by id, in blocks of equal atom count, in the order asked for within each block.

        Parameters
        ----------
        stage
            ``sample`` for the pool, ``label`` for labelled frames.
        ids
            Frame ids.
        by
            Frame id to the task that holds the frame, where that is not the task in the id (labels).
        """
        wanted: dict[str, list[tuple[int, int]]] = {}
        for place, frame in enumerate(ids):
            task, index = parse_frame_id(frame)
            if by is not None:
                task, index = by[frame], 0
            wanted.setdefault(task, []).append((index, place))
        found: list[tuple[int, Frames]] = []
        for task, members in wanted.items():
            block = self.frames(stage, task, [i for i, _ in members])
            found += [(place, block[k : k + 1]) for k, (_, place) in enumerate(members)]
        blocks: dict[int, list[Frames]] = {}
        for _, frame_block in sorted(found, key=lambda item: item[0]):
            blocks.setdefault(frame_block.n_atoms, []).append(frame_block)
        return [Frames.concat(b) for b in blocks.values()]

    def stream(self, stage: str, tasks: Sequence[str]) -> Iterator[Frames]:
        """Yield the frames of finished tasks one task at a time: constant memory whatever the pool."""
        for task in tasks:
            yield self.frames(stage, task)

    # -- packing ---------------------------------------------------------------------------------------------------

    def pack(self, stage: str, chains: Sequence[Sequence[str]], keep_checkpoints: bool = False) -> int:
        """Pack the small groups of finished tasks into large ones.

        Call it only when no task is in flight. A kill between publishing and removing is harmless: the pack is
        preferred, and the next call removes what it replaced.

        Parameters
        ----------
        stage
            Whose results.
        chains
            The finished tasks in order, each chain a list of which each continued from the one before.
        keep_checkpoints
            Pack the checkpoints too, so that a chain can be continued from anywhere (a walker that is asked for more
            steps leaves its short last segment out). Otherwise all but the last of each chain are dropped.

        Returns
        -------
        int
            How many groups were packed.
        """
        kind = self.path / KINDS[stage]
        for path in groups.subgroups(kind):
            if path.name.startswith(PACK):
                self._index_pack(path)
        replaced = []
        packed = 0
        batch = Batch()
        for chain in chains:
            for task in chain:
                place = self.locate(stage, task)
                if place.packed:
                    replaced.append(kind / task)
                elif place.stop > place.start:
                    arrays = groups.read_arrays(place.path)
                    if not even(arrays):
                        continue
                    if not batch.takes(arrays):
                        packed += self._publish_pack(stage, batch)
                        batch = Batch()
                    batch.add(arrays, place)
        packed += self._publish_pack(stage, batch)
        if keep_checkpoints:
            dropped = self.checkpoints.pack([task for chain in chains for task in chain])
        else:
            dropped = [self.checkpoints.path_of(task) for chain in chains for task in chain[:-1]]
        self._discard([*replaced, *dropped])
        return packed

    def _publish_pack(self, stage: str, batch: Batch) -> int:
        if len(batch.places) < 2:
            return 0
        names = [p.record["task"] for p in batch.places]
        path = self.path / KINDS[stage] / f"{PACK}{names[0]}-{names[-1]}"
        table = [{"record": p.record, "rows": p.stop - p.start} for p in batch.places]
        joined = {name: np.concatenate([a[name] for a in batch.arrays]) for name in batch.arrays[0]}
        groups.publish(path, self.aside, joined, {"tasks": table})
        for name in names:
            self._places.pop(name, None)
        self._discard(self.path / KINDS[stage] / name for name in names)
        self._index_pack(path)
        return len(names)


def _record(attributes: Any, path: Path) -> Record:
    """Return the record that a group, or an entry of a pack, was published with."""
    record = attributes.get("record") if isinstance(attributes, dict) else None
    if not isinstance(record, dict) or "task" not in record:
        raise StoreError(f"{path} holds no record of its task: it is damaged; remove it, and its task is done again.")
    return cast(Record, record)


def _rows_of(place: Place, index: Sequence[int] | None) -> slice | Array | None:
    """Return which rows of its group a task's frames are; a frame that is not there is never another task's."""
    if index is None:
        return slice(place.start, place.stop) if place.packed else None
    rows = np.asarray(index, dtype=int)
    count = place.stop - place.start
    if rows.size and not (rows.min() >= 0 and rows.max() < count):
        raise StoreError(f"Task {place.record['task']} has frames 0 to {count - 1}; {rows.tolist()} were asked for.")
    return rows + place.start


def _create(path: Path) -> None:
    meta = {"zarr_format": 3, "node_type": "group", "attributes": {"schema": SCHEMA, "writer": "campaign"}}
    work = path / ".zarr.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(name != work.name for name in os.listdir(path)):
            raise SchemaError(
                f"{path} has files in it but no {groups.META} of campaign's; name another folder with --root."
            )
        work.write_text(json.dumps(meta))
        groups.flush(work)
        work.rename(path / groups.META)
        groups.flush(path)
    except OSError as error:
        raise groups.translate(error, path) from error


def _check_schema(path: Path) -> None:
    found = groups.attributes(path).get("schema")
    if found == SCHEMA:
        return
    if not isinstance(found, int):
        raise SchemaError(f"{path} was not written by campaign; name another folder with --root.")
    age = "a newer" if found > SCHEMA else "an older"
    raise SchemaError(
        f"{path} has schema {found}, written by {age} version of campaign; this version reads schema {SCHEMA}. "
        f"Use that version to continue it, or export its frames (campaign export) and start a new run."
    )
