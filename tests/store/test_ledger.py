"""The ledger: one whole line an attempt, whatever happens; and what counts as done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaign.errors import StoreError
from campaign.store.ledger import Ledger, read_ledger
from campaign.store.rundir import RunDirectory

WRITER = """
import sys
from pathlib import Path
from campaign.store.ledger import Ledger
from campaign.tasks import Task, new_record
ledger = Ledger(Path(sys.argv[1]))
for k in range(0, 300, 3):
    ledger.append([new_record(Task("sample", f"{k + i} " + "x" * 2000, {"k": k + i}), 0) for i in range(3)])
"""


def test_records_come_back_in_order(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    assert read_ledger(path) == []
    records = [make.record(k) for k in range(4)]
    ledger = Ledger(path)
    ledger.append(records[:3])
    ledger.append([])
    ledger.append(iter(records[3:]))
    ledger.close()
    assert read_ledger(path) == records
    assert len(path.read_bytes().splitlines()) == 4


def test_records_that_came_in_together_share_a_flush(tmp_path: Path, make: Any, monkeypatch: Any) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    flushed = []
    monkeypatch.setattr("os.fsync", lambda fd: flushed.append(os.fstat(fd).st_size))
    ledger.append([make.record(k) for k in range(50)])
    assert flushed == [ledger.path.stat().st_size]
    ledger.close()


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_torn_last_line_is_passed_over_and_cut_off(tmp_path: Path, make: Any, keep: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append([make.record(1)])
    whole = path.stat().st_size
    ledger.append([make.record(2)])
    ledger.close()
    os.truncate(path, whole + keep if keep > 0 else path.stat().st_size + keep)
    assert read_ledger(path) == [make_like(path, 0)]
    ledger = Ledger(path)
    assert path.stat().st_size == whole
    ledger.append([make.record(3)])
    ledger.close()
    assert [r["result"]["segment"] for r in read_ledger(path)] == [1, 3]


def make_like(path: Path, line: int) -> Any:
    import json

    return json.loads(path.read_bytes().splitlines()[line])


def test_reader_beside_a_writer_sees_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
        seen = []
        while writer.poll() is None:
            seen.append(len(read_ledger(path)))
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert [int(r["name"].split()[0]) for r in read_ledger(path)] == list(range(300))


def test_a_line_that_is_no_json_is_named(tmp_path: Path, make: Any) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([make.record(1)])
    ledger.close()
    ledger.path.write_bytes(ledger.path.read_bytes() + b"\0\0\0\n")
    with pytest.raises(StoreError, match=r"line 2.*[Rr]emove"):
        read_ledger(ledger.path)


def test_lines_that_are_damaged_are_found_in_any_block(tmp_path: Path, make: Any, monkeypatch: Any) -> None:
    """Also two that are one record together, and one far behind the first block."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([make.record(k) for k in range(20)])
    ledger.close()
    whole = ledger.path.read_bytes()
    monkeypatch.setattr("campaign.store.ledger.BLOCK", len(whole) // 7)
    assert [r["result"]["segment"] for r in read_ledger(ledger.path)] == list(range(20))
    for bad in (b"[]\n", b'{"task":"a"\n"b":1}\n', b"{}\n"):
        ledger.path.write_bytes(whole + bad + whole)
        with pytest.raises(StoreError, match="line 21, is damaged"):
            read_ledger(ledger.path)


def test_lost_ledger_is_written_again_from_the_store(tmp_path: Path, make: Any) -> None:
    with RunDirectory(tmp_path) as run:
        ids = [make.publish(run.store, k) for k in range(4)]
        failed = make.record(9, "label")
        failed.update(state="quarantined", cause="SCF did not converge.")
        run.store.quarantine(failed)
        run.store.pack("sample", [ids[:2]])
    (tmp_path / "ledger.jsonl").unlink()
    with RunDirectory(tmp_path) as run:
        done, quarantined, _ = run.recover()
    lines = read_ledger(tmp_path / "ledger.jsonl")
    assert sorted(done) == sorted(ids)
    assert quarantined == {failed["task"]: failed}
    assert sorted(r["task"] for r in lines if r["state"] == "done") == sorted(ids)
    assert [r for r in lines if r["state"] == "quarantined"] == [failed]
    with RunDirectory(tmp_path) as run:
        run.recover()
    assert read_ledger(tmp_path / "ledger.jsonl") == lines, "a second look adds nothing"


def test_line_without_its_arrays_is_not_done(tmp_path: Path, make: Any) -> None:
    with RunDirectory(tmp_path) as run:
        run.ledger.append([make.record(1), make.record(2, "noop")])
    with RunDirectory(tmp_path) as run:
        done, _, _ = run.recover()
    assert list(done) == [make.task(2, "noop").id], "noop leaves no arrays; sample does"


def test_attempts_count_the_tasks_own_faults(tmp_path: Path, make: Any) -> None:
    mine, machines = make.record(1), make.record(1)
    mine.update(state="failed", cause="Lost atoms.")
    machines.update(state="failed", transient=True, cause="Node lost.")
    with RunDirectory(tmp_path) as run:
        run.ledger.append([mine, machines, mine])
    with RunDirectory(tmp_path) as run:
        assert run.recover()[2] == {mine["task"]: 2}
