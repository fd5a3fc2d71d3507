"""CP2K never lies: faults with a program that stands for it, numbers with the real one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from campaign.engines import cp2k
from campaign.engines.cp2k_input import read_template, resolve
from campaign.errors import DiskFull, EngineError, MachineFault, Unconverged, Unphysical
from campaign.frames import Frames
from campaign.tasks import Context, Task

FILES = Path(__file__).parent / "cp2k"
TEMPLATES = Path(__file__).parents[2] / "templates" / "cp2k"
#: The frame of argon.out.
POSITIONS = [
    [0.129948, -0.048941, -0.042254],
    [-0.085837, 2.769233, 2.515877],
    [2.839585, -0.060897, 2.725523],
    [2.680050, 2.816969, -0.164811],
]
ARGON = Atoms("Ar4", POSITIONS, cell=[5.4] * 3, pbc=True)


def rattled(*crystal: Any, by: float = 0.08, **shape: Any) -> Atoms:
    atoms = bulk(*crystal, cubic=True, **shape)
    atoms.rattle(by, seed=1)
    return atoms


MPIRUN = ["/usr/bin/mpirun", "-n", "{ranks}", "--bind-to", "none", "cp2k.psmp"]


class Bench:
    """A run directory with a template in it, to label frames in."""

    def __init__(self, run: Path, template: Path, launch: Sequence[str] = ()) -> None:
        self.run, self.launch, self.name = run, list(launch), template.name
        (run / "cp2k").mkdir(parents=True)
        shutil.copy(template, run / "cp2k")
        for name, path in read_template(template).data.items():
            shutil.copy(path, run / "cp2k" / name)

    def task(self, ladder: Sequence[Any] = ("template",), mark: object = 0, **extra: Any) -> Task:
        extra = {"ranks": 1, "threads": 1, "timeout": 300, **extra}
        extra |= {"template": f"cp2k/{self.name}", "ladder": list(ladder)}
        return Task("label", "x", {"engine": "cp2k", "frame": 0, "mark": mark}, extra=extra)

    def context(self, attempt: int = 0, fault: str = "") -> Context:
        launch = [sys.executable, str(FILES / "fake_cp2k.py"), fault] if fault else self.launch
        return Context(self.run, {"cp2k": launch} if launch else {}, attempt)

    def fake(self, fault: str, attempt: int = 0, task: Task | None = None) -> tuple[Any, Any, Any]:
        return cp2k.label(Frames.from_ase([ARGON]), task or self.task(), self.context(attempt, fault))

    def real(self, atoms: Atoms, settings: Mapping[str, Any], mark: object = 0, **extra: Any) -> tuple[Any, Any, Any]:
        task = self.task([settings], mark, **extra)
        energy, forces, stress = cp2k.label(Frames.from_ase([atoms]), task, self.context())
        return energy[0], forces[0], stress[0]

    def folder(self, attempt: int = 0, task: Task | None = None) -> Path:
        return self.run / "tasks" / (task or self.task()).id / f"attempt-{attempt}"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", FILES / "job.inp")


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_good_run_gives_its_numbers_and_keeps_its_files(bench: Bench) -> None:
    energy, forces, stress = bench.fake("good")
    assert energy[0] == pytest.approx(-2293.7112, abs=1e-3)
    assert (forces.shape, stress.shape) == ((1, 4, 3), (1, 3, 3))
    cp2k.tidy(bench.folder().parent)
    kept = {p.name for p in bench.folder().iterdir()}
    assert {"input.inp", "output.out", "report.json"} <= kept
    assert not any("wfn" in name for name in kept)
    notes = cp2k.report(bench.task(), bench.context())
    assert (notes["rung"], notes["scf_steps"], notes["version"], notes["warnings"]) == ("template", 7, "2023.1", [])


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("garbage", EngineError, "The output is not CP2K's; it ends with"),
        ("empty", EngineError, "CP2K wrote no output"),
        ("unconverged", Unconverged, "SCF did not converge in 7 steps: the last gradient was 9e-07"),
        ("truncated", EngineError, "CP2K's output is cut off after SCF step 7; it ends with 'outer SCF loop converged"),
        ("nan", Unphysical, "CP2K's forces is not finite"),
        ("lost atom", Unphysical, "CP2K computed 3 atoms; the frame has 4"),
        ("exit code", EngineError, "ended with exit code 3"),
        ("abort", EngineError, "CP2K stopped: The number of electrons is odd, use the LSD option"),
        ("killed", EngineError, "CP2K was killed (signal 9), most often for want of memory, at SCF step 7"),
        ("mpirun killed", EngineError, "CP2K was killed (signal 9)"),
        ("crash", EngineError, "CP2K was ended by a segmentation fault (signal 11), at SCF step 7"),
        ("told to stop", MachineFault, "CP2K was told to stop (signal 15) from outside"),
        ("full", DiskFull, "There is no space left on the disk"),
        ("slots", MachineFault, "CP2K could not be started: There are not enough slots available"),
        (
            "no executable",
            MachineFault,
            "CP2K could not be started: mpirun was unable to find the specified executable",
        ),
    ],
)
def test_each_fault_has_its_true_cause_in_one_sentence(bench: Bench, fault: str, kind: type, says: str) -> None:
    with pytest.raises(kind) as caught:
        bench.fake(fault)
    assert says in str(caught.value)
    assert type(caught.value) is kind
    assert "attempt-0)" in str(caught.value)  # where its files are
    assert "\n" not in str(caught.value)


def test_a_hang_is_ended_with_all_that_it_started(bench: Bench) -> None:
    task = bench.task(timeout=1.5)
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"CP2K was stopped after 1\.5 s, at SCF step 7"):
        bench.fake("hang", task=task)
    assert time.monotonic() - start < 20
    child = int((bench.folder(task=task) / "child").read_text())
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


@pytest.mark.parametrize(("settings", "refused"), [({"UKS": True}, True), ({"ROKS": ".TRUE."}, True), ({}, False)])
def test_another_treatment_of_spin_than_asked_for_is_refused(bench: Bench, settings: Any, refused: bool) -> None:
    task = bench.task([settings])
    if refused:
        with pytest.raises(Unphysical, match=r"computed (spin )?RKS; the template asks for (UKS|ROKS)"):
            bench.fake("good", task=task)
    else:
        bench.fake("good", task=task)
        assert cp2k.report(task, bench.context())["spin"] == "RKS"


def test_copies_under_the_launcher_of_another_mpi_are_the_machines_fault(bench: Bench) -> None:
    bench.fake("serial")
    with pytest.raises(MachineFault, match=r"CP2K ran on 1 MPI rank, and 2 were asked for: launch\.cp2k of the site"):
        bench.fake("serial", task=bench.task(mark=1, ranks=2))


def test_an_input_that_cp2k_refuses_is_not_given_to_it_again(bench: Bench) -> None:
    with pytest.raises(EngineError, match=r"CP2K stopped: The number of electrons is odd") as caught:
        bench.fake("refused", task=bench.task(["template", "more_steps", "smear"]))
    assert caught.value.final
    with pytest.raises(EngineError) as caught:
        bench.fake("refused", task=bench.task(["template", {"UKS": True}]))
    assert not caught.value.final  # this may be what it lacks
    with pytest.raises(EngineError) as caught:
        bench.fake("abort", task=bench.task(["template", "more_steps"]))
    assert not caught.value.final  # SCF had begun


def test_a_missing_program_is_the_machines_fault(bench: Bench) -> None:
    context = Context(bench.run, {"cp2k": ["no-such-cp2k"]})
    with pytest.raises(MachineFault, match="no-such-cp2k was not found on this machine"):
        cp2k.label(Frames.from_ase([ARGON]), bench.task(), context)
    with pytest.raises(MachineFault, match=r"The site has no launch\.cp2k"):
        cp2k.label(Frames.from_ase([ARGON]), bench.task(ranks=2), bench.context())


LADDER = ["template", {"SCF/MAX_SCF": 55, "restart": True}, {"SCF/MAX_SCF": 77}]


def test_each_attempt_takes_its_rung_and_the_third_converges(bench: Bench) -> None:
    task = bench.task(LADDER)
    for attempt in range(2):
        with pytest.raises(Unconverged):
            bench.fake("third rung", attempt, task)
    restarted = (bench.folder(1, task) / "input.inp").read_text()
    assert "WFN_RESTART_FILE_NAME ../attempt-0/frame-RESTART.wfn" in restarted
    assert "MAX_SCF 55" in restarted
    bench.fake("third rung", 2, task)
    assert [cp2k.report(task, bench.context(k))["rung"] for k in range(3)] == ["template", "own", "own"]
    assert [cp2k.report(task, bench.context(k))["restarted"] for k in range(3)] == [False, True, False]
    assert cp2k.report(task, bench.context(2))["settings"] == {"SCF/MAX_SCF": 77}
    assert "did not converge" in cp2k.report(task, bench.context(1))["cause"]
    assert [p.parent.name for p in sorted(bench.run.rglob("*.wfn"))] == ["attempt-1", "attempt-2"]  # not stored yet
    cp2k.tidy(bench.folder(0, task).parent)
    assert not list(bench.run.rglob("*.wfn"))


def test_no_start_from_a_wavefunction_of_another_failure(bench: Bench) -> None:
    task = bench.task(LADDER)
    with pytest.raises(Unphysical):
        bench.fake("nan", 0, task)
    with pytest.raises(Unconverged):
        bench.fake("unconverged", 1, task)
    assert "RESTART_FILE" not in (bench.folder(1, task) / "input.inp").read_text()


def test_what_an_interrupted_worker_finished_is_not_done_again(bench: Bench) -> None:
    first = bench.fake("good")
    again = bench.fake("crash")  # would fail if it ran
    np.testing.assert_array_equal(first[1], again[1])


def test_what_a_restarted_attempt_finished_is_not_done_again(bench: Bench) -> None:
    """Whether the wavefunction it started from is still there, or went when the label was stored."""
    task = bench.task(LADDER)
    with pytest.raises(Unconverged):
        bench.fake("unconverged", 0, task)
    first = bench.fake("good", 1, task)
    assert "WFN_RESTART_FILE_NAME" in (bench.folder(1, task) / "input.inp").read_text()
    for _ in range(2):
        again = bench.fake("crash", 1, task)  # would fail if it ran
        np.testing.assert_array_equal(first[1], again[1])
        assert cp2k.report(task, bench.context(1))["restarted"]
        cp2k.tidy(bench.folder(0, task).parent)


@pytest.mark.parametrize(("fault", "kind"), [("unconverged", Unconverged), ("nan", Unphysical)])
def test_what_ended_without_a_result_fails_again_without_running(bench: Bench, fault: str, kind: type) -> None:
    task = bench.task(LADDER)
    with pytest.raises(Unconverged):
        bench.fake("unconverged", 0, task)
    said = []
    for k in range(2):
        with pytest.raises(kind) as caught:
            bench.fake(fault if k == 0 else "good", 1, task)
        said.append((str(caught.value), cp2k.report(task, bench.context(1))["restarted"]))
    assert said[0] == said[1]
    assert said[0][1]


@pytest.mark.parametrize("fault", ["killed", "truncated", "unconverged"])
def test_an_attempt_that_is_made_again_starts_from_the_same_wavefunction(bench: Bench, fault: str) -> None:
    task = bench.task(LADDER)
    with pytest.raises(Unconverged):
        bench.fake("unconverged", 0, task)
    with pytest.raises(EngineError):
        bench.fake(fault, 1, task)
    (bench.folder(1, task) / "output.out").write_text("")  # as if it had been killed before its end
    bench.fake("good", 1, task)
    assert cp2k.report(task, bench.context(1))["restarted"]


def test_a_frame_that_was_given_up_is_computed_again_and_its_old_files_are_kept(bench: Bench) -> None:
    home = bench.folder().parent
    for n in (1, 2):
        with pytest.raises(Unconverged):
            bench.fake("unconverged")
        cp2k.give_up(home)
        assert not list(home.rglob("*.wfn"))
        assert [p.name for p in sorted(home.glob("before-*"))] == [f"before-{k}" for k in range(1, n)]
    bench.fake("good")
    assert "FAILED to converge" in (home / "before-1/attempt-0/output.out").read_text()
    assert "FAILED to converge" in (home / "before-2/attempt-0/output.out").read_text()
    assert not (home / "given-up").exists()


def test_what_an_interrupted_worker_left_unfinished_is_done_again(bench: Bench) -> None:
    with pytest.raises(EngineError):
        bench.fake("truncated")
    bench.fake("good")
    assert (bench.folder() / "started").read_text() == "1\n"  # nothing of the old attempt is left


def test_a_finished_output_counts_only_for_the_same_input_and_data(bench: Bench) -> None:
    bench.fake("good")
    basis = bench.run / "cp2k" / "BASIS"
    basis.write_text(basis.read_text().replace("1.7  0.5", "1.8  0.5"))
    os.utime(bench.run / "cp2k" / "job.inp")
    with pytest.raises(EngineError, match="segmentation fault"):
        bench.fake("crash")


def test_threads_are_set(bench: Bench) -> None:
    task = bench.task(threads=3)
    bench.fake("good", task=task)
    assert (bench.folder(task=task) / "started").read_text() == "3\n"


def test_forces_of_too_coarse_a_grid_are_refused(bench: Bench) -> None:
    with pytest.raises(Unphysical, match="its grid is too coarse for these potentials; raise MGRID/CUTOFF") as caught:
        bench.fake("coarse")
    assert "forces sum to 5.14 eV/Å" in str(caught.value)
    assert caught.value.final  # no other rung has another grid
    for last, final in (
        ({"MGRID/CUTOFF": 800}, False),
        ({"XC/XC_GRID/XC_DERIV": "NN50_SMOOTH"}, False),
        ({"SCF/MAX_SCF": 800}, True),
        ("smear", True),
    ):
        task = bench.task(ladder=["template", "more_steps", last])
        with pytest.raises(Unphysical) as caught:
            bench.fake("coarse", task=task)
        assert caught.value.final is final
        with pytest.raises(Unphysical) as caught:
            bench.fake("coarse", 2, task)  # the last rung has none after it
        assert caught.value.final


@pytest.mark.parametrize(
    ("ladder", "final"),
    [
        (["template"], True),
        (["template", "more_steps", {"SCF/MIXING/ALPHA": 0.1}], True),
        (["template", "smear"], False),
        (["template", {"SCF/SMEAR": {"_": "T"}, "SCF/ADDED_MOS": 40}], False),
    ],
)
def test_only_a_rung_of_other_physics_gives_electrons_more_room(bench: Bench, ladder: list[Any], final: bool) -> None:
    task = bench.task(ladder)
    for _ in range(2):  # the second finds the first one's output
        with pytest.raises(Unphysical, match="too few orbitals for the smeared electrons") as caught:
            bench.fake("no room", task=task)
        assert caught.value.final is final
        assert str(bench.folder(task=task)) in str(caught.value)
    assert (bench.folder(task=task) / "started").read_text() == "1\n"


def test_several_frames_come_back_in_order(bench: Bench) -> None:
    found = cp2k.label(Frames.from_ase([ARGON, ARGON]), bench.task(), bench.context(0, "good"))
    assert found[1].shape == (2, 4, 3)


def test_another_frame_is_not_taken_for_this_one(bench: Bench) -> None:
    moved = ARGON.copy()
    moved.positions[2, 0] += 0.001
    with pytest.raises(Unphysical, match="other positions"):
        cp2k.label(Frames.from_ase([moved]), bench.task(), bench.context(0, "good"))


# ----------------------------------------------------------------------------------------------- the real CP2K

LOW = {"MGRID/CUTOFF": 150, "MGRID/REL_CUTOFF": 30}
TIGHT = {**LOW, "SCF/EPS_SCF": 1e-7, "SCF/OUTER_SCF/EPS_SCF": 1e-7}


@pytest.fixture
def argon(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", TEMPLATES / "ar_d3.inp")


@pytest.mark.cp2k
def test_energy_forces_and_stress_are_those_of_ases_client(argon: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _compare_with_ase(argon, ARGON, TIGHT, monkeypatch)


def _compare_with_ase(bench: Bench, atoms: Atoms, settings: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the same input through ``cp2k_shell``, driven by ASE."""
    from ase.calculators.cp2k import CP2K
    from ase.stress import voigt_6_to_full_3x3_stress

    energy, forces, stress = bench.real(atoms, settings)
    tree = read_template(bench.run / "cp2k" / bench.name).with_rung(settings)
    tree.made("FORCE_EVAL").put("STRESS_TENSOR", "ANALYTICAL")
    monkeypatch.chdir(bench.run / "cp2k")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    nothing = dict.fromkeys(
        ("basis_set", "basis_set_file", "potential_file", "pseudo_potential", "cutoff", "max_scf", "xc", "print_level")
    )
    given = {"inp": "\n".join(tree.write()), "force_eval_method": None, "stress_tensor": False, "poisson_solver": None}
    client = CP2K(label="client", command="cp2k.psmp -s", **nothing, **given)
    try:
        other = atoms.copy()
        other.calc = client
        assert energy == pytest.approx(other.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(forces, other.get_forces(), atol=1e-6)
        np.testing.assert_allclose(stress, voigt_6_to_full_3x3_stress(other.get_stress()), atol=1e-6)
    finally:
        client.close()


def _check_derivatives(bench: Bench, atoms: Atoms, settings: Mapping[str, Any], offset: float = 1e-3) -> None:
    """Check forces and stress against central differences of the energy: 1e-3 eV/Å, 1e-3 eV/Å^3.

    They are its derivatives on a coarse grid too, where their sum would refuse them.
    """
    _, forces, stress = bench.real(atoms, settings)

    def slope(name: str, step: float, change: Any) -> float:
        found = []
        for sign in (1, -1):
            moved = atoms.copy()
            change(moved, sign * step)
            found.append(bench.real(moved, settings, f"{name}{sign}")[0])
        return float(found[0] - found[1]) / (2 * step)

    def move(moved: Atoms, step: float) -> None:
        moved.positions[1, 0] += step

    assert forces[1, 0] == pytest.approx(-slope("x", 0.005, move), abs=1e-3)
    for i, j in ((0, 0), (0, 1)):

        def strain(moved: Atoms, step: float, i: int = i, j: int = j) -> None:
            tensor = np.eye(3)
            tensor[i, j] += step / 2
            tensor[j, i] += step / 2
            moved.set_cell(atoms.cell.array @ tensor, scale_atoms=True)

        assert stress[i, j] == pytest.approx(slope(f"e{i}{j}", 0.003, strain) / atoms.get_volume(), abs=offset)


SMEARED = {"SCF/EPS_SCF": 1e-8, "SCF/SMEAR/ELECTRONIC_TEMPERATURE": "[K] 3000"}


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let forces of coarse grids pass: they are the energy's derivatives all the same."""
    monkeypatch.setattr(cp2k, "NET_FORCE", np.inf)


@pytest.mark.cp2k
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "atoms", "settings"),
    [
        ("ar_d3", ARGON, {**TIGHT, "MGRID/CUTOFF": 200}),
        ("al", rattled("Al", a=4.05), {**LOW, **SMEARED, "SCF/ADDED_MOS": 10}),
        # at 850 Ry strain does not change how many points the grid has: there the energy jumps
        ("ni", rattled("Ni", a=3.52, by=0.03), {**SMEARED, "MGRID/CUTOFF": 850, "SCF/ADDED_MOS": 20}),
        ("nacl_pbe", rattled("NaCl", "rocksalt", a=5.64), {"MGRID/CUTOFF": 300, "SCF/EPS_SCF": 1e-8}),
    ],
    ids=["argon", "aluminium", "nickel", "salt"],
)
def test_forces_and_stress_are_derivatives_of_the_energy(
    name: str, atoms: Atoms, settings: Mapping[str, Any], tmp_path: Path, coarse: None
) -> None:
    _check_derivatives(Bench(tmp_path / "run", TEMPLATES / f"{name}.inp"), atoms, settings)


@pytest.mark.cp2k
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "atoms", "settings"),
    [
        ("nacl_pbe", rattled("NaCl", "rocksalt", a=5.64), {"MGRID/CUTOFF": 300, "SCF/EPS_SCF": 1e-8}),
        ("ni", rattled("Ni", a=3.52), {**SMEARED, "MGRID/CUTOFF": 250, "SCF/ADDED_MOS": 20}),
        ("al", rattled("Al", a=4.05), {**SMEARED, **LOW, "SCF/ADDED_MOS": 10}),
    ],
    ids=["salt", "nickel", "aluminium"],
)
def test_other_templates_agree_with_ases_client(
    name: str,
    atoms: Atoms,
    settings: Mapping[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    coarse: None,
) -> None:
    _compare_with_ase(Bench(tmp_path / "run", TEMPLATES / f"{name}.inp"), atoms, settings, monkeypatch)


@pytest.mark.cp2k
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.inp")), ids=lambda p: p.stem)
def test_every_template_gives_a_single_point(path: Path, tmp_path: Path, coarse: None) -> None:
    """On a grid that is good for nothing but to see that CP2K takes the input, and that SCF converges."""
    crystals = {"kcl": ("KCl", "rocksalt", 6.29), "nb": ("Nb", "bcc", 3.3), "ni": ("Ni", "fcc", 3.52)}
    crystals |= {"nacl": ("NaCl", "rocksalt", 5.64), "al": ("Al", "fcc", 4.05), "ar": ("Ar", "fcc", 5.4)}
    kind = path.stem.partition("_")[0]
    settings: dict[str, Any] = {"MGRID/CUTOFF": 120, "MGRID/REL_CUTOFF": 30}
    if kind == "bmim":
        atoms = molecule("BF3") + molecule("CH3CN")
        atoms.positions[4:] += [0, 0, 3.6]
        atoms.set_cell([7.5] * 3)
        atoms.pbc = True
    else:
        name, lattice, a = crystals[kind]
        atoms = rattled(name, lattice, a=a)
    if kind in ("al", "nb", "ni"):
        settings |= {**SMEARED, "SCF/EPS_SCF": 1e-5, "SCF/ADDED_MOS": 12}
    forces = Bench(tmp_path / "run", path).real(atoms, settings)[1]
    assert forces.shape == (len(atoms), 3)


@pytest.mark.cp2k
def test_cp2k_takes_the_input_of_every_rung_and_gives_the_same(argon: Bench) -> None:
    root = read_template(TEMPLATES / "ar_d3.inp").root
    energies = [
        argon.real(ARGON, {**resolve(name, root).settings, **LOW}, name)[0]
        for name in ("template", "more_steps", "ot_cg", "diagonalise", "smear")
    ]
    np.testing.assert_allclose(energies, energies[0], atol=1e-3)


@pytest.mark.cp2k
@pytest.mark.slow
def test_cp2k_takes_the_rungs_of_a_metal(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", TEMPLATES / "al.inp")
    root = read_template(TEMPLATES / "al.inp").root
    atoms = rattled("Al", a=4.05)
    energies = [
        bench.real(atoms, {**resolve(name, root).settings, **LOW, "SCF/ADDED_MOS": 10}, name)[0]
        for name in ("template", "more_steps", "ot_cg", "diagonalise", "smear")
    ]
    np.testing.assert_allclose(energies, energies[0], atol=1e-3)


@pytest.mark.cp2k
def test_what_cp2k_did_not_converge_is_refused_and_the_next_rung_goes_on_from_it(argon: Bench) -> None:
    ladder = [{**LOW, "SCF/MAX_SCF": 2, "SCF/OUTER_SCF/MAX_SCF": 1}, {**LOW, "restart": True}]
    task = argon.task(ladder)
    with pytest.raises(Unconverged, match=r"SCF did not converge in 4 steps: the last gradient was 0\.0"):
        cp2k.label(Frames.from_ase([ARGON]), task, argon.context(0))
    assert "PROGRAM ENDED" in (argon.folder(0, task) / "output.out").read_text()  # with exit code 0
    cp2k.label(Frames.from_ase([ARGON]), task, argon.context(1))
    notes = cp2k.report(task, argon.context(1))
    assert notes["restarted"]
    assert notes["scf_steps"] < 7  # it takes 7 from the beginning
    cp2k.tidy(argon.folder(1, task).parent)
    assert not list(argon.run.rglob("*.wfn*"))


@pytest.mark.cp2k
def test_without_an_outer_loop_too(argon: Bench) -> None:
    with pytest.raises(Unconverged, match=r"did not converge in 2 steps: the last change was 0\.000"):
        argon.real(ARGON, {**LOW, "SCF/MAX_SCF": 2, "SCF/OUTER_SCF": None})


@pytest.mark.cp2k
def test_the_words_of_cp2ks_own_abort(argon: Bench) -> None:
    with pytest.raises(EngineError, match=r"CP2K stopped: .*odd number of electrons"):
        argon.real(ARGON, {**LOW, "CHARGE": 1})
    assert json.loads(next(argon.run.rglob("report.json")).read_text())["unconverged"] is False


@pytest.mark.cp2k
@pytest.mark.requires("/usr/bin/mpirun")
def test_two_ranks_give_the_same(argon: Bench) -> None:
    one = argon.real(ARGON, TIGHT, "one")
    argon.launch = MPIRUN
    two = argon.real(ARGON, TIGHT, "two", ranks=2)
    assert "message passing processes                             2" in next(
        p.read_text()
        for p in argon.run.rglob("output.out")
        if "processes                             2" in p.read_text()
    )
    assert two[0] == pytest.approx(one[0], abs=1e-6)
    np.testing.assert_allclose(two[1], one[1], atol=1e-5)


@pytest.mark.cp2k
@pytest.mark.requires("/usr/bin/mpirun")
def test_mpi_ranks_end_with_a_timeout(argon: Bench) -> None:
    argon.launch = MPIRUN
    with pytest.raises(EngineError, match="CP2K was stopped after 1 s"):
        argon.real(ARGON, {"MGRID/CUTOFF": 2000}, ranks=2, timeout=1)
    folder = str(next(argon.run.rglob("input.inp")).parent)
    for _ in range(100):
        if not _inside(folder):
            break
        time.sleep(0.05)
    assert _inside(folder) == []


def _inside(folder: str) -> list[str]:
    """Return the processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == folder and "Z" not in (process / "stat").read_text().split()[2]:
                found.append(process.name)
        except OSError:
            continue
    return found
