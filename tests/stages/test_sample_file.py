"""Sampling from a file: independent shards of one atom count, known by the content of the file and not by its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from campaign.config.campaign_file import FileSample
from campaign.engines.frame_format import WrongFrames
from campaign.frames import Frames
from campaign.stages import sample_file
from campaign.stages.sample_file import Source, chains, look, work_file
from campaign.store.export import WRITERS
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record

SIZES = [1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1]


def images() -> list[Atoms]:
    rng = np.random.default_rng(1)
    found = [bulk("Ar", "fcc", a=5.3, cubic=True) * (k, 1, 1) for k in SIZES]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write(tmp_path / "old.extxyz", images(), format="extxyz")
    return tmp_path / "old.extxyz"


def spec(path: Path, **keys: object) -> FileSample:
    return FileSample.model_validate({"method": "file", "file": path.name, **keys})


def planned(source: Source) -> list[Task]:
    assert all(len(chain) == 1 for chain in chains(source))
    return [task for ((task, _),) in chains(source)]


def test_shards_are_runs_of_one_atom_count(old: Path) -> None:
    source = look(old, 0, spec(old, segment=3))
    assert [(s.start, s.stop, s.atoms) for s in source.shards] == [
        (0, 3, 4),
        (3, 5, 4),
        (5, 7, 8),
        (7, 10, 4),
        (10, 11, 4),
    ]
    assert (source.frames, source.species) == (11, ["Ar"])
    assert [n for ((_, n),) in chains(source)] == [3, 2, 2, 3, 1]
    assert all(task.inputs == () for task in planned(source))


def test_every_so_many_th_frame_is_kept_through_the_whole_file(old: Path) -> None:
    kept = []
    for task in planned(look(old, 0, spec(old, segment=2, every=3))):
        found = Frames(**work_file(task, Context(old.parent)).arrays)  # type: ignore[arg-type]
        assert found.task.tolist() == [task.number] * len(found)
        assert found.index.tolist() == list(range(len(found)))
        kept += found.to_ase()
    wanted = images()[::3]
    assert len(kept) == len(wanted) == 4
    for atoms, right in zip(kept, wanted, strict=True):
        np.testing.assert_allclose(atoms.positions, right.positions, atol=1e-7)


def test_the_content_decides_the_ids_and_the_place_does_not(old: Path, tmp_path: Path) -> None:
    ids = [t.id for t in planned(look(old, 0, spec(old)))]
    (tmp_path / "other").mkdir()
    moved = shutil.copy(old, tmp_path / "other/new.extxyz")
    assert [t.id for t in planned(look(Path(moved), 0, spec(old)))] == ids
    assert not set(ids) & {t.id for t in planned(look(old, 1, spec(old)))}  # twice in a campaign is twice in its pool
    assert not set(ids) & {t.id for t in planned(look(old, 0, spec(old, every=2)))}
    text = old.read_text()
    old.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    assert not set(ids) & {t.id for t in planned(look(old, 0, spec(old)))}


def test_a_note_can_be_kept_as_json(old: Path) -> None:
    import json

    source = look(old, 2, spec(old, segment=3))
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source
    assert source.is_of(2, spec(old, segment=3))
    assert not source.is_of(2, spec(old, segment=4))
    assert source.fault() is None


def test_a_worker_does_not_read_a_file_that_changed_or_vanished(old: Path, do_sample) -> None:  # type: ignore[no-untyped-def]
    source = look(old, 0, spec(old))
    task = planned(source)[0]
    os.utime(old, ns=(1, 1))
    record = do_sample(old.parent, task)
    assert (record["state"], record["transient"]) == ("failed", True)
    assert "has changed since the campaign was planned: put it back" in record["cause"]
    assert "has changed" in str(source.fault())
    old.unlink()
    record = do_sample(old.parent, task)
    assert (record["state"], record["transient"]) == ("failed", True)
    assert "not there any more" in record["cause"]
    assert "not there any more" in str(source.fault())


def test_a_frame_that_cannot_be_taken_is_that_shards_failure(old: Path, do_sample) -> None:  # type: ignore[no-untyped-def]
    lines = old.read_text().splitlines()
    lines[2 + 6 * 3] = "Ar 0 0 nan"  # an atom of frame 3
    old.write_text("\n".join(lines) + "\n")
    tasks = planned(look(old, 0, spec(old, segment=2)))
    records = [do_sample(old.parent, task) for task in tasks]
    assert [r["state"] for r in records].count("failed") == 1
    assert records[1]["cause"].startswith("the positions of frame 3 are not finite")
    assert not records[1]["transient"]


@pytest.fixture
def do_sample():  # type: ignore[no-untyped-def]
    """Return a function that does a task as a worker would."""
    from campaign.worker import do_task

    return lambda folder, task: do_task(task, Context(folder))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.xyz").write_text("")
    with pytest.raises(WrongFrames, match="no frames"):
        look(tmp_path / "old.xyz", 0, spec(tmp_path / "old.xyz"))


@pytest.mark.parametrize("kind", ["export", "run"])
def test_zarr_stores_give_the_frames_of_their_tasks(tmp_path: Path, kind: str) -> None:
    blocks = [Frames.from_ase([a]) for a in images()[:5]]
    if kind == "export":
        path = tmp_path / "out.zarr"
        WRITERS[".zarr"](iter(blocks), path, {})
    else:
        path = tmp_path / "other/run.zarr"
        for k, block in enumerate(blocks):
            task = Task("sample", f"npt/walker 0/segment {k}", {"k": k})
            Store(path).publish(new_record(task, 0), dict(block.arrays()))
    entry = spec(path, every=2, segment=2)
    source = look(path, 0, entry)
    found = [Frames(**work_file(t, Context(tmp_path)).arrays) for t in planned(source)]  # type: ignore[arg-type]
    assert source.frames == 3
    positions = np.concatenate([f.positions for f in found])
    np.testing.assert_array_equal(positions, np.concatenate([b.positions for b in blocks[::2]]))
    if kind == "run":  # the other run goes on: what was there keeps its name and is not "changed"
        ids = [t.id for t in planned(source)]
        task = Task("sample", "npt/walker 0/segment 5", {"k": 5})
        Store(path).publish(new_record(task, 0), dict(Frames.from_ase(images()[4:5]).arrays()))
        assert source.fault() is None
        again = look(path, 0, entry)
        assert [t.id for t in planned(again)] == ids
        assert look(path, 0, spec(path)).frames == 6
        assert sample_file.stamp(path) == []
