"""The report of a campaign: one HTML file that opens offline, verdict first.

The page asks for nothing from outside: Plotly is inlined, and a content security policy forbids the browser to fetch
anything or to run a script whose hash is not the page's own. Whatever a user or an engine wrote is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign.report import figures, physics
from campaign.report.figures import CYCLE, GREY, PINK, QUANTITIES, SKY, Figure
from campaign.report.learning import cards, with_learning
from campaign.report.sampling import sampling
from campaign.report.text import cell, count, duration, number, significant
from campaign.report.transfer import transfer
from campaign.report.verdict import outcome, reference, verdict

HERE = Path(__file__).parent
#: Stages in the order of a campaign, with the colour of each in the task figure.
STAGES = {
    "sample": CYCLE[0],
    "select": CYCLE[1],
    "distill": "#F0E442",
    "label": CYCLE[2],
    "train": CYCLE[5],
    "learn": SKY,
    "transfer": GREY,
    "validate": PINK,
}
RANDOM = "random"
STATES = {
    "done": "The campaign is complete.",
    "partial": "The campaign ended with something missing; the failures below say what.",
    "running": "The campaign was still running when this page was written.",
    "interrupted": "The campaign was interrupted; the same command continues it.",
    "stopped": "The campaign stopped where it was asked to; without --until the same command continues it.",
    "pending": "The campaign has not started.",
}
MOST_FAILURES = 200

Data = Mapping[str, Any]


def render(data: Data) -> str:
    """Return the report as the text of one self-contained HTML file.

    Parameters
    ----------
    data
        Any of ``status``, ``validation``, ``tests`` (``Validate.standing``), ``sampling``, ``selection``, ``transfer``,
        ``training``, ``learning``, ``sizes`` (labelled frames of each training set), ``tasks`` (ledger records) and
        ``about``, as plain JSON-able values in eV, Å, ps, K. What is missing or empty is said in a sentence; nothing
        is required.
    """
    from jinja2 import ChainableUndefined, Environment
    from plotly.offline import get_plotlyjs

    def known(value: Any) -> Any:
        return None if isinstance(value, ChainableUndefined) else value

    env = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters["sig"] = lambda value, digits=3: significant(known(value), digits)
    env.filters["cell"] = lambda value: cell(known(value))
    env.filters["count"] = lambda value: count(known(value))
    env.filters["duration"] = lambda value: duration(known(value))
    page = _context(data)
    scripts = {"plotly": get_plotlyjs(), "draw": (HERE / "report.js").read_text(encoding="utf-8")}
    template = env.from_string((HERE / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **page,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in scripts.values()),
        figure_json=embed(page["figures"]),
    )


def embed(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sha256(script: str) -> str:
    # Browsers hash the text after their own reading of it, which turns CR LF into LF.
    return base64.b64encode(hashlib.sha256(script.replace("\r\n", "\n").encode()).digest()).decode()


def _context(data: Data) -> dict[str, Any]:
    """Put the data in the form the template walks through."""
    status: Data = data.get("status") or {}
    selection: Data = data.get("selection") or {}
    about: Data = data.get("about") or {}
    records: Sequence[Data] = data.get("tasks") or []
    reports: Sequence[Data] = data.get("validation") or []
    learning: Data = data.get("learning") or {}
    by_method = {str(r.get("method")): r for r in reports}  # the last of a kind is the one drawn
    checks = [_check(r) for r in reports]
    drawn: dict[str, Figure] = {}

    def draw(name: str, figure: Figure | None) -> str | None:
        if figure is None:
            return None
        drawn[name] = figure
        return name

    return {
        "name": str(status.get("campaign") or about.get("name") or "campaign"),
        "state": str(status.get("state", "pending")),
        "sentence": STATES.get(str(status.get("state", "pending")), ""),
        "status": status,
        "about": about,
        "verdict": with_learning(
            verdict(reports, [c["title"] for c in checks], status, data.get("tests") or {}), learning
        ),
        "checks": [*cards(learning), *checks],
        "headline": _headline(status, selection),
        "errors": _errors(by_method.get("errors"), selection, data.get("sizes") or {}, draw),
        "sampling": sampling(data.get("sampling") or [], draw),
        "selection": None if data.get("transfer") else _selection(selection, draw),
        "transfer": transfer(data.get("transfer") or {}),
        "refused": _refused(selection),
        "training": _training(data.get("training") or [], draw),
        "learning": learning,
        "stability": _stability([r for r in reports if r.get("method") == "stability"], draw),
        "rdf": _rdf(by_method.get("rdf"), draw),
        "rdf_reference": reference(by_method.get("rdf") or {}),
        "physics": physics.sections(reports, draw),
        "stages": _stages(status, records),
        "gantt": draw("gantt", figures.gantt(records, _colours(records))),
        "utilisation": figures.utilisation(records),
        "gantt_left_out": max(0, len(records) - figures.MOST_BARS),
        "failures": _failures(status, records),
        "figures": drawn,
    }


def _colours(records: Sequence[Data]) -> dict[str, str]:
    return STAGES | {str(r["stage"]): GREY for r in records if r["stage"] not in STAGES}


def _check(report: Data) -> dict[str, Any]:
    """Sum up one validation as a title and lines of value against limit."""
    method = str(report.get("method"))
    lines: list[str] = []
    title = method.capitalize()
    if method == "errors":
        title = "Held-out errors"
        for entry in report.get("judged") or []:
            what, unit, asked = (str(entry.get(k, "")) for k in ("name", "unit", "asked"))
            of = f" ({asked} of the spread)" if asked.endswith("%") else ""
            limit = f"limit {significant(entry.get('limit'))}{of}"
            lines.append(f"{what[:1].upper()}{what[1:]} {significant(entry.get('value'))} {unit}, {limit}")
        lines.append(f"{count(report.get('held_out'))} frames held out")
    elif method == "stability":
        title = f"Stability, {str(report.get('ensemble', '')).upper()}"
        lines.append(f"{significant(report.get('reached'))} of {significant(report.get('time'))} ps reached")
        criteria = report.get("criteria") or []
        held = sum(bool(c.get("ok")) for c in criteria)
        lines.append(f"{held} of {len(criteria)} criteria held")
        if report.get("first_bad"):
            bad = report["first_bad"]
            lines.append(f"first bad: {bad.get('criterion')} at {significant(bad.get('time'))} ps")
    elif method == "rdf":
        title = "Structure, g(r)"
        pairs: Data = report.get("pairs") or {}
        found_pairs = {p: number(c.get("difference")) for p, c in pairs.items()}
        known = {p: d for p, d in found_pairs.items() if d is not None}
        if known:
            worst = max(known, key=lambda p: known[p])
            limit = significant(report.get("threshold"))
            lines.append(f"largest difference {significant(known[worst])} ({worst}) beyond noise, limit {limit}")
        if report.get("cause"):
            lines.append(str(report["cause"]))
    elif method in physics.TITLES:
        title, lines = physics.title(report), physics.lines(report)
    return {"title": title, "passed": outcome(report), "lines": lines}


def _headline(status: Data, selection: Data) -> list[dict[str, str]]:
    """Return the numbers a reader looks for first."""
    frames, chosen = number(status.get("frames")), number(status.get("selected"))
    share = f"{significant(100 * chosen / frames)} % of the pool" if frames and chosen else ""
    rate, method = number(status.get("frames_per_second")), selection.get("method")
    how = f"selected by {method}" if method else "selected"
    if method == "transfer":
        how, share = "transferred", ""
    wrong = len(status.get("failures") or [])
    failed = f"{wrong} failure{'s' if wrong > 1 else ''}"
    return [
        {"value": count(frames), "label": "frames sampled", "note": f"{significant(rate)} frames/s" if rate else ""},
        {"value": count(chosen), "label": how, "note": share},
        {"value": count(status.get("labelled")), "label": "labelled", "note": ""},
        {"value": duration(status.get("seconds")), "label": "wall time", "note": failed if wrong else ""},
    ]


def _order(report: Data, selection: Data) -> list[str]:
    """Order the training sets of a test of errors: the one that is judged first, a random pick second, then the others.

    An older result does not say which is: it is the last of ``learn-1``, ``learn-2``..., or what the selector chose.
    """
    sets: Mapping[str, Any] = report.get("sets") or {}
    learned = [n for n in sets if n.startswith("learn-") and n[6:].isdigit()]
    usual = max(learned, key=lambda n: int(n[6:]), default=str(selection.get("method", "")))
    first = str(report.get("set") or usual)
    return sorted(sets, key=lambda n: (n == RANDOM, False) if n in (first, RANDOM) else (True, True))


def _errors(report: Data | None, selection: Data, sizes: Data, draw: Any) -> dict[str, Any] | None:
    if not report or not report.get("sets"):
        return None
    sets: Mapping[str, Data] = report["sets"]
    names = _order(report, selection)
    rows = []
    for quantity, (what, unit, factor) in QUANTITIES.items():
        for name in names:
            found = sets[name].get(quantity)
            if found:
                cells = [
                    None if (x := number(found.get(k))) is None else x * factor for k in ("mae", "rmse", "l4", "max")
                ]
                rows.append({"what": f"{what}, {unit}", "name": name, "cells": cells})
    species = []
    for name in names:
        for element, found in (sets[name].get("species") or {}).items():
            species.append({"what": f"Force on {element}, meV/Å", "name": name, "cells": _cells(found, figures.MEV)})
    compared: Mapping[str, Any] = report.get("parity") or {}
    quantities = list(dict.fromkeys(q for name in names for q in compared.get(name) or {}))
    plots = [(q, figures.parity(q, compared, names)) for q in quantities]
    return {
        "bars": draw("errors", figures.errors(sets, names)),
        "sentence": _against_random(sets, names, sizes),
        "rows": rows + sorted(species, key=lambda row: str(row["what"])),
        "parity": [draw(f"parity-{k}", f) for k, (_, f) in enumerate(plots) if f is not None],
        "held_out": report.get("held_out"),
    }


def _cells(found: Data, factor: float) -> list[float | None]:
    """Return MAE, RMSE, L4 and max in the unit shown."""
    values = (number(found.get(key)) for key in ("mae", "rmse", "l4", "max"))
    return [None if v is None else v * factor for v in values]


def _against_random(sets: Mapping[str, Data], names: Sequence[str], sizes: Data) -> str:
    """Say how the force errors of the judged set compare to those of a random pick, and how large the two are."""
    if len(names) < 2 or names[1] != RANDOM:
        return ""
    parts = []
    for key, what in (("rmse", "RMSE"), ("l4", "L4 norm")):
        ours, theirs = (number((sets[n].get("forces") or {}).get(key)) for n in names[:2])
        if ours is not None and theirs:
            change = 100 * (ours / theirs - 1)
            parts.append(f"{what} {abs(change):.0f} % {'lower' if change < 0 else 'higher'}")
    if not parts:
        return ""
    ours, theirs = (sizes.get(n) for n in names[:2])
    sized = f"{names[0]} ({count(ours)} frames)" if ours else names[0]
    other = (
        "a random pick"
        if not theirs
        else f"a random pick of {'the same size' if ours == theirs else f'{count(theirs)} frames'}"
    )
    grown = names[0].startswith("learn-")  # its models went on from earlier ones
    return f"Force errors of {sized} against {other}{'' if grown else ', trained the same way'}: {', '.join(parts)}."


def _selection(selection: Data, draw: Any) -> dict[str, Any] | None:
    if not selection:
        return None
    drawn = len(selection.get("novelty") or [])
    return {
        "method": selection.get("method", "the selector"),
        "figure": draw("novelty", figures.novelty(selection)),
        "seen": selection.get("seen") or drawn,
        "every": figures.stride(drawn) if drawn else 1,
        "chosen": selection.get("picked") or len(selection.get("chosen") or []),
        "note": selection.get("note") or "",
    }


def _refused(selection: Data) -> list[tuple[str, int]]:
    """Return the commonest reasons why frames were refused, each with its number of frames."""
    return Counter(str(r.get("reason")) for r in selection.get("refused") or []).most_common(20)


def _training(runs: Sequence[Data], draw: Any) -> list[str]:
    made = [
        draw("loss", figures.training(runs, "loss", "Training loss")),
        draw("force-rmse", figures.training(runs, "force_rmse", "Force RMSE, meV/Å")),
    ]
    return [name for name in made if name]


def _stability(reports: Sequence[Data], draw: Any) -> list[dict[str, Any]]:
    return [
        {
            "report": report,
            "figure": draw(f"stability-{k}", figures.stability(report.get("series") or {}, report.get("first_bad"))),
        }
        for k, report in enumerate(reports)
    ]


def _rdf(report: Data | None, draw: Any) -> list[str]:
    pairs: Mapping[str, Data] = (report or {}).get("pairs") or {}
    made = [draw(f"rdf-{k}", figures.rdf(pair, curves)) for k, (pair, curves) in enumerate(pairs.items())]
    return [name for name in made if name]


def _stages(status: Data, records: Sequence[Data]) -> list[dict[str, Any]]:
    """Return a row a stage: its state, its tasks and the time its attempts took."""
    spent: dict[str, float] = {}
    tries: Counter[str] = Counter()
    for r in records:
        stage = str(r.get("stage"))
        spent[stage] = spent.get(stage, 0.0) + (number(r.get("seconds")) or 0.0)
        tries[stage] += 1
    stages: Mapping[str, Data] = status.get("stages") or {}
    names = [s for s in STAGES if s in stages or s in tries]
    names += [s for s in (*stages, *tries) if s not in STAGES]
    return [
        {"name": name, "attempts": tries[name], "seconds": spent.get(name), **stages.get(name, {"state": "–"})}
        for name in dict.fromkeys(names)
    ]


def _failures(status: Data, records: Sequence[Data]) -> dict[str, Any]:
    """Return what was given up, and what a retry mended, each with its cause.

    A task in which a walker stopped is done, and is among what was given up: nothing was mended.
    """
    names = {str(r.get("task")): str(r.get("name", "")) for r in records}
    done = {str(r.get("task")) for r in records if r.get("state") == "done"}
    given_up = [
        {**f, "name": names.get(str(f.get("task")), "")} for f in status.get("failures") or [] if isinstance(f, Mapping)
    ]
    mended = done - {str(f.get("task")) for f in given_up}
    retried = [r for r in records if r.get("state") == "failed" and str(r.get("task")) in mended]
    return {
        "given_up": given_up[:MOST_FAILURES],
        "retried": retried[:MOST_FAILURES],
        "left_out": max(0, len(given_up) - MOST_FAILURES) + max(0, len(retried) - MOST_FAILURES),
    }
