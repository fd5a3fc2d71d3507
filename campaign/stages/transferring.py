"""The worker's side of a transfer: relaxed crystals, and frames of the source made into frames of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from campaign.science.refusals import Limits, refusals
from campaign.science.transfer import UNIAXIAL, ratio, strains, transferred
from campaign.stages import transfer_origin
from campaign.stages.selecting import draw
from campaign.tasks import Context, Json, Outcome, Task

if TYPE_CHECKING:
    from campaign.frames import Array
    from campaign.store.store import Store

#: Rows and columns of a strain as it is recorded: xx, yy, zz, yz, xz, xy.
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


def work(task: Task, context: Context) -> Outcome:
    """Relax a crystal, transfer the frames of a part, or draw frames of the target's own pool."""
    from campaign.store.store import Store

    store = Store(context.run / "run.zarr")
    if task.params["what"] == "lattice":
        return lattice(task, context)
    return draw(task, store) if task.params["what"] == "draw" else frames(task, store)


def lattice(task: Task, context: Context) -> Outcome:
    """Relax a crystal; it is published as one frame, and its lattice constants are in the record."""
    from campaign.engines import lammps
    from campaign.engines.lammps_potential import load_potential
    from campaign.engines.lammps_relax import relax_crystal
    from campaign.engines.structures import build_structure

    structure = task.params["structure"]
    atoms = build_structure(structure, context.run)
    found = relax_crystal(
        load_potential(context.run / task.extra["potential"]), atoms, structure["prototype"] in UNIAXIAL
    ).with_(task=np.array([task.number], dtype="uint64"))
    lengths = np.linalg.norm(found.cell[0], axis=1) / structure["supercell"]
    summary: dict[str, Json] = {
        "prototype": structure["prototype"],
        "elements": structure["elements"],
        "lengths": lengths.tolist(),
        "volume": float(found.volume[0] / len(atoms)),
        "energy": float(found.energy[0] / len(atoms)),
    }
    return Outcome(summary, dict(found.arrays()), versions=lammps.versions())


def frames(task: Task, store: Store) -> Outcome:
    """Transfer the frames of a part: those of its source, each followed by its strained copies.

    The record says of every frame which source frame it comes from, which copy it is and how it is strained.
    """
    from ase.data import atomic_numbers

    p, extra = task.params, task.extra
    source = transfer_origin.read(extra["path"], extra["stamp"], p["frames"], extra["where"])
    factors = _factors(task, store)
    strain = _strains(p)
    species = {atomic_numbers[old]: atomic_numbers[new] for old, new in p["species"].items()}
    found = transferred(source, species, factors, strain)
    found = found.with_(task=np.full(len(found), task.number, dtype="uint64"))
    copies = strain.shape[1]
    reasons = refusals(found, Limits(p["min_distance"]))
    ids = found.ids
    summary: dict[str, Json] = {
        "frames": len(found),
        "chosen": [name for k, name in enumerate(ids) if k not in reasons],
        "refused": [{"frame": ids[k], "reason": reason} for k, reason in reasons.items()],
        "factors": factors.tolist(),
        "origins": [name for name in p["frames"] for _ in range(copies)],
        "volume": float(found.volume.mean()),
    }
    if copies > 1:
        summary["strains"] = [s.tolist() for s in strain.reshape(-1, 3, 3)[:, *VOIGT]]
    return Outcome(summary, dict(found.arrays()))


def _factors(task: Task, store: Store) -> Array:
    if task.params["scale"] != "lattice":
        return np.broadcast_to(np.asarray(task.params["scale"], dtype=float), (3,))
    found = [store.locate("transfer", crystal).record["result"] for crystal in task.inputs]
    return ratio(found[0]["volume"] * task.params.get("grown", 1.0), found[-1]["volume"])


def _strains(p: dict[str, Json]) -> Array:
    """Return (n, copies, 3, 3): no strain, then those of the strained copies."""
    plain = np.zeros((len(p["frames"]), 1, 3, 3))
    if p["strain"] is None:
        return plain
    drawn = [strains(p["seed"], name, **p["strain"]) for name in p["frames"]]
    return np.concatenate([plain, np.stack(drawn)], axis=1)
