"""What a test of a model hands back: a verdict, in JSON that says all, and a headline in the ledger."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.science.blocks import bracketed
from campaign.tasks import Json, Outcome

if TYPE_CHECKING:
    from campaign.science.blocks import Agreement
    from campaign.store.store import Store

#: A value and its standard error.
Pair = tuple[float, float]
#: An error falls as one over the root of the time, and is itself not known well: half as much again is advised.
MARGIN = 1.5
#: A compared value (``row``).
Row = dict[str, Json]


def publish(result: dict[str, Json], arrays: dict[str, Any] | None = None) -> Outcome:
    """Return an outcome whose record is the headline and whose arrays hold the whole result as JSON text."""
    result = finite(result)
    text = json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
    headline: dict[str, Json] = {k: result[k] for k in ("method", "pass", "headline") if k in result}
    return Outcome(headline, {**(arrays or {}), "json": np.frombuffer(text, dtype="uint8")})


def finite(value: Json) -> Json:
    """Return JSON with null for every number that is not finite: JSON has no other word for it."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(store: Store, task: str) -> dict[str, Json]:
    """Return a test's whole result."""
    found: dict[str, Json] = json.loads(store.arrays("validate", task, ("json",))["json"].tobytes())
    return found


def row(name: str, unit: str, model: Pair, reference: Pair, found: Agreement, difference_in: str) -> Row:
    """Return a compared value as the JSON keeps it and the report draws it.

    Parameters
    ----------
    name
        What is compared: a species, a temperature.
    unit
        Of ``model`` and ``reference``, each with its standard error.
    found
        What is said of the two.
    difference_in
        Unit of the difference and its limit.
    """
    return {
        "name": name,
        "unit": unit,
        "model": model[0],
        "model_error": model[1],
        "reference": reference[0],
        "reference_error": reference[1],
        "difference": found.difference,
        "error": found.error,
        "limit": found.limit,
        "most": found.most,
        "difference_in": difference_in,
        "ok": found.ok,
        "short": found.short,
    }


def line(entry: Row) -> str:
    """Return a row in words."""
    model, reference = (bracketed(entry[k], entry[f"{k}_error"]) for k in ("model", "reference"))
    off = f"{bracketed(entry['difference'], entry['error'])} {entry['difference_in']}"
    limit = "none asked" if entry["limit"] is None else f"limit {entry['limit']:g} {entry['difference_in']}"
    return f"{entry['name']}: {model} {entry['unit']}, reference {reference}; difference {off}, {limit}"


def compared(method: str, entries: list[Row], threshold: Json, time: float, more: dict[str, Json]) -> Outcome:
    """Return the outcome of a test that compares values.

    It passes where every value is within its limit and known well enough: a difference whose standard error is larger
    than what is asked for says nothing, and counts as failed with its error and what would help. Where nothing is asked
    of any value (``ok`` is None) the test is not judged.

    Parameters
    ----------
    method
        The test.
    entries
        Rows (``row``).
    threshold
        As in the campaign file.
    time
        Length of the runs, ps.
    more
        What the report draws beside them.
    """
    causes = []
    judged = [e["ok"] for e in entries if e["ok"] is not None]
    for entry in entries:
        if entry["short"]:
            unit, error = entry["difference_in"], entry["error"]
            known = math.isfinite(error)
            longer = MARGIN * time * max(1.0, (error / entry["most"]) ** 2) if known else math.nan
            said = f"a standard error of {error:.2g} {unit}" if known else "no known error"
            help_ = f"; runs of about {longer:.2g} ps would tell" if known else ""
            causes.append(
                f"{entry['name']}: the runs are too short: the difference has {said}, and "
                f"{entry['most']:.3g} {unit} is asked{help_}."
            )
        elif entry["ok"] is False:
            causes.append(f"{entry['name']}: the difference is over its limit.")
    return publish(
        {
            "method": method,
            "pass": all(judged) if judged else None,
            "cause": " ".join(causes),
            "headline": {e["name"]: e["difference"] for e in entries},
            "threshold": threshold,
            "says": [line(e) for e in entries],
            "rows": entries,
            **more,
        }
    )


def failed(method: str, threshold: Json, cause: str) -> Outcome:
    """Return the outcome of a test that could not be made because of what the model did."""
    return publish(
        {
            "method": method,
            "pass": False,
            "cause": cause,
            "headline": {},
            "threshold": threshold,
            "says": [],
            "rows": [],
        }
    )
