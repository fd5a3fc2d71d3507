"""Frames of one system made into frames of another: species mapped, cells scaled by the ratio of the lattices.

Source: H. Jung et al., Data Distillation for Neural Network Potentials toward Foundational Dataset: cells of nickel
scaled by the ratio of the lattice constants (4.05 / 3.52) are cells of aluminium.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from campaign.frames import Array, Frames, parse_frame_id

#: Crystals with two lattice constants, along x and y, and along z.
UNIAXIAL = ("hcp",)


def ratio(source: float, target: float) -> Array:
    """Return (3,) the factors along x, y and z that take frames of one crystal's density to another's: all the same.

    For cubic crystals of one prototype that is the ratio of the lattice constants; for others (a bcc metal from an fcc
    one), whose lattice constants cannot be compared, the factor that gives an atom its room. Two hcp crystals differ in
    c/a too, but a frame's z need not be their axis, and a liquid has none.

    Parameters
    ----------
    source, target
        Volumes of the two relaxed crystals, Å^3 an atom.
    """
    return np.full(3, np.cbrt(target / source))


def strains(seed: int, frame: str, size: float, copies: int) -> Array:
    """Return (copies, 3, 3) symmetric strains whose components are uniform in [-size, size].

    They depend on the seed and on the source frame's id alone: not on the order or number of the frames.
    """
    task, index = parse_frame_id(frame)
    rng = np.random.default_rng([seed, int(task, 16), index])
    upper = np.triu(rng.uniform(-size, size, (copies, 3, 3)))
    return np.asarray(upper + np.triu(upper, 1).swapaxes(1, 2))


def transferred(frames: Frames, species: Mapping[int, int], factors: Array, strained: Array) -> Frames:
    """Return frames with other species in cells that are scaled, and strained after that.

    Parameters
    ----------
    frames
        The source (n, a).
    species
        Atomic number to atomic number.
    factors : (3,)
        On lengths along x, y and z.
    strained : (n, c, 3, 3)
        Strains of the c copies that are made of each frame; zero for none.

    Returns
    -------
    Frames
        The c copies of the first frame, then those of the second, and so on. Positions and cells are multiplied by the
        factors, then by 1 + strain. Walker and step are those of the source frame. Energies, forces, stresses, what
        belongs to the source's bias, and set points and order are unknown: they say nothing of the target.

    Raises
    ------
    KeyError
        The mapping leaves a species out.
    """
    n, copies = strained.shape[:2]
    rows = np.repeat(np.arange(n), copies)
    deform = np.eye(3) + strained.reshape(n * copies, 3, 3)
    table = np.zeros(max(int(frames.numbers.max()), *species) + 1, dtype=np.int16)
    if missing := sorted(set(np.unique(frames.numbers).tolist()) - set(species)):
        raise KeyError(missing[0])
    for old, new in species.items():
        table[old] = new
    return Frames.build(
        table[frames.numbers][rows],
        (frames.positions * factors)[rows] @ deform,
        (frames.cell * factors)[rows] @ deform,
        **{name: getattr(frames, name)[rows] for name in ("walker", "step")},
    )
