"""MOMT in LAMMPS: the forces of the extended ensemble, added through ``fix external`` at every step.

On one rank the whole step is one compiled callback (numba) that reads LAMMPS's own memory; on several ranks, or without
numba, it is a Python callback. ``campaign.science.momt`` has the equations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from campaign.engines.lammps import c_function
from campaign.errors import CampaignError, EngineError, Unphysical
from campaign.science import momt
from campaign.science.momt import Ensemble, Order

if TYPE_CHECKING:
    from campaign.engines.lammps import Lammps

Array = npt.NDArray[Any]

#: Computes that LAMMPS adds the physical energy and virial up with, and the fix that adds the forces.
ENERGY, VIRIAL, FIX = "phys_pe", "virial", "momt"

#: Deposits that a walker may make before they are exchanged (``campaign.config.momt_checks`` knows it too).
LOG = 4096

#: Places in the integers that the callback keeps: step of the last deposit, deposits so far of all walkers, deposits in
#: the log, steps between deposits, how many deposits one counts for, whether to deposit, the phase, phase changes, a
#: step at which something was wrong (-1: none), looks since it was inside the window.
LAST, COUNT, LOGGED, EVERY, SHARE, LEARN, PHASE, CHANGES, FAILED, OUTSIDE = range(10)

#: A walker that was outside the window at so many looks in a row (as often as it deposits: 20 ps) will not come back.
PATIENCE = 1000

#: Places in the numbers of the present step, after those of ``momt.effective``.
H, Q, ENTHALPY, VOLUME = range(4, 8)


@dataclass
class BiasState:
    """What a walker knows of the bias: all that its next segment needs.

    Attributes
    ----------
    own, others : (bins in h, bins in Q)
        Coefficients laid down by the walkers of this job, and by those of other jobs.
    visits : (bins in h, bins in Q) int64
        How often this walker was seen in each bin, looked at whenever it deposits.
    total : (bins in h, bins in Q)
        The bias less what it has grown by (``momt.take_in``), summed over frames since the deposits become smaller: its
        mean is what frames are best weighted with (``momt.reweighted``).
    counts : (6,) int64
        Deposits of this job, those of other jobs, this walker's present phase, how often it changed, the frames in
        ``total``, and at how many looks in a row the walker was outside the window.
    """

    own: Array
    others: Array
    visits: Array
    total: Array
    counts: Array

    @classmethod
    def empty(cls, bins: tuple[int, int]) -> BiasState:
        """Return the state before anything was learned."""
        own, others, total = (np.zeros(bins) for _ in range(3))
        return cls(own, others, np.zeros(bins, "int64"), total, np.zeros(6, "int64"))


def build(
    bias: Mapping[str, Any], arrays: Mapping[str, Array], extra: Mapping[str, Array], comm: Any, exchange: Any
) -> Momt:
    """Build a walker's external force from what a job carries.

    Parameters
    ----------
    bias
        JSON-able: ``ensemble`` (``Ensemble.to_json``), ``order`` (``Order.to_json`` or None), ``learn`` (whether to),
        and ``shared``: whether the walkers of the job learn together.
    arrays
        Of the job: ``others`` (jobs, bins in h, bins in Q) and ``others_counts`` (jobs,), what other jobs laid down;
        nothing where there are none.
    extra
        Of the walker: what ``Momt.checkpoint`` of its segment before returned; nothing at its beginning.
    comm, exchange
        The walker's communicator, and the one that joins the walkers.
    """
    ensemble = Ensemble.from_json(bias["ensemble"])
    state = BiasState.empty(ensemble.learning.bins)
    if extra:
        for name in ("own", "visits", "total", "counts"):
            getattr(state, name)[:] = extra[name]
    if "others" in arrays:
        state.others[:] = arrays["others"].sum(axis=0)
        state.counts[1] = int(arrays["others_counts"].sum())
    order = None if bias["order"] is None else Order.from_json(bias["order"])
    together = exchange if bias["shared"] else None
    return Momt(ensemble, order, state, comm, together, learn=bool(bias["learn"]), keep=arrays)


class Momt:
    """The external force of one walker (``campaign.engines.lammps.External``).

    Between two frames a walker sees its own deposits; with every frame (``exchange``) all walkers of the job take in
    those of all, in the same order, so that they share one bias to the last bit.

    Parameters
    ----------
    ensemble
        What is sampled.
    order
        The order parameter; None for none.
    state
        The bias so far; it is taken over and changed.
    comm
        mpi4py communicator of this walker's ranks; None for one rank.
    exchange
        Joins the ranks of the same number of the walkers that share the bias; None where there is one walker.
    learn
        False keeps the bias as it is.
    use_numba
        False takes the Python callback.
    keep
        Arrays that the checkpoint carries on.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        order: Order | None,
        state: BiasState,
        comm: Any = None,
        exchange: Any = None,
        learn: bool = True,
        use_numba: bool = True,
        keep: Mapping[str, Array] | None = None,
    ) -> None:
        self._keep = dict(keep or {})
        self.ensemble = ensemble
        self.order = order
        self.state = state
        self._comm = comm if comm is not None and comm.size > 1 else None
        self._exchange = exchange if exchange is not None and exchange.size > 1 else None
        self._use_numba = use_numba and momt.COMPILED and self._comm is None
        self._error: Exception | None = None
        n, bins = ensemble.atoms, ensemble.learning.bins
        self.par = ensemble.parameters()
        self.grid = state.own + state.others
        self.now = np.full(8, np.nan)
        none = np.zeros((0, 3), "int64")
        self.base, self.signs = (order.base, order.signs) if order is not None else (np.ones(3, "int64"), none)
        self.strength = order.strength if order is not None else 1.0
        self.waves = np.zeros((2, 3 + len(self.signs), n))
        self.sums = np.zeros((len(self.signs), 2))
        self.lines = np.zeros((2, max(bins)))
        self.weights = np.zeros((2, 2, 4))
        self.log = np.zeros((LOG, 3))
        self.integers = np.zeros(10, "int64")
        self._offset = momt.take_in(self.log[:0], state.own, state.others, self.grid, self.par, self.lines)
        walkers = self._exchange.size if self._exchange is not None else 1
        self.integers[[COUNT, SHARE, LEARN, FAILED]] = state.counts[:2].sum(), walkers, learn, -1
        self.integers[[PHASE, CHANGES, OUTSIDE]] = state.counts[[2, 3, 5]]

    # -- what the engine calls ---------------------------------------------------------------------------------------

    def attach(self, lammps: Lammps) -> None:
        """Define the fix, before any integrator. It adds nothing until ``begin``."""
        self._lammps = lammps
        self._lmp = lammps.library
        self._added = c_function(
            self._lmp, "lammps_fix_external_get_force", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
        )
        lammps.command(f"fix {FIX} all external pf/callback 1 1")
        lammps.command(f"fix_modify {FIX} virial yes energy yes")
        self._lmp.set_fix_external_callback(FIX, lambda *_: None)  # the preparation runs without the bias

    def begin(self, halvings: int) -> None:
        """Switch the ensemble on, at step 0 of a segment; its integrator is there."""
        self.integers[[LAST, EVERY]] = 0, self.ensemble.learning.every * 2**halvings
        self._ask()
        if not self._use_numba:
            self._lmp.set_fix_external_callback(FIX, self._call)
            return
        from campaign.engines.momt_callback import callback

        self._table = _table(self)
        pointer = ctypes.c_void_p
        name = "lammps_set_fix_external_callback"
        hand_over = c_function(self._lmp, name, None, pointer, ctypes.c_char_p, pointer, pointer)
        hand_over(self._lmp.lmp, FIX.encode(), callback.address, self._table[0].ctypes.data)

    def _ask(self) -> None:
        """Have LAMMPS tally the energy at every step: it does where a fix asks for it.

        Whoever asks for one compute through LAMMPS's list of them asks for all (version of 22 July 2025), energies of
        atoms too, which costs 4 % of a step. ``fix grem`` asks for its own energy alone; with eta = 0 and lambda = T0
        it multiplies the forces by one, and with a pressure of the present integrator's kind that is as it was.
        """
        command, tally = self._lammps.command, f"{FIX}_tally"
        if not self._lmp.has_id("compute", "md_press") or not self._lmp.has_style("fix", "grem"):
            command(f"fix {tally} all ave/time 1 1 1 c_{ENERGY}")
            return
        command(f"fix {tally} all grem {self.ensemble.temperature!r} 0.0 0.0 md")
        command(f"compute {FIX}_press all pressure md_temp")  # in place of its own, which rounds otherwise
        command(f"fix_modify md press {FIX}_press")

    def check(self) -> None:
        """Raise what went wrong in the callback.

        Raises
        ------
        Unphysical
            The enthalpy is not finite, or atoms were lost.
        """
        if isinstance(self._error, CampaignError | OSError | MemoryError):
            raise self._error
        if self._error is not None:
            raise EngineError(f"MOMT failed: {type(self._error).__name__}: {self._error}") from self._error
        if self.integers[FAILED] >= 0:
            step = int(self.integers[FAILED])
            raise Unphysical(f"The enthalpy is not finite, or atoms were lost, at step {step} of the segment.")

    def forces(self) -> Array:
        """Return the added forces on this rank's atoms, as they lie in LAMMPS: (local, 3) eV/Å."""
        local = self._lmp.extract_setting("nlocal")
        rows = ctypes.c_void_p.from_address(self._added(self._lmp.lmp, FIX.encode())).value
        if not local or rows is None:
            return np.zeros((0, 3))
        return np.frombuffer((ctypes.c_double * (3 * local)).from_address(rows)).reshape(local, 3)

    def columns(self) -> dict[str, float]:
        """Return Q, S less what it has grown by, the log weight at T0 and lambda of the present step."""
        s, scale, _, _, _, q, enthalpy, _ = self.now.tolist()
        s -= self._offset
        weight = float(momt.log_weight(s, enthalpy, self.ensemble.temperature))
        return {"order": q if self.order is not None else np.nan, "bias": s, "weight": weight, "scale": scale}

    def exchange(self) -> None:
        """Make the walkers' deposits since the last frame everybody's, in the same order for all.

        Raises
        ------
        EngineError
            There were more than a walker can remember between two frames.
        """
        count = int(self.integers[LOGGED])
        mine = self.log[: min(count, LOG)].copy()
        self.integers[LOGGED] = 0
        if self._exchange is not None:
            mine = np.concatenate(self._exchange.allgather(mine))
        state = self.state
        self._offset = momt.take_in(mine, state.own, state.others, self.grid, self.par, self.lines)
        state.counts[0] += len(mine)
        state.counts[[2, 3, 5]] = self.integers[[PHASE, CHANGES, OUTSIDE]]
        self.integers[COUNT] = state.counts[0] + state.counts[1]
        if self.integers[COUNT] > self.par[momt.HOLD] and self.integers[LEARN]:
            self.state.total += self.grid - self._offset
            self.state.counts[4] += 1
        if count > LOG:
            raise EngineError(f"Over {LOG} deposits between two frames: write a smaller 'every' for the sampling.")

    def checkpoint(self) -> dict[str, Array]:
        """Return what the next segment starts from, beside the LAMMPS restart.

        Raises
        ------
        Unphysical
            The walker has long been outside the window.
        """
        low, high = self.par[momt.LOW], self.par[momt.HIGH]
        if self.integers[OUTSIDE] >= PATIENCE:
            steps = int(self.integers[OUTSIDE] * self.integers[EVERY])
            raise Unphysical(
                f"The walker has been outside the window of {low:.4g} to {high:.4g} eV/atom for {steps} steps "
                f"(its enthalpy is now {self.now[H]:.4g}): there are no such states, or it cannot reach them. "
                "Write 'window: auto', or a window around that value."
            )
        window = np.array([low, high])
        known = {name: getattr(self.state, name) for name in ("own", "visits", "total", "counts")}
        return {**known, "window": window, **self._keep}

    def drain(self, frames: int) -> None:
        """Answer the exchanges that are left of the segment, without deposits of this walker."""
        for _ in range(frames):
            self.integers[LOGGED] = 0
            self.exchange()

    # -- the Python callback -----------------------------------------------------------------------------------------

    def _call(self, _caller: Any, step: int, nlocal: int, _tag: Array, x: Array, f: Array) -> None:
        try:
            self._step(step, x[:nlocal], f[:nlocal])
        except Exception as error:  # cannot pass through LAMMPS's C++ frames: kept for check()
            self._error = error
            f[:nlocal] = 0.0
            self._lmp.force_timeout()  # ends the run after this step

    def _step(self, step: int, x: Array, f: Array) -> None:
        lmp = self._lmp
        low, high, xy, yz, xz, _, _ = lmp.extract_box()
        cell = np.array([[high[0] - low[0], 0, 0], [xy, high[1] - low[1], 0], [xz, yz, high[2] - low[2]]])
        inverse = np.linalg.inv(cell)
        energy = lmp.extract_compute(ENERGY, 0, 0)
        virial = np.array(lmp.extract_compute(VIRIAL, 0, 1)[:6])
        volume = cell[0, 0] * cell[1, 1] * cell[2, 2]
        enthalpy = energy + self.par[momt.PRESSURE] * volume
        h = enthalpy / self.par[momt.ATOMS]
        if not np.isfinite(h):
            raise Unphysical(f"The enthalpy is not finite at step {step} of the segment.")
        q = 0.0
        if self.order is not None:
            if len(x) != self.waves.shape[2]:
                self.waves = np.zeros((2, 3 + len(self.signs), len(x)))
            self.sums[:] = 0.0
            momt.structure_sums(x, inverse, self.base, self.signs, self.waves, self.sums)
            if self._comm is not None:
                self._comm.Allreduce(_in_place(), self.sums)
            q = momt.order_of(self.sums, self.par[momt.ATOMS], self.strength)
        _learn(step, h, q, self.par, self.grid, self.state.visits, self.integers, self.log, self.lines)
        momt.effective(h, q, self.par, self.grid, self.weights, self.now)
        self.now[[H, Q, ENTHALPY, VOLUME]] = h, q, enthalpy, volume
        scale, slope = self.now[momt.LAMBDA], self.now[momt.SLOPE]
        physical = np.asarray(lmp.numpy.extract_atom("f"))[: len(x)]
        f[:] = (scale - 1.0) * physical
        if q > 1e-8:
            factor = _order_factor(slope, q, self.par, len(self.signs), self.strength)
            momt.order_forces(factor, inverse, self.base, self.signs, self.waves, self.sums, f)
        added = (scale - 1.0) * virial * volume / lmp.extract_global("nktv2p")
        added[:3] -= (scale - 1.0) * self.par[momt.PRESSURE] * volume
        lmp.fix_external_set_energy_global(FIX, self.par[momt.KT] * self.now[momt.ENTROPY] - enthalpy)
        lmp.fix_external_set_virial_global(FIX, added.tolist())


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE


@momt.compiled
def _order_factor(slope: float, q: float, p: Array, reflections: int, strength: float) -> float:
    """Return what ``momt.order_forces`` takes for the force -k T0 dS/dQ grad Q."""
    n = p[momt.ATOMS]
    return float(-p[momt.KT] * slope / (q * reflections * strength * strength * n * n))


@momt.compiled
def _learn(
    step: int, h: float, q: float, p: Array, grid: Array, visits: Array, integers: Array, log: Array, lines: Array
) -> None:
    """Look where the walker is, when it is time to: count it, and deposit there while it learns."""
    if step - integers[LAST] < integers[EVERY]:
        return
    integers[LAST] = step
    nh, nq = grid.shape
    u = momt.place(h, p[momt.LOW], p[momt.HIGH], nh)
    v = momt.place(q, 0.0, 1.0, nq)
    if p[momt.LOW] <= h <= p[momt.HIGH]:
        visits[min(int(u / (nh - 1) * nh), nh - 1), min(int(q * nq), nq - 1)] += 1
        integers[OUTSIDE] = 0
    else:
        integers[OUTSIDE] += 1
    phase = momt.phase_of(h, q, p)
    if phase != 0 and phase != integers[PHASE]:
        if integers[PHASE] != 0:
            integers[CHANGES] += 1
        integers[PHASE] = phase
    if integers[LEARN] == 0:
        return
    height = momt.height_of(float(integers[COUNT]), p)
    momt.deposit(grid, u, v, height, p[momt.WIDTH], lines)
    k = integers[LOGGED]
    if k < log.shape[0]:
        log[k, 0], log[k, 1], log[k, 2] = u, v, height
    integers[LOGGED] = k + 1
    integers[COUNT] += integers[SHARE]


# -- the compiled callback ---------------------------------------------------------------------------------------------

#: Places in the table of addresses that the compiled callback gets.
(
    T_HANDLE, T_COMPUTE, T_ATOM, T_SET_ENERGY, T_SET_VIRIAL, T_ENERGY, T_VIRIAL, T_F, T_FIX,
    T_LOW, T_HIGH, T_XY, T_XZ, T_YZ, T_PAR, T_GRID, T_VISITS, T_INTEGERS, T_LOG, T_LINES, T_WEIGHTS, T_NOW,
    T_BASE, T_SIGNS, T_WAVES, T_SUMS, T_CONSTANTS, T_NH, T_NQ, T_K, T_N, T_SIDE,
) = range(32)  # fmt: skip


def _table(walker: Momt) -> list[Any]:
    """Return the table of addresses, and everything in it that must stay alive."""
    lmp = walker._lmp

    def function(name: str) -> int:
        return ctypes.cast(getattr(lmp.lib, name), ctypes.c_void_p).value or 0

    extract = c_function(lmp, "lammps_extract_global", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

    def where(name: str) -> int:
        return int(extract(lmp.lmp, name.encode()))

    names = [ctypes.create_string_buffer(n.encode()) for n in (ENERGY, VIRIAL, "f", FIX)]
    constants = np.array([lmp.extract_global("nktv2p"), walker.strength])
    arrays = [
        walker.par, walker.grid, walker.state.visits, walker.integers, walker.log, walker.lines, walker.weights,
        walker.now, walker.base, walker.signs, walker.waves, walker.sums, constants,
    ]  # fmt: skip
    table = np.array(
        [
            lmp.lmp.value,
            *map(function, ("lammps_extract_compute", "lammps_extract_atom")),
            *map(function, ("lammps_fix_external_set_energy_global", "lammps_fix_external_set_virial_global")),
            *(ctypes.addressof(n) for n in names),
            *map(where, ("boxlo", "boxhi", "xy", "xz", "yz")),
            *(a.ctypes.data for a in arrays),
            *walker.grid.shape,
            len(walker.signs),
            walker.waves.shape[2],
            walker.lines.shape[1],
        ],
        dtype="int64",
    )
    return [table, names, arrays]
