"""What a finished task left for the one that continues it: a group each, or, packed, rows of a large one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import StoreError
from campaign.store import groups
from campaign.store.packs import PACK, PACK_BYTES, nbytes

Array = npt.NDArray[Any]

#: How the names of their groups begin, beside results of the same folder.
CHECKPOINT = "from-"


class Checkpoints:
    """``RUN/run.zarr/checkpoints/from-…``.

    Parameters
    ----------
    path
        The folder.
    aside
        Where groups are written before they are published.
    """

    def __init__(self, path: Path, aside: Path) -> None:
        self.path, self.aside = path, aside
        self._packs: set[Path] = set()
        self._packed: dict[str, tuple[Path, str, int, int]] = {}  # task -> group, array, rows

    def path_of(self, task: str) -> Path:
        """Return where the checkpoint of a task lies while it is not packed."""
        return self.path / f"{CHECKPOINT}{task}"

    def publish(self, task: str, arrays: Mapping[str, Array]) -> None:
        """Publish what a task leaves."""
        groups.publish(self.path_of(task), self.aside, arrays, {"task": task})

    def read(self, task: str) -> dict[str, Array]:
        """Return what a finished task left.

        Raises
        ------
        StoreError
            There is none.
        """
        path = self.path_of(task)
        if (path / groups.META).exists():
            return groups.read_arrays(path)
        self._index()
        if task not in self._packed:
            raise StoreError(f"{self.path.parent} has no checkpoint of task {task}: it was removed, or never finished.")
        path, name, start, stop = self._packed[task]
        return groups.read_arrays(path, (name,), slice(start, stop))

    def pack(self, tasks: Sequence[str]) -> list[Path]:
        """Join checkpoints of one array each into large groups; return the small ones that nobody needs any more."""
        self._index()
        small = [t for t in tasks if (self.path_of(t) / groups.META).exists()]
        batches: dict[str, dict[str, Array]] = {}  # array name -> task -> array
        for task in small:
            if task not in self._packed:  # a pack replaced it already, and it is only removed
                ((name, array),) = groups.read_arrays(self.path_of(task)).items()
                batch = batches.setdefault(name, {})
                batch[task] = array
                if nbytes(batch) > PACK_BYTES:
                    self._publish_pack(name, batches.pop(name))
        for name, batch in batches.items():
            self._publish_pack(name, batch)
        self._index()
        return [self.path_of(t) for t in small if t in self._packed]

    def _publish_pack(self, name: str, batch: dict[str, Array]) -> None:
        if len(batch) < 2:
            return
        first, *_, last = batch
        path = self.path / f"{CHECKPOINT}{PACK}{first}-{last}"
        table = [{"task": task, "rows": len(array)} for task, array in batch.items()]
        groups.publish(path, self.aside, {name: np.concatenate(list(batch.values()))}, {"name": name, "tasks": table})

    def _index(self) -> None:
        for path in self.path.glob(f"{CHECKPOINT}{PACK}*"):
            if path not in self._packs:
                self._packs.add(path)
                attributes = groups.attributes(path)
                start = 0
                for entry in attributes["tasks"]:
                    self._packed[entry["task"]] = (path, attributes["name"], start, start + int(entry["rows"]))
                    start += int(entry["rows"])
