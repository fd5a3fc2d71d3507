"""What a right campaign file becomes, and that writing it out and reading it back changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign.config import (
    CALCULATORS,
    NPT,
    Campaign,
    RNDStream,
    dump,
    load_campaign,
    read_potential_header,
    read_structure,
    stage_checks,
    template_path,
)
from campaign.config.yaml_lines import parse, write
from campaign.errors import InputError

SMALL = """\
campaign: small
system:
  structure: {prototype: hcp, elements: [No], a: 1e1, c: 16}
sample:
  - {method: fake, walkers: 2, frames: 1e2, segment: 1_0}
"""


def loads(folder: Path, text: str) -> Campaign:
    path = folder / "campaign.yaml"
    path.write_text(text)
    return load_campaign(path).spec


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    spec = loads(tmp_path, SMALL)
    assert spec.system.structure.a == 10.0
    assert isinstance(spec.system.structure.a, float)
    assert spec.sample[0].frames == 100
    assert isinstance(spec.sample[0].frames, int)
    assert spec.sample[0].segment == 10


def test_nobelium_is_not_false(tmp_path: Path) -> None:
    assert loads(tmp_path, SMALL).system.structure.elements == ("No",)


def test_everything_written_out_reads_back(tmp_path: Path) -> None:
    (tmp_path / "pot.lmp").write_text("# elements: Cu Ni\npair_style eam\n")
    text = """
campaign: "007"
system:
  structure: {prototype: fcc, elements: [Cu], a: 3.6}
  potential: {lammps: pot.lmp}
sample:
  - {method: npt, temperature: [300, 400.5], steps: 20000, prepare: [{temperature: 5, time: 1e-5}]}
  - {method: nvt, temperature: 300, steps: 20000, ranks: 2}
select: {method: random, size: 3}
label: {engine: ase, calculator: lj, parameters: {sigma: "1e3", epsilon: ["null", 1e-7, "02:00:00", "~"], rc: 2}}
train: {model: schnet, rate: 1e-4}
validate:
  - {method: errors, held_out: 10, against: [random], threshold: {forces: null}}
  - {method: stability, temperature: 300, time: 1}
  - {method: rdf, reference: potential}
"""
    spec = loads(tmp_path, text)
    assert loads(tmp_path, dump(spec)) == spec
    assert spec.label.parameters["sigma"] == "1e3"
    written = yaml.safe_load(dump(spec))
    assert written["sample"][0]["thermostat"] == 0.1  # defaults are written out
    assert written["select"]["min_distance"] == 0.5
    assert written["campaign"] == "007"


def test_models_are_frozen(tmp_path: Path) -> None:
    spec = loads(tmp_path, SMALL)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3


def test_frames_of_a_walker() -> None:
    assert NPT(temperature=300, steps=20000, every=100).frames == 200


def test_defaults_of_the_selector() -> None:
    select = RNDStream(size=32)
    assert (select.candidates, select.early, select.min_distance) == (8.0, 0.25, 0.5)
    assert select.representation.pooling == "species_extremes"


def test_soap_is_another_representation() -> None:
    select = RNDStream(size=32, representation={"model": "soap", "cutoff": 5})
    assert select.representation.model_dump() == {
        "model": "soap", "cutoff": 5.0, "n_max": 8, "l_max": 6, "sigma": 0.5, "pooling": "species_extremes"
    }  # fmt: skip
    assert RNDStream(size=32, representation={"features": 16}).representation.model == "schnet"


@pytest.mark.parametrize(
    ("representation", "key", "message"),
    [
        ("{model: sop}", ".model", "got 'sop'; did you mean 'soap'?"),
        ("{model: soap, cutoff: 0.5}", ".cutoff", "got 0.5; write a number greater than 1"),
        ("{model: soap, features: 3}", ".features", "the keys here are model, cutoff, n_max"),
        ("{model: soap, l_max: 21}", ".l_max", "got 21"),
        ("{pooling: atoms}", ".pooling", "got 'atoms'; write one of mean, species, species_std, species_extremes"),
        ("soap", "", "got 'soap'; write '{model: schnet, ...}'"),
    ],
)
def test_wrong_representations(tmp_path: Path, representation: str, key: str, message: str) -> None:
    text = SMALL + f"select: {{method: rnd_stream, size: 2, representation: {representation}}}\n"
    with pytest.raises(InputError) as caught:
        loads(tmp_path, text)
    line = len(text.splitlines())
    assert f":{line}: select.representation{key}: " in str(caught.value)
    assert message in str(caught.value)


def test_soap_without_dscribe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SMALL + "select: {method: rnd_stream, size: 2, representation: {model: soap}}\n"
    monkeypatch.setattr(stage_checks, "find_spec", lambda name: object())
    assert loads(tmp_path, text).select is not None
    monkeypatch.setattr(stage_checks, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"select\.representation\.model: SOAP .*; run pip install 'campaign\[select\]'"
    ):
        loads(tmp_path, text)


def test_calculators_exist() -> None:
    from importlib import import_module
    from importlib.util import find_spec

    from campaign.config.labels import CALCULATOR_EXTRAS

    for path in CALCULATORS.values():
        module, _, name = path.rpartition(".")
        if module.partition(".")[0] in CALCULATOR_EXTRAS and find_spec(module.partition(".")[0]) is None:
            continue
        assert hasattr(import_module(module), name)


def test_a_structure_file_gives_its_elements(tmp_path: Path) -> None:
    from ase.build import bulk

    bulk("NaCl", "rocksalt", a=5.6).write(tmp_path / "start.extxyz")
    (tmp_path / "k.lmp").write_text("# elements: K Cl\npair_style zero 5\n")
    text = """
campaign: a
system: {structure: {file: start.extxyz}, potential: {lammps: k.lmp}}
sample: [{method: nvt, temperature: 300, steps: 1000}]
"""
    with pytest.raises(InputError, match=r":3: system.potential.lammps: the structure has Na, .*Na in it"):
        loads(tmp_path, text)
    assert len(read_structure(tmp_path / "start.extxyz")) == 2
    assert set(load_campaign_files(tmp_path, text.replace("k.lmp", "na.lmp"))) == {"start.extxyz", "na.lmp"}


def load_campaign_files(folder: Path, text: str) -> dict[str, Path]:
    (folder / "na.lmp").write_text("# elements: Na Cl\npair_style zero 5\n")
    (folder / "campaign.yaml").write_text(text)
    return dict(load_campaign(folder / "campaign.yaml").files)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("pair_style zero 5\n", 1, "# elements: Na Cl"),
        ("pair_style zero 5\n# elements: Na\n", 1, "begin the file"),
        ("# atom_style: atomic\n# elements: Na Xx\npair_style zero 5\n", 2, "'Na Xx'"),
        ("# elements: Na Na\npair_style zero 5\n", 1, "different"),
        ("# elements:\npair_style zero 5\n", 1, "''"),
        ("# elements: Na\n# atom_style: full\npair_style zero 5\n", 2, "atomic, charge"),
        ("# elements: Na\n\nunits real\npair_style zero 5\n", 3, "units metal"),
        ("# elements: Na\n", 1, "pair_coeff"),
    ],
)
def test_wrong_potential_headers(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "x.lmp"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_potential_header(path)
    assert str(caught.value).startswith(f"{path}:{line}: potential: ")
    assert words in str(caught.value)


def test_right_potential_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.lmp"
    path.write_text("# Any title\n\n#elements:  Na   Cl\n# atom_style: charge\nunits metal\npair_style zero 5\n")
    header = read_potential_header(path)
    assert (header.elements, header.atom_style) == (("Na", "Cl"), "charge")
    path.write_text("# elements: Ar\npair_style zero 5\n")
    assert read_potential_header(path).atom_style == "atomic"


# Whatever stands in a file, reading it ends in a campaign or in an InputError.

FIXED = load_campaign(template_path("quickstart")).lines
KEYS = st.sampled_from(
    sorted({key.rpartition(".")[2].partition("[")[0] for key in FIXED} | {"file", "c", "fail", "delay"})
)
WORDS = st.sampled_from(
    ["npt", "fake", "rnd_stream", "schnet", "lammps", "rocksalt", "fcc", "Na", "x", "../x", "\0", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)


def read_any(text: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "campaign.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        problems: Sequence[str] = [f"{path}:"]
        try:
            load_campaign(path)
        except InputError as error:
            problems = error.problems
        assert problems
        assert all(p.startswith(f"{path}:") for p in problems)
        assert all(p.isprintable() for p in problems)


@given(st.text() | st.binary() | st.text(alphabet="ab:-[]{}?!&*#|>'\"%@\\,.0123 \n\t~<\u2028\ufeff"))
@example("? \n? ")
@example("%TAG ! x\n---\na: !b c")
@example("<<: [a]")
@example("\ufeffcampaign: a")
@example("a: |\n  x\n y")
@example("{a: [b: {c}]}")
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    read_any(text)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
@settings(max_examples=300)
def test_any_data_is_read_or_refused(data: dict[str, Any]) -> None:
    read_any(yaml.safe_dump(data, allow_unicode=True))


@given(st.lists(st.tuples(st.integers(0, 13), VALUES), min_size=1, max_size=4))
@settings(max_examples=200)
def test_any_value_in_a_right_place_is_read_or_refused(changes: list[tuple[int, Any]]) -> None:
    sample: dict[str, Any] = {"method": "npt", "temperature": 300, "steps": 1000, "walkers": 2}
    structure: dict[str, Any] = {"prototype": "fcc", "elements": ["Cu"], "a": 3.6}
    data: dict[str, Any] = {
        "campaign": "a",
        "system": {"structure": structure, "potential": {"lammps": "x"}},
        "sample": [sample],
        "select": {"method": "random", "size": 3},
        "label": {"engine": "lammps"},
        "train": {"model": "schnet", "loss": {"energy": 1}},
        "validate": [{"method": "errors"}],
    }
    places: list[tuple[Any, Any]] = [(data, k) for k in data] + [(sample, k) for k in sample]
    places += [(structure, k) for k in structure]
    for place, value in changes:
        where, key = places[place]
        where[key] = value
    read_any(yaml.safe_dump(data, allow_unicode=True))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("éÅ≥\n"), max_size=12)
    | st.sampled_from(
        ["1e3", "0x1F", "010", "no", "~", "null", "nan", ".inf", "12:30:45", "1_000", "", " x ", "2001-01-01"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_-1.", max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=300)
def test_written_data_reads_back(data: Any) -> None:
    document = parse(write(data))
    assert document.problems == []
    assert document.data == data
    assert repr(document.data) == repr(data)  # 1 is not 1.0, nor true
