"""Zarr v3 arrays as the store keeps them: uncompressed, in chunks of whole rows, so any Zarr reader opens them.

A row of such a chunk lies at a known place of its file. Writing, and reading a few rows, is then plain file access:
three to ten times quicker than through zarr-python for small groups, and one frame of a large chunk is read without the
rest (``benchmarks/store.py``). Arrays of another layout are read with zarr-python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import StoreError

Array = npt.NDArray[Any]

#: Bytes of a chunk, which is one file. Smaller means more files, larger more to read for other programs.
CHUNK_BYTES = 2**24

META = "zarr.json"

_KEYS = {"name": "default", "configuration": {"separator": "."}}
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]


def parts(folder: Path, value: Array) -> Iterator[tuple[Path, Any, int]]:
    """Yield (file, content, size) of everything an array consists of; a file shorter than size ends in zeros.

    Parameters
    ----------
    folder
        The array's folder.
    value
        Numbers or booleans of any shape.
    """
    value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).reshape(value.shape)
    if value.dtype.kind not in "biufc":
        raise TypeError(f"{folder.name} holds {value.dtype}; the store takes numbers and booleans only.")
    chunk = _chunk(value)
    meta = _metadata(value, chunk)
    yield folder / META, meta, len(meta)
    if value.size:
        flat = value.reshape(-1).view("uint8")
        step = math.prod(chunk) * value.itemsize
        for k, start in enumerate(range(0, flat.size, step)):
            yield folder / _key(k, value.ndim), flat[start : start + step], step


def _chunk(value: Array) -> tuple[int, ...]:
    """Return the shape of a chunk: as few chunks as CHUNK_BYTES allows, all of nearly the same number of rows."""
    if value.ndim == 0 or value.size == 0:
        return tuple(max(1, s) for s in value.shape)
    n, row = value.shape[0], value.nbytes // value.shape[0]
    count = -(-n // max(1, CHUNK_BYTES // row))
    return (-(-n // count), *value.shape[1:])


def _metadata(value: Array, chunk: tuple[int, ...]) -> bytes:
    zero: Any = {"b": False, "c": [0.0, 0.0]}.get(value.dtype.kind, 0)
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": value.shape,
        "data_type": value.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": _KEYS,
        "fill_value": zero,
        "codecs": _CODECS,
        "attributes": {},
    }
    return json.dumps(meta).encode()


def _key(k: int, ndim: int) -> str:
    return ".".join(["c", *([str(k)] if ndim else []), *["0"] * (ndim - 1)])


def read(folder: Path, start: int = 0, stop: int | None = None) -> Array:
    """Read an array, or its rows from ``start`` to ``stop``.

    Raises
    ------
    StoreError
        A part of it is missing: never taken for zeros, as Zarr's fill value would.
    """
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta["codecs"] != _CODECS or meta["chunk_key_encoding"] != _KEYS:
            return _read_other(folder, start, stop)
        return _read_rows(folder, meta, start, stop)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{folder} cannot be read ({error}). Remove {folder.parent} and give the same command again: what it "
            "held is made again."
        ) from error


def _read_rows(folder: Path, meta: dict[str, Any], start: int, stop: int | None) -> Array:
    shape, chunk = tuple(meta["shape"]), tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
    if any(c < s for c, s in zip(chunk[1:], shape[1:], strict=True)):
        return _read_other(folder, start, stop)
    n, rows = (shape[0], chunk[0]) if shape else (1, 1)
    stop = n if stop is None else min(stop, n)
    out = np.empty((max(0, stop - start), *shape[1:]) if shape else (), dtype=np.dtype(meta["data_type"]))
    if not out.size:
        return out
    flat: Any = out.reshape(-1).view("uint8")
    row = flat.size // (stop - start)
    for k in range(start // rows, -(-stop // rows)):
        low, high = max(start, k * rows), min(stop, (k + 1) * rows)
        path = folder / _key(k, len(shape))
        with path.open("rb", buffering=0) as file:
            file.seek((low - k * rows) * row)
            part = flat[(low - start) * row : (high - start) * row]
            if file.readinto(part) != part.size:
                raise OSError(f"{path.name} is too short")
    return out


def _read_other(folder: Path, start: int, stop: int | None) -> Array:
    import zarr

    array = zarr.open_array(folder, mode="r")
    return np.asarray(array[start:stop] if array.ndim else array[...])


def write_file(path: Path, content: Any, size: int) -> None:
    """Write a file of ``size`` bytes that starts with ``content``."""
    with path.open("xb", buffering=0) as file:
        view = memoryview(content)
        while view:  # a nearly full disk writes a part first
            view = view[file.write(view) or 0 :]
        if len(content) < size:
            file.truncate(size)
