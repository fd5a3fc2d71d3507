"""Molecular dynamics in LAMMPS: segments that start from a checkpoint and end with one.

Frames leave LAMMPS in memory. A segment starts from a checkpoint (the bytes of a LAMMPS restart) in a fresh LAMMPS and
ends with one, so that a run that was killed continues to bitwise the same frames as one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.engines.batched import Share
from campaign.engines.guards import Guard, Watch
from campaign.engines.lammps import External, Lammps, to_lammps
from campaign.engines.lammps_model import Forces
from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import EngineError

Array = npt.NDArray[Any]

#: Words with which LAMMPS refuses per-atom energies.
NO_ENERGIES = ("per-atom", "peratom", "pe/atom", "energy/atom")

#: Per-atom energies whose sum misses the energy by more than this share of it are not the potential's.
ENERGY_SUM = 1e-3


@dataclass(frozen=True)
class Segment:
    """A stretch of molecular dynamics at the end of which there is a checkpoint.

    Attributes
    ----------
    frames
        How many frames to keep.
    every
        MD steps between two frames.
    first
        Steps the walker has made before this segment.
    timestep
        ps.
    temperature
        Set points at the segment's start and end, K.
    pressure
        Set point in bar; None keeps the cell (NVT).
    thermostat, barostat
        Damping times, ps.
    halvings
        How often the time step is halved (the retry rule); frames stay at the same times.
    heights
        Heights of the walker's cell at its start, Å, for the guard; None takes those of the segment's first frame.
    isolated
        No thermostat and no barostat (NVE), after a preparation with one.
    """

    frames: int
    every: int
    first: int
    timestep: float
    temperature: tuple[float, float]
    pressure: float | None
    thermostat: float = 0.1
    barostat: float = 1.0
    halvings: int = 0
    heights: tuple[float, float, float] | None = None
    isolated: bool = False


@dataclass(frozen=True)
class Start:
    """The beginning of a walker: atoms, a seed for the velocities, and how they are prepared.

    Attributes
    ----------
    numbers, positions, cell
        (a,), (a, 3) Å, (3, 3) Å. Any right-handed cell: the frames come in LAMMPS's orientation (``to_lammps``).
    seed
        For the velocities.
    prepare
        (temperature K, time ps, pressure bar or None for a fixed cell), run in order before the first frame.
    """

    numbers: Array
    positions: Array
    cell: Array
    seed: int
    prepare: tuple[tuple[float, float, float | None], ...] = ()


def run_segment(
    potential: PotentialLines,
    segment: Segment,
    start: Start | bytes,
    model: Forces | Share | None = None,
    comm: Any = None,
    external: External | None = None,
    watch: Watch | None = None,
) -> tuple[dict[str, Array], bytes]:
    """Run one segment of NVT, NPT or NVE molecular dynamics.

    Parameters
    ----------
    potential
        What drives the atoms, unless ``model`` does.
    segment
        Length, set points, time step.
    start
        A new walker, or the checkpoint that the previous segment returned.
    model
        A trained potential to drive the atoms, or a share of one that drives other walkers too.
    comm
        mpi4py communicator of this walker.
    external
        Adds forces that are no part of the frames' physics: a bias.
    watch
        Stops the run at the first sign of failure; it sees every step of a model, and the kept frames of a potential.

    Returns
    -------
    arrays
        Stacked over the segment's frames: positions, cell, energy, forces, stress, energies (of the atoms; NaN where
        the potential does not give them), step, temperature (set point), pressure (set point), kinetic (the kinetic
        temperature, K), and the columns of ``external``.
    checkpoint
        What the next segment starts from; nothing on any MPI rank but the first.

    Raises
    ------
    Unphysical
        What ``Guard`` or LAMMPS saw. The good frames are on ``error.frames``.
    EngineError
        LAMMPS's own message.
    MachineFault
        No memory, or no space for the checkpoint.
    """
    if model is None:
        try:
            return _run(Lammps(potential, None, comm, external, energies=True), segment, start, external, watch)
        except EngineError as error:  # LAMMPS says so before the first step: nothing has happened yet
            if error.frames is not None or not any(words in str(error) for words in NO_ENERGIES):
                raise
    return _run(Lammps(potential, model, comm, external, watch=watch), segment, start, external, watch)


def _run(
    lammps: Lammps, segment: Segment, start: Start | bytes, external: External | None, watch: Watch | None
) -> tuple[dict[str, Array], bytes]:
    dt = segment.timestep / 2**segment.halvings
    stride = segment.every * 2**segment.halvings
    total = segment.frames * stride
    kept: list[dict[str, Array]] = []
    with lammps as lmp:
        if isinstance(start, bytes):
            lmp.restart(start)
        else:
            _begin(lmp, start, segment, dt)
        lmp.command("reset_timestep 0")
        _integrate(lmp, segment, total * dt, dt, segment.temperature)
        if external is not None:
            external.begin(segment.halvings)
        if watch is not None:
            watch.begin(segment.first, segment.halvings)
        lmp.command(f"thermo {stride}")
        guard = Guard(lmp.numbers(), segment.heights)
        tail = 0.0
        for k in range(segment.frames):
            step = segment.first + (k + 1) * segment.every
            share = (k + 1) / segment.frames
            target = segment.temperature[0] + share * (segment.temperature[1] - segment.temperature[0])
            try:
                lmp.command(f"run {stride} pre {'no' if k else 'yes'} post no start 0 stop {total}")
                state = lmp.state()
                kinetic = lmp.temperature()
                if watch is not None:  # before the guard: its signs come sooner
                    watch.step((k + 1) * stride, state)  # which it has seen where a model drives the atoms
                    watch.frame(step, float(state["energy"]), kinetic)
                guard.check(state, kinetic, target, step)
                if external is not None:
                    external.exchange()
            except EngineError as error:
                error.frames = _stack(kept, segment, tail) if kept else None
                raise
            if not kept:
                tail = lmp.tail()
            state["step"] = np.array(step)
            state["temperature"] = np.array(np.nan if segment.isolated else target)
            state["kinetic"] = np.array(kinetic)
            kept.append(state)
        arrays = _stack(kept, segment, tail)
        checkpoint = lmp.checkpoint()
    return arrays, checkpoint


def _begin(lmp: Lammps, start: Start, segment: Segment, dt: float) -> None:
    """Place the atoms, draw velocities and run the declared preparation."""
    positions, cell, _ = to_lammps(start.positions, start.cell)
    lmp.create(start.numbers, positions, cell)
    hot = start.prepare[0][0] if start.prepare else segment.temperature[0]
    seed = start.seed % 2**30 + 1
    lmp.command(f"velocity all create {hot!r} {seed} dist gaussian loop all mom yes rot no")
    lmp.command("thermo 1000")
    for temperature, time, pressure in start.prepare:
        stretch = Segment(1, 1, 0, dt, (temperature, temperature), pressure, segment.thermostat, segment.barostat)
        steps = _integrate(lmp, stretch, time, dt, (temperature, temperature))
        lmp.command(f"run {steps} post no")
        lmp.command("unfix md")


def _integrate(lmp: Lammps, segment: Segment, seconds: float, dt: float, span: tuple[float, float]) -> int:
    """Define the integrator for ``seconds`` ps and return how many steps that takes."""
    steps = max(1, round(seconds / dt))
    t0, t1 = span
    lmp.command(f"timestep {dt!r}")
    if segment.isolated:
        lmp.command("fix md all nve")
    elif segment.pressure is None:
        lmp.command(f"fix md all nvt temp {t0!r} {t1!r} {segment.thermostat!r}")
    else:
        p = segment.pressure
        lmp.command(f"fix md all npt temp {t0!r} {t1!r} {segment.thermostat!r} iso {p!r} {p!r} {segment.barostat!r}")
    return steps


def _stack(kept: list[dict[str, Array]], segment: Segment, tail: float) -> dict[str, Array]:
    """Join frames, and take per-atom energies away that do not sum to the energy.

    Parameters
    ----------
    kept
        The frames.
    segment
        Has the set pressure.
    tail
        The part of the energy that no atom has, times the volume, eV Å^3.
    """
    arrays = {name: np.array([s[name] for s in kept]) for name in kept[0]}
    n, a = arrays["positions"].shape[:2]
    arrays["pressure"] = np.full(n, np.nan if segment.pressure is None else segment.pressure)
    if "energies" in arrays:
        energy = arrays["energy"] - tail / np.linalg.det(arrays["cell"])
        if (np.abs(arrays["energies"].sum(axis=1) - energy) <= ENERGY_SUM * np.abs(energy)).all():
            return arrays
    return arrays | {"energies": np.full((n, a), np.nan)}
