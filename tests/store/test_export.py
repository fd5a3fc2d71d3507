"""Exports: other programs read the same numbers, in their own conventions, with the frames' ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ase import Atoms
from ase.db import connect
from ase.io import read

from campaign.errors import DiskFull, InputError
from campaign.flow import Flow, History
from campaign.frames import LAYOUT, Frames
from campaign.results.export import export
from campaign.store.export import WRITERS
from campaign.store.store import Store


@pytest.fixture
def blocks(make: Any) -> list[Frames]:
    unlabelled = make.frames(2, 2, 8).with_(
        energy=np.full(2, np.nan), forces=np.full((2, 8, 3), np.nan), stress=np.full((2, 3, 3), np.nan)
    )
    return [make.frames(0, 3, 8), make.frames(1, 2, 5), unlabelled]


def check(atoms: Atoms, block: Frames, k: int, exact: bool) -> None:
    close = np.testing.assert_array_equal if exact else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7)
    assert atoms.pbc.all()
    close(atoms.numbers, block.numbers[k])
    close(atoms.positions, block.positions[k])
    close(atoms.cell[:], block.cell[k])
    if np.isnan(block.energy[k]):
        assert atoms.calc is None
        return
    close(atoms.get_potential_energy(), block.energy[k])
    close(atoms.get_forces(), block.forces[k])
    xx, yy, zz, yz, xz, xy = atoms.get_stress()
    close(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]), block.stress[k])


def frames_of(blocks: list[Frames]) -> list[tuple[Frames, int]]:
    return [(block, k) for block in blocks for k in range(len(block))]


def test_extxyz(tmp_path: Path, blocks: list[Frames]) -> None:
    to = tmp_path / "pool.extxyz"
    assert WRITERS[".extxyz"](iter(blocks), to, {blocks[1].ids[1]: "two atoms too close"}) == 7
    images = read(to, ":")
    for atoms, (block, k) in zip(images, frames_of(blocks), strict=True):
        check(atoms, block, k, exact=False)
        assert atoms.info["frame"] == block.ids[k]
        assert (atoms.info["walker"], atoms.info["step"]) == (block.walker[k], block.step[k])
        assert atoms.info["set_temperature"] == 300
    assert [a.info.get("reason") for a in images] == [None] * 4 + ["two atoms too close"] + [None] * 2
    assert [p.name for p in tmp_path.iterdir()] == [to.name]


def test_ase_db(tmp_path: Path, blocks: list[Frames]) -> None:
    to = tmp_path / "pool.db"
    assert WRITERS[".db"](iter(blocks), to, {blocks[0].ids[2]: "why"}) == 7
    with connect(to) as database:
        rows = list(database.select())
        for row, (block, k) in zip(rows, frames_of(blocks), strict=True):
            check(row.toatoms(), block, k, exact=True)
            assert row.data["frame"] == block.ids[k]
            assert (row.walker, row.step, row.set_temperature) == (block.walker[k], block.step[k], 300)
        assert rows[2].data["reason"] == "why"
        assert len(list(database.select(step=100))) == 3
    assert [p.name for p in tmp_path.iterdir()] == [to.name]


def test_zarr(tmp_path: Path, blocks: list[Frames]) -> None:
    to = tmp_path / "pool.zarr"
    assert WRITERS[".zarr"](iter(blocks), to, {blocks[0].ids[0]: "why"}) == 7
    root = zarr.open_group(to, mode="r")
    assert root.attrs["reasons"] == {blocks[0].ids[0]: "why"}
    for a, wanted in ((8, Frames.concat([blocks[0], blocks[2]])), (5, blocks[1])):
        found = Frames(**{name: np.asarray(root[f"atoms-{a}/{name}"]) for name in LAYOUT})
        assert found.ids == wanted.ids
        for name, value in wanted.arrays():
            assert getattr(found, name).tobytes() == value.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == [to.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_nothing_is_left_of_a_broken_export(tmp_path: Path, blocks: list[Frames], suffix: str) -> None:
    def full() -> Any:
        yield blocks[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull):
        WRITERS[suffix](full(), tmp_path / f"pool{suffix}", {})
    assert WRITERS[suffix](iter(()), tmp_path / f"none{suffix}", {}) == 0
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    flow, store = Flow([], History()), Store(tmp_path / "run.zarr")
    there = tmp_path / "there.extxyz"
    there.write_text("precious")
    for what, to, message in [
        ("pool", there, "there already"),
        ("pool", tmp_path / "pool.cfg", "ending in .extxyz, .db, .zarr"),
        ("pool", tmp_path / "no" / "pool.db", "no folder"),
        ("everything", tmp_path / "all.db", "one of pool, selected, labelled, rejected"),
        ("pool", tmp_path / "pool.db", "no pool frames yet"),
    ]:
        with pytest.raises(InputError, match=message):
            export(flow, store, what, to)
    assert there.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"run.zarr", "there.extxyz"}


def test_energies_of_atoms_and_the_bias_are_written_where_they_are_known(tmp_path: Path, make: Any) -> None:
    energies = np.random.default_rng(0).normal(size=(3, 8))
    known = make.frames(0, 3, 8).with_(energies=energies, weight=np.array([-1.5, -2.5, -3.5]))
    blocks = [known, make.frames(1, 2, 8)]
    assert WRITERS[".extxyz"](iter(blocks), tmp_path / "pool.extxyz", {}) == 5
    images = read(tmp_path / "pool.extxyz", ":")
    for k in range(3):
        np.testing.assert_allclose(images[k].calc.results["energies"], energies[k], atol=1e-7)
    assert [a.info.get("weight") for a in images] == [-1.5, -2.5, -3.5, None, None]
    assert "energies" not in images[3].calc.results
    assert WRITERS[".db"](iter(blocks), tmp_path / "pool.db", {}) == 5
    with connect(tmp_path / "pool.db") as database:
        rows = list(database.select())
    np.testing.assert_array_equal(rows[1].data["energies"], energies[1])
    assert rows[1].weight == -2.5
    assert "energies" not in rows[3].data
    assert "weight" not in rows[3]
