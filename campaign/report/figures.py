"""The figures of the report as Plotly JSON: data and axes only; the page adds colours of light, dark and print.

Series are coloured after Okabe and Ito (2008), which people with any colour vision tell apart; every series also
differs by dash, symbol or label.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from campaign.report.text import number

Figure = dict[str, Any]

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8A8A8A",
)
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
#: Viridis without its darkest and palest ends, which vanish on a dark or a white page.
TEMPERATURES = [[0, "#46327E"], [0.25, "#365C8D"], [0.5, "#1FA187"], [0.75, "#4AC16D"], [1, "#D8B500"]]
#: Plotted points beyond which a browser turns slow; more are thinned out evenly.
MOST_POINTS = 4000
MOST_BARS = 3000

MEV = 1000.0
GPA = 160.21766208  # eV/Å^3 in GPa
#: Quantity -> (title, unit shown, factor from the unit stored).
QUANTITIES = {
    "energy": ("Energy", "meV/atom", MEV),
    "forces": ("Force", "meV/Å", MEV),
    "stress": ("Stress", "GPa", GPA),
}
#: The same for a parity plot, whose axes span far more than an error does.
SPANS = {
    "energy": ("Energy", "eV/atom", 1.0),
    "forces": ("Force", "eV/Å", 1.0),
    "stress": ("Stress", "GPa", GPA),
}
SERIES = {
    "temperature": "Temperature, K",
    "energy": "Energy, eV/atom",
    "volume": "Volume, Å³/atom",
    "max_force": "Largest force, eV/Å",
    "min_distance": "Shortest distance, Å",
}


def numbers(values: Iterable[Any], factor: float = 1.0) -> list[float | None]:
    """Return floats rounded to seven digits (a page carries thousands), None where not finite."""
    found = (number(v) for v in values)
    return [None if x is None else float(f"{x * factor:.7g}") for x in found]


def stride(count: int, most: int = MOST_POINTS) -> int:
    """Return the step that thins ``count`` points to at most ``most``."""
    return max(1, math.ceil(count / most))


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": title}, **more}


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each training set, the same in every figure that keeps their order; random is grey."""
    return {name: GREY if name == "random" else CYCLE[k % len(CYCLE)] for k, name in enumerate(names)}


def errors(sets: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Figure | None:
    """Draw force RMSE and L4 of every training set side by side, meV/Å, as bars."""
    colours = colours_of(names)
    traces = []
    for name in names:
        forces = sets[name].get("forces") or {}
        values = [number(forces.get(key)) for key in ("rmse", "l4")]
        if any(v is not None for v in values):
            shown = [None if v is None else v * MEV for v in values]
            traces.append(
                {
                    "type": "bar",
                    "name": escape(name),
                    "x": ["RMSE", "L4 norm"],
                    "y": shown,
                    "text": ["" if v is None else f"{v:.0f}" for v in shown],
                    "textposition": "outside",
                    "cliponaxis": False,
                    "marker": {"color": colours[name]},
                    "hovertemplate": "%{x}: %{y:.1f} meV/Å<extra>" + escape(name) + "</extra>",
                }
            )
    if not traces:
        return None
    return {
        "data": traces,
        "layout": {
            "barmode": "group",
            "bargap": 0.35,
            "xaxis": {"showgrid": False},
            "yaxis": axis("Force error, meV/Å", rangemode="tozero"),
            "showlegend": True,
        },
    }


def novelty(selection: Mapping[str, Any]) -> Figure | None:
    """Draw the novelty of each frame as the selector saw it, the chosen ones ringed.

    At most ``MOST_POINTS`` frames that were passed over are drawn, evenly thinned; every chosen one is.
    """
    values = numbers(selection.get("novelty") or [])
    if not values:
        return None
    kelvin = numbers(selection.get("temperature") or [])
    chosen = [c for c in selection.get("chosen") or [] if 0 <= c < len(values)]
    seen = range(0, len(values), stride(len(values)))
    marker: dict[str, Any] = {"size": 4, "opacity": 0.75, "color": GREY}
    if len(kelvin) == len(values) and any(k is not None for k in kelvin):
        bar = {"title": {"text": "K", "side": "top"}, "thickness": 10, "len": 0.9, "outlinewidth": 0}
        marker.update(color=[kelvin[i] for i in seen], colorscale=TEMPERATURES, colorbar=bar)
    finite = [v for v in values if v is not None]
    scale = "log" if finite and min(finite) > 0 and max(finite) > 30 * min(finite) else "linear"
    passed = {
        "type": "scatter",
        "mode": "markers",
        "name": "frame seen",
        "x": list(seen),
        "y": [values[i] for i in seen],
        "marker": marker,
        "hovertemplate": "frame %{x}: novelty %{y:.3g}<extra></extra>",
    }
    picked = {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen",
        "x": chosen,
        "y": [values[i] for i in chosen],
        "marker": {"symbol": "circle-open", "size": 11, "line": {"width": 2}, "color": VERMILION},
        "hovertemplate": "chosen: frame %{x}, novelty %{y:.3g}<extra></extra>",
    }
    return {
        "data": [passed, picked],
        "layout": {
            "xaxis": axis("Frames seen, in stream order"),
            "yaxis": axis("Novelty", type=scale),
            "showlegend": True,
        },
    }


def training(runs: Sequence[Mapping[str, Any]], key: str, title: str) -> Figure | None:
    """Draw one quantity of every training run against the epoch, on a logarithmic axis.

    Runs are named ``set/member``: one colour a training set, one dash a member.
    """
    groups = {str(run.get("name", k)): str(run.get("name", k)).partition("/")[0] for k, run in enumerate(runs)}
    colours = colours_of(list(dict.fromkeys(groups.values())))
    members: Counter[str] = Counter()
    traces = []
    for k, run in enumerate(runs):
        name = str(run.get("name", k))
        dash = DASHES[members[groups[name]] % len(DASHES)]
        members[groups[name]] += 1
        factor = MEV if key == "force_rmse" else 1.0
        y = numbers(run.get(key) or [], factor)
        if any(v is not None for v in y):
            step = stride(len(y))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if len(y) > 1 else "markers",
                    "name": escape(name),
                    "x": list(run.get("epoch") or range(1, len(y) + 1))[::step],
                    "y": y[::step],
                    "line": {"color": colours[groups[name]], "dash": dash, "width": 1.8},
                }
            )
    if not traces:
        return None
    return {
        "data": traces,
        "layout": {"xaxis": axis("Epoch"), "yaxis": axis(title, type="log"), "showlegend": True},
    }


def parity(quantity: str, sets: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """Draw predicted against reference values of one quantity, one colour and symbol a training set."""
    title, unit, factor = SPANS.get(quantity, (quantity.capitalize(), "", 1.0))
    colours = colours_of(names)
    traces: list[Figure] = []
    ends: list[float] = []
    for k, name in enumerate(names):
        pair = (sets.get(name) or {}).get(quantity)
        if not pair or len(pair) != 2 or not pair[0]:
            continue
        step = stride(len(pair[0]))
        x, y = numbers(pair[0][::step], factor), numbers(pair[1][::step], factor)
        ends += [v for v in (*x, *y) if v is not None]
        symbol = SYMBOLS[k % len(SYMBOLS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(name),
                "x": x,
                "y": y,
                "marker": {"size": 4, "opacity": 0.6, "color": colours[name], "symbol": symbol},
            }
        )
    if not ends:
        return None
    traces.reverse()  # the selector's points on top
    line = {"color": VERMILION, "width": 1, "dash": "dot"}
    low, high = min(ends), max(ends)
    ideal = {"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "line": line}
    traces.append({**ideal, "name": "exact", "showlegend": False, "hoverinfo": "skip"})
    label = f"{title.lower()}, {unit}" if unit else title.lower()
    return {
        "data": traces,
        "layout": {
            "xaxis": axis(f"Reference {label}"),
            "yaxis": axis(f"Model {label}"),
            "showlegend": True,
            "legend": {"traceorder": "reversed"},
        },
    }


def stability(series: Mapping[str, Any], first_bad: Mapping[str, Any] | None) -> Figure | None:
    """Draw the series of a molecular-dynamics run stacked over one time axis; the first bad moment is a line."""
    time = numbers(series.get("time") or [])
    shown = [key for key in SERIES if series.get(key)]
    if not time or not shown:
        return None
    step = stride(len(time), MOST_POINTS // 2)
    layout: dict[str, Any] = {"showlegend": False, "xaxis": axis("Time, ps"), "annotations": []}
    traces = []
    height = 1 / len(shown)
    for k, key in enumerate(shown):
        bottom = 1 - (k + 1) * height
        suffix = "" if k == 0 else str(k + 1)
        top = bottom + height * 0.74
        layout[f"yaxis{suffix}"] = {"domain": [bottom, top], "nticks": 4}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": time[::step],
                "y": numbers(series[key])[::step],
                "yaxis": f"y{suffix}",
                "name": SERIES[key],
                "line": {"color": CYCLE[k % len(CYCLE)], "width": 1.5},
            }
        )
        label = {"text": SERIES[key], "showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "xanchor": "left"}
        layout["annotations"].append({**label, "y": top, "yanchor": "bottom", "font": {"size": 12}})
    layout["xaxis"]["anchor"] = "y" if len(shown) == 1 else f"y{len(shown)}"
    moment = number((first_bad or {}).get("time"))
    if moment is not None:
        line = {"color": VERMILION, "width": 2, "dash": "dash"}
        layout["shapes"] = [
            {"type": "line", "xref": "x", "x0": moment, "x1": moment, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        ]
    return {"data": traces, "layout": layout, "height": 60 + 120 * len(shown)}


def rdf(pair: str, curves: Mapping[str, Any]) -> Figure | None:
    """Draw the radial distribution function of one pair of species: model over reference."""
    r = numbers(curves.get("r") or [])
    if not r:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": r,
            "y": numbers(curves.get(name) or []),
            "line": line,
        }
        for name, line in (
            ("reference", {"color": GREY, "width": 5}),
            ("model", {"color": BLUE, "width": 1.8}),
        )
    ]
    return {
        "data": traces,
        "layout": {
            "xaxis": axis("r, Å"),
            "yaxis": axis(f"g(r), {escape(pair)}", rangemode="tozero"),
            "showlegend": True,
        },
    }


def gantt(records: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Figure | None:
    """Draw what each worker did when: one row a process, one bar an attempt, failed attempts hatched.

    At most ``MOST_BARS`` bars are drawn, the longest ones.
    """
    timed = [r for r in records if number(r.get("start")) is not None and number(r.get("seconds")) is not None]
    if not timed:
        return None
    zero = min(float(r["start"]) for r in timed)
    bars = sorted(timed, key=lambda r: -float(r["seconds"]))[:MOST_BARS]
    hosts = {str(r.get("host", "")) for r in bars}
    rows = {id(r): worker(r, alone=len(hosts) == 1) for r in bars}
    bars.sort(key=lambda r: (float(r["start"]), rows[id(r)]))
    workers = list(dict.fromkeys(rows[id(r)] for r in bars))
    traces = []
    for stage in [s for s in colours if any(r["stage"] == s for r in bars)]:
        mine = [r for r in bars if r["stage"] == stage]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": escape(stage),
                "y": [rows[id(r)] for r in mine],
                "base": [round(float(r["start"]) - zero, 3) for r in mine],
                "x": [round(float(r["seconds"]), 3) for r in mine],
                "text": [escape(f"{r.get('name', '')} ({r.get('state', '')})") for r in mine],
                "textposition": "none",
                "hovertemplate": "%{text}: %{x:.2f} s<extra>" + escape(stage) + "</extra>",
                "marker": {
                    "color": colours[stage],
                    "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"},
                    "pattern": {"shape": ["" if r.get("state") == "done" else "x" for r in mine], "size": 5},
                },
            }
        )
    return {
        "data": traces,
        "layout": {
            "barmode": "overlay",
            "bargap": 0.25,
            "xaxis": axis("Seconds since the first task", rangemode="tozero"),
            "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": workers[::-1]},
            "showlegend": True,
        },
        "height": 130 + 26 * min(len(workers), 60),
    }


def utilisation(records: Sequence[Mapping[str, Any]]) -> tuple[int, float] | None:
    """Return the number of workers, and the share of their time that they were at work.

    A worker's time is from its first task to the end of its last one, and at most to the start of the last task of all:
    then nothing waits any more. What the machine lost is told by the driver and not by a worker, and does not count.
    """
    lanes: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for r in records:
        start, seconds = number(r.get("start")), number(r.get("seconds"))
        if start is not None and seconds is not None and not r.get("transient"):
            lanes.setdefault((str(r.get("host")), str(r.get("pid"))), []).append((start, start + seconds))
    last = max((start for lane in lanes.values() for start, _ in lane), default=0.0)
    busy = time = 0.0
    for lane in lanes.values():
        busy += sum(max(0.0, min(end, last) - start) for start, end in lane)
        time += max(0.0, min(max(end for _, end in lane), last) - min(start for start, _ in lane))
    return (len(lanes), min(1.0, busy / time)) if time else None


def worker(record: Mapping[str, Any], *, alone: bool) -> str:
    """Name the process of a record; without its host where there is only one."""
    pid = f"pid {record.get('pid', '?')}"
    return pid if alone else escape(f"{record.get('host', '?')} {pid}")
