"""Active learning as a model of the campaign file: the section ``learn``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from campaign.config.fields import Count, Interval, Model, NonNegative, Number, Positive, Switch, Temperature


class Guards(Model):
    """What a walker with a model may not do: at the first step that it does, it stops."""

    closest: Positive = Field(0.6, description="distance of two atoms over the sum of their covalent radii")
    force: Positive = Field(30.0, description="on any atom, eV/Å")
    volume: Positive = Field(1.5, description="of the cell over that of the start")
    temperature: Positive = Field(2.0, description="kinetic over the set point's highest")
    energy: Positive = Field(0.01, description="change of the total energy, eV/atom; of nve only")


class LearnDynamics(Model):
    """The molecular dynamics that a model has to survive."""

    ensemble: Literal["npt", "nvt"] = Field("npt", description="npt or nvt")
    temperature: Temperature = Field(
        description="K, or [T0, T1]: a ramp that every walker runs whole", examples=[[1100, 1700]]
    )
    pressure: Number = Field(1.0, description="bar; of npt only")
    time: Positive = Field(description="of each walker in each round, ps", examples=[100])
    timestep: Positive = Field(0.002, le=0.02, description="ps: 0.002 is usual, 0.02 the most")
    every: Count = Field(50, description="steps between frames that may be added")
    walkers: Count = Field(2, description="independent runs; those of one round are driven by its members in turn")
    segment: Count = Field(100, description="frames in a segment, the unit of resume")
    thermostat: Positive = Field(0.1, description="damping time, ps")
    barostat: Positive = Field(1.0, description="damping time, ps")
    guards: Guards = Field(default_factory=Guards, description="first signs of failure")

    @property
    def frames(self) -> int:
        """Frames that each walker keeps in a round, one at least."""
        return max(1, round(self.time / self.timestep / self.every))


class ActiveLearning(Model):
    """Rounds of dynamics with the model; what it does not know is labelled, added, and trained on."""

    rounds: Count = Field(5, description="most rounds of dynamics")
    size: Count = Field(8, description="most frames added in a round")
    novelty: Literal["uq", "rnd", "rnd_stream", "rematch"] = Field(
        "uq",
        description="what is added: where the members disagree (uq), or what is unlike the training set, by random "
        "network distillation (rnd), by that of the selection, which goes on (rnd_stream), or by REMatch (rematch)",
    )
    warm_start: Switch | None = Field(
        None,
        description="whether each member goes on from its weights of the round before; by default wherever models are "
        "trained in epochs",
    )
    epochs: Count | None = Field(
        None, description="passes over the training set of a member that goes on; default half of those of 'train'"
    )
    steps: Count | None = Field(
        None, description="steps of its optimiser, instead of passes: a larger set costs no more"
    )
    rate: Positive | None = Field(None, description="its largest learning rate; default a tenth of that of 'train'")
    md: LearnDynamics = Field(
        description="the dynamics", examples=[{"ensemble": "npt", "temperature": 1400, "time": 100}]
    )
    min_distance: NonNegative = Field(
        0.5, description="frames with atoms closer than this fraction of their covalent radii's sum are refused"
    )
    max_force: Positive | None = Field(
        30.0, description="frames with a larger force on an atom, by the model, are refused, eV/Å"
    )
    label_force: Positive | None = Field(
        100.0,
        description="labels with a larger force on an atom are refused, eV/Å: what fails is seldom below max_force",
    )
    energy: Interval | None = Field(
        None, description="frames with an energy outside are refused, eV/atom", examples=[[-4.0, -3.0]]
    )
    volume: Interval | None = Field(
        None, description="frames with a volume outside are refused, Å^3/atom", examples=[[15, 60]]
    )
