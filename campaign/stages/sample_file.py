"""Sampling from a file: frames that exist already enter the pool, in shards that are all independent.

The file is read in place, by its absolute path: it may be far larger than memory and is never copied into the run
directory. What the run keeps is a note (``Source``): where the file is, the hash of its content, its size and time, and
where in it each shard begins. The hash is a parameter of the tasks, so the same content gives the same pool wherever
the file lies; path, size and time are not. From the note alone a run directory can be looked at, and continued once its
pool is complete. As long as shards are missing the file must be there as it was: before anything is started, and by
every worker, its size and time are compared with the note, and a file that changed or vanished is said and never read.
A file whose time alone changed is hashed again. The run.zarr of another run is known by the ids of its tasks instead,
so that run may go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from campaign.engines import frame_files
from campaign.engines.frame_format import Stretch, WrongFrames
from campaign.errors import MachineFault, StoreError
from campaign.frames import Frames
from campaign.store import frame_stores
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.config.campaign_file import FileSample

VERSION = 1

ZARR = ".zarr"


class Shard(NamedTuple):
    """Frames ``start``, ``start + every``, ... below ``stop``, of one atom count.

    ``where`` is the byte at which the first begins; in a Zarr store the group or task in which all of them lie, and
    they are counted from its first.
    """

    start: int
    stop: int
    atoms: int
    where: int | str


@dataclass(frozen=True)
class Source:
    """A file of frames as it was when the campaign was planned.

    Attributes
    ----------
    entry
        Which entry of ``sample``.
    file
        Its path as the campaign file names it.
    path
        Its absolute path.
    stamp
        Size in bytes and time of the last change (ns); empty for another run's store, which may grow.
    digest
        Hash of the content; empty for another run's store, whose tasks have ids.
    every, segment, elements
        The entry's keys.
    species
        Elements of its first and last frame.
    shards
        Its shards, in order.
    """

    entry: int
    file: str
    path: str
    stamp: list[int]
    digest: str
    every: int
    segment: int
    elements: list[str]
    species: list[str]
    shards: list[Shard]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON-able form."""
        return asdict(self) | {"shards": [list(s) for s in self.shards]}

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> Source:
        """Rebuild a note."""
        return cls(**{**data, "shards": [Shard(*s) for s in data["shards"]]})

    @property
    def frames(self) -> int:
        """How many frames enter the pool."""
        return sum(len(_rows(s, self.every)) for s in self.shards)

    def is_of(self, entry: int, spec: FileSample) -> bool:
        """Tell whether this is the note of an entry of a campaign."""
        mine = (self.entry, self.file, self.every, self.segment, self.elements)
        return mine == (entry, spec.file, spec.every, spec.segment, list(spec.elements))

    def fault(self) -> str | None:
        """Return what is wrong with the file now, None where it is as it was; its content is not read."""
        try:
            now = stamp(Path(self.path))
        except (OSError, StoreError):
            return f"{self.path} is not there any more, or cannot be read"
        return None if now == self.stamp else f"{self.path} has changed since the campaign was planned"


def stamp(path: Path) -> list[int]:
    """Return size and time of the last change of a file; nothing for another run's store."""
    if path.suffix.lower() == ZARR:
        return [] if frame_stores.is_run(path) else frame_stores.stamp(path)
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def look(path: Path, entry: int, spec: FileSample) -> Source:
    """Look a file of frames through, hash it and divide it into shards.

    Raises
    ------
    WrongFrames
        It is not what its name says, is damaged, holds no frame, or one that campaign does not take.
    StoreError
        It is a Zarr store that campaign cannot read.
    """
    path = path.resolve()
    before = stamp(path)
    if path.suffix.lower() == ZARR:
        shards, digest = _of_store(path, spec)
    else:
        content = hashlib.blake2b(digest_size=16)
        found = frame_files.scan(path, spec.elements, spec.every, content.update)
        shards = list(_divide(((f.atoms, f.offset) for f in found), 0, spec))
        digest = content.hexdigest()
    if not shards:
        raise WrongFrames("the file has no frames", f"'{path.name}'", "name a file with frames in it")
    if stamp(path) != before:
        remedy = "let the program that writes it finish"
        raise WrongFrames("the file changed while it was looked through", f"'{path.name}'", remedy)
    species: set[str] = set()
    first, last = shards[0].start, _rows(shards[-1], spec.every)[-1]
    for shard in (shards[0]._replace(stop=first + 1), shards[-1]._replace(stop=last + 1)):
        ends = _read(path, shard, max(last - shard.start, 1), spec.elements)  # its first frame and its last
        species |= {symbol for image in ends.to_ase() for symbol in image.get_chemical_symbols()}
    keys = (spec.every, spec.segment, list(spec.elements))
    return Source(entry, spec.file, str(path), before, digest, *keys, sorted(species), shards)


def _divide(frames: Iterable[tuple[int, int | str]], skipped: int, spec: FileSample) -> Iterator[Shard]:
    """Yield shards of the frames (atoms, where) that are kept: of one atom count, ``segment`` frames at most.

    Frame 0 of the whole source is kept; ``skipped`` frames of it came before these.
    """
    open_shard: Shard | None = None
    count = 0
    for number, (atoms, where) in enumerate(frames):
        if (skipped + number) % spec.every:
            continue
        if open_shard is not None and open_shard.atoms == atoms and count < spec.segment:
            open_shard = open_shard._replace(stop=number + 1)
            count += 1
            continue
        if open_shard is not None:
            yield open_shard
        open_shard, count = Shard(number, number + 1, atoms, where), 1
    if open_shard is not None:
        yield open_shard


def _of_store(path: Path, spec: FileSample) -> tuple[list[Shard], str]:
    """Return the shards of a Zarr store, and the hash of an export."""
    shards: list[Shard] = []
    skipped, digest = 0, ""
    for part in frame_stores.scan(path):
        shards += _divide(repeat((part.atoms, part.where), part.frames), skipped, spec)
        skipped += part.frames
        digest = "" if part.digest == part.where else part.digest
    return shards, digest


def chains(source: Source) -> list[list[tuple[Task, int]]]:
    """Return a chain of one (task, frames) for each shard of a file."""
    found = []
    for k, shard in enumerate(source.shards):
        params: dict[str, Json] = {
            "method": "file",
            "entry": source.entry,
            "content": source.digest or shard.where,
            "format": Path(source.path).suffix.lower(),
            "start": shard.start,
            "stop": shard.stop,
            "every": source.every,
            "elements": source.elements,
            "frames": len(_rows(shard, source.every)),
        }
        if Path(source.path).suffix.lower() == ZARR:
            params["part"] = shard.where
        extra = {"path": source.path, "stamp": source.stamp, "atoms": shard.atoms, "where": shard.where}
        task = Task("sample", f"file{source.entry or ''}/shard {k}", params, (), VERSION, priority=5, extra=extra)
        found.append([(task, params["frames"])])
    return found


def _rows(shard: Shard, every: int) -> range:
    return range(shard.start, shard.stop, every)


def _read(path: Path, shard: Shard, every: int, elements: Sequence[str]) -> Frames:
    """Return the frames of a shard, in the order of the file."""
    if path.suffix.lower() == ZARR:
        return frame_stores.read(path, str(shard.where), _rows(shard, every))
    return frame_files.read(path, Stretch(shard.start, shard.stop, every, int(shard.where)), elements)


def work_file(task: Task, context: Context) -> Outcome:
    """Read the frames of one shard.

    Raises
    ------
    MachineFault
        The file is not there any more, or not as it was when the campaign was planned.
    WrongFrames
        A frame is not one that campaign takes.
    """
    p, extra = task.params, task.extra
    path = Path(extra["path"])
    shard = Shard(p["start"], p["stop"], extra["atoms"], extra["where"])
    _check_unchanged(path, extra["stamp"])
    frames = _read(path, shard, p["every"], p["elements"])
    _check_unchanged(path, extra["stamp"])  # nor did it change while it was read
    frames = frames.with_(
        task=np.full(len(frames), task.number, dtype="uint64"),
        index=np.arange(len(frames), dtype="int32"),
        walker=np.zeros(len(frames), dtype="int32"),
    )
    summary: dict[str, Json] = {"frames": len(frames), "volume": float(frames.volume.mean())}
    return Outcome(summary, dict(frames.arrays()), versions={"ase": version("ase")})


def _check_unchanged(path: Path, planned: list[int]) -> None:
    try:
        now = stamp(path)
    except (OSError, StoreError) as error:
        raise MachineFault(f"{path} is not there any more, or cannot be read here ({error}).") from error
    if now != planned:
        raise MachineFault(
            f"{path} has changed since the campaign was planned: put it back as it was, or give campaign run again "
            "to take the frames that it holds now."
        )
