"""ANI-type networks: atomic environment vectors by torchani, and one small network for each element.

J. S. Smith, O. Isayev and A. E. Roitberg, Chem. Sci. 8, 3192 (2017); X. Gao et al., J. Chem. Inf. Model. 60, 3408
(2020). They are trained, evaluated and exported as the networks of SchNetPack are (``campaign.engines.schnetpack``):
this is one more representation there, whose only feature is the energy of the atom.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from campaign.errors import EngineError

#: What a spec may leave out: Å, and neurons of the hidden layers.
DEFAULTS: dict[str, Any] = {"angular_cutoff": 3.5, "layers": [64, 48, 32]}
#: Of ANI-1x: where shells of distances begin, Å, how many there are, and the width of one in distances between them.
START, RADIAL, ANGULAR, SECTIONS = 0.9, 16, 4, 8
_RADIAL_WIDTH, _ANGULAR_WIDTH = 16.0 * 0.26875**2, 8.0 * 0.65**2
#: Sharpness of a section of angles.
_ZETA = 32.0
#: Why this is not in an ordinary list of requirements: torchani declares zarr<3, which its vectors do not use.
INSTALL = "pip install --no-deps 'torchani>=2.9'"


def _aev_computer(spec: Mapping[str, Any], species: int) -> Any:
    """Return torchani's ``AEVComputer``; its shells are as dense as those of ANI-1x are over its own cutoffs."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of extensions for GPUs, which it does without
            from torchani.aev import AEVComputer, ANIAngular, ANIRadial
    except ImportError as error:
        raise EngineError(
            f"A model of ANI needs torchani, which is not installed; install it with: {INSTALL}"
        ) from error
    far, near = float(spec["cutoff"]), float(spec["angular_cutoff"])
    eta, eta_angular = (RADIAL / (far - START)) ** 2, (ANGULAR / (near - START)) ** 2
    return AEVComputer(
        ANIRadial.cover_linearly(START, far, _RADIAL_WIDTH * eta, RADIAL),
        ANIAngular.cover_linearly(START, near, _ANGULAR_WIDTH * eta_angular, _ZETA, ANGULAR, SECTIONS),
        num_species=species,
    )


def representation(spec: Mapping[str, Any], seed: int) -> Any:
    """Return the seeded networks as a representation of SchNetPack, on pairs that are there once.

    Parameters
    ----------
    spec
        ``species`` (atomic numbers, sorted), ``cutoff`` (Å), and what ``DEFAULTS`` has.
    seed
        Of the first weights.

    Raises
    ------
    EngineError
        torchani is not installed.
    """
    import torch

    from campaign.engines.schnetpack import load_schnetpack

    properties = load_schnetpack().properties
    spec = DEFAULTS | dict(spec)
    species = [int(z) for z in spec["species"]]
    aev = _aev_computer(spec, len(species))
    from torchani.neighbors import Neighbors

    class ANI(torch.nn.Module):
        n_atom_basis = 1
        place: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.aev = aev
            self.nets = torch.nn.ModuleList(_net(aev.out_dim, spec["layers"]) for _ in species)
            place = torch.full((max(species) + 1,), -1)
            place[species] = torch.arange(len(species))
            self.register_buffer("place", place, persistent=False)

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            r = inputs[properties.Rij]
            kind = self.place[inputs[properties.Z]]
            indices = torch.stack([inputs[properties.idx_i], inputs[properties.idx_j]])
            # from j to i in torchani, here from i to j: only angles between two vectors count, which are the same
            pairs = Neighbors(indices, torch.linalg.vector_norm(r, dim=1), r)
            vectors = self.aev.compute_from_neighbors(kind[None], r, pairs)[0]
            energy = vectors.new_zeros((len(kind), 1))
            for k, net in enumerate(self.nets):
                atoms = torch.nonzero(kind == k)[:, 0]
                energy = energy.index_add(0, atoms, net(vectors[atoms]))
            inputs["scalar_representation"] = energy
            return inputs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & (2**63 - 1))
        return ANI()


def _net(inputs: int, layers: list[int]) -> Any:
    """Return the network of one element; GELU, since forces of the CELU of the first ANI have kinks."""
    import torch

    sizes = [inputs, *layers]
    parts: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [torch.nn.Linear(before, after), torch.nn.GELU()]
    return torch.nn.Sequential(*parts, torch.nn.Linear(sizes[-1], 1))
