"""A real Slurm for the tests: that of ``benchmarks/local_slurm.py``, started once and put in order after each test."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.tasks import TOKEN_VARIABLE


def _local_slurm() -> Any:
    """Return the module by its file: the names of the other benchmarks would hide those of other packages."""
    path = Path(__file__).parents[2] / "benchmarks" / "local_slurm.py"
    spec = importlib.util.spec_from_file_location("local_slurm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SLURM = _local_slurm()


@pytest.fixture(scope="session")
def _running() -> Iterator[Any]:
    with SLURM.cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(_running: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the cluster with four idle nodes and an empty queue; what the test leaves there is ended."""
    monkeypatch.setenv("SLURM_CONF", _running.configuration)  # for this test alone: others have no Slurm
    yield _running
    _running.reset()


@pytest.fixture
def site(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes ``site_configs/slurm.yaml`` adapted to the cluster and returns its path."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv(TOKEN_VARIABLE, "")

    def write(launch: dict[str, list[str]] | None = None, driver: dict[str, Any] | None = None, **executor: Any) -> str:
        return str(SLURM.write_site(tmp_path / "site.yaml", launch, driver, **executor))

    return write
