"""What may be wrong with a random packing, and with an entry that takes its frames from a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from campaign.config import dump, load_campaign
from campaign.errors import InputError
from campaign.inputs import frame_sources

POTENTIAL = "# elements: Na Cl\n# atom_style: charge\npair_style born/coul/long 8\n"

PACKED = """\
campaign: liquid
seed: 7
system:
  structure: {packing: {Na: 32, Cl: 32}, density: 1.5}
  potential: {lammps: nacl.lmp}
sample: [{method: npt, temperature: 1400, steps: 1000}]
"""

FROM_FILE = """\
campaign: old
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64}
sample:
  - method: file
    file: old.extxyz
    segment: 4
select: {method: random, size: 5}
label: {engine: lammps, potential: {lammps: nacl.lmp}}
"""

FRAME = '2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\nNa 0 0 0\nCl 2 2 2\n'
DUMP = (
    "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
    "ITEM: ATOMS id type x y z\n1 1 0 0 0\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "nacl.lmp").write_text(POTENTIAL)
    (inside / "old.extxyz").write_text(10 * FRAME)
    (inside / "molecule.xyz").write_text(FRAME + "2\n\nNa 0 0 0\nCl 0 0 2\n")
    (inside / "potassium.xyz").write_text(10 * FRAME.replace("Na", "K"))
    (inside / "old.dump").write_text(10 * DUMP)
    (inside / "empty.xyz").write_text("")
    (inside / "foreign.zarr").mkdir()
    (inside / "foreign.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    (inside / "folder.zarr").mkdir()
    (tmp_path / "secret.xyz").write_text(FRAME)
    (inside / "link.xyz").symlink_to(tmp_path / "secret.xyz")
    return inside


def load(folder: Path, text: str) -> list[str]:
    """Return the problems of a campaign file and of the files of frames it names, without the file's name."""
    path = folder / "campaign.yaml"
    path.write_text(text)
    try:
        frame_sources(load_campaign(path))
    except InputError as error:
        problems = list(error.problems)
    else:
        problems = []
    assert all(p.startswith(f"{path}:") and "\n" not in p for p in problems)
    return [p.removeprefix(f"{path}:") for p in problems]


def test_good_files_are_good(folder: Path) -> None:
    assert load(folder, PACKED) == []
    assert load(folder, FROM_FILE) == []
    assert load(folder, FROM_FILE.replace("old.extxyz", "old.dump\n    elements: [Na]")) == []


def test_the_seed_of_a_packing_is_the_campaigns_and_is_written_out(folder: Path) -> None:
    path = folder / "campaign.yaml"
    for text, seed in ((PACKED, 7), (PACKED.replace("1.5}", "1.5, seed: 3}"), 3), (PACKED.replace("seed: 7\n", ""), 0)):
        path.write_text(text)
        spec = load_campaign(path).spec
        assert spec.system.structure.seed == seed  # type: ignore[union-attr]
        path.write_text(dump(spec).replace("seed: 7\n", "seed: 8\n", 1))  # a resolved file keeps what it says
        assert load_campaign(path).spec.system.structure.seed == seed  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "key", "got", "remedy"),
    [
        ("Na: 32", "NA: 32", "packing", "{NA: 32", "did you mean 'Na'"),
        ("Na: 32", "Na: -3", "packing", "{Na: -3", "such as {Na: 32, Cl: 32}"),
        ("Na: 32", "Na: 3.5", "packing", "{Na: 3.5", "without a fraction"),
        ("Na: 32", "Na: many", "packing", "{Na: 'many'", "write a whole number"),
        ("{Na: 32, Cl: 32}", "NaCl", "packing", "'NaCl'", "such as {Na: 32, Cl: 32}"),
        ("{Na: 32, Cl: 32}", "{}", "packing", "{}", "such as {Na: 32, Cl: 32}"),
        ("{Na: 32, Cl: 32}", "{Na: 1, Cl: 1}", "packing", "{Na: 1, Cl: 1}", "write {Na: 6, Cl: 6} or more"),
        ("1.5", "6", "density", "6", "write at most 4.27"),
        ("1.5", "0", "density", "0", "greater than 0"),
        (", density: 1.5", "", "density", "nothing", "density: 1.5"),
        ("packing", "pakcing", "pakcing", "{Na: 32", "did you mean 'packing'"),
        ("1.5}", "1.5, supercell: [2, 2, 2]}", "supercell", "[2, 2, 2]", "the keys here are packing, density, seed"),
    ],
)
def test_one_wrong_thing_in_a_packing(folder: Path, old: str, new: str, key: str, got: str, remedy: str) -> None:
    problems = load(folder, PACKED.replace(old, new))
    named = [p for p in problems if p.startswith(f"4: system.structure.{key}: ")]
    assert len(named) == 1, problems
    assert f", got {got}" in named[0]
    assert remedy in named[0]


def test_elements_of_a_packing_must_be_in_the_potential(folder: Path) -> None:
    (problem,) = load(folder, PACKED.replace("Na: 32", "K: 32"))
    assert problem.startswith("5: system.potential.lammps: the structure has K")


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "said"),
    [
        (
            "old.extxyz",
            "none.extxyz",
            6,
            "file",
            "there is no such file, got 'none.extxyz'; that folder holds old.extxyz",
        ),
        ("old.extxyz", "old.pdb", 6, "file", "this kind of file, got 'old.pdb'; name one that ends in .extxyz"),
        (
            "old.extxyz",
            "../secret.xyz",
            6,
            "file",
            "must lie in its folder, got '../secret.xyz'; put the campaign file",
        ),
        ("old.extxyz", "link.xyz", 6, "file", "must lie in its folder, got 'link.xyz'; put the campaign file"),
        ("old.extxyz", "none.zarr", 6, "file", "there is no such file, got 'none.zarr'; write the path of a *.zarr"),
        ("old.extxyz", "folder.zarr", 6, "file", "not a Zarr store: it has no zarr.json, got 'folder.zarr'; name"),
        ("old.extxyz", "foreign.zarr", 6, "file", "was not written by campaign; convert its frames"),
        ("old.extxyz", "empty.xyz", 6, "file", "the file has no frames, got 'empty.xyz'; name"),
        ("old.extxyz", "molecule.xyz", 6, "file", "frame 1 has no cell, or one without volume"),
        ("old.extxyz", "potassium.xyz", 6, "file", "have K, which the potential that labels them (elements Na Cl)"),
        ("old.extxyz", "old.dump", 6, "file", "write 'elements: [Na, Cl]' in the campaign file"),
        ("segment: 4", "elements: [Na]", 7, "elements", "only LAMMPS dumps need the elements"),
        ("old.extxyz", "old.dump\n    elements: [NaCl]", 7, "elements[0]", "there is no such element, got 'NaCl'"),
        ("segment: 4", "every: 0", 7, "every", "got 0; write a number of at least 1"),
        ("segment: 4", "stride: 2", 7, "stride", "did you mean 'every'"),
        ("    file: old.extxyz\n", "", 5, "file", "this key is missing"),
    ],
)
def test_one_wrong_thing_in_a_file_of_frames(folder: Path, old: str, new: str, line: int, key: str, said: str) -> None:
    problems = load(folder, FROM_FILE.replace(old, new))
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{line}: sample[0].{key}: ")
    assert said in problems[0]


def test_the_pool_of_a_file_is_counted(folder: Path) -> None:
    assert load(folder, FROM_FILE.replace("size: 5", "size: 11")) == []  # all are taken; the plan says so
    tested = FROM_FILE + "train: {model: fake}\nvalidate: [{method: errors, held_out: 6}]\n"
    (problem,) = load(folder, tested)
    assert problem.startswith("11: validate[0].held_out: ")
    assert "write held_out: 5 or less" in problem
    assert load(folder, tested.replace("held_out: 6", "held_out: 5")) == []
    (problem,) = load(folder, tested.replace("size: 5", "size: 11"))
    assert problem.endswith(
        "the pool has 10 frames and 11 of them are for training, got 6; select fewer, or sample more"
    )


@pytest.mark.parametrize(
    ("distill", "select", "most", "for_training"),
    [
        ("{method: uq, initial: 4}", False, 6, "at least 4 of them"),
        ("{method: grid, size: 7}", False, 3, "7 of them"),
        ("{method: uq, initial: 8}", True, 5, "at least 5 of them"),  # no more than were selected
    ],
)
def test_the_frames_that_a_distillation_takes_are_counted(
    folder: Path, distill: str, select: bool, most: int, for_training: str
) -> None:
    lines = [line for line in FROM_FILE.splitlines() if select or not line.startswith("select:")]
    lines += [f"distill: {distill}", "train: {model: fake}", "validate: [{method: errors, held_out: N}]"]
    text = re.sub(r"(?m)^label: .*$", "label: {engine: pool}", "\n".join(lines))
    assert load(folder, text.replace("N}", f"{most}}}")) == []
    (problem,) = load(folder, text.replace("N}", f"{most + 1}}}"))
    assert f"the pool has 10 frames and {for_training} are for training" in problem
    assert f"write held_out: {most} or less" in problem


def test_sampling_from_a_file_needs_no_potential(folder: Path) -> None:
    assert load(folder, FROM_FILE.replace("{engine: lammps, potential: {lammps: nacl.lmp}}", "{engine: fake}")) == []
