"""Frames: blocks whose shapes are checked, ids that never change, and the way to ASE and back."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st

from campaign.frames import LAYOUT, Frames, frame_id, parse_frame_id

RNG = np.random.default_rng(0)


def block(n: int = 4, a: int = 3) -> Frames:
    stress = RNG.normal(size=(n, 3, 3))
    return Frames.build(
        [11, 17, 11][:a],
        RNG.normal(size=(n, a, 3)),
        np.diag([4.0, 5.0, 6.0]),
        energy=np.arange(n),
        forces=RNG.normal(size=(n, a, 3)),
        stress=stress + stress.transpose(0, 2, 1),
        task=0xFFFF_FFFF_FFFF_FFFE,
        walker=3,
        temperature=[300.0, 310.0, 320.0, 330.0][:n],
    )


def test_build_broadcasts_and_fills_in() -> None:
    frames = block()
    assert (len(frames), frames.n_atoms) == (4, 3)
    for name, (_, dtype) in LAYOUT.items():
        assert getattr(frames, name).dtype == dtype, name
        assert getattr(frames, name).flags.c_contiguous, name
    assert np.isnan(frames.pressure).all()
    assert frames.index.tolist() == [0, 1, 2, 3]
    assert frames.step.tolist() == [0] * 4
    np.testing.assert_allclose(frames.volume, 120.0)
    assert frames.ids == [f"fffffffffffffffe:{k}" for k in range(4)]


@pytest.mark.parametrize("name", [n for n in LAYOUT if n != "numbers"])
def test_wrong_shape_is_named(name: str) -> None:
    frames = block()
    value = getattr(frames, name)
    for wrong in (value[:3], value[..., None], np.zeros(())):
        with pytest.raises(ValueError, match=rf"Frames\.{name} has shape .* is needed"):
            frames.with_(**{name: wrong})


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match=r"Frames\.numbers has shape \(3,\); \(n, a\) is needed"):
        block().with_(numbers=np.array([11, 17, 11]))
    with pytest.raises(ValueError, match="is needed"):
        block().with_(numbers=np.ones((4, 2), dtype="int16"))


def test_picking_keeps_ids() -> None:
    frames = block()
    assert frames[[2, 0]].ids == [frames.ids[2], frames.ids[0]]
    assert frames[frames.energy > 1].ids == frames.ids[2:]
    assert Frames.concat([frames[:1], frames[3:]]).ids == [frames.ids[0], frames.ids[3]]
    with pytest.raises(ValueError, match=r"array dimensions|is needed"):
        Frames.concat([block(a=3), block(a=2)])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_frame_id_round_trip(task: int, index: int) -> None:
    text = frame_id(np.uint64(task), np.int32(index))
    assert text == frame_id(task, index)
    name, found = parse_frame_id(text)
    assert (int(name, 16), found) == (task, index)
    assert len(name) == 16


def test_ase_round_trip() -> None:
    frames = block()
    images = frames.to_ase()
    assert [a.info["frame"] for a in images] == frames.ids
    kept = {k: getattr(frames, k) for k in ("task", "walker", "temperature")}
    back = Frames.from_ase(images, **kept)
    for name in LAYOUT:
        np.testing.assert_array_equal(getattr(back, name), getattr(frames, name), err_msg=name)


def test_stress_is_in_ases_voigt_order() -> None:
    stress = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    (atoms,) = block(1).with_(stress=stress[None]).to_ase()
    assert atoms.get_stress().tolist() == [1, 2, 3, 4, 5, 6]
    assert atoms.get_stress(voigt=False).tolist() == stress.tolist()


def test_unknown_results_are_not_made_up() -> None:
    frames = block(2)
    half = frames.forces.copy()
    half[1, 0, 0] = np.nan
    first, second = frames.with_(energy=np.array([1.0, np.nan]), forces=half).to_ase()
    assert sorted(first.calc.results) == ["energy", "forces", "stress"]
    assert sorted(second.calc.results) == ["stress"]
    plain = Frames.from_ase([Atoms("NaCl", positions=np.eye(3)[:2], cell=[4, 4, 4])])
    assert all(np.isnan(getattr(plain, k)).all() for k in ("energy", "forces", "stress"))
    assert plain.to_ase()[0].calc is None


def test_images_of_different_length_are_refused() -> None:
    images = [Atoms("Na", cell=[4] * 3), Atoms("Na2", positions=np.eye(3)[:2], cell=[4] * 3)]
    images[0].calc = SinglePointCalculator(images[0], energy=1.0)
    with pytest.raises(ValueError, match="shape"):
        Frames.from_ase(images)


def test_energies_of_atoms_and_what_a_bias_leaves_go_to_ase_where_they_are_known() -> None:
    plain = block()
    assert "energies" not in plain.to_ase()[0].calc.results
    assert "order" not in plain.to_ase()[0].info
    energies = RNG.normal(size=(4, 3))
    frames = plain.with_(energies=energies, order=np.arange(4.0), bias=np.ones(4), weight=np.full(4, -2.0))
    images = frames.to_ase()
    np.testing.assert_array_equal(images[2].calc.results["energies"], energies[2])
    assert images[2].info["order"] == 2.0
    assert (images[2].info["bias"], images[2].info["weight"]) == (1.0, -2.0)
    assert "scale" not in images[2].info
    np.testing.assert_array_equal(Frames.from_ase(images).energies, energies)
