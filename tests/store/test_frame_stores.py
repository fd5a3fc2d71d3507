"""Frames out of Zarr stores that campaign wrote: an export, and the pool of another run, packed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from campaign.errors import StoreError
from campaign.frames import Frames
from campaign.store import frame_stores
from campaign.store.export import WRITERS
from campaign.store.store import Store
from campaign.tasks import Task, new_record


def frames(n: int, a: int, seed: int) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames.build(
        rng.integers(1, 90, (n, a)),
        rng.normal(size=(n, a, 3)),
        rng.normal(size=(n, 3, 3)),
        energy=rng.normal(size=n),
        step=10 * np.arange(n),
        temperature=300.0,
    )


def same(one: Frames, other: Frames) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True) for (_, a), (_, b) in zip(one.arrays(), other.arrays(), strict=True)
    )


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Frames]]:
    """Return a run.zarr with two walkers of two and eleven segments, and its frames by task in their order."""
    store, made = Store(tmp_path / "run.zarr"), {}
    for walker, segments in ((0, 2), (10, 1), (2, 11)):
        for k in range(segments):
            task = Task("sample", f"npt/walker {walker}/segment {k}", {"walker": walker, "k": k})
            block = frames(3 + k % 2, 4 + walker, k)
            store.publish(new_record(task, 0), dict(block.arrays()))
            made[walker, k] = (task.id, block)
    label = Task("label", "fake/x", {})
    store.publish(new_record(label, 0), dict(frames(1, 4, 9).arrays()))  # labels are no frames of the pool
    return tmp_path / "run.zarr", {task: block for _, (task, block) in sorted(made.items())}


def test_the_pool_of_a_run_comes_walker_by_walker_and_segment_by_segment(run: tuple[Path, dict[str, Frames]]) -> None:
    path, made = run
    parts = frame_stores.scan(path)
    assert [(p.where, p.digest, p.atoms, p.frames) for p in parts] == [
        (task, task, block.n_atoms, len(block)) for task, block in made.items()
    ]
    for task, block in made.items():
        assert same(frame_stores.read(path, task, range(1, 3)), block[1:3])
        assert same(frame_stores.read(path, task, range(0, 3, 2)), block[0:3:2])


def test_packing_a_run_changes_nothing(run: tuple[Path, dict[str, Frames]]) -> None:
    path, made = run
    parts = frame_stores.scan(path)
    assert Store(path).pack("sample", [[t] for t in made]) > 0
    assert frame_stores.scan(path) == parts
    for task, block in made.items():
        assert same(frame_stores.read(path, task, range(0, len(block), 2)), block[::2])


def test_an_export_keeps_its_frames_and_has_one_hash(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    blocks = [frames(3, 12, 1), frames(4, 4, 2), frames(2, 12, 3)]
    assert WRITERS[".zarr"](iter(blocks), path, {}) == 9
    parts = frame_stores.scan(path)
    assert [(p.where, p.atoms, p.frames) for p in parts] == [("atoms-4", 4, 4), ("atoms-12", 12, 5)]
    assert len({p.digest for p in parts}) == 1
    assert same(frame_stores.read(path, "atoms-12", range(1, 5, 2)), Frames.concat([blocks[0], blocks[2]])[1:5:2])
    stamp = frame_stores.stamp(path)
    other = tmp_path / "other.zarr"
    WRITERS[".zarr"](iter([blocks[0], blocks[1], blocks[2].with_(energy=blocks[2].energy + 1e-9)]), other, {})
    assert frame_stores.scan(other)[0].digest != parts[0].digest
    assert frame_stores.stamp(path) == stamp != frame_stores.stamp(other)


def test_an_export_of_an_older_version_lacks_arrays_and_is_read(tmp_path: Path) -> None:
    import shutil

    block = frames(3, 4, 1)
    WRITERS[".zarr"](iter([block]), tmp_path / "out.zarr", {})
    for name in ("energies", "order", "bias", "weight", "scale"):
        shutil.rmtree(tmp_path / "out.zarr/atoms-4" / name, ignore_errors=True)
    assert same(frame_stores.read(tmp_path / "out.zarr", "atoms-4", range(3)), block)


def test_what_is_not_campaigns_is_refused(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="not written by campaign; convert"):
        frame_stores.scan(tmp_path / "other.zarr")
    (tmp_path / "none.zarr").mkdir()
    with pytest.raises(StoreError, match="not a Zarr store"):
        frame_stores.scan(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="not there any more"):
        frame_stores.read(tmp_path / "gone.zarr", "atoms-4", range(2))
    assert not (tmp_path / "gone.zarr").exists()
    assert list((tmp_path / "none.zarr").iterdir()) == []
