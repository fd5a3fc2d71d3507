"""``campaign remote``: no logic here, as in ``campaign.cli``; every command calls one function of ``client``."""

from __future__ import annotations

import json as _json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Run campaigns on a Globus Compute endpoint, from here.")

DONE, MISSING = 0, 1

Run = Annotated[str, typer.Argument(metavar="RUN", help="The id that submit printed.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint", metavar="ID", help="The endpoint's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The campaign file.")] = None,
    endpoint: Endpoint = None,
    site: Annotated[str | None, typer.Option("--site", metavar="S", help="One of the endpoint's sites.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Continue this run.")] = None,
    root: Annotated[str, typer.Option("--root", metavar="DIR", help="A folder below the endpoint's own.")] = "",
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Try again what failed.")] = False,
    new: Annotated[bool, typer.Option("--new", help="A new run of a file that was submitted before.")] = False,
) -> None:
    """Send a campaign and start it; print its run id. The same command again continues it."""
    from campaign.remote.client import Options
    from campaign.remote.client import submit as submit_run

    print(submit_run(file, endpoint, site, run, Options(root, until, retry_quarantined, new)))


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The id that submit printed.")] = None,
    endpoint: Endpoint = None,
    json: AsJson = False,
) -> None:
    """Show how far a run is; without RUN, list those submitted from here."""
    from campaign.remote.client import status as status_of
    from campaign.remote.kept import all_kept

    if run is not None:
        _show(status_of(run, endpoint), json)
        return
    for kept in all_kept():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.submitted))
        print(f"{kept.run:<32} {when}  {kept.endpoint}  {kept.site}")


@app.command()
def wait(
    run: Run,
    endpoint: Endpoint = None,
    every: Annotated[float, typer.Option("--every", metavar="S", min=0.1, help="Seconds between two looks.")] = 30.0,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="S", help="Give up then; it goes on.")] = None,
    json: AsJson = False,
) -> None:
    """Wait until a run ends. Exit code 0: done; 1: something is missing."""
    from campaign.remote.client import wait as wait_for
    from campaign.report.live import printable

    last = ""

    def tell(news: dict[str, Any] | str) -> None:
        nonlocal last
        text = printable(news if isinstance(news, str) else f"{run}: {news['state']}, {news['frames']} frames")
        if text != last:
            _say(text)
        last = text

    found = wait_for(run, endpoint, every, timeout, tell)
    _show(found, json)
    raise typer.Exit(DONE if found["state"] == "done" and not found["failures"] else MISSING)


@app.command()
def fetch(
    run: Run,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="report, selected, labelled or model.")],
    to: Annotated[Path | None, typer.Option("-o", metavar="DIR", help="Where to write; default RUN.")] = None,
    endpoint: Endpoint = None,
) -> None:
    """Fetch a result; of one too large, print the command that brings it (exit code 1)."""
    from campaign.remote.client import fetch as fetch_result
    from campaign.remote.protocol import LARGEST, megabytes

    found = fetch_result(run, what, to, endpoint)
    for path in found.paths:
        print(path)
    if found.commands:
        _say(f"{what} has {megabytes(found.size)}, and Globus Compute carries {megabytes(LARGEST)}; bring it with:")
        print("\n".join(found.commands))
        raise typer.Exit(MISSING)


def _show(found: dict[str, Any], json: bool) -> None:
    if json:
        print(_json.dumps(found))
        return
    from rich.console import Console

    from campaign.report.live import printable, status_table

    Console().print(status_table(found, most=200))
    _say(printable(f"run {found['run']} on {found['host']}: {found['folder']}"))
    for line in found["log"] or ():
        _say(f"  {printable(line)}")
    if found["state"] in ("failed", "interrupted"):
        _say(f"it goes on with: campaign remote submit --run {found['run']}")
