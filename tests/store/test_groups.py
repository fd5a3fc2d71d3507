"""Groups and arrays as they lie on disk: open to any Zarr reader, whole or not there, never silently zero."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from campaign.errors import DiskFull, StoreError
from campaign.frames import ADDED, LAYOUT
from campaign.store import arrays as layout
from campaign.store import groups, rundir
from campaign.store.ledger import Ledger, read_ledger
from campaign.store.store import Store

RNG = np.random.default_rng(3)
SHAPES: dict[str, Any] = {
    "matrix": RNG.normal(size=(1000, 7, 3)),
    "bytes": np.frombuffer(RNG.bytes(5000), dtype="uint8"),
    "half": RNG.normal(size=9).astype("float16"),
    "flags": RNG.normal(size=33) > 0,
    "complex": RNG.normal(size=(4, 2)) + 1j,
    "big_endian": np.arange(300, dtype=">i4"),
    "transposed": RNG.normal(size=(5, 300)).T,
    "number": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "no_columns": np.zeros((4, 0)),
    "not_a_number": np.full((3, 2), np.nan),
    "zeros": np.zeros(600, dtype="int64"),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1000)


@pytest.mark.usefixtures("small_chunks")
def test_zarr_python_reads_what_is_written(tmp_path: Path) -> None:
    groups.write_group(tmp_path / "g", SHAPES, {"record": {"name": "é"}})
    group = zarr.open_group(tmp_path / "g", mode="r")
    assert dict(group.attrs) == {"record": {"name": "é"}}
    assert sorted(group.array_keys()) == sorted(SHAPES)
    for name, value in SHAPES.items():
        found = np.asarray(group[name][...])
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype.newbyteorder("=")
    assert len(list((tmp_path / "g" / "matrix").iterdir())) > 100, "this was to be a test of many chunks"


@pytest.mark.usefixtures("small_chunks")
def test_reads_back_bitwise(tmp_path: Path) -> None:
    groups.write_group(tmp_path / "g", SHAPES, {})
    found = groups.read_arrays(tmp_path / "g")
    assert found.keys() == SHAPES.keys()
    for name, value in SHAPES.items():
        assert found[name].tobytes() == np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))).tobytes()
        assert found[name].shape == value.shape


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [slice(0, 1), slice(3, 17), slice(995, None), slice(500, 500), slice(990, 5000)])
def test_rows(tmp_path: Path, rows: slice) -> None:
    groups.write_group(tmp_path / "g", SHAPES, {})
    found = groups.read_arrays(tmp_path / "g", ("matrix",), rows)["matrix"]
    np.testing.assert_array_equal(found, SHAPES["matrix"][rows])


@pytest.mark.usefixtures("small_chunks")
def test_scattered_rows(tmp_path: Path) -> None:
    groups.write_group(tmp_path / "g", SHAPES, {})
    for rows in ([5], [999, 0, 17, 17], []):
        index = np.array(rows, dtype=int)
        found = groups.read_arrays(tmp_path / "g", ("matrix",), index)["matrix"]
        np.testing.assert_array_equal(found, SHAPES["matrix"][index])


def test_reads_arrays_of_another_layout(tmp_path: Path) -> None:
    value = RNG.normal(size=(100, 4, 3))
    group = zarr.create_group(tmp_path / "g")
    group.create_array("sharded", data=value, chunks=(5, 4, 3), shards=(50, 4, 3))
    group.create_array("split", data=value, chunks=(5, 2, 3), compressors=None, filters=None)
    for name in ("sharded", "split"):
        np.testing.assert_array_equal(groups.read_arrays(tmp_path / "g", (name,), slice(7, 61))[name], value[7:61])


@pytest.mark.parametrize("damage", ["missing", "short", "metadata"])
def test_a_damaged_array_is_an_error_not_zeros(tmp_path: Path, damage: str) -> None:
    groups.write_group(tmp_path / "g", {"energy": np.ones(50)}, {})
    chunk = tmp_path / "g" / "energy" / "c.0"
    if damage == "missing":
        chunk.unlink()
    elif damage == "short":
        os.truncate(chunk, 200)
    else:
        (tmp_path / "g" / "energy" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="made again"):
        groups.read_arrays(tmp_path / "g")


def test_second_publisher_of_the_same_id_loses_harmlessly(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    task = make.publish(store, 1)
    other = {k: np.zeros_like(v) for k, v in make.frames(1).arrays()}
    assert store.publish(make.record(1), other) is False
    make.same(store.frames("sample", task), make.frames(1))
    assert list(store.aside.iterdir()) == []


def test_publishing_where_nothing_can_be_written_is_not_taken_for_done(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    store.aside.write_text("in the way")
    with pytest.raises(StoreError):
        make.publish(store, 1)
    store.aside.unlink()
    (tmp_path / "run.zarr/pool" / make.task(1).id).mkdir(parents=True)
    (tmp_path / "run.zarr/pool" / make.task(1).id / "junk").write_text("not a group")
    with pytest.raises(StoreError):
        make.publish(store, 1)
    assert store.scan() == {}


def test_frames_of_mixed_sizes_come_back_in_the_order_asked_for(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    tasks = [make.publish(store, k, n=4, atoms=a) for k, a in enumerate((8, 5, 8))]
    ids = [f"{tasks[2]}:3", f"{tasks[1]}:0", f"{tasks[0]}:2", f"{tasks[2]}:1"]
    eight, five = store.collect("sample", ids)
    assert (eight.ids, five.ids) == ([ids[0], ids[2], ids[3]], [ids[1]])
    make.same(eight[1:2], make.frames(0, 4, 8)[2:3])
    assert [len(b) for b in store.stream("sample", tasks)] == [4, 4, 4]


def test_what_is_not_there_is_said(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    task = make.publish(store, 1, checkpoint=False)
    with pytest.raises(StoreError, match="no result of sample task 0123"):
        store.frames("sample", "0123")
    with pytest.raises(StoreError, match=f"no checkpoint of task {task}"):
        store.checkpoint(task)
    with pytest.raises(StoreError, match="frames 0 to 4"):
        store.frames("sample", task, [5])


def test_quarantine_and_release(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    record = make.record(1, "label")
    record.update(state="quarantined", cause="SCF did not converge.")
    store.quarantine(record)
    assert Store(store.path).quarantined() == {record["task"]: record}
    assert store.scan() == {}
    store.release(record["task"])
    assert store.quarantined() == {}


# -- no space left -----------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from campaign.errors import DiskFull
from campaign.store.store import Store
from campaign.tasks import Task, new_record
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
record = new_record(Task("sample", "", {}), 0)
try:
    store.publish(record, {"small": np.zeros(10), "positions": np.zeros(5000)}, {"state": np.zeros(3)})
except DiskFull as error:
    print(error)
assert store.scan() == {}
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.publish(record, {"small": np.zeros(10), "positions": np.zeros(5000)}, {"state": np.zeros(3)})
assert len(store.scan()) == 1
"""


def test_a_file_that_cannot_grow_stops_cleanly_and_continues_later(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "run.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No space is left" in done.stdout
    assert "free some space" in done.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a tiny disk")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk(tiny_disk: Path, make: Any) -> None:
    store = Store(tiny_disk / "run.zarr")
    ledger = Ledger(tiny_disk / "ledger.jsonl")
    whole = [make.publish(store, k, n=50, atoms=64) for k in range(3)]
    ledger.append([make.record(k) for k in range(3)])
    ballast = tiny_disk / "ballast"
    free = os.statvfs(tiny_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 2**16))
    with pytest.raises(DiskFull, match="free some space"):
        make.publish(store, 3, n=50, atoms=64)
    assert list(store.aside.iterdir()) == []
    assert sorted(Store(store.path).scan()) == sorted(whole)
    with pytest.raises(DiskFull):
        ledger.append([make.record(3)] * 1000)
    assert [r["task"] for r in read_ledger(ledger.path)] == whole
    ballast.unlink()
    task = make.publish(store, 3, n=50, atoms=64)
    make.same(store.frames("sample", task), make.frames(3, 50, 64))
    ledger.append([make.record(3)])
    ledger.close()
    assert len(read_ledger(ledger.path)) == 4


# -- schema ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"schema": 99, "writer": "campaign"}, "a newer version of campaign.*Use that version"),
        ({"schema": 0, "writer": "campaign"}, "an older version of campaign.*Use that version"),
        ({"title": "something else"}, "not written by campaign.*--root"),
    ],
)
def test_store_of_another_version_is_refused_and_left_alone(tmp_path: Path, attributes: Any, message: str) -> None:
    from campaign.store.rundir import RunDirectory

    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    before = tree(path)
    for _ in range(2):  # the lock is given back
        with pytest.raises(StoreError, match=message):
            RunDirectory(tmp_path)
    assert tree(path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"run.zarr", "driver.lock"}


def test_folder_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    before = tree(path)
    with pytest.raises(StoreError, match="--root"):
        Store(path)
    assert tree(path) == before


def test_store_whose_making_was_killed_is_made(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / ".zarr.json").write_text("{")
    assert Store(path).scan() == {}
    assert zarr.open_group(path, mode="r").attrs["schema"] == 1


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_store_of_an_older_version_reads_with_nothing_in_the_arrays_it_does_not_have(
    tmp_path: Path, make: Any
) -> None:
    store = Store(tmp_path / "run.zarr")
    task = make.publish(store, 1)
    frames = make.frames(1)
    kept = set(groups.read_arrays(store.path / "pool" / task))
    assert kept == set(LAYOUT) - set(ADDED)  # as an older version wrote it
    found = Store(store.path).frames("sample", task)
    make.same(found, frames)
    assert np.isnan(found.energies).all()
    assert found.energies.shape == (5, 8)
    make.same(store.frames("sample", task, [3, 1]), frames[[3, 1]])
    shutil.rmtree(store.path / "pool" / task / "forces")  # but what every version writes is never made up
    with pytest.raises(StoreError, match="forces"):
        Store(store.path).frames("sample", task)


def test_arrays_are_kept_as_soon_as_they_hold_a_number(tmp_path: Path, make: Any) -> None:
    store = Store(tmp_path / "run.zarr")
    frames = make.frames(1)
    frames = frames.with_(energies=np.ones_like(frames.energies), weight=np.array([np.nan, 1, 2, 3, 4]))
    chain = [make.record(k) for k in (1, 2)]
    for record in chain:
        store.publish(record, dict(frames.arrays()))
    for _ in range(2):
        for record in chain:
            make.same(Store(store.path).frames("sample", record["task"]), frames)
        store.pack("sample", [[r["task"] for r in chain]])


def test_short_columns_lie_in_the_attributes_and_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "group"
    short = {
        "energy": np.array([-0.1 / 3, 1e-310]),
        "single": np.array([0.1, 7.0], np.float32),
        "task": np.array([2**64 - 1, 0], np.uint64),
        "step": np.array([-(2**62), 1]),
        "flag": np.array([True, False]),
    }
    long = {
        "cell": np.eye(3)[None],
        "weight": np.array([np.nan, 1.0]),  # JSON knows no NaN
        "many": np.arange(groups.SHORT + 1),
        "none": np.zeros(0),
        "number": np.array(3.5),
    }
    groups.write_group(path, short | long, {"record": 1})
    assert {p.name for p in path.iterdir() if p.is_dir()} == set(long)
    found = groups.read_arrays(path)
    for name, value in (short | long).items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name
    assert groups.read_arrays(path, ("step",), slice(1, 2))["step"].tolist() == [1]
    assert groups.read_arrays(path, ("energy", "weight"), np.array([1, 0]))["weight"][0] == 1.0
    assert groups.found(path, ("energy", "cell", "absent")) == {"energy", "cell"}
    found["energy"][0] = 9.0  # what one reader does to its copy no other sees
    assert groups.read_arrays(path, ("energy",))["energy"][0] == -0.1 / 3
    assert zarr.open_group(path, mode="r").attrs["columns"]["step"] == ["int64", [-(2**62), 1]]
    with pytest.raises(StoreError, match="absent"):
        groups.read_arrays(path, ("absent",))


def test_results_of_quick_tasks_share_flushes_and_none_is_left_unflushed(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "FLUSH_EVERY", 3600.0)
    flushed: list[Path] = []
    real = groups.flush
    monkeypatch.setattr(groups, "flush", lambda path: (flushed.append(path), real(path)))
    with rundir.RunDirectory(tmp_path) as directory:
        flushed.clear()
        for k in range(5):
            make.publish(directory.store, k)
            directory.keep([make.record(k)])
        pool = directory.store.path / "pool"
        assert flushed.count(pool) == 1  # the first at once
        directory.flush(3600.0)
        assert flushed.count(pool) == 1
        lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
        assert len(lines) == 5  # a kill takes none with it
    assert flushed.count(pool) == 2
