"""Frames per second written to and read from campaign's store, beside bare Zarr, .npy files, ASE's database and extxyz.

All write the same frames (12 arrays, positions and forces in float64). The ratios compare durable writes: every peer's
files and folders are flushed to disk as campaign's are; the figures without any flush stand beside them. Reading is
from the page cache for all. Bare Zarr is the quickest of several layouts in each direction, without compression.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, parser, report

from campaign.frames import Frames
from campaign.store import groups
from campaign.store.store import Store
from campaign.tasks import Task, new_record

ATOMS, SEGMENT, SMALL_ATOMS = 108, 64, 64
ASKED = {"write / zarr": 0.8, "read / zarr": 0.8, "write / ase db": 30.0, "read / ase db": 30.0}

#: Frames a chunk, and a shard where there is one.
LAYOUTS: dict[str, tuple[int, int | None]] = {
    "zarr, chunks of 1024": (1024, None),
    "zarr, chunks of 4096": (4096, None),
    "zarr, one chunk": (10**9, None),
    "zarr, 256 in shards of 1024": (256, 1024),
    "zarr, 256 in shards of 4096": (256, 4096),
    "zarr, 1024 in shards of 4096": (1024, 4096),
}


def make(n: int, atoms: int, number: int = 0) -> Frames:
    rng = np.random.default_rng(number)
    return Frames.build(
        rng.integers(1, 90, atoms),
        rng.normal(size=(n, atoms, 3)),
        10 * np.eye(3) + rng.normal(size=(n, 3, 3)),
        energy=rng.normal(size=n),
        forces=rng.normal(size=(n, atoms, 3)),
        stress=rng.normal(size=(n, 3, 3)),
        task=task(number).number,
        walker=1 + np.arange(n) % 8,
        step=100 * np.arange(n),
        temperature=300.0,
        pressure=1.0,
    )


def task(number: int) -> Task:
    return Task("sample", f"segment {number}", {"segment": number})


def flush_tree(path: Path) -> None:
    """Flush all files of a peer at once, then its folders: the quickest way there is for many files."""
    found = list(os.walk(path, topdown=False))
    with ThreadPoolExecutor(groups.WRITERS) as pool:
        list(pool.map(groups.flush, [Path(folder, file) for folder, _, files in found for file in files]))
        list(pool.map(groups.flush, [Path(folder) for folder, _, _ in found]))


# -- one way to write and to read each ---------------------------------------------------------------------------------


def write_zarr(path: Path, frames: Frames, chunk: int, shard: int | None) -> None:
    import zarr

    group = zarr.create_group(path)
    for name, value in frames.arrays():
        rows = min(chunk, len(value))
        shards = None if shard is None else (min(shard, -(-len(value) // rows) * rows), *value.shape[1:])
        array = group.create_array(
            name,
            shape=value.shape,
            dtype=value.dtype,
            chunks=(rows, *value.shape[1:]),
            shards=shards,
            compressors=None,
            filters=None,
        )
        array[...] = value


def read_zarr(path: Path) -> Frames:
    import zarr

    group = zarr.open_group(path, mode="r")
    return Frames(**{name: np.asarray(array[...]) for name, array in group.arrays()})


def write_npy(path: Path, frames: Frames) -> None:
    path.mkdir()
    for name, value in frames.arrays():
        np.save(path / f"{name}.npy", value)


def read_npy(path: Path) -> Frames:
    return Frames(**{p.stem: np.load(p) for p in path.iterdir()})


def write_campaign(path: Path, frames: Frames) -> None:
    assert Store(path / "run.zarr").publish(new_record(task(0), 0), dict(frames.arrays()))


def read_campaign(path: Path) -> Frames:
    return Store(path / "run.zarr").frames("sample", task(0).id)


def write_ase(path: Path, frames: Frames) -> None:
    from ase.db import connect

    path.mkdir()
    with connect(path / "frames.db") as database:
        for atoms in frames.to_ase():
            info = atoms.info
            database.write(atoms, key_value_pairs={k: info[k] for k in ("walker", "step")}, data={"id": info["frame"]})


def read_ase(path: Path) -> int:
    from ase.db import connect

    return len([row.toatoms() for row in connect(path / "frames.db").select()])


def write_extxyz(path: Path, frames: Frames) -> None:
    from ase.io import write

    path.mkdir()
    write(path / "frames.extxyz", frames.to_ase(), format="extxyz")


def read_extxyz(path: Path) -> int:
    from ase.io import read

    return len(read(path / "frames.extxyz", ":"))


# -- measuring ---------------------------------------------------------------------------------------------------------


def timed_write(root: Path, write: Callable[[Path, Frames], object], frames: Frames, flush: bool) -> float:
    """Return the seconds of one write to a new place; making room again does not count."""
    path = root / "written"
    start = time.perf_counter()
    write(path, frames)
    if flush:
        flush_tree(path)
    seconds = time.perf_counter() - start
    shutil.rmtree(path)
    return seconds


def large(root: Path, n: int, rounds: int, subset: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return frames a second by way: written and flushed, written without flushing, read."""
    frames = make(n, ATOMS)
    few = frames[:subset]
    arrays = dict(frames.arrays())
    ways: dict[str, tuple[Callable[[Path, Frames], object], Callable[[Path], object], Frames]] = {
        "campaign": (write_campaign, read_campaign, frames),
        **{
            name: ((lambda path, f, at=at: write_zarr(path, f, *at)), read_zarr, frames) for name, at in LAYOUTS.items()
        },
        ".npy files": (write_npy, read_npy, frames),
        "ase db": (write_ase, read_ase, few),
        "extxyz": (write_extxyz, read_extxyz, few),
    }
    for name, (write, read, data) in ways.items():  # also the first time, which loads libraries
        write(root / name, data)
        back = read(root / name)
        if isinstance(back, Frames):
            assert all(np.array_equal(a, getattr(back, k)) for k, a in data.arrays()), name
        else:
            assert back == len(data), name
    durable = {
        name: (lambda w=write, d=data, own=name == "campaign": timed_write(root, w, d, flush=not own))
        for name, (write, _, data) in ways.items()
    }
    quick = {name: (lambda w=w, d=d: timed_write(root, w, d, flush=False)) for name, (w, _, d) in ways.items()}
    quick["campaign"] = lambda: timed_write(
        root, lambda path, _: groups.write_group(path, arrays, {}, durable=False), frames, flush=False
    )
    reads = {name: (lambda r=read, p=root / name: r(p)) for name, (_, read, _) in ways.items()}
    sizes = {name: len(data) for name, (_, _, data) in ways.items()}

    def rate(works: Any, rounds: int) -> dict[str, Any]:
        return {name: sizes[name] / seconds for name, seconds in interleaved(works, rounds).items()}

    written, unflushed = rate(durable, rounds), rate(quick, rounds)
    slow = {name: reads.pop(name) for name in ("ase db", "extxyz")}
    return written, unflushed, rate(reads, 5 * rounds) | rate(slow, rounds)


def small(root: Path, segments: int) -> dict[str, float]:
    """Return the figures of many small segments: published one by one, read, packed, read again by segment."""
    blocks = [make(SEGMENT, SMALL_ATOMS, k) for k in range(segments)]
    store = Store(root / "segments" / "run.zarr")
    ids = [task(k).id for k in range(segments)]
    spent = {"publish": [], "zarr": []}
    for k, block in enumerate(blocks):
        start = time.perf_counter()
        store.publish(new_record(task(k), 0), dict(block.arrays()))
        spent["publish"].append(time.perf_counter() - start)
        start = time.perf_counter()
        write_zarr(root / "bare" / str(k), block, SEGMENT, None)
        flush_tree(root / "bare" / str(k))
        spent["zarr"].append(time.perf_counter() - start)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    read = seconds(lambda: list(store.stream("sample", ids)))
    bare = seconds(lambda: [read_zarr(root / "bare" / str(k)) for k in range(segments)])
    pack = seconds(lambda: store.pack("sample", [ids]))
    packed = seconds(lambda: list(store.stream("sample", ids)))
    n = segments * SEGMENT
    publish, zarr = (float(np.median(spent[k])) for k in ("publish", "zarr"))
    return {
        "segment publish ms": 1e3 * publish,
        "segment publish / zarr": zarr / publish,
        "segment write frames/s": SEGMENT / publish,
        "segment write and pack frames/s": n / (sum(spent["publish"]) + pack),
        "segment read / zarr": bare / read,
        "segment read frames/s": n / read,
        "packed read frames/s": n / packed,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="write here (say, on a parallel file system)")
    chosen = options.parse_args()
    n, rounds, subset, segments = (8000, 3, 500, 50) if chosen.quick else (20_000, 7, 2000, 300)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        written, unflushed, read = large(Path(folder), n, rounds, subset)
        figures = small(Path(folder), segments)
    rows = [
        {"frames/s": name, "written": written[name], "written, not flushed": unflushed[name], "read": read[name]}
        for name in written
    ]
    rows.append(
        {
            "frames/s": f"campaign, segments of {SEGMENT} x {SMALL_ATOMS}",
            "written": figures["segment write frames/s"],
            "read": figures["segment read frames/s"],
        }
    )
    rows.append(
        {
            "frames/s": "campaign, the same and packed",
            "written": figures["segment write and pack frames/s"],
            "read": figures["packed read frames/s"],
        }
    )
    for way, rates in (("write", written), ("write unflushed", unflushed), ("read", read)):
        figures[f"{way} frames/s"] = rates["campaign"]
        figures[f"{way} / zarr"] = rates["campaign"] / max(rates[name] for name in LAYOUTS)
        figures[f"{way} / npy"] = rates["campaign"] / rates[".npy files"]
        figures[f"{way} / ase db"] = rates["campaign"] / rates["ase db"]
        figures[f"{way} / extxyz"] = rates["campaign"] / rates["extxyz"]
    report("store", rows, figures, ASKED, all(figures[name] >= least for name, least in ASKED.items()))


if __name__ == "__main__":
    main()
