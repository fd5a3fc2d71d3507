"""The report's section on sampling: what each method made, and how far MOMT has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from campaign.report import sampling_figures
from campaign.report.figures import Figure
from campaign.report.text import count, number, significant

Data = Mapping[str, Any]
Draw = Callable[[str, Figure | None], str | None]

#: A walker that saw a smaller share of its map than this is warned of.
LEAST_COVERAGE = 0.3
#: Rows of a table of walkers, at most.
MOST_WALKERS = 100
#: Walkers that a sentence names one by one or as ranges, at most; of more it says how many there are.
MOST_NAMED = 6

MILLION = 1e6


def sampling(entries: Sequence[Data], draw: Draw) -> dict[str, Any] | None:
    """Put what the sampling methods did in the form the template walks through.

    Parameters
    ----------
    entries
        One for each method of the campaign file, in its order: ``name``, ``walkers``, ``steps`` (of each walker),
        ``frames``, ``planned``, ``set`` ([lowest, highest], K), ``mean`` (K), ``stopped`` and, of MOMT, ``momt``:
        ``window`` (eV/atom), ``temperatures`` (K), ``auto``, ``shared``, ``ordered``, ``walkers`` (``number``,
        ``stopped`` and, of each finished segment, ``steps``, ``trips``, ``coverage``, ``flatness``), ``map``
        (``h``, ``q``, ``visits``, ``coverage``, ``missing``) and ``series`` (``walker``, ``step``, ``h``, ``q``).
    draw
        Keeps a figure for the page under a name.
    """
    if not entries:
        return None
    rows = [{**e, "set": _range(e.get("set") or ()), "name": str(e.get("name", "sampling"))} for e in entries]
    found = [(row, e["momt"]) for row, e in zip(rows, entries, strict=True) if e.get("momt")]
    return {"rows": rows, "momt": [_momt(row["name"], momt, f"momt-{k}", draw) for k, (row, momt) in enumerate(found)]}


def _range(values: Sequence[Any], unit: str = "") -> str:
    """Say one value, or the two ends of a range."""
    ends = list(dict.fromkeys(significant(v, 4) for v in values))
    return " to ".join(ends) + unit if ends else "–"


def _momt(name: str, momt: Data, key: str, draw: Draw) -> dict[str, Any]:
    walkers: Sequence[Data] = momt.get("walkers") or []
    seen: Data = momt.get("map") or {}
    series: Data = momt.get("series") or {}
    ordered = bool(momt.get("ordered"))
    table = [_row(w) for w in walkers]
    return {
        "name": name,
        "window": _window(momt),
        "sentence": _sentence(table, seen, ordered) if table else "",
        "warnings": _warnings(table, ordered),
        "ordered": ordered,
        "walkers": table[:MOST_WALKERS],
        "left_out": max(0, len(table) - MOST_WALKERS),
        "any_stopped": any(w.get("stopped") for w in walkers),
        "map": draw(f"{key}-map", sampling_figures.visits(seen)),
        "missing": _named(seen.get("missing") or []),
        "trips": draw(f"{key}-trips", sampling_figures.progress(walkers, ordered)),
        "drawn": "round trips" if sampling_figures.counts_trips(walkers, ordered) else "coverage",
        "series": draw(f"{key}-series", sampling_figures.enthalpy(series, momt.get("window") or ())),
        "series_walker": series.get("walker"),
    }


def _row(walker: Data) -> dict[str, Any]:
    """Return a walker's figures as of its last finished segment."""

    def last(key: str) -> float | None:
        values = walker.get(key) or [None]
        return number(values[-1])

    steps, trips = last("steps"), last("trips")
    return {
        "number": walker.get("number"),
        "steps": steps,
        "trips": trips,
        "trips_shown": "–" if trips is None else f"{trips:.1f}",
        "rate": trips / steps * MILLION if trips is not None and steps else None,
        "coverage": last("coverage"),
        "flatness": last("flatness"),
        "stopped": bool(walker.get("stopped")),
    }


def _window(momt: Data) -> str:
    """Say which window it is, how it was found and how the bias is learned."""
    low, high = (momt.get("window") or (None, None))[:2]
    cold, hot = (momt.get("temperatures") or (None, None))[:2]
    if number(low) is None:
        return "No walker has finished a segment yet."
    if momt.get("auto"):
        how = (
            f"found by two short NPT runs: the solid at {significant(cold, 4)} K has the lower enthalpy, "
            f"the liquid at {significant(hot, 4)} K the upper"
        )
    else:
        how = f"written in the campaign file, for {significant(cold, 4)} to {significant(hot, 4)} K"
    several = len(momt.get("walkers") or ()) > 1
    learned = "The walkers learn one bias together." if momt.get("shared") else "Each walker learns its own bias."
    if not several:
        learned = "The walker learns its bias alone."
    until = number(momt.get("until"))
    if until is not None:
        learned += f" From step {until:g} on the bias stays as it is, and averages over later frames are exact."
    return f"The window is {significant(low, 4)} to {significant(high, 4)} eV/atom, {how}. {learned}"


def _sentence(table: Sequence[Data], seen: Data, ordered: bool) -> str:
    """Say how often the walkers went from crystal to liquid and back, and how much of the map they saw."""
    who = f"The {len(table)} walkers" if len(table) > 1 else "The walker"
    together = "together they" if len(table) > 1 else "it"
    if not ordered:
        together = "together the walkers" if len(table) > 1 else "the walker"
    share = number(seen.get("coverage"))
    visited = f"{together} visited {100 * share:.0f} % of {_map(ordered)}" if share is not None else ""
    if not ordered:
        start = "There is no order parameter that tells crystal from liquid, so round trips are not counted"
        return f"{start}; {visited}." if visited else f"{start}."
    trips = sum(w["trips"] or 0.0 for w in table)
    steps = sum(w["steps"] or 0.0 for w in table)
    if not trips:
        went = f"{who} never went from crystal to liquid or back"
    else:
        enough = steps and trips >= 1
        rate = f", {significant(trips / steps * MILLION)} times per million MD steps" if enough else ""
        all_of_them = " in all" if len(table) > 1 else ""
        half = " (a half is one way)" if trips % 1 else ""
        went = f"{who} went from crystal to liquid and back {trips:g} times{all_of_them}{half}{rate}"
    return f"{went}; {visited}." if visited else f"{went}."


def _map(ordered: bool) -> str:
    return "the map" if ordered else "the enthalpies of the window"


def _warnings(table: Sequence[Data], ordered: bool) -> list[str]:
    """Say which walkers are far from convergence, and what to do."""
    out = []
    still = [w["number"] for w in table if w["trips"] is not None and w["trips"] < 1] if ordered else []
    if still:
        out.append(
            f"{_who(still, len(table))} made no round trip between crystal and liquid: averages over both phases "
            "cannot be trusted yet. Raise 'steps' (the run goes on where it ended); if that does not help, write "
            "other 'temperatures', colder and hotter, or take a smaller cell."
        )
    little = [w["number"] for w in table if w["coverage"] is not None and w["coverage"] < LEAST_COVERAGE]
    if little:
        out.append(
            f"{_who(little, len(table))} visited less than {100 * LEAST_COVERAGE:.0f} % of {_map(ordered)}. Raise "
            "'steps', or write a narrower 'window' or 'temperatures' that lie closer together."
        )
    return out


def _who(numbers: Sequence[int], total: int) -> str:
    if len(numbers) == total:
        return "The walker" if total == 1 else f"All {count(total)} walkers"
    return _named(numbers) or f"{count(len(numbers))} of {count(total)} walkers"


def _named(numbers: Sequence[int]) -> str:
    """Return ``Walker 3``, ``Walkers 0 to 3, 7``; nothing for too many to name."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    if not runs or len(runs) > MOST_NAMED:
        return ""
    parts = [str(r[0]) if len(r) == 1 else f"{r[0]} {'and' if len(r) == 2 else 'to'} {r[-1]}" for r in runs]
    return f"Walker{'s' if len(numbers) > 1 else ''} {', '.join(parts)}"
