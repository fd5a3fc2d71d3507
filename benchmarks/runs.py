"""What the benchmarks of sampling share: campaigns as a user runs them, plain ``lmp``, means with errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from campaign.engines.lammps import BAR
from campaign.engines.lammps_potential import load_potential
from campaign.engines.walkers import unpack_checkpoints
from campaign.frames import Frames
from campaign.pipeline import survey
from campaign.store.ledger import read_ledger
from campaign.store.store import Store

Array = np.ndarray[Any, Any]

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

#: Workers of so many cores each on this machine.
SITE = """
site: bench
executors: {{cpu: {{provider: local, workers: {workers}, cores_per_worker: {cores}}}}}
stages: {{default: cpu}}
launch: {{lammps: [mpiexec, -n, "{{ranks}}"]}}
"""

#: Nickel in a cubic cell of n x n x n fcc cells.
NICKEL = """
campaign: {name}
seed: {seed}
system:
  structure: {{prototype: fcc, elements: [Ni], a: 3.52, supercell: [{n}, {n}, {n}]}}
  potential: {{lammps: potentials/ni.lmp}}
sample:
  - {sample}
"""


def say(text: str) -> None:
    """Print how far it is; results of a section are not lost with those after it."""
    print(f"# {text}", file=sys.stderr, flush=True)


@dataclass
class Table:
    """What was found: lines for people, figures by name."""

    rows: list[dict[str, Any]]
    figures: dict[str, float]

    def add(self, what: str, value: float, text: str = "") -> None:
        """Add a figure, and a line that shows it."""
        if np.isfinite(value):
            self.figures[what] = float(value)
        self.rows.append({"what": what, "figure": text or f"{value:.4g}"})
        say(f"{what}: {self.rows[-1]['figure']}")


# -- campaigns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished campaign.

    Attributes
    ----------
    path
        The run directory.
    wall
        Seconds from the command to its end: interpreter, workers, store and all.
    """

    path: Path
    wall: float

    def spans(self) -> tuple[float, float]:
        """Return seconds from the start of the first task to the end of the last, and the sum over all tasks."""
        done = [r for r in read_ledger(self.path / "ledger.jsonl") if r["state"] == "done"]
        span = max(r["start"] + r["seconds"] for r in done) - min(r["start"] for r in done)
        return span, sum(r["seconds"] for r in done)

    def frames(self) -> Iterator[Frames]:
        """Yield the pool, a segment at a time, in the order of the stream."""
        flow, _ = survey(self.path)
        store = Store(self.path / "run.zarr")
        yield from store.stream("sample", [s.task.id for s in flow.board.shards if s.state == "ready"])

    def series(self) -> dict[str, Array]:
        """Return one row a frame, walker by walker: walker, step, energy, volume, order, bias, temperature, trace.

        ``trace`` is that of the stress, eV/Å^3.
        """
        names = ("walker", "step", "energy", "volume", "order", "bias", "temperature")
        rows: dict[str, list[Array]] = {name: [] for name in (*names, "trace")}
        for block in self.frames():
            for name in names:
                rows[name].append(getattr(block, name))
            rows["trace"].append(np.trace(block.stress, axis1=1, axis2=2))
        found = {name: np.concatenate(parts) for name, parts in rows.items()}
        order = np.lexsort((found["step"], found["walker"]))
        return {name: array[order] for name, array in found.items()}

    def last(self) -> dict[int, dict[str, Array]]:
        """Return what each walker's last checkpoint holds beside the LAMMPS restart."""
        flow, _ = survey(self.path)
        store = Store(self.path / "run.zarr")
        ready = [s.task for s in flow.board.shards if s.state == "ready"]
        longest = max(t.params["segment"] for t in ready)
        found = {}
        for task in ready:
            if task.params["segment"] == longest:
                for number, (_, extra) in unpack_checkpoints(store.checkpoint(task.id)["restart"]).items():
                    found[number] = extra
        return found


def nickel(folder: Path, name: str, cells: int, sample: Mapping[str, Any], seed: int = 1) -> Path:
    """Write a campaign of nickel that only samples, with its potential beside it; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(TEMPLATES / "potentials", folder / "potentials", dirs_exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(NICKEL.format(name=name, seed=seed, n=cells, sample=json.dumps(dict(sample))))
    return file


def sampling_of(template: str, folder: Path, steps: int) -> Path:
    """Write the sampling of a template, with other MD steps and its data files beside it; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(TEMPLATES / "potentials", folder / "potentials", dirs_exist_ok=True)
    text = (TEMPLATES / f"{template}.yaml").read_text().partition("\nselect:")[0] + "\n"
    file = folder / f"{template}-{steps}.yaml"
    for key, value in (("campaign:", file.stem), (" +steps:", steps)):
        text, count = re.subn(rf"^({key}) \S+", rf"\1 {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"The template {template} has {count} lines with '{key}': this benchmark expects one.")
    file.write_text(text)
    return file


def run_campaign(file: Path, workers: int = 1, cores: int = 1) -> Run:
    """Run the sampling of a campaign file as a user would, in ``runs`` beside it.

    One that came to its end there before is not run again: its seconds were written down.
    """
    site = file.parent / f"bench-{workers}-{cores}.yaml"
    site.write_text(SITE.format(workers=workers, cores=cores))
    (name,) = re.findall(r"^campaign: (\S+)", file.read_text(), re.MULTILINE)
    path, note, log = file.parent / "runs" / name, file.with_suffix(".seconds"), file.with_suffix(".log")
    if note.exists() and path.exists():
        return Run(path, float(note.read_text()))
    shutil.rmtree(path, ignore_errors=True)  # what a run that was interrupted left would make the seconds too few
    command = [sys.executable, "-m", "campaign.cli", "run", str(file), "--root", str(path.parent)]
    start = time.perf_counter()
    with log.open("wb") as out:
        code = subprocess.run(
            [*command, "--site", str(site), "--until", "sample"], stdout=out, stderr=out, env=environment(), check=False
        ).returncode
    wall = time.perf_counter() - start
    if code != 0:
        raise SystemExit(f"{file.name} ended with {code}:\n{log.read_text()[-3000:]}")
    note.write_text(f"{wall:.3f}")
    return Run(path, wall)


def environment() -> dict[str, str]:
    """Return the environment of what is started: one thread a process, the programs of this interpreter first."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": paths}


# -- plain LAMMPS -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A run of ``lmp`` on a script, at constant pressure.

    Attributes
    ----------
    potential
        File of LAMMPS lines, as a campaign names it.
    atoms
        Where it starts.
    temperature
        K, of the production; the pressure is 1 bar.
    steps
        Of 2 fs.
    prepare
        (temperature K, time ps), run first.
    thermo
        Steps between two lines of step and volume; 0 writes none but those of LAMMPS's own at the ends.
    seed
        For the velocities.
    """

    potential: Path
    atoms: Atoms
    temperature: float
    steps: int
    prepare: tuple[tuple[float, float], ...] = ()
    thermo: int = 0
    seed: int = 12345

    def script(self, folder: Path) -> Path:
        """Write the script and the structure it reads; return the script."""
        from ase.io import write

        lines = load_potential(self.potential)
        write(
            str(folder / "start.data"),
            self.atoms,
            format="lammps-data",
            specorder=list(lines.elements),
            atom_style=lines.atom_style,
            masses=True,
        )
        hot = self.prepare[0][0] if self.prepare else self.temperature
        rows = ["units metal", f"atom_style {lines.atom_style}", f'read_data "{folder / "start.data"}"', lines.lines]
        rows += [f"velocity all create {hot} {self.seed} dist gaussian loop all mom yes rot no", "timestep 0.002"]
        rows += ["thermo_style custom step vol"]
        stretches = [(t, round(ps / 0.002)) for t, ps in self.prepare]
        for t, steps in [*stretches, (self.temperature, self.steps)]:
            rows += [f"fix md all npt temp {t} {t} 0.1 iso 1.0 1.0 1.0"]
            rows += [f"thermo {self.thermo or steps}", f"run {steps}", "unfix md"]
        path = folder / "in.lmp"
        path.write_text("\n".join(rows) + "\n")
        return path


def start_plain(folder: Path, run: Plain) -> subprocess.Popen[bytes]:
    """Start ``lmp`` on a script; ``folder`` is made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).parent / "lmp")
    command = [program, "-in", str(run.script(folder)), "-log", "none", "-nocite"]
    with (folder / "out").open("wb") as out:
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment())


def end_plain(folder: Path, process: subprocess.Popen[bytes]) -> tuple[float, Array]:
    """Wait for ``lmp``; return LAMMPS's own seconds of its last run, and the volumes that it printed there."""
    code = process.wait()
    text = (folder / "out").read_text()
    loops = re.findall(r"^Loop time of (\S+) on", text, re.MULTILINE)
    if code != 0 or not loops:
        raise SystemExit(f"lmp ended with {code} in {folder}:\n{text[-3000:]}")
    table = text.split("Loop time of")[-2].rpartition("Step")[2].splitlines()[1:]
    return float(loops[-1]), np.array([float(line.split()[1]) for line in table if len(line.split()) == 2])


# -- means ------------------------------------------------------------------------------------------------------------


def mean_of(x: Array, blocks: int = 10) -> tuple[float, float]:
    """Return the mean of a series and its standard error, from blocks of it."""
    parts = np.array([b.mean() for b in np.array_split(x, blocks)])
    return float(x.mean()), float(parts.std(ddof=1) / np.sqrt(blocks))


def joined(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of independent estimates and its error: of their scatter where there are three or more."""
    values, errors = np.array(parts).T
    if len(values) >= 3:
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), float(np.sqrt((errors**2).sum()) / len(values))


def score(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return by how many standard errors two estimates differ."""
    return (a[0] - b[0]) / float(np.hypot(a[1], b[1]))


def enthalpy(series: Mapping[str, Array], pressure: float = 1.0) -> Array:
    """Return the enthalpy of each cell, eV; the pressure is in bar."""
    return np.asarray(series["energy"] + pressure / BAR * series["volume"])
