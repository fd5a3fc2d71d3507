"""What is found out about a site before core-hours are spent, without a batch system (with one: ``tests/slurm``)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from campaign.config import load_site, site_names
from campaign.engines import process
from campaign.errors import InputError
from campaign.runtime.parsl import ParslRunner
from campaign.runtime.patience import IDLE
from campaign.sites import ENDED, UNHEARD, _amiss, _silence, describe, refused, try_site
from campaign.stages import probe
from campaign.tasks import TOKEN_VARIABLE, Context, Record, Task, new_record


class Deaf:
    """A runner whose workers do not all answer: ``silent`` never, ``old`` with another Python."""

    def __init__(self, work: object, site: object, logs: Path, token: str, patience: float) -> None:
        self.name = site.executor_for("noop")  # type: ignore[attr-defined]
        self.records: list[Record] = []

    def submit(self, task: Task, context: Context) -> None:
        record = new_record(task, 0)
        record["versions"] |= {"python": "2.7"} if self.name == "old" else {"lammps": "1"}
        self.records = [] if self.name == "silent" else [record]

    def wait(self, seconds: float) -> list[Record]:
        return self.records

    def words(self) -> str:
        return ""

    def close(self) -> None:
        pass


def test_executors_that_do_not_answer_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("campaign.runtime.parsl.ParslRunner", Deaf)
    executors = ", ".join(f"{name}: {{provider: local}}" for name in ("silent", "old", "good"))
    (tmp_path / "site.yaml").write_text(f"site: s\nexecutors: {{{executors}}}\nstages: {{default: good}}\n")
    lines: list[str] = []
    with pytest.raises(InputError) as caught:
        lines.extend(try_site(load_site("site.yaml"), patience=0.2))
    assert [line.split(":")[0] for line in lines] == ["executor old", "executor good"]
    assert lines[1].endswith(", lammps 1")
    silent, old = caught.value.problems
    assert silent.startswith("site s: executor silent: no worker answered in 0.2 s; look at the queue")
    assert old.startswith("site s: executor old: the worker's Python 2.7 is not this one")


def test_what_is_printed_of_a_site_is_a_site_file(tmp_path: Path) -> None:
    from campaign.config import dump

    for name in site_names():
        site = load_site(name)
        lines = list(describe(site))
        assert any(line.startswith("executor ") for line in lines)
        text = dump(site) + "".join(f"# {line}\n" for line in lines)
        assert yaml.safe_load(text)["site"] == name


def test_a_block_is_described_by_what_the_batch_system_is_asked_for() -> None:
    text = "\n".join(describe(load_site("slurm")))
    assert "4 blocks at most at once, each a job of 1 node for 02:00:00" in text
    assert "64 workers of 1 core on a node" in text
    assert "no task starts in the last 360 s of a block" in text
    assert "#SBATCH --time=120" in text
    assert "lammps on 2 ranks: srun --mpi=pmi2 --overlap --nodes=1 " in text
    assert " -n 2 python ..." in text


def test_a_folder_that_takes_no_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    assert probe.no_room(tmp_path) == []
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError) as caught:
        list(try_site(load_site("local"), 1.0, tmp_path))
    (problem,) = caught.value.problems
    assert f"4 MB could not be written into {tmp_path} ({os.strerror(errno.EDQUOT)}); make room" in problem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("held", ""),
        ("free", "holds on one node only (Lustre mounted with localflock)"),
        ("none", f"has no file locks on the node ({os.strerror(errno.ENOSYS)})"),
    ],
)
def test_a_worker_tells_when_the_drivers_lock_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str, words: str
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "word").write_text("mine")
    with (tmp_path / "word").open() as driver:
        if lock == "held":
            fcntl.flock(driver, fcntl.LOCK_EX)
        if lock == "none":
            monkeypatch.setattr("fcntl.flock", no_locks)
        task = Task("probe", "try", {"word": "mine", "engines": [], "ranks": 1, "gpus": 0})
        faults = probe.work(task, Context(tmp_path)).summary["faults"]
    assert len(faults) == bool(words)
    assert words in "".join(faults)


def test_every_worker_with_a_gpu_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is a stand-in here, that sees what it would see of AMD's GPUs with two masks."""
    (tmp_path / "torch.py").write_text(
        "import os\nclass cuda:\n    def device_count():\n        return '0' in os.environ['CUDA_VISIBLE_DEVICES']\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {gpu: {provider: local, cores: 2, workers: 2, gpus: 2}}\nstages: {default: gpu}\n"
    )
    with pytest.raises(InputError) as caught:
        list(try_site(load_site(str(tmp_path / "s.yaml")), 300.0, tmp_path / "runs"))
    (problem,) = caught.value.problems
    assert problem.startswith("site s: executor gpu: 1 of the node's 2 workers see no GPU")


@pytest.mark.lammps
@pytest.mark.skipif(len(process.cores()) < 2, reason="one core cannot be taken away")
def test_a_launch_line_that_keeps_its_ranks_to_the_first_cores_is_refused(tmp_path: Path) -> None:
    """As srun with ``--cpus-per-task`` does where Slurm confines steps to their cores: here ``taskset`` does it."""
    words = ["mpiexec", "-n", "{ranks}"]
    text = "site: s\nexecutors: {cpu: {provider: local}}\nstages: {default: cpu}\nlaunch: {lammps: WORDS}\n"
    (tmp_path / "s.yaml").write_text(text.replace("WORDS", json.dumps(words)))
    assert list(try_site(load_site(str(tmp_path / "s.yaml")), 300.0, tmp_path))
    core = str(min(process.cores()))
    (tmp_path / "s.yaml").write_text(text.replace("WORDS", json.dumps(["taskset", "-c", core, *words])))
    with pytest.raises(InputError) as caught:
        list(try_site(load_site(str(tmp_path / "s.yaml")), 300.0, tmp_path))
    (problem,) = caught.value.problems
    assert f"launch.lammps: its ranks are kept to 1 of the worker's {len(process.cores())} cores" in problem


@pytest.mark.parametrize(("content", "words"), [(None, "does not see"), ("other", "sees another")])
def test_a_worker_tells_when_the_folder_is_not_shared(tmp_path: Path, content: str | None, words: str) -> None:
    if content:
        (tmp_path / "word").write_text(content)
    task = Task("probe", "try", {"word": "mine", "engines": ["lammps"], "ranks": 1, "gpus": 0})
    summary = probe.work(task, Context(tmp_path)).summary
    (fault,) = summary["faults"]
    assert words in fault
    assert fault.endswith("name a folder that all nodes share with --root")
    assert summary["engines"] == {}


def test_an_option_that_is_still_to_be_filled_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {cpu: {provider: pbs, cores: 4, options: {account: <project>, queue: q}}}\n"
        "stages: {default: cpu}\n"
    )
    (problem,) = refused(load_site(str(tmp_path / "s.yaml")))
    assert problem.startswith(
        "site s: executors.cpu.options.account: it is not set, got <project>; campaign sites s > "
    )


def test_pbs_is_asked_for_its_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qstat = tmp_path / "qstat"
    qstat.write_text("#!/bin/sh\nprintf 'Queue Max\\n----- ---\\nprod 0\\ndebug 0\\n'\n")
    qstat.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    text = "site: s\nexecutors: {cpu: {provider: pbs, cores: 4, options: {queue: NAME}}}\nstages: {default: cpu}\n"
    for name, problems in {"debug": 0, "debgu": 1}.items():
        (tmp_path / "s.yaml").write_text(text.replace("NAME", name))
        found = refused(load_site(str(tmp_path / "s.yaml")))
        assert len(found) == problems
    assert "options.queue: PBS has no such queue, got debgu; " in found[0]
    assert "'debug'" in found[0]


def test_a_worker_whose_python_parsl_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool of workers says that it is of another Python, as one of another installation would."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    (tmp_path / "pool.py").write_text(
        "import collections, runpy, sys\n"
        "if __name__ == '__main__':\n"
        "    import parsl.executors.high_throughput.process_worker_pool as pool\n"
        "    version = collections.namedtuple('version', 'major minor micro releaselevel serial')\n"
        "    sys.version_info = version(3, 99, 0, 'final', 0)\n"
        "    runpy.run_path(pool.__file__, run_name='__main__')\n"
    )
    line = f'process_worker_pool.py() {{ {sys.executable} {tmp_path / "pool.py"} "$@"; }}'
    site = load_site("local").model_copy(update={"environment": (line,)})
    with pytest.raises(InputError) as caught:
        list(try_site(site, 60.0, tmp_path / "runs"))
    (problem,) = caught.value.problems
    assert problem.startswith("site local: executor cpu: the worker has py.v=3.99 parsl.v=")
    assert f", and this machine py.v=3.{sys.version_info.minor} parsl.v=" in problem
    assert problem.endswith("; activate the same environment in the site file's environment")


def test_a_worker_of_another_build_of_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, where the system's Python is another 3.11 than this one: Parsl takes it, campaign does not."""
    other = Path("/usr/bin/python3")
    mine = ".".join(platform.python_version_tuple()[:2])
    version = subprocess.run([other, "-V"], capture_output=True, text=True).stdout.split()[-1] if other.exists() else ""
    if version == platform.python_version() or not version.startswith(f"{mine}."):
        pytest.skip("the system's Python is not one that can run this one's packages, or the very same")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    packages = os.pathsep.join([str(Path(__file__).parents[1]), *(p for p in sys.path if p.endswith("site-packages"))])
    line = f'process_worker_pool.py() {{ PYTHONPATH={packages} {other} $(type -P process_worker_pool.py) "$@"; }}'
    site = load_site("local").model_copy(update={"environment": (line,), "launch": {}})
    with pytest.raises(InputError) as caught:
        list(try_site(site, 60.0, tmp_path / "runs"))
    (problem,) = caught.value.problems
    assert problem.startswith(f"site local: executor cpu: the worker's Python {version} is not this one")


def test_whole_nodes_are_described(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {wide: {provider: slurm, cores: 64, nodes: 4, nodes_per_worker: 2,"
        ' launch: {lammps: [srun, -n, "{ranks}"]}}}\nstages: {default: wide}\n'
    )
    text = "\n".join(describe(load_site(str(tmp_path / "s.yaml"))))
    assert "  2 workers a block, each with 2 whole nodes, 128 cores" in text
    assert "lammps on wide on 2 ranks: srun -n 2 python ..." in text


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"^--root: .*/file/runs cannot be made \(Not a directory\); name another place"
    ):
        list(try_site(load_site("local"), root=tmp_path / "file" / "runs"))


def test_a_worker_tells_when_its_folder_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "word").write_text("mine")
    monkeypatch.setattr("os.fsync", full)
    task = Task("probe", "try", {"word": "mine", "engines": ["lammps"], "ranks": 1, "gpus": 0})
    (*_, fault) = probe.work(task, Context(tmp_path)).summary["faults"]  # before it: nobody holds the lock here
    assert fault.startswith(f"4 MB could not be written into {tmp_path} ({os.strerror(errno.ENOSPC)}); make room, ask")


@pytest.mark.parametrize(
    ("said", "options", "words"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "partition: cpu, account: physics",
            "options.account: Slurm refuses it (Batch job submission failed: Invalid account or account/partition "
            "combination specified), got physics; write the account that your hours are on",
        ),
        ("sbatch: error: You must specify an account.", "partition: cpu", "got no account; write the account that"),
        ("sbatch: error: Invalid qos specification", "partition: cpu, qos: regular", "options.qos: Slurm refuses it"),
    ],
)
def test_what_slurm_says_of_accounts_is_passed_on_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, options: str, words: str
) -> None:
    """The words are Slurm's own; the real one of ``tests/slurm`` keeps no accounts."""
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "s.yaml").write_text(
        f"site: s\nexecutors:\n  cpu: {{provider: slurm, cores: 4, options: {{{options}}}}}\nstages: {{default: cpu}}\n"
    )
    (problem,) = refused(load_site(str(tmp_path / "s.yaml")))
    assert problem.startswith("site s: executors.cpu.options.")
    assert words in problem


def test_what_qsub_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PBS has no way to ask beforehand; the test's own submission finds it."""
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    for name, lines in {"qsub": "echo 'qsub: Invalid account MSG=physics' >&2; exit 1", "qstat": "exit 0"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "s.yaml").write_text(
        "site: s\nexecutors: {cpu: {provider: pbs, cores: 4, options: {account: physics}}}\nstages: {default: cpu}\n"
    )
    with pytest.raises(InputError) as caught:
        list(try_site(load_site(str(tmp_path / "s.yaml")), 30.0, tmp_path / "runs"))
    (problem,) = caught.value.problems
    assert problem.startswith("site s: executor cpu: no worker answered in ")
    assert "qsub: Invalid account MSG=physics" in problem


def test_a_worker_tells_when_there_is_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs make the folder, and go on without where they cannot."""
    params = {"word": "mine", "engines": [], "ranks": 1, "gpus": 0, "scratch": str(tmp_path)}
    (tmp_path / "word").write_text("mine")
    with (tmp_path / "word").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert probe.work(Task("probe", "try", params), Context(tmp_path)).summary["faults"] == []
        monkeypatch.setenv("TMPDIR", "/tmp")
        (fault,) = probe.work(Task("probe", "try", params), Context(tmp_path)).summary["faults"]
    assert fault.startswith(f"scratch: {tmp_path} cannot be made or written on the node; ")


def test_what_a_job_says_before_its_workers_start_is_told(tmp_path: Path) -> None:
    scripts = tmp_path / "000" / "submit_scripts"
    scripts.mkdir(parents=True)
    (scripts / "a.stderr").write_text("line 3: module: command not found\nwelcome\n" * 3)
    (scripts / "b.stderr").write_text("")
    assert _amiss(tmp_path) == ["line 3: module: command not found"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (IDLE, "compare cores, cores_per_worker and binding"),
        (ENDED, "look for a line of environment"),
        (f"Failed: {UNHEARD}", "the node does not see this folder"),
        ("", "look at the queue"),
        ("bad", "the last that was said of its job: bad"),
    ],
)
def test_what_a_silent_executor_is_asked(words: str, said: str) -> None:
    assert said in _silence(words)


@pytest.mark.parametrize(("provider", "program"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_machine_without_the_batch_system_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, program: str
) -> None:
    """Not after minutes of refused submissions."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "s.yaml").write_text(
        f"site: s\nexecutors: {{cpu: {{provider: {provider}, cores: 4}}}}\nstages: {{default: cpu}}\n"
    )
    site = load_site(str(tmp_path / "s.yaml"))
    with pytest.raises(InputError, match=f"executor cpu: this machine has no {program}; type the command on a login"):
        list(try_site(site, root=tmp_path / "runs"))
    runner = ParslRunner.__new__(ParslRunner)
    runner._site, runner._reached = site, set()
    with pytest.raises(InputError, match=f"executors.cpu: this machine has no {program}; "):
        runner.submit(Task("noop", "a", {}), Context(tmp_path))
