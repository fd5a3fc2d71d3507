"""Models by name: what trains, what is rebuilt from stored weights. A new model is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from campaign.engines.checkpoints import Execution, Trained, WarmStart
from campaign.errors import EngineError
from campaign.frames import Frames
from campaign.tasks import Json

Array = npt.NDArray[Any]
Epoch = Callable[[dict[str, float]], None]

#: Packages behind a model, where they are not those of the networks of SchNetPack.
NETWORK = ("torch", "schnetpack")
PACKAGES: dict[str, tuple[str, ...]] = {"fake": (), "ani": (*NETWORK, "torchani"), "gap": ("quippy-ase",)}
#: Models whose members can be trained together.
TOGETHER = ("schnet", "painn", "so3net")


class Model(Protocol):
    """A trained potential."""

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive."""

    def atomic_energies(self, frames: Frames) -> Array:
        """Return the energies of the atoms (n, a) eV; they add up to the energy."""

    def export(self, path: Path) -> None:
        """Write it as a file of its own."""


def train(
    blocks: Sequence[Frames],
    spec: Mapping[str, Json],
    seed: int,
    on_epoch: Epoch,
    execution: Execution,
    counted: Sequence[Array] | None = None,
    start: WarmStart | None = None,
) -> tuple[dict[str, Array], dict[str, Json]]:
    """Train the model that ``spec["model"]`` names; return its weights and a summary.

    ``counted``, if given, tells for each block (n, a) which atoms' forces count; ``start`` is what it goes on from in
    place of random weights. A training that left a checkpoint goes on from there, with the same result.

    Raises
    ------
    EngineError
        There is nothing to train on, or the training diverged.
    """
    if spec["model"] == "fake":
        from campaign.engines import fake

        return fake.train(blocks, seed, on_epoch, execution.delay, start)
    if spec["model"] == "gap":
        from campaign.engines import gap

        if start is not None:
            raise EngineError("A GAP is fitted at once and goes on from nothing; remove learn.warm_start.")
        return gap.train(blocks, spec, seed, on_epoch, counted, execution)
    if spec["model"] == "ani":  # its vectors have a part for each element, and each has its network
        species = sorted({int(z) for block in blocks for z in np.unique(block.numbers)})
        spec = {**spec, "species": species}
    if execution.processes > 1:
        from campaign.engines import training_ranks

        return training_ranks.train(blocks, spec, seed, on_epoch, counted, execution, start)
    from campaign.engines import schnetpack_train

    return schnetpack_train.train(blocks, spec, seed, on_epoch, counted, execution, start=start)


def train_ensemble(
    blocks: Sequence[Frames],
    spec: Mapping[str, Json],
    seeds: Sequence[int],
    on_epoch: Epoch,
    execution: Execution,
    counted: Sequence[Array] | None = None,
    start: WarmStart | None = None,
) -> list[Trained]:
    """Train a model for each of ``seeds`` together, as :func:`train` trains each; ``on_epoch`` gets their means.

    Raises
    ------
    EngineError
        As :func:`train`; or models of this kind cannot be trained together.
    """
    if spec["model"] not in TOGETHER:
        raise EngineError(f"Models of the kind {spec['model']} are trained one by one; remove train.together.")
    from campaign.engines import schnetpack_train

    return schnetpack_train.train_ensemble(blocks, spec, seeds, on_epoch, counted, execution, start=start)


def build_model(spec: Mapping[str, Json], weights: Mapping[str, Array]) -> Model:
    """Rebuild a trained model from its weights."""
    if spec["model"] == "fake":
        from campaign.engines import fake

        return fake.ToyCrystal(float(weights["scale"][0]))
    if spec["model"] == "gap":
        from campaign.engines import gap

        return gap.GAP(spec, weights)
    from campaign.engines import schnetpack

    return schnetpack.Potential(spec, weights)


class Mean:
    """The mean of an ensemble, as one model.

    Parameters
    ----------
    members
        At least one model.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        self.members = list(members)

    def evaluate(self, frames: Frames) -> tuple[Array, Array, Array]:
        """Return the members' mean energy (n,), forces (n, a, 3) and stress (n, 3, 3)."""
        results = [m.evaluate(frames) for m in self.members]
        energy, forces, stress = (np.mean([r[k] for r in results], axis=0) for k in range(3))
        return energy, forces, stress


def versions(model: str) -> dict[str, str]:
    """Return the versions of what a model runs."""
    from importlib.metadata import version

    return {name: version(name) for name in PACKAGES.get(model, NETWORK)}


def load(model: str) -> None:
    """Load what a model runs, once a worker."""
    if "schnetpack" in PACKAGES.get(model, NETWORK):
        from campaign.engines.schnetpack import load_schnetpack

        load_schnetpack()
