"""Labellers: single points by a reference method. One contract, one check over every result.

A labeller takes a block of frames and returns energy (n,) eV, forces (n, a, 3) eV/Å and virial stress (n, 3, 3) eV/Å^3
(tension positive, as ASE). It raises EngineError with the engine's own words. ``label`` checks whatever it returns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import EngineError, Unphysical
from campaign.frames import Frames
from campaign.tasks import Context, Json, Task

Array = npt.NDArray[Any]
Labels = tuple[Array, Array, Array]
Labeller = Callable[[Frames, Task, Context], Labels]

#: A sum of forces larger than this (eV/Å, each component) means that forces and energy do not belong together.
NET_FORCE = 0.05


def _lammps(frames: Frames, task: Task, context: Context) -> Labels:
    from campaign.engines import lammps
    from campaign.engines.lammps_potential import load_potential

    return lammps.single_points(load_potential(context.run / task.extra["potential"]), frames)


def _ase(frames: Frames, task: Task, context: Context) -> Labels:
    from ase.stress import voigt_6_to_full_3x3_stress

    from campaign.config import CALCULATORS

    module, _, name = CALCULATORS[task.params["calculator"]].rpartition(".")
    parameters = dict(task.params.get("parameters", {}))
    ladder = task.params.get("ladder", [])
    if context.attempt and ladder:
        parameters |= ladder[min(context.attempt, len(ladder)) - 1]
    if task.params["calculator"] == "gpaw":  # it writes to the worker's own output otherwise
        parameters["txt"] = str(context.folder(task) / f"attempt-{context.attempt}.txt")
    energies, forces, stresses = [], [], []
    for atoms in frames.to_ase():
        try:
            atoms.calc = getattr(importlib.import_module(module), name)(**parameters)
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
            stresses.append(voigt_6_to_full_3x3_stress(atoms.get_stress()))
        except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"ASE's {name}: {type(error).__name__}: {error}.") from error
    return np.array(energies), np.array(forces), np.array(stresses)


def _pool(frames: Frames, task: Task, context: Context) -> Labels:
    missing = [name for name in ("energy", "forces", "stress") if np.isnan(getattr(frames, name)).all()]
    if missing:
        raise EngineError(
            f"The frame carries no {' and no '.join(missing)}; give the file of frames them, or write another engine."
        )
    return frames.energy, frames.forces, frames.stress


def _fake(frames: Frames, task: Task, context: Context) -> Labels:
    from campaign.engines import fake

    return fake.label(frames, task.params, task.extra)


def _cp2k(frames: Frames, task: Task, context: Context) -> Labels:
    from campaign.engines import cp2k

    return cp2k.label(frames, task, context)


LABELLERS: dict[str, Labeller] = {"lammps": _lammps, "ase": _ase, "cp2k": _cp2k, "pool": _pool, "fake": _fake}


def label(frames: Frames, task: Task, context: Context) -> Frames:
    """Label frames with the engine that ``task.params["engine"]`` names, and check the result.

    Raises
    ------
    EngineError
        The calculation failed.
    Unphysical
        It ended, but its numbers cannot be right.
    """
    energy, forces, stress = LABELLERS[task.params["engine"]](frames, task, context)
    return check_labels(frames, energy, forces, stress)


def report(task: Task, context: Context) -> dict[str, Json]:
    """Return what an engine says of its latest attempt at a task, also of one that failed; most say nothing."""
    if task.params["engine"] != "cp2k":
        return {}
    from campaign.engines import cp2k

    return cp2k.report(task, context)


def check_labels(frames: Frames, energy: Array, forces: Array, stress: Array) -> Frames:
    """Return ``frames`` with the labels on them, if they can be right: done means checked, never exit code 0.

    Raises
    ------
    Unphysical
        Wrong shape, not finite, an asymmetric stress, or forces that do not sum to nothing.
    """
    n, a = frames.numbers.shape
    for name, value, shape in (
        ("energy", energy, (n,)),
        ("forces", forces, (n, a, 3)),
        ("stress", stress, (n, 3, 3)),
    ):
        if np.shape(value) != shape:
            raise Unphysical(f"The label's {name} has shape {np.shape(value)}; {shape} is needed: atoms are missing.")
        if not np.isfinite(value).all():
            raise Unphysical(f"The label's {name} is not finite.")
    net = np.abs(forces.sum(axis=1)).max()
    if net > NET_FORCE * np.sqrt(a):
        raise Unphysical(f"The label's forces sum to {net:.3g} eV/Å instead of nothing; loosen or check the engine.")
    if not np.allclose(stress, np.swapaxes(stress, 1, 2), atol=1e-6):
        raise Unphysical("The label's stress is not symmetric.")
    # the atoms' energies are the sampling potential's, and belong to no other energy
    return frames.with_(energy=energy, forces=forces, stress=stress, energies=np.full((n, a), np.nan))


def versions(engine: str) -> dict[str, str]:
    """Return the versions of what a labeller runs."""
    from importlib.metadata import version

    packages: dict[str, tuple[str, ...]] = {"lammps": ("lammps",), "ase": ("ase",), "pool": (), "fake": ()}
    return {name: version(name) for name in packages.get(engine, ())}
