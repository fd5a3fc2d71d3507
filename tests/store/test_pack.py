"""Packing: the same frames by the same ids, in few files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from campaign.errors import StoreError
from campaign.frames import Frames
from campaign.store import groups, packs
from campaign.store.store import Store


def files(path: Path) -> int:
    return sum(p.is_file() for p in path.rglob("*"))


def test_same_frames_by_id_before_and_after(tmp_path: Path, make: Any) -> None:
    first = Store(tmp_path / "run.zarr")
    sizes = [(2 + k % 5, (8, 5)[k // 6]) for k in range(12)]
    ids = [make.publish(first, k, n, atoms) for k, (n, atoms) in enumerate(sizes)]
    by_id = {f: b[k : k + 1] for t in ids for b in [first.frames("sample", t)] for k, f in enumerate(b.ids)}
    records = first.scan()
    assert first.pack("sample", [ids[:3], ids[3:6], ids[6:]]) == 12
    packs = [p.name for p in groups.subgroups(first.path / "pool")]
    assert len(packs) == 2, "one for each number of atoms"
    for reader in (first, Store(first.path)):
        assert reader.scan() == records
        for frame, wanted in by_id.items():
            task, index = frame.split(":")
            make.same(reader.frames("sample", task, [int(index)]), wanted)
        for k, (n, atoms) in enumerate(sizes):
            make.same(reader.frames("sample", ids[k]), make.frames(k, n, atoms))
            assert reader.checkpoint(ids[k])["state"].tolist() == [k, n] if k in (2, 5, 11) else True
    checkpoints = {p.name for p in groups.subgroups(first.path / "checkpoints")}
    assert checkpoints == {f"from-{ids[k]}" for k in (2, 5, 11)}
    assert zarr.open_group(first.path / "pool" / packs[0], mode="r")["positions"].shape[1:] == (8, 3)


def test_frame_beyond_its_task_is_not_its_neighbours(tmp_path: Path, make: Any) -> None:
    packed = Store(tmp_path / "run.zarr")
    ids = [make.publish(packed, k) for k in range(3)]
    packed.pack("sample", [ids])
    for wrong in (5, -1):
        with pytest.raises(StoreError, match="frames 0 to 4"):
            packed.frames("sample", ids[1], [wrong])


def test_more_tasks_after_a_first_packing(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "run.zarr"
    ids = [make.publish(Store(path), k) for k in range(3)]
    Store(path).pack("sample", [ids])
    ids += [make.publish(Store(path), k) for k in range(3, 7)]
    fresh = Store(path)  # one that has not looked what there is
    assert fresh.pack("sample", [ids]) == 4
    assert Store(path).pack("sample", [ids]) == 0
    assert sorted(Store(path).scan()) == sorted(ids)
    for k, task in enumerate(ids):
        make.same(Store(path).frames("sample", task), make.frames(k))


def test_late_orphan_of_a_packed_task_changes_nothing(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "run.zarr"
    ids = [make.publish(Store(path), k) for k in range(3)]
    Store(path).pack("sample", [ids])
    make.publish(Store(path), 1)  # a process of a killed driver ends now
    again = Store(path)
    assert sorted(again.scan()) == sorted(ids)
    assert again.pack("sample", [ids]) == 0
    assert [p.name for p in groups.subgroups(path / "pool")] == [f"pack-{ids[0]}-{ids[2]}"]
    assert [p.name for p in groups.subgroups(path / "checkpoints")] == [f"from-{ids[2]}"]


def test_reader_goes_on_while_a_driver_packs(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export runs beside the driver: what it is about to read is packed under its hands."""
    path = tmp_path / "run.zarr"
    ids = [make.publish(Store(path), k) for k in range(3)]
    reader = Store(path)
    reader.scan()
    read = groups.read_arrays
    calls = []

    def late(*args: Any) -> Any:
        if not calls:
            calls.append(args)
            monkeypatch.setattr(groups, "read_arrays", read)
            Store(path).pack("sample", [ids])
        return read(*args)

    monkeypatch.setattr(groups, "read_arrays", late)
    make.same(reader.frames("sample", ids[1]), make.frames(1))
    assert calls


def test_packs_are_limited_in_bytes(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Store(tmp_path / "run.zarr")
    ids = [make.publish(packed, k, n=10) for k in range(9)]
    one = sum(v.nbytes for _, v in make.frames(0, 10).arrays())
    monkeypatch.setattr(packs, "PACK_BYTES", 4 * one)
    assert packed.pack("sample", [ids]) == 8  # 4 + 4, and one alone stays as it is
    assert len(list(groups.subgroups(packed.path / "pool"))) == 3
    for k, task in enumerate(ids):
        make.same(packed.frames("sample", task), make.frames(k, 10))


def test_results_without_a_common_length_stay_as_they_are(tmp_path: Path, make: Any) -> None:
    packed = Store(tmp_path / "run.zarr")
    ids = []
    for k in range(3):
        record = make.record(k, "train")
        packed.publish(record, {"weights": np.ones(3 + k), "history": np.ones((2, 3)), "loss": np.array(1.0)})
        ids.append(record["task"])
    assert packed.pack("train", [ids]) == 0
    assert packed.arrays("train", ids[1])["weights"].shape == (4,)


def test_few_files(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 200 files for 1e5 frames of 64 atoms, sampled by 4 walkers in segments of 256 frames."""
    monkeypatch.setattr("os.fsync", lambda _fd: None)
    packed = Store(tmp_path / "run.zarr")
    chains: list[list[str]] = [[] for _ in range(4)]
    frames, wanted = 0, 20_000
    number = 0
    rng = np.random.default_rng(1)
    positions, forces = rng.normal(size=(2, 256, 64, 3))
    while frames < wanted:
        task = make.task(number)
        block = Frames.build(
            np.arange(64) % 2 + 11, positions + number, np.eye(3), energy=number, forces=forces, task=task.number
        )
        packed.publish(make.record(number), dict(block.arrays()), {"restart": np.zeros(5000, dtype="uint8")})
        chains[number % 4].append(task.id)
        frames += len(block)
        number += 1
    before = files(packed.path)
    assert packed.pack("sample", chains) == number
    after = files(packed.path)
    assert before > 25 * number
    assert after <= 200 * frames / 1e5, f"{after} files for {frames} frames"
    assert sum(len(b) for chain in chains for b in Store(packed.path).stream("sample", chain)) == frames


def test_frames_with_steps_of_a_failure_beside_them_are_read_by_index_and_stay_as_they_are(
    tmp_path: Path, make: Any
) -> None:
    """A walker that failed leaves arrays of another length beside its frames: its frames are frames all the same."""
    there = Store(tmp_path / "run.zarr")
    ids = [make.publish(there, k) for k in range(2)]
    arrays = {**dict(make.frames(2).arrays()), "before.0.positions": np.zeros((21, 8, 3))}
    there.publish(make.record(2), arrays)
    failed = make.task(2).id
    place = there.locate("sample", failed)
    assert place.stop - place.start == 5
    assert there.pack("sample", [[*ids, failed]]) == 2
    for reader in (there, Store(there.path)):
        make.same(reader.frames("sample", failed, [3]), make.frames(2)[3:4])
        make.same(reader.frames("sample", failed), make.frames(2))
        assert reader.arrays("sample", failed)["before.0.positions"].shape == (21, 8, 3)
