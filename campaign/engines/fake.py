"""A toy crystal with every part real but the physics: a whole campaign in seconds, for tests and for trying a site.

Pair energy EPSILON (1 - r^2/R^2)^3 below R: smooth, purely repulsive, with analytic forces and virial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines.checkpoints import WarmStart
from campaign.engines.structures import build_structure
from campaign.errors import EngineError
from campaign.frames import Frames
from campaign.science.neighbours import neighbour_list
from campaign.tasks import Json, Outcome, Task

Array = npt.NDArray[Any]

EPSILON = 1.0  # eV
RANGE = 4.0  # Å


class ToyCrystal:
    """The toy potential, as a labeller and as a "trained" model.

    Parameters
    ----------
    scale
        Factor on the energy; a fake model errs by a little.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3."""
        n, a = frames.numbers.shape
        edges = neighbour_list(frames, RANGE)
        d = edges.vectors(frames.positions)
        x = 1.0 - (d**2).sum(axis=1) / RANGE**2
        pair = self.scale * EPSILON * x**3
        # dE/dr_j of one directed edge; each pair comes twice, hence the halves.
        gradient = (self.scale * EPSILON * 3.0 * x**2 * (-2.0 / RANGE**2))[:, None] * d
        frame = edges.idx_i // a
        energy = 0.5 * np.bincount(frame, pair, n)
        forces = np.zeros((n * a, 3))
        np.add.at(forces, edges.idx_i, gradient)
        virial = np.zeros((n, 3, 3))
        np.add.at(virial, frame, 0.5 * gradient[:, :, None] * d[:, None, :])
        return energy, forces.reshape(n, a, 3), virial / frames.volume[:, None, None]

    def atomic_energies(self, frames: Frames) -> Array:
        """Return (n, a) eV: half of each pair's energy to each of its atoms."""
        edges = neighbour_list(frames, RANGE)
        x = 1.0 - (edges.vectors(frames.positions) ** 2).sum(axis=1) / RANGE**2
        half = np.bincount(edges.idx_i, 0.5 * self.scale * EPSILON * x**3, frames.numbers.size)
        return half.reshape(frames.numbers.shape)

    def export(self, path: Path) -> None:
        """Write the scale as JSON."""
        path.write_text(json.dumps({"model": "fake", "scale": self.scale}))


def sample(task: Task, before: dict[str, Array] | None, folder: Path) -> Outcome:
    """Return a segment of randomly displaced crystals; the random state is the checkpoint.

    Parameters
    ----------
    task
        The segment.
    before
        The checkpoint of the segment before it; None for the first.
    folder
        Where the path of a structure file starts.
    """
    p = task.params
    time.sleep(task.extra.get("delay", 0.0))
    atoms = build_structure(p["structure"], folder)
    count = int(before["count"][0]) if before is not None else 0
    rng = np.random.default_rng([p["seed"], *p["walker"], count])
    n, a = p["frames"], len(atoms)
    positions = atoms.positions + p["displacement"] * rng.normal(size=(n, a, 3))
    frames = Frames.build(
        atoms.numbers,
        positions,
        np.array(atoms.cell),
        task=task.number,
        walker=p["walker"][1],
        step=p["first"] + 1 + np.arange(n),
        temperature=p["temperature"],
    )
    energy, forces, stress = ToyCrystal().evaluate(frames)
    frames = frames.with_(energy=energy, forces=forces, stress=stress)
    summary: dict[str, Json] = {"frames": n, "temperature": p["temperature"], "volume": float(frames.volume.mean())}
    return Outcome(summary, dict(frames.arrays()), {"count": np.array([count + n])})


def label(frames: Frames, params: dict[str, Json], extra: dict[str, Json]) -> tuple[Array, Array, Array]:
    """Label with the toy crystal; ``fail`` in the parameters makes the calculation fail."""
    time.sleep(extra.get("delay", 0.0))
    if params.get("fail"):
        raise EngineError("The fake engine was told to fail on this frame.")
    return ToyCrystal().evaluate(frames)


def train(
    blocks: Sequence[Frames],
    seed: int,
    on_epoch: Callable[[dict[str, float]], None],
    delay: float,
    start: WarmStart | None = None,
) -> tuple[dict[str, Array], dict[str, Json]]:
    """Pretend to train a toy crystal: the true one, off by up to a thousandth, or by half of what ``start`` is off."""
    n = sum(len(b) for b in blocks)
    for epoch in range(1, 6):
        time.sleep(delay / 5)
        on_epoch({"epoch": epoch, "loss": 1.0 / epoch, "force_rmse": 0.1 / epoch})
    scale = 1.0 + 1e-3 * np.random.default_rng(seed).uniform(-1, 1)
    if start is not None:
        scale = 0.5 + 0.5 * float(start.weights[0]["scale"][0])
    return {"scale": np.array([scale])}, {"epochs": 5, "train_frames": n, "force_rmse": 0.02, "loss": 0.2}
