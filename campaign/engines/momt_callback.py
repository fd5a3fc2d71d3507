"""The compiled callback of MOMT: imported only where numba is installed. ``lammps_momt`` has the same step in Python.

It holds no address of its own (they come in a table), so that what was compiled once is kept on disk for every process.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from campaign.engines import lammps_momt as m
from campaign.science import momt

_WORD, _INT, _DOUBLE, _NOTHING = ir.IntType(64), ir.IntType(32), ir.DoubleType(), ir.VoidType()


def _call(builder: Any, values: Any, result: Any, *kinds: Any) -> Any:
    """Call C's function at the address ``values[0]``."""
    return builder.call(builder.inttoptr(values[0], ir.FunctionType(result, kinds).as_pointer()), values[1:])


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), build


@intrinsic
def _extract_compute(_context: Any, address: Any, handle: Any, name: Any, style: Any, kind: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _call(builder, args, _WORD, _WORD, _WORD, _INT, _INT)

    return types.intp(types.intp, types.intp, types.intp, types.int32, types.int32), build


@intrinsic
def _extract_atom(_context: Any, address: Any, handle: Any, name: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _call(builder, args, _WORD, _WORD, _WORD)

    return types.intp(types.intp, types.intp, types.intp), build


@intrinsic
def _set_energy(_context: Any, address: Any, handle: Any, name: Any, value: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _call(builder, args, _NOTHING, _WORD, _WORD, _DOUBLE)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.float64), build


@intrinsic
def _set_virial(_context: Any, address: Any, handle: Any, name: Any, values: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _call(builder, args, _NOTHING, _WORD, _WORD, _WORD)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), build


@momt.compiled
def _box(low: Any, high: Any, xy: float, xz: float, yz: float, inverse: Any) -> float:
    """Write the inverse of LAMMPS's lower-triangular cell; return its volume."""
    a, b, c = high[0] - low[0], high[1] - low[1], high[2] - low[2]
    inverse[:] = 0.0
    inverse[0, 0], inverse[1, 1], inverse[2, 2] = 1.0 / a, 1.0 / b, 1.0 / c
    inverse[1, 0] = -xy / (a * b)
    inverse[2, 0] = (xy * yz - xz * b) / (a * b * c)
    inverse[2, 1] = -yz / (b * c)
    return float(a * b * c)


_words = types.CPointer(types.intp)


def _build(stamp: str) -> Any:
    """Return the callback.

    numba keeps compiled code as long as the file of the function is the same, and this one has functions of other files
    compiled into it. Its key also holds what a function takes from outside: the ``stamp`` of those files.
    """

    def callback(table: Any, step: Any, nlocal: Any, _tags: Any, positions: Any, added: Any) -> None:
        """Add the forces of one step: ``Momt._step`` of one rank."""
        if len(stamp) == 0:
            return
        t = carray(table, (32,))
        par = carray(_pointer(t[m.T_PAR]), (14,), np.float64)
        integers = carray(_pointer(t[m.T_INTEGERS]), (10,), np.int64)
        now = carray(_pointer(t[m.T_NOW]), (8,), np.float64)
        grid = carray(_pointer(t[m.T_GRID]), (t[m.T_NH], t[m.T_NQ]), np.float64)
        visits = carray(_pointer(t[m.T_VISITS]), (t[m.T_NH], t[m.T_NQ]), np.int64)
        log = carray(_pointer(t[m.T_LOG]), (m.LOG, 3), np.float64)
        lines = carray(_pointer(t[m.T_LINES]), (2, t[m.T_SIDE]), np.float64)
        weights = carray(_pointer(t[m.T_WEIGHTS]), (2, 2, 4), np.float64)
        base = carray(_pointer(t[m.T_BASE]), (3,), np.int64)
        signs = carray(_pointer(t[m.T_SIGNS]), (t[m.T_K], 3), np.int64)
        waves = carray(_pointer(t[m.T_WAVES]), (2, 3 + t[m.T_K], t[m.T_N]), np.float64)
        sums = carray(_pointer(t[m.T_SUMS]), (t[m.T_K], 2), np.float64)
        constants = carray(_pointer(t[m.T_CONSTANTS]), (2,), np.float64)
        low = carray(_pointer(t[m.T_LOW]), (3,), np.float64)
        high = carray(_pointer(t[m.T_HIGH]), (3,), np.float64)
        xy = carray(_pointer(t[m.T_XY]), (1,), np.float64)[0]
        xz = carray(_pointer(t[m.T_XZ]), (1,), np.float64)[0]
        yz = carray(_pointer(t[m.T_YZ]), (1,), np.float64)[0]
        n = nlocal
        x = carray(_pointer(carray(positions, (1,))[0]), (n, 3), np.float64)
        f = carray(_pointer(carray(added, (1,))[0]), (n, 3), np.float64)
        # the physical energy, virial (bar) and forces of this step
        found = _extract_compute(t[m.T_COMPUTE], t[m.T_HANDLE], t[m.T_ENERGY], np.int32(0), np.int32(0))
        energy = carray(_pointer(found), (1,), np.float64)[0]
        found = _extract_compute(t[m.T_COMPUTE], t[m.T_HANDLE], t[m.T_VIRIAL], np.int32(0), np.int32(1))
        virial = carray(_pointer(found), (6,), np.float64)
        found = _extract_atom(t[m.T_ATOM], t[m.T_HANDLE], t[m.T_F])
        physical = carray(_pointer(carray(_pointer(found), (1,), np.intp)[0]), (n, 3), np.float64)
        inverse = np.empty((3, 3))
        volume = _box(low, high, xy, xz, yz, inverse)
        enthalpy = energy + par[momt.PRESSURE] * volume
        h = enthalpy / par[momt.ATOMS]
        if not np.isfinite(h) or n != t[m.T_N]:
            integers[m.FAILED] = step
            f[:] = 0.0
            return
        q = 0.0
        if t[m.T_K] > 0:
            sums[:] = 0.0
            momt.structure_sums(x, inverse, base, signs, waves, sums)
            q = momt.order_of(sums, par[momt.ATOMS], constants[1])
        m._learn(step, h, q, par, grid, visits, integers, log, lines)
        momt.effective(h, q, par, grid, weights, now)
        now[m.H], now[m.Q], now[m.ENTHALPY], now[m.VOLUME] = h, q, enthalpy, volume
        scale = now[momt.LAMBDA]
        for i in range(n):
            for a in range(3):
                f[i, a] = (scale - 1.0) * physical[i, a]
        if q > 1e-8:
            factor = m._order_factor(now[momt.SLOPE], q, par, t[m.T_K], constants[1])
            momt.order_forces(factor, inverse, base, signs, waves, sums, f)
        w = np.empty(6)
        for k in range(6):
            w[k] = (scale - 1.0) * virial[k] * volume / constants[0]
            if k < 3:
                w[k] -= (scale - 1.0) * par[momt.PRESSURE] * volume
        _set_energy(t[m.T_SET_ENERGY], t[m.T_HANDLE], t[m.T_FIX], par[momt.KT] * now[momt.ENTROPY] - enthalpy)
        _set_virial(t[m.T_SET_VIRIAL], t[m.T_HANDLE], t[m.T_FIX], w.ctypes.data)

    signature = types.void(_words, types.int64, types.intc, types.voidptr, _words, _words)
    try:
        return cfunc(signature, cache=True, error_model="numpy")(callback)
    except RuntimeError:  # no folder to keep compiled code in
        return cfunc(signature, error_model="numpy")(callback)


def _stamp() -> str:
    """Return a hash of every file that is compiled into the callback."""
    sources = [Path(file).read_bytes() for file in (momt.__file__, m.__file__, __file__) if file]
    return hashlib.blake2b(b"".join(sources), digest_size=8).hexdigest()


callback = _build(_stamp())
