"""A wrong template stops ``campaign check``, with the campaign file's line and the template's own."""

# ruff: noqa: E501
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from campaign.config.cp2k_checks import check_template
from campaign.config.cp2k_data import entries, locate
from campaign.config.data_files import Fault
from campaign.config.physics import View
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
        ("@SET CUT 300", "&GLOBAL\n  RUN_TYPE MD\n&END\n@SET CUT 300", 3, "campaign runs single points"),
        ("    &SCF\n", "    &SCF\n      IGNORE_CONVERGENCE_FAILURE\n", 13, "an unconverged result is never accepted"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_both_lines(folder: Path, old: str, new: str, line: int, says: str) -> None:
    found = problems(folder, (old, new))
    assert all(p.startswith("campaign.yaml:6: label.template: ") for p in found), found
    assert any(says in p and f"(line {line} of job.inp)" in p for p in found), found


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
        assert check(template.with_rung(cp2k_ladder.resolve(rung, template.root).settings)) == []
