"""The section ``transfer``: what may stand beside it, and what is wrong with it, each on its line with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.config import dump, load_campaign
from campaign.errors import InputError

GOOD = """\
campaign: al
system:
  structure: {prototype: fcc, elements: [Al], a: 4.05}
  potential: {lammps: al.lmp}
sample: [{method: file, file: al.extxyz}]
transfer:
  from: runs/ni
  species: {Ni: Al}
  scale: lattice
label: {engine: lammps}
train: {model: schnet}
validate: [{method: errors, held_out: 5}]
"""

LINES = "# elements: {}\n# atom_style: atomic\npair_style eam/fs\npair_coeff * * x.eam.fs {}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, elements in (("al", "Al"), ("ni", "Ni"), ("alloy", "Al Ni")):
        (tmp_path / f"{name}.lmp").write_text(LINES.format(elements, elements))
    (tmp_path / "al.extxyz").write_text("")
    (tmp_path / "start.extxyz").write_text('1\nLattice="4 0 0 0 4 0 0 0 4" pbc="T T T"\nAl 0 0 0\n')
    return tmp_path


def problems(folder: Path, *changes: tuple[str, str]) -> list[str]:
    path, text = folder / "al.yaml", GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    try:
        load_campaign(path)
    except InputError as error:
        return [p.removeprefix(f"{path}:") for p in error.problems]
    return []


def test_the_good_file_reads_back(folder: Path) -> None:
    assert problems(folder) == []
    spec = load_campaign(folder / "al.yaml").spec
    assert spec.stages == ("sample", "transfer", "label", "train", "validate")
    assert (spec.transfer.source, spec.transfer.set, spec.transfer.scale) == ("runs/ni", "training", "lattice")
    assert spec.reference.lammps == "al.lmp"
    (folder / "again.yaml").write_text(dump(spec))
    assert load_campaign(folder / "again.yaml").spec == spec


def test_the_line_of_the_contract_is_taken(folder: Path) -> None:
    """Nothing but the transfer, its potential and what trains on it: no sampling, no test."""
    text = "{from: ni-momt, species: {Ni: Al}, scale: lattice, potential: {lammps: al.lmp}}"
    path = folder / "contract.yaml"
    path.write_text(
        "campaign: al\nsystem: {structure: {prototype: fcc, elements: [Al], a: 4.05}}\n"
        f"transfer: {text}\nlabel: {{engine: lammps}}\ntrain: {{model: schnet}}\n"
    )
    loaded = load_campaign(path)
    assert loaded.spec.stages == ("transfer", "label", "train")
    assert loaded.spec.reference.lammps == "al.lmp"
    assert loaded.potentials == ["al.lmp"]
    (folder / "again.yaml").write_text(dump(loaded.spec))
    assert load_campaign(folder / "again.yaml").spec == loaded.spec


@pytest.mark.parametrize("written", ["1.15", "[1.1, 1.1, 1.2]", "1", "lattice"])
def test_factors(folder: Path, written: str) -> None:
    assert problems(folder, ("scale: lattice", f"scale: {written}")) == []
    assert str(load_campaign(folder / "al.yaml").spec.transfer.scale).strip("()") == {
        "1": "1.0",
        "[1.1, 1.1, 1.2]": "1.1, 1.1, 1.2",
    }.get(written, written)


WRONG = {
    "a stream to learn on from": (
        ("{model: schnet}", "{model: schnet}\nlearn: {novelty: rnd_stream, md: {temperature: 9, time: 1}}"),
        "12: learn.novelty: this goes on from what the selection's networks have learned, got no 'select'",
        "write 'novelty: rnd'",
    ),
    "no species": (
        ("  species: {Ni: Al}\n", ""),
        "6: transfer.species: this key is missing",
        "add 'species: {Ni: Al}'",
    ),
    "species that is a list": (("{Ni: Al}", "[Ni, Al]"), "8: transfer.species: a mapping", "such as {Ni: Al}"),
    "species to nothing": (("{Ni: Al}", "{Ni: }"), "8: transfer.species: a mapping", "such as {Ni: Al}"),
    "no element": (("{Ni: Al}", "{Ni: All}"), "8: transfer.species: there is no such element", "did you mean 'Al'?"),
    "no source": (("  from: runs/ni\n", ""), "6: transfer.from: this key is missing", "runs/ni-momt-32"),
    "misspelt key": (("scale:", "scal:"), "9: transfer.scal: there is no such key", "did you mean 'scale'?"),
    "no such set": (("  scale", "  set: traning\n  scale"), "9: transfer.set: there is no such choice", "'training'"),
    "word for a factor": (("lattice", "latice"), "9: transfer.scale: a factor", "write lattice, a factor"),
    "two factors": (("lattice", "[1, 1]"), "9: transfer.scale: a factor", "or three"),
    "percent": (("lattice", "115"), "9: transfer.scale: a factor on lengths lies between 0.2 and 5", "such as 1.15"),
    "no length": (("lattice", "0"), "9: transfer.scale: a factor on lengths lies between", "such as 1.15"),
    "large strain": (
        ("  scale", "  strain: {size: 2}\n  scale"),
        "9: transfer.strain.size: the value is too large",
        "at most 0.2",
    ),
    "selection beside": (
        ("label:", "select: {method: random, size: 3}\nlabel:"),
        "10: select: the frames to train on are those that 'transfer' brings",
        "remove 'select', or remove 'transfer'",
    ),
    "labels of the source": (
        ("engine: lammps", "engine: pool"),
        "10: label.engine: transferred frames have no",
        "lammps",
    ),
    "test without a pool": (
        ("sample: [{method: file, file: al.extxyz}]\n", ""),
        "11: validate[0].method: 'errors' tests on frames of the target, and there is no pool of them",
        "add a section 'sample'",
    ),
    "pool without a test": (
        ("validate: [{method: errors, held_out: 5}]\n", ""),
        "5: sample: what is sampled beside 'transfer' is only for the test",
        "or remove 'sample'",
    ),
    "element that the potential has not": (
        ("species: {Ni: Al}", "species: {Ni: Nb}"),
        "8: transfer.species: the frames would become Nb, which system.potential (elements Al) has not",
        "name a potential with Nb in it",
    ),
    "element that the potential of the labels has not": (
        ("{engine: lammps}", "{engine: lammps, potential: {lammps: ni.lmp}}"),
        "10: label.potential.lammps: the structure has Al, which this potential (elements Ni) has not",
        "name a potential with Al in it",
    ),
    "element that the crystal has not": (
        ("lammps: al.lmp", "lammps: alloy.lmp"),
        ("species: {Ni: Al}", "species: {Ni: Ni}"),
        "8: transfer.species: the frames would become Ni, which system.structure has not",
        "write the crystal of the target",
    ),
    "lattice of no crystal": (
        ("{prototype: fcc, elements: [Al], a: 4.05}", "{file: start.extxyz}"),
        "9: transfer.scale: the lattice ratio needs the target's crystal, and system.structure is no prototype",
        "write a factor, such as 'scale: 1.15'",
    ),
    "lattice of no potential": (
        ("  potential: {lammps: al.lmp}\n", ""),
        ("{engine: lammps}", "{engine: ase, calculator: emt}"),
        "8: transfer.scale: the lattice ratio needs the target's potential",
        "under transfer",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_thing(folder: Path, name: str) -> None:
    *changes, start, remedy = WRONG[name]
    found = problems(folder, *changes)
    assert len(found) == 1, found
    assert found[0].startswith(start)  # type: ignore[arg-type]
    assert remedy in found[0].partition(", got ")[2]  # type: ignore[operator]


def test_a_factor_needs_neither_crystal_nor_potential(folder: Path) -> None:
    changes = [("{prototype: fcc, elements: [Al], a: 4.05}", "{file: start.extxyz}"), ("scale: lattice", "scale: 1.15")]
    assert problems(folder, *changes) == []
    more = [("  potential: {lammps: al.lmp}\n", ""), ("{engine: lammps}", "{engine: ase, calculator: emt}")]
    assert problems(folder, *changes, *more) == []


def test_a_campaign_without_frames_is_none(folder: Path) -> None:
    sample, moved = "sample: [{method: file, file: al.extxyz}]\n", GOOD[GOOD.index("transfer:") : GOOD.index("label:")]
    select = "select: {method: random, size: 3}\n"
    (said,) = problems(folder, (moved, select), (sample, ""))
    assert said.startswith("1: sample: this key is missing, got nothing; add 'sample: [{method: npt, ...}]'")
    (said,) = problems(folder, (moved, select), (sample, "sample: []\n"))
    assert said.startswith("5: sample: the list or mapping is too short, got []; write at least 1")
