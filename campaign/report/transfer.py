"""The report's section on a transfer: what was done to the frames of another campaign, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from campaign.report.text import count, significant

Data = Mapping[str, Any]

#: Frames whose source the page shows, at most; all are in ``RUN/labels.json``.
MOST_FRAMES = 200


def transfer(data: Data) -> dict[str, Any] | None:
    """Put a transfer in the form the template walks through; None where there was none.

    Parameters
    ----------
    data
        ``transfer`` (``stages.transferred.summary``) and ``sources``: frame id -> ``run``, ``store``, ``frame`` and,
        of strained copies, ``copy``.
    """
    found: Data = data.get("transfer") or {}
    if not found:
        return None
    sources: Mapping[str, Data] = data.get("sources") or {}
    rows = [
        {"frame": name, "source": source.get("frame"), "copy": source.get("copy")}
        for name, source in list(sources.items())[:MOST_FRAMES]
    ]
    return {
        "sentence": _sentence(found),
        "scale": _scale(found),
        "strain": _strain(found),
        "store": str(found.get("store") or ""),
        "about": str(found.get("about") or ""),
        "crystals": [_crystal(name, c) for name, c in (found.get("crystals") or {}).items()],
        "rows": rows,
        "copies": any(row["copy"] is not None for row in rows),
        "left_out": max(0, len(sources) - MOST_FRAMES),
    }


def _sentence(found: Data) -> str:
    atoms: Mapping[str, int] = found.get("atoms") or {}
    sizes = " and ".join(f"{count(n)} frames of {size} atoms" for size, n in atoms.items())
    which = f"the {found['set']} set of" if found.get("set") else "the file"
    text = f"{sizes} of {which} {found.get('run')} became "
    text += f"{count(found.get('transferred'))} frames of this campaign: "
    text += ", ".join(f"{old} is now {new}" for old, new in (found.get("species") or {}).items())
    refused = found.get("refused")
    return f"{text}. {count(refused)} more were refused." if refused else f"{text}."


def _scale(found: Data) -> str:
    factors: Sequence[Any] | None = found.get("factors")
    if not factors:
        return "The factor on lengths is not known yet."
    each = list(dict.fromkeys(significant(f, 5) for f in factors))
    text = f"Lengths were multiplied by {each[0]}" if len(each) == 1 else "Lengths along x, y and z were multiplied by "
    text += "" if len(each) == 1 else ", ".join(significant(f, 5) for f in factors)
    if found.get("scale") != "lattice":
        return f"{text}, as the campaign file says."
    kinds = {c.get("prototype") for c in (found.get("crystals") or {}).values()}
    same = len(kinds) == 1 and kinds != {"hcp"} and not found.get("grown")
    how = "the ratio of their lattice constants" if same else "the cube root of their volumes' ratio"
    text += f": {how}, of these crystals, each relaxed with its own potential"
    if found.get("grown"):
        text += f"; {found.get('run')} had made the volumes of the source's frames {significant(found['grown'])} times"
    return f"{text}."


def _strain(found: Data) -> str:
    strain: Data = found.get("strain") or {}
    if not strain:
        return ""
    n = strain.get("copies")
    copies = "a copy" if n == 1 else f"{count(n)} copies"
    return f"Beside each frame stands {copies} with random strains of at most {significant(strain.get('size'))}."


def _crystal(name: str, crystal: Data) -> dict[str, Any]:
    lengths = list(dict.fromkeys(significant(x, 5) for x in crystal.get("lengths") or ()))
    return {
        "name": f"{name}: {'-'.join(crystal.get('elements') or [])} {crystal.get('prototype')}",
        "lengths": ", ".join(lengths),
        "volume": crystal.get("volume"),
        "energy": crystal.get("energy"),
    }
