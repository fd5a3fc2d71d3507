"""Zarr groups, each written once by one task and published by an atomic rename.

A group ``run.zarr/KIND/ID`` holds the arrays of one finished task, and its record in the attributes. Readers never
see half of one: it is written aside, flushed to disk and renamed. Whoever comes second with the same id (an orphan
of a killed driver) finds the place taken and throws its identical copy away.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import DiskFull, StoreError

Array = npt.NDArray[Any]

#: A chunk is what one read touches, a shard is one file. Both in bytes, both measured in ``benchmarks/store.py``.
CHUNK_BYTES = 2**21
SHARD_BYTES = 2**26

META = "zarr.json"


def write_group(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    """Write a Zarr v3 group with one array an entry, uncompressed, sharded along the first axis.

    Parameters
    ----------
    path
        A folder that does not exist yet.
    arrays
        Name to array; the first axis is the one that grows (frames).
    attributes
        JSON-able attributes of the group.
    """
    import zarr

    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for name, value in arrays.items():
        value = np.ascontiguousarray(value)
        chunks, shards = _layout(value)
        array = group.create_array(
            name, shape=value.shape, dtype=value.dtype, chunks=chunks, shards=shards, compressors=None, fill_value=0
        )
        array[...] = value


def _layout(value: Array) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return (chunks, shards): whole rows, chunks of CHUNK_BYTES; shards only where one chunk is not enough."""
    if value.ndim == 0 or value.size == 0:
        return tuple(max(1, s) for s in value.shape), None
    n, rest = value.shape[0], value.shape[1:]
    row = max(1, value.nbytes // n)
    chunk = max(1, CHUNK_BYTES // row)
    if n <= chunk:
        return (n, *rest), None
    chunks_a_shard = max(1, min(SHARD_BYTES // (chunk * row), -(-n // chunk)))
    return (chunk, *rest), (chunk * chunks_a_shard, *rest)


def publish(final: Path, aside: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> bool:
    """Write a group aside, flush it and rename it into place.

    Returns
    -------
    bool
        False when ``final`` was there already: the same task was finished by another process.

    Raises
    ------
    DiskFull
        No space (or no quota) is left; nothing is published and the copy aside is removed.
    """
    work = aside / f"{final.name}.{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        write_group(work, arrays, attributes)
        flush_tree(work)
        os.rename(work, final)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise translate(error, final) from error
    flush(final.parent)
    return True


def translate(error: OSError, path: Path) -> StoreError:
    """Return the campaign error for an operating-system error at ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(
            f"No space is left to write {path} ({error.strerror}). Everything finished is kept: free some space and "
            "give the same command again."
        )
    return StoreError(f"{path} cannot be written: {error.strerror or error}.")


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a node that dies."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_tree(path: Path) -> None:
    """Flush every file under ``path`` (side by side: the disk can join them), then the folders from the leaves up."""
    walk = list(os.walk(path, topdown=False))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(flush, [Path(folder, file) for folder, _, files in walk for file in files]))
        list(pool.map(flush, [Path(folder) for folder, _, _ in walk]))


def attributes(path: Path) -> dict[str, Any]:
    """Return a group's attributes, read straight from its metadata (30 times quicker than opening it)."""
    try:
        meta = json.loads((path / META).read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not a readable Zarr group: {error}.") from error
    return dict(meta.get("attributes", {}))


def read_arrays(path: Path, names: tuple[str, ...] = (), rows: slice | Array | None = None) -> dict[str, Array]:
    """Read arrays of a group.

    Parameters
    ----------
    path
        The group.
    names
        Which arrays; all where empty.
    rows
        Which rows of the first axis; all where None. An index array is read as the span it covers.
    """
    import zarr

    group = zarr.open_group(path, mode="r", use_consolidated=False)
    wanted = names or tuple(sorted(group.array_keys()))
    out = {}
    for name in wanted:
        array = group[name]
        if rows is None:
            value = array[...]
        elif isinstance(rows, slice):
            value = array[rows]
        else:
            low, high = int(rows.min()), int(rows.max()) + 1
            value = array[low:high][rows - low]
        out[name] = np.asarray(value)
    return out


def subgroups(path: Path) -> Iterator[Path]:
    """Yield the groups directly below ``path``, in the order of their names."""
    if path.is_dir():
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            if entry.is_dir() and os.path.exists(os.path.join(entry.path, META)):
                yield Path(entry.path)
