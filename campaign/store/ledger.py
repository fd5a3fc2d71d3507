"""The ledger: one JSON line for every attempt at a task, append-only, flushed to disk.

The Zarr store is the truth about what is finished; the ledger says how it came about. Lost lines are written again
from the records in the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from campaign.errors import StoreError
from campaign.store.groups import translate
from campaign.tasks import Record

#: Bytes of lines that are read at once.
BLOCK = 2**20


class Ledger:
    """``RUN/ledger.jsonl``, written by the one driver that holds the run directory.

    Parameters
    ----------
    path
        The file. A last line torn by a kill is cut off when the ledger is opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_line(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, records: Iterable[Record], flush: bool = True) -> None:
        """Append records; after a kill they are there, after a node died those before the last flush.

        Parameters
        ----------
        records
            In the order in which they came in.
        flush
            To disk, now; else ``flush`` is called later, for all at once.
        """
        text = "".join(_line(r) for r in records)
        if not text:
            return
        data, start = text.encode(), os.fstat(self._fd).st_size
        try:
            written = 0
            while written < len(data):  # a nearly full disk writes a part first
                written += os.write(self._fd, data[written:])
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise translate(error, self.path) from error
        if flush:
            self.flush()

    def flush(self) -> None:
        """Flush what was appended to disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise translate(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _line(record: Record) -> str:
    """Return a record as a line of JSON; a summary that is not JSON (a NaN) is left out: the driver must go on."""
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
    except (TypeError, ValueError):
        return json.dumps({**record, "result": {}}, separators=(",", ":"), default=str) + "\n"


def read_ledger(path: Path) -> list[Record]:
    """Return every whole line; a torn last line is passed over (a driver may be writing it now).

    Raises
    ------
    StoreError
        A line is damaged; the message says which.
    """
    if not path.exists():
        return []
    records: list[Record] = []
    rest = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            records += _together(lines) or _one_by_one(lines, path, len(records))
    return records


def _together(lines: list[bytes]) -> list[Record]:
    """Return the records of lines read as one document: quicker, and names are kept once; nothing where one is bad."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return []
    whole = len(found) == len(lines) and all(isinstance(r, dict) and "task" in r for r in found)
    return cast(list[Record], found) if whole else []


def _one_by_one(lines: list[bytes], path: Path, before: int) -> list[Record]:
    """Return the records of lines; ``before`` is how many there were before these."""
    records = []
    for number, line in enumerate(lines, before + 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "task" not in record:
                raise ValueError("it is not the record of a task")
            records.append(cast(Record, record))
        except ValueError as error:
            raise StoreError(
                f"{path}, line {number}, is damaged: {error}. Remove that line, or the whole file: what is finished "
                "is written into it again from run.zarr."
            ) from error
    return records


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
