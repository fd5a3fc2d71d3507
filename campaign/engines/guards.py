"""What no walker may do: signs that molecular dynamics has left the physics, looked for at every frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
