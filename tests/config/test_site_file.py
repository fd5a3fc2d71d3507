"""Site files, and a campaign against the site it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.config import (
    Loaded,
    check_together,
    dump,
    load_campaign,
    load_site,
    site_names,
    site_path,
    template_path,
)
from campaign.config.site_checks import check_driver_filled_in
from campaign.errors import InputError

GOOD = """\
site: cluster
description: A cluster.
executors:
  cpu:
    provider: slurm
    cores: 4
    cores_per_worker: 2
    walltime: 02:00:00
    options: {partition: main}
  gpu: {provider: pbs, gpus: 2, cores: 8, workers: 2}
stages: {default: cpu, train: gpu}
launch:
  lammps: [srun, -n, "{ranks}"]
environment: [module load x]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "site.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_site(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD))
    assert site.executor_for("sample") == "cpu"
    assert site.executor_for("train") == "gpu"
    assert site.cores_per_node("cpu") == 4
    assert site.workers_per_node("cpu") == 2
    assert site.executors["cpu"].walltime == "02:00:00"
    assert load_site(write(tmp_path, dump(site))) == site


def test_the_drivers_job_has_one_core_where_nothing_is_written(tmp_path: Path) -> None:
    text = GOOD + "driver: {provider: slurm, walltime: 24:00:00, options: {account: <project>}}\n"
    site = load_site(write(tmp_path, text))
    assert site.driver is not None
    assert site.driver.cores_of_node == 1
    (unset,) = check_driver_filled_in(site)
    assert unset.startswith("site cluster: driver.options.account: it is not set, got <project>; campaign sites")
    assert check_driver_filled_in(load_site(write(tmp_path, text.replace("<project>", "me")))) == []
    assert check_driver_filled_in(load_site(write(tmp_path, GOOD))) == []
    site = load_site(write(tmp_path, text.replace("24:00:00", "24:00:00, cores: auto")))  # as runs once wrote it out
    assert site.driver is not None
    assert site.driver.cores_of_node == 1


def test_pbs_counts_seconds(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD.replace("provider: pbs,", "provider: pbs, walltime: 00:30:30,")))
    assert site.executors["gpu"].seconds == 1830


def test_cores_that_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    x, y = "{provider: local, cores_per_worker: 4}", "{provider: pbs, workers: 5, cores_per_worker: 3}"
    site = load_site(write(tmp_path, f"site: a\nexecutors: {{x: {x}, y: {y}}}\nstages: {{default: x}}\n"))
    assert site.cores_per_node("x") == 6
    assert site.workers_per_node("x") == 1
    assert site.cores_per_node("y") == 15
    assert site.workers_per_node("y") == 5


def test_slurm_starts_workers_on_every_node_and_pbs_asks_for_known_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from campaign.runtime.providers import provider

    x = "{provider: slurm, nodes: 3, cores: 4, start: [--cpu-bind=none, -c, '4']}"
    y = "{provider: pbs, nodes: 2, workers: 5, cores_per_worker: 3, start: [--ppn, '1']}"
    site = load_site(write(tmp_path, f"site: a\nexecutors: {{x: {x}, y: {y}}}\nstages: {{default: x}}\n"))
    slurm, pbs = (provider(site.executors[name], "") for name in "xy")
    assert "srun --ntasks 3 -l --cpu-bind=none -c 4 bash" in slurm.launcher("work", 1, slurm.nodes_per_block)
    assert pbs.cpus_per_node == 15
    assert "mpiexec --cpu-bind none --ppn 1 -n $WORKERCOUNT" in pbs.launcher("work", 1, pbs.nodes_per_block)


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "got", "remedy"),
    [
        ("description", "desription", 2, "desription", "'A cluster.'", "'description'"),
        ("provider: slurm", "provider: slrum", 5, "executors.cpu.provider", "'slrum'", "'slurm'"),
        ("cores: 4", "cores: four", 6, "executors.cpu.cores", "'four'", "whole number"),
        ("cores: 4", "cores: 0", 6, "executors.cpu.cores", "0", "at least 1"),
        ("cores: 4", "cores: '4'", 6, "executors.cpu.cores", "'4'", "remove the quotes"),
        ("    cores: 4\n", "", 4, "executors.cpu.cores", "auto", "cores: 64"),
        ("02:00:00", "2h", 8, "executors.cpu.walltime", "'2h'", "HH:MM:SS"),
        ("02:00:00", "00:00:00", 8, "executors.cpu.walltime", "00:00:00", "write 01:00:00"),
        ("02:00:00", "00:00:30", 8, "executors.cpu.walltime", "00:00:30", "write 00:01:00"),
        ("02:00:00", "01:59:10", 8, "executors.cpu.walltime", "01:59:10", "write 02:00:00"),
        ("stages:", "driver: {provider: slrum}\nstages:", 11, "driver.provider", "'slrum'", "'slurm'"),
        ("stages:", "driver: {provider: slurm, cores: 0}\nstages:", 11, "driver.cores", "0", "at least 1"),
        (
            "stages:",
            "driver: {provider: slurm, options: {partiton: x}}\nstages:",
            11,
            "driver.options.partiton",
            "'x'",
            "'partition'",
        ),
        (
            "stages:",
            "driver: {provider: slurm, walltime: 00:00:00}\nstages:",
            11,
            "driver.walltime",
            "00:00:00",
            "write 01:00:00",
        ),
        ("stages:", "driver: {provider: local, nodes: 2}\nstages:", 11, "driver.nodes", "2", "write nodes: 1"),
        ("02:00:00", "02:00:00\n    drain: 02:00:00", 9, "executors.cpu.drain", "02:00:00", "less than the walltime"),
        ("02:00:00", "02:00:00\n    drain: soon", 9, "executors.cpu.drain", "'soon'", "HH:MM:SS"),
        ("02:00:00", "02:00:00\n    binding: tight", 9, "executors.cpu.binding", "'tight'", "block-reverse"),
        ("partition: main", "partion: main", 9, "executors.cpu.options.partion", "'main'", "'partition'"),
        ("workers: 2}", "workers: 9}", 10, "executors.gpu.workers", "9", "write 8"),
        ("train: gpu", "train: gpus", 11, "stages.train", "'gpus'", "'gpu'"),
        ("train: gpu", "trian: gpu", 11, "stages.trian", "gpu", "'train'"),
        ('[srun, -n, "{ranks}"]', "srun -n 4", 13, "launch.lammps", "'srun -n 4'", "[ ]"),
        ('[srun, -n, "{ranks}"]', "[srun, -n, {ranks}]", 13, "launch.lammps[2]", "ranks", '"{ranks}"'),
        ('[srun, -n, "{ranks}"]', "[srun]", 13, "launch.lammps", "srun", '"{ranks}"'),
        ("{ranks}", "{rank}", 13, "launch.lammps[2]", "'{rank}'", '"{ranks}"'),
        ('srun, -n, "{ranks}"', '"srun -n {ranks}"', 13, "launch.lammps[0]", "srun -n", '"srun", "-n"'),
        ("  lammps:", "  lamps:", 13, "launch.lamps", "srun", "'lammps'"),
        ("  gpu:", "  'a b;c': {provider: local}\n  gpu:", 10, "executors.'a b;c'", "'a b;c'", "write another"),
        (
            "partition: main",
            r'partition: "main\n#SBATCH -w n1"',
            9,
            "executors.cpu.options.partition",
            "main",
            "scheduler_op",
        ),
        ("cores_per_worker: 2", "cores_per_worker: 8", 7, "executors.cpu.cores_per_worker", "8", "write 4 or less"),
        ("[module load x]", "[x]\nscratch: tmp", 15, "scratch", "'tmp'", "/local/scratch"),
        ("environment", "  cp2k: [/usr/bin/mpirun, cp2k.psmp]\nenvironment", 14, "launch.cp2k", "mpirun", '"{ranks}"'),
        ("environment", "  cp2k: [mpirun.openmpi, cp2k]\nenvironment", 14, "launch.cp2k", "openmpi", '"{ranks}"'),
        ("environment", '  cp2k: [srun, -n, "{ranks}"]\nenvironment', 14, "launch.cp2k", "srun", "cp2k.psmp"),
        ("train: gpu", "train: gpu, learn: gpu", 11, "stages.learn", "gpu", "remove it"),
        ("[module load x]", "[3]", 14, "environment[0]", "3", "quotes"),
        ("[module load x]", "[x]\nroots: [/data]", 15, "roots", "/data", "the keys here are"),
        ("provider: pbs,", "provider: local, nodes: 3,", 10, "executors.gpu.nodes", "3", "write nodes: 1"),
        ("[module load x]", "[x]\ntemperature: 300", 15, "temperature", "300", "the keys here are"),
    ],
)
def test_one_wrong_thing(tmp_path: Path, old: str, new: str, line: int, key: str, got: str, remedy: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_site(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:{line}: {key}: ")
    what, _, rest = problem.partition(", got ")
    assert what
    assert got in rest
    assert remedy in rest


def test_no_such_site() -> None:
    with pytest.raises(InputError, match="'locla'; did you mean 'local'"):
        load_site("locla")
    with pytest.raises(InputError, match=r"none\.yaml:1: file: there is no such file"):
        load_site("none.yaml")


def test_sites_that_come_along_are_right() -> None:
    assert {"local", "slurm"} <= set(site_names())
    for name, text in site_names().items():
        site = load_site(name)
        assert site.name == name
        assert text
        for executor, spec in site.executors.items():  # GPUs and bindings go round
            assert site.workers_per_node(executor) * spec.cores_per_worker <= site.cores_per_node(executor)
            assert not spec.gpus or site.workers_per_node(executor) == spec.gpus
            assert not spec.binding.startswith("list:") or spec.binding.count(":") == site.workers_per_node(executor)


def test_no_srun_of_theirs_takes_cores_away() -> None:
    """``--cpus-per-task`` implies ``--exact``: every task of a node would start on the same first cores."""
    for name in site_names():
        site = load_site(name)
        lines = [*site.launch.values(), *(spec.start for spec in site.executors.values())]
        assert not any(word.startswith(("--cpus-per-task", "-c", "--exact")) for line in lines for word in line)


@pytest.mark.parametrize(("name", "cores"), [("perlmutter", 64), ("polaris", 32)])
def test_workers_keep_to_whole_cores_next_to_their_gpu(name: str, cores: int) -> None:
    """Of two threads a core, and GPU 0 at the last quarter of the cores: Parsl's block-reverse takes both for cores."""
    binding = load_site(name).executors["gpu"].binding
    each = cores // 4
    for gpu, part in enumerate(binding.removeprefix("list:").split(":")):
        ranges = [tuple(map(int, span.split("-"))) for span in part.split(",")]
        first = (3 - gpu) * each
        assert ranges == [(first, first + each - 1), (first + cores, first + cores + each - 1)]


@pytest.fixture
def quickstart() -> Loaded:
    return load_campaign(template_path("quickstart"))


def changed(folder: Path, old: str, new: str) -> Loaded:
    """Return quickstart with one change."""
    text = template_path("quickstart").read_text()
    assert old in text
    (folder / "potentials").mkdir(exist_ok=True)
    (folder / "potentials/nacl_bmhtf.lmp").write_text("# elements: Na Cl\npair_style zero 5\n")
    (folder / "campaign.yaml").write_text(text.replace(old, new, 1))
    return load_campaign(folder / "campaign.yaml")


def test_quickstart_runs_here(quickstart: Loaded) -> None:
    assert check_together(quickstart, load_site("local")) == []


def test_more_ranks_than_cores(tmp_path: Path) -> None:
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 5\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, GOOD)))
    line = loaded.path.read_text().splitlines().index("    ranks: 5") + 1
    assert problem.startswith(f"{loaded.path}:{line}: sample[0].ranks: ")
    assert "4 cores, got 5; write 4 or less" in problem


def test_more_ranks_than_a_worker_has_cores(tmp_path: Path) -> None:
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 32\n")
    text = GOOD.replace("    cores: 4\n    cores_per_worker: 2\n", "    cores: 64\n    cores_per_worker: 1\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, text)))
    line = loaded.path.read_text().splitlines().index("    ranks: 32") + 1
    assert problem == (
        f"{loaded.path}:{line}: sample[0].ranks: a worker of executor cpu of site cluster has 1 core, got 32; "
        "write cores_per_worker: 32 for executor cpu in the site file (then a node runs 2 such walkers), or ranks: 1"
    )
    remedied = load_site(write(tmp_path, text.replace("cores_per_worker: 1", "cores_per_worker: 32")))
    assert check_together(loaded, remedied) == []
    assert remedied.workers_per_node("cpu") == 2


def test_two_ranks_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)))
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 2\n")
    (problem,) = check_together(loaded, load_site("local"))
    assert "write cores_per_worker: 2 for executor cpu in the site file (then a node runs 1 such walker)" in problem
    text = site_path("local").read_text()
    assert "cores_per_worker: 1 " in text
    local = load_site(write(tmp_path, text.replace("cores_per_worker: 1 ", "cores_per_worker: 2 ")))
    assert check_together(loaded, local) == []


def test_a_worker_with_more_cores_than_this_machine_is_refused(
    tmp_path: Path, quickstart: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None would ever start, and the campaign would wait for it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)))
    text = "site: a\nexecutors: {x: {provider: local, cores_per_worker: 3}}\nstages: {default: x}\n"
    problems = check_together(quickstart, load_site(write(tmp_path, text)))
    assert problems
    assert "more cores than this machine has, got 3; set 'cores_per_worker: 2' or less for x" in problems[0]
    assert check_together(quickstart, load_site(write(tmp_path, text.replace("3", "2")))) == []


def test_ranks_without_a_launch_command(tmp_path: Path) -> None:
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 2\n")  # GOOD: 2 cores a worker
    text = GOOD.replace('launch:\n  lammps: [srun, -n, "{ranks}"]\n', "")
    (problem,) = check_together(loaded, load_site(write(tmp_path, text)))
    assert "sample[0].ranks: site cluster has no command to launch LAMMPS" in problem
    assert "got 2; write 'lammps: [mpiexec" in problem


def test_distillation_needs_the_device_of_the_training(tmp_path: Path) -> None:
    """Its networks are trained as those of ``train`` are, on the executor of its own stage."""
    more = "distill: {method: uq, members: 2, iterations: 1, train_fraction: 0.5}\nlabel: {engine: pool}\n"
    path = changed(tmp_path, "label:\n  engine: lammps\n", more).path
    path.write_text(path.read_text().replace("train:\n", "train:\n  device: cuda\n"))
    loaded = load_campaign(path)
    (problem,) = check_together(loaded, load_site(write(tmp_path, GOOD)))
    assert (
        "train.device: distill trains on the same device, and its executor cpu of site cluster has no GPUs" in problem
    )
    assert problem.endswith("write 'distill: gpu' under stages of the site file")
    both = GOOD.replace("train: gpu", "train: gpu, distill: gpu")
    assert check_together(loaded, load_site(write(tmp_path, both))) == []
    for name in site_names():
        site = load_site(name)
        assert site.executor_for("distill") == site.executor_for("train"), name


def test_training_on_gpus_or_processes_that_the_site_has_not(tmp_path: Path) -> None:
    cpus = GOOD.replace(", train: gpu", "")
    loaded = changed(tmp_path, "  model: schnet\n  members: 2\n", "  model: schnet\n  members: 2\n  device: cuda\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, cpus)))
    assert "train.device: executor cpu of site cluster has no GPUs, got cuda; write 'device: cpu', or" in problem
    assert check_together(loaded, load_site(write(tmp_path, GOOD))) == []
    keys = "  model: schnet\n  members: 2\n  features: 32\n  interactions: 2\n"
    ani = changed(tmp_path, keys, "  model: ani\n  device: cuda\n")
    assert len(check_together(ani, load_site(write(tmp_path, cpus)))) == 1
    loaded = changed(tmp_path, "  batch: 1\n  rate", "  batch: 4\n  processes: 4\n  rate")
    (problem,) = check_together(loaded, load_site(write(tmp_path, cpus)))  # 2 cores a worker, nodes of 4
    assert "train.processes: a worker of executor cpu of site cluster has 2 cores, got 4; write cores_per_" in problem
    assert problem.endswith("or processes: 2")
    wide = cpus.replace("cores_per_worker: 2", "cores_per_worker: 4")
    assert check_together(loaded, load_site(write(tmp_path, wide))) == []
    (problem,) = check_together(
        loaded, load_site(write(tmp_path, wide.replace('launch:\n  lammps: [srun, -n, "{ranks}"]\n', "")))
    )
    assert "train.processes: site cluster has no command to launch a training on several processes, got 4" in problem
    gpus = wide.replace("cores: 4\n", "cores: 4\n    gpus: 4\n").replace("cores_per_worker: 4", "cores_per_worker: 2")
    loaded_gpus = changed(tmp_path, "  batch: 1\n  rate", "  batch: 4\n  processes: 4\n  device: cuda\n  rate")
    found = check_together(loaded_gpus, load_site(write(tmp_path, gpus)))
    assert "a worker of executor cpu of site cluster has 2 GPUs, got 4; write fewer workers a node" in found[0]
    one = gpus.replace("cores_per_worker: 2", "cores_per_worker: 4")
    assert check_together(loaded_gpus, load_site(write(tmp_path, one))) == []
    loaded = changed(tmp_path, "  batch: 1\n  rate", "  batch: 4\n  processes: 4\n  rate")
    own = wide.replace("  lammps: [srun", "  train: [srun")
    assert check_together(loaded, load_site(write(tmp_path, own))) == []


def test_walkers_of_one_task_share_the_cores_of_a_worker(tmp_path: Path) -> None:
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 2\n    walkers_per_task: 4\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, GOOD)))  # nodes of 4 cores
    line = loaded.path.read_text().splitlines().index("    walkers_per_task: 4") + 1
    assert problem.startswith(f"{loaded.path}:{line}: sample[0].walkers_per_task: ")
    assert "a task of it 8 ranks, got 4 of 2 ranks; write 2 or less" in problem
    text = GOOD.replace("    cores: 4\n    cores_per_worker: 2\n", "    cores: 64\n    cores_per_worker: 4\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, text)))
    assert "write cores_per_worker: 8 for executor cpu in the site file (then a node runs 8 such tasks)" in problem
    assert problem.endswith("or walkers_per_task: 2")
    wide = text.replace("cores_per_worker: 4", "cores_per_worker: 8")
    assert check_together(loaded, load_site(write(tmp_path, wide))) == []
    (problem,) = check_together(
        loaded, load_site(write(tmp_path, wide.replace('launch:\n  lammps: [srun, -n, "{ranks}"]\n', "")))
    )
    assert "sample[0].walkers_per_task: site cluster has no command to launch LAMMPS" in problem


def test_stage_without_executor(tmp_path: Path, quickstart: Loaded) -> None:
    site = load_site(write(tmp_path, GOOD.replace("default: cpu", "sample: cpu, select: cpu, label: cpu")))
    (problem,) = check_together(quickstart, site)
    assert problem.startswith(f"{quickstart.path}:{quickstart.lines['validate']}: validate: ")
    with pytest.raises(InputError, match="default: cpu"):
        site.executor_for("validate")


def test_gpus_that_are_not_there(tmp_path: Path, quickstart: Loaded) -> None:
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    text = GOOD.replace("provider: pbs, gpus: 2", f"provider: local, gpus: {found + 1}")
    if not Path("/dev/kfd").exists():
        (problem,) = check_together(quickstart, load_site(write(tmp_path, text)))
        assert problem.startswith(f"{quickstart.path}:{quickstart.lines['train']}: train: ")
        assert f"got {found}; set 'gpus: 0'" in problem


CP2K = "label: {engine: cp2k, template: salt.inp, ranks: %d, threads: %d}"


def labelled(folder: Path, ranks: int, threads: int) -> Loaded:
    """Return the quickstart labelled by CP2K on so many ranks and threads."""
    (folder / "BASIS_SET").write_text("Na SZV\n 1\nCl SZV\n 1\n")
    (folder / "POTENTIAL").write_text("Na PBE\n 1\nCl PBE\n 1\n")
    kinds = "".join(f"&KIND {e}\nBASIS_SET SZV\nPOTENTIAL PBE\n&END\n" for e in ("Na", "Cl"))
    (folder / "salt.inp").write_text(f"&FORCE_EVAL\n&DFT\n&END\n&SUBSYS\n{kinds}&END\n&END\n")
    text = template_path("quickstart").read_text()
    rest = text[text.index("\nlabel:") :]
    after = rest[rest.index("\n\n") :]
    after = after[: after.index("  - {method: rdf")]  # it compares with labels by the sampling potential
    return changed(folder, rest, "\n" + CP2K % (ranks, threads) + after)


def test_single_points_fit_the_cores_of_a_worker(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD + "  # and\n"))
    assert check_together(labelled(tmp_path, 1, 2), site) == []  # workers of 2 cores
    loaded = labelled(tmp_path, 1, 3)
    (problem,) = check_together(loaded, site)
    line = next(k for k, row in enumerate(loaded.path.read_text().splitlines(), 1) if row.startswith("label:"))
    assert problem == (
        f"{loaded.path}:{line}: label.threads: a worker of executor cpu of site cluster has 2 cores, not 3, got 3; "
        "write cores_per_worker: 3 for executor cpu in the site file (then a node runs 1 single point), or use 2 here"
    )
    (problem,) = check_together(labelled(tmp_path, 1, 5), site)
    assert "does not fit a node of executor cpu of site cluster (4)" in problem


def test_single_points_on_ranks_need_a_launch_line_that_says_how_many(tmp_path: Path) -> None:
    for command in ("", "  cp2k: [cp2k.ssmp]\n"):
        text = GOOD.replace("environment:", command + "environment:")
        (problem,) = check_together(labelled(tmp_path, 2, 1), load_site(write(tmp_path, text)))
        assert "label.ranks: site cluster has no command to launch CP2K on several ranks, got 2" in problem
        assert check_together(labelled(tmp_path, 1, 1), load_site(write(tmp_path, text))) == []
    text = GOOD.replace("environment:", '  cp2k: [srun, -n, "{ranks}", cp2k.psmp]\nenvironment:')
    assert check_together(labelled(tmp_path, 2, 1), load_site(write(tmp_path, text))) == []
    (problem,) = check_together(labelled(tmp_path, 2, 2), load_site(write(tmp_path, text)))
    assert "got 2 ranks of 2 threads; write cores_per_worker: 4" in problem


WIDE = """
  wide: {provider: slurm, nodes: 2, nodes_per_worker: 2, cores: 4, launch: {lammps: [mpiexec, -n, "{ranks}"]}}
"""


def test_a_task_larger_than_a_node_goes_to_whole_nodes_or_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("stages:", WIDE.strip("\n") + "\nstages:")
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 8\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, GOOD)))
    assert (
        "executor cpu of site cluster has nodes of 4 cores, got 8; write 4 or less, or add an executor with" in problem
    )
    assert problem.endswith("'nodes: 2' and 'nodes_per_worker: 2' to the site file")
    assert check_together(loaded, load_site(write(tmp_path, text))) == []
    own = text.replace('launch:\n  lammps: [srun, -n, "{ranks}"]\n', "")
    assert check_together(loaded, load_site(write(tmp_path, own))) == []  # the executor's own command serves
    (problem,) = check_together(
        loaded, load_site(write(tmp_path, own.replace(', launch: {lammps: [mpiexec, -n, "{ranks}"]}', "")))
    )
    assert "has no command to launch LAMMPS on several ranks" in problem
    loaded = changed(tmp_path, "    walkers: 8\n", "    walkers: 8\n    ranks: 9\n")
    (problem,) = check_together(loaded, load_site(write(tmp_path, text)))
    assert "nodes of 4 cores, and no worker of whole nodes more than 8, got 9; write 8 or less" in problem
    assert problem.endswith("'nodes: 3' and 'nodes_per_worker: 3' to the site file")
    for ranks, problems in {8: 0, 9: 1}.items():
        found = check_together(
            labelled(tmp_path, ranks, 1),
            load_site(write(tmp_path, text.replace("lammps:", "cp2k:").replace('"{ranks}"]', '"{ranks}", cp2k.psmp]'))),
        )
        assert len(found) == problems
    assert "a single point on 9 cores does not fit a node" in found[0]


@pytest.mark.parametrize(
    ("old", "new", "key", "got", "remedy"),
    [
        ("nodes: 2,", "nodes: 3,", "nodes", "3", "write 4"),
        ("nodes: 2,", "nodes: 1,", "nodes", "1", "write 2"),
        ("provider: slurm, nodes: 2,", "provider: local,", "nodes_per_worker", "2", "remove it"),
        (", cores: 4", "", "cores", "auto", "cores: 64"),
        ("cores: 4", "cores: 4, workers: 2", "workers", "2", "remove it"),
        ("cores: 4", "cores: 4, start: [-x]", "start", "['-x']", "remove it"),
        ("mpiexec, -n", "mpiexec, -n, '{node_counts}'", "launch.lammps[2]", "'{node_counts}'", '"{node_count}"'),
    ],
)
def test_workers_of_whole_nodes_that_cannot_be(
    tmp_path: Path, old: str, new: str, key: str, got: str, remedy: str
) -> None:
    text = GOOD.replace("stages:", WIDE.strip("\n").replace(old, new) + "\nstages:")
    with pytest.raises(InputError) as caught:
        load_site(write(tmp_path, text))
    (problem,) = caught.value.problems
    assert f": executors.wide.{key}: " in problem
    assert f"got {got}" in problem
    assert remedy in problem.rpartition(";")[2]
