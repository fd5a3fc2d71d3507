"""A real Slurm on this host: munge, slurmctld and four slurmd, each a virtual node of two cores.

All of it runs as the present user, with its own configuration, key, ports and folder, beside whatever the host has.
The tests of ``tests/slurm`` and the benchmarks that need Slurm start it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from campaign.config.templates import site_path
from campaign.tasks import TOKEN_VARIABLE

NODES = ("n1", "n2", "n3", "n4")
CORES = 2

CONFIGURATION = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
UnkillableStepTimeout=600
EnforcePartLimits=ALL
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=work Nodes={first} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={first} MaxTime=2 State=UP
"""


class Cluster:
    """Four virtual nodes and their controller.

    Attributes
    ----------
    folder
        Its logs and state.
    configuration
        What Slurm's commands find it by, as ``SLURM_CONF``.
    cores
        Of each node.
    """

    cores = CORES

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = str(folder / "slurm.conf")
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={CORES} RealMemory=4000 State=UNKNOWN"
            for name, port in zip(NODES, self._ports[1:], strict=True)
        ]
        Path(self.configuration).write_text(
            CONFIGURATION.format(
                host=socket.gethostname(),
                ports=self._ports,
                user=psutil.Process().username(),
                folder=folder,
                nodes="\n".join(nodes),
                first=",".join(NODES),
            )
        )

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        self._start_munge()
        (self.folder / "state").mkdir()
        self.start_controller()
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), "four idle nodes")

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        home.mkdir(mode=0o755)
        (home / "key").write_bytes(secrets.token_bytes(1024))
        (home / "key").chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={home / name}" for option, name in files.items()]
        # --force: the folder for temporary files may be written by everybody
        self._start("munged", ["munged", "--foreground", "--force", *places])
        self.wait_for((home / "socket").exists, "munge's socket")

    def start_controller(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D"])

    def start_node(self, name: str, hidden: Path | None = None) -> bool:
        """Start a node, one that does not see what is in ``hidden`` if asked; tell whether that could be done."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        command = ["slurmd", "-D", "-N", name]
        if hidden is not None:
            hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$@"', "sh"]
            if subprocess.run([*hide, "true"], capture_output=True).returncode:
                return False
            command = [*hide, *command]
        self._start(name, command)
        return True

    def stop(self, name: str) -> None:
        """End a daemon: the controller (``slurmctld``), or a node that runs nothing."""
        process = self._started.pop(name)
        process.terminate()
        process.wait(30)

    def _start(self, name: str, command: list[str]) -> None:
        # Debian keeps the daemons where only root's PATH looks.
        environment = {**self._environment(), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        environment.pop(TOKEN_VARIABLE, None)  # or it would end with a campaign that runs now
        with (self.folder / f"{name}.out").open("ab") as out:
            self._started[name] = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": self.configuration}

    def call(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=self._environment())
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}{done.stdout}\n{self.logs()}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of each node, as ``sinfo`` names it."""
        lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).split("\n")
        return dict(line.split() for line in lines if line)

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return the state and the first node of each job in the queue, oldest first."""
        lines = self.call("squeue", "--noheader", "--sort=i", "--format=%i %T %N").split("\n")
        return {words[0]: (words[1], words[2] if len(words) > 2 else "") for words in map(str.split, lines) if words}

    def kill_node(self, name: str) -> None:
        """End a node as a crash would: its slurmd, and everything that runs there."""
        self._started[name].kill()
        self._started.pop(name).wait()
        for process in _with(SLURM_CONF=self.configuration, SLURMD_NODENAME=name):
            process.kill()

    def return_node(self, name: str) -> None:
        """Start a node that was killed, and have the controller see at once that it was away and is back."""
        # said at once, not at the controller's next look a minute later
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=killed", check=False)
        self.start_node(name)

    def away(self) -> list[str]:
        """Return the nodes whose slurmd was killed and not started again."""
        return [name for name in NODES if name not in self._started]

    def wait_for(self, condition: object, what: str, seconds: float = 60.0) -> None:
        """Wait until ``condition()`` holds."""
        end = time.time() + seconds
        while not condition():  # type: ignore[operator]
            dead = [name for name, process in self._started.items() if process.poll() is not None]
            assert not dead, f"{dead} ended while waiting for {what}\n{self.logs()}"
            assert time.time() < end, f"no {what} after {seconds} s\n{self.logs()}"
            time.sleep(0.1)

    def reset(self) -> None:
        """Cancel every job, start the nodes that are down, and wait until all are idle."""
        self.call("scancel", f"--user={psutil.Process().username()}", check=False)
        for name in self.away():
            self.return_node(name)
        self.wait_for(lambda: not self.jobs(), "empty queue")
        for name, state in self.states().items():
            if state.startswith("down") or state.endswith("*"):
                self.call("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), "four idle nodes")

    def logs(self) -> str:
        """Return the end of each daemon's log."""
        return "\n".join(
            f"--- {p.name}\n" + "\n".join(p.read_text(errors="replace").splitlines()[-15:])
            for p in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.glob("munge/log")])
        )

    def end(self) -> None:
        """End all of it: jobs, nodes, controller, munge."""
        self.call("scancel", f"--user={psutil.Process().username()}", check=False)
        for process in reversed(list(self._started.values())):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in _with(SLURM_CONF=self.configuration):
            if process.pid != os.getpid():
                process.kill()  # steps whose slurmd is gone


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster in a folder of its own; end it and remove the folder afterwards, by a SIGTERM too."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path holds 107 characters
    folder.chmod(0o755)
    made = Cluster(folder)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        made.start()
        yield made
    finally:
        made.end()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def write_site(
    path: Path,
    launch: Mapping[str, list[str]] | None = None,
    driver: Mapping[str, Any] | None = None,
    **executor: Any,
) -> Path:
    """Write ``site_configs/slurm.yaml`` adapted to the cluster, with other keys of its executor; return ``path``."""
    document = yaml.safe_load(site_path("slurm").read_text())
    document["executors"]["cpu"] |= {"cores": CORES, "options": {"partition": "work"}, **executor}
    document["launch"] = dict(launch) if launch else {"lammps": document["launch"]["lammps"]}
    document["driver"] = dict(driver) if driver else None
    path.write_text(yaml.safe_dump(document))
    return path


def _with(**variables: str) -> Iterator[psutil.Process]:
    """Yield the processes that have all of these in their environment."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if all(environment.get(name) == value for name, value in variables.items()):
            yield process


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
