"""A campaign whose pool is a file: read in place, resumed from the run directory alone, and never read once changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from campaign.config import load_campaign, load_site
from campaign.errors import InputError
from campaign.pipeline import Options, export_of, run, status_of, survey
from campaign.plan import make_plan
from campaign.runtime.runner import InlineRunner
from campaign.store.ledger import read_ledger
from campaign.store.rundir import open_existing
from campaign.store.store import Store

POTENTIALS = Path(__file__).parents[2] / "templates" / "potentials"

TEXT = """
campaign: old
seed: 2
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4, supercell: [2, 2, 2]}
sample:
  - {method: file, file: old.extxyz, every: 2, segment: 5}
select: {method: random, size: 8}
label: {engine: lammps, potential: {lammps: ar_lj.lmp}}
"""

pytestmark = pytest.mark.lammps


def images() -> list[Atoms]:
    """Return 60 shaken crystals of 32 atoms, and of 48 in the middle."""
    rng = np.random.default_rng(7)
    found = [bulk("Ar", "fcc", a=5.4, cubic=True) * ((3, 2, 2) if 25 <= k < 35 else (2, 2, 2)) for k in range(60)]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "ar_lj.lmp").write_text((POTENTIALS / "ar_lj.lmp").read_text().replace("13.0", "8.0"))
    write(folder / "old.extxyz", images())
    (folder / "old.yaml").write_text(TEXT)
    return folder / "old.yaml"


def go(file: Path, path: Path, **options: object) -> dict[str, object]:
    return run(load_campaign(file), load_site("local"), path, Options(inline=True, **options))  # type: ignore[arg-type]


def pool(path: Path) -> list[str]:
    """Return the tasks of the pool."""
    return [s.task.id for s in survey(path)[0].board.shards]


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, file: Path, path: Path) -> None:
    """Run until ``count`` tasks came back, and stop there as a killed driver would."""
    wait, seen = InlineRunner.wait, []

    def counted(self, seconds):  # type: ignore[no-untyped-def]
        if len(seen) >= count:
            raise KeyboardInterrupt
        seen.extend(records := wait(self, seconds))
        return records

    with monkeypatch.context() as patch:
        patch.setattr(InlineRunner, "wait", counted)
        with pytest.raises(KeyboardInterrupt):
            go(file, path)


def test_frames_of_a_file_are_selected_and_labelled(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    plan = make_plan(file, "local")
    status = go(file, path)
    assert status["state"] == "done"
    assert (status["frames"], status["selected"], status["labelled"]) == (30, 8, 8)
    assert plan["frames"] == 30
    assert {s["stage"]: s["tasks"] for s in plan["stages"]} == {"sample": 7, "select": 1, "label": 8}
    assert status["stages"]["sample"]["total"] == 7  # type: ignore[index]
    assert not (path / "old.extxyz").exists()  # it is read in place
    inputs = json.loads((path / "run.zarr/campaign/zarr.json").read_text())["attributes"]["files"]
    assert set(inputs) == {"ar_lj.lmp", "frame_files.json"}
    assert export_of(path, "pool", tmp_path / "pool.extxyz") == 30
    for atoms, right in zip(read(tmp_path / "pool.extxyz", ":"), images()[::2], strict=True):
        np.testing.assert_allclose(atoms.positions, right.positions, atol=1e-6)
    before = read_ledger(path / "ledger.jsonl")
    assert go(file, path)["state"] == "done"
    assert read_ledger(path / "ledger.jsonl") == before


def test_goes_on_from_the_store_alone_and_ends_as_if_it_had_not_stopped(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    go(file, whole)
    killed_after(3, monkeypatch, file, part)
    alone = tmp_path / "alone"
    shutil.copytree(part / "run.zarr", alone / "run.zarr")
    shutil.rmtree(part)
    file.unlink()  # all but the frames themselves is in the store
    path = open_existing(alone / "run.zarr")
    assert go(path / "campaign.yaml", path)["state"] == "done"
    one, other = (survey(p)[0].board.sets["random"].chosen for p in (whole, path))
    assert one == other
    assert pool(path) == pool(whole)


def test_a_file_that_changed_or_vanished_stops_the_run_before_it_starts(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames = tmp_path / "run", file.parent / "old.extxyz"
    killed_after(3, monkeypatch, file, path)
    content, first = frames.read_bytes(), pool(path)
    ledger = read_ledger(path / "ledger.jsonl")
    frames.write_bytes(content.replace(b"Ar ", b"Kr ", 1))
    with pytest.raises(
        InputError, match=r"sample\[0\].file: .*old.extxyz has changed since.*4 of its 7 shards are still"
    ):
        go(path / "campaign.yaml", path)
    frames.unlink()
    with pytest.raises(InputError, match=r"old.extxyz is not there any more.*put the file back as it was"):
        go(path / "campaign.yaml", path)
    assert status_of(path)["frames"] == 13  # what is there can be looked at
    assert read_ledger(path / "ledger.jsonl") == ledger
    frames.write_bytes(content)
    os.utime(frames, ns=(1, 1))  # put back from a copy: the same content at another time
    assert go(path / "campaign.yaml", path)["state"] == "done"
    assert pool(path) == first
    frames.unlink()
    assert go(path / "campaign.yaml", path)["state"] == "done"  # all of it was read


def test_a_changed_file_is_another_pool(file: Path, tmp_path: Path) -> None:
    path, frames = tmp_path / "run", file.parent / "old.extxyz"
    go(file, path)
    first = pool(path)
    frames.write_bytes(frames.read_bytes().replace(b"0\n", b"1\n", 1))
    assert go(file, path)["state"] == "done"
    assert not set(pool(path)) & set(first)
    assert status_of(path)["frames"] == 30


def test_the_pool_of_another_run_and_an_export_are_sampled_beside_new_frames(file: Path, tmp_path: Path) -> None:
    go(file, file.parent / "first", until="sample")
    export_of(file.parent / "first", "pool", file.parent / "pool.zarr")
    export_of(file.parent / "first", "pool", file.parent / "pool.db")
    entries = """
  - {method: file, file: first/run.zarr, segment: 8}
  - {method: file, file: pool.zarr, every: 3}
  - {method: file, file: pool.db}
  - {method: fake, frames: 6, segment: 3}
"""
    text = TEXT.replace("\n  - {method: file, file: old.extxyz, every: 2, segment: 5}\n", entries)
    (file.parent / "next.yaml").write_text(text)
    assert go(file.parent / "next.yaml", tmp_path / "next")["state"] == "done"
    store, tasks = Store(tmp_path / "next/run.zarr"), pool(tmp_path / "next")
    by_entry: dict[str, list[Atoms]] = {}
    for shard in survey(tmp_path / "next")[0].board.shards:
        by_entry.setdefault(shard.task.name.split("/")[0], []).extend(store.frames("sample", shard.task.id).to_ase())
    assert {k: len(v) for k, v in by_entry.items()} == {"file": 30, "file1": 10, "file2": 30, "fake3": 6}
    assert len(set(tasks)) == len(tasks)
    for name in ("file", "file2"):
        for atoms, right in zip(by_entry[name], images()[::2], strict=True):
            np.testing.assert_allclose(atoms.positions, right.positions, atol=1e-6)


def test_another_run_that_went_on_gives_its_new_frames_and_keeps_the_old(file: Path, tmp_path: Path) -> None:
    source, target = file.parent / "first.yaml", file.parent / "next.yaml"
    fake = TEXT.replace(
        "{method: file, file: old.extxyz, every: 2, segment: 5}", "{method: fake, frames: 9, segment: 3}"
    )
    source.write_text(fake)
    target.write_text(TEXT.replace("file: old.extxyz, every: 2, segment: 5", "file: first/run.zarr"))
    go(source, file.parent / "first", until="sample")
    go(target, tmp_path / "next")
    before = pool(tmp_path / "next")
    source.write_text(fake.replace("frames: 9", "frames: 15"))
    go(source, file.parent / "first", until="sample")
    assert go(tmp_path / "next/campaign.yaml", tmp_path / "next")["frames"] == 9  # what a run began with stays
    assert go(target, tmp_path / "next")["frames"] == 15
    assert pool(tmp_path / "next")[:3] == before
