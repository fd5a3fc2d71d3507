"""Frames a second of a training step, beside SchNetPack's own ``spktrain``.

SchNet of 64 features and 3 interactions, cutoff 6 Å, on energies, forces and stresses of 64-atom NaCl, float32, one
thread, the same number of frames a step, running average of the weights in both. ``spktrain`` reads its ASE database
with its own loader, in the process itself and in one of its own beside it; the quicker one counts. What counts are the
CPU seconds of the training process (not those of a loader beside it) for whole epochs of training without the first: no
validation, no start. On an idle machine they are the wall time; a busy one changes them little. The programs take
turns. Beside them stand the members of an ensemble trained together, as frames a second of all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report

from campaign.engines.schnetpack_data import examples_of, targets_of
from campaign.engines.schnetpack_steps import Optimisation
from campaign.engines.schnetpack_together import Stacked
from campaign.engines.schnetpack_train import DEFAULTS
from campaign.frames import Frames

ASKED = {"times spktrain": 1.5}
MEMBERS = 5
TOGETHER = f"campaign, {MEMBERS} members together"
LOSS = {"energy": 0.01, "forces": 0.95, "stress": 0.04}

#: ``spktrain`` as installed, after what any torch needs for ``import schnetpack``, with a clock among its callbacks.
SPKTRAIN = """
import sys, time
import torch
torch.set_num_threads(1)
from campaign.engines.schnetpack import load_schnetpack
load_schnetpack()
import pytorch_lightning as lightning
import schnetpack.train
class Clock(lightning.Callback):
    def on_train_batch_start(self, trainer, module, batch, number):
        if number == 0:
            self.start = time.process_time()
    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        if number == trainer.num_training_batches - 1:
            print("EPOCH", time.process_time() - self.start, flush=True)
schnetpack.train.Clock = Clock
from schnetpack.cli import train
train()
"""

EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: nnp
  - override /model/representation: schnet
  - override /data: custom
  - override /logger: csv
run: {{experiment: nacl}}
globals: {{cutoff: 6.0, lr: 1e-3}}
trainer: {{accelerator: cpu, max_epochs: {epochs}, enable_progress_bar: false, enable_model_summary: false}}
callbacks: {{clock: {{_target_: schnetpack.train.Clock}}}}
data:
  datapath: {folder}/nacl.db
  batch_size: {batch}
  num_train: {frames}
  num_val: 2
  num_test: 2
  num_workers: {workers}
  distance_unit: Ang
  property_units: {{energy: eV, forces: eV/Ang, stress: eV/Ang/Ang/Ang}}
  transforms:
    - {{_target_: schnetpack.transform.RemoveOffsets, property: energy, remove_mean: true}}
    - {{_target_: schnetpack.transform.MatScipyNeighborList, cutoff: 6.0}}
    - {{_target_: schnetpack.transform.CastTo32}}
model:
  representation: {{n_atom_basis: 64, n_interactions: 3}}
  input_modules:
    - {{_target_: schnetpack.atomistic.Strain}}
    - {{_target_: schnetpack.atomistic.PairwiseDistances}}
  output_modules:
    - {{_target_: schnetpack.atomistic.Atomwise, output_key: energy, n_in: 64, aggregation_mode: sum}}
    - {{_target_: schnetpack.atomistic.Forces, calc_stress: true}}
task:
  scheduler_cls: null  # SchNetPack's own gives torch's an argument that newer ones do not take
  outputs:
"""
OUTPUT = """\
    - _target_: schnetpack.task.ModelOutput
      name: {0}
      loss_fn: {{_target_: torch.nn.MSELoss}}
      metrics: {{}}
      loss_weight: {1}
"""


def labelled(n: int) -> Frames:
    """Shaken 64-atom NaCl; its labels are noise, which takes as long to learn as any."""
    from ase.build import bulk

    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=6.0, cubic=True) * (2, 2, 2)
    x = atoms.positions + 0.3 * rng.normal(size=(n, 64, 3))
    frames = Frames.build(atoms.numbers, x, np.array(atoms.cell))
    stress = 0.01 * rng.normal(size=(n, 3, 3))
    return frames.with_(
        energy=rng.normal(size=n) - 200.0, forces=0.5 * rng.normal(size=(n, 64, 3)), stress=stress + stress.mT
    )


def database(frames: Frames, path: Path) -> None:
    """Write SchNetPack's own ASE database."""
    from schnetpack.data import ASEAtomsData

    units = {"energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang/Ang/Ang"}
    made = ASEAtomsData.create(str(path), distance_unit="Ang", property_unit_dict=units)
    properties = [
        {"energy": frames.energy[[k]], "forces": frames.forces[k], "stress": frames.stress[[k]]}
        for k in range(len(frames))
    ]
    made.add_systems(property_list=properties, atoms_list=frames.to_ase())


def spktrain(folder: Path, frames: int, batch: int, epochs: int, workers: int) -> list[float]:
    """Return the seconds of the epochs but the first."""
    experiments = folder / "configs" / "experiment"
    experiments.mkdir(parents=True, exist_ok=True)
    text = EXPERIMENT.format(folder=folder, epochs=epochs, batch=batch, frames=frames, workers=workers)
    text += "".join(OUTPUT.format(name, weight) for name, weight in LOSS.items())
    (experiments / "nacl.yaml").write_text(text)
    command = [sys.executable, "-c", SPKTRAIN, f"--config-dir={folder / 'configs'}", "experiment=nacl"]
    run = folder / f"run-{time.time_ns()}"
    command += [f"run.path={run}", f"run.data_dir={folder}", "print_config=false"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("EPOCH")]
    if len(found) < epochs:  # what comes after the last epoch is its test set and its files: not measured
        raise SystemExit(f"spktrain did not train: {done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return found[1:]


class Ours:
    """The loop of ``schnetpack_train``, with what it keeps ready for every step; of one model or of several at once."""

    def __init__(self, frames: Frames, batch: int, members: int = 1) -> None:
        spec = {**DEFAULTS, "batch": batch, "epochs": 10_000, "rate": 1e-3}
        targets = targets_of([frames], LOSS)
        kind = Optimisation if members == 1 else Stacked
        self._run = kind(spec, range(members), targets, len(frames))
        self._examples = examples_of(frames, targets, 6.0)
        self._rng, self._batch, self._members = np.random.default_rng(0), batch, members

    def epoch(self) -> float:
        """Return the seconds of an epoch, of one model on average."""
        start = time.process_time()
        orders = [self._rng.permutation(len(self._examples)) for _ in range(self._members)]
        for first in range(0, len(self._examples), self._batch):
            self._run.step([[self._examples[k] for k in order[first : first + self._batch]] for order in orders])
        return (time.process_time() - start) / self._members


def measure(batch: int, n: int, epochs: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each program."""
    frames = labelled(n + 4)
    ours, together = Ours(frames[:n], batch), Ours(frames[:n], batch, MEMBERS)
    ours.epoch()
    together.epoch()
    names = ("spktrain", "spktrain, loader beside it", "campaign", TOGETHER)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database(frames, folder / "nacl.db")
        for _ in range(rounds):
            seconds["spktrain"] += spktrain(folder, n, batch, epochs, workers=0)
            seconds["campaign"] += [ours.epoch() for _ in range(epochs)]
            seconds[TOGETHER].append(together.epoch())
            seconds["spktrain, loader beside it"] += spktrain(folder, n, batch, epochs, workers=1)
            seconds["campaign"] += [ours.epoch() for _ in range(epochs)]
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    best = min(s for name, s in medians.items() if name.startswith("spktrain"))
    return [
        {"": name, "frames/step": batch, "ms/frame": 1e3 * s / n, "frames/s": n / s, "times spktrain": best / s}
        for name, s in medians.items()
    ]


def main() -> None:
    quick = arguments(__doc__).quick
    import torch

    torch.set_num_threads(1)
    n, epochs, rounds = (32, 3, 1) if quick else (64, 4, 1)
    rows, figures = [], {}
    for batch in (4,) if quick else (1, 4):
        found = measure(batch, n, epochs, rounds)
        rows += found
        alone, together = found[-2:]
        figures[f"times spktrain, {batch} frames a step"] = alone["times spktrain"]
        figures[f"frames/s, {batch} frames a step"] = alone["frames/s"]
        figures[f"together, times one by one, {batch} frames a step"] = together["frames/s"] / alone["frames/s"]
    figures["times spktrain"] = min(v for k, v in figures.items() if k.startswith("times"))
    report("training", rows, figures, ASKED, all(figures[name] >= least for name, least in ASKED.items()))


if __name__ == "__main__":
    main()
