"""The figures of sampling as Plotly JSON (see ``campaign.report.figures``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from campaign.report.figures import (
    BLUE,
    CYCLE,
    DASHES,
    GREY,
    MOST_POINTS,
    TEMPERATURES,
    VERMILION,
    Figure,
    axis,
    numbers,
    stride,
)
from campaign.report.text import count, number

#: Walkers that have a colour and a line in the legend, at most.
MOST_NAMED = 12

ENTHALPY = "Enthalpy, eV/atom"
ORDER = "Order Q"

Data = Mapping[str, Any]


def visits(seen: Data) -> Figure | None:
    """Draw how often each cell of the map was visited: colours in (h, Q), bars where there is no order parameter.

    Parameters
    ----------
    seen
        ``h`` and ``q``, the edges of the cells, and ``visits`` (cells in h, cells in Q).
    """
    counts = [[int(v) for v in row] for row in seen.get("visits") or []]
    if not any(map(any, counts)):
        return None
    h, q = numbers(seen["h"]), numbers(seen["q"])
    if len(counts[0]) == 1:
        return _histogram(h, [row[0] for row in counts])
    columns = [list(column) for column in zip(*counts, strict=True)]  # Plotly's rows run along y
    top = math.ceil(math.log10(max(map(max, counts)))) or 1
    bar = {
        "title": {"text": "Visits", "side": "top"},
        "thickness": 10,
        "len": 0.95,
        "outlinewidth": 0,
        "tickvals": list(range(top + 1)),
        "ticktext": [count(10**k) for k in range(top + 1)],
    }
    heat = {
        "type": "heatmap",
        "x": h,
        "y": q,
        "z": [[round(math.log10(v), 3) if v else None for v in column] for column in columns],
        "customdata": columns,
        "zmin": 0,
        "zmax": math.log10(max(map(max, counts))) or 1,
        "colorscale": TEMPERATURES,
        "colorbar": bar,
        "hoverongaps": False,
        "hovertemplate": "h %{x:.4g} eV/atom, Q %{y:.2f}: %{customdata} visits<extra></extra>",
    }
    return {
        "data": [heat],
        "layout": {
            "xaxis": axis(ENTHALPY, showgrid=False),
            "yaxis": axis(ORDER, range=[0, 1], showgrid=False),
            "showlegend": False,
        },
    }


def _histogram(edges: Sequence[float | None], counts: list[int]) -> Figure:
    centres = [(a + b) / 2 for a, b in pairwise(edges) if a is not None and b is not None]
    bars = {
        "type": "bar",
        "x": numbers(centres),
        "y": counts,
        "marker": {"color": BLUE},
        "hovertemplate": "h %{x:.4g} eV/atom: %{y} visits<extra></extra>",
    }
    return {
        "data": [bars],
        "layout": {
            "bargap": 0.05,
            "xaxis": axis(ENTHALPY),
            "yaxis": axis("Visits", rangemode="tozero"),
            "showlegend": False,
        },
    }


def counts_trips(walkers: Sequence[Data], ordered: bool) -> bool:
    """Tell whether there are round trips to draw; otherwise ``progress`` draws the coverage."""
    return ordered and any(number((w.get("trips") or [0])[-1]) for w in walkers)


def progress(walkers: Sequence[Data], ordered: bool) -> Figure | None:
    """Draw the round trips of each walker against its MD steps; its coverage where nobody made any.

    Parameters
    ----------
    walkers
        ``number`` and, at the end of each finished segment, ``steps``, ``trips`` and ``coverage``.
    ordered
        Whether there is an order parameter: without one there are no round trips.
    """
    key, title = (
        ("trips", "Round trips") if counts_trips(walkers, ordered) else ("coverage", "Share of the map visited")
    )
    shown = [w for w in walkers if w.get("steps") and w.get(key)]
    if not shown:
        return None
    named = len(shown) <= MOST_NAMED
    end = max(number(w["steps"][-1]) or 0.0 for w in shown)
    traces = []
    for k, w in enumerate(shown):
        x, y = [0, *w["steps"]], [0.0, *numbers(w[key])]
        step = stride(len(x), max(2, MOST_POINTS // len(shown)))
        x, y = [*x[:-1:step], x[-1]], [*y[:-1:step], y[-1]]
        line = {"color": CYCLE[k % len(CYCLE)], "dash": DASHES[k // len(CYCLE) % len(DASHES)], "width": 1.8}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"walker {w.get('number', k)}",
                "x": x,
                "y": y,
                "line": line if named else {"color": GREY, "width": 1},
                "hovertemplate": f"walker {w.get('number', k)}: %{{y:.3g}} after %{{x}} steps<extra></extra>",
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": axis("MD steps", range=[0, 1.04 * end], exponentformat="SI"),  # room for the last label
            "yaxis": axis(title, rangemode="tozero"),
            "showlegend": named and len(shown) > 1,
        },
    }


def enthalpy(series: Data, window: Sequence[Any]) -> Figure | None:
    """Draw a walker's enthalpy along its steps, coloured by its order where there is one, with the window's edges.

    Parameters
    ----------
    series
        ``step``, ``h`` (eV/atom) and ``q`` of each point; ``q`` empty where there is no order parameter.
    window
        Its lower and upper edge, eV/atom.
    """
    h, steps = numbers(series.get("h") or []), list(series.get("step") or [])
    if not h or len(steps) != len(h):
        return None
    every = stride(len(h))
    order = numbers(series.get("q") or [])
    coloured = len(order) == len(h) and any(q is not None for q in order)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if coloured else "lines",
        "x": steps[::every],
        "y": h[::every],
        "line": {"color": GREY if coloured else BLUE, "width": 0.6 if coloured else 1.2},
        "hovertemplate": "step %{x}: %{y:.4g} eV/atom<extra></extra>",
    }
    if coloured:
        bar = {"title": {"text": "Q", "side": "top"}, "thickness": 10, "len": 0.95, "outlinewidth": 0}
        colour = {"color": order[::every], "colorscale": TEMPERATURES, "cmin": 0, "cmax": 1, "colorbar": bar}
        trace["marker"] = {"size": 4, **colour}
        trace["customdata"] = order[::every]
        trace["hovertemplate"] = "step %{x}: %{y:.4g} eV/atom, Q %{customdata:.2f}<extra></extra>"
    dashed = {"color": VERMILION, "width": 1, "dash": "dot"}
    edges = [e for e in map(number, window) if e is not None]
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": e, "y1": e, "line": dashed}
        for e in edges
    ]
    return {
        "data": [trace],
        "layout": {
            "xaxis": axis("MD steps", exponentformat="SI"),
            "yaxis": axis(ENTHALPY),
            "showlegend": False,
            "shapes": shapes,
        },
    }
