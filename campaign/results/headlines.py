"""What the terminal says at the end of a run: a line or more a validation, and what can be done about failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from campaign.store.store import QUARANTINE
from campaign.tasks import Json


def headline(folder: Path) -> list[str]:
    """Return a line or more a validation, from ``RUN/validation``."""
    return [line for path in sorted(folder.glob("*.json")) for line in _headline(json.loads(path.read_text()))]


def hints(failures: Sequence[dict[str, Json]], run: Path) -> list[str]:
    """Return a line for each kind of failure: what becomes of it, and what the user can do."""
    aside = [(run / "run.zarr" / QUARANTINE / f["task"]).is_dir() for f in failures]
    lines = []
    if any(aside):
        lines.append("failed tasks stay aside until the same command is given with --retry-quarantined")
    if not all(aside):  # of tasks that are done
        lines.append("walkers that stopped are not started again: the frames they made are kept")
    return lines


def _headline(result: dict[str, Json]) -> list[str]:
    verdict = "not judged" if result["pass"] is None else "pass" if result["pass"] else "FAIL"
    limit: Json = result.get("threshold", {})
    if result["method"] == "errors":
        lines = []
        for name, errors in result["sets"].items():
            rmse, l4 = _milli(errors["forces"]["rmse"], 1), _milli(errors["forces"]["l4"], 1)
            lines.append(
                f"errors      {name:<12} force RMSE {rmse} meV/Å, L4 {l4}, "
                f"energy {_milli(errors['energy']['rmse'], 2)} meV/atom on {result['held_out']} held-out frames"
            )
        asked = [f"{j['name']} at most {j['limit']:.3g} {j['unit']}" for j in result["judged"]]
        said = f"{', '.join(asked)} is asked" if asked else result["cause"] or "nothing is asked"
        return [*lines, f"errors      {verdict}: {said}"]
    if result["method"] == "stability":
        where = f"{result['ensemble'].upper()} at {result['temperature']:g} K"
        return [f"stability   {verdict}: {result['reached']:g} of {result['time']:g} ps {where}"]
    if "says" in result:
        lines = [f"{result['method']:<11} {said}" for said in result["says"]]
        return [*lines, f"{result['method']:<11} {verdict}{': ' if result['cause'] else ''}{result['cause']}"]
    worst = result["headline"]["worst"]
    found = "no run to compare" if worst is None else f"{worst:.3f} beyond noise"
    cause = f": {result['cause']}" if result["cause"] else ""
    return [f"{result['method']:<11} {verdict}: {found}, at most {limit:g} is asked{cause}"]


def _milli(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{1e3 * value:.{digits}f}"
