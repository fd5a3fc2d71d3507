"""What an endpoint's owner allows: the file ``~/.campaign/remote.yaml`` on the endpoint, and the paths it bounds.

Without the file nothing is accepted. Nothing that is sent can change it: it is read, never written.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from campaign.config.fields import FileName, Model, suggest
from campaign.config.problems import validate
from campaign.config.yaml_lines import read_document, show
from campaign.errors import InputError
from campaign.remote.protocol import check_path

#: The environment variable that names another file; the environment of an endpoint's workers is its owner's.
VARIABLE = "CAMPAIGN_REMOTE"

#: The folder below that of campaigns for labels that campaigns share: no run's, whose ids begin otherwise.
LABELS = "_labels"


class RemoteFile(Model):
    """The whole file."""

    root: FileName = Field(
        description="folder under which campaigns run, and nowhere else", examples=["/scratch/me/campaigns"]
    )
    sites: tuple[FileName, ...] = Field(
        min_length=1, description="sites that may be used: names, or site files", examples=["[slurm]"]
    )
    host: FileName | None = Field(None, description="name of this machine for scp; default its own")
    collection: FileName | None = Field(None, description="id of the Globus collection in which root has its own path")


@dataclass(frozen=True)
class Allowed:
    """What this machine allows.

    Attributes
    ----------
    file
        Where it is written.
    root
        The folder of campaigns, resolved.
    sites
        Name to site file, or to the name of a site that comes with campaign.
    host, collection
        How to get at files too large to be sent.
    """

    file: Path
    root: Path
    sites: dict[str, str]
    host: str
    collection: str | None

    def site(self, name: str) -> str:
        """Return the site file, or the site, of a name on the list.

        Raises
        ------
        InputError
            It is not on the list.
        """
        if name not in self.sites:
            owner = f"the owner of this machine's account may add it to 'sites' in {self.file}"
            raise InputError(
                f"--site: campaigns sent to this endpoint may not use this site, got {show(name)}; "
                f"{suggest(name, self.sites)}; {owner}."
            )
        return self.sites[name]

    def folder(self, root: str, run: str) -> Path:
        """Return the folder of a run: ``root`` of this machine, the ``root`` asked for below it, the run's id.

        Raises
        ------
        InputError
            It would not lie there: an absolute path, ``..``, a link on the way; or it is the endpoint's own.
        """
        parts = check_path(root, "--root")
        if any(part.startswith("_") for part in parts):
            what = "names that begin with _ are the endpoint's own"
            raise InputError(f"--root: {what}, got {show(root)}; write another.")
        return inside(self.root, (*parts, run), "--root")

    @property
    def labels(self) -> Path:
        """The one folder, below that of campaigns, in which campaigns that were sent may share labels."""
        return self.root / LABELS


def inside(base: Path, parts: tuple[str, ...], what: str) -> Path:
    """Return ``base`` / ``parts``, none of which may be a link: links could lead anywhere.

    Raises
    ------
    InputError
        One is a link.
    """
    path = base
    for part in parts:
        path = path / part
        try:
            link = stat.S_ISLNK(path.lstat().st_mode)
        except FileNotFoundError:
            link = False
        except NotADirectoryError:
            raise InputError(f"{what}: {path.parent} is a file and not a folder; name another place.") from None
        if link:
            remedy = "name another place, or have the machine's owner put a folder there"
            raise InputError(f"{what}: {path} is a symbolic link, which could leave {base}; {remedy}.")
    return path


def load_allowed() -> Allowed:
    """Read what this machine allows.

    Raises
    ------
    InputError
        There is no such file, or something is wrong with it.
    """
    file = Path(os.environ.get(VARIABLE) or Path.home() / ".campaign" / "remote.yaml")
    if not file.exists():
        raise InputError(
            f"{socket.gethostname()} takes no campaigns from elsewhere: it has no {file}; on that machine, write "
            "'root: FOLDER' and 'sites: [NAME]' into it (docs/remote.md)."
        )
    document = read_document(file)
    found, problems = validate(RemoteFile, document, {})
    if problems or not isinstance(found, RemoteFile):
        raise InputError(*(p.text(file) for p in problems))
    root = Path(found.root).expanduser()
    line = document.line("root")
    if not root.is_absolute() or ".." in root.parts:
        got = f"root: the folder of campaigns is written as an absolute path without '..', got {show(found.root)}"
        raise InputError(f"{file}:{line}: {got}; write such as /scratch/me/campaigns")
    if not root.is_dir():
        raise InputError(f"{file}:{line}: root: there is no such folder, got {show(found.root)}; make it: mkdir -p")
    sites = {Path(s).stem if "/" in s or s.endswith((".yaml", ".yml")) else s: s for s in found.sites}
    sites = {name: str(file.parent / Path(s).expanduser()) if s != name else s for name, s in sites.items()}
    return Allowed(file, root.resolve(), sites, found.host or socket.getfqdn(), found.collection)
