"""What a laptop believes of an endpoint's answers: never where to write, nor what to print, nor which id to forget."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from campaign.errors import CampaignError, InputError
from campaign.remote import client, commands, service
from campaign.remote.kept import keep_function, read_function
from campaign.remote.protocol import fetchable, pack_files
from campaign.remote.service import Service

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the endpoint answers; the laptop's working directory is ``tmp_path / "here"``."""
    found: dict[str, Any] = {}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(Service, "__init__", lambda self, endpoint, patience: None)
    monkeypatch.setattr(Service, "call", lambda self, request: found)
    monkeypatch.setattr(Service, "function", "f")
    return found


def test_the_endpoint_does_not_choose_where_a_result_is_written(answers: dict[str, Any], tmp_path: Path) -> None:
    answers |= {"run": str(tmp_path / "home/.ssh"), "bytes": 3, "files": pack_files({"report.html": b"<p>"})}
    assert client.fetch("toy-1", "report", endpoint=ENDPOINT).paths == [Path("toy-1/report.html")]
    assert client.fetch("a/toy-1", "report", endpoint=ENDPOINT).paths == [Path("toy-1/report.html")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here"]


@pytest.mark.parametrize("name", ["authorized_keys", "../report.html", "x/report.html", "", ".bashrc", "a.pt"])
def test_the_endpoint_does_not_choose_what_a_result_is_called(answers: dict[str, Any], name: str) -> None:
    answers |= {"run": "toy-1", "bytes": 3, "files": pack_files({"report.html": b"<p>", name: b"key"})}
    with pytest.raises(CampaignError, match=r"Endpoint sent '.*' in place of report; nothing was written"):
        client.fetch("toy-1", "report", endpoint=ENDPOINT)
    assert list(Path.cwd().iterdir()) == []


def test_the_names_of_results() -> None:
    assert fetchable("model", "selected-0-0123abcd.pt")
    assert not fetchable("model", ".pt")
    assert not fetchable("model", "a/b.pt")
    assert not fetchable("model", "a.pt\n")
    assert fetchable("selected", "selected.extxyz")
    assert not fetchable("selected", "labelled.extxyz")


def test_what_an_endpoint_says_does_not_redraw_the_terminal(
    answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b[2Jrm\n-rf"
    answers |= {"bytes": 9, "commands": [f"scp {bad}"]}
    assert client.fetch("toy-1", "report", endpoint=ENDPOINT).commands == ["scp  [2Jrm -rf"]
    answers |= {"run": bad, "state": "failed", "host": bad, "folder": bad, "log": [bad], "site": bad}
    commands._show(client.status("toy-1", ENDPOINT), json=False)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "run toy-1 on  [2Jrm -rf:  [2Jrm -rf" in shown.err
    assert "it goes on with: campaign remote submit --run toy-1\n" in shown.err


def refusing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> tuple[Service, list[str]]:
    """A service that refuses every function, and the functions that were registered with it."""
    registered: list[str] = []

    class Client:
        def register_function(self, function: Any) -> str:
            registered.append(f"new-{len(registered)}")
            return registered[-1]

    found = Service.__new__(Service)
    found._endpoint, found._text, found._client = ENDPOINT, inspect.getsource(service.campaign_remote), Client()

    def ask(function: str, request: dict[str, Any]) -> Any:
        raise error

    monkeypatch.setattr(found, "_ask", ask)
    return found, registered


def test_an_endpoint_that_refuses_the_function_does_not_cost_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of another endpoint may have allowed this very id."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    asked, registered = refusing(service._refused(403, "Function not permitted", ENDPOINT), monkeypatch)
    keep_function(asked._text, "ALLOWED-ID")
    for _ in range(2):
        with pytest.raises(InputError, match=r"ask for it to be added\. Its id is ALLOWED-ID\."):
            asked.call({"action": "status"})
    assert (read_function(asked._text), registered) == ("ALLOWED-ID", [])
    lost, registered = refusing(service._refused(404, "Function could not be resolved", ENDPOINT), monkeypatch)
    with pytest.raises(InputError, match="refuses campaign's function"):
        lost.call({"action": "status"})
    assert (read_function(lost._text), registered) == ("new-0", ["new-0"])


def test_submissions_are_numbered_by_time(
    answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = []
    monkeypatch.setattr(Service, "call", lambda self, request: requests.append(request) or {})
    Path("toy.yaml").write_text(
        "campaign: toy\nsystem:\n  structure: {prototype: fcc, elements: [Ar], a: 5.3}\n"
        "sample: [{method: fake, frames: 2}]\n"
    )
    for _ in range(3):
        monkeypatch.setattr("time.time", lambda: 1000.0)  # a clock that stands still, or goes back
        client.submit("toy.yaml", ENDPOINT, "tiny")
    times = [request["sent"] for request in requests]
    assert times == sorted(set(times))
