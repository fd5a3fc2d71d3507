"""OPEN THIS FIRST: the whole campaign on one screen.

A campaign file becomes stages. Each stage says which tasks are possible now (``plan``), a worker does one
(``campaign.worker.run_task`` calls the stage's ``work``), and the stage takes the result in (``commit``). What one
stage tells another stands on a board: shards of the pool, sets of chosen frames, labels, models.

    sample    walkers run segments of molecular dynamics; every finished segment is a shard of the pool
    select    one selector sees each shard once, in a fixed order, while sampling goes on
    distill   an ensemble finds the few frames of the pool, or of the selection, that the others can be predicted from
    transfer  in place of these: the set of another campaign, scaled to this one's lattice, its species mapped
    label     every chosen frame is computed by the reference method as soon as it is chosen
    train     an ensemble for each training set
    learn     dynamics with the model; what it does not know joins the training set, round after round
    validate  errors, stability, structure, density, transport, crystals: a verdict for each

``Flow`` runs this loop until nothing is left; finished tasks are known by their ids and never run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.errors import InputError, StoreError
from campaign.flow import Flow, History
from campaign.inputs import (
    check_in_place,
    check_models,
    digests,
    frame_sources,
    label_methods,
    notes,
    read_files,
    with_shared_cache,
)
from campaign.origins import check_there, note, transfer_origin
from campaign.runtime.runner import InlineRunner, Runner
from campaign.stages.board import Stage
from campaign.store.ledger import read_ledger
from campaign.store.rundir import RunDirectory, failed_tries, holder, open_existing
from campaign.store.store import Store
from campaign.tasks import Context, Json
from campaign.worker import run_task

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded, Site
    from campaign.stages.sample_file import Source
    from campaign.stages.transfer_origin import Origin


def stages_of(
    campaign: Campaign,
    digests: dict[str, str],
    until: str | None = None,
    sources: Sequence[Source] = (),
    methods: Sequence[str] = (),
    origin: Origin | None = None,
) -> list[Stage]:
    """Return the stages of a campaign in order, up to and including ``until``.

    ``sources`` are its files of frames, ``methods`` what each rung of CP2K computes (``inputs.label_methods``),
    ``origin`` the frames that it transfers.
    """
    from campaign.stages.distill import Distill
    from campaign.stages.label import Label
    from campaign.stages.learn import Learn
    from campaign.stages.sample import Sample
    from campaign.stages.select import Select
    from campaign.stages.train import Train
    from campaign.stages.transfer import Transfer
    from campaign.stages.validate import Validate

    stages: list[Stage] = [Sample(campaign, digests, sources)] if campaign.sample else []
    if campaign.select:
        stages.append(Select(campaign, sources))
    if campaign.distill:
        stages.append(Distill(campaign))
    if origin is not None:
        stages.append(Transfer(campaign, digests, origin))
    if campaign.label:
        stages.append(Label(campaign, digests, methods))
    if campaign.train:
        stages.append(Train(campaign))
    if campaign.learn:
        stages.append(Learn(campaign, sources))
    if campaign.validation:
        stages.append(Validate(campaign, digests))
    names = [s.name for s in stages]
    if until is not None and until not in names:
        raise InputError(f"--until: this campaign has no stage {until}; write one of {', '.join(names)}.")
    return stages[: names.index(until) + 1] if until else stages


@dataclass(frozen=True)
class Options:
    """How to run a campaign.

    Attributes
    ----------
    until
        The last stage to run.
    inline
        Run every task in this process instead of on the site's workers.
    retry_quarantined
        Try again what failed for good before.
    show
        Called with a new status now and then (``LiveView.update``).
    """

    until: str | None = None
    inline: bool = False
    retry_quarantined: bool = False
    show: Callable[[dict[str, Json]], None] = lambda status: None


def run(loaded: Loaded[Campaign], site: Site, path: Path, options: Options) -> dict[str, Json]:
    """Run a campaign in ``path`` until nothing is left to do; the same call continues an earlier one.

    Parameters
    ----------
    loaded, site
        What to do, and where.
    path
        The run directory.
    options
        Where to stop, how to show progress.

    Returns
    -------
    dict
        The final status (``Flow.status``).

    Raises
    ------
    InputError
        Nothing was started.
    DiskFull, TooManyFailures
        It stopped early and can be continued.
    """
    from campaign.config import dump

    loaded = with_shared_cache(loaded)
    files = read_files(loaded)
    problems = check_models(loaded)
    if problems:
        raise InputError(*problems)
    sources = frame_sources(loaded, path, again=True)
    origin = transfer_origin(loaded, survey, sources, path)
    stages = stages_of(loaded.spec, digests(files), options.until, sources, label_methods(loaded), origin)
    if not options.inline:
        check_run_path(path)
    with RunDirectory(path) as directory:
        directory.write_inputs(dump(loaded.spec), dump(site), {**files, **notes(sources), **note(origin)})
        workers = 1 if options.inline else _workers(site)
        flow = _recovered(stages, loaded.spec, directory, options.retry_quarantined, workers)
        context = Context(directory.path, {k: list(v) for k, v in site.launch.items()}, token=directory.token)

        def status(live: bool = True) -> dict[str, Json]:
            return flow.status(loaded.spec.name, loaded.spec.stages, live, directory.path / "tasks")

        try:
            flow.survey()
            check_in_place(sources, flow.board.shards)
            check_there(origin, sum(getattr(s, "missing", 0) for s in stages))
            _pack(flow, directory)  # what an earlier run left small; nothing is in flight yet
            if flow.unfinished():
                with _runner(site, directory, options.inline) as runner:
                    waits_for = getattr(runner, "waits_for", str)  # those of this process wait for nobody
                    flow.run(runner, directory, context, lambda: options.show({**status(), "waits_for": waits_for()}))
            _pack(flow, directory)
        except BaseException:  # whatever ends the run, people get to see what is there
            with suppress(OSError, StoreError):
                _write_results(flow, directory, status(live=False))
            raise
        _write_results(flow, directory, status(live=False))
        options.show(status(live=False))
        return status(live=False)


def check_run_path(path: Path) -> None:
    """Refuse a run directory that Parsl and the scripts of batch systems cannot name: workers would never start.

    Raises
    ------
    InputError
        It has such characters. Slurm fills in ``%`` in the names of a job's files, and Parsl ``{}`` in its commands.
    """
    bad = sorted(set(str(path.resolve())) & set(" \t\n'\"$`\\&;()<>|*?#~%{}"))
    if bad:
        raise InputError(
            f"{path.resolve()}: workers cannot be started in a folder with {' '.join(map(repr, bad))} in its path; "
            "name another place with --root."
        )


def survey(run: Path) -> tuple[Flow, Campaign]:
    """Return what is finished in a run directory, running nothing and writing nothing."""
    from campaign.config import load_campaign

    path = open_existing(run)
    loaded = load_campaign(path / "campaign.yaml")
    files = read_files(loaded)
    store = Store(path / "run.zarr")
    history = History(store.scan(), store.quarantined())
    with suppress(StoreError):  # a damaged ledger: the next run says so, and what is finished does not hang on it
        history.tries = failed_tries(read_ledger(path / "ledger.jsonl"))
    sources = frame_sources(loaded)
    origin = transfer_origin(loaded, survey, sources)
    stages = stages_of(loaded.spec, digests(files), None, sources, label_methods(loaded), origin)
    flow = Flow(stages, history, loaded.spec.max_failed)
    flow.survey()
    return flow, loaded.spec


def status_of(run: Path) -> dict[str, Json]:
    """Return the status of a run directory; a driver at work on it is seen by its lock."""
    flow, spec = survey(run)
    return flow.status(spec.name, spec.stages, holder(open_existing(run)) is not None)


def report_of(run: Path) -> Path:
    """Write the report of a run directory as it is now and return its path."""
    from campaign.results.report import write_report

    flow, spec = survey(run)
    path = open_existing(run)
    return write_report(
        flow, path, Store(path / "run.zarr"), flow.status(spec.name, spec.stages, holder(path) is not None)
    )


def export_of(run: Path, what: str, to: Path) -> int:
    """Write frames of a run directory to a file of another program (``results.export``); return how many."""
    from campaign.results.export import export

    flow, _ = survey(run)
    return export(flow, Store(open_existing(run) / "run.zarr"), what, to)


def _workers(site: Site) -> int:
    """Return how many tasks a site does at once, at most."""
    names = {site.executor_for(s) for s in site.stages if s != "default"} or {site.executor_for("sample")}
    return max(1, sum(site.workers_per_block(name) * site.executors[name].max_blocks for name in names))


def _recovered(stages: list[Stage], campaign: Campaign, directory: RunDirectory, retry: bool, workers: int) -> Flow:
    done, quarantined, attempts = directory.recover()
    if retry:
        directory.release(quarantined)
        attempts = {task: n for task, n in attempts.items() if task not in quarantined}
        directory.tries = {task: t for task, t in directory.tries.items() if task not in quarantined}
        quarantined = {}
    history = History(done, quarantined, attempts, directory.tries)
    return Flow(stages, history, campaign.max_failed, workers)


@contextmanager
def _runner(site: Site, directory: RunDirectory, inline: bool) -> Iterator[Runner]:
    runner: Runner
    if inline:
        runner = InlineRunner(run_task)
    else:
        from campaign.runtime.parsl import ParslRunner

        runner = ParslRunner(run_task, site, directory.path / "logs", directory.token)
    try:
        yield runner
    finally:
        runner.close()


def _pack(flow: Flow, directory: RunDirectory) -> None:
    """Pack the small groups of finished stages into large ones; nothing is in flight now."""
    for stage in flow.stages:
        chains = getattr(stage, "packable", None)
        if chains is not None:
            directory.store.pack(stage.name, chains(flow.board), keep_checkpoints=stage.name == "sample")


def _write_results(flow: Flow, directory: RunDirectory, status: dict[str, Json]) -> None:
    """Write the results that people open: models, validation, the report."""
    from campaign.results.files import write_outputs
    from campaign.results.report import write_report

    write_outputs(flow, directory.path, directory.store)
    write_report(flow, directory.path, directory.store, status)
