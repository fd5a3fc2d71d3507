"""The sections of the report on the physics that a model gives: plain tables and figures of each test's JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from campaign.report import physics_figures as figures
from campaign.report.figures import Figure
from campaign.report.text import cell, number, significant
from campaign.report.verdict import outcome, reference
from campaign.science.blocks import bracketed

Data = Mapping[str, Any]
Draw = Callable[[str, Figure | None], str | None]

#: Method -> (title of its section, what its figures and its verdict are about).
TITLES = {
    "density": "Density",
    "diffusion": "Self-diffusion",
    "conductivity": "Ionic conductivity",
    "rerun": "Classical rerun",
    "overlap": "Overlap",
    "relax": "Relaxed crystals",
}


def sections(reports: Sequence[Data], draw: Draw) -> list[dict[str, Any]]:
    """Return a section for each test of ``TITLES``, in the order of the campaign file.

    Each has ``anchor``, ``title``, ``first`` (of its kind), ``passed``, ``sentence``, ``cause``, ``head`` and ``rows``
    of a table, and ``figures`` as (name, caption).
    """
    made = []
    for k, report in enumerate(reports):
        method = str(report.get("method"))
        if method not in TITLES:
            continue
        table, sentence, drawn = MAKERS[method](report)
        name = reference(report)
        shown = [(draw(f"{method}-{k}-{i}", figure), caption) for i, (figure, caption) in enumerate(drawn)]
        made.append(
            {
                "anchor": f"{method}-{k}",
                "title": TITLES[method],
                "first": method not in {str(r.get("method")) for r in reports[:k]},
                "passed": outcome(report),
                "sentence": f"{sentence} {f'The reference is {name}.' if name else ''}".strip(),
                "cause": str(report.get("cause") or ""),
                "head": table[0] if table[1] else [],
                "rows": table[1],
                "figures": [(figure, caption) for figure, caption in shown if figure],
            }
        )
    return made


def lines(report: Data) -> list[str]:
    """Return what the card of such a test says: differences and limits; the cause where they do not say it."""
    said = [_line(entry) for entry in report.get("rows") or [] if number(entry.get("limit")) is not None]
    for key, whose in (("share", "model"), ("covered", "reference")):
        if (share := number(report.get(key))) is not None:
            asked = _per_cent(report.get("threshold"))
            said.append(f"{100 * share:.0f} % of the {whose}'s frames have a match, {asked} asked")
    if said:
        return said
    structures: Sequence[Data] = [e for e in report.get("structures") or [] if e.get("model")]
    for key, factor, unit in (("energy", 1e3, "meV/atom"), ("length", 1.0, report.get("length_in", ""))):
        differences = [abs(x) for e in structures if (x := number(e.get(f"{key}_difference"))) is not None]
        if differences:
            said.append(f"{key} off by at most {significant(factor * max(differences), 2)} {unit}")
    cause = str(report.get("cause") or "")
    return [*said, *([cause] if cause else [])]


def _line(entry: Data) -> str:
    unit = entry.get("difference_in", "")
    off, error = (math.nan if (x := number(entry.get(k))) is None else x for k in ("difference", "error"))
    short = ", too short to tell" if entry.get("short") else ""
    limit = significant(entry.get("limit"))
    return f"{entry.get('name')}: off by {bracketed(off, error)} {unit}, limit {limit} {unit}{short}"


def _per_cent(share: Any) -> str:
    x = number(share)
    return "–" if x is None else f"{100 * x:g} %"


def title(report: Data) -> str:
    """Return the title of a test's card."""
    return TITLES[str(report.get("method"))]


Table = tuple[list[str], list[list[tuple[str, str]]]]
Section = tuple[Table, str, list[tuple[Figure | None, str]]]


def _run(report: Data) -> str:
    run: Data = report.get("run") or {}
    if not run:
        return ""
    pressure = f" and {significant(run.get('pressure'))} bar" if run.get("ensemble") == "npt" else ""
    ensemble, kelvin = str(run.get("ensemble", "")).upper(), significant(run.get("temperature"), 4)
    return f"{ensemble} at {kelvin} K{pressure}, {significant(run.get('time'))} ps; the first fifth does not count. "


def _with_error(value: Any, error: Any) -> str:
    """Return a value and its standard error in figures that stand under each other."""
    x, e = number(value), number(error)
    if x is None:
        return "–"
    if not e:
        return cell(x)
    digits = max(0, 1 - math.floor(math.log10(e)))  # the error has two figures
    return f"{x:.{digits}f} ± {e:.{digits}f}"


def _compared(report: Data) -> Table:
    """Return the table of a test that compares values."""
    head = ["", "Model", "Reference", "Unit", "Difference", "Limit", "Held"]
    rows = []
    for entry in report.get("rows") or []:
        asked = number(entry.get("limit")) is not None
        held = "–" if not asked else "✓ yes" if entry.get("ok") else "? too short" if entry.get("short") else "✗ no"
        unit = entry.get("difference_in", "")
        off = f"{_with_error(entry.get('difference'), entry.get('error'))} {unit}"
        rows.append(
            [
                (str(entry.get("name")), ""),
                (_with_error(entry.get("model"), entry.get("model_error")), "n"),
                (_with_error(entry.get("reference"), entry.get("reference_error")), "n"),
                (str(entry.get("unit")), ""),
                (off, "n"),
                (f"{significant(entry.get('limit'))} {unit}" if asked else "–", "n"),
                (held, "" if not asked else "pass" if entry.get("ok") else "fail"),
            ]
        )
    return head, rows


def _density(report: Data) -> Section:
    given = " The reference's values were given." if report.get("given") else ""
    sentence = f"NPT, one run for each temperature; errors from blocks.{given}"
    return _compared(report), sentence, [(figures.density(report), "")]


def _diffusion(report: Data) -> Section:
    fit = report.get("fit") or [None, None]
    sentence = (
        f"{_run(report)}Slope of the mean square displacement over 6 between {significant(fit[0])} and "
        f"{significant(fit[1])} ps; the error is the spread over {report.get('blocks', '–')} blocks. Both are of the "
        "same cell: what its size does to diffusion is the same in both."
    )
    drawn = [
        (figures.curves(curves, "Lag, ps", f"MSD of {name}, Å²", fit), "") for name, curves in _curves(report).items()
    ]
    return _compared(report), sentence if report.get("run") else "", drawn


def _conductivity(report: Data) -> Section:
    fit, plateau = (report.get(k) or [None, None] for k in ("fit", "plateau"))
    sentence = (
        f"{_run(report)}Einstein: slope of the squared collective displacement between {significant(fit[0])} and "
        f"{significant(fit[1])} ps. Green-Kubo: mean of the current's integral between {significant(plateau[0])} and "
        f"{significant(plateau[1])} ps. The error is the spread over {report.get('blocks', '–')} blocks."
    )
    titles = {
        "Einstein": ("⟨ΔP²⟩ of the charges, e²Å²", "Lag, ps", fit),
        "Green-Kubo": ("Green-Kubo integral, S/cm", "Time, ps", plateau),
    }
    drawn = [
        (figures.curves(curves, titles[name][1], titles[name][0], titles[name][2]), "")
        for name, curves in _curves(report).items()
        if name in titles
    ]
    return _compared(report), sentence if report.get("run") else "", drawn


def _curves(report: Data) -> Mapping[str, Data]:
    return report.get("curves") or {}


def _rerun(report: Data) -> Section:
    rmse = number(report.get("force_rmse"))
    forces = "" if rmse is None else f" Forces differ by {significant(1e3 * rmse)} meV/Å (RMSE)."
    sentence = f"{_run(report)}Both on the same frames, so that only the error of their difference counts.{forces}"
    drawn = [(figures.along(report.get("series") or {}), "Pressure along the model's trajectory.")]
    return _compared(report), sentence if report.get("run") else "", drawn


def _overlap(report: Data) -> Section:
    kind = {"rematch": "REMatch kernel of SOAP", "schnet": "descriptors of an untrained SchNet"}
    sentence = f"{_run(report)}Distances by {kind.get(str(report.get('distance')), '–')}. "
    sentence += " ".join(str(s) for s in report.get("says") or []) + "."
    drawn = [
        (figures.nearest(report), "Nearest match in the reference's run; the dotted line is the limit."),
        (figures.to_first(report.get("first") or {}), "Distance to the reference's first frame."),
    ]
    return ([], []), sentence if report.get("run") else "", drawn


def _relax(report: Data) -> Section:
    head = ["Structure", "By", "eV/atom", "over lowest, meV/atom", "Cell lengths, Å", "Bonds, Å", "Held"]
    rows = []
    for entry in report.get("structures") or []:
        for side in ("reference", "model"):
            found: Data | None = entry.get(side)
            if not found:
                rows.append([(str(entry.get("name")), ""), (side, ""), *[("–", "n")] * 4, ("✗ failed", "fail")])
                continue
            over = number((entry.get("over_lowest") or {}).get(side))
            held = ("✓ yes", "pass") if entry.get("ok") else ("✗ no", "fail")
            rows.append(
                [
                    (str(entry.get("name")), ""),
                    (side, ""),
                    (f"{found['energy']:.4f}", "n"),
                    ("–" if over is None else f"{1e3 * over:.1f}", "n"),
                    (", ".join(f"{x:.3f}" for x in _unlike(found.get("lengths") or [])), "n"),
                    (", ".join(f"{pair} {x:.3f}" for pair, x in (found.get("bonds") or {}).items()), "n"),
                    held if side == "model" else ("", ""),
                ]
            )
    order: Data = report.get("order") or {}
    sentence = (
        "Positions and cell relaxed by the same optimiser from the same start. Order of energies: model "
        f"{' < '.join(order.get('model') or ['–'])}; reference {' < '.join(order.get('reference') or ['–'])}."
    )
    return (head, rows), sentence, [(figures.relaxed(report), "Energy over the reference's lowest structure.")]


def _unlike(lengths: Sequence[float]) -> list[float]:
    """Return cell lengths without those that are as one before them."""
    found: list[float] = []
    for x in lengths:
        if not any(abs(x - y) < 5e-4 for y in found):
            found.append(x)
    return found


MAKERS: dict[str, Callable[[Data], Section]] = {
    "density": _density,
    "diffusion": _diffusion,
    "conductivity": _conductivity,
    "rerun": _rerun,
    "overlap": _overlap,
    "relax": _relax,
}
