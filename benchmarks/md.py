"""MD with SchNet: campaign's driver (LAMMPS, forces from Python) against ASE with SchNetPack's own calculator.

The same untrained SchNet (64 features, 3 interactions, cutoff 6 Å), NaCl at 300 K, NVE at 1 fs, the watch on every step
included; also evaluations of a batch of frames, to see whether batched walkers would pay on this machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import arguments, interleaved, report

ASKED = {64: 3.0, 1000: 1.0}
SPEC = {"model": "schnet", "features": 64, "interactions": 3, "cutoff": 6.0}


def crystal(cells: int) -> Any:
    """Return rocksalt NaCl of ``cells`` cubed cubic cells, slightly off its sites."""
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (cells, cells, cells)
    atoms.positions += 0.05 * np.random.default_rng(1).normal(size=atoms.positions.shape)
    return atoms


def potential() -> Any:
    """Return campaign's potential with seeded weights: what it predicts does not matter to its speed."""
    from campaign.engines.schnetpack import Potential, network

    weights = {k: v.numpy() for k, v in network(SPEC, 0).state_dict().items()}
    extra = {"reference.numbers": np.array([11, 17]), "reference.energies": np.zeros(2), "scale": np.array([0.01])}
    return Potential(SPEC, {**weights, **extra})


def spk_calculator(skin: float) -> Any:
    """Return SchNetPack's calculator on a SchNet of the same size and weights, without stress, which the driver has.

    ``skin``, Å, keeps its neighbour list; 0 finds it anew at each step.
    """
    from campaign.engines.schnetpack import RADIAL, load_schnetpack, network

    spk = load_schnetpack()
    from schnetpack.interfaces.ase_interface import SpkCalculator
    from schnetpack.transform import MatScipyNeighborList, SkinNeighborList

    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.SchNet(
            n_atom_basis=SPEC["features"],
            n_interactions=SPEC["interactions"],
            radial_basis=spk.nn.GaussianRBF(n_rbf=RADIAL, cutoff=SPEC["cutoff"]),
            cutoff_fn=spk.nn.CosineCutoff(SPEC["cutoff"]),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=SPEC["features"], output_key="energy"),
            spk.atomistic.Forces(),
        ],
    )
    model.load_state_dict(network(SPEC, 0).state_dict())

    class Calculator(SpkCalculator):  # type: ignore[misc]
        def _load_model(self, model_file: str) -> Any:
            """Take the model made above: its own way is a pickle."""
            return model.eval()

    neighbours = MatScipyNeighborList(cutoff=SPEC["cutoff"])
    if skin:
        neighbours = SkinNeighborList(neighbours, cutoff_skin=skin)
    return Calculator("", neighbours, energy_unit="eV", position_unit="Angstrom")


def with_campaign(model: Any, atoms: Any, steps: int) -> float:
    """Return seconds of a segment, LAMMPS's start and the checkpoint included."""
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.guards import Limits, Watch
    from campaign.engines.lammps_potential import PotentialLines

    segment = Segment(steps // 10, 10, 0, 0.001, (300.0, 300.0), None, isolated=True)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 1)
    watch = Watch(atoms.numbers, Limits(0.3, 1e3, 1e9, 1e9))
    begin = time.perf_counter()
    run_segment(PotentialLines(("Na", "Cl"), ""), segment, start, model, watch=watch)
    return time.perf_counter() - begin


def with_ase(calculator: Any, atoms: Any, steps: int) -> float:
    """Return seconds of ASE's velocity Verlet; frames are not even kept."""
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = atoms.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, timestep=units.fs)
    begin = time.perf_counter()
    dynamics.run(steps)
    return time.perf_counter() - begin


def batched(model: Any, atoms: Any, walkers: int) -> tuple[float, float]:
    """Return evaluations a second of frames one by one, by the driver's fast way, and of a batch in one forward."""
    from campaign.engines.fast_forces import fast_forces
    from campaign.frames import Frames

    frames = Frames.build(atoms.numbers, np.repeat(atoms.positions[None], walkers, axis=0), np.array(atoms.cell))
    fast = fast_forces(model, atoms.numbers)
    assert fast is not None
    cell = np.array(atoms.cell)
    works = {
        "one": lambda: [fast.evaluate(x, cell) for x in frames.positions] and None,
        "batch": lambda: model.evaluate(frames) and None,
    }
    for work in works.values():
        work()
    found = interleaved(works, 3)
    return walkers / found["one"], walkers / found["batch"]


def main() -> None:
    """Run it."""
    options = arguments(__doc__)
    import torch

    from campaign.engines.fast_forces import SKIN

    torch.set_num_threads(1)
    model = potential()
    rounds = 3 if options.quick else 5
    rows, figures, ok = [], {}, True
    for cells, atoms_steps in ((2, (400, 60)), (5, (60, 10))):
        atoms = crystal(cells)
        n = len(atoms)
        ours, theirs = (max(10, s // 4) if options.quick else s for s in atoms_steps)
        works: dict[str, Any] = {
            "campaign": lambda a=atoms, s=ours: with_campaign(model, a, s) / s,
        }
        for name, skin in (("ase", 0.0), ("ase, skin", SKIN)):
            calculator = spk_calculator(skin)
            _agree(model, calculator, atoms)
            works[name] = lambda a=atoms, s=theirs, c=calculator: with_ase(c, a, s) / s
        for work in works.values():
            work()  # compiles
        found = interleaved(works, rounds)
        ratio = min(found["ase"], found["ase, skin"]) / found["campaign"]  # against the quicker peer
        rates = {f"{k}, steps/s": 1 / v for k, v in found.items()}
        rows.append({"atoms": n, **rates, "ratio": ratio, "asked": ASKED[n]})
        figures[f"ratio_{n}"] = ratio
        figures[f"steps_per_second_{n}"] = 1 / found["campaign"]
        ok &= ratio >= ASKED[n]
    one, batch = batched(model, crystal(2), 16)
    figures |= {"frames_per_second_single": one, "frames_per_second_batch": batch}
    report("md", rows, figures, {f"ratio_{n}": v for n, v in ASKED.items()}, ok)


def _agree(model: Any, calculator: Any, atoms: Any) -> None:
    """Refuse to compare two that do not compute the same forces."""
    from campaign.engines.fast_forces import fast_forces

    fast = fast_forces(model, atoms.numbers)
    assert fast is not None
    ours = fast.evaluate(atoms.positions, np.array(atoms.cell))[1]
    other = atoms.copy()
    other.calc = calculator
    theirs = other.get_forces() * model.scale
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1e-3, float(np.abs(theirs).max())))


if __name__ == "__main__":
    main()
