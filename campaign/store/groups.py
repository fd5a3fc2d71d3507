"""Zarr groups, each written once by one task and published by an atomic rename.

A group ``run.zarr/KIND/ID`` holds the arrays of one finished task, and its record in the attributes. Readers never
see half of one: it is written aside, flushed to disk and renamed. Whoever comes second with the same id (an orphan
of a killed driver) finds the place taken and throws its identical copy away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import DiskFull, StoreError
from campaign.store import arrays as _arrays

Array = npt.NDArray[Any]

META = _arrays.META

#: Key of a group's attributes that holds its short columns, and how many values such a column has at most. An array is
#: three files and folders, and creating those is what storing a single label costs.
COLUMNS, SHORT = "columns", 8

#: Files of a group that are flushed at the same time, so that the disk can join them.
WRITERS = 16


def write_group(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any], durable: bool = True) -> None:
    """Write a Zarr v3 group with one uncompressed array an entry (``campaign.store.arrays``).

    Columns of a few finite numbers go into the attributes instead, each as [type, values]; ``read_arrays`` knows no
    difference.

    Parameters
    ----------
    path
        A folder that does not exist yet, in one that does.
    arrays
        Name to array; the first axis is the one that grows (frames).
    attributes
        JSON-able attributes of the group.
    durable
        Flush everything to disk, so that it survives a node that dies.
    """
    short = {name: [a.dtype.name, a.tolist()] for name, a in arrays.items() if _is_short(a)}
    more = {COLUMNS: short} if short else {}
    meta = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {**attributes, **more}}, allow_nan=False)
    arrays = {name: a for name, a in arrays.items() if name not in short}
    path.mkdir()
    parts: list[tuple[Path, Any, int]] = [(path / META, meta.encode(), 0)]
    for name, value in arrays.items():
        (path / name).mkdir()
        parts += _arrays.parts(path / name, value)
    for file, content, size in parts:
        _arrays.write_file(file, content, size)
    if durable:  # only now, and at the same time: one commit of the disk's journal serves nearly all of them
        written = [*(file for file, _, _ in parts), *(path / name for name in arrays), path]
        list(_writers(os.getpid()).map(flush, written))


def _is_short(value: Array) -> bool:
    """Tell whether an array is a column of a few numbers that JSON gives back to the last bit."""
    return value.ndim == 1 and 0 < value.size <= SHORT and value.dtype.kind in "biuf" and bool(np.isfinite(value).all())


@lru_cache(maxsize=1)
def _writers(pid: int) -> ThreadPoolExecutor:
    """Return the threads of this process that wait for the disk; starting them costs as much as a small group."""
    return ThreadPoolExecutor(WRITERS, thread_name_prefix="flush")


def publish(
    final: Path, aside: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any], named: bool = True
) -> bool:
    """Write a group aside, flush it and rename it into place.

    Parameters
    ----------
    final, aside
        Where it is to be, and a folder of the same file system to write it in.
    arrays, attributes
        As in ``write_group``.
    named
        Flush the new name, too. Where not, the group is whole or absent after a node died, and whoever counts on it
        flushes ``final.parent`` first: once for many groups.

    Returns
    -------
    bool
        False when ``final`` was there already: the same task was finished by another process.

    Raises
    ------
    DiskFull
        No space (or no quota) is left; nothing is published and the copy aside is removed.
    StoreError
        The place cannot be written to.
    """
    work = aside / f"{final.name}.{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        write_group(work, arrays, attributes)
        new = _rename(work, final)
        if named:
            flush(final.parent)
    except OSError as error:
        raise translate(error, final) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return new


def _rename(work: Path, final: Path) -> bool:
    """Rename a whole group into place; return False where the same group is there already."""
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and (final / META).exists():
            return False
        raise
    return True


def translate(error: OSError, path: Path) -> StoreError:
    """Return the campaign error for an operating-system error at ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(
            f"No space is left to write {path} ({error.strerror}). Everything finished is kept: free some space and "
            "give the same command again."
        )
    why = error.strerror or error
    return StoreError(f"{path} cannot be written: {why}. Mend that (permissions, file system), or use another place.")


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a node that dies."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(paths: Iterable[Path], aside: Path) -> None:
    """Remove files and folders, those that are there: each first from sight, at once, then from the disk.

    Nobody sees a part of one, and a process that is still writing into it fails instead of publishing the rest.
    """
    aside.mkdir(parents=True, exist_ok=True)
    list(_writers(os.getpid()).map(lambda path: _discard(path, aside), paths))


def _discard(path: Path, aside: Path) -> None:
    gone = aside / f"removed.{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)


def attributes(path: Path) -> dict[str, Any]:
    """Return a group's attributes, read straight from its metadata."""
    try:
        meta = json.loads((path / META).read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not a readable Zarr group: {error}.") from error
    attributes = meta.get("attributes", {}) if isinstance(meta, dict) else None
    if not isinstance(attributes, dict):
        raise StoreError(f"{path} is not a readable Zarr group: it holds no attributes; restore it from a copy.")
    return attributes


def _columns(path: Path) -> dict[str, Array]:
    """Return the short columns of a group."""
    try:
        return _columns_of(path, os.stat(path / META).st_mtime_ns)
    except OSError as error:
        raise StoreError(f"{path} is not a readable Zarr group: {error}.") from error


@lru_cache(maxsize=256)
def _columns_of(path: Path, _changed: int) -> dict[str, Array]:
    return {name: np.array(values, dtype) for name, (dtype, values) in attributes(path).get(COLUMNS, {}).items()}


def found(path: Path, names: Iterable[str]) -> set[str]:
    """Return which of these arrays a group has."""
    return {name for name in names if (path / name).is_dir() or name in _columns(path)}


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

    Raises
    ------
    StoreError
        An array is not there, or a part of it is missing.
    """
    short = _columns(path)
    wanted = names or tuple(sorted([*short, *(p.parent.name for p in path.glob(f"*/{META}"))]))
    if rows is None or isinstance(rows, slice):
        start, stop = (rows.start or 0, rows.stop) if rows is not None else (0, None)
        pick: Any = ...
    else:
        start, stop = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        pick = rows - start
    return {
        name: (short[name][start:stop].copy() if name in short else _arrays.read(path / name, start, stop))[pick]
        for name in wanted
    }


def subgroups(path: Path) -> Iterator[Path]:
    """Yield the groups directly below ``path``, in the order of their names."""
    if path.is_dir():
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            if entry.is_dir() and os.path.exists(os.path.join(entry.path, META)):
                yield Path(entry.path)
