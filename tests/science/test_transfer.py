"""Frames of one system made into frames of another: distances, volumes, strains and species, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from campaign.frames import Frames
from campaign.science.transfer import ratio, strains, transferred

IDS = ["00000000000000ff:3", "00000000000000ff:4", "ffffffffffffffff:0"]
NONE = np.zeros((3, 1, 3, 3))


@pytest.fixture
def frames() -> Frames:
    """Three frames of six atoms in skew cells, with all that a frame of biased sampling has."""
    rng = np.random.default_rng(5)
    cell = np.diag([5.0, 6.0, 7.0]) + np.tril(rng.uniform(-1, 1, (3, 3, 3)), -1)
    return Frames.build(
        [28, 28, 28, 41, 41, 28],
        rng.uniform(0, 5, (3, 6, 3)),
        cell,
        energy=[1.0, 2.0, 3.0],
        forces=np.ones((3, 6, 3)),
        stress=np.ones((3, 3, 3)),
        energies=np.ones((3, 6)),
        step=[10, 20, 30],
        walker=2,
        temperature=2000.0,
        pressure=1.0,
        order=0.5,
        bias=0.1,
        weight=0.2,
        scale=0.9,
    )


def distances(frames: Frames, k: int) -> np.ndarray:
    return np.array(frames.to_ase()[k].get_all_distances(mic=True))


def test_distances_scale_by_the_factor_and_volumes_by_its_cube(frames: Frames) -> None:
    found = transferred(frames, {28: 13, 41: 41}, np.full(3, 1.15), NONE)
    np.testing.assert_array_equal(found.positions, frames.positions * 1.15)
    np.testing.assert_array_equal(found.cell, frames.cell * 1.15)
    np.testing.assert_allclose(found.volume, frames.volume * 1.15**3, rtol=1e-14)
    for k in range(3):
        np.testing.assert_allclose(distances(found, k), 1.15 * distances(frames, k), rtol=1e-12)


def test_three_factors_act_along_x_y_and_z(frames: Frames) -> None:
    found = transferred(frames, {28: 28, 41: 41}, np.array([1.1, 1.0, 1.2]), NONE)
    np.testing.assert_allclose(found.volume, frames.volume * 1.1 * 1.2, rtol=1e-13)
    np.testing.assert_array_equal(found.positions[..., 1], frames.positions[..., 1])
    np.testing.assert_array_equal(found.cell[..., 2], frames.cell[..., 2] * 1.2)


def test_species_are_mapped_and_what_belongs_to_the_source_is_dropped(frames: Frames) -> None:
    found = transferred(frames, {28: 41, 41: 28}, np.ones(3), NONE)  # an exchange
    assert found.numbers[0].tolist() == [41, 41, 41, 28, 28, 41]
    for name in (
        "energy",
        "forces",
        "stress",
        "energies",
        "bias",
        "weight",
        "scale",
        "temperature",
        "pressure",
        "order",
    ):
        assert np.isnan(getattr(found, name)).all(), name
    for name in ("step", "walker"):
        np.testing.assert_array_equal(getattr(found, name), getattr(frames, name))
    with pytest.raises(KeyError, match="41"):
        transferred(frames, {28: 13}, np.ones(3), NONE)


def test_strained_copies_follow_each_frame_and_are_strained_as_it_says(frames: Frames) -> None:
    drawn = np.stack([strains(1, name, 0.03, 2) for name in IDS])
    found = transferred(frames, {28: 28, 41: 41}, np.full(3, 1.2), np.concatenate([NONE, drawn], axis=1))
    assert found.step.tolist() == [10, 10, 10, 20, 20, 20, 30, 30, 30]
    np.testing.assert_array_equal(found.cell[::3], frames.cell * 1.2)
    deform = np.eye(3) + drawn[1, 0]
    np.testing.assert_allclose(found.cell[4], frames.cell[1] * 1.2 @ deform, rtol=1e-14)
    np.testing.assert_allclose(found.volume[4], frames.volume[1] * 1.2**3 * np.linalg.det(deform), rtol=1e-12)
    scaled = [f.to_ase()[k].get_scaled_positions(wrap=False) for f, k in ((found, 4), (frames, 1))]
    np.testing.assert_allclose(*scaled, atol=1e-12)


def test_strains_follow_from_the_seed_and_the_source_frame_alone() -> None:
    one = strains(1, IDS[0], 0.03, 3)
    assert one.shape == (3, 3, 3)
    np.testing.assert_array_equal(one, strains(1, IDS[0], 0.03, 3))
    np.testing.assert_array_equal(one, one.swapaxes(1, 2))
    assert np.abs(one).max() <= 0.03
    assert np.abs(one).min() > 0
    others = [strains(2, IDS[0], 0.03, 3), strains(1, IDS[1], 0.03, 3), strains(1, IDS[2], 0.03, 3)]
    assert all(not np.isin(one, other).any() for other in others)
    many = np.concatenate([strains(1, f"{k:016x}:0", 0.03, 1) for k in range(400)])
    assert abs(many.mean()) < 0.002
    assert many.std() == pytest.approx(0.03 / 3**0.5, rel=0.05)


def test_the_ratio_of_two_crystals_gives_an_atom_its_room() -> None:
    fcc = 3.52**3 / 4
    np.testing.assert_allclose(ratio(fcc, 4.05**3 / 4), 4.05 / 3.52)  # of one prototype: the lattice constants'
    found = ratio(fcc, 3.3**3 / 2)
    assert found[0] ** 3 * fcc == pytest.approx(3.3**3 / 2)
    hexagonal = [a * a * c * 3**0.5 / 4 for a, c in ((2.5, 4.1), (3.2, 5.2))]
    found = ratio(*hexagonal)
    assert found.shape == (3,)
    assert found[0] == found[2] == pytest.approx((3.2**2 * 5.2 / (2.5**2 * 4.1)) ** (1 / 3))  # a liquid has no c
