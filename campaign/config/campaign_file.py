"""The campaign file as frozen models, one class a variant; the variant is named by method, engine or model.

Units: Å, eV, ps, K, bar. Every field says what it is; the text also ends the message about a wrong value.
Checks that concern several keys or files are in the modules ``*_checks``, so that all mistakes are found at once.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from campaign.config.fields import (
    Bins,
    Count,
    Element,
    FileName,
    Fraction,
    Model,
    NonNegative,
    NonNegativeInteger,
    Number,
    Positive,
    Pressures,
    Switch,
    Temperature,
    Window,
    tag_by,
)
from campaign.config.labels import Label, LammpsLabel, Potential
from campaign.config.learning import ActiveLearning, Guards
from campaign.config.selections import Distill, Select
from campaign.config.structures import PROTOTYPES as PROTOTYPES
from campaign.config.structures import Structure
from campaign.config.transfers import Transfer
from campaign.config.validations import Validate

#: Every stage, in the order of the campaign.
STAGES = ("sample", "select", "distill", "label", "train", "learn", "transfer", "validate")

#: Known words of the campaign file that this version does not do yet, by key ("" holds the top-level keys).
NOT_YET: dict[str, frozenset[str]] = {
    "select.method": frozenset({"uq"}),
}


class System(Model):
    """What is simulated: where it starts and the cheap potential that moves it."""

    structure: Structure = Field(
        description="starting structure", examples=[{"prototype": "rocksalt", "elements": ["Na", "Cl"], "a": 5.64}]
    )
    potential: Potential | None = Field(
        None, description="the cheap potential", examples=[{"lammps": "potentials/nacl_bmhtf.lmp"}]
    )


class Prepare(Model):
    """A piece of dynamics before the first frame, in the ensemble of its method (NPT at its pressure, NVT)."""

    temperature: Positive = Field(description="K", examples=[2500])
    time: Positive = Field(description="ps", examples=[5])


class MolecularDynamics(Model):
    """What sampling by molecular dynamics shares."""

    method: str
    walkers: Count = Field(1, description="independent runs at each point, each with its own seed")
    ranks: Count = Field(1, description="MPI ranks of each walker")
    walkers_per_task: Count = Field(1, description="walkers that run side by side in one MPI job")
    steps: Count = Field(description="MD steps of each walker, after the preparation", examples=[200000])
    timestep: Positive = Field(0.002, le=0.02, description="ps: 0.002 is usual, 0.02 the most")
    every: Count = Field(100, description="steps between kept frames")
    segment: Count = Field(64, description="frames in a segment, the unit of streaming and resume")
    thermostat: Positive = Field(0.1, description="damping time, ps")
    prepare: tuple[Prepare, ...] = Field((), description="dynamics before the first frame")

    @property
    def frames(self) -> int:
        """Frames that each walker keeps."""
        return self.steps // self.every

    @property
    def points(self) -> tuple[dict[str, float], ...]:
        """What differs between groups of walkers (pressure in bar, volume in Å^3, temperature in K), by name."""
        return ({},)

    @property
    def all_walkers(self) -> int:
        """Walkers at all points."""
        return self.walkers * len(self.points)

    @property
    def processes(self) -> int:
        """MPI processes of a task."""
        return self.ranks * min(self.walkers, self.walkers_per_task)


class NPT(MolecularDynamics):
    """Molecular dynamics at constant pressure and temperature (Nosé-Hoover chains)."""

    method: Literal["npt"] = "npt"
    temperature: Temperature = Field(
        description="K, or [T0, T1]: a ramp that every walker runs whole", examples=[[1100, 1700]]
    )
    pressure: Pressures = Field(1.0, description="bar, or a list: every pressure has its own walkers")
    barostat: Positive = Field(1.0, description="damping time, ps")

    @property
    def points(self) -> tuple[dict[str, float], ...]:
        """Each pressure."""
        pressures = self.pressure if isinstance(self.pressure, tuple) else (self.pressure,)
        return tuple({"pressure": p} for p in pressures)


class NVT(MolecularDynamics):
    """Molecular dynamics at constant volume and temperature (Nosé-Hoover chains)."""

    NOT_HERE: ClassVar = {"pressure": ("NVT keeps the cell as it is", "remove it, or write 'method: npt'")}

    method: Literal["nvt"] = "nvt"
    temperature: Temperature = Field(
        description="K, or [T0, T1]: a ramp that every walker runs whole", examples=[[1100, 1700]]
    )


class NVTGrid(MolecularDynamics):
    """NVT at each of some volumes and each of some temperatures."""

    NOT_HERE: ClassVar = {
        "pressure": ("NVT keeps the cell as it is", "remove it, or write 'method: npt'"),
        "temperature": ("a grid has a list of temperatures", "write 'temperatures: [T1, T2]'"),
    }

    method: Literal["nvt_grid"] = "nvt_grid"
    volumes: tuple[Positive, ...] = Field(
        min_length=1,
        description="Å^3 of the whole cell, which is scaled to it alike in all directions",
        examples=[[350, 400]],
    )
    temperatures: tuple[Positive, ...] = Field(min_length=1, description="K", examples=[[1500, 2000]])

    @property
    def points(self) -> tuple[dict[str, float], ...]:
        """Each volume with each temperature."""
        return tuple({"volume": v, "temperature": t} for v in self.volumes for t in self.temperatures)


class ModelDynamics(MolecularDynamics):
    """Molecular dynamics with a trained model, from a file that campaign exported."""

    method: Literal["md"] = "md"
    model: FileName = Field(description="an exported model, *.pt", examples=["models/nacl.pt"])
    ensemble: Literal["npt", "nvt", "nve"] = Field("npt", description="npt, nvt or nve")
    temperature: Temperature = Field(
        description="K, or [T0, T1]: a ramp that every walker runs whole; of nve that of the velocities at the start",
        examples=[[1100, 1700]],
    )
    pressure: Pressures = Field(1.0, description="bar, or a list: every pressure has its own walkers; of npt only")
    barostat: Positive = Field(1.0, description="damping time, ps")
    guards: Guards = Field(default_factory=Guards, description="first signs of failure")
    walkers_per_task: Count = Field(1, description="walkers that one process drives, all in one forward of the model")
    device: Literal["cpu", "cuda"] = Field("cpu", description="what the model runs on")

    @property
    def processes(self) -> int:
        """Processes of a task: its walkers share one."""
        return self.ranks

    @property
    def points(self) -> tuple[dict[str, float], ...]:
        """Each pressure; one point without one where the cell is kept."""
        pressures = self.pressure if isinstance(self.pressure, tuple) else (self.pressure,)
        return tuple({"pressure": p} for p in pressures) if self.ensemble == "npt" else ({},)


class Learn(Model):
    """How MOMT learns its bias; what is left out follows from the number of atoms."""

    every: Count = Field(10, description="MD steps between two deposits")
    bins: tuple[Bins, Bins] | None = Field(
        None, description="of the grid in enthalpy and order, at least 2 each", examples=[[24, 20]]
    )
    width: Positive | None = Field(None, description="standard deviation of a deposit, in bins")
    height: Positive | None = Field(None, description="of the first deposits, in k T")
    hold: NonNegativeInteger | None = Field(None, description="how many deposits have that height")
    rate: Positive | None = Field(None, description="the n-th deposit after those is rate / n high")
    until: Count | None = Field(
        None, description="MD steps after which the bias stays as it is, for exact averages; default it never does"
    )


class MOMT(MolecularDynamics):
    """Extended-ensemble sampling in enthalpy and crystalline order: one run visits solid and liquid many times."""

    method: Literal["momt"] = "momt"
    temperature: Positive = Field(description="of the thermostat, K: near melting", examples=[2000])
    pressure: Number = Field(1.0, description="bar")
    temperatures: tuple[Positive, Positive] = Field(
        description="of the solid at the window's lower end and of the liquid at its upper, K", examples=[[900, 3500]]
    )
    window: Window = Field(
        "auto", description="enthalpies between which it samples, eV/atom; auto finds them by two short NPT runs"
    )
    order: Literal["auto", "none", "fcc", "bcc", "hcp", "rocksalt", "diamond", "zincblende", "cesiumchloride", "sc"] = (
        Field("auto", description="crystal whose order is sampled; auto is the structure's prototype, none for others")
    )
    shared: Switch = Field(True, description="whether the walkers learn one bias together")
    learn: Learn = Field(default_factory=Learn, description="how the bias is learned")
    every: Count = Field(50, description="steps between kept frames")
    segment: Count = Field(500, description="frames in a segment, the unit of streaming and resume")
    barostat: Positive = Field(1.0, description="damping time, ps")

    @property
    def points(self) -> tuple[dict[str, float], ...]:
        """The pressure."""
        return ({"pressure": self.pressure},)


class FakeSample(Model):
    """Thermal displacements of an analytic toy crystal: for tests and for trying a site."""

    method: Literal["fake"] = "fake"
    walkers: Count = Field(1, description="independent runs")
    frames: Count = Field(description="frames of each walker", examples=[64])
    segment: Count = Field(64, description="frames in a segment")
    displacement: Positive = Field(0.1, description="standard deviation of the displacements, Å")
    temperature: Positive = Field(300.0, description="K, written into the frames")
    delay: NonNegative = Field(0.0, description="seconds that a segment takes")

    @property
    def all_walkers(self) -> int:
        """Walkers in all."""
        return self.walkers


class FileSample(Model):
    """Frames that exist already, read in place: the file is not copied and must stay until all of it is read."""

    method: Literal["file"] = "file"
    file: FileName = Field(
        description="*.extxyz, *.xyz, *.traj, *.db, *.zarr (an export or a run.zarr of campaign), *.lammpstrj, *.dump",
        examples=["old.extxyz"],
    )
    elements: tuple[Element, ...] = Field(
        (),
        description="of a LAMMPS dump without element column: chemical symbols in the order of the atom types",
        examples=[["Na", "Cl"]],
    )
    every: Count = Field(1, description="keep every so many-th frame, the first included")
    segment: Count = Field(64, description="frames in a shard, the unit of streaming and resume")

    @property
    def all_walkers(self) -> int:
        """None: nothing is run."""
        return 0

    @property
    def frames(self) -> int:
        """Frames of each walker; those of the file are counted when it is looked through."""
        return 0


Sample = Annotated[
    Annotated[NPT, Tag("@npt")]
    | Annotated[NVT, Tag("@nvt")]
    | Annotated[NVTGrid, Tag("@nvt_grid")]
    | Annotated[MOMT, Tag("@momt")]
    | Annotated[ModelDynamics, Tag("@md")]
    | Annotated[FileSample, Tag("@file")]
    | Annotated[FakeSample, Tag("@fake")],
    Discriminator(tag_by("method")),
]


class Loss(Model):
    """The training loss: what errors cost, and the weights of its three parts."""

    kind: Literal["mse", "huber", "l4"] = Field(
        "mse", description="squared errors; less for outliers (huber); or more for them (l4)"
    )
    delta: Positive = Field(
        0.1, description="part of the labels' spread from which on an error counts linearly; of huber only"
    )
    energy: NonNegative = Field(0.01, description="weight")
    forces: NonNegative = Field(0.95, description="weight")
    stress: NonNegative = Field(0.04, description="weight")


class Trained(Model):
    """What models that are trained on energies, forces and stresses share."""

    model: str
    members: Count = Field(1, description="models in the ensemble")
    cutoff: Positive = Field(6.0, le=20, description="Å, at most 20")
    loss: Loss = Field(default_factory=Loss, description="kind, and weights of energy, forces and stress")
    epochs: Count = Field(200, description="passes over the training set")
    patience: Count | None = Field(
        None, description="epochs without a better one after which training ends, by default none"
    )
    batch: Count = Field(1, description="frames in a training step")
    rate: Positive = Field(5e-3, description="largest learning rate of the schedule")
    wall: Switch = Field(True, description="repulsion inside the shortest distances in training")
    device: Literal["cpu", "cuda"] = Field("cpu", description="what it is trained on")
    together: Switch | None = Field(
        None, description="whether the members take their steps together, in one task; by default on a GPU alone"
    )
    processes: Count = Field(1, description="MPI ranks that train one model, each on a part of every batch")
    tensorboard: Switch = Field(False, description="whether each training writes logs for TensorBoard")


class Network(Trained):
    """What the networks of SchNetPack share."""

    features: Count = Field(64, description="features of an atom")
    interactions: Count = Field(3, description="interaction blocks")


class SchNet(Network):
    """SchNet: continuous-filter convolutions over distances."""

    model: Literal["schnet"] = "schnet"


class PaiNN(Network):
    """PaiNN: equivariant messages of scalars and vectors."""

    model: Literal["painn"] = "painn"
    rate: Positive = Field(1e-3, description="largest learning rate of the schedule")


class SO3net(Network):
    """SO3net: equivariant convolutions over spherical harmonics."""

    model: Literal["so3net"] = "so3net"
    l_max: Count = Field(2, le=6, description="highest degree of the spherical harmonics, at most 6")
    rate: Positive = Field(1e-3, description="largest learning rate of the schedule")


class ANI(Trained):
    """ANI: distances and angles of the neighbours, and one small network for each element."""

    NOT_HERE: ClassVar = {
        "features": ("its features follow from its cutoffs", "remove it"),
        "interactions": ("it passes no messages", "remove it, or write 'model: schnet'"),
    }

    model: Literal["ani"] = "ani"
    cutoff: Number = Field(5.2, gt=1.5, le=20, description="Å, above 1.5 and at most 20")
    angular_cutoff: Number = Field(
        3.5, gt=1.5, le=20, description="of the neighbours whose angles are seen, Å, above 1.5 and less than the cutoff"
    )
    layers: tuple[Count, ...] = Field(
        (64, 48, 32), min_length=1, max_length=8, description="neurons of the hidden layers", examples=[[64, 48, 32]]
    )
    rate: Positive = Field(1e-3, description="largest learning rate of the schedule")


class Noise(Model):
    """The errors that labels are taken to have: what a fit need not come nearer than."""

    energy: Positive = Field(0.001, description="eV/atom")
    forces: Positive = Field(0.05, description="eV/Å")
    virial: Positive = Field(0.05, description="eV/atom")


class GAP(Model):
    """GAP: Gaussian processes on SOAP and on pairs, fitted by gap_fit to energies, forces and virials."""

    NOT_HERE: ClassVar = {
        **dict.fromkeys(("epochs", "batch", "rate", "patience"), ("it is fitted at once, not in epochs", "remove it")),
        "loss": ("a fit has no loss", "write 'noise: {energy: ..., forces: ..., virial: ...}'"),
    }

    model: Literal["gap"] = "gap"
    members: Count = Field(1, description="models in the ensemble")
    cutoff: Number = Field(9.0, gt=1.5, le=20, description="Å, above 1.5 and at most 20")
    n_max: Count = Field(5, le=20, description="radial functions of SOAP, at most 20")
    l_max: NonNegativeInteger = Field(4, le=20, description="highest degree of the spherical harmonics, at most 20")
    width: Positive = Field(1.0, description="of the Gaussian that stands for an atom, Å")
    zeta: Count = Field(4, description="power of the kernel of SOAP")
    sparse: Count = Field(500, description="representative environments of each element")
    pairs: Count = Field(100, description="representative distances of each two elements")
    delta: Positive = Field(1.0, description="eV: spread of what SOAP adds")
    pair_delta: Positive = Field(0.1, description="eV: spread of what the pairs add")
    noise: Noise = Field(default_factory=Noise, description="errors that the labels are taken to have")
    timeout: Positive = Field(86400, description="seconds for a fit")


class FakeModel(Model):
    """The toy crystal's own potential as a model: for tests."""

    model: Literal["fake"] = "fake"
    members: Count = Field(1, description="models in the ensemble")
    delay: NonNegative = Field(0.0, description="seconds that a training takes")


Train = Annotated[
    Annotated[SchNet, Tag("@schnet")]
    | Annotated[PaiNN, Tag("@painn")]
    | Annotated[SO3net, Tag("@so3net")]
    | Annotated[ANI, Tag("@ani")]
    | Annotated[GAP, Tag("@gap")]
    | Annotated[FakeModel, Tag("@fake")],
    Discriminator(tag_by("model")),
]


class Campaign(Model):
    """A whole campaign file."""

    name: str = Field(
        alias="campaign",
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        max_length=64,
        description="lower-case letters, digits, - and _, starting with a letter or digit",
        examples=["nacl-rnd"],
    )
    seed: NonNegativeInteger = Field(0, description="of every random number")
    max_failed: Fraction = Field(0.2, description="fraction of a stage's tasks that may fail before the stage ends")
    system: System = Field(description="structure and potential", examples=["{structure: ..., potential: ...}"])
    sample: tuple[Sample, ...] = Field((), description="list of sampling runs", examples=["[{method: npt, ...}]"])
    transfer: Transfer | None = Field(
        None, description="the set of another campaign", examples=["{from: runs/ni-momt-32, species: {Ni: Al}}"]
    )
    select: Select | None = Field(None, description="frames to label", examples=["{method: rnd_stream, size: 32}"])
    distill: Distill | None = Field(
        None, description="the few frames that the others can be predicted from", examples=["{method: uq}"]
    )
    label: Label | None = Field(None, description="what labels them", examples=["{engine: lammps}"])
    train: Train | None = Field(None, description="what is trained", examples=["{model: schnet}"])
    learn: ActiveLearning | None = Field(
        None,
        description="dynamics with the model, and what it lacks",
        examples=["{md: {temperature: 1400, time: 100}}"],
    )
    validation: tuple[Validate, ...] = Field(
        (), alias="validate", description="list of tests of the model", examples=["[{method: errors}]"]
    )

    @model_validator(mode="before")
    @classmethod
    def _seed_of_the_packing(cls, data: Any) -> Any:
        """Write the campaign's seed out where a packing has none of its own: the resolved file tells all."""
        try:
            seed, structure = data.get("seed", 0), data["system"]["structure"]
            if "packing" in structure and structure.get("seed") is None and type(seed) in (int, float) and seed >= 0:
                return {**data, "system": {**data["system"], "structure": {**structure, "seed": seed}}}
        except (AttributeError, KeyError, TypeError):  # said by the fields themselves
            pass
        return data

    @property
    def reference(self) -> Potential | None:
        """The classical potential that the frames to train on belong to: what labels them, where it is LAMMPS."""
        own = self.label.potential if isinstance(self.label, LammpsLabel) else None
        return own or (self.transfer.potential if self.transfer else None) or self.system.potential

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this campaign has, in order."""
        parts = {
            "sample": self.sample,
            "select": self.select,
            "distill": self.distill,
            "transfer": self.transfer,
            "label": self.label,
            "train": self.train,
            "learn": self.learn,
            "validate": self.validation,
        }
        return tuple(name for name, part in parts.items() if part)
