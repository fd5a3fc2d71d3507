"""MD with SchNet: campaign's driver (LAMMPS, forces from Python) against ASE with SchNetPack's own calculator.

The same SchNet (64 features, 3 interactions, cutoff 6 Å), NaCl at 300 K, NVE at 1 fs, the watch on every step
included; also many walkers in one forward (``--device``, ``--walkers``) against the same one after the other.

Seconds are those of the processor: all run on one thread, and what else the machine does then counts for neither. On a
GPU, the walkers' are those of the clock.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, parser, report

ASKED = {64: 3.0, 1000: 1.0}
WALKERS = {"cpu": 8, "cuda": 64}
POTENTIALS = Path(__file__).parents[1] / "templates" / "potentials"
SPEC: dict[str, Any] = {
    "model": "schnet", "features": 64, "interactions": 3, "cutoff": 6.0, "epochs": 40, "batch": 1, "rate": 5e-3,
    "wall": False, "loss": {"energy": 0.01, "forces": 0.95, "stress": 0.04},
}  # fmt: skip


def crystal(cells: int) -> Any:
    """Return rocksalt NaCl of ``cells`` cubed cubic cells, slightly off its sites."""
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (cells, cells, cells)
    atoms.positions += 0.05 * np.random.default_rng(1).normal(size=atoms.positions.shape)
    return atoms


def potential() -> Any:
    """Return campaign's potential after a short training: its solid must not melt, its errors do not matter here."""
    from campaign.engines import schnetpack_train
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.lammps_potential import load_potential
    from campaign.engines.schnetpack import Potential
    from campaign.frames import Frames

    atoms = crystal(2)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 1, ((300.0, 0.5, None),))
    sampled = Segment(16, 20, 0, 0.002, (300.0, 900.0), None)
    arrays, _ = run_segment(load_potential(POTENTIALS / "nacl_bmhtf.lmp"), sampled, start)
    frames = Frames.build(atoms.numbers, **{k: v for k, v in arrays.items() if k != "kinetic"})
    weights, _ = schnetpack_train.train([frames], SPEC, 1, lambda values: None)
    return Potential(SPEC, weights)


def spk_calculator(potential: Any, skin: float) -> Any:
    """Return SchNetPack's calculator on a SchNet of the same size and weights, without stress, which the driver has.

    ``skin``, Å, keeps its neighbour list; 0 finds it anew at each step.
    """
    import torch

    from campaign.engines.schnetpack import RADIAL, load_schnetpack

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
    model.load_state_dict({k: torch.as_tensor(v) for k, v in potential.weights.items() if k in model.state_dict()})

    class Calculator(SpkCalculator):  # type: ignore[misc]
        def _load_model(self, model_file: str) -> Any:
            """Take the model made above: its own way is a pickle."""
            return model.eval()

    neighbours = MatScipyNeighborList(cutoff=SPEC["cutoff"])
    if skin:
        neighbours = SkinNeighborList(neighbours, cutoff_skin=skin)
    # the network's energies are in units of the scale, without the energies of the free atoms
    return Calculator("", neighbours, energy_unit=potential.scale, position_unit="Angstrom")


def with_campaign(model: Any, atoms: Any, steps: int) -> float:
    """Return seconds of a segment, with LAMMPS's start, the making of the tables, and the checkpoint."""
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.guards import Limits, Watch
    from campaign.engines.lammps_potential import PotentialLines

    segment = Segment(steps // 10, 10, 0, 0.001, (300.0, 300.0), None, isolated=True)
    start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), 1)
    watch = Watch(atoms.numbers, Limits(0.3, 1e3, 1e9, 1e9))
    begin = time.process_time()
    run_segment(PotentialLines(("Na", "Cl"), ""), segment, start, model, watch=watch)
    return time.process_time() - begin


def with_ase(calculator: Any, atoms: Any, steps: int) -> float:
    """Return seconds of ASE's velocity Verlet; frames are not even kept."""
    from ase import units
    from ase.md.velocitydistribution import thermalize_momenta
    from ase.md.verlet import VelocityVerlet

    atoms = atoms.copy()
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, timestep=units.fs)
    begin = time.process_time()
    dynamics.run(steps)
    return time.process_time() - begin


def walkers(model: Any, atoms: Any, count: int, steps: int, clock: Any) -> dict[str, Any]:
    """Return what measures the seconds of a walker's step, one after the other (a few of them) and batched.

    All of it is included, as in ``with_campaign``.
    """
    from functools import partial

    from campaign.engines.batched import Batch
    from campaign.engines.dynamics import Segment, Start, run_segment
    from campaign.engines.guards import Limits, Watch
    from campaign.engines.lammps_potential import PotentialLines

    segment = Segment(steps // 10, 10, 0, 0.001, (300.0, 300.0), None, isolated=True)

    def walker(seed: int, model: Any) -> None:
        start = Start(atoms.numbers, atoms.positions, np.array(atoms.cell), seed)
        watch = Watch(atoms.numbers, Limits(0.3, 1e3, 1e9, 1e9))
        run_segment(PotentialLines(("Na", "Cl"), ""), segment, start, model, watch=watch)

    def seconds(work: Any, many: int) -> float:
        begin = clock()
        work()
        return float(clock() - begin) / many / steps

    together = [partial(walker, seed) for seed in range(1, count + 1)]
    few = together[: WALKERS["cpu"]]
    return {
        "in turn": lambda: seconds(lambda: [work(model) for work in few], len(few)),
        "batched": lambda: seconds(lambda: Batch(model).run(together), count),
    }


def batched(model: Any, device: str, count: int, quick: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the row of many walkers of 64 atoms on a device, and its figures: steps a second of all together."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    steps = 250 if quick else 1000
    works = walkers(model.to(device), crystal(2), count, steps, clock)
    for work in works.values():
        work()
    found = interleaved(works, 3 if quick else 5)
    model.to("cpu")
    rates = {f"{name}, steps/s": 1 / seconds for name, seconds in found.items()}
    row = {"atoms": 64, "walkers": count, "device": device, **rates, "ratio": found["in turn"] / found["batched"]}
    figures = {f"{name}_steps_per_second".replace(" ", "_"): v for name, v in zip(found, rates.values(), strict=True)}
    return row, {f"{count}_walkers_{device}_{name}": value for name, value in figures.items()}


def main() -> None:
    """Run it."""
    made = parser(__doc__)
    made.add_argument("--device", choices=sorted(WALKERS), default="cpu", help="of the walkers that are batched")
    made.add_argument("--walkers", type=int, help="that are batched; by default 8, on a GPU 64")
    options = made.parse_args()
    import torch

    from campaign.engines.fast_forces import SKIN

    torch.set_num_threads(1)
    model = potential()
    rounds = 3 if options.quick else 5
    rows, figures, ok = [], {}, True
    for cells, atoms_steps in ((2, (4000, 200)), (5, (400, 20))):
        atoms = crystal(cells)
        n = len(atoms)
        ours, theirs = (max(10, s // 4) if options.quick else s for s in atoms_steps)
        works: dict[str, Any] = {
            "campaign": lambda a=atoms, s=ours: with_campaign(model, a, s) / s,
        }
        for name, skin in (("ase", 0.0), ("ase, skin", SKIN)):
            calculator = spk_calculator(model, skin)
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
    row, more = batched(model, options.device, options.walkers or WALKERS[options.device], options.quick)
    rows.append(row)
    figures |= more
    report("md", rows, figures, {f"ratio_{n}": v for n, v in ASKED.items()}, ok)


def _agree(model: Any, calculator: Any, atoms: Any) -> None:
    """Refuse to compare two that do not compute the same forces."""
    from campaign.engines.fast_forces import fast_forces

    fast = fast_forces(model, atoms.numbers)
    assert fast is not None
    ours = fast.evaluate(atoms.positions, np.array(atoms.cell))[1]
    other = atoms.copy()
    other.calc = calculator
    theirs = other.get_forces()
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(np.abs(theirs).max()))


if __name__ == "__main__":
    main()
