"""What must hold inside a site file, and between a campaign and the site it runs on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.campaign_file import STAGES, Campaign, ModelDynamics, MolecularDynamics, Trained
from campaign.config.fields import suggest
from campaign.config.labels import CP2KLabel
from campaign.config.site_file import ENGINES, OPTIONS, Executor, Site, cores_here
from campaign.config.view import View
from campaign.config.yaml_lines import Problem, show

if TYPE_CHECKING:
    from campaign.config.load import Loaded

#: The name of an executor.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: What campaign fills in in a launch command.
FILLED = ("{ranks}", "{node}", "{nodes}", "{node_count}", "{ranks_per_node}")

#: Programs that start others on MPI ranks, as many as they are told, or as they find cores.
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "srun", "aprun", "jsrun")


def check_site(view: View) -> list[Problem]:
    """Return what does not hold between keys of a site file."""
    problems: list[Problem] = []
    executors = view.mapping("executors")
    for stage, name in view.mapping("stages").items():
        if stage == "learn":
            what = "it has no tasks of its own, but tasks of sample, label and train"
            problems.append(view.problem(("stages", stage), what, show(name), "remove it"))
        elif stage not in (*STAGES, "default"):
            remedy = suggest(stage, (*STAGES, "default"))
            problems.append(view.problem(("stages", stage), "there is no such stage", name, remedy))
        if isinstance(name, str) and executors and name not in executors:
            remedy = suggest(name, executors)
            problems.append(view.problem(("stages", stage), "there is no such executor", show(name), remedy))
    for name in executors:
        if not NAME.fullmatch(str(name)):  # it is part of the names of jobs and of their scripts
            what = "the name of an executor has letters, digits, - and _"
            problems.append(view.problem(("executors", name), what, show(name), "write another, such as cpu"))
        problems += _check_executor(view, ("executors", name))
    scratch = view.text("scratch")
    if scratch and not scratch.startswith("/"):
        what, remedy = "engines start in folders of their own", "write an absolute path, such as /local/scratch"
        problems.append(view.problem(("scratch",), what, show(scratch), remedy))
    if view.mapping("driver"):
        problems += _check_executor(view, ("driver",))
    for place in (("launch",), *(("executors", name, "launch") for name in executors)):
        for engine, command in view.mapping(*place).items():
            if engine not in ENGINES:
                what = "there is no engine of this name to launch"
                problems.append(view.problem((*place, engine), what, show(command), suggest(engine, ENGINES)))
            problems += _check_command(view, (*place, engine))
    return problems


def _check_executor(view: View, here: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    provider = view.text(*here, "provider")
    if provider not in OPTIONS:
        return problems
    for option, value in view.mapping(*here, "options").items():
        if option not in OPTIONS[provider]:
            known = OPTIONS[provider]
            remedy = suggest(option, known) if known else "remove it: the local provider has no options"
            what = f"the {provider} provider has no such option"
            problems.append(view.problem((*here, "options", option), what, show(value), remedy))
        elif isinstance(value, str) and "\n" in value and option != "scheduler_options":
            what, remedy = "an option is one line", "write lines of your own under scheduler_options"
            problems.append(view.problem((*here, "options", option), what, show(value), remedy))
    nodes = view.number(*here, "nodes", default=1)
    if provider == "local" and nodes and nodes > 1:
        problems.append(view.problem((*here, "nodes"), "a local block is this machine alone", nodes, "write nodes: 1"))
    problems += _check_times(view, here)
    cores = view.number(*here, "cores")
    workers = view.number(*here, "workers")
    each = view.number(*here, "cores_per_worker", default=1)
    if view.number(*here, "nodes_per_worker", default=0):
        return [*problems, *_check_whole_nodes(view, here)]
    alone = provider == "local" or here == ("driver",)  # the driver's job has one core where nothing is written
    if not alone and not cores and not workers and _left_to_auto(view, here):
        what = f"the cores of a {provider} node are not known"
        remedy = "write the cores of a node, such as cores: 64, or a number of workers"
        problems.append(view.problem((*here, "cores"), what, "auto", remedy))
    if cores and each and each > cores:  # no worker would ever start, and its jobs would run for nothing
        what = f"a worker of {each:g} cores does not fit a node of {cores:g} cores"
        remedy = f"write {cores:g} or less, or the cores that a node has"
        problems.append(view.problem((*here, "cores_per_worker"), what, f"{each:g}", remedy))
    elif cores and workers and each and workers * each > cores:
        what = f"{workers:g} workers of {each:g} cores are more than the node's {cores:g} cores"
        problems.append(view.problem((*here, "workers"), what, workers, f"write {max(1, cores // each):g}"))
    return problems


def _check_whole_nodes(view: View, here: tuple[str, ...]) -> Iterator[Problem]:
    """Yield what does not go with workers of whole nodes: Parsl's MPIExecutor has none of it."""
    each, nodes = (view.number(*here, key, default=1) or 1 for key in ("nodes_per_worker", "nodes"))
    place = (*here, "nodes_per_worker")
    if view.text(*here, "provider") == "local":
        yield view.problem(place, "a local block is this machine alone", f"{each:g}", "remove it")
    elif nodes % each:
        what = f"a block of {nodes:g} nodes cannot be cut into workers of {each:g}"
        yield view.problem((*here, "nodes"), what, f"{nodes:g}", f"write {max(1, round(nodes / each)) * each:g}")
    if not view.number(*here, "cores"):
        what = "the cores of a whole node must be known"
        yield view.problem((*here, "cores"), what, "auto", "write the cores of a node, such as cores: 64")
    for key, usual in (("workers", "auto"), ("cores_per_worker", 1), ("binding", "none"), ("start", [])):
        got = view.get(*here, key)
        if got not in (None, usual):
            yield view.problem((*here, key), "workers of whole nodes have no use for it", show(got), "remove it")


def _check_times(view: View, here: tuple[str, ...]) -> list[Problem]:
    """Return what is wrong with the walltime and the drain of an executor."""
    given = {key: view.text(*here, key) for key in ("walltime", "drain")}
    try:
        spec = Executor.model_validate({"provider": "slurm"} | {key: text for key, text in given.items() if text})
    except ValueError:
        return []  # said already
    if spec.seconds % 60 and view.text(*here, "provider") == "slurm":
        minutes = spec.seconds // 60 + 1
        what = "a block of Slurm lasts whole minutes: of 00:00:30 would become one without an end"
        remedy = f"write {minutes // 60:02d}:{minutes % 60:02d}:00"
        return [view.problem((*here, "walltime"), what, given["walltime"], remedy)]
    if spec.seconds and spec.drain_seconds < spec.seconds:
        return []
    if not spec.seconds:
        return [
            view.problem((*here, "walltime"), "a block of no time runs nothing", given["walltime"], "write 01:00:00")
        ]
    what = f"no task would ever start in a block of {spec.walltime}"
    return [view.problem((*here, "drain"), what, given["drain"], "write less than the walltime")]


def _left_to_auto(view: View, executor: tuple[str, ...]) -> bool:
    """Return whether cores and workers are both left to auto."""
    keys = ("cores", "workers")
    known = all(view.path(*executor, key) not in view.bad for key in keys)
    return known and all(view.get(*executor, key) in (None, "auto") for key in keys)


def _check_command(view: View, place: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    engine, words = place[-1], view.items(*place)
    if not all(isinstance(word, str) for word in words):
        return problems
    for i, word in enumerate(words):
        if " " in word.strip():
            what = "each word of the command is an entry of its own"
            remedy = "write [" + ", ".join(f'"{w}"' for w in word.split()) + "]"
            problems.append(view.problem((*place, i), what, show(word), remedy))
        unknown = [p for p in re.findall(r"\{[^}]*\}", word) if p not in FILLED]
        if unknown:
            what = f"{unknown[0]} is nothing that campaign fills in"
            remedy = "write " + " or ".join(f'"{name}"' for name in FILLED)
            problems.append(view.problem((*place, i), what, show(word), remedy))
    alone = engine == "cp2k" and not (words and _launches(words[0]))  # a program of one rank
    if words and not alone and not any("{" in w for w in words):
        what = "the command does not say how many ranks to start"
        remedy = 'write "{ranks}" where the number goes, such as [mpiexec, -n, "{ranks}"]'
        problems.append(view.problem(place, what, show(words), remedy))
    if words and engine == "cp2k" and not program_of(words):
        what = "the command does not end with CP2K's program"
        problems.append(view.problem(place, what, show(words), "add it as the last word: cp2k.psmp"))
    return problems


def program_of(command: Sequence[str]) -> str:
    """Return the program that CP2K's launch command ends with; nothing where it ends with something else."""
    word = command[-1]
    launcher = len(command) == 1 and _launches(word)
    return "" if launcher or word.startswith("-") or "{" in word else word


def _launches(word: str) -> bool:
    return Path(word).name.split(".")[0] in LAUNCHERS


def check_filled_in(site: Site, name: str) -> list[str]:
    """Return a line for each option of an executor that still holds a place to fill in, such as ``<project>``."""
    return _not_filled_in(site, f"executors.{name}", site.executors[name])


def check_driver_filled_in(site: Site) -> list[str]:
    """Return the same lines for the driver's own job; none where the site file does not describe it."""
    return [] if site.driver is None else _not_filled_in(site, "driver", site.driver)


def _not_filled_in(site: Site, place: str, spec: Executor) -> list[str]:
    return [
        f"site {site.name}: {place}.options.{key}: it is not set, got {value}; "
        f"campaign sites {site.name} > my-{site.name}.yaml, write yours there, and name the file with --site"
        for key, value in spec.options.items()
        if re.search(r"<\w+>", str(value))
    ]


def check_together(loaded: Loaded[Campaign], site: Site) -> list[str]:
    """Return what a campaign asks for and a site has not, each with the campaign file's line.

    Returns
    -------
    list of str
        Full lines as in `campaign.errors.InputError`; empty when all is well.
    """
    spec = loaded.spec
    problems: list[Problem] = []

    def say(key: str, what: str, got: str, remedy: str) -> None:
        line = next((loaded.lines[k] for k in (key, key.rpartition(".")[0]) if k in loaded.lines), 1)
        problems.append(Problem(line, key, what, got, remedy))

    for stage in spec.stages:
        if stage not in site.stages and "default" not in site.stages:
            remedy = f"write 'default: {next(iter(site.executors))}' under stages of the site file"
            say(stage, f"site {site.name} has no executor for this stage", "nothing", remedy)
            continue
        name = site.executor_for(stage)
        spare = _missing_cores(site.executors[name])
        if spare:
            what = f"executor {name} of site {site.name} asks for workers of more cores than this machine has"
            got = f"{site.executors[name].cores_per_worker}"
            say(stage, what, got, f"set 'cores_per_worker: {spare}' or less for {name} in the site file")
        missing = _missing_gpus(site.executors[name])
        if missing:
            what = f"executor {name} of site {site.name} asks for {site.executors[name].gpus} GPUs of this machine"
            say(stage, what, f"{missing - 1}", f"set 'gpus: 0' for {name} in the site file, or run on another site")
    asked = {f"sample[{i}]": s for i, s in enumerate(spec.sample) if isinstance(s, MolecularDynamics)}
    for key, sampling in asked.items():
        stage = key.partition("[")[0]
        ranks = sampling.processes
        name = "ranks" if ranks == sampling.ranks else "walkers_per_task"
        got = f"{ranks}" if name == "ranks" else f"{sampling.walkers_per_task} of {sampling.ranks} ranks"
        known = stage in site.stages or "default" in site.stages
        launch = site.launch_on(site.place(stage, ranks)) if known else site.launch
        if ranks > 1 and not launch.get("lammps"):
            remedy = f"write 'lammps: [mpiexec, -n, \"{{ranks}}\"]' under launch of the site file, or {name}: 1"
            what = f"site {site.name} has no command to launch LAMMPS on several ranks"
            say(f"{key}.{name}", what, got, remedy)
        if known:
            fault = _too_many_ranks(site, stage, ranks, sampling.ranks if name != "ranks" else 0)
            if fault:
                say(f"{key}.{name}", fault[0], got, fault[1])
    problems += _driven_problems(loaded, site)
    problems += _label_problems(loaded, site)
    problems += _train_problems(loaded, site)
    used = {site.executor_for(stage) for stage in spec.stages if stage in site.stages or "default" in site.stages}
    unset = [line for name in sorted(used.union(site.wide)) for line in check_filled_in(site, name)]
    return [p.text(loaded.path) for p in sorted(problems, key=lambda p: p.line)] + unset


def _driven_problems(loaded: Loaded[Campaign], site: Site) -> Iterator[Problem]:
    """Yield each sampling with a model on a GPU where the site has none for it."""
    if "sample" not in site.stages and "default" not in site.stages:
        return
    name = site.executor_for("sample")
    for i, sampling in enumerate(loaded.spec.sample):
        if isinstance(sampling, ModelDynamics) and sampling.device == "cuda" and not site.executors[name].gpus:
            key = f"sample[{i}].device"
            what = f"executor {name} of site {site.name} has no GPUs"
            other = next((n for n, e in site.executors.items() if e.gpus), None)
            remedy = f"'sample: {other}' under stages" if other else f"the GPUs of a node, such as gpus: 1, for {name}"
            remedy = f"write 'device: cpu', or {remedy} in the site file"
            yield Problem(loaded.lines.get(key, 1), key, what, "cuda", remedy)


def _label_problems(loaded: Loaded[Campaign], site: Site) -> Iterator[Problem]:
    """Yield what single points by CP2K ask for and the site has not: cores of a worker, a command for MPI ranks."""
    label = loaded.spec.label
    if not isinstance(label, CP2KLabel):
        return

    def problem(key: str, what: str, got: str, remedy: str) -> Problem:
        places = (f"label.{key}", "label.engine", "label")
        return Problem(next((loaded.lines[k] for k in places if k in loaded.lines), 1), places[0], what, got, remedy)

    known = "label" in site.stages or "default" in site.stages
    launch = site.launch_on(site.place("label", label.ranks, label.threads)) if known else site.launch
    command = launch.get("cp2k", ())
    if label.ranks > 1 and not any("{ranks}" in word for word in command):
        what = f"site {site.name} has no command to launch CP2K on several ranks"
        example = 'cp2k: [/usr/bin/mpirun, -n, "{ranks}", --bind-to, none, cp2k.psmp]'
        remedy = f"write '{example}' under launch of the site file, or ranks: 1"
        yield problem("ranks", what, f"{label.ranks}", remedy)
    if not known or site.fits(site.place("label", label.ranks, label.threads), label.ranks, label.threads):
        return
    name = site.executor_for("label")
    cores, each, needed = site.cores_per_node(name), site.cores_of_worker(name), label.ranks * label.threads
    key = "ranks" if label.ranks > 1 else "threads"
    got = f"{label.ranks}" if label.threads == 1 else f"{label.threads}"
    if label.ranks > 1 and label.threads > 1:
        got = f"{label.ranks} ranks of {label.threads} threads"
    if needed > cores or site.executors[name].nodes_per_worker:
        what = f"a single point on {needed} cores does not fit a node of executor {name} of site {site.name} ({cores})"
        yield problem(key, what, got, _more_nodes(site, f"use {max(cores, each)} cores or less", cores, needed))
        return
    what = f"a worker of executor {name} of site {site.name} has {each} core{'s' if each > 1 else ''}, not {needed}"
    many = f"{cores // needed} single points" if cores // needed > 1 else "1 single point"
    remedy = f"write cores_per_worker: {needed} for executor {name} in the site file (then a node runs {many})"
    yield problem(key, what, got, f"{remedy}, or use {each} here")


def _train_problems(loaded: Loaded[Campaign], site: Site) -> Iterator[Problem]:
    """Yield what training asks for and the site has not: GPUs, cores of a worker, a command for MPI ranks."""
    spec = loaded.spec.train
    if not isinstance(spec, Trained):
        return

    def problem(key: str, what: str, remedy: str) -> Problem:
        places = (f"train.{key}", "train.model", "train")
        line = next((loaded.lines[k] for k in places if k in loaded.lines), 1)
        return Problem(line, places[0], what, str(getattr(spec, key)), remedy)

    known = "train" in site.stages or "default" in site.stages
    name = site.executor_for("train") if known else ""
    if known and spec.device == "cuda" and not site.executors[name].gpus:
        what = f"executor {name} of site {site.name} has no GPUs"
        remedy = f"write 'device: cpu', or the GPUs of a node, such as gpus: 1, for {name} in the site file"
        yield problem("device", what, remedy)
    if loaded.spec.distill and spec.device == "cuda" and ("distill" in site.stages or "default" in site.stages):
        other = site.executor_for("distill")
        if other != name and not site.executors[other].gpus:
            what = f"distill trains on the same device, and its executor {other} of site {site.name} has no GPUs"
            yield problem("device", what, f"write 'distill: {name}' under stages of the site file")
    if spec.processes == 1:
        return
    place = site.place("train", spec.processes) if known else ""
    if place and not any("{ranks}" in word for word in site.launch_training(place)):
        what = f"site {site.name} has no command to launch a training on several processes"
        remedy = "write 'train: [mpiexec, -n, \"{ranks}\"]' under launch of the site file, or processes: 1"
        yield problem("processes", what, remedy)
    if known and spec.device == "cuda" and site.executors[name].gpus:
        gpus = site.executors[name].gpus
        each = gpus // min(gpus, site.workers_per_node(name))  # nccl wants a GPU for each process
        if spec.processes > each:
            what = f"a worker of executor {name} of site {site.name} has {each} GPU{'s' if each > 1 else ''}"
            fewer = f"fewer workers a node for {name} in the site file, such as workers: 1, or processes: {each}"
            yield problem("processes", what, f"write {fewer}")
    fault = _too_many_ranks(site, "train", spec.processes) if known else None
    if fault:
        yield problem("processes", fault[0], fault[1].replace("or ranks:", "or processes:"))


def _too_many_ranks(site: Site, stage: str, ranks: int, walker: int = 0) -> tuple[str, str] | None:
    """Return what is wrong with a task of ``ranks`` of a stage on a site, and the remedy.

    Its ranks run beside the worker that starts them: more of them than the worker has cores would take the cores of
    the others. ``walker`` are the ranks of one walker where the task has several walkers, else 0.
    """
    if site.fits(site.place(stage, ranks), ranks):
        return None
    name = site.executor_for(stage)
    cores, each = site.cores_per_node(name), site.cores_of_worker(name)
    if ranks > cores or site.executors[name].nodes_per_worker:
        what = f"executor {name} of site {site.name} has nodes of {cores} cores"
        wide = max(map(site.cores_of_worker, site.wide), default=0)
        what += f", and no worker of whole nodes more than {wide}" if wide else ""
        what += f", and a task of it {ranks} ranks" if walker else ""
        most = max(cores, wide)
        return what, _more_nodes(site, f"write {max(1, most // walker) if walker else most} or less", cores, ranks)
    what = f"a worker of executor {name} of site {site.name} has {each} core{'s' if each > 1 else ''}"
    walkers = f"{cores // ranks} such walkers" if cores // ranks > 1 else "1 such walker"
    site_file = f"write cores_per_worker: {ranks} for executor {name} in the site file (then a node runs {walkers})"
    if walker:
        site_file = site_file.replace("such walkers", "such tasks").replace("such walker", "such task")
        what = f"{what}, and a task of it {ranks} ranks"
        return what, f"{site_file}, or walkers_per_task: {max(1, each // walker)}"
    return what, f"{site_file}, or ranks: {each}"


def _more_nodes(site: Site, fewer: str, cores: int, needed: int) -> str:
    """Return the remedy for a task that is larger than a node."""
    if all(spec.provider == "local" for spec in site.executors.values()):
        return f"{fewer}, or choose a site with larger nodes"
    nodes = -(-needed // cores)
    return f"{fewer}, or add an executor with 'nodes: {nodes}' and 'nodes_per_worker: {nodes}' to the site file"


def _missing_cores(executor: Executor) -> int:
    """Return the cores found here where a worker of a local executor would have more: none would start; else 0."""
    here = cores_here()
    return here if executor.provider == "local" and executor.cores_per_worker > here else 0


def _missing_gpus(executor: Executor) -> int:
    """Return one more than the GPUs found here where a local executor asks for more, else 0."""
    if executor.provider != "local" or not executor.gpus or Path("/dev/kfd").exists():
        return 0
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return found + 1 if executor.gpus > found else 0
