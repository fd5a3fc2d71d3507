"""What a laptop keeps of the runs that it submitted: a small JSON file for each, and no secrets."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from campaign.config.fields import closest
from campaign.errors import StoreError
from campaign.remote.protocol import check_run_id

#: The file with the registered function's id, beside those of the runs.
FUNCTIONS = "functions"


@dataclass(frozen=True)
class Kept:
    """What is kept of a run.

    Attributes
    ----------
    run
        Its id.
    endpoint, site, root
        Where it is.
    file
        The campaign file on this computer.
    submitted
        Seconds since 1970, of the last time.
    """

    run: str
    endpoint: str
    site: str = ""
    root: str = ""
    file: str = ""
    submitted: float = 0.0

    def write(self) -> None:
        """Keep it."""
        _write(state_folder() / f"{self.run}.json", asdict(self))

    def forget(self) -> None:
        """Keep it no longer."""
        (state_folder() / f"{self.run}.json").unlink(missing_ok=True)


def state_folder() -> Path:
    """Return the folder of these files."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "campaign" / "remote"


def read_kept(run: str) -> Kept | None:
    """Return what is kept of a run, None if nothing is.

    Raises
    ------
    InputError
        This is no run id.
    StoreError
        The file is damaged.
    """
    check_run_id(run)
    return _read(state_folder() / f"{run}.json")


def all_kept() -> list[Kept]:
    """Return what is kept of every run, the latest last."""
    found = [kept for path in state_folder().glob("*.json") if (kept := _read(path)) is not None]
    return sorted(found, key=lambda kept: kept.submitted)


def unknown(run: str, remedy: str) -> str:
    """Return the sentence that a run is not known on this computer."""
    known = [kept.run for kept in all_kept()]
    best = closest(run, known)
    hint = f"did you mean '{best}'? Otherwise " if best else ""
    listed = f"; known are {', '.join(known[-5:])}" if known and not best else ""
    return f"run {run}: no such run was submitted from this computer{listed}; {hint}{remedy}."


def read_function(text: str) -> str | None:
    """Return the id under which a function's text was registered, None if it was not."""
    try:
        found = json.loads((state_folder() / FUNCTIONS).read_text()).get(_digest(text))
    except (OSError, ValueError, AttributeError):  # then it is registered again
        return None
    return found if isinstance(found, str) else None


def keep_function(text: str, function: str) -> None:
    """Keep the id under which a function's text was registered."""
    _write(state_folder() / FUNCTIONS, {_digest(text): function})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.replace(path)


def _read(path: Path) -> Kept | None:
    names = {field.name for field in fields(Kept)}
    try:
        return Kept(**{k: v for k, v in json.loads(path.read_text()).items() if k in names})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove it, and name the run's endpoint.") from error
