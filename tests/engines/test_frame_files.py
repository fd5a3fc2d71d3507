"""Frames of other programs' files: looked through without parsing, read a few at a time, and refused with a remedy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import Trajectory, read, write

from campaign.engines.frame_files import FORMATS, scan
from campaign.engines.frame_files import read as read_frames
from campaign.engines.frame_format import Stretch, WrongFrames
from campaign.errors import EngineError

rng = np.random.default_rng(3)


def crystal(repeat: int = 2, labelled: bool = True, triclinic: bool = False) -> Atoms:
    """Return shaken rocksalt with made-up labels."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, 1, 1)
    if triclinic:
        cell = np.array(atoms.cell)
        cell[1, 0], cell[2, 0], cell[2, 1] = 0.7, -0.6, 0.9
        atoms.set_cell(cell, scale_atoms=True)
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    if labelled:
        n = len(atoms)
        stress = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(n, 3)), stress=stress)
    return atoms


def to_xyz(path: Path, images: list[Atoms]) -> None:
    write(path, images, format="extxyz")


def to_traj(path: Path, images: list[Atoms]) -> None:
    with Trajectory(path, "w") as file:
        for atoms in images:
            file.write(atoms)


def to_db(path: Path, images: list[Atoms]) -> None:
    with connect(path) as database:
        for atoms in images:
            database.write(atoms)


WRITERS = {".extxyz": to_xyz, ".xyz": to_xyz, ".traj": to_traj, ".db": to_db}


def dump(
    images: list[Atoms], columns: str = "id type x y z fx fy fz", origin: float = 0.0, shuffle: bool = True
) -> str:
    """Return a LAMMPS dump, written down from LAMMPS's documentation and not from the reader."""
    text = []
    for k, atoms in enumerate(images):
        (lx, _, _), (xy, ly, _), (xz, yz, lz) = np.array(atoms.cell)
        tilted = bool(xy or xz or yz)
        low = [origin + min(0, xy, xz, xy + xz), origin + min(0, yz), origin]
        high = [origin + lx + max(0, xy, xz, xy + xz), origin + ly + max(0, yz), origin + lz]
        text += ["ITEM: TIMESTEP", f"{100 * k}", "ITEM: NUMBER OF ATOMS", f"{len(atoms)}"]
        text += [f"ITEM: BOX BOUNDS {'xy xz yz ' if tilted else ''}pp pp pp"]
        tilts = [f" {t!r}" for t in map(float, (xy, xz, yz))] if tilted else [""] * 3
        text += [f"{float(a)!r} {float(b)!r}{t}" for a, b, t in zip(low, high, tilts, strict=True)]
        text += [f"ITEM: ATOMS {columns}"]
        scaled = atoms.get_scaled_positions(wrap=False)
        forces = atoms.get_forces() if atoms.calc else np.zeros((len(atoms), 3))
        for i in rng.permutation(len(atoms)) if shuffle else range(len(atoms)):
            symbol = atoms.symbols[i]
            words: dict[str, object] = {
                "q": 1.0,
                "vx": 0.5,
                "id": i + 1,
                "type": ["Na", "Cl"].index(symbol) + 1,
                "element": symbol,
            }
            for a, axis in enumerate("xyz"):
                x = float(atoms.positions[i, a])
                words |= {axis: x + origin, f"{axis}u": x + origin, f"{axis}s": float(scaled[i, a])}
                words |= {f"f{axis}": float(forces[i, a])}
            text.append(
                " ".join(repr(words[c]) if isinstance(words[c], float) else str(words[c]) for c in columns.split())
            )
    return "\n".join(text) + "\n"


@pytest.fixture
def images() -> list[Atoms]:
    return [crystal(2 if k in (3, 4) else 1, labelled=k != 1) for k in range(7)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_is_looked_through_and_read_back(tmp_path: Path, images: list[Atoms], suffix: str) -> None:
    path = tmp_path / f"old{suffix}"
    WRITERS[suffix](path, images)
    digest = hashlib.blake2b(digest_size=16)
    found = list(scan(path, seen=digest.update))
    assert [f.atoms for f in found] == [8, 8, 8, 16, 16, 8, 8]
    assert digest.hexdigest() == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    for start, stop, every in ((0, 3, 1), (0, 3, 2), (3, 5, 1), (5, 7, 1), (6, 7, 5)):
        frames = read_frames(path, Stretch(start, stop, every, found[start].offset))
        wanted = images[start:stop:every]
        assert len(frames) == len(wanted)
        for k, atoms in enumerate(wanted):
            np.testing.assert_array_equal(frames.numbers[k], atoms.numbers)
            np.testing.assert_allclose(frames.positions[k], atoms.positions, atol=1e-7)
            np.testing.assert_allclose(frames.cell[k], np.array(atoms.cell), atol=1e-7)
            assert frames.step[k] == start + k * every
            if atoms.calc is None:
                assert np.isnan(frames.energy[k])
                assert np.isnan(frames.forces[k]).all()
                assert np.isnan(frames.stress[k]).all()
            else:
                np.testing.assert_allclose(frames.energy[k], atoms.get_potential_energy(), atol=1e-7)
                np.testing.assert_allclose(frames.forces[k], atoms.get_forces(), atol=1e-7)
                np.testing.assert_allclose(frames.stress[k], atoms.get_stress(voigt=False), atol=1e-7)


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_blocks_that_end_anywhere_change_nothing(
    tmp_path: Path, images: list[Atoms], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"a.dump": dump(images), "b.xyz": None}.items():
        path = tmp_path / name
        if text is None:
            to_xyz(path, images)
        else:
            path.write_text(text)
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # many programs leave the last line end out
        whole = list(scan(path, ("Na", "Cl")))
        with monkeypatch.context() as patch:
            patch.setattr("campaign.engines.frame_text.BLOCK", block)
            assert list(scan(path, ("Na", "Cl"))) == whole
        assert len(whole) == 7
        content = path.read_bytes()
        assert all(content[f.offset :].startswith((b"ITEM: TIMESTEP", b"8\n", b"16\n")) for f in whole)


@pytest.mark.parametrize(
    "columns",
    [
        "id type x y z",
        "id element xu yu zu fx fy fz",
        "type id zs ys xs",
        "element vx id x y z q",
    ],
)
@pytest.mark.parametrize("origin", [0.0, -3.5])
@pytest.mark.parametrize("triclinic", [False, True])
def test_a_dump_gives_the_atoms_in_the_order_of_their_ids(
    tmp_path: Path, columns: str, origin: float, triclinic: bool
) -> None:
    images = [crystal(1, triclinic=triclinic) for _ in range(3)]
    path = tmp_path / "old.lammpstrj"
    path.write_text(dump(images, columns, origin))
    found = list(scan(path, ("Na", "Cl")))
    frames = read_frames(path, Stretch(1, 3, 1, found[1].offset), ("Na", "Cl"))
    assert frames.step.tolist() == [100, 200]
    for k, atoms in enumerate(images[1:]):
        np.testing.assert_array_equal(frames.numbers[k], atoms.numbers)
        np.testing.assert_allclose(frames.positions[k], atoms.positions, atol=1e-9)
        np.testing.assert_allclose(frames.cell[k], np.array(atoms.cell), atol=1e-9)
        if "fx" in columns:
            np.testing.assert_allclose(frames.forces[k], atoms.get_forces(), atol=1e-9)
        else:
            assert np.isnan(frames.forces).all()
    assert np.isnan(frames.energy).all()


@pytest.mark.lammps
def test_a_dump_that_lammps_wrote_holds_the_frame_that_lammps_had(tmp_path: Path) -> None:
    from campaign.engines.lammps import Lammps, to_lammps
    from campaign.engines.lammps_potential import PotentialLines

    potential = PotentialLines(("Na", "Cl"), "pair_style lj/cut 5.0\npair_coeff * * 0.01 2.5\npair_modify shift yes")
    atoms = crystal(2, triclinic=True)
    x, cell, _ = to_lammps(atoms.positions, np.array(atoms.cell))
    with Lammps(potential) as lmp:
        lmp.create(atoms.numbers, x, cell)
        lmp.command("run 0 post no")
        state = lmp.state()
        for columns in ("id type x y z fx fy fz", "id type xs ys zs fx fy fz"):
            path = tmp_path / f"{columns[8:10].strip()}.dump"
            lmp.command(f'write_dump all custom "{path}" {columns} modify format float %20.15g')
            frames = read_frames(path, Stretch(0, 1), ("Na", "Cl"))
            np.testing.assert_allclose(frames.positions[0], state["positions"], atol=1e-9)
            np.testing.assert_allclose(frames.cell[0], state["cell"], atol=1e-9)
            np.testing.assert_allclose(frames.forces[0], state["forces"], atol=1e-9)
            np.testing.assert_array_equal(frames.numbers[0], atoms.numbers)


def broken(kind: str) -> list[Atoms]:
    """Return three frames of which number 1 cannot be taken."""
    images = [crystal(1) for _ in range(3)]
    bad = images[1]
    if kind == "no cell":
        bad.cell, bad.pbc = np.zeros((3, 3)), False
    elif kind == "flat":
        bad.cell[2] = bad.cell[1] - bad.cell[0]
    elif kind == "left":
        bad.cell = np.array(bad.cell)[[1, 0, 2]]
    elif kind == "slab":
        bad.pbc = (True, True, False)
    return images


@pytest.mark.parametrize("suffix", [".extxyz", ".traj", ".db"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no cell", "frame 1 has no cell.*three cell vectors"),
        ("flat", "frame 1 has no cell, or one without volume"),
        ("left", "cell vectors of frame 1 are left-handed.*exchange two"),
        ("slab", "frame 1 is not periodic in all three directions, got pbc T T F; make it periodic"),
    ],
)
def test_a_cell_that_no_engine_takes_is_named_with_its_frame(tmp_path: Path, suffix: str, kind: str, said: str) -> None:
    path = tmp_path / f"old{suffix}"
    WRITERS[suffix](path, broken(kind))
    with pytest.raises(WrongFrames, match=said):
        list(scan(path))
    assert len(list(scan(path, every=2))) == 3  # a frame that is not kept may be what it likes
    offset = next(iter(scan(path, every=2))).offset
    with pytest.raises(EngineError, match=said):
        read_frames(path, Stretch(0, 3, 1, offset))


GOOD = '2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\nNa 0 0 0\nCl 2 2 2\n'
ATOMS = (
    "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\nITEM: ATOMS id type x y z\n"
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.xyz", GOOD + GOOD[:-20], "frame 1 is cut short"),
        ("a.xyz", GOOD + "two\n" + GOOD, "frame 1 does not begin with a number of atoms, got 'two'"),
        ("a.xyz", "0\n\n" + GOOD, "frame 0 does not begin with a number of atoms"),
        ("a.xyz", GOOD + "\n" + GOOD, "after frame 0 comes an empty line"),
        ("a.xyz", GOOD.replace("5 0 0 0 5", "5 0 0 0 five"), "cell of frame 0 is not nine numbers"),
        ("a.xyz", GOOD.replace("5 0 0 0 5", "5 0 0 0 inf"), "cell of frame 0 is not finite"),
        ("a.xyz", GOOD + "2\na gas\nNa 0 0 0\nCl 0 0 2\n", "frame 1 has no cell"),
        ("a.xyz", "campaign: toy\n", "frame 0 does not begin"),
        ("a.dump", "campaign: toy\n", "frame 0 has a line that is no item of a dump"),
        ("a.dump", ATOMS, "frame 0 is cut short"),
        ("a.dump", ATOMS[:60], "frame 0 is cut short"),
        ("a.dump", ATOMS.replace("pp pp pp", "pp pp ff") + "1 1 0 0 0\n", "not periodic.*got pbc T T F"),
        ("a.dump", ATOMS.replace("0 5\n", "5 0\n", 1) + "1 1 0 0 0\n", "left-handed"),
        ("a.dump", ATOMS.replace("id type", "type") + "1 0 0 0\n", "lacks the atoms' id or positions"),
        ("a.dump", ATOMS.replace(" z", "") + "1 1 0 0\n", "lacks the atoms' id or positions"),
        ("a.dump", "ITEM: UNITS\nreal\n" + ATOMS + "1 1 0 0 0\n", "not in LAMMPS's units metal, got units real"),
        ("a.traj", "2\n", "not an ASE trajectory"),
        ("a.db", "2\n", "not an ASE database"),
    ],
)
def test_a_damaged_file_is_refused_when_it_is_looked_through(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(WrongFrames, match=said) as caught:
        list(scan(tmp_path / name, ("Na", "Cl")))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.xyz", GOOD.replace("Cl 2 2 2", "Cl 2 2 nan"), "positions of frame 0 are not finite"),
        ("a.xyz", GOOD.replace("Properties", "energy=inf Properties"), "energy of frame 0"),
        ("a.xyz", GOOD.replace("Cl 2 2 2", "X 2 2 2"), "frame 0 has an atom of no element"),
        ("a.xyz", GOOD.replace("Cl 2 2 2", "Cl 2 two 2"), "frame 0 cannot be read"),
        ("a.dump", ATOMS + "1 3 0 0 0\n", r"frame 0 has atoms of type 3, got elements: \[Na, Cl\]; name 3 elements"),
        ("a.dump", ATOMS + "1 1 0 0\n", "frame 0 is cut short"),
        ("a.dump", ATOMS + "1 1 0 0 zero\n", "frame 0 cannot be read"),
    ],
)
def test_a_damaged_frame_is_refused_when_it_is_read(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    assert (
        len(list(scan(tmp_path / name, ("Na", "Cl")))) == 1
    )  # only its coordinates are wrong, and they are not parsed
    with pytest.raises(WrongFrames, match=said):
        read_frames(tmp_path / name, Stretch(0, 1), ("Na", "Cl"))


def test_a_dump_needs_elements_where_it_has_only_types(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    path.write_text(ATOMS + "1 1 0 0 0\n")
    with pytest.raises(WrongFrames, match=r"elements: \[Na, Cl\]"):
        list(scan(path))


def test_reading_a_database_leaves_it_as_it_is(tmp_path: Path, images: list[Atoms]) -> None:
    path = tmp_path / "old.db"
    to_db(path, images)
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(p.name for p in tmp_path.iterdir())
    list(scan(path))
    read_frames(path, Stretch(0, 3))
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(p.name for p in tmp_path.iterdir())) == before


def test_rows_removed_from_a_database_are_no_frames(tmp_path: Path, images: list[Atoms]) -> None:
    path = tmp_path / "old.db"
    to_db(path, images)
    with connect(path) as database:
        database.delete([2])
    assert [f.atoms for f in scan(path)] == [8, 8, 16, 16, 8, 8]
    frames = read_frames(path, Stretch(0, 2))
    np.testing.assert_allclose(frames.positions[1], images[2].positions)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    path, block = tmp_path / "long.xyz", 2**14
    path.write_text(GOOD * 10_000)
    monkeypatch.setattr("campaign.engines.frame_text.BLOCK", block)
    tracemalloc.start()
    count = sum(1 for _ in scan(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert path.stat().st_size > 40 * block
    assert peak < 20 * block


def test_what_campaign_exports_keeps_its_provenance(tmp_path: Path) -> None:
    atoms = crystal(1)
    atoms.info.update(step=300, set_temperature=1200.0, set_pressure=float("nan"))
    to_xyz(tmp_path / "out.extxyz", [atoms])
    frames = read_frames(tmp_path / "out.extxyz", Stretch(0, 1))
    assert (frames.step[0], frames.temperature[0]) == (300, 1200.0)
    assert np.isnan(frames.pressure[0])
    assert len(read(tmp_path / "out.extxyz", ":")) == 1
    assert set(FORMATS) == {".extxyz", ".xyz", ".traj", ".db", ".lammpstrj", ".dump"}


@pytest.mark.parametrize("suffix", [*WRITERS, ".dump"])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_damaged_file_is_never_anything_but_wrong_frames(tmp_path: Path, suffix: str) -> None:
    path, damage = tmp_path / f"old{suffix}", np.random.default_rng(5)
    images = [crystal(1) for _ in range(3)]
    if suffix == ".dump":
        path.write_text(dump(images))
    else:
        WRITERS[suffix](path, images)
    good, refused = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(good)
        place = int(damage.integers(0, min(len(good), 3000)))
        kind = damage.integers(0, 3)
        if kind == 0:
            content[place] = int(damage.integers(0, 256))
        elif kind == 1:
            del content[place : place + int(damage.integers(1, 50))]
        else:
            content[place : place + 1] = [b"-", b"9", b"\n", b" ", b"nan"][damage.integers(0, 5)]
        path.unlink()
        path.write_bytes(content)
        try:
            for number, found in enumerate(scan(path, ("Na", "Cl"))):
                read_frames(path, Stretch(number, number + 1, 1, found.offset), ("Na", "Cl"))
        except WrongFrames:
            refused += 1
    assert refused > 5
