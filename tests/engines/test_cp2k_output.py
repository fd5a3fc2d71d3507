"""What CP2K wrote is believed only when all of it bears it out: a real output, damaged in every way."""

# ruff: noqa: E501
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.engines import cp2k_output
from campaign.engines.cp2k_output import Asked, read_result
from campaign.errors import EngineError, Unconverged, Unphysical

#: A real output of CP2K 2023.1: 4 argon atoms, PBE-D3; long tables that nothing reads were cut out.
TEXT = (Path(__file__).parent / "cp2k" / "argon.out").read_text()
POSITIONS = [
    [0.129948, -0.048941, -0.042254],
    [-0.085837, 2.769233, 2.515877],
    [2.839585, -0.060897, 2.725523],
    [2.680050, 2.816969, -0.164811],
]
ASKED = Asked(np.full(4, 18), np.array(POSITIONS), np.eye(3) * 5.4, 0, None, 1e-6, 1e-6)
PLAIN = dataclasses.replace(ASKED, outer=None)
#: Real outputs too: aluminium with one orbital more than electrons fill, and argon by xTB.
FULL = (Path(__file__).parent / "cp2k" / "aluminium_full.out").read_text()
XTB = (Path(__file__).parent / "cp2k" / "argon_xtb.out").read_text()
#: CODATA 2006: Mohr, Taylor, Newell, Rev. Mod. Phys. 80, 633 (2008).
HARTREE, BOHR = 27.21138386, 0.52917720859
GPA = 1.602176487e2  # eV/Å^3

BOX = """
 *******************************************************************************
 *   ___                                                                       *
 *  /   \\                                                                      *
 * [ABORT]                                                                     *
 *  \\___/     Cholesky decompose failed: the matrix is not positive definite    *
 *    |                          or ill-conditioned.                            *
 *  O/|                                                                        *
 * /| |                                                                        *
 * / \\                                                  cp_fm_cholesky.F:112 *
 *******************************************************************************
"""


def swap(old: str, new: str, count: int = 1) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, count)


def test_numbers_are_those_of_the_file_in_our_units() -> None:
    result = read_result(TEXT, ASKED)
    assert result.energy == pytest.approx(-84.292340230120956 * HARTREE, rel=1e-8)
    assert result.forces.shape == (4, 3)
    assert result.forces[1, 2] == pytest.approx(-0.00051720037456 * HARTREE / BOHR, rel=1e-8)
    assert result.stress[0, 0] == pytest.approx(-1.77462829804 / GPA, rel=1e-7)
    assert result.stress[0, 1] == result.stress[1, 0] == pytest.approx(0.103964851469 / GPA, rel=1e-7)
    assert (result.steps, result.version, result.warnings) == (7, "2023.1", ())


def test_newer_formats_are_read_too() -> None:
    text = TEXT.replace(
        "ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]:", "ENERGY| Total FORCE_EVAL ( QS ) energy [hartree]"
    )
    text = text.replace(" ATOMIC FORCES in [a.u.]", " FORCES| Atomic forces [hartree/bohr]")
    text = text.replace(" # Atom   Kind   Element          X  ", " FORCES| Atom                     x  ")
    text = re.sub(r"(?m)^      (\d)      1      Ar (.*)$", r" FORCES|      \1 \2  1.0E-03", text)
    text = text.replace(" SUM OF ATOMIC FORCES ", " FORCES| Sum ")
    text = re.sub(r"tensor \[GPa\]", "tensor [bar]", text)
    old, new = read_result(TEXT, ASKED), read_result(text, ASKED)
    np.testing.assert_array_equal(new.forces, old.forces)
    np.testing.assert_allclose(new.stress, old.stress * 1e-4)


@pytest.mark.parametrize("criterion", [ASKED, PLAIN])
def test_an_output_cut_off_at_any_line_is_refused(criterion: Asked) -> None:
    rows = TEXT.splitlines(keepends=True)
    end = next(k for k, row in enumerate(rows) if "PROGRAM ENDED AT" in row)
    for k in range(end + 1):
        with pytest.raises(EngineError):
            read_result("".join(rows[:k]), criterion)


@given(st.data())
def test_lines_that_vanish_never_change_a_result(data: st.DataObject) -> None:
    rows = TEXT.splitlines(keepends=True)
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    try:
        found = read_result("".join(rows[:start] + rows[stop:]), ASKED)
    except EngineError:
        return
    right = read_result(TEXT, ASKED)
    assert (found.energy, found.steps) == (right.energy, right.steps)
    np.testing.assert_array_equal(found.forces, right.forces)
    np.testing.assert_array_equal(found.stress, right.stress)


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 400), st.text(max_size=20))
def test_garbage_is_refused_or_harmless(at: int, length: int, garbage: str) -> None:
    """Whatever is written over a part: never a number that is not finite, never too few atoms."""
    try:
        found = read_result(TEXT[:at] + garbage + TEXT[at + length :], ASKED)
    except EngineError:
        return
    assert np.isfinite(found.energy)
    assert found.forces.shape == (4, 3)
    assert np.isfinite(found.forces).all()
    assert np.isfinite(found.stress).all()


NOT_CONVERGED = "  outer SCF loop FAILED to converge after   10 iterations or  400 steps\n"
WARNING = "\n *** WARNING in qs_scf.F:601 :: SCF run NOT converged ***\n"


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        (
            swap("  outer SCF loop converged in   1 iterations or    7 steps\n", NOT_CONVERGED + WARNING),
            ASKED,
            "0.0000009",
        ),
        (TEXT.replace("  *** SCF run converged in     7 steps ***", WARNING), PLAIN, "did not converge in 7 steps"),
        (TEXT + WARNING, ASKED, "did not converge"),
        (swap("  outer SCF loop converged in   1 iterations or    7 steps\n", ""), ASKED, "its outer loop converged"),
        (swap("  *** SCF run converged in     7 steps ***\n", ""), PLAIN, "does not say that it converged"),
        (swap("gradient =   0.90E-06", "gradient =   0.90E-04"), ASKED, "the last gradient is 9e-05"),
        (swap("gradient =   0.90E-06", "gradient =        NaN"), ASKED, "gradient is nan"),
        (swap("0.00000090       -84", "0.00000900       -84"), PLAIN, "the last change was 9e-06"),
        (swap("0.00000090       -84", "       NaN       -84"), PLAIN, "the last change was nan"),
    ],
)
def test_what_did_not_converge_is_refused(text: str, asked: Asked, says: str) -> None:
    with pytest.raises(Unconverged, match=re.escape(says).replace("0\\.0000009", "9e-07")):
        read_result(text, asked)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("0.00045203691777", "             NaN", "forces is not finite"),
        ("0.00045203691777", "****************", "forces is not finite"),
        ("-84.292340230120956", "                NaN", "energy is not finite"),
        ("1.77462829804E+00", "              NaN", "stress is not finite"),
        ("      4      1      Ar", "      5      1      Ar", "forces of 4 atoms"),
        ("      4    1 Ar   18      2.680050      2.816969     -0.164811   8.0000  39.9480\n", "", "computed 3 atoms"),
        ("      2    1 Ar   18 ", "      2    1 Kr   36 ", "atom 2 is of element 36"),
        ("2.839585     -0.060897", "2.839685     -0.060897", "0.0001 Å away"),
        ("157.464000", "157.474000", "cell of 157.474"),
        ("Vector b [angstrom]:       0.000     5.400", "Vector b [angstrom]:       0.001     5.400", "its vector b is 0.001"),
        ("Vector c [angstrom]:       0.000     0.000     5.400", "Vector c [angstrom]:       0.000     5.400     0.000", "its vector c"),
        ("|a| =     5.400000", "|a| =     5.400010", "its vector a"),
        ("beta  [degree]:                                    90.000000", "beta  [degree]:                                    90.000100", "its angle beta is 90.000100"),
        ("DFT| Charge                                                                   0",
         "DFT| Charge                                                                   1", "charge 1"),
    ],
)  # fmt: skip
def test_what_is_of_another_frame_or_not_finite_is_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(Unphysical, match=re.escape(says)):
        read_result(swap(old, new), ASKED)


@pytest.mark.parametrize("rows", ["Vector b", "Angle (a,c)"])
def test_a_cell_that_is_not_whole_is_refused(rows: str) -> None:
    text = "".join(row for row in TEXT.splitlines(keepends=True) if rows not in row)
    with pytest.raises(EngineError, match="does not hold the cell once, with its vectors and angles"):
        read_result(text, ASKED)


def test_a_cell_of_the_same_volume_is_another_cell() -> None:
    sheared = np.array([[5.4, 0, 0], [0.01, 5.4, 0], [0, 0, 5.4]])
    with pytest.raises(Unphysical, match="another cell: its vector b"):
        read_result(TEXT, dataclasses.replace(ASKED, cell=sheared))


def test_a_skewed_cell_is_read_as_it_is_printed() -> None:
    skewed = np.array([[5.4, 0, 0], [0.30004, 5.4, 0], [0, -0.0004, 5.4]])
    lengths = np.linalg.norm(skewed, axis=1)
    text = swap(
        "0.000     5.400     0.000   |b| =     5.400000", f"0.300     5.400     0.000   |b| = {lengths[1]:12.6f}"
    )
    text = text.replace("|c| =     5.400000", f"|c| = {lengths[2]:12.6f}")
    for name, i, j in (("(b,c), alpha", 1, 2), ("(a,b), gamma", 0, 1)):
        angle = np.degrees(np.arccos(skewed[i] @ skewed[j] / lengths[i] / lengths[j]))
        text = re.sub(rf"(Angle {re.escape(name)} \[degree\]:\s+)90.000000", rf"\g<1>{angle:.6f}", text)
    read_result(text, dataclasses.replace(ASKED, cell=skewed))


def test_the_treatment_of_spin_is_the_one_asked_for() -> None:
    result = read_result(TEXT, dataclasses.replace(ASKED, spin="RKS"))
    assert (result.spin, result.multiplicity) == ("RKS", 1)
    with pytest.raises(Unphysical, match="CP2K computed RKS; the template asks for UKS"):
        read_result(TEXT, dataclasses.replace(ASKED, spin="UKS"))


def test_an_outer_loop_does_not_hide_an_inner_one() -> None:
    """With a looser criterion the outer loop ends well after an inner one that was cut off."""
    text = swap("*** SCF run converged in     7 steps ***", "Leaving inner SCF loop after reaching     7 steps.")
    with pytest.raises(Unconverged, match="not SCF in its last run: the last gradient was 9e-07"):
        read_result(text, ASKED)
    at = TEXT.index("     1 OT DIIS")
    first = TEXT[at : TEXT.index("  outer SCF loop converged")]
    assert read_result(TEXT[:at] + first + TEXT[at:], ASKED).steps == 7
    with pytest.raises(Unconverged, match="not SCF in its last run"):  # the one before had converged
        read_result(text[:at] + first + text[at:], ASKED)


ALUMINIUM = Asked(
    np.full(4, 13), np.array([[0, 0, 0.1], [2, 2, 0], [2, 0, 2], [0, 2, 2]]), np.eye(3) * 4.05, inner=1e-6
)


def test_electrons_without_room_are_refused() -> None:
    with pytest.raises(Unphysical, match=r"too few orbitals for the smeared electrons.*raise ADDED_MOS"):
        read_result(FULL, ALUMINIUM)


def test_electrons_may_lack_room_on_the_way() -> None:
    """Only the last step counts: at the first, orbitals are a guess."""
    warning = re.compile(r"\n \*\*\* WARNING in qs_mo_occupation.*\n.*\n")
    marks = list(warning.finditer(FULL))
    read_result(FULL[: marks[-1].start()] + FULL[marks[-1].end() :], ALUMINIUM)


def test_xtb_is_read_though_it_prints_no_charge() -> None:
    asked = Asked(np.full(2, 18), np.array([[0, 0, 0.1], [3, 3, 0]]), np.eye(3) * 6.0, inner=1e-6, spin="RKS")
    result = read_result(XTB, asked)
    assert result.energy == pytest.approx(-12.295261816379632 * HARTREE, rel=1e-8)
    assert (result.spin, result.multiplicity) == ("RKS", 1)
    with pytest.raises(Unphysical, match="charge 0; the template asks for 1"):
        read_result(XTB, dataclasses.replace(asked, charge=1))
    other = XTB.replace(
        "Number of electrons:                                                         16",
        "Number of electrons:                                                         15",
    )
    with pytest.raises(Unphysical, match="charge 1; the template asks for 0"):
        read_result(other, asked)


def test_a_multiplicity_that_was_asked_for_is_checked() -> None:
    with pytest.raises(Unphysical, match="multiplicity 1; the template asks for 3"):
        read_result(TEXT, dataclasses.replace(ASKED, multiplicity=3))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "wrote no output"),
        ("Segmentation fault\n", "is not CP2K's; it ends with 'Segmentation fault'"),
        (TEXT + TEXT, "holds 2 runs"),
        (TEXT[: TEXT.index(" ENERGY|")], "cut off after SCF step 7"),
        (TEXT[: TEXT.index(" The number of warn")], "cut off after the forces"),
        (swap(" STRESS| Analytical stress tensor [GPa]", " STRESS| Analytical stress tensor [psi]"), "in psi"),
        (swap(" STRESS| Analytical stress tensor [GPa]", ""), "0 stress tensors"),
        (swap("[a.u.] -> [eV] ", ""), "conversion factor [a.u.] -> [eV]"),
    ],
)
def test_what_is_no_whole_output_is_refused(text: str, says: str) -> None:
    with pytest.raises(EngineError, match=re.escape(says)):
        read_result(text, ASKED)


def test_the_words_of_an_abort_are_the_cause() -> None:
    with pytest.raises(
        EngineError, match=r"^CP2K stopped: Cholesky decompose failed: the matrix is not positive definite or ill-cond"
    ):
        read_result(TEXT[: TEXT.index(" ENERGY|")] + BOX, ASKED)


def test_an_abort_for_want_of_convergence_is_that() -> None:
    box = BOX.replace(
        "Cholesky decompose failed: the matrix is not positive definite ",
        "SCF run NOT converged. To continue" + " " * 28,
    )
    with pytest.raises(Unconverged, match="SCF run NOT converged"):
        read_result(TEXT[: TEXT.index(" ENERGY|")] + box, ASKED)


def test_warnings_are_told_once() -> None:
    warning = " *** WARNING in cp_fm.F:1 :: The basis set is nearly ***\n *** linearly dependent ***\n"
    found = read_result(TEXT + warning + warning, ASKED)
    assert found.warnings == ("The basis set is nearly linearly dependent",)


def test_reading_costs_little() -> None:
    import time

    start = time.perf_counter()
    for _ in range(10):
        read_result(TEXT, ASKED)
    assert (time.perf_counter() - start) / 10 < 0.05


def test_a_method_whose_name_fills_its_column_is_a_step() -> None:
    rows = (
        "     1 NoMix/Diag. 0.30E-01    0.1     0.35466149        -9.5837072057 -9.58E+00\n"
        "     2 Kerker/Diag.0.30E-01    0.2     0.00000099        -8.0366794747  8.12E-06\n"
    )
    found = list(cp2k_output.steps_of(" SCF WAVEFUNCTION OPTIMIZATION\n\n" + rows))
    assert found == [(1, 0.35466149), (2, 0.00000099)]


def test_line_searches_are_steps_without_a_change() -> None:
    rows = "     1 OT CG       0.15E+00    0.5     0.12645365      -246.6074596690 -2.47E+02\n"
    rows += "     2 OT LS       0.74E-01    0.3                     -246.5111723139\n"
    found = list(cp2k_output.steps_of(" SCF WAVEFUNCTION OPTIMIZATION\n\n" + rows))
    assert found == [(1, 0.12645365), (2, None)]


XTB_TEMPLATE = """\
&FORCE_EVAL
  METHOD QS
  &DFT
    &QS
      METHOD XTB
      &XTB
        DO_EWALD T
      &END XTB
    &END QS
    &SCF
      EPS_SCF 1.0E-6
    &END SCF
  &END DFT
&END FORCE_EVAL
"""


@pytest.mark.cp2k
def test_xtb_computes_with_the_tables_beside_its_template(tmp_path: Path) -> None:
    """What lies beside the template is what CP2K reads, though the template names no file."""
    from ase import Atoms

    from campaign.config.cp2k_data import data_folder
    from campaign.engines import cp2k
    from campaign.frames import Frames
    from campaign.tasks import Context, Task

    data = data_folder()
    assert data is not None
    (tmp_path / "cp2k").mkdir()
    (tmp_path / "cp2k" / "x.inp").write_text(XTB_TEMPLATE)
    (tmp_path / "cp2k" / "dftd3.dat").write_bytes((data / "dftd3.dat").read_bytes())
    (tmp_path / "cp2k" / "xTB_parameters").write_bytes((data / "xTB_parameters").read_bytes())
    extra = {"template": "cp2k/x.inp", "ladder": ["template"], "ranks": 1, "threads": 1, "timeout": 300}
    task = Task("label", "x", {"engine": "cp2k", "frame": 0}, extra=extra)
    atoms = Atoms("Ar2", [[0, 0, 0.1], [3, 3, 0]], cell=np.eye(3) * 6, pbc=True)
    context = Context(tmp_path)
    energy, _, _ = cp2k.label(Frames.from_ase([atoms]), task, context)
    assert energy[0] == pytest.approx(-12.295261816379632 * HARTREE, abs=1e-5)
    output = (context.folder(task) / "attempt-0" / "output.out").read_text()
    assert re.search(r"xTB\| Parameter file +\S*cp2k/xTB_parameters", output)
    assert re.search(r"xTB\| D3 Dispersion: Parameter +\S*cp2k/dftd3\.dat", output)
