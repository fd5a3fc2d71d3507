"""Figures of the physics that a model gives, as Plotly JSON: the model in blue, the reference in grey behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from campaign.report.figures import BLUE, GREY, VERMILION, Figure, axis, numbers
from campaign.report.text import number

Data = Mapping[str, Any]

SIDES = (("reference", {"color": GREY, "width": 4}), ("model", {"color": BLUE, "width": 1.8}))


def density(report: Data) -> Figure | None:
    """Draw density against temperature with error bars."""
    rows: Sequence[Data] = report.get("rows") or []
    kelvin = numbers(report.get("temperatures") or [])
    if not rows or len(kelvin) != len(rows):
        return None
    traces = []
    for side, symbol, size, colour in (("reference", "square-open", 12, GREY), ("model", "circle", 7, BLUE)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+lines",
                "name": side,
                "x": kelvin,
                "y": numbers(r.get(side) for r in rows),
                "error_y": {"type": "data", "array": numbers(r.get(f"{side}_error") for r in rows), "color": colour},
                "marker": {"symbol": symbol, "size": size, "color": colour, "line": {"width": 2, "color": colour}},
                "line": {"color": colour, "width": 1, "dash": "dot"},
            }
        )
    layout = {"xaxis": axis("Temperature, K"), "yaxis": axis("Density, g/cm³"), "showlegend": True}
    return {"data": traces, "layout": layout}


def curves(found: Data, x: str, y: str, window: Sequence[Any]) -> Figure | None:
    """Draw a curve of the model over the reference's; the lags that count are shaded."""
    time = numbers(found.get("time") or [])
    if not time:
        return None
    traces = [_line(side, time, numbers(found.get(side) or []), line) for side, line in SIDES]
    layout: dict[str, Any] = {"xaxis": axis(x), "yaxis": axis(escape(y), rangemode="tozero"), "showlegend": True}
    ends = [number(t) for t in window]
    if None not in ends:
        band = {"type": "rect", "xref": "x", "x0": ends[0], "x1": ends[1], "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [{**band, "fillcolor": GREY, "opacity": 0.12, "line": {"width": 0}, "layer": "below"}]
    return {"data": traces, "layout": layout}


def _line(name: str, x: Sequence[Any], y: Sequence[Any], line: Data) -> Figure:
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": dict(line)}


def along(series: Data) -> Figure | None:
    """Draw the pressure of the model and of the reference along the model's trajectory."""
    time = numbers(series.get("time") or [])
    if not time:
        return None
    thin = {"reference": 3, "model": 1.5}
    traces = [_line(s, time, numbers(series.get(s) or []), {**line, "width": thin[s]}) for s, line in SIDES]
    return {"data": traces, "layout": {"xaxis": axis("Time, ps"), "yaxis": axis("Pressure, bar"), "showlegend": True}}


def nearest(report: Data) -> Figure | None:
    """Draw the histograms of the nearest matches."""
    found: Data = report.get("nearest") or {}
    values = {side: [x for x in numbers(found.get(side) or []) if x is not None] for side, _ in SIDES}
    if not all(values.values()):
        return None
    low, high = min(map(min, values.values())), max(map(max, values.values()))
    bins = {"start": low, "end": high + 1e-12, "size": max((high - low) / 20, 1e-12)}
    traces = [
        {
            "type": "histogram",
            "name": name,
            "x": values[side],
            "xbins": bins,
            "histnorm": "percent",
            "opacity": 0.6,
            "marker": {"color": line["color"]},
        }
        for (side, line), name in zip(SIDES, ("within the reference", "model to reference"), strict=True)
    ]
    layout: dict[str, Any] = {
        "barmode": "overlay",
        "xaxis": axis("Distance to the nearest match"),
        "yaxis": axis("Frames, %"),
        "showlegend": True,
    }
    limit = number(report.get("limit"))
    if limit is not None:
        line = {"color": VERMILION, "width": 2, "dash": "dot"}
        layout["shapes"] = [
            {"type": "line", "xref": "x", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        ]
    return {"data": traces, "layout": layout}


def to_first(first: Data) -> Figure | None:
    """Draw the distance to the reference's first frame against time."""
    traces = []
    for side, line in SIDES:
        found: Data = first.get(side) or {}
        time = numbers(found.get("time") or [])
        if time:
            traces.append(_line(side, time, numbers(found.get("distance") or []), line))
    if not traces:
        return None
    layout = {"xaxis": axis("Time since equilibrium, ps"), "yaxis": axis("Distance", rangemode="tozero")}
    return {"data": traces, "layout": {**layout, "showlegend": True}}


def relaxed(report: Data) -> Figure | None:
    """Draw the energies of the relaxed structures over the reference's lowest one."""
    entries: Sequence[Data] = [e for e in report.get("structures") or [] if e.get("over_lowest")]
    if len(entries) < 2:
        return None
    traces = [
        {
            "type": "bar",
            "name": side,
            "x": [escape(str(e.get("name"))) for e in entries],
            "y": numbers((e["over_lowest"].get(side) for e in entries), 1000.0),
            "marker": {"color": line["color"]},
        }
        for side, line in SIDES
    ]
    layout = {"barmode": "group", "bargap": 0.35, "xaxis": {"showgrid": False}, "yaxis": axis("meV/atom")}
    return {"data": traces, "layout": {**layout, "showlegend": True}}
