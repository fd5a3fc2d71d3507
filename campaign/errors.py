"""What can go wrong, as types. Every message is a full sentence that says what, where and what to do.

CampaignError
├── InputError        the user's input is wrong: nothing was started (exit code 2)
│   └── Locked        another driver holds this run directory
├── StoreError        the run directory cannot be read or written
│   └── SchemaError   it was written by another version
├── DiskFull          no space left: stop cleanly, resumable
├── TooManyFailures   of one stage, or of the machine: the run stops, resumable
├── MachineFault      the machine failed, not the calculation: tried again, unchanged
└── EngineError       one calculation failed: data, never the end of a campaign
    ├── Unconverged   it ended without reaching its own criterion
    └── Unphysical    lost atoms, non-finite numbers, atoms on top of each other

Exceptions do not cross process boundaries; a worker turns them into a record (``campaign.worker``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CampaignError(Exception):
    """Base of every error raised on purpose."""


class InputError(CampaignError):
    """The user's input is wrong; nothing was started.

    Parameters
    ----------
    problems
        Each a full line, ``FILE:LINE: path.to.key: what is wrong, got VALUE; what to write instead``.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class Locked(InputError):
    """Another driver holds this run directory."""


class StoreError(CampaignError):
    """The run directory cannot be read or written."""


class SchemaError(StoreError):
    """The store was written by another version of campaign."""


class DiskFull(StoreError):
    """There is no space left on the run directory's file system."""


class TooManyFailures(CampaignError):
    """More of a stage failed than the campaign allows, or the machine finishes nothing."""


class MachineFault(CampaignError):
    """The machine failed, not the calculation: the same task is tried again, unchanged."""


class EngineError(CampaignError):
    """One calculation failed; the campaign goes on.

    Attributes
    ----------
    frames
        What molecular dynamics had made before it failed (arrays by name), if any.
    alone
        Whether one MPI rank failed without the others of its calculation: they wait for it, and must be ended.
    final
        Whether no other attempt at this task can end better.
    """

    frames: dict[str, Any] | None = None
    alone: bool = False
    final: bool = False


class Unconverged(EngineError):
    """A calculation ended without reaching its own convergence criterion."""


class Unphysical(EngineError):
    """A calculation left the physics: lost atoms, non-finite numbers, atoms on top of each other."""
