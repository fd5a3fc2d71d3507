"""A wrong template stops ``campaign check``, with the campaign file's line and the template's own."""

# ruff: noqa: E501
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest

from campaign.config import cp2k_electrons, cp2k_schema
from campaign.config.cp2k_checks import check_template
from campaign.config.cp2k_data import entries, locate
from campaign.config.cp2k_files import is_data, refused
from campaign.config.cp2k_template import ALLOWED
from campaign.config.cp2k_tree import read, read_back
from campaign.config.data_files import Fault
from campaign.config.view import View
from campaign.config.yaml_lines import read_document

FILES = Path(__file__).parents[1] / "engines" / "cp2k"
TEMPLATES = Path(__file__).parents[2] / "templates" / "cp2k"

CAMPAIGN = """\
campaign: test
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.4}
label:
  engine: cp2k
  template: cp2k/job.inp
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FILES, tmp_path / "cp2k")
    monkeypatch.delenv("CP2K_DATA_DIR", raising=False)
    return tmp_path


def problems(folder: Path, *changes: tuple[str, str], campaign: str = CAMPAIGN) -> list[str]:
    path = folder / "cp2k" / "job.inp"
    text = (FILES / "job.inp").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    (folder / "campaign.yaml").write_text(campaign)
    document = read_document(folder / "campaign.yaml")
    found = check_template(View(document, document.problems), folder)[1]
    return [p.text("campaign.yaml") for p in sorted(found, key=lambda p: p.line)]


def test_a_right_template_has_no_problem_and_names_its_files(folder: Path) -> None:
    assert problems(folder) == []
    document = read_document(folder / "campaign.yaml")
    files, _ = check_template(View(document, []), folder)
    assert files == {f"cp2k/{name}": folder / "cp2k" / name for name in ("job.inp", "BASIS", "POTENTIALS")}


def test_other_engines_are_let_alone(folder: Path) -> None:
    assert problems(folder, ("&DFT", "&DTF"), campaign=CAMPAIGN.replace("engine: cp2k", "engine: lammps")) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("REL_CUTOFF", "REL_CUTOF", 10, "FORCE_EVAL/DFT/MGRID has no keyword REL_CUTOF (line 10 of job.inp), got 'REL_CUTOF'; did you mean 'REL_CUTOFF'?"),
        ("&OUTER_SCF", "&OUTERSCF", 19, "no section OUTERSCF (line 19 of job.inp), got '&OUTERSCF'; did you mean 'OUTER_SCF'?"),
        ("MINIMIZER DIIS", "MINIMIZER DISS", 16, "got 'DISS'; did you mean 'DIIS'?"),
        ("MAX_SCF 40", "MAX_SCF 4.5", 14, "MAX_SCF: it takes a whole number (line 14 of job.inp), got '4.5'"),
        ("CUTOFF $CUT", "CUTOFF [furlong] 300", 9, "CUTOFF: it takes a number"),
        ("CUTOFF $CUT", "CUTOFF ${CUTT}", 9, "CP2K's preprocessor stops here: undefined variable 'CUTT'"),
        ("      MAX_SCF 40\n", "      MAX_SCF 40\n      MAX_SCF 50\n", 15, "MAX_SCF is written twice in this section, first on line 14"),
        ("    &END SCF\n", "    &END XC\n", 23, "the section open here is SCF, begun on line 12"),
        ("&END FORCE_EVAL", "", 3, "the section FORCE_EVAL is not closed"),
        ("&END FORCE_EVAL", "&END FORCE_EVAL\n&END", 40, "no section is open here"),
        ("&END FORCE_EVAL", "&END FORCE_EVAL\n&FORCE_EVAL\n&END", 40, "a template has one FORCE_EVAL"),
        ("&END FORCE_EVAL", "&END FORCE_EVAL\n&EXT_RESTART\n&END", 40, "EXT_RESTART has no place in a single point of a frame"),
        ("  &SUBSYS\n", "  &SUBSYS\n    &TOPOLOGY\n      COORD_FILE_NAME /etc/passwd\n    &END\n", 30, "FORCE_EVAL/SUBSYS/TOPOLOGY has no place"),
        ("@SET CUT 300", "@INCLUDE '/etc/passwd'", 2, "a template is one file"),
        ("@SET CUT 300", "  @xctype PBE", 2, "a template is one file"),
        ("@SET CUT 300", "@INC\\\nLUDE /etc/passwd", 3, "CP2K's preprocessor stops here"),
        ("    &SCF\n", "    WFN_RESTART_FILE_NAME ../../x\n    &SCF\n", 12, "reads or writes a file that campaign does not know of"),
        ("    &SCF\n", "    &PRINT\n    &MO\n    FILENAME =/tmp/x\n    &END\n    &END\n    &SCF\n", 14, "FILENAME reads or writes a file"),
        ("NAME BASIS", "NAME ../secret", 6, "a data file lies beside the template or in CP2K's data folder"),
        ("NAME BASIS", "NAME /etc/passwd", 6, "a data file lies beside the template or in CP2K's data folder"),
        ("BASIS_SET ORB DZVP-GTH", "BASIS_SET ORB TZVP-GTH", 35, "Ar has no BASIS_SET of this name in BASIS (line 35 of job.inp), got 'TZVP-GTH'; did you mean 'DZVP-GTH'?"),
        ("POTENTIAL GTH-PBE-q8", "POTENTIAL GTH-PBE-q9", 36, "Ar has no POTENTIAL of this name in POTENTIALS"),
        ("      POTENTIAL GTH-PBE-q8\n", "", 34, "the KIND Ar has no POTENTIAL"),
        ("      BASIS_SET ORB DZVP-GTH\n", "", 34, "the KIND Ar has no BASIS_SET"),
        ("&KIND Ar", "&KIND Qq", 34, "this KIND is of no chemical element"),
        ("&KIND Na", "&KIND Ar2", 34, "Ar has a KIND already, on line 30"),
        ("METHOD QS", "METHOD FIST", 4, "labels come from Quickstep"),
        ("  &SUBSYS\n", "  &SUBSYS\n    &CELL\n      PERIODIC XY\n    &END\n", 31, "frames are periodic along all three cell vectors"),
        ("    &SCF\n", "    &KPOINTS\n      SCHEME GAMMA\n    &END\n    &SCF\n", 18, "with k-points there is no orbital transformation: CP2K stops (line 18 of job.inp), got '&OT'; write &DIAGONALIZATION"),
        ("      &OT\n", "      ADDED_MOS 9\n      &SMEAR\n      &END\n      &OT T\n", 18, "with smearing there is no orbital transformation"),
        ("@SET CUT 300", "&GLOBAL\n  RUN_TYPE MD\n&END\n@SET CUT 300", 3, "campaign runs single points"),
        ("    &SCF\n", "    &SCF\n      IGNORE_CONVERGENCE_FAILURE\n", 13, "an unconverged result is never accepted"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_both_lines(folder: Path, old: str, new: str, line: int, says: str) -> None:
    found = problems(folder, (old, new))
    assert all(p.startswith("campaign.yaml:6: label.template: ") for p in found), found
    assert any(says in p and f"(line {line} of job.inp)" in p for p in found), found


NON_LOCAL = "      &VDW_POTENTIAL\n        {kind} NON_LOCAL\n{inner}      &END\n      &XC_FUNCTIONAL PBE\n"
PAIR = "        &PAIR_POTENTIAL\n          TYPE {kind}\n          REFERENCE_FUNCTIONAL PBE\n        &END\n"
#: How CP2K's kernel files begin.
KERNELS = {
    "rVV10_kernel_table.dat": "   20 1024\n   1.0E+02\n   1.00000000000000E-04   3.00000000000000E-04   5.89385084561889E-04\n",
    "vdW_kernel_table.dat": "   20 1024\n   1.0E+02\n   1.00000000000000E-05   4.49420825586261E-02   9.75593700991365E-02\n",
    "own.dat": "   30 1024\n   1.0E+02\n   5.0E-05   4.0E-02\n",
}


def non_local(inner: str, kind: str = "POTENTIAL_TYPE") -> tuple[str, str]:
    rows = f"        &NON_LOCAL\n{inner}        &END\n" if inner else ""
    return "      &XC_FUNCTIONAL PBE\n", NON_LOCAL.format(kind=kind, inner=rows)


@pytest.mark.parametrize("kind", ["POTENTIAL_TYPE", "DISPERSION_FUNCTIONAL"])
@pytest.mark.parametrize(
    ("inner", "file"),
    [
        ("", "vdW_kernel_table.dat"),
        ("          TYPE RVV10\n", "rVV10_kernel_table.dat"),
        ("          TYPE LMKLL\n", "vdW_kernel_table.dat"),
    ],
)
def test_a_non_local_functional_names_its_kernel(folder: Path, kind: str, inner: str, file: str) -> None:
    """CP2K's default is the kernel of vdW-DF, also for rVV10: it ends well, and the energy is wrong."""
    (found,) = problems(folder, non_local(inner, kind))
    assert "NON_LOCAL does not name its kernel" in found
    assert f"add 'KERNEL_FILE_NAME {file}' to &NON_LOCAL" in found


@pytest.mark.parametrize(
    ("functional", "file", "right"),
    [
        ("RVV10", "rVV10_kernel_table.dat", True),
        ("RVV10", "vdW_kernel_table.dat", False),
        ("DRSLL", "rVV10_kernel_table.dat", False),
        ("LMKLL", "vdW_kernel_table.dat", True),
        ("RVV10", "own.dat", True),
    ],
)
def test_a_kernel_is_of_its_functional(folder: Path, functional: str, file: str, right: bool) -> None:
    for name, text in KERNELS.items():
        (folder / "cp2k" / name).write_text(text)
    (folder / "cp2k" / "renamed").write_text(KERNELS[file])
    for name in (file, "renamed"):
        rows = f"          TYPE {functional}\n          KERNEL_FILE_NAME {name}\n"
        found = problems(folder, non_local(rows))
        assert len(found) == (not right)
        assert right or f"this kernel is not of a functional of type {functional} (line 29 of job.inp)" in found[0]


@pytest.mark.parametrize(("kind", "wrong"), [("DFTD3", True), ("DFTD3(BJ)", True), ("DFTD2", False)])
def test_dispersion_of_grimme_names_its_parameters(folder: Path, kind: str, wrong: bool) -> None:
    old, new = non_local("")
    new = new.replace("NON_LOCAL\n", "PAIR_POTENTIAL\n" + PAIR.format(kind=kind))
    found = problems(folder, (old, new))
    assert len(found) == wrong
    assert not wrong or "PAIR_POTENTIAL of type D3 does not name its parameters (line 27 of job.inp)" in found[0]
    assert not wrong or "add 'PARAMETER_FILE_NAME dftd3.dat' to &PAIR_POTENTIAL" in found[0]


HF = "      &HF\n        &INTERACTION_POTENTIAL\n          POTENTIAL_TYPE {kind}\n{more}        &END\n      &END\n"


@pytest.mark.parametrize("kind", ["TRUNCATED", "MIX_CL_TRUNC", "COULOMB"])
def test_a_truncated_potential_names_its_table(folder: Path, kind: str) -> None:
    functional = "      &XC_FUNCTIONAL PBE\n"
    found = problems(folder, (functional, HF.format(kind=kind, more="") + functional))
    assert len(found) == (kind != "COULOMB")
    assert kind == "COULOMB" or "add 'T_C_G_DATA t_c_g.dat' to it" in found[0]
    for name in ("../t_c_g.dat", "/etc/passwd"):
        found = problems(folder, (functional, HF.format(kind=kind, more=f"          T_C_G_DATA {name}\n") + functional))
        assert len(found) == 1
        assert "T_C_G_DATA: a data file lies beside the template or in CP2K's data folder" in found[0]
    (folder / "cp2k" / "gamma").write_text("")
    assert problems(folder, (functional, HF.format(kind=kind, more="          T_C_G_DATA gamma\n") + functional)) == []


def schema_lines() -> Iterator[tuple[tuple[str, ...], Element, list[str]]]:
    """Yield (section, keyword, its names) of everything below GLOBAL and FORCE_EVAL that a template may have."""

    def walk(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        spec = cp2k_schema.section(path)
        assert spec is not None
        yield path
        for name in spec.sections & set(ALLOWED.get(path, spec.sections)):
            if (*path, name) != ("FORCE_EVAL", "PRINT"):  # not kept
                yield from walk((*path, name))

    for path in walk(()):
        spec = cp2k_schema.section(path)
        assert spec is not None
        for node in {id(n): n for n in (*spec.keywords.values(), spec.default) if n is not None}.values():
            yield path, node, [n.text or "" for n in node.iterfind("NAME")]


NO_FILE = {"PROJECT_NAME", "PROJECT"}  # campaign's own


@pytest.mark.slow
def test_no_keyword_of_cp2k_that_names_a_file_is_let_through() -> None:
    said = re.compile(
        r"\b(?:file ?names?|path|director(?:y|ies)|folder|location|loaction|host name|body of)\b", re.IGNORECASE
    )
    missed, looked = [], 0
    for path, node, names in schema_lines():
        text = " ".join((node.findtext("DESCRIPTION") or "").split())
        kind = node.find("DATA_TYPE")
        if kind is None or kind.get("kind") not in ("string", "word") or not said.search(text):
            continue
        looked += 1
        data = names == ["DEFAULT_KEYWORD"]
        for name in ["x"] if data else names:
            if not (refused(path, None if data else node, name) or is_data(path, name)) and name not in NO_FILE:
                missed.append(("/".join(path), name, text))
    assert looked > 100
    assert missed == []


@pytest.mark.parametrize(
    "rows",
    [
        "      &HF\n        &MEMORY\n          STORAGE_LOCATION /etc\n        &END\n      &END\n",
        "      &VDW_POTENTIAL\n        &PAIR_POTENTIAL\n          PARAMETER_FILE_NAME /etc/passwd\n        &END\n      &END\n",
    ],
)
def test_paths_do_not_escape_from_sections_of_the_functional(folder: Path, rows: str) -> None:
    functional = "      &XC_FUNCTIONAL PBE\n"
    assert len(problems(folder, (functional, rows + functional))) == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("    &ACTIVE_SPACE\n      QCSCHEMA ../x\n    &END\n", "QCSCHEMA reads or writes a file"),
        ("    &ACTIVE_SPACE\n      &SOCKET\n        HOST /tmp/s\n      &END\n    &END\n", "HOST reads or writes a file"),
        ("    &PRINT\n      &WANNIER90\n        SEED_NAME ../x\n      &END\n    &END\n", "SEED_NAME reads or writes"),
        ("    &QS\n      &DFTB\n        &PARAMETER\n          UFF_FORCE_FIELD /x\n        &END\n      &END\n    &END\n", "UFF_FORCE_FIELD reads"),
        ("    &QS\n      &DFTB\n        &PARAMETER\n          PARAM_FILE_NAME x\n        &END\n      &END\n    &END\n", "PARAM_FILE_NAME reads"),
        ("    &QS\n      &XTB\n        &PARAMETER\n          PARAM_FILE_PATH /x\n        &END\n      &END\n    &END\n", "PARAM_FILE_PATH reads"),
        ("    &QS\n      &XTB\n        &PARAMETER\n          PARAM_FILE_NAME ../x\n        &END\n      &END\n    &END\n", "PARAM_FILE_NAME: a data file lies beside"),
    ],
)  # fmt: skip
def test_paths_do_not_escape(folder: Path, rows: str, says: str) -> None:
    (found,) = problems(folder, ("    &SCF\n", rows + "    &SCF\n"))
    assert says in found


@pytest.mark.parametrize("kind", ["NUMERICAL", "DIAGONAL_NUMERICAL", "DIAGONAL_ANALYTICAL"])
def test_a_stress_tensor_that_gives_no_label(folder: Path, kind: str) -> None:
    (found,) = problems(folder, ("  METHOD QS\n", f"  METHOD QS\n  STRESS_TENSOR {kind}\n"))
    assert f"got 'FORCE_EVAL/STRESS_TENSOR {kind}'; write 'STRESS_TENSOR ANALYTICAL', or remove this line" in found


def test_where_the_preprocessor_stops_no_section_is_called_open(folder: Path) -> None:
    (found,) = problems(folder, ("CUTOFF $CUT", "CUTOFF ${CUTT}"))
    assert "undefined variable 'CUTT'" in found


def test_basis_sets_whose_names_begin_with_a_digit(folder: Path) -> None:
    path = folder / "cp2k" / "BASIS"
    path.write_text(path.read_text() + "\nAR 3-21Gx 3-21G*\n  1\n  1 0 0 1 1\n   2.5  1.0\nAr 6-31G\n  1\n")
    assert problems(folder, ("BASIS_SET ORB DZVP-GTH", "BASIS_SET ORB 3-21G*")) == []
    assert entries(path, "Ar")["3-21GX"] == "1\n1 0 0 1 1\n2.5 1.0"
    assert entries(path, "Ar")["6-31G"] == "1"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("POTENTIAL GTH-PBE-q8", "POTENTIAL ECP ECP18", "effective core potentials (ECP) are not supported"),
        (
            "POTENTIAL GTH-PBE-q8",
            "POTENTIAL_TYPE ECP\n      POTENTIAL GTH-PBE-q8",
            "effective core potentials (ECP) are",
        ),
        (
            "POTENTIAL GTH-PBE-q8",
            "POTENTIAL_FILE_NAME ECPS\n      POTENTIAL ECP18",
            "effective core potentials (ECP) are",
        ),
        ("POTENTIAL GTH-PBE-q8", "POTENTIAL UPF ../../secret.upf", "potentials of type UPF are not supported"),
    ],
)
def test_potentials_that_are_not_supported_are_called_so(folder: Path, old: str, new: str, says: str) -> None:
    (folder / "cp2k" / "ECPS").write_text("ECP18\nAr nelec 10\nAr ul\n2   1.0    0.0\nAr S\n2  2.1  3.0\n")
    assert any(says in found for found in problems(folder, (old, new)))
    assert problems(folder, (old, "POTENTIAL GTH GTH-PBE-q8")) == []


@pytest.mark.parametrize(
    ("rung", "says"),
    [
        ("{BASIS_SET_FILE_NAME: OTHER}", "a rung names a data file, and a run has those of its template only, got 'BASIS_SET_FILE_NAME OTHER'"),
        ("{BASIS_SET_FILE_NAME: null}", "a rung needs a data file that the template does not name, and a run has those of its template only, got 'BASIS_SET_FILE_NAME BASIS_SET'"),
        ("{QS: {METHOD: XTB}}", "got 'PARAM_FILE_NAME xTB_parameters'"),
        ("{SCF/MAX_SCF: 9, POTENTIAL_FILE_NAME: OTHER}", "got 'POTENTIAL_FILE_NAME OTHER'; write another template with it"),
    ],
)  # fmt: skip
def test_a_rung_has_no_data_files_of_its_own(folder: Path, rung: str, says: str) -> None:
    (folder / "cp2k" / "OTHER").write_text((folder / "cp2k" / "BASIS").read_text())
    found = problems(folder, campaign=CAMPAIGN + f"  ladder:\n    - template\n    - {rung}\n")
    assert any(p.startswith("campaign.yaml:9: label.ladder[1]: ") and says in p for p in found), found


def test_all_mistakes_at_once(folder: Path) -> None:
    found = problems(
        folder, ("REL_CUTOFF", "REL_CUTOF"), ("MINIMIZER DIIS", "MINIMIZER DISS"), ("GTH-PBE-q8", "GTH-q8")
    )
    assert len(found) == 3


def test_an_element_without_a_kind(folder: Path) -> None:
    campaign = CAMPAIGN.replace("prototype: fcc, elements: [Ar]", "prototype: rocksalt, elements: [Na, Cl]")
    (found,) = problems(folder, campaign=campaign)
    assert "the structure has Cl, which this template (KINDs Na Ar) has not" in found
    assert "add '&KIND Cl'" in found


def test_one_kind_for_every_element_is_looked_up_for_those_there_are(folder: Path) -> None:
    kind = (
        "&KIND Ar\n      BASIS_SET ORB DZVP-GTH\n      POTENTIAL GTH-PBE-q8",
        "&KIND DEFAULT\n      BASIS_SET DZVP-GTH\n      POTENTIAL GTH-PBE",
    )
    assert problems(folder, kind) == []
    campaign = CAMPAIGN.replace("prototype: fcc, elements: [Ar]", "prototype: rocksalt, elements: [Na, Cl]")
    found = problems(folder, kind, campaign=campaign)
    assert len(found) == 2
    assert "Cl has no BASIS_SET DZVP-GTH in BASIS" in found[0]


def test_a_missing_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CP2K_DATA_DIR", str(folder / "nowhere"))
    (found,) = problems(folder, ("NAME BASIS", "NAME BASIS_MOLOPT"))
    assert "there is no folder" in found
    assert "nowhere (CP2K_DATA_DIR)" in found
    assert "line 6 of job.inp" in found


def test_a_data_file_that_is_not_in_the_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder / "data"
    data.mkdir()
    (data / "BASIS_MOLOPT").write_text("")
    monkeypatch.setenv("CP2K_DATA_DIR", str(data))
    (found,) = problems(folder, ("NAME BASIS", "NAME BASIS_MOLOP"))
    assert "did you mean 'BASIS_MOLOPT'?" in found


def test_files_of_the_data_folder_come_beside_the_template(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder / "data"
    data.mkdir()
    (folder / "cp2k" / "BASIS").rename(data / "BASIS")
    monkeypatch.setenv("CP2K_DATA_DIR", str(data))
    assert problems(folder) == []
    files, _ = check_template(View(read_document(folder / "campaign.yaml"), []), folder)
    assert files["cp2k/BASIS"] == data / "BASIS"


def test_a_link_out_of_the_folder_is_no_data_file(folder: Path) -> None:
    (folder / "cp2k" / "BASIS").unlink()
    (folder / "cp2k" / "BASIS").symlink_to("/etc/passwd")
    assert any("link that leaves" in p for p in problems(folder))


def test_a_template_outside_the_campaigns_folder(folder: Path) -> None:
    found = problems(folder, campaign=CAMPAIGN.replace("cp2k/job.inp", "../job.inp"))
    assert "a campaign's files must lie in its folder" in found[0]


@pytest.mark.parametrize(
    ("rung", "says"),
    [
        ("{SCF/MAX_SFC: 100}", "has no keyword MAX_SFC, got 'MAX_SFC'; did you mean 'MAX_SCF'?"),
        ("{SFC/MAX_SCF: 100}", "FORCE_EVAL/DFT has no section SFC"),
        ("{SCF/OT: {MINIMIZER: CGG}}", "got 'CGG'; did you mean 'CG'?"),
        ("{SCF/IGNORE_CONVERGENCE_FAILURE: true}", "an unconverged result is never accepted"),
        ("{WFN_RESTART_FILE_NAME: /etc/passwd}", "reads or writes a file"),
    ],
)
def test_a_wrong_rung_is_told_at_its_place(folder: Path, rung: str, says: str) -> None:
    found = problems(folder, campaign=CAMPAIGN + f"  ladder:\n    - template\n    - {rung}\n")
    assert any(p.startswith("campaign.yaml:9: label.ladder[1]: ") and says in p for p in found), found


@pytest.mark.parametrize(
    ("rung", "says"),
    [
        (r'{SCF/MAX_SCF: "200 !\n@INCLUDE /etc/passwd"}', "a template is one file, and this line takes another in"),
        (r'{"SCF/X\n@INCLUDE x\n": 1}', "a template is one file, and this line takes another in"),
        (r'{SCF/MAX_SCF: "200 !\n&END SCF\n&SCF"}', "CP2K would read this line as something else"),
        (r'{SCF/MAX_SCF: "200 ! five times"}', "CP2K would read this line as something else"),
        (r'{SCF/MAX_SCF: "200 # a \"quote"}', "CP2K would read this line as something else"),
        (r'{SCF/OT: {_: "T\n&END OT\n@XCTYPE x", MINIMIZER: CG}}', "this line takes another in"),
        (r'{SCF/MAX_SCF: "${X-5}"}', "CP2K would read this line as something else"),
        (r'{SCF/MAX_SCF: "5 \\"}', "the section open here is SCF"),
        (r'{SCF/MAX_SCF: 5 "x}', "MAX_SCF: it takes a whole number"),
    ],
)  # fmt: skip
def test_a_rung_is_no_more_than_what_was_checked(folder: Path, rung: str, says: str) -> None:
    found = problems(folder, campaign=CAMPAIGN + f"  ladder:\n    - template\n    - {rung}\n")
    assert len(found) == 1, found
    assert found[0].startswith("campaign.yaml:9: label.ladder[1]: ")
    assert says in found[0]


def test_quotes_in_a_comment_are_a_wrong_value() -> None:
    spec = cp2k_schema.section(("FORCE_EVAL", "DFT", "SCF"))
    assert spec is not None
    with pytest.raises(cp2k_schema.WrongValue):
        cp2k_schema.value_of(spec.keywords["MAX_SCF"], "200 ! it's")


@pytest.mark.parametrize("word", ["@INCLUDE", "& INCLUDE"])
def test_a_variable_makes_no_directive(folder: Path, word: str) -> None:
    """Where a section's lines are data, any word would do as a keyword; CP2K is given the line as it came out."""
    basis = "      &BASIS\n        ${A} /etc/passwd\n      &END\n      BASIS_SET ORB DZVP-GTH"
    found = problems(folder, ("@SET CUT 300", f"@SET CUT 300\n@SET A {word}"), ("      BASIS_SET ORB DZVP-GTH", basis))
    assert "this line would be read as one of CP2K's preprocessor or as a section (line 37 of job.inp)" in found[0]


def test_good_ladders_have_no_problem(folder: Path) -> None:
    ladder = "[template, more_steps, ot_cg, diagonalise, smear, {SCF/OT: null, SCF/MAX_SCF: 9, restart: true}]"
    assert problems(folder, campaign=CAMPAIGN + f"  ladder: {ladder}\n") == []


def test_entries_end_where_the_next_begins(folder: Path) -> None:
    found = entries(folder / "cp2k" / "BASIS", "Na")
    assert set(found) == {"DZVP-GTH", "DZVP-GTH-Q9", "SZV-GTH"}
    assert found["DZVP-GTH"].splitlines() == ["1", "2 0 0 1 1", "1.2 0.5"]


def test_entries_are_found_in_any_letters(folder: Path) -> None:
    path = folder / "cp2k" / "UPPER"
    path.write_text("NA DZVP-x A\n 1\nna dzvp-y\n 2\n")  # BASIS_MOLOPT_UZH has some
    assert entries(path, "Na") == {"DZVP-X": "1", "A": "1", "DZVP-Y": "2"}


def test_no_data_file_by_another_name(folder: Path) -> None:
    assert isinstance(locate("", folder), Fault)


@pytest.mark.cp2k
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.inp")), ids=lambda p: p.stem)
def test_every_template_that_comes_with_campaign_is_right(path: Path, folder: Path) -> None:
    from campaign.config import cp2k_ladder
    from campaign.config.cp2k_template import check, read_template

    template = read_template(path)
    for rung in cp2k_ladder.RUNGS:
        tree = template.with_rung(cp2k_ladder.resolve(rung, template.root).settings)
        assert check(tree) == []
        assert read_back(tree) == []


@pytest.mark.parametrize(
    ("rows", "treatment"),
    [
        ("", "RKS"),
        ("UKS", "UKS"),
        ("LSD T", "UKS"),
        ("UKS F", "RKS"),
        ("ROKS", "ROKS"),
        ("UKS .FALSE.\nROKS T", "ROKS"),
    ],
)
def test_the_treatment_of_spin_has_cp2ks_name(rows: str, treatment: str) -> None:
    root, faults = read(f"&FORCE_EVAL\n&DFT\n{rows}\n&END\n&END")
    assert not faults
    assert cp2k_electrons.treatment(root) == treatment


@pytest.mark.parametrize(("name", "atoms", "share"), [("al", 108, 5), ("ni", 108, 5), ("nb", 128, 5)])
def test_metals_have_the_orbitals_that_their_comment_asks_for(name: str, atoms: int, share: int) -> None:
    text = (TEMPLATES / f"{name}.inp").read_text()
    valence = int(re.findall(r"POTENTIAL GTH-PBE-q(\d+)", text)[0])
    said, size, occupied = map(
        int, re.findall(r"# ADDED_MOS (\d+) is for (\d+) atoms \((\d+) occupied orbitals\)", text)[0]
    )
    written = int(re.findall(r"^ +ADDED_MOS (\d+)$", text, re.MULTILINE)[0])
    assert (said, size, occupied) == (written, atoms, atoms * valence // 2)
    assert written >= occupied / share
