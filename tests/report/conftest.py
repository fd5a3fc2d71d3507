"""A made-up campaign with every part a report can show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

Data = dict[str, Any]


def errors(rng: np.random.Generator) -> Data:
    sets: Data = {}
    parity: Data = {}
    energy = rng.normal(-3.1, 0.03, 200)
    forces = rng.normal(0, 0.52, 4500)
    for name, scale in (("random", 1.15), ("rnd_stream", 1.0)):
        sets[name] = {
            "energy": {"mae": 0.0018 * scale, "rmse": 0.0023 * scale, "l4": 0.004, "max": 0.009},
            "forces": {"mae": 0.051 * scale, "rmse": 0.071 * scale, "l4": 0.25 * scale**2, "max": 2.31},
            "stress": {"mae": 2.1e-4, "rmse": 3e-4 * scale, "l4": 6e-4, "max": 1e-3},
            "species": {s: {"mae": 0.05, "rmse": 0.07 * scale, "l4": 0.2, "max": 2.3} for s in ("Na", "Cl")},
        }
        parity[name] = {
            "energy": [energy.tolist(), (energy + rng.normal(0, 0.0025 * scale, 200)).tolist()],
            "forces": [forces.tolist(), (forces + rng.normal(0, 0.07 * scale, 4500)).tolist()],
        }
    return {
        "method": "errors",
        "pass": True,
        "threshold": {"forces": "20 %", "l4": None, "energy": "3 meV/atom", "stress": None},
        "judged": [
            {"name": "force RMSE", "value": 71.0, "limit": 104.8, "unit": "meV/Å", "asked": "20 %", "ok": True},
            {"name": "energy RMSE", "value": 2.3, "limit": 3.0, "unit": "meV/atom", "asked": "3 meV/atom", "ok": True},
        ],
        "held_out": 200,
        "sets": sets,
        "parity": parity,
    }


def stability(rng: np.random.Generator) -> Data:
    time = np.linspace(0, 5, 251)
    return {
        "method": "stability",
        "pass": True,
        "ensemble": "npt",
        "temperature": 1400,
        "pressure": 1.0,
        "time": 5.0,
        "reached": 5.0,
        "first_bad": None,
        "criteria": [
            {"name": "shortest distance", "limit": 1.2, "worst": 2.1, "unit": "Å", "ok": True},
            {"name": "largest force", "limit": 30.0, "worst": 4.7, "unit": "eV/Å", "ok": True},
            {"name": "volume over its start", "limit": 1.5, "worst": 1.08, "unit": "", "ok": True},
            {"name": "temperature off its set point", "limit": 0.5, "worst": 0.13, "unit": "", "ok": True},
        ],
        "series": {
            "time": time.tolist(),
            "temperature": (1400 + 60 * np.sin(7 * time) + rng.normal(0, 30, time.size)).tolist(),
            "energy": (-3.05 + rng.normal(0, 0.004, time.size)).tolist(),
            "volume": (40 + 0.8 * np.sin(2 * time) + rng.normal(0, 0.1, time.size)).tolist(),
            "max_force": rng.gamma(30, 0.1, time.size).tolist(),
            "min_distance": (2.3 + rng.normal(0, 0.05, time.size)).tolist(),
        },
    }


def rdf() -> Data:
    r = np.linspace(0.05, 6.5, 130)
    pairs = {}
    for pair, first in (("Na-Na", 3.8), ("Na-Cl", 2.7), ("Cl-Cl", 3.9)):
        g = np.where(r > first - 0.6, 1 + 1.8 * np.exp(-(((r - first) / 0.4) ** 2)) - 0.3 * np.sin(2 * (r - first)), 0)
        reference = np.clip(g, 0, None)
        pairs[pair] = {
            "r": r.tolist(),
            "model": (0.97 * reference).tolist(),
            "reference": reference.tolist(),
            "difference": 0.03,
        }
    return {"method": "rdf", "pass": True, "cause": "", "threshold": 0.1, "pairs": pairs}


def momt(rng: np.random.Generator) -> Data:
    """Four walkers that came far; the first went through ten segments, the last stopped in its fourth."""
    counts = (10, 10, 10, 3)
    walkers = []
    for number, n in enumerate(counts):
        steps = [50_000 * (k + 1) for k in range(n)]
        trips = (np.cumsum(rng.integers(0, 3, n)) / 2 + 1).tolist()
        share = (0.8 * (1 - np.exp(-np.arange(1, n + 1) / 3))).tolist()
        flat = np.linspace(0.1, 0.4, n).tolist()
        found = {"steps": steps, "trips": trips, "coverage": share, "flatness": flat}
        walkers.append({"number": number, "stopped": "" if n == 10 else "Two atoms met.", **found})
    h, q = np.linspace(-4.75, -4.08, 25), np.linspace(0, 1, 21)
    possible = np.add.outer(1.4 * np.linspace(0, 1, 24), -np.abs(np.linspace(-1, 1, 20))) > -0.5
    visits = np.where(possible, rng.poisson(np.exp(rng.uniform(0, 6, (24, 20)))), 0)
    steps = np.arange(1, 501) * 1000
    wave = np.sin(steps / 40_000)
    return {
        "window": [-4.75, -4.08],
        "temperatures": [900, 3500],
        "auto": True,
        "shared": True,
        "ordered": True,
        "walkers": walkers,
        "map": {
            "h": h.tolist(),
            "q": q.tolist(),
            "visits": visits.tolist(),
            "coverage": float((visits > 0).mean()),
            "missing": [],
        },
        "series": {
            "walker": 0,
            "step": steps.tolist(),
            "h": (-4.41 + 0.3 * wave + rng.normal(0, 0.02, 500)).tolist(),
            "q": np.clip(0.5 - 0.4 * wave + rng.normal(0, 0.03, 500), 0, 1).tolist(),
        },
    }


def sampling(rng: np.random.Generator) -> list[Data]:
    both: Data = {"walkers": 4, "steps": 500_000, "frames": 1040, "planned": 1300, "stopped": 1}
    return [
        {"name": "momt", **both, "set": [2000.0, 2000.0], "mean": 2004.1, "momt": momt(rng)},
        {"name": "npt1", **both, "set": [1100.0, 1700.0], "mean": 1398.0, "stopped": 0, "momt": None},
    ]


def tasks(rng: np.random.Generator) -> list[Data]:
    records = []
    free = {101: 0.0, 102: 0.0}
    plan = [("sample", 24, 7.0), ("label", 12, 1.0), ("train", 4, 35.0), ("validate", 3, 20.0)]
    for stage, count, length in plan:
        for k in range(count):
            pid = min(free, key=lambda p: free[p])
            seconds = float(length * rng.uniform(0.7, 1.3))
            bad = stage == "sample" and k in (5, 11)
            records.append(
                {
                    "task": f"{stage}{k}",
                    "stage": stage,
                    "name": f"{stage} {k}",
                    "attempt": 0,
                    "state": "failed" if bad else "done",
                    "cause": "LAMMPS stopped: Lost atoms: original 64 current 63." if bad else "",
                    "transient": False,
                    "host": "node1",
                    "pid": pid,
                    "start": 1.7e9 + free[pid],
                    "seconds": seconds,
                    "versions": {},
                    "result": {},
                }
            )
            free[pid] += seconds
    records.append({**records[5], "attempt": 1, "state": "done", "cause": "", "start": 1.7e9 + max(free.values())})
    records.append({**records[11], "attempt": 1, "state": "quarantined", "start": 1.7e9 + max(free.values())})
    return records


@pytest.fixture
def data() -> Data:
    """Everything a finished campaign has."""
    rng = np.random.default_rng(1)
    n = 2080
    seen = np.arange(n)
    novelty = 0.3 * np.exp(-seen / 500) + 0.05 + rng.gamma(2, 0.02, n)
    chosen = sorted(rng.choice(n, 32, replace=False, p=np.exp(-seen / 400) / np.exp(-seen / 400).sum()).tolist())
    novelty[chosen] += 0.15
    counts = {"sample": 24, "select": 1, "label": 12, "train": 4, "validate": 3}
    stages = {s: {"state": "done", "done": c, "total": c, "failed": 0} for s, c in counts.items()}
    stages["sample"] = {"state": "partial", "done": 23, "total": 24, "failed": 1}
    cause = "LAMMPS stopped: Lost atoms: original 64 current 63."
    epoch = list(range(1, 61))
    return {
        "status": {
            "campaign": "nacl-quickstart",
            "state": "partial",
            "stages": stages,
            "frames": n,
            "selected": 32,
            "labelled": 32,
            "failures": [{"task": "sample11", "stage": "sample", "cause": cause}],
            "frames_per_second": 12.4,
            "eta": None,
            "loss": 0.0041,
            "seconds": 301.0,
        },
        "validation": [errors(rng), stability(rng), rdf()],
        "sampling": sampling(np.random.default_rng(2)),
        "selection": {
            "method": "rnd_stream",
            "novelty": novelty.tolist(),
            "temperature": (1100 + 600 * (seen % 260) / 260).tolist(),
            "chosen": chosen,
            "refused": [{"frame": f"00:{k}", "reason": "two atoms closer than 1.2 Å"} for k in range(3)],
        },
        "training": [
            {
                "name": f"{name}/{member}",
                "epoch": epoch,
                "loss": (0.4 * np.exp(-np.array(epoch) / 9) + 0.004 + rng.uniform(0, 0.002, 60)).tolist(),
                "force_rmse": (0.5 * np.exp(-np.array(epoch) / 12) + 0.07 + rng.uniform(0, 0.01, 60)).tolist(),
            }
            for name in ("rnd_stream", "random")
            for member in (0, 1)
        ],
        "tasks": tasks(rng),
        "about": {
            "campaign": "0.1.0",
            "created": "2026-11-20 05:12",
            "host": "node1",
            "cores": 2,
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "versions": {"torch": "2.13.0", "lammps": "2025.7.22", "zarr": "3.1.6"},
            "file": "campaign: nacl-quickstart\nseed: 1\nsystem:\n  structure: {prototype: rocksalt}\n",
        },
    }
