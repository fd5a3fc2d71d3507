"""The laptop's side: ``submit``, ``status``, ``wait`` and ``fetch``, for the command line, scripts and flows.

Of every run a small file is kept, ``RUN.json`` in ``$XDG_STATE_HOME/campaign/remote`` (``~/.local/state``): which
endpoint, site and file. No secrets: those of Globus are Globus's own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.config.fields import suggest
from campaign.config.yaml_lines import show
from campaign.errors import CampaignError, InputError
from campaign.remote.kept import Kept, all_kept, read_kept, unknown
from campaign.remote.protocol import (
    LARGEST,
    MOST_FILES,
    WHAT,
    check_path,
    check_run_id,
    fetchable,
    pack_files,
    too_large,
    unpack_files,
)
from campaign.remote.service import PATIENCE, Service, endpoint_id
from campaign.report.live import printable

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded

#: States in which a run moves by itself.
MOVING = ("starting", "running")

#: How often in a row an endpoint may not answer before ``wait`` gives up.
MOST_SILENT = 10


@dataclass(frozen=True)
class Options:
    """How to run what is submitted.

    Attributes
    ----------
    root
        Folder below the endpoint's folder for campaigns.
    until
        The last stage to run.
    retry_quarantined
        Try again what failed for good before.
    new
        Start a new run even where this file was submitted to this endpoint and site before.
    patience
        Seconds to wait for the endpoint's answer.
    """

    root: str = ""
    until: str | None = None
    retry_quarantined: bool = False
    new: bool = False
    patience: float = PATIENCE


@dataclass(frozen=True)
class Fetched:
    """What came of a fetch.

    Attributes
    ----------
    paths
        The files, written here.
    commands
        Where they were too large: the commands that bring them.
    size
        Bytes.
    """

    paths: list[Path]
    commands: list[str]
    size: int


def submit(
    file: Path | str | None = None,
    endpoint: str | None = None,
    site: str | None = None,
    run: str | None = None,
    options: Options | None = None,
) -> str:
    """Send a campaign to an endpoint and start it there; return the run's id at once.

    The same file, endpoint and site again continue the same run, as ``campaign run`` does.

    Parameters
    ----------
    file
        The campaign file; the files that it names are sent with it. None: the run goes on with what it has.
    endpoint, site
        Where. Needed for a run that is not known here.
    run
        Continue this run.
    options
        How.

    Raises
    ------
    InputError
        The file is wrong or too large, or the endpoint's side refuses it; nothing was started.
    CampaignError
        The endpoint could not be asked.
    """
    from campaign.config import load_campaign

    options = options or Options()
    check_path(options.root, "--root")
    endpoint = endpoint_id(endpoint) if endpoint else None
    loaded = load_campaign(Path(file)) if file is not None else None
    before = _before(loaded, endpoint, site, run, options)
    if before is not None:
        kept = replace(before, site=site or before.site)
    else:
        assert loaded is not None
        assert endpoint is not None
        assert site is not None
        run = run or f"{loaded.spec.name}-{uuid.uuid4().hex[:8]}"
        kept = Kept(run, endpoint, site, options.root)
    request: dict[str, Any] = {"action": "submit", "run": kept.run, "root": kept.root, "site": kept.site}
    request |= {"until": options.until, "retry_quarantined": options.retry_quarantined}
    if loaded is not None:
        request |= {"file": loaded.path.name, "files": pack_files(files_of(loaded))}
        kept = replace(kept, file=str(loaded.path.resolve()))
    service = Service(kept.endpoint, options.patience)
    kept = replace(kept, submitted=max(time.time(), kept.submitted + 1e-3))
    request["sent"] = kept.submitted
    kept.write()  # before it is sent: whatever happens on the way, the same command finds the same run
    try:
        service.call(request)
    except InputError:
        kept.forget() if before is None else before.write()
        raise
    return kept.run


def _before(
    loaded: Loaded[Campaign] | None, endpoint: str | None, site: str | None, run: str | None, options: Options
) -> Kept | None:
    """Return the run that is to be continued, None for a new one."""
    if run is not None:
        known = read_kept(run)
        if known is None and (loaded is None or not endpoint or not site):
            raise InputError(unknown(run, "give FILE, --endpoint and --site with it"))
        if known is not None and endpoint not in (None, known.endpoint):
            raise InputError(
                f"--endpoint: run {run} is on endpoint {known.endpoint}, got {show(endpoint)}; leave it out."
            )
        if known is not None and options.root not in ("", known.root):
            where = f"in {known.root}" if known.root else "in the endpoint's own folder"
            raise InputError(f"--root: run {run} lies {where}, got {show(options.root)}; leave it out.")
        return known
    if loaded is None:
        raise InputError("Nothing to submit: give FILE, or --run ID to continue a run.")
    missing = [name for name, value in (("--endpoint", endpoint), ("--site", site)) if not value]
    if missing:
        remedy = "a new run needs --endpoint ID --site NAME"
        raise InputError(*(f"{name}: this option is missing; {remedy}" for name in missing))
    mine = (str(loaded.path.resolve()), endpoint, site, options.root)
    same = [k for k in all_kept() if (k.file, k.endpoint, k.site, k.root) == mine]
    return None if options.new or not same else max(same, key=lambda k: k.submitted)


def files_of(loaded: Loaded[Campaign]) -> dict[str, bytes]:
    """Return what is sent of a campaign: the file, and every file that it names, by path relative to it.

    Raises
    ------
    InputError
        It is too much, or something that cannot be sent.
    """
    from campaign.inputs import read_files, read_in_place

    frames = read_in_place(loaded)
    if loaded.spec.transfer and not loaded.spec.transfer.is_file:
        what = "another run is a folder of files and is not sent to an endpoint"
        remedy = "export its frames ('campaign export RUN selected set.extxyz'), name that file and write the factor"
        raise InputError(f"{loaded.path}: {show(loaded.spec.transfer.source)}: {what}; {remedy} of 'scale'.")
    folders = [name for name, path in frames.items() if path.is_dir()]
    if folders:
        what = "a Zarr store is a folder of files and is not sent to an endpoint"
        remedy = "export its frames ('campaign export RUN pool frames.extxyz') and name that file"
        raise InputError(*(f"{loaded.path}: {show(name)}: {what}; {remedy}." for name in folders))
    absent = [name for name, path in frames.items() if not path.is_file()]
    if absent:  # the source of a transfer: those of 'sample' were looked for with the campaign file
        raise InputError(*(f"{loaded.path}: {show(name)}: there is no such file; check the path." for name in absent))
    sizes = {name: path.stat().st_size for name, path in frames.items()}
    if sum(sizes.values()) > LARGEST:  # before anything is read: it may be very large
        raise InputError(f"{loaded.path}: {too_large(sizes)}")
    files = {**read_files(loaded), **{name: path.read_bytes() for name, path in frames.items()}}
    files[loaded.path.name] = loaded.path.read_bytes()
    for name in files:
        check_path(name, f"{loaded.path}")
    sizes = {name: len(content) for name, content in files.items()}
    if sum(sizes.values()) > LARGEST:
        raise InputError(f"{loaded.path}: {too_large(sizes)}")
    if len(files) > MOST_FILES:
        raise InputError(
            f"{loaded.path}: {len(files)} files are more than the {MOST_FILES} that can be sent; name fewer."
        )
    return files


def _kept(run: str, endpoint: str | None) -> Kept:
    """Return what is known of a run, of one that another computer submitted (``ROOT/RUN``) only where it is."""
    root, _, run = run.rpartition("/")
    check_path(root, "run")
    known = read_kept(run)
    if known is not None and endpoint in (None, known.endpoint):
        return known
    if endpoint is None:
        raise InputError(unknown(run, "give --endpoint ID for one that another computer submitted"))
    return Kept(run, endpoint, root=root)


class Remote:
    """A run on an endpoint, to be asked several times.

    Parameters
    ----------
    run
        Its id; ``ROOT/RUN`` for one that another computer submitted with a root.
    endpoint
        Of a run that another computer submitted.
    patience
        Seconds to wait for each answer.
    """

    def __init__(self, run: str, endpoint: str | None = None, patience: float = PATIENCE) -> None:
        self._kept = _kept(run, endpoint_id(endpoint) if endpoint else None)
        self._service = Service(self._kept.endpoint, patience)

    def ask(self, action: str, **more: str) -> dict[str, Any]:
        """Send a request about this run and return the answer."""
        request = {"action": action, "run": self._kept.run, "root": self._kept.root, **more}
        return self._service.call(request)

    def status(self) -> dict[str, Any]:
        """Return how far the run is: what ``campaign status --json`` prints, and where it runs.

        Beside its keys: ``run``, ``endpoint``, ``function``, ``site``, ``host``, ``folder``, ``driver`` (host and
        process id, or None) and ``log`` (the driver's last lines, where it ended early). ``state`` may also be
        ``starting``, or ``failed``: the driver ended before it had begun.
        """
        answer = self.ask("status")
        nothing = {"campaign": self._kept.run, "stages": {}, "frames": 0, "selected": 0, "labelled": 0, "failures": []}
        where = {key: answer.get(key) for key in ("state", "site", "host", "folder", "driver", "log")}
        mine = {"run": self._kept.run, "endpoint": self._kept.endpoint, "function": self._service.function}
        return {**(answer.get("status") or nothing), **where, **mine}


def status(run: str, endpoint: str | None = None, patience: float = PATIENCE) -> dict[str, Any]:
    """Return how far a run is (``Remote.status``).

    Raises
    ------
    InputError
        There is no such run, here or there.
    CampaignError
        The endpoint could not be asked.
    """
    return Remote(run, endpoint, patience).status()


def wait(
    run: str,
    endpoint: str | None = None,
    every: float = 30.0,
    timeout: float | None = None,
    tell: Callable[[dict[str, Any] | str], None] = lambda news: None,
) -> dict[str, Any]:
    """Wait until a run ends and return its last status.

    Parameters
    ----------
    run, endpoint
        The run.
    every
        Seconds between two questions.
    timeout
        Seconds after which to give up; the run goes on.
    tell
        Called with each status, and with a sentence where the endpoint did not answer.

    Raises
    ------
    CampaignError
        The endpoint did not answer several times in a row, or the time is over.
    """
    remote = Remote(run, endpoint)
    end = time.monotonic() + timeout if timeout is not None else None
    silent = 0
    while True:
        try:
            found = remote.status()
            silent = 0
            tell(found)
            if found["state"] not in MOVING:
                return found
        except InputError:
            raise
        except CampaignError as error:  # a network that is gone for a while, a worker lost
            silent += 1
            if silent == MOST_SILENT:
                raise
            tell(str(error))
        if end is not None and time.monotonic() + every > end:
            raise CampaignError(
                f"Run {run} has not ended in {timeout:g} s; it goes on. Wait again, or look at its status."
            )
        time.sleep(every)


def fetch(
    run: str, what: str, to: Path | str | None = None, endpoint: str | None = None, patience: float = PATIENCE
) -> Fetched:
    """Fetch a result of a run.

    Parameters
    ----------
    run, endpoint
        The run.
    what
        ``report``, ``selected``, ``labelled`` (extended XYZ) or ``model`` (all members).
    to
        The folder to write to, made where absent; default ``RUN``. Files of the same names are replaced.
    patience
        Seconds to wait for the answer.

    Raises
    ------
    InputError
        There is no such run or result.
    CampaignError
        The endpoint could not be asked.
    """
    if what not in WHAT:
        raise InputError(f"{show(what)} cannot be fetched; {suggest(what, WHAT)}.")
    name = run.rpartition("/")[2]
    check_run_id(name)
    answer = Remote(run, endpoint, patience).ask("fetch", what=what)
    size = int(answer.get("bytes", 0))
    if "files" not in answer:
        return Fetched([], [printable(c) for c in answer.get("commands", [])], size)
    files = unpack_files(answer["files"])
    foreign = [file for file in files if not fetchable(what, file)]
    if foreign:
        raise CampaignError(f"Endpoint sent {show(foreign[0])} in place of {what}; nothing was written.")
    folder = Path(name if to is None else to)  # what the endpoint says has no part in where it is written
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, content in files.items():
        path = folder / file
        aside = folder / f".{uuid.uuid4().hex}"
        aside.write_bytes(content)
        paths.append(aside.replace(path))
    return Fetched(paths, [], size)
