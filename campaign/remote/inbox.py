"""The files that came with a campaign: looked at aside, and taken in when all is right with them.

The checks are those of ``campaign run`` itself, so nothing is accepted here that would be refused at a terminal.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.data_files import is_own
from campaign.config.yaml_lines import show
from campaign.errors import InputError
from campaign.remote.allowed import inside
from campaign.remote.protocol import LARGEST, check_path, too_large

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded

#: The folder of a run in which what was sent lies: no campaign has such a name.
INPUTS = "_inputs"


def take_in(folder: Path, labels: Path, site: str, file: str, files: dict[str, bytes]) -> Loaded[Campaign]:
    """Check a campaign that was sent and put its files into ``folder/_inputs``.

    Parameters
    ----------
    folder
        The run's.
    labels
        The one folder outside its own in which a campaign may keep labels, or below which.
    site
        The site it shall run on: a name or a site file.
    file, files
        The name of the campaign file, and every file by its path relative to it.

    Returns
    -------
    Loaded
        The campaign where it lies now.

    Raises
    ------
    InputError
        With everything that is wrong; nothing was changed.
    """
    from campaign.config import load_campaign

    if file not in files or len(check_path(file, "file")) != 1:
        raise InputError(f"file: the campaign file is not among the files sent, got {show(file)}; send it with them.")
    sizes = {name: len(content) for name, content in files.items()}
    if sum(sizes.values()) > LARGEST:
        raise InputError(too_large(sizes))
    own = sorted(name for name in files if name != file and is_own(name))
    if own:  # with them the folder could pass for a run directory, whose notes are believed
        what = "a run directory has something of this name of its own"
        raise InputError(*(f"{show(name)}: {what}; rename the file, or its folder." for name in own))
    target = inside(folder, (INPUTS,), "inputs")
    with _aside(folder) as aside:
        for name, content in files.items():
            path = inside(aside, check_path(name, "files"), "files")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            _check(load_campaign(aside / file), site, set(files), labels)
        except InputError as error:
            raise InputError(*(p.replace(f"{aside}/", "") for p in error.problems)) from None
        for name in sorted(files, key=lambda n: n == file):  # the campaign file last: where it is, the others are
            place = inside(target, check_path(name, "files"), "files")
            place.parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(place)
    return load_campaign(target / file)


def _check(loaded: Loaded[Campaign], site: str, sent: set[str], labels: Path) -> None:
    from campaign.config import check_together, load_site
    from campaign.inputs import check_models, frame_sources, read_files, read_in_place

    transfer = loaded.spec.transfer
    if transfer is not None and not transfer.is_file:
        line = loaded.lines.get("transfer.from", 1)
        what = "a campaign that was sent takes its frames from a file that is sent with it, not from another run"
        remedy = "export that run's frames ('campaign export RUN selected set.extxyz') and name the file"
        raise InputError(f"{loaded.path}:{line}: transfer.from: {what}, got {show(transfer.source)}; {remedy}.")
    problems = [*check_together(loaded, load_site(site)), *check_models(loaded)]
    frame_sources(loaded)  # looks through them
    frames = {str(Path(name)) for name in read_in_place(loaded)}
    named = {str(Path(n)) for n in read_files(loaded)} | frames | {loaded.path.name}
    for name in sorted(n for n in sent if str(Path(n)) not in named):
        problems.append(f"{name}: this file was sent and the campaign does not name it; send it without.")
    cache = getattr(loaded.spec.label, "cache", None)
    if cache is not None and Path(cache).is_absolute() and not Path(cache).resolve().is_relative_to(labels):
        line = loaded.lines.get("label.cache", 1)
        what = "campaigns that were sent share labels in one folder of the endpoint"
        problems.append(f"{loaded.path}:{line}: label.cache: {what}, got {show(cache)}; write {labels}")
    if problems:
        raise InputError(*problems)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    path = folder / f".incoming-{uuid.uuid4().hex}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
