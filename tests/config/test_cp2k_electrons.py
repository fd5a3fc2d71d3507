"""Charge, multiplicity and spin of a template against the electrons of the frames: CP2K itself does not complain."""

# ruff: noqa: E501
from __future__ import annotations

from pathlib import Path

import pytest

from campaign.config.cp2k_electrons import fixed, valence
from campaign.config.cp2k_template import read_template
from tests.config.test_cp2k_checks import CAMPAIGN, folder, problems  # noqa: F401

TEMPLATES = Path(__file__).parents[2] / "templates" / "cp2k"


def test_valence_is_that_of_the_potential(folder: Path) -> None:  # noqa: F811
    template = read_template(folder / "cp2k" / "job.inp")
    assert (valence(template, "Na"), valence(template, "Ar"), valence(template, "Cl")) == (9, 8, None)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "CHARGE 1",
            "4 atoms have 31 electrons here, and an odd number needs spin (line 6 of job.inp), got 'CHARGE 1'; add 'UKS' and 'MULTIPLICITY 2' to DFT",
        ),
        ("MULTIPLICITY 3", "without UKS, CP2K prints this multiplicity and computes a singlet (line 6 of job.inp)"),
        (
            "UKS\n    MULTIPLICITY 2",
            "32 electrons cannot have this multiplicity (line 7 of job.inp), got 'MULTIPLICITY 2'; write an odd one",
        ),
        ("CHARGE 40", "the atoms have only 32 electrons"),
    ],
)
def test_what_does_not_fit_is_told(folder: Path, lines: str, words: str) -> None:  # noqa: F811
    campaign = CAMPAIGN.replace("a: 5.4}", "a: 5.4}  # 4 atoms in the cubic cell")
    (problem,) = problems(folder, ("  &DFT\n", f"  &DFT\n    {lines}\n"), campaign=campaign)
    assert words in problem


@pytest.mark.parametrize(
    "lines", ["CHARGE 2", "LSD\n    CHARGE 1\n    MULTIPLICITY 2", "UKS T\n    MULTIPLICITY 3", "MULTIPLICITY 1"]
)
def test_what_fits_is_let_alone(folder: Path, lines: str) -> None:  # noqa: F811
    assert problems(folder, ("  &DFT\n", f"  &DFT\n    {lines}\n")) == []


def test_smeared_electrons_may_be_odd_in_number(folder: Path) -> None:  # noqa: F811
    changes = (
        ("  &DFT\n", "  &DFT\n    CHARGE 1\n"),
        ("    &SCF\n", "    &SCF\n      ADDED_MOS 10\n      &SMEAR ON\n      &END SMEAR\n"),
        ("      &OT\n", "      &OT OFF\n"),
    )
    assert problems(folder, *changes) == []


@pytest.mark.parametrize(
    "rung",
    ["{CHARGE: 2}", "{XC: null}", "{XC/XC_FUNCTIONAL: BLYP}", "{UKS: true}", "{MULTIPLICITY: 3, SCF/MAX_SCF: 9}"],
)
def test_a_rung_cannot_make_it_another_system(folder: Path, rung: str) -> None:  # noqa: F811
    (problem,) = problems(folder, campaign=CAMPAIGN + f"  ladder: [template, {rung}]\n")
    assert "a rung says how SCF gets there" in problem


def test_a_rung_may_change_the_grid_of_the_functional() -> None:
    assert not fixed("XC/XC_GRID/USE_FINER_GRID")
    assert not fixed("SCF/MAX_SCF")


@pytest.mark.cp2k
@pytest.mark.parametrize("name", [p.name for p in sorted(TEMPLATES.glob("*.inp"))])
def test_templates_know_their_valence(name: str) -> None:
    template = read_template(TEMPLATES / name)
    assert all((valence(template, e) or 0) > 0 for e in template.elements)
