"""The tests of ``validate``, one class each. Units: Å, eV, ps, K, bar; physical thresholds name theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainSerializer, PlainValidator, Tag, model_validator

from campaign.config.fields import (
    Count,
    Fraction,
    Model,
    NonNegative,
    Number,
    Positive,
    Several,
    Switch,
    number,
    tag_by,
    wrong,
)
from campaign.config.learning import Guards
from campaign.config.quantities import quantity
from campaign.config.structures import Prototype, StructureFile, structure_tag

DensityLimit = Annotated[str, quantity("density")]
DiffusionLimit = Annotated[str, quantity("diffusion")]
ConductivityLimit = Annotated[str, quantity("conductivity")]
PressureLimit = Annotated[str, quantity("pressure")]
EnergyLimit = Annotated[str, quantity("energy")]
LengthLimit = Annotated[str, quantity("length")]
AngleLimit = Annotated[str, quantity("angle")]
ForceLimit = Annotated[str, quantity("force", "eV/Å")]

#: What a test compares with: nothing is written where that is what the labels are made with.
Reference = Literal["potential"]
REFERENCE = "system.potential, where the labels are not made with it; default what they are made with"

#: What a run of molecular dynamics is where nothing is written.
RUN: dict[str, Any] = {"ensemble": "npt", "pressure": 1.0, "timestep": 0.002, "every": 10, "segment": 500}


class Thresholds(Model):
    """Largest errors with which a model counts as usable."""

    forces: ForceLimit | None = Field(
        "20 %", description="force RMSE: of the spread of the reference's forces in %, or in eV/Å"
    )
    l4: ForceLimit | None = Field(
        None, description="L4 norm of the force errors, as forces; default none is asked", examples=["40 %"]
    )
    energy: EnergyLimit | None = Field(
        None, description="energy RMSE, with its unit; default none is asked", examples=["2 meV/atom"]
    )
    stress: PressureLimit | None = Field(
        None, description="stress RMSE, with its unit; default none is asked", examples=["0.1 GPa"]
    )


class Errors(Model):
    """Errors of energy, forces and stress on held-out frames."""

    method: Literal["errors"] = "errors"
    held_out: Count = Field(200, description="frames of the pool that are labelled for the test alone")
    against: tuple[Literal["random"], ...] = Field((), description="selections of the same size to compare with")
    threshold: Thresholds = Field(default_factory=Thresholds, description="largest errors that pass")


class Stability(Model):
    """Molecular dynamics driven by the trained model, watched for every failure."""

    method: Literal["stability"] = "stability"
    ensemble: Literal["nvt", "npt"] = Field("npt", description="ensemble of the run")
    temperature: Positive = Field(description="K", examples=[1400])
    pressure: Number = Field(1.0, description="bar; of npt only")
    time: Positive = Field(description="ps", examples=[100])
    timestep: Positive = Field(0.002, le=0.02, description="ps: 0.002 is usual, 0.02 the most")
    every: Count = Field(10, description="steps between kept frames")
    segment: Count = Field(500, description="frames in a segment, the unit of resume")
    guards: Guards = Field(default_factory=Guards, description="first signs of failure")


class OnRun(Model):
    """A test of a run with the model: of the ``stability`` entry before it, or of one that it describes itself."""

    ensemble: Literal["nvt", "npt"] | None = Field(None, description="of a run of its own, npt or nvt")
    temperature: Positive | None = Field(
        None, description="of a run of its own, K; without it the run of the 'stability' entry before is taken"
    )
    pressure: Number | None = Field(None, description="of a run of its own, bar; of npt only")
    time: Positive | None = Field(None, description="of a run of its own, ps")
    timestep: Positive | None = Field(None, le=0.02, description="of a run of its own, ps: 0.02 the most")
    every: Count | None = Field(None, description="of a run of its own: steps between kept frames")
    segment: Count | None = Field(None, description="of a run of its own: frames in a segment")
    reference: Reference | None = Field(None, description=REFERENCE)

    @model_validator(mode="before")
    @classmethod
    def _write_the_run_out(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("temperature") is not None:
            return data | {key: usual for key, usual in RUN.items() if data.get(key) is None}
        return data


def _lags(value: object) -> tuple[float, float]:
    remedy = "write the first and the last in ps, such as [0.5, 5]"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise wrong("two times are needed", remedy)
    first, last = (number(v) for v in value)
    if not 0.0 < first < last:
        raise wrong("the first time must be above zero and below the last", remedy)
    return first, last


#: A first and a last time, ps.
Lags = Annotated[tuple[float, float], PlainValidator(_lags), PlainSerializer(list)]


class RDF(OnRun):
    """Partial radial distribution functions of a run with the model against the reference potential's."""

    method: Literal["rdf"] = "rdf"
    bins: Count = Field(100, description="bins of the histogram")
    cutoff: Positive = Field(6.0, le=20, description="Å, at most 20")
    threshold: Positive = Field(0.05, description="largest mean |g_model - g_reference| beyond noise that passes")


def _densities(value: object) -> str | tuple[float, ...]:
    remedy = "write a density in g/cm^3 for each temperature, such as [1.55, 1.41], or 'potential'"
    if value == "potential":
        return "potential"
    if not isinstance(value, list | tuple) or not value:
        raise wrong("a list of densities is needed", remedy)
    found = tuple(number(v) for v in value)
    if not all(x > 0.0 for x in found):
        raise wrong("a density must be above zero", remedy)
    return found


#: Given densities, or the word of ``Reference``.
Densities = Annotated[
    Literal["potential"] | tuple[float, ...],
    PlainValidator(_densities),
    PlainSerializer(lambda v: v if isinstance(v, str) else list(v)),
]


class Density(Model):
    """Density at some temperatures, NPT, against the reference potential's runs or given numbers."""

    method: Literal["density"] = "density"
    temperatures: tuple[Positive, ...] = Field(
        min_length=1, description="K; each has a run", examples=[[1100, 1300, 1500, 1700]]
    )
    pressure: Number = Field(1.0, description="bar")
    time: Positive = Field(description="of each run, ps", examples=[50])
    timestep: Positive = Field(0.002, le=0.02, description="ps: 0.002 is usual, 0.02 the most")
    every: Count = Field(10, description="steps between kept frames")
    segment: Count = Field(500, description="frames in a segment, the unit of resume")
    reference: Densities | None = Field(
        None, description="g/cm^3 at each temperature; default runs, with the labels' potential; or potential"
    )
    threshold: DensityLimit = Field("1 %", description="largest difference that passes, with its unit")
    error: DensityLimit | None = Field(
        None,
        description="largest standard error of the difference; default a third of the threshold",
        examples=["0.5 %"],
    )


class Diffusion(OnRun):
    """Self-diffusion of each species from the mean square displacement, against the reference potential's."""

    method: Literal["diffusion"] = "diffusion"
    fit: Lags | None = Field(None, description="lags of the straight line, ps; default 0.5 to 5, or half a block")
    blocks: Several = Field(5, description="parts of the run from whose spread the error is taken")
    threshold: DiffusionLimit = Field("10 %", description="largest difference that passes, with its unit")
    error: DiffusionLimit | None = Field(
        None, description="largest standard error of the difference; default a third of the threshold", examples=["5 %"]
    )


def _charges(value: object) -> dict[str, float]:
    remedy = "write the charge of each element, such as {Na: 1, Cl: -1}"
    if not isinstance(value, dict) or not value:
        raise wrong("a mapping of elements to charges is needed", remedy)
    return {str(element): number(charge) for element, charge in value.items()}


class Conductivity(OnRun):
    """Ionic conductivity, by Einstein and by Green-Kubo, against the reference potential's."""

    method: Literal["conductivity"] = "conductivity"
    charges: Annotated[dict[str, float], PlainValidator(_charges)] = Field(
        description="charge of each element, in charges of a proton", examples=[{"Na": 1, "Cl": -1}]
    )
    fit: Lags = Field((0.3, 1.5), description="lags of the straight line, ps")
    plateau: Lags = Field((0.3, 1.0), description="times between which the Green-Kubo integral is averaged, ps")
    blocks: Several = Field(5, description="parts of the run from whose spread the error is taken")
    threshold: ConductivityLimit = Field("20 %", description="largest difference that passes, with its unit")
    error: ConductivityLimit | None = Field(
        None,
        description="largest standard error of the difference; default a third of the threshold",
        examples=["10 %"],
    )


class RerunThreshold(Model):
    """Largest mean differences along the model's trajectory."""

    pressure: PressureLimit | None = Field("500 bar", description="mean difference of the pressures, with its unit")
    energy: EnergyLimit | None = Field(
        None, description="mean difference of the energies, with its unit; default none is asked"
    )


class Rerun(OnRun):
    """Pressure, energy and forces of the reference potential along the model's trajectory."""

    method: Literal["rerun"] = "rerun"
    frames: Several = Field(100, description="of the trajectory, evenly spaced")
    threshold: RerunThreshold = Field(default_factory=RerunThreshold, description="largest differences that pass")


class Overlap(OnRun):
    """Whether the model's trajectory visits the configurations of the reference potential's."""

    method: Literal["overlap"] = "overlap"
    distance: Literal["rematch", "schnet"] = Field(
        "rematch", description="of two frames: REMatch kernel of SOAP, or descriptors of an untrained SchNet"
    )
    frames: Several = Field(50, ge=10, description="of each trajectory, evenly spaced; at least 10")
    cutoff: Positive = Field(6.0, le=20, description="of the environments, Å, at most 20")
    gamma: Positive = Field(0.1, description="regularisation of the best match; of rematch only")
    threshold: Fraction = Field(
        0.8, description="least share of either run's frames as near to the other's as the reference's to each other"
    )


class RelaxThreshold(Model):
    """Largest differences of relaxed structures."""

    energy: EnergyLimit | None = Field(
        "20 meV/atom", description="of a structure's energy over the reference's lowest structure, with its unit"
    )
    absolute: EnergyLimit | None = Field(
        None, description="of the energy itself, with its unit; default none: labels may count from another zero"
    )
    length: LengthLimit | None = Field("2 %", description="of cell lengths and bond lengths, with its unit")
    angle: AngleLimit | None = Field("2 deg", description="of the cell's angles, with its unit")
    order: Switch = Field(True, description="whether the structures must have the same order of energies")


class Relax(Model):
    """Crystals relaxed with the model, cell and all, against the reference potential by the same route."""

    method: Literal["relax"] = "relax"
    structures: tuple[
        Annotated[
            Annotated[Prototype, Tag("@prototype")] | Annotated[StructureFile, Tag("@file")],
            Discriminator(structure_tag),
        ],
        ...,
    ] = Field(
        (),
        description="crystals, each with what it starts from; default fcc, bcc and hcp of the system's element, or "
        "rocksalt, cesiumchloride and zincblende of its two",
        examples=[[{"prototype": "fcc", "elements": ["Al"], "a": 4.05}]],
    )
    force: Positive = Field(0.005, description="largest force, and stress times volume, left in the end, eV/Å")
    steps: Count = Field(500, description="of the optimiser, at most")
    rattle: NonNegative = Field(
        0.0, le=0.5, description="Å: random displacement of the atoms before, so that no symmetry holds a saddle point"
    )
    reference: Reference | None = Field(None, description=REFERENCE)
    threshold: RelaxThreshold = Field(default_factory=RelaxThreshold, description="largest differences that pass")


Validate = Annotated[
    Annotated[Errors, Tag("@errors")]
    | Annotated[Stability, Tag("@stability")]
    | Annotated[RDF, Tag("@rdf")]
    | Annotated[Density, Tag("@density")]
    | Annotated[Diffusion, Tag("@diffusion")]
    | Annotated[Conductivity, Tag("@conductivity")]
    | Annotated[Rerun, Tag("@rerun")]
    | Annotated[Overlap, Tag("@overlap")]
    | Annotated[Relax, Tag("@relax")],
    Discriminator(tag_by("method")),
]
