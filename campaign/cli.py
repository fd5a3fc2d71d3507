"""The command line. No logic here: every command calls one function of the package and prints what it returns."""

from __future__ import annotations

import io
import json as _json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from campaign import __version__
from campaign.errors import CampaignError, DiskFull, InputError, StoreError, TooManyFailures
from campaign.remote.commands import app as remote

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(remote, name="remote")

DONE, MISSING, WRONG, INTERRUPTED = 0, 1, 2, 130

File = Annotated[Path, typer.Argument(metavar="FILE", help="The campaign file.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, or its run.zarr.")]
SiteName = Annotated[str, typer.Option("--site", metavar="S", help="A site's name, or the path of a site file.")]
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="Where run directories are made.")]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Retry = Annotated[bool, typer.Option("--retry-quarantined", help="Try again what failed for good.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run every task in this process, without workers.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"campaign {__version__}")
        raise typer.Exit


@app.callback()
def campaign(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and end.")
    ] = False,
) -> None:
    """Find the smallest set of expensive calculations that gives a potential one can trust."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def init(
    template: Annotated[str | None, typer.Argument(metavar="[TEMPLATE]", help="Which template.")] = None,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="The file to write.")] = None,
) -> None:
    """List the templates, or write one with the files it names."""
    from campaign.config import copy_template, template_names

    if template is None:
        for name, text in template_names().items():
            print(f"{name:<14} {text}")
        return
    for path in copy_template(template, output or Path(f"{template}.yaml")):
        _say(f"wrote {path}")


@app.command()
def check(file: File, site: SiteName = "local", json: AsJson = False) -> None:
    """Validate a campaign, find its engines and print the plan; run nothing."""
    from campaign.plan import make_plan, plan_text

    plan = make_plan(file, site)
    for warning in plan["warnings"]:
        _say(warning)
    print(_json.dumps(plan) if json else plan_text(plan))


@app.command()
def run(
    file: File,
    site: SiteName = "local",
    root: Root = Path("runs"),
    until: Until = None,
    retry_quarantined: Retry = False,
    inline: Inline = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the driver as a batch job, and return.")] = False,
) -> None:
    """Run a campaign; the same command again continues it."""
    from campaign.config import load_campaign, load_site

    if detach and inline:
        raise InputError("--inline: a job of its own has workers, and --inline none; leave out one of the two.")
    problems: list[str] = []
    loaded = _collect(problems, load_campaign, file)
    machine = _collect(problems, load_site, site)
    if problems:
        raise InputError(*problems)
    if detach:
        from campaign.detach import detach as submit

        _say(submit(file, site, root, until, retry_quarantined))
        return
    _drive(loaded, machine, root / loaded.spec.name, until, retry_quarantined, inline)


@app.command()
def resume(
    run: Run,
    site: Annotated[str | None, typer.Option("--site", metavar="S", help="Another site than before.")] = None,
    until: Until = None,
    retry_quarantined: Retry = False,
    inline: Inline = False,
) -> None:
    """Continue from the run directory, or from its Zarr store alone."""
    from campaign.config import load_campaign, load_site
    from campaign.store.rundir import open_existing

    path = open_existing(run)
    loaded = load_campaign(path / "campaign.yaml")
    _drive(loaded, load_site(site or str(path / "site.yaml")), path, until, retry_quarantined, inline)


def _drive(loaded: Any, site: Any, path: Path, until: str | None, retry: bool, inline: bool) -> NoReturn:
    from campaign.config import check_together
    from campaign.pipeline import Options
    from campaign.pipeline import run as run_campaign
    from campaign.report.live import LiveView

    problems = check_together(loaded, site)
    if problems:
        raise InputError(*problems)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    _say(f"campaign {loaded.spec.name} in {path} on {site.name}")
    with LiveView() as view:
        status = run_campaign(loaded, site, path, Options(until, inline, retry, view.update))
    for line in _summary(status, path):
        print(line)
    raise typer.Exit(MISSING if status["failures"] or (status["state"] != "done" and until is None) else DONE)


class _Interrupted(BaseException):
    """Ctrl-C, or a SIGTERM of the batch system. Not an Exception: nothing may swallow it."""


def _interrupt(_signal: int, _frame: Any) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):  # another one would break off the ending of jobs and workers
        signal.signal(again, signal.SIG_IGN)
    raise _Interrupted


def _summary(status: dict[str, Any], path: Path) -> list[str]:
    from campaign.results.headlines import headline, hints

    how = "transferred" if "transfer" in status["stages"] else "selected"
    lines = [f"{status['frames']} frames sampled, {status['selected']} {how}, {status['labelled']} labelled"]
    if status.get("refused"):
        lines[0] += f", {status['refused']} refused by the bounds (the report says why)"
    lines += [f"note: {note}" for note in status.get("notes", [])]
    lines += headline(path / "validation")
    for failure in status["failures"][:20]:
        lines.append(f"failed: {failure['stage']} {failure.get('frame') or failure['task']}: {failure['cause']}")
    if len(status["failures"]) > 20:
        lines.append(f"... and {len(status['failures']) - 20} more failures: campaign status {path}")
    if any(f["stage"] == "label" for f in status["failures"]):
        lines.append(f"the files of each attempt at a frame: campaign status {path}")
    lines += hints(status["failures"], path)
    lines.append(f"report: {path / 'report.html'}")
    return lines


@app.command()
def status(
    run: Run,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s until it ends.")] = False,
) -> None:
    """Show stages, tasks, frames, failures with their cause."""
    from campaign.pipeline import status_of

    found = status_of(run)
    if json:
        print(_json.dumps(found))
        return
    from rich.console import Console

    from campaign.report.live import LiveView, status_table

    if watch:
        signal.signal(signal.SIGINT, _interrupt)
        with LiveView(Console()) as view:
            while found["state"] == "running":
                view.update(found)
                time.sleep(2)
                found = status_of(run)
            view.update(found)
    else:
        Console().print(status_table(found, most=200))


@app.command()
def report(run: Run) -> None:
    """Write RUN/report.html."""
    from campaign.pipeline import report_of

    print(report_of(run))


@app.command()
def export(
    run: Run,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="pool, selected, labelled, rejected or failed.")],
    to: Annotated[Path, typer.Argument(metavar="TO", help="*.extxyz, *.db or *.zarr")],
) -> None:
    """Write frames for another program."""
    from campaign.pipeline import export_of

    _say(f"{export_of(run, what, to)} frames written to {to}")


@app.command()
def sites(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A site's name or file.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Run one tiny task on each executor.")] = False,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="With --test: how long to wait for each.")
    ] = 300,
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="With --test: where runs would be.")] = Path("."),
) -> None:
    """List the sites; or show one with what will be asked for, and test it."""
    from campaign.config import find_site, load_site, site_names
    from campaign.sites import describe, try_site

    if name is None:
        for site_name, text in site_names().items():
            print(f"{site_name:<14} {text}")
        return
    site = load_site(name)
    if not test:
        print(find_site(name).read_text(encoding="utf-8").rstrip("\n"))  # with its comments: what is to be looked up
        print("\n# What will be asked for:")
        for line in describe(site):  # as comments: what is printed is a site file
            print(f"# {line}".rstrip())
        return
    for line in try_site(site, patience, root):
        print(line, flush=True)


def _collect(problems: list[str], load: Any, *args: Any) -> Any:
    """Call ``load`` and keep its problems, so that every file's are reported at once."""
    try:
        return load(*args)
    except InputError as error:
        problems += error.problems
        return None


def main() -> None:
    """Run the command line; turn errors into messages and exit codes. Wrong usage is 2, as Typer has it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no such letter shows another
    try:
        app()
    except InputError as error:
        for problem in error.problems:
            _say(problem)
        sys.exit(WRONG)
    except (DiskFull, TooManyFailures) as error:  # it stopped on the way
        _say(str(error))
        sys.exit(MISSING)
    except StoreError as error:  # the run directory cannot be used
        _say(str(error))
        sys.exit(WRONG)
    except CampaignError as error:
        _say(str(error))
        sys.exit(MISSING)
    except _Interrupted:
        _say("Interrupted. Everything finished is kept; the same command continues.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a path that the system will not open
        _say(f"{error.filename or 'The system'}: {error.strerror or error}; check the path and its permissions.")
        sys.exit(MISSING)


if __name__ == "__main__":
    main()
