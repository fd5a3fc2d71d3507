"""Structures in the campaign file: a prototype, a file, a random packing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from campaign.config.fields import Composition, Count, Element, FileName, Model, NonNegativeInteger, Positive

#: Elements each prototype needs.
PROTOTYPES = {
    "rocksalt": 2,
    "zincblende": 2,
    "cesiumchloride": 2,
    "fcc": 1,
    "bcc": 1,
    "hcp": 1,
    "sc": 1,
    "diamond": 1,
}


class Prototype(Model):
    """A perfect crystal, repeated."""

    prototype: Literal["rocksalt", "zincblende", "cesiumchloride", "fcc", "bcc", "hcp", "sc", "diamond"] = Field(
        description="crystal structure", examples=["rocksalt"]
    )
    elements: tuple[Element, ...] = Field(
        min_length=1, description="chemical symbols, in the order of the sublattices", examples=[["Na", "Cl"]]
    )
    a: Positive = Field(description="lattice constant of the cubic (hcp: hexagonal) cell, Å", examples=[5.64])
    c: Positive | None = Field(None, description="second lattice constant, Å, of hcp only; default ideal")
    supercell: tuple[Count, Count, Count] = Field(
        (1, 1, 1), description="how often the cell is repeated along each axis", examples=[[2, 2, 2]]
    )


class StructureFile(Model):
    """A starting structure read from a file (extxyz, xyz, cif, POSCAR)."""

    file: FileName = Field(description="structure file", examples=["start.extxyz"])


class Packing(Model):
    """Atoms at random in a cubic cell, pushed apart: a liquid or a glass to start from."""

    packing: Composition = Field(description="atoms of each element", examples=[{"Na": 32, "Cl": 32}])
    density: Positive = Field(description="g/cm^3", examples=[1.5])
    seed: NonNegativeInteger | None = Field(None, description="of the random places; default the campaign's seed")


def structure_tag(value: Any) -> str | None:
    """Return the variant of a structure."""
    if isinstance(value, dict):
        words = {"prototype": "@prototype", "packing": "@packing", "file": "@file", "density": "@packing"}
        return next((tag for key, tag in words.items() if key in value), "@prototype")
    kinds: tuple[tuple[type, str], ...] = ((Prototype, "@prototype"), (StructureFile, "@file"), (Packing, "@packing"))
    return next((tag for kind, tag in kinds if isinstance(value, kind)), None)


Structure = Annotated[
    Annotated[Prototype, Tag("@prototype")]
    | Annotated[StructureFile, Tag("@file")]
    | Annotated[Packing, Tag("@packing")],
    Discriminator(structure_tag),
]
