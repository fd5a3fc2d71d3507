"""Neighbour lists against brute force over images."""

import itertools

import numpy as np
import pytest
from ase.data import covalent_radii

from campaign.errors import Unphysical
from campaign.frames import Frames
from campaign.science import neighbours
from campaign.science.neighbours import closest_ratio, minimum_distance, neighbour_list


def some_frames(n=2, a=6, seed=0):
    """Small skewed cells with some atoms outside."""
    rng = np.random.default_rng(seed)
    cell = np.array([[4.0, 0, 0], [0.7, 3.8, 0], [0.3, -0.5, 4.4]]) * (1 + 0.05 * rng.random((n, 1, 1)))
    positions = rng.uniform(-0.6, 1.6, (n, a, 3)) @ cell
    return Frames.build(rng.choice([11, 17], (n, a)), positions, cell)


def brute(positions, cell, cutoff, reach=4):
    """All (i, j, vector) within the cutoff."""
    pairs = []
    for i, j, *s in itertools.product(range(len(positions)), range(len(positions)), *[range(-reach, reach + 1)] * 3):
        d = positions[j] - positions[i] + np.array(s) @ cell
        if np.linalg.norm(d) < cutoff and (i != j or any(s)):
            pairs.append((i, j, *d))
    return np.array(sorted(pairs))


@pytest.fixture(params=["pairs", "cells"])
def search(request, monkeypatch):
    """The loop over pairs and the cell list, each for all frames."""
    if request.param == "cells":
        monkeypatch.setattr(neighbours, "_FEW", 0)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("cutoff", [2.5, 6.0])  # 6.0 exceeds the whole box
def test_pairs_are_those_of_brute_force(cutoff):
    frames = some_frames()
    pairs = neighbour_list(frames, cutoff)
    vectors = pairs.vectors(frames.positions)
    for k in range(len(frames)):
        at = slice(pairs.starts[k], pairs.starts[k + 1])
        found = np.column_stack([pairs.idx_i[at] - 6 * k, pairs.idx_j[at] - 6 * k, vectors[at]])
        found = found[np.lexsort(found.T[::-1])]
        wrapped = brute(frames.positions[k], frames.cell[k], cutoff, reach=8)
        assert found.shape == wrapped.shape
        np.testing.assert_allclose(found[:, :2], wrapped[:, :2])
        order = [np.lexsort(np.round(p, 6).T[::-1]) for p in (found, wrapped)]
        np.testing.assert_allclose(found[order[0]], wrapped[order[1]], atol=1e-9)
    np.testing.assert_allclose(pairs.offsets[: pairs.starts[1]], pairs.shifts[: pairs.starts[1]] @ frames.cell[0])


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("cutoff", [2.5, 6.0])
def test_half_of_the_pairs_stand_for_both_directions(cutoff):
    frames = some_frames(3)
    pairs, half = (neighbour_list(frames, cutoff, half=h) for h in (False, True))
    assert half.half.all()
    assert 2 * len(half) == 2 * pairs.half.sum() == len(pairs)
    np.testing.assert_array_equal(2 * half.starts, pairs.starts)

    def rows(i, j, shifts, offsets):
        found = np.column_stack([i, j, shifts, offsets])
        return found[np.lexsort(found[:, :5].T)]

    there = (half.idx_i, half.idx_j, half.shifts, half.offsets)
    back = (half.idx_j, half.idx_i, -half.shifts, -half.offsets)
    both = [np.concatenate(arrays) for arrays in zip(there, back, strict=True)]
    np.testing.assert_array_equal(rows(*both), rows(pairs.idx_i, pairs.idx_j, pairs.shifts, pairs.offsets))


def test_the_two_searches_agree_also_in_dense_and_thin_and_far_away(monkeypatch):
    rng = np.random.default_rng(3)
    positions = rng.uniform(0, 1, (4, 40, 3))
    cells = np.array(
        [np.eye(3) * 3.0, np.diag([2.0, 40, 0.9]), np.diag([40.0, 40, 40]), [[6.0, 0, 0], [5, 2, 0], [-4, 3, 7]]]
    )
    positions = positions @ cells
    positions[2] += 1e4
    positions[3, ::2] -= 7 * cells[3, 0]
    positions[0] *= 0.2  # far more pairs than are expected of its density
    frames = Frames.build(np.full(40, 11), positions, cells)
    lists = [neighbour_list(frames, 2.0)]
    monkeypatch.setattr(neighbours, "_FEW", 0)
    lists.append(neighbour_list(frames, 2.0))
    keys = []
    for pairs in lists:
        rows = np.column_stack([pairs.idx_i, pairs.idx_j, pairs.shifts])
        keys.append(rows[np.lexsort(rows.T)])
    np.testing.assert_array_equal(*keys)


def test_no_frames_no_neighbours_and_a_huge_cell():
    frames = some_frames()
    assert len(neighbour_list(frames[:0], 3.0)) == 0
    for size in (30.0, 1e7):
        lone = Frames.build([11, 11], [[[0.0, 0, 0], [4.0, 0, 0]]], np.eye(3) * size)
        assert len(neighbour_list(lone, 3.0)) == 0
        assert len(neighbour_list(lone, 5.0)) == 2


@pytest.mark.parametrize("thick", [0.0, 1e-6])
def test_a_cell_in_which_neighbours_cannot_be_counted_is_refused(thick):
    frames = some_frames()
    cell = frames.cell.copy()
    cell[1] = np.diag([4.0, 4.0, thick])
    frames = frames.with_(cell=cell)
    with pytest.raises(Unphysical, match=f"{frames.ids[1]} .* within 3 Å"):
        neighbour_list(frames, 3.0)


def test_shortest_distance_of_each_frame():
    frames = some_frames(3)
    expected = [
        np.linalg.norm(brute(p, c, 5.0)[:, 2:], axis=1).min()
        for p, c in zip(frames.positions, frames.cell, strict=True)
    ]
    np.testing.assert_allclose(minimum_distance(frames), expected)


def test_shortest_distance_beyond_the_first_search_and_to_an_image():
    lone = Frames.build([11], [[[0.0, 0, 0]]], np.eye(3) * 17.0)
    np.testing.assert_allclose(minimum_distance(lone), [17.0])


def test_atoms_at_the_same_place_are_at_distance_zero():
    frames = Frames.build([11, 17], [[[1.0, 1, 1], [1.0, 1, 1]]], np.eye(3) * 6.0)
    assert minimum_distance(frames)[0] == 0.0


def test_ratio_to_the_covalent_radii_takes_the_pair_that_is_relatively_closest():
    # Cs-Cs at 3.4 Å is relatively closer than H-H at 2.0 Å
    frames = Frames.build([55, 55, 1, 1], [[[0.0, 0, 0], [3.4, 0, 0], [0, 9, 0], [2.0, 9, 0]]], np.eye(3) * 20.0)
    np.testing.assert_allclose(closest_ratio(frames), [3.4 / (2 * covalent_radii[55])])
    np.testing.assert_allclose(minimum_distance(frames), [2.0])


def test_positions_that_are_not_finite_are_refused_by_name():
    frames = some_frames()
    broken = frames.positions.copy()
    broken[1, 0, 0] = np.nan
    frames = frames.with_(positions=broken)
    with pytest.raises(Unphysical, match=frames.ids[1]):
        neighbour_list(frames, 3.0)
