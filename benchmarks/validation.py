"""Every validation on the NaCl model of the quickstart: verdict, wall time on two cores, and the slowest parts.

The campaign is ``templates/nacl-validation.yaml``: a test of every method. It is run up to its models first; what
counts is the wall time of the command that goes on from there to the report: workers, store and all. Whether the model
passes is told and is no condition: a model of 32 frames that fails a test is a finding.

``--keep FOLDER`` runs in that folder, and goes on in one where it was before (then only what is left is timed).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import parser, report
from runs import SITE, environment, say

from campaign.store.ledger import read_ledger

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
ASKED = 15 * 60.0
#: Slowest parts that are named.
SLOWEST = 8


def campaign_file(folder: Path, quick: bool) -> Path:
    """Write the campaign and what it names into ``folder``; return the file."""
    spec = yaml.safe_load((TEMPLATES / "nacl-validation.yaml").read_text())
    spec["campaign"] = "validation"
    if quick:
        spec["sample"][0] |= {"walkers": 2, "steps": 12800}
        spec["select"] |= {"size": 16}
        spec["train"] |= {"members": 1, "epochs": 20, "cutoff": 6.0}
        short = {
            "errors": {"held_out": 20},
            "stability": {"time": 2},
            "density": {"time": 1},
            "diffusion": {"fit": [0.06, 0.24], "blocks": 3},
            "conductivity": {"fit": [0.06, 0.24], "blocks": 3, "plateau": [0.1, 0.2]},
        }
        for test in spec["validate"]:
            test |= short.get(test["method"], {})
    (folder / "potentials").mkdir(parents=True, exist_ok=True)
    for path in (TEMPLATES / "potentials").glob("nacl*"):
        (folder / "potentials" / path.name).write_bytes(path.read_bytes())
    file = folder / "validation.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(spec)), sort_keys=False))  # nothing twice: no anchors
    (folder / "site.yaml").write_text(SITE.format(workers=2, cores=1))
    return file


def run(file: Path, *more: str) -> float:
    """Run the campaign as a user would and return the seconds that it took."""
    command = [sys.executable, "-m", "campaign.cli", "run", str(file), "--root", str(file.parent / "runs")]
    start = time.perf_counter()
    with (file.parent / "log").open("ab") as log:
        command += ["--site", str(file.parent / "site.yaml"), *more]
        code = subprocess.run(command, stdout=log, stderr=log, env=environment(), check=False).returncode
    if code != 0:
        raise SystemExit(f"it ended with {code}:\n{(file.parent / 'log').read_text()[-3000:]}")
    return time.perf_counter() - start


def parts(path: Path) -> dict[str, float]:
    """Return seconds in the tasks of each part of validation: a run with all its segments is one."""
    seconds: dict[str, float] = {}
    for record in read_ledger(path / "ledger.jsonl"):
        if record["stage"] == "validate":
            name = record["name"].partition("/")[0]
            name = {"stability": "MD with the model", "reference": "MD with the reference"}.get(name, name)
            seconds[name] = seconds.get(name, 0.0) + record["seconds"]
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def verdicts(file: Path, path: Path) -> list[dict[str, Any]]:
    """Return a line for each test, in the order of the campaign file."""
    rows = []
    for method in (test["method"] for test in yaml.safe_load(file.read_text())["validate"]):
        file = path / "validation" / f"{method}.json"
        if not file.exists():
            rows.append({"test": method, "verdict": "not done", "what": ""})
            continue
        found = json.loads(file.read_text())
        said = found.get("cause") or "; ".join(found.get("says") or []) or json.dumps(found["headline"])
        rows.append({"test": method, "verdict": "pass" if found["pass"] else "FAIL", "what": said})
    return rows


def main() -> None:
    """Run it, print the verdicts and the slowest parts."""
    options = parser(__doc__)
    options.add_argument("--keep", type=Path, help="folder to run in")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign-validation-") as made:
        folder = args.keep or Path(made)
        file = campaign_file(folder, args.quick)
        say(f"up to the models: {run(file, '--until', 'train'):.0f} s")
        wall = run(file)
        path = folder / "runs" / "validation"
        found = verdicts(file, path)
        say(f"verdict: {sum(r['verdict'] == 'pass' for r in found)} of {len(found)} tests within their limits")
        for line in found:
            print(f"{line['test']:<13}{line['verdict']:<6}{line['what']}")
        spent = parts(path)
    rows = [{"slowest parts": name, "seconds in tasks": s} for name, s in list(spent.items())[:SLOWEST]]
    rows.append({"slowest parts": "wall time of the validation", "seconds in tasks": wall})
    figures = {"wall s": wall, "passed": sum(r["verdict"] == "pass" for r in found), **spent}
    done = all(r["verdict"] != "not done" for r in found)
    report("validation", rows, figures, {"wall s": ASKED}, done and wall <= ASKED)


if __name__ == "__main__":
    main()
