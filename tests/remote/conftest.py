"""An endpoint that runs here, and a laptop that talks to it; Globus loads only where one of them is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import campaign
from campaign.remote.client import submit, wait

if TYPE_CHECKING:
    from tests.remote.stand_in import Endpoint, WebService


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    """An endpoint that has not been started."""
    from tests.remote.stand_in import Endpoint

    return Endpoint(tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def service(endpoint: Endpoint) -> Iterator[WebService]:
    """The web service, with that endpoint running."""
    from tests.remote.stand_in import WebService

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMPAIGN_REMOTE", str(endpoint.file))
        patch.setenv("PYTHONPATH", str(Path(campaign.__file__).parents[1]))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        started = WebService(endpoint.start(), endpoint.id)
        try:
            yield started
        finally:
            endpoint.stop()


@pytest.fixture
def laptop(tmp_path: Path, service: WebService, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop's folder with a campaign file in it; Globus's client talks to the stand-in."""
    from tests.remote.stand_in import TOY, Client, Executor

    client = type("Client", (Client,), {"service": service})
    monkeypatch.setattr("globus_compute_sdk.Client", client)
    monkeypatch.setattr("globus_compute_sdk.Executor", Executor)
    monkeypatch.setattr(service, "state", "online")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "toy.yaml").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(service: WebService, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A campaign that was submitted from another laptop, and is done."""
    from tests.remote.stand_in import TOY, Client, Executor

    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "toy.yaml").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("globus_compute_sdk.Client", type("Client", (Client,), {"service": service}))
        patch.setattr("globus_compute_sdk.Executor", Executor)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        run = submit(folder / "toy.yaml", service.endpoint, "tiny")
        assert wait(run, every=0.5, timeout=240)["state"] == "done"
    return run
