"""What a campaign will do and need, before anything runs: ``campaign check``."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.selections import Random
from campaign.errors import InputError
from campaign.inputs import check_models, frame_sources
from campaign.origins import estimate, transfer_origin
from campaign.pipeline import survey
from campaign.sites import refused
from campaign.stages.board import Board
from campaign.stages.distill import Distill
from campaign.stages.sample import Sample
from campaign.stages.selecting import species_of
from campaign.stages.train import Train, retraining
from campaign.stages.transfer import Transfer, far
from campaign.stages.validate import Validate
from campaign.stages.validate_runs import runs_of
from campaign.tasks import Json

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded, Site
    from campaign.config.selections import UQ
    from campaign.stages.sample_file import Source
    from campaign.stages.transfer_origin import Origin

#: Rough costs on one core of 2025, to tell minutes from months: seconds an atom for a step of classical MD, a label,
#: a descriptor, a training step and a step of MD with a model.
STEP, LABEL, DESCRIPTOR, TRAIN, MODEL_STEP = 2e-5, 1e-3, 1e-4, 3e-4, 1e-4

#: The same for a single point of 64 atoms or less by CP2K (plain PBE, double zeta); beyond, each doubling doubles it.
CP2K = 2.0

#: The same for one pick from a pool: seconds a frame and feature.
PICK = {"rnd": 2e-8, "fps": 1e-9, "rematch": 2e-8}

#: Programs that run others inside an image.
CONTAINERS = ("apptainer", "singularity", "docker", "podman", "podman-hpc", "shifter", "enroot", "ch-run")

#: The Python packages behind each variant.
PACKAGES = {
    "npt": ("lammps", "mpi4py"),
    "nvt": ("lammps", "mpi4py"),
    "nvt_grid": ("lammps", "mpi4py"),
    "momt": ("lammps", "mpi4py", "numba"),
    "md": ("lammps", "mpi4py", "torch", "schnetpack"),
    "lammps": ("lammps", "mpi4py"),
    "lattice": ("lammps", "mpi4py"),
    "ase": ("ase",),
    "tblite": ("tblite",),
    "gpaw": ("gpaw",),
    "cp2k": ("cp2k-input-tools",),
    "rnd_stream": ("torch", "schnetpack"),
    "rnd": ("torch", "schnetpack"),
    "fps": ("torch", "schnetpack", "skmatter"),
    "rematch": ("dscribe",),
    "schnet": ("torch", "schnetpack"),
    "painn": ("torch", "schnetpack"),
    "so3net": ("torch", "schnetpack"),
    "ani": ("torch", "schnetpack", "torchani"),
    "gap": ("quippy-ase",),
    "stability": ("lammps", "torch"),
}


def make_plan(file: Path, site_name: str) -> dict[str, Json]:
    """Return the plan of a campaign on a site.

    Parameters
    ----------
    file
        The campaign file.
    site_name
        A site's name or file.

    Returns
    -------
    dict
        campaign, site, frames, atoms, engines [{name, version}], stages [{stage, tasks, executor, workers, ranks, gpus,
        core_hours, what}], core_hours, warnings (sentences: nothing is wrong, but it may not be what was meant).
        Core-hours are rounded to 0.01.

    Raises
    ------
    InputError
        With every problem found: of the files, of both together, and engines that are missing.
    """
    from campaign.config import check_together, load_campaign, load_site
    from campaign.config.label_checks import check_cache

    problems: list[str] = []
    loaded: Loaded[Campaign] | None = None
    site: Site | None = None
    try:
        loaded = load_campaign(file)
    except InputError as error:
        problems += error.problems
    try:
        site = load_site(site_name)
    except InputError as error:
        problems += error.problems
    if loaded is None or site is None:
        raise InputError(*problems)
    engines, missing = _engines(loaded.spec, site)
    unkept, keeps = check_cache(loaded)
    problems += [*check_together(loaded, site), *missing, *check_models(loaded), *unkept]
    problems += [line for line in refused(site) if line not in problems]
    sources: list[Source] = []
    origin: Origin | None = None
    try:
        sources = frame_sources(loaded)
        origin = transfer_origin(loaded, survey, sources)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(*problems)
    atoms = _atoms(loaded)
    stages = [_stage(name, loaded, site, atoms, sources, origin) for name in loaded.spec.stages]
    scaled = far(estimate(origin, loaded)) if origin is not None else []
    return {
        "campaign": loaded.spec.name,
        "site": site.name,
        "frames": _frames(loaded.spec, sources),
        "atoms": atoms,
        "engines": engines,
        "stages": stages,
        "core_hours": round(sum(s["core_hours"] for s in stages), 2),
        "warnings": [*_short_pool(loaded.spec, sources), *keeps, *scaled, *_warnings(loaded.spec, site)],
    }


def _warnings(spec: Campaign, site: Site) -> list[str]:
    """Return a sentence where training would leave GPUs idle."""
    if spec.train is None:
        return []
    name = site.executor_for("train")
    if not site.executors[name].gpus or getattr(spec.train, "device", "cpu") != "cpu":
        return []
    return [
        f"site {site.name}: train.device is cpu, and the GPUs of executor {name} would stand idle. "
        "Write 'device: cuda', or name an executor without GPUs for 'train' under stages of the site file."
    ]


def _short_pool(spec: Campaign, sources: Sequence[Source]) -> list[str]:
    """Return a sentence where there are fewer frames than are to be selected."""
    frames = _frames(spec, sources)
    if spec.select is None or spec.select.size <= frames:
        return []
    return [f"select.size: the sampling gives only {frames} frames, fewer than {spec.select.size}: all would be taken."]


def _atoms(loaded: Loaded[Campaign]) -> int:
    from campaign.engines.structures import build_structure

    return len(build_structure(loaded.spec.system.structure.model_dump(mode="json"), loaded.folder))


def _frames(spec: Campaign, sources: Sequence[Source]) -> int:
    return sum(m.all_walkers * m.frames for m in spec.sample) + sum(s.frames for s in sources)


def _variants(spec: Campaign) -> list[str]:
    parts: list[str] = [*(m.method for m in spec.sample), *(t.method for t in spec.validation)]
    parts += ["stability"] if runs_of(spec.validation, spec.seed)[0] else []
    parts += [spec.select.method] if spec.select else []
    parts += [spec.label.engine] if spec.label else []
    parts += [spec.label.calculator] if spec.label and spec.label.engine == "ase" else []
    parts += [spec.train.model] if spec.train else []
    parts += ["lattice"] if spec.transfer and spec.transfer.scale == "lattice" else []
    return parts


def _engines(spec: Campaign, site: Site) -> tuple[list[dict[str, str]], list[str]]:
    """Return the engines found, and a sentence for each that is missing."""
    found, missing = [], []
    for name in dict.fromkeys(p for v in _variants(spec) for p in PACKAGES.get(v, ())):
        try:
            found.append({"name": name, "version": version(name)})
        except PackageNotFoundError:
            missing.append(f"engine {name}: this Python has no package {name}; install it with: pip install {name}")
    ranks = _ranks("sample", spec)
    executor = site.place("sample", ranks)
    launch = site.launch_on(executor).get("lammps")
    if ranks > 1 and not launch:
        missing.append(f"site {site.name}: launch.lammps: tasks of several MPI ranks need a launch command; add it")
    elif ranks > 1 and launch and site.executors[executor].provider == "local":
        import os
        import sys

        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if shutil.which(launch[0], path=path) is None:
            missing.append(f"site {site.name}: launch.lammps: there is no program {launch[0]} on PATH; correct it")
    if spec.label and spec.label.engine == "cp2k":
        program = _cp2k(spec, site, missing)
        found += [{"name": "cp2k", "version": f"({program})"}] if program else []
    return found, missing


def _cp2k(spec: Campaign, site: Site, missing: list[str]) -> str:
    """Return the program that does CP2K's single points; where this machine should have it and has not, say so."""
    from campaign.config.cp2k_data import PROGRAMS, program
    from campaign.config.site_checks import program_of

    executor = site.place("label", _ranks("label", spec), getattr(spec.label, "threads", 1))
    command = site.launch_on(executor).get("cp2k", ())
    named = list(dict.fromkeys([command[0], program_of(command)])) if command else []
    if any(Path(word).name in CONTAINERS for word in command):
        named = named[:1]  # the program is in the image
    if site.executors[executor].provider == "local" and not site.environment:
        absent = [word for word in named if shutil.which(word) is None]
        missing += [
            f"site {site.name}: launch.cp2k: there is no program {word} on PATH; install it, or correct the command"
            for word in absent
        ]
        if not command and program() is None:
            missing.append(
                f"engine cp2k: there is no program {PROGRAMS[0]} on PATH; install CP2K (Debian: apt install cp2k), or "
                "name it under launch.cp2k of the site file"
            )
        if absent:
            return ""
    return Path(program_of(command)).name if command else Path(program() or "").name


def _stage(
    name: str,
    loaded: Loaded[Campaign],
    site: Site,
    atoms: int,
    sources: Sequence[Source],
    origin: Origin | None,
) -> dict[str, Json]:
    spec = loaded.spec
    if origin is not None:  # what follows it costs as if as many frames had been selected
        spec = spec.model_copy(update={"select": Random(size=_transferred(spec, origin))})
    if name == "transfer" and origin is not None:
        tasks, what, seconds = _transfer_cost(loaded, origin)
    else:
        tasks, what, seconds = {
            "sample": _sample_cost,
            "select": _select_cost,
            "distill": _distill_cost,
            "label": _label_cost,
            "train": _train_cost,
            "learn": _learn_cost,
            "validate": _validate_cost,
        }[name](spec, atoms, sources)
    ranks = _ranks(name, spec)
    executor = site.place(name, ranks, getattr(spec.label, "threads", 1) if name == "label" else 1)
    pool = site.executors[executor]
    return {
        "stage": name,
        "tasks": tasks,
        "what": what,
        "executor": executor,
        "workers": site.workers_per_block(executor) * pool.max_blocks,
        "ranks": ranks,
        "gpus": pool.gpus,
        "core_hours": round(seconds / 3600, 2),
    }


def _ranks(stage: str, spec: Campaign) -> int:
    if stage == "sample":
        return max((getattr(m, "processes", 1) for m in spec.sample), default=1)
    if stage == "train":
        return getattr(spec.train, "processes", 1)
    return getattr(spec.label, "ranks", 1) if stage == "label" else 1


def _sample_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    stage, board = _sampling(spec, sources), Board()
    steps = sum(m.all_walkers * getattr(m, "steps", 0) for m in spec.sample)
    walkers = sum(m.all_walkers for m in spec.sample)
    parts = [f"{walkers} walkers, {steps} MD steps of {atoms} atoms"] if walkers or not sources else []
    parts += [f"{s.frames} frames of {Path(s.file).name}" for s in sources]
    for m in spec.sample:
        if m.method == "md" and (each := min(m.walkers, m.walkers_per_task)) > 1:
            parts.append(f"{each} walkers at a time in one forward of {Path(m.model).name} on {m.device}")
    driven = sum(m.all_walkers * m.steps for m in spec.sample if m.method == "md")
    return stage.total(board), ", ".join(parts), atoms * ((steps - driven) * STEP + driven * MODEL_STEP)


def _sampling(spec: Campaign, sources: Sequence[Source]) -> Sample:
    """Return the sampling stage with digests that only count: the plan's task ids are not used."""
    names = [spec.system.potential.lammps] if spec.system.potential else []
    names += [m.model for m in spec.sample if m.method == "md"]
    return Sample(spec, dict.fromkeys(names, ""), sources)


def _sizes(spec: Campaign) -> tuple[int, int, int]:
    """Return the sizes of the training set, the sets compared with it, and the test set."""
    size = spec.select.size if spec.select else 0
    if spec.distill:  # it may well be less
        most = spec.distill.size if spec.distill.method == "grid" else _distilled(spec.distill)
        size = min(most, size) if spec.select else most
    tests = [t for t in spec.validation if t.method == "errors"]
    return size, size * max((len(t.against) for t in tests), default=0), max((t.held_out for t in tests), default=0)


def _select_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    assert spec.select is not None
    frames = _frames(spec, sources)
    shards = _sampling(spec, sources).total(Board())
    tests = [t for t in spec.validation if t.method == "errors" and not spec.distill]  # else it draws their sets
    draws = (1 if tests else 0) + (1 if tests and _sizes(spec)[1] else 0)
    tasks = (shards + 1 if spec.select.method != "random" else 1) + draws
    what = f"{spec.select.method}: {spec.select.size} of {frames} frames"
    seconds = frames * atoms * DESCRIPTOR
    size, width = _features(spec, atoms, sources)
    if width:
        what += f", all kept in memory ({frames * width * 4 / 1e6:.3g} MB)"
        seconds += frames * min(spec.select.size, frames) * size * width
    return tasks, what, seconds


def _features(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[float, int]:
    """Return seconds a feature and pick, and features a frame, of a selector that keeps the whole pool; else zeros."""
    select = spec.select
    assert select is not None
    kinds = max(1, len(species_of(spec, sources)["species"]))
    if select.method == "rematch":
        n, l_max = select.environments.n_max * kinds, select.environments.l_max
        return PICK["rematch"], atoms * n * (n + 1) // 2 * (l_max + 1)
    if select.method not in ("rnd", "fps"):
        return 0.0, 0
    kind = select.representation
    if kind.model == "schnet":
        each = kind.features
    else:
        each = kind.n_max * kinds * (kind.n_max * kinds + 1) // 2 * (kind.l_max + 1)
    return PICK[select.method], each * {
        "mean": 1,
        "species": kinds,
        "species_std": 2 * kinds,
        "species_extremes": 4 * kinds,
    }[kind.pooling]


def _distilled(spec: UQ) -> int:
    """Return how many frames are chosen when all iterations are spent."""
    return spec.initial + spec.iterations * spec.batch


def _distill_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    assert spec.distill is not None
    board = Board()
    list(_sampling(spec, sources).plan(board))  # puts the shards on the board
    tasks = Distill(spec).total(board)
    frames = _frames(spec, sources)
    frames = min(spec.select.size, frames) if spec.select else frames
    if spec.distill.method == "grid":
        return tasks, f"grid: {min(spec.distill.size, frames)} of {frames} frames", 0.0
    d = spec.distill
    epochs: int = d.epochs or getattr(spec.train, "epochs", 0) or 0
    trained = epochs * d.train_fraction * sum(d.initial + k * d.batch for k in range(d.iterations + 1))
    if d.steps:
        trained = (d.iterations + 1) * d.steps * getattr(spec.train, "batch", 0)
    seconds = d.members * atoms * (trained * TRAIN + (d.iterations + 1) * frames * MODEL_STEP)
    what = f"uq: at most {min(_distilled(d), frames)} of {frames} frames, {d.iterations + 1} ensembles of {d.members}"
    return tasks, what, seconds


def _transferred(spec: Campaign, origin: Origin) -> int:
    strain = spec.transfer.strain if spec.transfer else None
    return origin.frames * (1 + (strain.copies if strain else 0))


def _transfer_cost(loaded: Loaded[Campaign], origin: Origin) -> tuple[int, str, float]:
    spec = loaded.spec
    assert spec.transfer is not None
    frames = _transferred(spec, origin)
    factors = " x ".join(dict.fromkeys(f"{f:.4g}" for f in estimate(origin, loaded)))
    about = "about " if spec.transfer.scale == "lattice" else ""
    mapped = ", ".join(f"{old} -> {new}" for old, new in spec.transfer.species.items())
    atoms = sum(p.atoms * len(p.frames) for p in origin.parts)
    what = f"{frames} frames from {origin.run}, {mapped}, lengths x {about}{factors}"
    return Transfer(spec, {}, origin).total(Board()), what, 2.0 + atoms * frames / origin.frames * DESCRIPTOR


def _label_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    assert spec.label is not None
    sizes = _sizes(spec)
    what = f"{spec.label.engine}: {sizes[0]} to train on, {sizes[1]} to compare with, {sizes[2]} to test on"
    each = CP2K * max(1.0, atoms / 64) if spec.label.engine == "cp2k" else LABEL
    return sum(sizes), what, sum(sizes) * atoms * each


def _train_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    assert spec.train is not None
    sets = 1 + (_sizes(spec)[1] > 0)
    epochs = getattr(spec.train, "epochs", 0)
    tasks = sets * spec.train.members
    together = sets if Train(spec).together else 0
    what = f"{spec.train.model}: {spec.train.members} models for each of {sets} training sets"
    what += f", {epochs} epochs" if epochs else ""
    return tasks + together, what, tasks * epochs * _sizes(spec)[0] * atoms * TRAIN


def _learn_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    assert spec.learn is not None
    md, rounds = spec.learn.md, spec.learn.rounds
    tasks = rounds * (md.walkers * -(-md.frames // md.segment) + 1)
    what = f"at most {rounds} rounds of {md.walkers} walkers, {rounds * spec.learn.size} frames more"
    members, warm = spec.train.members if spec.train else 0, retraining(spec)
    trained = (warm or {}).get("epochs", getattr(spec.train, "epochs", 0)) * (
        rounds * _sizes(spec)[0] + spec.learn.size * rounds * (rounds + 1) // 2
    )
    if warm and "steps" in warm:
        trained = rounds * warm["steps"] * getattr(spec.train, "batch", 0)
    seconds = rounds * md.walkers * md.frames * md.every * atoms * MODEL_STEP + members * trained * atoms * TRAIN
    return tasks, what, seconds


def _validate_cost(spec: Campaign, atoms: int, sources: Sequence[Source]) -> tuple[int, str, float]:
    steps = sum(run.spec["time"] / run.spec["timestep"] for run in runs_of(spec.validation, spec.seed)[0])
    members = spec.train.members if spec.train else 1
    counts = Counter(t.method for t in spec.validation)
    return Validate(spec, {}).total(Board()), ", ".join(counts), steps * atoms * MODEL_STEP * members


def plan_text(plan: dict[str, Json]) -> str:
    """Return the plan as a table for people."""
    sampled = any(s["stage"] == "sample" for s in plan["stages"])
    frames = f"{plan['frames']} frames of {plan['atoms']} atoms" if sampled else "nothing is sampled"
    lines = [f"campaign {plan['campaign']} on site {plan['site']}: {frames}"]
    lines.append("engines: " + ", ".join(f"{e['name']} {e['version']}" for e in plan["engines"]))
    lines.append(f"{'stage':<10}{'tasks':>7}{'ranks':>7}{'workers':>9}{'gpus':>6}{'core-h':>9}  what")
    for s in plan["stages"]:
        lines.append(
            f"{s['stage']:<10}{s['tasks']:>7}{s['ranks']:>7}{s['workers']:>9}{s['gpus']:>6}{s['core_hours']:>9.2f}  "
            f"{s['what']} ({s['executor']})"
        )
    lines.append(f"about {plan['core_hours']:.2f} core-hours (rough); nothing was run")
    return "\n".join(lines)
