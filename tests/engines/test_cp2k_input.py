"""A template becomes an input: nothing lost, nothing added but the frame, and the method's hash knows what matters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from campaign.config import cp2k_ladder, cp2k_schema
from campaign.config.cp2k_ladder import Rung
from campaign.config.cp2k_template import Template, WrongTemplate, check
from campaign.config.cp2k_tree import Section, read
from campaign.engines.cp2k_input import read_template, render, resolve
from campaign.errors import EngineError, InputError

FILES = Path(__file__).parent / "cp2k"
METAL = """      ADDED_MOS 20
      &SMEAR
        METHOD FERMI_DIRAC
        ELECTRONIC_TEMPERATURE [K] 1000
      &END SMEAR
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FILES, tmp_path / "cp2k")
    return tmp_path / "cp2k"


def template(folder: Path, *changes: tuple[str, str]) -> Template:
    text = (FILES / "job.inp").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "job.inp").write_text(text)
    return read_template(folder / "job.inp")


def method(folder: Path, *changes: tuple[str, str], rung: object = "template") -> str:
    return template(folder, *changes).method([rung])[0]  # type: ignore[list-item]


def argon(n: int = 2) -> Atoms:
    positions = np.random.default_rng(0).uniform(0, 7, (n, 3))
    return Atoms(f"Ar{n}", positions, cell=[[7.1, 0, 0], [0.3, 7.2, 0], [0, 1 / 3, 7.3]], pbc=True)


def section(text: str, *path: str) -> Section:
    root, faults = read(text)
    assert not faults
    found = root.find(*path)
    assert found is not None
    return found


def test_the_frame_is_written_to_the_last_bit(folder: Path) -> None:
    atoms = argon(5)
    text = render(template(folder), atoms, Rung("template"), folder / "attempt-0")
    rows = section(text, "FORCE_EVAL", "SUBSYS", "COORD").keywords
    assert [row.word for row in rows] == ["Ar"] * 5
    np.testing.assert_array_equal([[float(x) for x in row.value.split()] for row in rows], atoms.positions)
    cell = section(text, "FORCE_EVAL", "SUBSYS", "CELL")
    np.testing.assert_array_equal([[float(x) for x in (cell.get(v) or "").split()] for v in "ABC"], atoms.cell.array)


def test_what_the_template_says_stays(folder: Path) -> None:
    text = render(template(folder), argon(), Rung("template"), folder)
    assert section(text, "FORCE_EVAL", "DFT", "MGRID").get("CUTOFF") == "300"
    assert section(text, "FORCE_EVAL", "DFT", "SCF", "OT").get("PRECONDITIONER") == "FULL_ALL"
    kinds = list(section(text, "FORCE_EVAL", "SUBSYS").all("KIND"))
    assert [k.parameter for k in kinds] == ["Na", "Ar"]


def test_forces_and_stress_are_always_asked_for(folder: Path) -> None:
    changed = template(
        folder, ("  METHOD QS", "  METHOD QS\n  STRESS_TENSOR NONE\n  &PRINT\n  &FORCES OFF\n  &END\n  &END")
    )
    text = render(changed, argon(), Rung("template"), folder)
    assert section(text, "FORCE_EVAL").get("STRESS_TENSOR") == "ANALYTICAL"
    assert section(text, "FORCE_EVAL", "PRINT", "FORCES").parameter == "ON"
    assert section(text, "GLOBAL").get("RUN_TYPE") == "ENERGY_FORCE"


def test_data_files_beside_the_template_are_named_from_where_cp2k_runs(folder: Path) -> None:
    text = render(template(folder), argon(), Rung("template"), folder.parent / "tasks" / "x" / "attempt-0")
    assert section(text, "FORCE_EVAL", "DFT").get("BASIS_SET_FILE_NAME") == "../../../cp2k/BASIS"


def test_a_kind_is_found_by_its_element(folder: Path) -> None:
    changed = template(folder, ("&KIND Ar", "&KIND Ar1\n      ELEMENT Ar"))
    rows = section(render(changed, argon(), Rung("x"), folder), "FORCE_EVAL", "SUBSYS", "COORD").keywords
    assert {row.word for row in rows} == {"Ar1"}
    with pytest.raises(EngineError, match="no KIND for Kr; add '&KIND Kr'"):
        render(changed, Atoms("Kr", cell=[7, 7, 7]), Rung("x"), folder)


def test_restart_names_the_wavefunction(folder: Path) -> None:
    text = render(template(folder), argon(), Rung("x"), folder / "attempt-1", folder / "attempt-0" / "w.wfn")
    assert section(text, "FORCE_EVAL", "DFT").get("WFN_RESTART_FILE_NAME") == "../attempt-0/w.wfn"
    assert section(text, "FORCE_EVAL", "DFT", "SCF").get("SCF_GUESS") == "RESTART"


@pytest.mark.parametrize(
    "changes",
    [
        [("$CUT ", f"[eV] {300 * 13.605693122990:.12f} ")],
        [("PBE\n", "pbe\n")],
        [("@SET CUT 300", "@SET CUT 3.0E2")],
        [("      CUTOFF $CUT   ! Ry\n      REL_CUTOFF 50\n", "      rel_cutoff 5.0D1\n      CUTOFF $CUT\n")],
        [("MAX_SCF 40", "MAX_SCF 400")],
        [("MINIMIZER DIIS", "MINIMIZER CG")],
        [("    &SCF\n", "    &SCF\n      ADDED_MOS 10\n")],
        [("BASIS_SET DZVP-GTH", "BASIS_SET dzvp-gth")],
        [("&END FORCE_EVAL", "&END FORCE_EVAL\n&GLOBAL\n  PRINT_LEVEL LOW\n  PREFERRED_DIAG_LIBRARY ELPA\n&END")],
        [("    &SCF\n", "    &SCF\n      SCF_GUESS CORE\n")],
        [("      &OUTER_SCF\n", "      &OUTER_SCF\n        TYPE NONE\n")],
        [("&OT\n", "&OT ON\n")],
    ],
)
def test_the_method_stays_where_the_physics_does(folder: Path, changes: list[tuple[str, str]]) -> None:
    assert method(folder, *changes) == method(folder)


@pytest.mark.parametrize(
    "changes",
    [
        [("@SET CUT 300", "@SET CUT 301")],
        [("REL_CUTOFF 50", "REL_CUTOFF 60")],
        [("XC_FUNCTIONAL PBE", "XC_FUNCTIONAL BLYP")],
        [("BASIS_SET DZVP-GTH", "BASIS_SET SZV-GTH")],
        [("EPS_SCF 1.0E-6", "EPS_SCF 1.0E-7")],
        [("        EPS_SCF 1.0E-6\n        MAX_SCF 10", "        EPS_SCF 1.0E-5\n        MAX_SCF 10")],
        [("    &SCF\n", "    CHARGE 1\n    &SCF\n")],
        [("    &SCF\n", "    &SCF\n" + METAL), ("      &OT\n", "      &OT OFF\n")],
        [("    &SCF\n", "    CHARGE 0\n    &SCF\n")],  # the schema's default: the program's may be another
        [("    &SCF\n", "    &QS\n      EPS_DEFAULT 1.0E-10\n    &END\n    &SCF\n")],  # likewise
        [("      EPS_SCF 1.0E-6\n      MAX_SCF 40", "      EPS_EIGVAL 1.0E-4\n      EPS_SCF 1.0E-6\n      MAX_SCF 40")],
        [("      &OUTER_SCF\n", "      &OUTER_SCF\n        TYPE S2_CONSTRAINT\n")],
        [("      &OUTER_SCF\n", "      &OUTER_SCF\n        TYPE BASIS_CENTER_OPT\n")],
        [("      &OT\n", "      &DIAGONALIZATION\n        ALGORITHM FILTER_MATRIX\n      &END\n      &OT OFF\n")],
        [("&END FORCE_EVAL", "&END FORCE_EVAL\n&GLOBAL\n  EXTENDED_FFT_LENGTHS T\n&END")],
        [("&END FORCE_EVAL", "&END FORCE_EVAL\n&GLOBAL\n  ALLTOALL_SGL T\n&END")],
        [("&END FORCE_EVAL", "&END FORCE_EVAL\n&GLOBAL\n  SEED 7\n&END")],
    ],
)
def test_the_method_changes_with_the_physics(folder: Path, changes: list[tuple[str, str]]) -> None:
    assert method(folder, *changes) != method(folder)


@pytest.mark.parametrize("spin", ["UKS", "LSD T", "ROKS"])
def test_with_spin_the_guess_decides_where_scf_ends(folder: Path, spin: str) -> None:
    magnetic = ("    &SCF\n", f"    {spin}\n    &SCF\n")
    guess = ("      MAX_SCF 40\n", "      MAX_SCF 40\n      SCF_GUESS CORE\n")
    assert method(folder, magnetic, guess) != method(folder, magnetic)
    assert method(folder, ("    &SCF\n", "    UKS F\n    &SCF\n"), guess) == method(
        folder, ("    &SCF\n", "    UKS F\n    &SCF\n")
    )


BASIS_KEYWORDS = [
    *("AUX_FIT_BASIS_SET", "AUXILIARY_FIT_BASIS_SET", "AUX_FIT_BASIS", "AUX_BASIS_SET", "AUXILIARY_BASIS_SET"),
    *("AUX_BASIS", "RI_AUX_BASIS_SET", "RI_MP2_BASIS_SET", "RI_RPA_BASIS_SET", "RI_AUX_BASIS", "LRI_BASIS_SET"),
    "LRI_BASIS",
]


@pytest.mark.parametrize("keyword", BASIS_KEYWORDS)
def test_every_keyword_that_names_a_basis_set_is_looked_up_and_counts(folder: Path, keyword: str) -> None:
    more = ("      BASIS_SET ORB DZVP-GTH\n", f"      BASIS_SET ORB DZVP-GTH\n      {keyword} aux\n")
    with pytest.raises(WrongTemplate, match=r"Ar has no [A-Z_]*BASIS_SET of this name in BASIS"):
        method(folder, more)
    basis = (folder / "BASIS").read_text()
    found = []
    for exponent in ("0.7", "0.6"):
        (folder / "BASIS").write_text(f"{basis}\nAr aux\n  1\n  1 0 0 1 1\n   {exponent} 1.0\n")
        found.append(method(folder, more))
    assert found[0] != found[1]


def test_the_schema_has_no_other_keyword_for_a_basis_set() -> None:
    spec = cp2k_schema.section(("FORCE_EVAL", "SUBSYS", "KIND"))
    assert spec is not None
    assert {k for k in spec.keywords if "BASIS" in k} - {"PAO_BASIS_SIZE", "FLOATING_BASIS_CENTER"} == {
        "BASIS_SET",
        *BASIS_KEYWORDS,
    }


TRUNCATED = (
    "      &XC_FUNCTIONAL PBE\n",
    "      &HF\n        &INTERACTION_POTENTIAL\n          POTENTIAL_TYPE TRUNCATED\n          CUTOFF_RADIUS 2\n"
    "          T_C_G_DATA gamma.dat\n        &END\n      &END\n      &XC_FUNCTIONAL PBE\n",
)


def test_tables_count_by_their_content(folder: Path) -> None:
    found = []
    for content in ("1", "2"):
        (folder / "gamma.dat").write_text(content)
        found.append(method(folder, TRUNCATED))
    assert found[0] != found[1]
    text = render(read_template(folder / "job.inp"), argon(), Rung("x"), folder.parent / "run")
    potential = section(text, "FORCE_EVAL", "DFT", "XC", "HF", "INTERACTION_POTENTIAL")
    assert potential.get("T_C_G_DATA") == "../cp2k/gamma.dat"


XTB = ("    &SCF\n", "    &QS\n      METHOD XTB\n    &END\n    &SCF\n")


def test_the_tables_of_xtb_count_and_come_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CP2K_DATA_DIR", str(folder.parent / "nowhere"))
    with pytest.raises(WrongTemplate, match="PARAM_FILE_NAME: there is no folder"):
        method(folder, XTB)
    (folder / "dftd3.dat").write_text("")
    found = []
    for content in ("1", "2"):
        (folder / "xTB_parameters").write_text(content)
        found.append(method(folder, XTB))
    assert found[0] != found[1]
    kept = read_template(folder / "job.inp")
    assert {"xTB_parameters", "dftd3.dat"} <= set(kept.data)
    parameter = section(render(kept, argon(), Rung("x"), folder.parent / "run"), *XTB_PARAMETER)
    assert parameter.get("PARAM_FILE_NAME") == "../cp2k/xTB_parameters"
    assert parameter.get("DISPERSION_PARAMETER_FILE") == "../cp2k/dftd3.dat"


XTB_PARAMETER = ("FORCE_EVAL", "DFT", "QS", "XTB", "PARAMETER")


def test_an_entry_that_is_not_there_has_no_method(folder: Path) -> None:
    """Whoever asks, checked or not: a text that is missing must not make the hash of a method without it."""
    kept = template(folder)
    with pytest.raises(InputError, match="BASIS_X is named by a rung, and the template has not got it"):
        kept.method([{"BASIS_SET_FILE_NAME": "BASIS_X"}])
    with pytest.raises(InputError, match=r"rVV10_kernel_table\.dat is named by a rung"):
        kept.method([{"XC/VDW_POTENTIAL/NON_LOCAL/KERNEL_FILE_NAME": "rVV10_kernel_table.dat"}])
    (folder / "BASIS").write_text("Na DZVP-GTH\n 1\n")
    with pytest.raises(InputError, match="Ar has no BASIS_SET DZVP-GTH in BASIS"):
        kept.method(["template"])


def test_lines_of_data_count_in_their_order(folder: Path) -> None:
    rows = ["        1", "        2 0 0 1 1", "        1.7 0.5", "        0.7 0.5"]
    inline = ["      &BASIS\n" + "\n".join(order) + "\n      &END\n" for order in (rows, [*rows[:2], rows[3], rows[2]])]
    own = [("      BASIS_SET ORB DZVP-GTH\n", text) for text in inline]
    assert method(folder, own[0]) != method(folder, own[1])


def test_ot_has_no_added_orbitals(folder: Path) -> None:
    """CP2K stops: OT with ADDED_MOS/=0 not implemented."""
    changed = template(folder, ("    &SCF\n", "    &SCF\n      ADDED_MOS 10\n"), ("      &OT\n", "      &OT OFF\n"))
    scf = changed.with_rung(resolve("ot_cg", changed.root).settings).find("FORCE_EVAL", "DFT", "SCF")
    assert scf is not None
    assert scf.get("ADDED_MOS") is None


def test_the_method_knows_the_content_of_the_entries_that_are_used(folder: Path) -> None:
    before = method(folder)
    basis = (folder / "BASIS").read_text()
    (folder / "BASIS").write_text(basis.replace("0.9  0.5", "0.8  0.5"))  # an entry that no KIND names
    assert method(folder) == before
    (folder / "BASIS").write_text(basis.replace("1.2  0.5", "1.3  0.5"))
    assert method(folder) != before


def test_the_method_is_the_same_wherever_its_data_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory holds copies: its tasks are those of the campaign that it came from."""
    before = method(folder)
    data = folder.parent / "data"
    data.mkdir()
    for name in ("BASIS", "POTENTIALS"):
        (folder / name).rename(data / name)
    monkeypatch.setenv("CP2K_DATA_DIR", str(data))
    assert method(folder) == before


def test_rungs_that_only_converge_otherwise_share_the_method(folder: Path) -> None:
    found = {rung: method(folder, rung=rung) for rung in cp2k_ladder.DEFAULT}
    assert len(set(found.values())) == 2
    assert found["smear"] != found["template"]
    assert method(folder, rung={"MGRID/CUTOFF": 600, "restart": True}) != found["template"]
    assert method(folder, rung={"SCF/MAX_SCF": 3, "restart": True}) == found["template"]


def test_rungs_of_a_metal_all_share_the_method(folder: Path) -> None:
    changes = [("    &SCF\n", "    &SCF\n" + METAL), ("      &OT\n", "      &OT OFF\n")]
    assert len({method(folder, *changes, rung=rung) for rung in cp2k_ladder.DEFAULT}) == 1


def test_k_points_are_no_smearing(folder: Path) -> None:
    """Neither can have OT; but only the last rung smears electrons that were not."""
    points = "    &KPOINTS\n      SCHEME MONKHORST-PACK 2 2 2\n    &END\n    &SCF\n"
    kept = template(folder, ("    &SCF\n", points), ("      &OT\n", "      &OT OFF\n"))
    trees = {rung: kept.with_rung(resolve(rung, kept.root).settings) for rung in cp2k_ladder.DEFAULT}
    assert [rung for rung, tree in trees.items() if cp2k_ladder.smeared(tree)] == ["smear"]
    assert len(kept.method(["template", "more_steps", "ot_cg", "diagonalise"])) == 1
    assert not any(check(tree) for tree in trees.values())
    gamma = template(folder, ("    &SCF\n", points.replace("MONKHORST-PACK 2 2 2", "NONE")))  # CP2K: no k-points
    assert "SCF/OT" in resolve("ot_cg", gamma.root).settings


def test_settings_replace_every_alias_and_make_what_is_missing(folder: Path) -> None:
    changed = template(folder, ("    &MGRID", "    LSD T\n    &MGRID"))
    own = {
        "SCF/OT/MINIMIZER": "CG",
        "UKS": False,
        "SCF/OUTER_SCF": None,
        "PRINT/E_DENSITY_CUBE": {"_": False, "STRIDE": [1, 1, 1]},
    }
    tree = changed.with_rung(resolve(own, changed.root).settings)
    ot = tree.find("FORCE_EVAL", "DFT", "SCF", "OT")
    assert ot is not None
    assert [k.text() for k in ot.keywords] == ["PRECONDITIONER FULL_ALL", "MINIMIZER CG"]
    assert tree.find("FORCE_EVAL", "DFT", "SCF", "OUTER_SCF") is None
    dft = tree.find("FORCE_EVAL", "DFT")
    assert dft is not None
    assert [k.text() for k in dft.keywords if k.name in ("UKS", "LSD")] == ["UKS F"]
    cube = tree.find("FORCE_EVAL", "DFT", "PRINT", "E_DENSITY_CUBE")
    assert cube is not None
    assert (cube.parameter, cube.get("STRIDE")) == ("F", "1 1 1")


def test_the_template_itself_is_never_changed(folder: Path) -> None:
    kept = template(folder)
    before = list(kept.root.write())
    render(kept, argon(), resolve("smear", kept.root), folder, folder / "x.wfn")
    assert list(kept.root.write()) == before


def test_the_last_rung_serves_all_later_attempts() -> None:
    assert [cp2k_ladder.choose(["a", "b"], k) for k in range(4)] == ["a", "b", "b", "b"]


def test_a_wrong_template_names_all_its_lines(folder: Path) -> None:
    with pytest.raises(WrongTemplate) as caught:
        template(folder, ("REL_CUTOFF", "REL_CUTOF"), ("MAX_SCF 40", "MAX_SCF many"), ("&KIND Ar", "&KIND Xx"))
    assert [f.line for f in caught.value.faults] == [10, 14, 34]


@pytest.mark.parametrize(
    ("keyword", "text", "value"),
    [("CUTOFF", "1.D2", 100.0), ("CUTOFF", "[Ry] 3d+2", 300.0), ("NGRIDS", "5", 5), ("COMMENSURATE", "", True)],
)
def test_values_are_read_as_cp2k_reads_them(keyword: str, text: str, value: object) -> None:
    spec = cp2k_schema.section(("FORCE_EVAL", "DFT", "MGRID"))
    assert spec is not None
    assert cp2k_schema.value_of(spec.keywords[keyword], text) == pytest.approx(value)
