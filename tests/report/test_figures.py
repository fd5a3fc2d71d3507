from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest

from campaign.report import figures
from campaign.report.text import cell, count, duration, significant

Data = dict[str, Any]


def drawn(data: Data) -> dict[str, Any]:
    held, steady, rdf = data["validation"]
    names = ["rnd_stream", "random"]
    stages = {"sample": "#000", "label": "#111", "train": "#222", "validate": "#333"}
    return {
        "errors": figures.errors(held["sets"], names),
        "novelty": figures.novelty(data["selection"]),
        "loss": figures.training(data["training"], "loss", "Loss"),
        "parity": figures.parity("forces", held["parity"], names),
        "stability": figures.stability(steady["series"], {"time": 2.1}),
        "rdf": figures.rdf("Na-Cl", rdf["pairs"]["Na-Cl"]),
        "gantt": figures.gantt(data["tasks"], stages),
    }


def test_plotly_knows_every_property(data: Data) -> None:
    """Plotly's own schema rejects a misspelt property, which the browser would ignore in silence."""
    for name, figure in drawn(data).items():
        drawing = go.Figure({"data": figure["data"], "layout": figure["layout"]})
        assert len(drawing.data) == len(figure["data"]), name


def test_errors_are_in_the_unit_of_the_axis(data: Data) -> None:
    figure = drawn(data)["errors"]
    assert figure["data"][0]["y"] == pytest.approx([71.0, 250.0])
    assert "meV/Å" in figure["layout"]["yaxis"]["title"]["text"]


def test_every_chosen_frame_is_ringed_however_long_the_stream() -> None:
    n = 50_000
    chosen = [3, 17, 49_999]
    figure = figures.novelty({"novelty": [1.0] * n, "temperature": [300.0] * n, "chosen": chosen})
    assert figure is not None
    passed, picked = figure["data"]
    assert picked["x"] == chosen
    assert len(passed["x"]) <= figures.MOST_POINTS
    assert len(passed["x"]) == len(passed["y"]) == len(passed["marker"]["color"])


def test_parity_is_thinned_in_pairs() -> None:
    x = [float(k) for k in range(20_000)]
    figure = figures.parity("energy", {"a": {"energy": [x, [v + 1 for v in x]]}}, ["a"])
    assert figure is not None
    points = figure["data"][0]
    assert len(points["x"]) <= figures.MOST_POINTS
    assert all(b - a == 1 for a, b in zip(points["x"], points["y"], strict=True))


def test_gantt_starts_at_zero_with_one_row_a_process(data: Data) -> None:
    figure = drawn(data)["gantt"]
    assert min(min(trace["base"]) for trace in figure["data"]) == 0
    assert figure["layout"]["yaxis"]["categoryarray"] == ["pid 102", "pid 101"]
    hatched = [s for trace in figure["data"] for s in trace["marker"]["pattern"]["shape"] if s]
    assert len(hatched) == sum(r["state"] != "done" for r in data["tasks"])


def test_utilisation_counts_the_gaps_between_tasks_while_some_are_left_to_start() -> None:
    def task(pid: int, start: float, seconds: float, **more: Any) -> Data:
        return {"host": "n", "pid": pid, "start": start, "seconds": seconds, "state": "done", **more}

    # until the last start at 20: worker 1 works 8 + 8 of 20 s, worker 2, which came at 4, 16 of 16 s
    records = [task(1, 0, 8), task(1, 12, 10), task(2, 4, 10), task(2, 14, 6), task(2, 20, 5)]
    workers, share = figures.utilisation(records) or (0, 0.0)
    assert (workers, round(share, 3)) == (2, round(32 / 36, 3))
    lost = task(9, 0, 100, state="failed", transient=True)  # the driver's word on a worker that is gone
    assert figures.utilisation([*records, lost]) == (workers, share)
    assert figures.utilisation([task(1, 0, 5)]) is None
    assert figures.utilisation([]) is None


def test_gantt_names_hosts_where_there_are_several(data: Data) -> None:
    data["tasks"][0]["host"] = "node2"
    assert "node2 pid 101" in figures.gantt(data["tasks"], {"sample": "#000"})["layout"]["yaxis"]["categoryarray"]  # type: ignore[index]


def test_first_bad_moment_is_marked(data: Data) -> None:
    (line,) = drawn(data)["stability"]["layout"]["shapes"]
    assert line["x0"] == line["x1"] == 2.1


def test_nothing_to_draw_is_none() -> None:
    assert figures.errors({}, []) is None
    assert figures.novelty({}) is None
    assert figures.training([], "loss", "Loss") is None
    assert figures.parity("forces", {}, ["a"]) is None
    assert figures.stability({}, None) is None
    assert figures.rdf("Na-Cl", {}) is None
    assert figures.gantt([], {}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0, "0"), (0.0712, "0.0712"), (1234.5, "1234"), (2e-7, "2.00e-07"), (5.0, "5")],
)
def test_significant(value: Any, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.8, "1.80"), (250, "250"), (999.7, "1000"), (0.0336, "0.0336"), (None, "–")]
)
def test_cell(value: Any, text: str) -> None:
    assert cell(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (2.04, "2.0 s"), (59.7, "1 min 00 s"), (301, "5 min 01 s"), (11_220, "3 h 07 min"), (None, "–")],
)
def test_duration(seconds: Any, text: str) -> None:
    assert duration(seconds) == text


def test_count_groups_thousands() -> None:
    assert count(1_234_567) == "1\u2009234\u2009567"
