"""What people see of a transfer: what was done, and where every frame comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from campaign.frames import frame_id
from campaign.tasks import Json

if TYPE_CHECKING:
    from campaign.stages.transfer import Transfer


def summary(stage: Transfer) -> dict[str, Json]:
    """Return what was transferred, as ``RUN/labels.json`` and the report have it.

    Returns
    -------
    dict
        ``run``, ``store`` and ``set`` of the source (``about`` where a file does not say it itself); ``frames`` of it;
        ``transferred`` and ``refused`` (counts); ``species`` (old -> new); ``factors`` on lengths along x, y and z,
        None while they are not known; ``scale`` as it was asked for; ``grown``, by how much the source had scaled the
        volumes of frames of its own source, None where it had not; ``crystals`` (``source``, ``target``: lengths in
        Å, volume in Å^3 an atom, energy in eV an atom); ``strain``; ``atoms`` (atoms of a frame -> source frames).
    """
    origin, spec = stage.origin, stage.spec
    atoms: dict[str, int] = {}
    for part in origin.parts:
        atoms[str(part.atoms)] = atoms.get(str(part.atoms), 0) + len(part.frames)
    return {
        "run": origin.run,
        "store": origin.store,
        "set": origin.chosen if origin.is_run else None,
        "about": origin.about,
        "frames": origin.frames,
        "transferred": len(stage.main.chosen),
        "refused": len(stage.main.refused),
        "species": dict(spec.species),
        "factors": stage.factors,
        "scale": "lattice" if spec.scale == "lattice" else "given",
        "crystals": stage.crystals,
        "grown": origin.grown if spec.scale == "lattice" and origin.grown != 1.0 else None,
        "strain": spec.strain.model_dump() if spec.strain else None,
        "atoms": atoms,
    }


def origins(stage: Transfer) -> dict[str, dict[str, Json]]:
    """Return, for the id of every transferred frame, its source frame.

    Returns
    -------
    dict
        ``run``, ``store`` and ``frame`` (its id there); of a file with ``origin``, whose frames have no ids, also
        ``number`` in it; where copies are strained, ``copy`` (0 is the frame itself) and ``strain`` (xx, yy, zz, yz,
        xz, xy).
    """
    found: dict[str, dict[str, Json]] = {}
    origin = stage.origin
    copies = 1 + (stage.spec.strain.copies if stage.spec.strain else 0)
    for task, result in stage.parts:
        for row, name in enumerate(result["origins"]):
            source: dict[str, Json] = {"run": origin.run, "store": origin.store, "frame": name}
            if origin.about:
                source |= {"number": int(name.partition(":")[2]), "about": origin.about}
            if copies > 1:
                source |= {"copy": row % copies, "strain": result["strains"][row]}
            found[frame_id(int(task, 16), row)] = source
    return found


def as_text(source: dict[str, Json]) -> str:
    """Return a source frame as one word or two for other programs: ``ni-momt-32/run.zarr#ID copy 1``."""
    place = Path(source["store"])
    where = f"{source['run']}/{place.name}" if place.name == "run.zarr" else place.name
    copy = f" copy {source['copy']}" if source.get("copy") else ""
    return f"{where}#{source['frame']}{copy}"
