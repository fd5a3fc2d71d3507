from __future__ import annotations

import copy
import html
import re
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest

from campaign.report import sampling_figures as figures
from campaign.report.html import render
from campaign.report.sampling import sampling

Data = dict[str, Any]


def shown(data: Data) -> str:
    """Return the text of the page."""
    page = re.sub(r"(?s)<(script|style).*?</\1>", " ", render(data))
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.fixture
def momt(data: Data) -> Data:
    found: Data = data["sampling"][0]["momt"]
    return found


def section(data: Data) -> Data:
    found = sampling(data["sampling"], lambda name, figure: name if figure else None)
    assert found is not None
    part: Data = found["momt"][0]
    return part


def test_plotly_knows_every_property(momt: Data) -> None:
    """Plotly's own schema rejects a misspelt property, which the browser would ignore in silence."""
    flat = {**momt["map"], "q": [0, 1], "visits": [[sum(row)] for row in momt["map"]["visits"]]}
    for figure in (
        figures.visits(momt["map"]),
        figures.visits(flat),
        figures.progress(momt["walkers"], ordered=True),
        figures.progress(momt["walkers"], ordered=False),
        figures.enthalpy(momt["series"], momt["window"]),
        figures.enthalpy({**momt["series"], "q": []}, momt["window"]),
    ):
        assert figure is not None
        assert go.Figure({"data": figure["data"], "layout": figure["layout"]}).data


def test_the_map_has_h_across_q_up_and_the_colour_of_the_logarithm() -> None:
    figure = figures.visits({"h": [-3.0, -2.0, -1.0], "q": [0, 0.25, 0.5, 1], "visits": [[1, 0, 0], [100, 10, 0]]})
    assert figure is not None
    (heat,) = figure["data"]
    assert (len(heat["x"]), len(heat["y"])) == (3, 4)
    assert heat["z"] == [[0, 2], [None, 1], [None, None]]
    assert heat["customdata"] == [[1, 100], [0, 10], [0, 0]]
    assert heat["colorbar"]["ticktext"] == ["1", "10", "100"]


def test_without_an_order_parameter_the_map_is_a_histogram_and_no_round_trip_is_counted(data: Data, momt: Data) -> None:
    momt.update(ordered=False)
    momt["map"] = {"h": [0.0, 1.0, 2.0], "q": [0, 1], "visits": [[3], [5]], "coverage": 1.0, "missing": []}
    momt["series"]["q"] = []
    figure = figures.visits(momt["map"])
    assert figure is not None
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([0.5, 1.5], [3, 5])
    part = section(data)
    assert "no order parameter" in part["sentence"]
    assert part["sentence"].endswith("together the walkers visited 100 % of the enthalpies of the window.")
    assert "Round trips" not in shown(data)
    assert (part["drawn"], part["warnings"]) == ("coverage", [])


def test_a_reader_is_told_how_often_they_went_and_what_was_visited(data: Data, momt: Data) -> None:
    for walker, trips in zip(momt["walkers"], (4.5, 2, 1, 1), strict=True):
        walker["trips"][-1] = trips
    momt["map"]["coverage"] = 0.71
    text = shown(data)
    # 8.5 in 3 x 500 000 + 150 000 steps
    assert "back 8.5 times in all (a half is one way), 5.15 times per million MD steps; together they" in text
    assert "visited 71 % of the map" in text
    assert "The window is -4.75 to -4.08 eV/atom, found by two short NPT runs" in text
    momt["auto"] = False
    assert "-4.08 eV/atom, written in the campaign file" in shown(data)


def test_walkers_that_are_far_from_convergence_are_warned_of(data: Data, momt: Data) -> None:
    assert section(data)["warnings"] == []
    walkers = momt["walkers"]
    for walker, trips in zip(walkers, (0, 0.5, 3, 0), strict=True):
        walker["trips"][-1] = trips
    walkers[2]["coverage"][-1] = 0.29
    trips, little = section(data)["warnings"]
    assert trips.startswith("Walkers 0 and 1, 3 made no round trip")
    assert "Raise 'steps'" in trips
    assert little.startswith("Walker 2 visited less than 30 % of the map")
    assert shown(data).index("made no round trip") < shown(data).index("Flatness")


def test_where_nobody_went_and_came_back_the_coverage_is_drawn(data: Data, momt: Data) -> None:
    for walker in momt["walkers"]:
        walker["trips"] = [0.0] * len(walker["steps"])
    part = section(data)
    assert part["sentence"].startswith("The 4 walkers never went from crystal to liquid or back; together they")
    assert part["warnings"][0].startswith("All 4 walkers made no round trip")
    assert part["drawn"] == "coverage"
    figure = figures.progress(momt["walkers"], ordered=True)
    assert figure is not None
    assert figure["data"][0]["y"][-1] == pytest.approx(momt["walkers"][0]["coverage"][-1])


def test_lines_start_at_nothing_and_end_with_the_last_segment_however_many_there_are() -> None:
    n = 20_000
    walker = {"steps": list(range(1, n + 1)), "trips": [float(k) for k in range(1, n + 1)]}
    figure = figures.progress([{**walker, "number": k} for k in range(30)], ordered=True)
    assert figure is not None
    assert sum(len(trace["x"]) for trace in figure["data"]) <= figures.MOST_POINTS + 2 * 30
    for trace in figure["data"]:
        assert (trace["x"][0], trace["x"][-1]) == (0, n)
        assert trace["x"] == trace["y"]
        assert all(a < b for a, b in pairwise(trace["x"]))


def test_the_walkers_enthalpy_has_the_window_around_it(momt: Data) -> None:
    figure = figures.enthalpy(momt["series"], momt["window"])
    assert figure is not None
    assert [line["y0"] for line in figure["layout"]["shapes"]] == momt["window"]
    (trace,) = figure["data"]
    assert len(trace["x"]) == len(trace["y"]) == len(trace["marker"]["color"])


def test_a_map_that_cannot_be_read_is_said(data: Data, momt: Data) -> None:
    momt["map"]["missing"] = [2, 3]
    assert "Without Walkers 2 and 3." in shown(data)
    momt["map"] = {}
    assert "The map of visits cannot be drawn" in shown(data)


def test_many_walkers_are_counted_not_named(data: Data, momt: Data) -> None:
    one = momt["walkers"][0]
    momt["walkers"] = [{**copy.deepcopy(one), "number": k} for k in range(150)]
    for walker in momt["walkers"][::2]:
        walker["trips"][-1] = 0
    part = section(data)
    assert part["warnings"][0].startswith("75 of 150 walkers made no round trip")
    assert (len(part["walkers"]), part["left_out"]) == (100, 50)


def test_a_stopped_walker_is_a_failure_once_and_not_mended(data: Data) -> None:
    cause = "Walker 3 stopped: Two atoms met <here>."
    data["status"]["failures"].append({"task": "sample5", "stage": "sample", "cause": cause})
    text = shown(data)  # task sample5 failed at first, and is done
    assert text.count("Walker 3 stopped: Two atoms met <here>.") == 1
    assert "Mended by a retry" not in text
    assert "2 failures" in text
    assert "✗ stopped" in text
    assert "<here>" not in render(data)
