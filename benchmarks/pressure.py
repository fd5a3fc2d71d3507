"""Pressure of models trained on virials only, on energies and forces, and on all three (NPT-thesis, 10.2 to 10.4).

Molten NaCl in one NVT box under pressure. Frames of one run of the reference are the training set, the same for all
three models, which differ in the weights of their loss alone. Each then drives a run of its own in that box; a table
has the pressure of the training run, of the model's run, and of the reference evaluated along the model's run.
The error that counts is the one between the last two, on the same frames.

``--keep FOLDER`` runs in that folder, and goes on in one where it was before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.units import kB
from common import parser, report
from runs import SITE, Run, environment, mean_of, say

from campaign.engines.lammps import BAR

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

#: What is learned: weights of the loss.
TARGETS = {
    "virials": {"energy": 0.0, "forces": 0.0, "stress": 1.0},
    "energies, forces": {"energy": 0.01, "forces": 0.99, "stress": 0.0},
    "energies, forces, virials": {"energy": 0.01, "forces": 0.95, "stress": 0.04},
}
#: K; the box of the sample has about 3 kbar at it.
TEMPERATURE = 1400
#: bar, between the model's pressure and the reference's on the same frames, asked of the model of all three.
ASKED = 100.0


def campaign_file(folder: Path, name: str, weights: dict[str, float], quick: bool) -> Path:
    """Write one campaign and what it names; return the file."""
    spec = yaml.safe_load((TEMPLATES / "quickstart.yaml").read_text())
    spec["campaign"] = name
    spec["system"]["structure"] |= {"a": 6.5}
    spec["sample"] = [
        {
            "method": "nvt",
            "temperature": TEMPERATURE,
            "walkers": 2,
            "steps": 6400 if quick else 51200,
            "timestep": 0.002,
            "every": 100,
            "segment": 64,
            "prepare": [{"temperature": 2500, "time": 4}, {"temperature": TEMPERATURE, "time": 2}],
        }
    ]
    spec["train"] |= {"members": 1, "loss": weights} | ({"epochs": 20} if quick else {})
    run = {"ensemble": "nvt", "temperature": TEMPERATURE, "time": 2 if quick else 50}
    spec["validate"] = [
        {"method": "errors", "held_out": 20 if quick else 200},
        {"method": "stability", **run},
        {"method": "rerun", "frames": 200},
    ]
    (folder / "potentials").mkdir(parents=True, exist_ok=True)
    for path in (TEMPLATES / "potentials").glob("nacl*"):
        (folder / "potentials" / path.name).write_bytes(path.read_bytes())
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(spec)), sort_keys=False))  # nothing twice: no anchors
    (folder / "site.yaml").write_text(SITE.format(workers=2, cores=1))
    return file


def run(file: Path) -> Path:
    """Run a campaign as a user would; return its run directory. A test that fails is a finding."""
    command = [sys.executable, "-m", "campaign.cli", "run", str(file), "--root", str(file.parent / "runs")]
    log = file.with_suffix(".log")
    with log.open("ab") as out:
        command += ["--site", str(file.parent / "site.yaml")]
        code = subprocess.run(command, stdout=out, stderr=out, env=environment(), check=False).returncode
    if code != 0:
        raise SystemExit(f"{file.name} ended with {code}:\n{log.read_text()[-3000:]}")
    return file.parent / "runs" / file.stem


def training_pressure(path: Path) -> tuple[float, float]:
    """Return the pressure of the sampled run and its standard error, bar: virial and kinetic."""
    series = Run(path, 0.0).series()
    ideal = 63 * kB * TEMPERATURE / series["volume"]  # 64 ions, the centre of mass at rest
    return mean_of(BAR * (ideal - series["trace"] / 3.0))


def found(path: Path, method: str) -> dict[str, Any]:
    """Return what a test of the model found."""
    return dict(json.loads((path / "validation" / f"{method}.json").read_text()))


def line(targets: str, path: Path, figures: dict[str, float]) -> dict[str, Any]:
    """Return one line of the table."""
    rerun, stability, errors = (found(path, m) for m in ("rerun", "stability", "errors"))
    training = training_pressure(path)
    row: dict[str, Any] = {"trained on": targets, "training run, bar": "{:.0f} ± {:.0f}".format(*training)}
    if rerun.get("rows"):  # else the run ended early
        (pressure,) = (r for r in rerun["rows"] if r["name"] == "pressure")
        for who, key in (("model's run", "model"), ("reference along it", "reference"), ("difference", "difference")):
            error = pressure["error" if key == "difference" else f"{key}_error"]
            row[f"{who}, bar"] = f"{pressure[key]:.0f} ± {error:.0f}"
        figures[f"{targets}: difference, bar"] = pressure["difference"]
    row["survived, ps"] = float(stability["headline"]["reached"])
    (forces,) = (one["forces"]["rmse"] for one in errors["sets"].values())
    row["force RMSE, meV/Å"] = 1e3 * float(forces)
    return row


def main() -> None:
    """Run the three and print the table."""
    options = parser(__doc__)
    options.add_argument("--keep", type=Path, help="folder to run in")
    args = options.parse_args()
    rows, figures = [], dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="campaign-pressure-") as made:
        folder = args.keep or Path(made)
        for number, (targets, weights) in enumerate(TARGETS.items()):
            say(f"trained on {targets}")
            path = run(campaign_file(folder, f"pressure-{number}", weights, args.quick))
            rows.append(line(targets, path, figures))
    best = figures.get(f"{list(TARGETS)[-1]}: difference, bar", np.inf)
    asked = {f"{list(TARGETS)[-1]}: difference, bar": ASKED}
    report("pressure", rows, figures, asked, bool(args.quick or abs(best) <= ASKED))


if __name__ == "__main__":
    main()
