"""The tests of ``validate`` in the campaign file: defaults written out, and one message for each mistake."""

from pathlib import Path

import pytest
import yaml

from campaign.config import dump, load_campaign
from campaign.config.quantities import parse
from campaign.errors import InputError

GOOD = """\
campaign: nacl
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}
  potential: {lammps: nacl.lmp}
sample:
  - {method: npt, temperature: 1400, walkers: 8, steps: 20000}
select: {method: rnd_stream, size: 32}
label: {engine: lammps}
train: {model: schnet}
validate:
  - {method: stability, temperature: 1400, time: 100}
  - {method: density, temperatures: [1100, 1400], time: 100}
  - {method: diffusion, threshold: 5 %, error: 2 %}
  - {method: conductivity, charges: {Na: 1, Cl: -1}}
  - {method: rerun, threshold: {pressure: 0.1 GPa, energy: 2 meV/atom}}
  - {method: overlap, ensemble: nvt, temperature: 1200, time: 50}
  - {method: relax, structures: [{prototype: rocksalt, elements: [Na, Cl], a: 5.6}, {file: csb.cif}]}
"""
POTENTIAL = "# elements: Na Cl\n# atom_style: charge\npair_style born/coul/long 8\n"
#: Lines of the tests above, counted from the first.
FIRST = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from ase.build import bulk

    (tmp_path / "nacl.lmp").write_text(POTENTIAL)
    (tmp_path / "kcl.lmp").write_text(POTENTIAL.replace("Na", "K"))
    bulk("NaCl", "cesiumchloride", a=3.4).write(tmp_path / "csb.cif")
    bulk("KCl", "rocksalt", a=6.3).write(tmp_path / "kcl.cif")
    return tmp_path


def problems(folder: Path, old: str = "", new: str = "") -> list[str]:
    """Return what is said of the good file with a change."""
    assert old in GOOD
    (folder / "c.yaml").write_text(GOOD.replace(old, new, 1))
    try:
        load_campaign(folder / "c.yaml")
    except InputError as error:
        return [p.replace(f"{folder}/", "") for p in error.problems]
    return []


def test_the_good_file_is_good_and_its_resolved_form_says_all(folder: Path) -> None:
    assert problems(folder) == []
    loaded = load_campaign(folder / "c.yaml")
    assert "csb.cif" in loaded.files
    text = dump(loaded.spec)
    tests = yaml.safe_load(text)["validate"]
    assert tests[1]["threshold"] == "1 %"
    assert tests[4]["threshold"] == {"pressure": "0.1 GPa", "energy": "2 meV/atom"}
    assert tests[2]["temperature"] is None  # the run of the test before it
    overlap = {k: tests[5][k] for k in ("ensemble", "pressure", "timestep", "every", "segment")}
    assert overlap == {"ensemble": "nvt", "pressure": 1.0, "timestep": 0.002, "every": 10, "segment": 500}
    (folder / "again.yaml").write_text(text)
    assert load_campaign(folder / "again.yaml").spec == loaded.spec


def test_labels_of_another_method_are_compared_with_a_potential_only_where_the_file_says_so(folder: Path) -> None:
    """Every test that compares with runs of the cheap potential, which the model was not trained on."""
    said = problems(folder, "label: {engine: lammps}", "label: {engine: ase, calculator: lj}")
    assert len(said) == 6
    assert said[0].startswith(
        "c.yaml:12: validate[1].method: 'density' compares with a LAMMPS potential, and the labels"
    )
    assert all("add 'reference: potential' to compare with the system's all the same" in p for p in said)
    text = GOOD.replace("label: {engine: lammps}", "label: {engine: ase, calculator: lj}")
    lines = text.splitlines()
    for k in range(FIRST, len(lines)):
        lines[k] = lines[k][:-1] + ", reference: potential}"
    (folder / "c.yaml").write_text("\n".join(lines))
    spec = load_campaign(folder / "c.yaml").spec
    assert [getattr(t, "reference", None) for t in spec.validation] == [None, *["potential"] * 6]
    given = "temperatures: [1100, 1400], reference: [1.55, 1.41]"
    lines[FIRST] = lines[FIRST].replace("temperatures: [1100, 1400]", given).replace(", reference: potential", "")
    (folder / "c.yaml").write_text("\n".join(lines))
    assert load_campaign(folder / "c.yaml").spec.validation[1].reference == (1.55, 1.41)  # type: ignore[union-attr]


def test_limits_of_errors_have_units_and_a_plain_number_is_in_ev(folder: Path) -> None:
    tests = "validate:\n  - {method: errors}\n  - {method: errors, threshold: {forces: 0.15, stress: 0.1 GPa}}\n"
    (folder / "c.yaml").write_text(GOOD[: GOOD.index("validate:")] + tests)
    usual, own = (t.threshold for t in load_campaign(folder / "c.yaml").spec.validation)  # type: ignore[union-attr]
    assert usual.model_dump() == {"forces": "20 %", "l4": None, "energy": None, "stress": None}
    assert own.model_dump() == {"forces": "0.15 eV/Å", "l4": None, "energy": None, "stress": "0.1 GPa"}


WRONG = {
    "too few frames for a drift": (
        "temperature: 1400, time: 100}", "temperature: 1400, time: 0.1}", 1, "[0].time", "this run would keep 5 frames",
    ),
    "given densities that are none": (
        "temperatures: [1100, 1400]", "temperatures: [1100, 1400], reference: [1.5, 0]", 2, "[1].reference",
        "above zero",
    ),
    "threshold without a unit": (
        "threshold: 5 %", "threshold: 5", 3, "[2].threshold", "needs its unit, got 5; write it with one of Å^2/ps",
    ),
    "number in quotes": ("threshold: 5 %", 'threshold: "5"', 3, "[2].threshold", "needs its unit, got '5'"),
    "unit of something else": ("threshold: 5 %", "threshold: 5 bar", 3, "[2].threshold", "not one of this quantity"),
    "nothing": ("threshold: 5 %", "threshold: 0 %", 3, "[2].threshold", "above zero"),
    "word": ("threshold: 5 %", "threshold: small", 3, "[2].threshold", "a number with a unit is needed, got 'small'"),
    "per cent of a pressure": (
        "pressure: 0.1 GPa", "pressure: 2 %", 5, "[4].threshold.pressure", "one of bar, kbar, MPa, GPa, atm",
    ),
    "pressure without a unit": ("pressure: 0.1 GPa", "pressure: 100", 5, "[4].threshold.pressure", "needs its unit"),
    "error without a unit": ("error: 2 %", "error: 2", 3, "[2].error", "needs its unit"),
    "a charge is missing": ("Cl: -1", "", 4, "[3].charges", "the charge of Cl is missing"),
    "not neutral": ("Cl: -1", "Cl: -2", 4, "[3].charges", "a charge of -32"),
    "no charge": ("{Na: 1, Cl: -1}", "{Na: 0, Cl: 0}", 4, "[3].charges", "nothing has a charge"),
    "charge of another": ("Cl: -1", "Cl: -1, K: 1", 4, "[3].charges", "there is no K in the system"),
    "charge that is text": ("Cl: -1", "Cl: minus", 4, "[3].charges", "a number is needed"),
    "densities of other temperatures": (
        "[1100, 1400], time", "[1100, 1400], reference: [1.5], time", 2, "[1].reference", "each needs a density",
    ),
    "temperature twice": ("[1100, 1400]", "[1100, 1100]", 2, "[1].temperatures", "comes twice"),
    "run without a length": (", time: 50}", "}", 6, "[5].temperature", "a length too, got 1200; add 'time: 100'"),
    "run without a temperature": ("temperature: 1200, time: 50", "time: 50", 6, "[5].", "add 'temperature: 1400'"),
    "the same run in another way": (
        "temperatures: [1100, 1400], time: 100", "temperatures: [1100, 1400], time: 100, every: 5", 2, "[1].every",
        "already asked for by 'stability' on line 11, got every: 5; write every: 10 as there",
    ),
    "no run at all": (
        "  - {method: stability, temperature: 1400, time: 100}\n", "", 2, "[1].method",
        "'diffusion' works on the run of a 'stability' entry before it",
    ),
    "ages": ("time: 50}", "time: 1e308}", 6, "[5].time", "more than 1e+12 MD steps"),
    "lags the wrong way round": ("threshold: 5 %", "fit: [5, 1]", 3, "[2].fit", "below the last"),
    "element the model has not seen": (
        "csb.cif", "kcl.cif", 7, "[6].structures[1].file", "trained on Cl, Na and knows no K",
    ),
    "element in a prototype": ("[Na, Cl], a: 5.6}", "[K, Cl], a: 5.6}", 7, "structures[0].elements", "knows no K"),
    "too few elements": ("[Na, Cl], a: 5.6}", "[Na], a: 5.6}", 7, "structures[0].elements", "rocksalt has 2 elements"),
    "no such structure": ("csb.cif", "cs.cif", 7, "[6].structures[1].file", "that folder holds"),
    "gamma of another distance": (
        "method: overlap", "method: overlap, distance: schnet, gamma: 1", 6, "[5].gamma", "distance: rematch",
    ),
    "reference of another composition": (
        "{engine: lammps}", "{engine: lammps, potential: {lammps: kcl.lmp}}", -2, "label.potential.lammps",
        "the structure has Na, which this potential (elements K Cl) has not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_one_wrong_thing(folder: Path, case: tuple[str, str, int, str, str]) -> None:
    old, new, line, key, said = case
    found = [p for p in problems(folder, old, new) if key in p]
    assert found, problems(folder, old, new)
    assert said in found[0]
    assert found[0].startswith(f"c.yaml:{FIRST - 1 + line}: ")


def test_crystals_where_none_are_named(folder: Path) -> None:
    named = ", structures: [{prototype: rocksalt, elements: [Na, Cl], a: 5.6}, {file: csb.cif}]"
    assert problems(folder, named, "") == []
    (folder / "c.yaml").write_text(
        GOOD.replace(named, "")
        .replace("supercell: [2, 2, 2]}", "supercell: [2, 2, 2]}", 1)
        .replace(
            "{prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}",
            "{packing: {Na: 32, Cl: 16}, density: 1.0}",
        )
        .replace("Cl: -1}", "Cl: -2}")
    )
    with pytest.raises(InputError, match="no crystals are usual for the elements Cl, Na") as caught:
        load_campaign(folder / "c.yaml")
    assert len(caught.value.problems) == 1


def test_a_reference_that_is_missing(folder: Path) -> None:
    found = problems(folder, "  potential: {lammps: nacl.lmp}\n", "")
    assert sum("needs a potential" in p for p in found) == 2 + 7  # sampling, labels, and every test
    assert problems(folder, "lammps: nacl.lmp", "lammps: nacl_old.lmp")


def test_a_package_that_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("campaign.config.validation_checks.find_spec", lambda name: None)
    (found,) = problems(folder)
    assert "write 'distance: schnet'" in found
    assert problems(folder, "method: overlap", "method: overlap, distance: schnet") == []


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2 %", "density", (2.0, True)),
        ("20 kg/m^3", "density", (0.02, False)),
        ("1e-09 m^2/s", "diffusion", (0.1, False)),
        ("1e-05 cm^2/s", "diffusion", (0.1, False)),
        ("50 S/m", "conductivity", (0.5, False)),
        ("0.1 GPa", "pressure", (1000.0, False)),
        ("5 meV/atom", "energy", (0.005, False)),
    ],
)
def test_quantities(text: str, kind: str, value: tuple[float, bool]) -> None:
    found = parse(text, kind)
    assert found == (pytest.approx(value[0]), value[1])


def test_a_run_that_is_too_short_is_said_before_anything_starts(folder: Path) -> None:
    from campaign.inputs import check_models

    def said(old: str, new: str) -> list[str]:
        assert problems(folder, old, new) == []
        return check_models(load_campaign(folder / "c.yaml"))

    assert said("threshold: 5 %", "fit: [0.5, 5]") == []
    short = said(
        "temperature: 1400, time: 100}\n  - {method: density", "temperature: 1400, time: 10}\n  - {method: density"
    )
    assert len(short) == 2  # diffusion and conductivity of the same run
    assert "c.yaml:13: validate[2]: the run that this works on has no room" in short[0]
    assert "got a run of 10 ps; give that run a time of 12.5 or more" in short[0]
    (of_its_own,) = said("threshold: 5 %", "temperature: 1400, time: 12")
    assert "got a run of 12 ps" in of_its_own
    assert said("threshold: 5 %", "temperature: 1400, time: 13") == []
    (plateau,) = said("Cl: -1}", "Cl: -1}, plateau: [1, 12]")
    assert "validate[3]" in plateau
