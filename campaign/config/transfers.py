"""How the set of another campaign is carried over, as a model of the campaign file: the section ``transfer``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator

from campaign.config.fields import Count, FileName, Model, NonNegative, Positive, _element, number, wrong
from campaign.config.labels import Potential

#: Endings of the files whose frames are transferred.
FILES = (".extxyz", ".xyz")

#: A factor outside these is a mistake of units or a slip of the pen.
LEAST, MOST = 0.2, 5.0

#: A factor further from 1 than this, or than its inverse, is worth a warning: the volume changes by more than 2.4.
FAR = 4 / 3


def _species(value: object) -> dict[str, str]:
    remedy = "write what each element becomes, such as {Ni: Al}, or {Na: K, Cl: Cl}"
    if not isinstance(value, dict) or not value:
        raise wrong("a mapping of elements to elements is needed", remedy)
    for symbol, other in value.items():
        if not isinstance(symbol, str) or not isinstance(other, str):
            raise wrong("a mapping of elements to elements is needed", remedy)
        _element(symbol)
        _element(other)
    return dict(value)


def _scale(value: object) -> str | float | tuple[float, float, float]:
    remedy = "write lattice, a factor such as 1.15, or three, along x, y and z, such as [1.1, 1.1, 1.2]"
    if value == "lattice":
        return "lattice"
    if isinstance(value, str | dict) or value is None or (isinstance(value, list | tuple) and len(value) != 3):
        raise wrong("a factor, or one along each of three axes, is needed", remedy)
    factors = [number(v) for v in value] if isinstance(value, list | tuple) else [number(value)]
    if not all(LEAST <= f <= MOST for f in factors):
        raise wrong(f"a factor on lengths lies between {LEAST:g} and {MOST:g}", remedy)
    return factors[0] if len(factors) == 1 else (factors[0], factors[1], factors[2])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


#: Chemical symbols to chemical symbols, at least one.
Species = Annotated[dict[str, str], PlainValidator(_species)]

#: A factor on lengths, one along each axis, or ``lattice``.
Scale = Annotated[
    Literal["lattice"] | float | tuple[float, float, float], PlainValidator(_scale), PlainSerializer(_plain)
]


class Strain(Model):
    """Strained copies of every frame, beside the frame itself."""

    size: Positive = Field(le=0.2, description="largest component of the random strains, at most 0.2", examples=[0.02])
    copies: Count = Field(1, description="strained copies of each frame")


class Transfer(Model):
    """The set of another campaign, scaled, its species mapped, to be labelled anew: nothing is sampled or selected."""

    source: FileName = Field(
        alias="from",
        description="run directory of another campaign (its path, or its name in runs/), or an extxyz file",
        examples=["runs/ni-momt-32"],
    )
    set: Literal["training", "selected", "distilled", "labelled"] = Field(
        "training",
        description="of a run: the frames that it trains on, selected, distilled, or those that it could label",
    )
    species: Species = Field(description="what each element becomes", examples=["{Ni: Al}"])
    scale: Scale = Field(
        "lattice", description="on lengths: a factor, three, or lattice, from relaxed crystals of both"
    )
    strain: Strain | None = Field(None, description="strained copies of each frame; default none")
    potential: Potential | None = Field(
        None,
        description="the target's potential, for its lattice and its labels; default that of label or system",
        examples=[{"lammps": "potentials/al_mm.lmp"}],
    )
    origin: FileName | None = Field(
        None, description="where the frames of a file come from that does not say so itself", examples=["doi:10.1/abc"]
    )
    min_distance: NonNegative = Field(
        0.5, description="frames with atoms closer than this fraction of their covalent radii's sum are refused"
    )
    segment: Count = Field(64, description="frames in a shard")

    @property
    def is_file(self) -> bool:
        """Tell whether the source is a file, and not a run directory."""
        return self.source.lower().endswith(FILES)
