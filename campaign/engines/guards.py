"""Signs that molecular dynamics has left the physics.

``Guard`` looks at the kept frames of any walker for what none may do. ``Watch`` looks at every step of a run that is
driven by a model, for the stricter criteria of a validation, and remembers the steps before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.errors import Unphysical

Array = npt.NDArray[Any]

#: A walker hotter than this many times its set point has left the physics.
RUNAWAY_TEMPERATURE = 20.0

#: A cell larger than this many times its first volume has evaporated.
RUNAWAY_VOLUME = 6.0

#: A cell that became thinner than this share of its height at the start has collapsed.
FLAT = 0.5

#: Two atoms closer than this share of the sum of their covalent radii (Cordero 2008, as in ASE) have met.
CLOSEST = 0.4

#: Frames before the first sign of failure that a ``Watch`` keeps: consecutive steps where a model drives the atoms.
KEPT = 20

#: A pair that is so much farther apart than its limit, Å, is not looked at again before the atoms have moved so far.
MARGIN = 0.5

#: eV in one kelvin (CODATA 2018).
BOLTZMANN = 8.617333262e-5

#: What every frame must have, finite.
CHECKED = ("positions", "cell", "energy", "forces", "stress")


def heights(cell: Array) -> Array:
    """Return (3,) the distances between opposite faces of a cell, Å."""
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0))


def _heights(cell: Array) -> tuple[float, float, float]:
    """Return ``heights`` of a lower triangular cell, written out: a tenth of the time, and it is asked every frame."""
    (ax, _, _), (bx, by, _), (cx, cy, cz) = cell.tolist()
    across = math.sqrt((by * cz) ** 2 + (bx * cz) ** 2 + (bx * cy - by * cx) ** 2)
    return ax * by * cz / across, by * cz / math.hypot(cy, cz), cz


class Guard:
    """Stops a walker at the first sign that it left the physics: its frames up to there are good.

    The signs: a number that is not finite, a temperature or a volume that ran away, a cell that went flat, two atoms
    that met. (LAMMPS itself says where atoms were lost.) A cell smaller than twice the cutoff is not one of them:
    LAMMPS lets an atom meet as many images of another, and of itself, as the cutoff reaches. A force field that knows
    one image only would have to refuse such a cell itself; campaign has none.

    Parameters
    ----------
    numbers : (a,)
        Atomic numbers.
    start
        The three heights of the walker's cell at its start, Å; those of the first frame seen where None.
    """

    def __init__(self, numbers: Array, start: tuple[float, float, float] | None = None) -> None:
        from ase.data import covalent_radii

        self._radii = CLOSEST * covalent_radii[np.asarray(numbers, dtype=int)]
        self._reach = 2.0 * float(self._radii.max())
        self._start = None if start is None else tuple(float(h) for h in start)
        self._volume = 0.0

    def check(self, frame: Mapping[str, Array], kinetic: float, target: float, step: int) -> None:
        """Look at a frame.

        Parameters
        ----------
        frame
            positions, cell, energy, forces, stress of one frame, the cell lower triangular.
        kinetic, target
            The temperature and its set point, K.
        step
            For the message.

        Raises
        ------
        Unphysical
            Says what was seen, and at which step.
        """
        bad = [name for name in CHECKED if not math.isfinite(frame[name].sum())]
        if bad or not math.isfinite(kinetic):
            raise Unphysical(f"Not finite at step {step}: {', '.join(bad or ['temperature'])}.")
        if kinetic > RUNAWAY_TEMPERATURE * target:
            raise Unphysical(f"The temperature ran away to {kinetic:.0f} K at step {step} (set point {target:.0f} K).")
        self._check_cell(frame["cell"], step)
        self._check_distances(frame, step)

    def _check_cell(self, cell: Array, step: int) -> None:
        now = _heights(cell)
        self._start = self._start or now
        growth = math.prod(now) / math.prod(self._start)
        if growth > RUNAWAY_VOLUME:
            volume = float(cell[0, 0] * cell[1, 1] * cell[2, 2])
            raise Unphysical(
                f"The cell grew to {volume:.0f} Å^3 by step {step}, {growth:.1f} times the start: it evaporated."
            )
        for height, before in zip(now, self._start, strict=True):
            if height < FLAT * before:
                raise Unphysical(
                    f"The cell is {height:.2f} Å thin at step {step}, less than half of the {before:.2f} Å at the "
                    "start: it collapsed."
                )

    def _check_distances(self, frame: Mapping[str, Array], step: int) -> None:
        from matscipy.neighbours import neighbour_list

        i, j, d = neighbour_list(
            "ijd", positions=frame["positions"], cell=frame["cell"], pbc=[True] * 3, cutoff=self._reach
        )
        if not len(d):
            return
        share = d / (self._radii[i] + self._radii[j])
        k = int(np.argmin(share))
        if share[k] < 1.0:
            raise Unphysical(
                f"Atoms {min(i[k], j[k])} and {max(i[k], j[k])} are {d[k]:.2f} Å apart at step {step}, less than "
                f"{CLOSEST:g} of the sum of their covalent radii."
            )


@dataclass(frozen=True)
class Limits:
    """What a run must not pass: at the first step that does it has failed.

    Attributes
    ----------
    closest
        Distance of two atoms over the sum of their covalent radii: not below.
    force
        On any atom, eV/Å.
    volume
        Å^3.
    temperature
        Kinetic, K.
    energy
        Change of the total energy since the first frame, eV/atom: of NVE only, None elsewhere.
    """

    closest: float
    force: float
    volume: float
    temperature: float
    energy: float | None = None


class FirstSign(Unphysical):
    """The first sign of failure.

    Attributes
    ----------
    sign
        criterion (its name), step, value, limit and unit: JSON, so None stands for what is not finite.
    """

    def __init__(self, criterion: str, step: int, value: float, limit: float, unit: str) -> None:
        seen, most = (float(v) if math.isfinite(v) else None for v in (value, limit))
        self.sign = {"criterion": criterion, "step": step, "value": seen, "limit": most, "unit": unit}
        what = f"{value:.3g} {unit}, the limit is {limit:.3g}" if math.isfinite(value) else "not finite"
        super().__init__(f"First sign of failure at step {step}: {criterion} ({what}).")


class Watch:
    """Stops a run at the first sign of failure and has the frames before it.

    Parameters
    ----------
    numbers : (a,)
        Atomic numbers.
    limits
        What the run must not pass.
    state
        What ``state`` of the segment before returned.
    """

    def __init__(self, numbers: Array, limits: Limits, state: Mapping[str, Array] | None = None) -> None:
        from ase.data import covalent_radii

        self._radii = covalent_radii[np.asarray(numbers, dtype=int)]
        self._limits = limits
        self._ring: deque[dict[str, Array]] = deque(maxlen=KEPT + 1)
        self._total = math.nan
        self._origin: tuple[int, int] | None = None
        self._margin = 0.0
        self._seen: tuple[Array, Array] = (np.zeros((0, 3)), np.zeros((3, 3)))
        if state is not None:
            names = [name for name in state if name != "total"]
            self._ring.extend({n: state[n][k] for n in names} for k in range(len(state["step"])))
            self._total = float(state["total"])

    def begin(self, first: int, halvings: int) -> None:
        """Start to look, at step 0 of a segment whose time step is halved so often: the preparation is over."""
        self._origin = (first, 2**halvings)

    def step(self, count: int, frame: Mapping[str, Array]) -> None:
        """Look at the positions, cell, energy, forces and stress of LAMMPS's step ``count`` of this segment.

        Raises
        ------
        FirstSign
            The step passes a limit; it is the last of ``frames``, unless it is not finite.
        """
        if self._origin is None:
            return
        first, parts = self._origin
        step, rest = first + count // parts, count % parts
        if rest or (self._ring and int(self._ring[-1]["step"]) >= step):  # the last step of the segment before
            return
        bad = next((name for name in CHECKED if not math.isfinite(frame[name].sum())), None)
        if bad is not None:
            raise FirstSign(bad, step, math.nan, math.nan, "")
        self._ring.append({**{name: np.array(frame[name]) for name in CHECKED}, "step": np.array(step)})
        limits, cell = self._limits, frame["cell"]
        force = math.sqrt(float((frame["forces"] ** 2).sum(axis=1).max()))
        if force > limits.force:
            raise FirstSign("largest force", step, force, limits.force, "eV/Å")
        volume = float(cell[0, 0] * cell[1, 1] * cell[2, 2])
        if volume > limits.volume:
            raise FirstSign("volume", step, volume, limits.volume, "Å^3")
        closest = self._closest(frame["positions"], cell)
        if closest < limits.closest:
            raise FirstSign("closest pair", step, closest, limits.closest, "of the covalent radii")

    def _closest(self, positions: Array, cell: Array) -> float:
        """Return the smallest d / (r_i + r_j), or infinity where the atoms moved too little to pass the limit."""
        before, box = self._seen
        if self._margin > 0.0:
            moved = 2.0 * math.sqrt(float(((positions - before) ** 2).sum(axis=1).max()))
            if moved + 2.0 * float(np.abs(cell - box).sum()) < self._margin:
                return math.inf
        from matscipy.neighbours import neighbour_list

        reach = 2.0 * self._limits.closest * float(self._radii.max()) + MARGIN
        i, j, d = neighbour_list("ijd", positions=positions, cell=cell, pbc=[True] * 3, cutoff=reach)
        radii = self._radii[i] + self._radii[j]
        self._seen = (positions.copy(), cell.copy())
        self._margin = min(MARGIN, float((d - self._limits.closest * radii).min())) if len(d) else MARGIN
        return float((d / radii).min()) if len(d) else math.inf

    def frame(self, step: int, energy: float, kinetic: float) -> None:
        """Look at what is known at a kept frame only: the temperature, and in NVE the total energy.

        Parameters
        ----------
        step
            The walker's.
        energy, kinetic
            Potential energy, eV, and temperature, K.

        Raises
        ------
        FirstSign
            As ``step``.
        """
        limits, atoms = self._limits, len(self._radii)
        if not kinetic <= limits.temperature:
            raise FirstSign("temperature", step, kinetic, limits.temperature, "K")
        if limits.energy is not None:
            total = energy / atoms + 1.5 * (atoms - 1) / atoms * BOLTZMANN * kinetic
            self._total = total if math.isnan(self._total) else self._total
            if not abs(total - self._total) <= limits.energy:
                raise FirstSign("total energy", step, total - self._total, limits.energy, "eV/atom")

    def frames(self) -> dict[str, Array]:
        """Return the last steps, stacked: at most ``KEPT`` and the one that failed; nothing where there was none."""
        return {name: np.array([f[name] for f in self._ring]) for name in self._ring[0]} if self._ring else {}

    def state(self) -> dict[str, Array]:
        """Return what the watch of the next segment starts from."""
        return {**self.frames(), "total": np.array(self._total)}
