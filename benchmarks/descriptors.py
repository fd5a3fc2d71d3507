"""Descriptors of frames a second on one core, beside SchNetPack's own path from atoms to features.

Neighbour list and untrained SchNet (64 features, 3 interactions, cutoff 6 Å), float32, one thread, the same weights in
all; liquid-like NaCl of 64 atoms, and Ni of 32 atoms whose cell is hardly longer than the cutoff. SchNetPack's
``AtomsConverter`` gets its batches with matscipy's and with ASE's neighbour list, the quicker one counts; making ASE
atoms from arrays is not counted against it. Seconds are those of the core. The results must agree.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy's products too

from collections.abc import Callable
from typing import Any

import numpy as np
from common import arguments, interleaved, report

from campaign.engines.descriptors import Descriptor
from campaign.engines.schnetpack import load_schnetpack, schnet
from campaign.frames import Array, Frames
from campaign.science.neighbours import neighbour_list

ASKED = {"times SchNetPack, NaCl": 3.0}
SETTINGS = {"features": 64, "interactions": 3, "cutoff": 6.0}
#: Largest difference of two features that are the same in exact arithmetic; features are about 1.
AGREE = 1e-5


def shaken(kind: str, n: int) -> Frames:
    from ase.build import bulk

    rng = np.random.default_rng(0)
    structure, a, noise = {"NaCl": ("rocksalt", 6.2, 0.4), "Ni": ("fcc", 3.55, 0.2)}[kind]
    cell = bulk(kind, structure, a=a, cubic=True) * (2, 2, 2)
    images = []
    for _ in range(n):
        atoms = cell.copy()
        atoms.positions += rng.normal(scale=noise, size=atoms.positions.shape)
        images.append(atoms)
    return Frames.from_ase(images)


def schnetpacks(frames: Frames, neighbours: str, batch: int) -> Callable[[], Array]:
    """Return the work: SchNetPack's converter, distances and SchNet, then the mean over atoms."""
    import torch

    spk = load_schnetpack()
    from schnetpack.interfaces import AtomsConverter

    ours = schnet(64, 3, 6.0, seed=0)
    model = spk.representation.SchNet(64, 3, spk.nn.GaussianRBF(20, 6.0), spk.nn.CosineCutoff(6.0))
    model.load_state_dict(ours.state_dict())
    distances = spk.atomistic.PairwiseDistances()
    convert = AtomsConverter(neighbor_list=getattr(spk.transform, neighbours)(cutoff=6.0))
    images = frames.to_ase()

    def work() -> Array:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                inputs = model(distances(convert(images[start : start + batch])))
                atoms = inputs["scalar_representation"].reshape(-1, frames.n_atoms, 64)
                parts.append(atoms.mean(dim=1).numpy())
        return np.concatenate(parts)

    return work


def measure(kind: str, n: int, rounds: int) -> tuple[list[dict[str, Any]], float, float]:
    """Return the rows, how many times as quick as the quicker of SchNetPack's, and the largest difference."""
    frames = shaken(kind, n)
    descriptor = Descriptor(np.unique(frames.numbers).tolist(), seed=0, pooling="mean", device="cpu", **SETTINGS)
    works: dict[str, Callable[[], Any]] = {
        "SchNetPack, matscipy": schnetpacks(frames, "MatScipyNeighborList", 16),
        "SchNetPack, matscipy, one by one": schnetpacks(frames, "MatScipyNeighborList", 1),
        "SchNetPack, ASE": schnetpacks(frames, "ASENeighborList", 16),
        "campaign": lambda: descriptor(frames),
    }
    found = {name: work() for name, work in works.items()}  # and everything is loaded and compiled
    apart = max(float(np.abs(x - found["campaign"]).max()) for x in found.values())
    works["campaign: neighbour list alone"] = lambda: neighbour_list(frames, 6.0, half=True)
    seconds = interleaved({name: on_core(work) for name, work in works.items()}, rounds)
    peers = [name for name in seconds if name.startswith("SchNetPack")]
    best = min(seconds[name] for name in peers)
    rows = [
        {"": f"{kind}, {name}", "ms/frame": 1e3 * s / n, "frames/s": n / s, "times SchNetPack": best / s}
        for name, s in seconds.items()
    ]
    return rows, best / seconds["campaign"], apart


def on_core(work: Callable[[], Any]) -> Callable[[], float]:
    """Return the work, counting the seconds of its core: all is one thread, and other programs may take turns."""

    def run() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return run


def main() -> None:
    quick = arguments(__doc__).quick
    import torch

    torch.set_num_threads(1)
    n, rounds = (64, 5) if quick else (128, 9)
    rows, figures, apart = [], {}, 0.0
    for kind in ("NaCl", "Ni"):
        more, times, worst = measure(kind, n, rounds)
        rows += more
        figures[f"times SchNetPack, {kind}"] = times
        figures[f"frames/s, {kind}"] = next(r["frames/s"] for r in more if r[""] == f"{kind}, campaign")
        apart = max(apart, worst)
    figures["largest difference"] = apart
    ok = apart < AGREE and all(figures[name] >= least for name, least in ASKED.items())
    report("descriptors", rows, figures, {**ASKED, "largest difference": f"< {AGREE:g}"}, ok)


if __name__ == "__main__":
    main()
