"""How frames are chosen, as models of the campaign file: the sections ``select`` and ``distill``, and descriptors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from campaign.config.fields import (
    Bins,
    Count,
    Fraction,
    Interval,
    Model,
    NonNegative,
    NonNegativeInteger,
    Number,
    Positive,
    Several,
    tag_by,
)

Pooling = Literal["mean", "species", "species_std", "species_extremes"]
_POOLING = (
    "of atoms: mean of all, mean of each species, with their standard deviation, or with smallest and largest too"
)


class SchNetRepresentation(Model):
    """The randomly initialised SchNet representation that describes a frame to the selector."""

    model: Literal["schnet"] = Field("schnet", description="kind of representation")
    features: Count = Field(64, description="features of an atom")
    interactions: Count = Field(3, description="interaction blocks")
    cutoff: Positive = Field(6.0, le=20, description="Å, at most 20")
    pooling: Pooling = Field("species_extremes", description=_POOLING)


class SOAPRepresentation(Model):
    """Smooth overlap of atomic positions, by dscribe: describes a frame to the selector without a network."""

    model: Literal["soap"] = "soap"
    cutoff: Number = Field(6.0, gt=1, le=20, description="Å, above 1 and at most 20")
    n_max: Count = Field(8, le=20, description="radial functions, at most 20")
    l_max: NonNegativeInteger = Field(6, le=20, description="highest degree of the spherical harmonics, at most 20")
    sigma: Positive = Field(0.5, description="width of the Gaussian that stands for an atom, Å")
    pooling: Pooling = Field("species_extremes", description=_POOLING)


def _representation_tag(value: Any) -> str | None:
    """Return the variant; SchNet where no model is written."""
    if isinstance(value, dict) and "model" not in value:
        return "@schnet"
    return tag_by("model")(value)


Representation = Annotated[
    Annotated[SchNetRepresentation, Tag("@schnet")] | Annotated[SOAPRepresentation, Tag("@soap")],
    Discriminator(_representation_tag),
]


class Environments(Model):
    """SOAP environments of single atoms, by dscribe."""

    cutoff: Number = Field(6.0, gt=1, le=20, description="Å, above 1 and at most 20")
    n_max: Count = Field(5, le=20, description="radial functions, at most 20")
    l_max: NonNegativeInteger = Field(4, le=20, description="highest degree of the spherical harmonics, at most 20")
    sigma: Positive = Field(0.5, description="width of the Gaussian that stands for an atom, Å")


class Refusing(Model):
    """What all that choose frames share: which are refused."""

    method: str
    min_distance: NonNegative = Field(
        0.5, description="frames with atoms closer than this fraction of their covalent radii's sum are refused"
    )
    max_force: Positive | None = Field(None, description="frames with a larger force on an atom are refused, eV/Å")
    energy: Interval | None = Field(
        None, description="frames with an energy outside are refused, eV/atom", examples=[[-4.0, -3.0]]
    )
    volume: Interval | None = Field(
        None, description="frames with a volume outside are refused, Å^3/atom", examples=[[15, 60]]
    )


class Selection(Refusing):
    """What all selectors share: how many frames, and which are refused."""

    size: Count = Field(description="frames to select", examples=[32])


class RNDStream(Selection):
    """Random network distillation in one pass over the pool, while sampling goes on."""

    method: Literal["rnd_stream"] = "rnd_stream"
    representation: Representation = Field(default_factory=SchNetRepresentation, description="descriptor of a frame")
    candidates: Number = Field(8.0, ge=1, description="candidates kept, as a multiple of size")
    early: Fraction = Field(0.25, description="share of size that may be final before the pool is complete")


class RND(Selection):
    """Random network distillation by the published algorithm: over the whole pool, whose descriptors are kept."""

    method: Literal["rnd"] = "rnd"
    representation: Representation = Field(default_factory=SchNetRepresentation, description="descriptor of a frame")


class FPS(Selection):
    """Farthest points of the whole pool, whose descriptors are kept; by skmatter."""

    method: Literal["fps"] = "fps"
    representation: Representation = Field(default_factory=SchNetRepresentation, description="descriptor of a frame")


class REMatch(Selection):
    """The frames least alike by the REMatch kernel, of the whole pool, whose environments are kept; by dscribe."""

    method: Literal["rematch"] = "rematch"
    environments: Environments = Field(default_factory=Environments, description="what is compared")
    gamma: Positive = Field(0.1, description="regularisation: to 0 the best match of atoms, large their average")
    threshold: Positive | None = Field(
        None, description="stop where no frame is this far (sqrt(2 - 2 K), at most 1.4) from the chosen ones"
    )


class Random(Selection):
    """A uniform random pick from the pool."""

    method: Literal["random"] = "random"


class UniformTime(Selection):
    """Frames at evenly spaced times, from the walkers in turn."""

    method: Literal["uniform_time"] = "uniform_time"


class GlobalEnergy(Selection):
    """Uniform over the histogram of the energy per atom."""

    method: Literal["global_energy"] = "global_energy"


class AtomicEnergy(Selection):
    """Uniform over the histogram of the energies of single atoms."""

    method: Literal["atomic_energy"] = "atomic_energy"


class Force(Selection):
    """Uniform over the histogram of the forces on single atoms."""

    method: Literal["force"] = "force"


class Grid(Selection):
    """Uniform over the cells of a grid in enthalpy and order (volume where there is no order)."""

    method: Literal["grid"] = "grid"
    bins: tuple[Bins, Bins] = Field((16, 16), description="most cells along each, at least 2", examples=[[16, 16]])


Select = Annotated[
    Annotated[RNDStream, Tag("@rnd_stream")]
    | Annotated[Random, Tag("@random")]
    | Annotated[UniformTime, Tag("@uniform_time")]
    | Annotated[GlobalEnergy, Tag("@global_energy")]
    | Annotated[AtomicEnergy, Tag("@atomic_energy")]
    | Annotated[Force, Tag("@force")]
    | Annotated[Grid, Tag("@grid")]
    | Annotated[FPS, Tag("@fps")]
    | Annotated[RND, Tag("@rnd")]
    | Annotated[REMatch, Tag("@rematch")],
    Discriminator(tag_by("method")),
]


class UQ(Refusing):
    """Distillation by the uncertainty of an ensemble: the frames in which its members disagree are added."""

    method: Literal["uq"] = "uq"
    members: Several = Field(5, description="models of the ensemble, at least 2")
    iterations: Count = Field(10, description="how often uncertain frames are added, at most")
    train_fraction: Fraction = Field(
        0.2, gt=0, description="share of the frames chosen so far that each member is trained on, its own at random"
    )
    target_mae: Positive = Field(
        0.001, description="mean absolute error of the energy at which it ends, on the frames not chosen, eV/atom"
    )
    initial: Several = Field(100, description="frames to begin with, drawn at random, at least 2")
    batch: Count = Field(100, description="frames added each time")
    add: Literal["uncertain", "weighted", "random"] = Field(
        "uncertain",
        description="which frames are added: the most uncertain; drawn, as likely as they are uncertain; or random",
    )
    score: Literal["max", "mean", "energy"] = Field(
        "max", description="a frame's uncertainty: that of its atoms, the largest or the mean, or that of its energy"
    )
    candidates: Number = Field(
        4.0, ge=1, description="the most uncertain frames that a batch is thinned from, as a multiple of batch"
    )
    epochs: Count | None = Field(None, description="passes over the training set; default those of 'train'")
    steps: Count | None = Field(
        None, description="steps of the optimiser for each member, instead of passes: a larger set costs no more"
    )
    force_share: Fraction = Field(
        1.0, gt=0, description="share of the atoms of added frames, the most uncertain, whose forces count in training"
    )


class GridDistillation(Refusing):
    """Distillation without models: uniform over the cells of a grid in enthalpy and order."""

    method: Literal["grid"] = "grid"
    size: Count = Field(description="frames to choose", examples=[500])
    bins: tuple[Bins, Bins] = Field((16, 16), description="most cells along each, at least 2", examples=[[16, 16]])


Distill = Annotated[
    Annotated[UQ, Tag("@uq")] | Annotated[GridDistillation, Tag("@grid")], Discriminator(tag_by("method"))
]
