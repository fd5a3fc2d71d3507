"""Run by test_resume_training.py: train, and die by SIGKILL at the moments asked for, again and again.

``crash_training.py FOLDER MODEL STRIDE`` leaves, in FOLDER, ``undisturbed.npz`` (weights and history of a training that
nobody killed), ``once-N.npz`` for one killed once, before its N-th event, and ``often-N.npz`` for one killed after
every N events until it is done. Events are steps of the optimiser and operations on files.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

import campaign.engines.checkpoints as checkpoints
from campaign.engines.fake import ToyCrystal
from campaign.engines.schnetpack import load_schnetpack
from campaign.engines.schnetpack_steps import Optimisation
from campaign.engines.schnetpack_train import train
from campaign.frames import Frames

EVENTS = {"open", "os.rename", "os.remove", "training.step"}
SPEC = {"features": 8, "interactions": 1, "cutoff": 4.5, "epochs": 4, "batch": 2, "rate": 1e-3}


def labelled(n: int, cells: tuple[int, int, int]) -> Frames:
    """Shaken toy crystals."""
    from ase.build import bulk

    rng = np.random.default_rng(n)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * cells
    x = atoms.positions + 0.15 * rng.normal(size=(n, len(atoms), 3))
    frames = Frames.build(atoms.numbers, x, np.array(atoms.cell))
    energy, forces, stress = ToyCrystal().evaluate(frames)
    return frames.with_(energy=energy, forces=forces, stress=stress)


def run(model: str, folder: Path, result: Path) -> None:
    """Train, from a checkpoint if there is one, and write what came out."""
    history: list[list[float]] = []
    folder.mkdir(exist_ok=True)
    execution = checkpoints.Execution(folder / checkpoints.NAME)
    frames = [labelled(4, (2, 1, 1)), labelled(3, (1, 1, 1))]
    weights, summary = train(
        frames, {**SPEC, "model": model}, 3, lambda v: history.append(list(v.values())), execution=execution
    )
    counts = {"summary.continued": summary.get("continued", -1), "summary.best": summary["best_epoch"]}
    aside = result.with_suffix(".aside.npz")
    np.savez(aside, **weights, **counts, history=np.array(history))
    aside.rename(result)


def child(model: str, folder: Path, result: Path, kill_at: int) -> bool:
    """Run in a process of its own, killed before its event ``kill_at`` (0: never); tell whether it got to the end."""
    process = os.fork()
    if not process:
        seen = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS and (event == "training.step" or checkpoints.NAME in str(args[0])):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            signal.alarm(120)
            os.fsync = lambda _fd: None  # the kernel outlives the process: flushing is not what is tried here
            sys.addaudithook(hook)
            run(model, folder, result)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or status == 0, "a training failed"
    return not os.WIFSIGNALED(status)


def main(root: Path, model: str, stride: int) -> None:
    """Kill at every ``stride``-th event once, then at ever so many."""
    load_schnetpack()
    checkpoints.SECONDS = 0.0  # a checkpoint after every step
    whole = Optimisation.step

    def step(self: Optimisation, batches: object) -> list[float]:
        sys.audit("training.step")
        return whole(self, batches)  # type: ignore[arg-type]

    Optimisation.step = step  # type: ignore[method-assign]
    assert child(model, root / "undisturbed", root / "undisturbed.npz", 0)
    kill_at = 1
    while True:
        name = f"once-{kill_at}"
        if child(model, root / name, root / f"{name}.npz", kill_at):
            break
        assert child(model, root / name, root / f"{name}.npz", 0)
        kill_at += stride
    for every in (9, 10, 13):
        tries = 1
        while not child(model, root / f"often-{every}", root / f"often-{every}.npz", every):
            tries += 1
            assert tries < 100, "it never gets further"
        print(every, tries)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
