"""What labels the chosen frames, as models of the campaign file: the section ``label``, and the ladder of attempts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag

from campaign.config.cp2k_ladder import DEFAULT, RUNGS
from campaign.config.fields import (
    Count,
    FileName,
    Model,
    NonNegative,
    NonNegativeInteger,
    Parameters,
    Positive,
    plain_data,
    suggest,
    tag_by,
    wrong,
)

#: The ASE calculators that may label, by name: nothing else is ever imported.
CALCULATORS = {
    "emt": "ase.calculators.emt.EMT",
    "lj": "ase.calculators.lj.LennardJones",
    "morse": "ase.calculators.morse.MorsePotential",
    "tblite": "tblite.ase.TBLite",
    "gpaw": "gpaw.GPAW",
}

#: The arguments that each takes from a campaign file: none that names a file to read or to write.
PARAMETERS = {
    "emt": ("asap_cutoff",),
    "lj": ("sigma", "epsilon", "rc", "ro", "smooth"),
    "morse": ("epsilon", "r0", "rho0", "rcut1", "rcut2"),
    "tblite": (
        *("method", "charge", "multiplicity", "accuracy", "guess", "initial_guess", "max_iterations", "mixer"),
        *("mixer_memory", "mixer_damping", "annealing", "electric_field", "spin_polarization", "solvation"),
        *("electronic_temperature", "cache_api", "verbosity"),
    ),
    "gpaw": (
        *("mode", "xc", "h", "gpts", "kpts", "nbands", "charge", "setups", "basis", "spinpol", "magmoms", "hund"),
        *("occupations", "poissonsolver", "mixer", "eigensolver", "convergence", "maxiter", "symmetry", "soc"),
        *("background_charge", "experimental", "random", "reuse_wfs_method", "parallel", "verbose"),
    ),
}

#: Those of them that are packages of their own, with the extra of campaign that installs each.
CALCULATOR_EXTRAS = {"tblite": "xtb", "gpaw": "gpaw"}


#: Signs that are more to CP2K than a part of a word: comments, directives, sections, variables, lines that go on.
FOREIGN = ("!", "#", "@", "&", "$", "\\")


def texts_of(value: object) -> Iterator[str]:
    """Yield every text in a value, the keys of mappings included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str):
        yield value


def _rung(value: object) -> str | dict[str, Any]:
    example = "write a path below FORCE_EVAL/DFT and its value, such as {SCF/MAX_SCF: 200}"
    if isinstance(value, str):
        if value not in RUNGS:
            raise wrong("there is no rung of this name", f"{suggest(value, RUNGS)}, or a mapping of settings")
        return value
    if not isinstance(value, dict) or not value:
        raise wrong("a rung is a name or a mapping of settings", f"write one of {', '.join(RUNGS)}, or {example[6:]}")
    for key, item in value.items():
        if key == "restart" and not isinstance(item, bool):
            raise wrong("'restart' must be true or false", "write true or false")
        if key == "restart":
            continue
        if not isinstance(key, str) or not all(key.split("/")):
            raise wrong(f"'{key}' is no path into the template", example)
        if not plain_data(item):
            raise wrong(f"the value of '{key}' must be a number, text, true, false, null or a section", example)
        if any(sign in text or not text.isprintable() for text in texts_of({key: item}) for sign in FOREIGN):
            what = "a rung's paths and values are plain words, without line breaks, comments or directives"
            raise wrong(what, f"remove {' '.join(FOREIGN)} and what does not print from it")
    return dict(value)


#: One attempt: the name of a built-in rung, or a mapping of paths below FORCE_EVAL/DFT to values.
Rung = Annotated[str | dict[str, Any], PlainValidator(_rung)]


class Potential(Model):
    """A classical potential: a file of LAMMPS lines with a header naming its elements."""

    lammps: FileName = Field(description="file of LAMMPS lines, in units metal", examples=["potentials/nacl_bmhtf.lmp"])


class Cached(Model):
    """What labellers share whose labels can be kept for other campaigns."""

    cache: FileName | None = Field(
        None,
        description="folder of labels that campaigns share: one found there is not computed again",
        examples=["labels-cache"],
    )


class LammpsLabel(Cached):
    """Label with a classical potential in LAMMPS."""

    engine: Literal["lammps"] = "lammps"
    potential: Potential | None = Field(
        None,
        description="reference potential; default system.potential",
        examples=[{"lammps": "potentials/nacl_bmhtf.lmp"}],
    )
    attempts: Count = Field(2, description="tries before a frame is quarantined")


class AseLabel(Cached):
    """Label with an ASE calculator."""

    engine: Literal["ase"] = "ase"
    calculator: Literal["emt", "lj", "morse", "tblite", "gpaw"] = Field(description="ASE calculator", examples=["emt"])
    parameters: Parameters = Field(default_factory=dict, description="the calculator's own arguments")
    ladder: tuple[Parameters, ...] = Field(
        (), description="arguments that replace some of the parameters in the attempts after the first, one each"
    )
    attempts: Count = Field(2, description="tries before a frame is quarantined; those beyond the ladder repeat it")


class CP2KLabel(Cached):
    """Label with CP2K: one single point a frame, from a template of its input."""

    engine: Literal["cp2k"] = "cp2k"
    template: FileName = Field(description="CP2K input without cell and atoms", examples=["cp2k/nacl_pbe.inp"])
    ranks: Count = Field(1, description="MPI ranks of one single point")
    threads: Count = Field(1, description="OpenMP threads of each rank")
    timeout: Positive = Field(3600, description="seconds of each attempt")
    ladder: tuple[Rung, ...] = Field(
        DEFAULT, min_length=1, description="attempts in order, each a name or a mapping of settings"
    )

    @property
    def attempts(self) -> int:
        """Tries before a frame is quarantined."""
        return len(self.ladder)


class FakeLabel(Cached):
    """Label with the analytic toy crystal: for tests."""

    engine: Literal["fake"] = "fake"
    attempts: Count = Field(2, description="tries before a frame is quarantined")
    delay: NonNegative = Field(0.0, description="seconds that a label takes")
    fail: tuple[NonNegativeInteger, ...] = Field((), description="frames, by number in their segment, that fail")


class PoolLabel(Model):
    """The labels that the frames of the pool carry already: those of a labelled file, or of the sampling potential."""

    engine: Literal["pool"] = "pool"
    attempts: Literal[1] = Field(1, description="tries before a frame is quarantined: another gives the same")


Label = Annotated[
    Annotated[LammpsLabel, Tag("@lammps")]
    | Annotated[CP2KLabel, Tag("@cp2k")]
    | Annotated[AseLabel, Tag("@ase")]
    | Annotated[PoolLabel, Tag("@pool")]
    | Annotated[FakeLabel, Tag("@fake")],
    Discriminator(tag_by("engine")),
]
