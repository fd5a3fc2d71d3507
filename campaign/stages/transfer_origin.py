"""Where transferred frames come from: the set of another run, or a file, as it was when the campaign was planned.

An ``Origin`` is a note like that of a file of frames (``sample_file``): the frames are read in place, each known by its
own id, which is the hash of all that decided it. From the note alone a run directory can be looked at, and continued
once its frames were read; before that the source must be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from campaign.engines import frame_files
from campaign.engines.frame_format import Stretch, WrongFrames
from campaign.errors import MachineFault, StoreError
from campaign.frames import Frames, parse_frame_id
from campaign.stages import sample_file
from campaign.store import groups
from campaign.store.store import Store
from campaign.tasks import Json

if TYPE_CHECKING:
    from campaign.config.transfers import Transfer

#: What an id of a frame of campaign looks like.
FRAME_ID = re.compile(r"[0-9a-f]{16}:[0-9]+\Z")


class Part(NamedTuple):
    """Frames of one atom count that are transferred by one task.

    ``frames`` are their ids; ``where`` is, of a file, the number of the first, the number after the last, and the byte
    at which the first begins.
    """

    atoms: int
    frames: list[str]
    where: list[int]


@dataclass(frozen=True)
class Origin:
    """The frames that are transferred.

    Attributes
    ----------
    written, chosen, about, segment
        The keys ``from``, ``set``, ``origin`` and ``segment`` of the campaign file.
    path
        Absolute path of the run directory, or of the file.
    run
        The name of the campaign that made them; the name of the file.
    stamp, digest
        Of a file: size and time of the last change (ns), and the hash of its content. Empty for a run, whose frames'
        ids are hashes.
    species
        Elements of all its frames.
    parts
        Its frames, in order.
    crystal
        Where the source is a run: its structure (``structure``), path and hash of its potential (``potential``,
        ``digest``); of frames that were themselves scaled by a given factor the crystal that they came from, with the
        factor that their volumes have grown by since (``grown``).
    """

    written: str
    chosen: str
    about: str
    segment: int
    path: str
    run: str
    stamp: list[int]
    digest: str
    species: list[str]
    parts: list[Part]
    crystal: dict[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON-able form."""
        return asdict(self) | {"parts": [list(p) for p in self.parts]}

    @classmethod
    def from_json(cls, data: dict[str, Json]) -> Origin:
        """Rebuild a note."""
        return cls(**{**data, "parts": [Part(*p) for p in data["parts"]]})

    @property
    def frames(self) -> int:
        """How many frames are transferred."""
        return sum(len(p.frames) for p in self.parts)

    @property
    def is_run(self) -> bool:
        """Tell whether they are of another run, and not of a file."""
        return not self.digest

    @property
    def grown(self) -> float:
        """By how much the volume of its frames is larger than the crystal's alone would have it."""
        return float(self.crystal.get("grown", 1.0))

    @property
    def store(self) -> str:
        """Where they lie: the other run's store, or the file."""
        return str(Path(self.path) / "run.zarr") if self.is_run else self.path

    def is_of(self, spec: Transfer) -> bool:
        """Tell whether this is the note of a section ``transfer``."""
        mine = (self.written, self.chosen, self.about, self.segment)
        return mine == (spec.source, spec.set, spec.origin or "", spec.segment)

    def fault(self) -> str | None:
        """Return what is wrong with the source now, None where it is as it was."""
        if self.is_run:
            there = (Path(self.store) / groups.META).exists()
            return None if there else f"{self.store} is not there any more, or cannot be read"
        try:
            now = sample_file.stamp(Path(self.path))
        except OSError:
            return f"{self.path} is not there any more, or cannot be read"
        return None if now == self.stamp else f"{self.path} has changed since the campaign was planned"


def divide(frames: Sequence[tuple[int, str]], segment: int) -> Iterator[Part]:
    """Yield parts of frames (atoms, id): each of one atom count, ``segment`` frames at most, in the order given."""
    part: list[str] = []
    atoms = 0
    for count, frame in frames:
        if part and (count != atoms or len(part) == segment):
            yield Part(atoms, part, [])
            part = []
        atoms = count
        part.append(frame)
    if part:
        yield Part(atoms, part, [])


def of_run(store: Store, frames: Sequence[str], segment: int) -> tuple[list[Part], list[str]]:
    """Return the parts of a run's frames, and their elements.

    Raises
    ------
    StoreError
        The store has not all of them.
    """
    from ase.data import chemical_symbols

    numbers: dict[str, Any] = {}  # of the tasks that made them: one task's at a time is enough, and few are many
    counts: list[tuple[int, str]] = []
    species: set[int] = set()
    for frame in frames:
        task, index = parse_frame_id(frame)
        if task not in numbers:
            numbers = {task: store.arrays("sample", task, ("numbers",))["numbers"]}
        counts.append((numbers[task].shape[1], frame))
        species |= set(numbers[task][index].tolist())
    return list(divide(counts, segment)), sorted(chemical_symbols[z] for z in species)


def of_file(path: Path, spec: Transfer) -> tuple[list[Part], list[str], str]:
    """Return the parts of a file's frames, their elements, and the hash of its content.

    Raises
    ------
    WrongFrames
        The file cannot be read, or holds a frame that campaign does not take; or it does not say where a frame comes
        from, and ``origin`` does not either.
    """
    from campaign.config.campaign_file import FileSample

    source = sample_file.look(path, 0, FileSample(file=path.name, segment=spec.segment))
    parts, species = [], set()
    for shard in source.shards:
        stretch = Stretch(shard.start, shard.stop, 1, int(shard.where))
        images = frame_files.FORMATS[path.suffix.lower()].read(path, stretch, ())
        ids = [str(image.info.get("frame", "")) for image in images]
        if spec.origin:
            ids = [f"{source.digest[:16]}:{k}" for k in range(shard.start, shard.stop)]
        unknown = next((k for k, name in enumerate(ids) if not FRAME_ID.match(name)), None)
        if unknown is not None:
            remedy = (
                "write it with 'campaign export RUN labelled FILE', or say under 'origin' where its frames come from"
            )
            what = f"frame {shard.start + unknown} does not say where it comes from (frame=ID)"
            raise WrongFrames(what, repr(path.name), remedy)
        for image in images:
            species |= set(image.get_chemical_symbols())
        parts.append(Part(shard.atoms, ids, [shard.start, shard.stop, int(shard.where)]))
    names = [name for part in parts for name in part.frames]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        remedy = "remove one, or say under 'origin' where its frames come from"
        raise WrongFrames(f"two frames say that they are frame {twice}", repr(path.name), remedy)
    return parts, sorted(species), source.digest


def read(path: str, stamp: list[int], frames: Sequence[str], where: Sequence[int]) -> Frames:
    """Return the frames of a part, in order.

    Raises
    ------
    MachineFault
        The source is not there, or not as it was when the campaign was planned.
    StoreError
        A run's store has not these frames any more.
    """
    place = Path(path)
    if not where:
        if not (place / groups.META).exists():  # opening a store that is not there would make one
            raise MachineFault(f"{place} is not there any more, or cannot be read here.")
        (block,) = Store(place).collect("sample", frames)
        return block
    for look in ("before", "after"):
        try:
            now = sample_file.stamp(place)
        except (OSError, StoreError) as error:
            raise MachineFault(f"{place} is not there any more, or cannot be read here ({error}).") from error
        if now != stamp:
            raise MachineFault(f"{place} has changed since the campaign was planned: put it back as it was.")
        if look == "before":
            found = frame_files.read(place, Stretch(where[0], where[1], 1, where[2]))
    return found.with_(walker=np.zeros(len(found), dtype="int32"))
