"""``campaign remote`` as a user types it, and what can be wrong on the laptop before anything is sent."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import globus_compute_sdk
import globus_sdk
import pytest

from campaign import cli
from campaign.errors import InputError, StoreError
from campaign.remote import protocol
from campaign.remote.client import files_of, submit
from campaign.remote.kept import Kept, all_kept, read_kept
from tests.remote import stand_in
from tests.remote.stand_in import TOY

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


def campaign(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``campaign WORDS`` with the real Globus SDK, which knows nobody here."""
    command = [sys.executable, "-m", "campaign.cli", *map(str, words)]
    here = {"XDG_STATE_HOME": str(cwd / "state"), "GLOBUS_COMPUTE_USER_DIR": str(cwd / "globus")}
    there = {k: v for k, v in os.environ.items() if not k.startswith("GLOBUS_")}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**there, **here, **environment}, timeout=300
    )


def test_without_a_login_nothing_is_asked_and_nothing_kept(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    words = ("remote", "submit", "toy.yaml", "--endpoint", ENDPOINT, "--site", "tiny")
    done = campaign(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "This computer is not logged in to Globus Compute. Log in once, in a terminal: python -c" in done.stderr
    assert not (tmp_path / "state").exists()
    half = campaign(*words, cwd=tmp_path, GLOBUS_COMPUTE_CLIENT_SECRET="x")
    assert half.returncode == 2
    assert "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET must be set" in half.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit",), "Nothing to submit: give FILE, or --run ID"),
        (("submit", "toy.yaml"), "--endpoint: this option is missing"),
        (("submit", "toy.yaml", "--endpoint", ENDPOINT), "--site: this option is missing"),
        (("submit", "toy.yaml", "--endpoint", "x", "--site", "s"), "--endpoint: an endpoint's id is needed, got 'x'"),
        (("submit", "toy.yaml", "--root", "/x"), "--root: an absolute path could leave"),
        (("submit", "nowhere.yaml", "--endpoint", ENDPOINT, "--site", "s"), "there is no such file"),
        (("status", "toy-1"), "run toy-1: no such run was submitted from this computer"),
        (("wait", "../x"), "run: '..' could leave the endpoint's folder for campaigns, got '..'; write a path below"),
        (("wait", "Toy!"), "run: a run id has lower-case letters"),
        (("fetch", "toy-1", "reprot"), "'reprot' cannot be fetched; did you mean 'report'?"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_exit_2(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "toy.yaml").write_text(TOY)
    monkeypatch.setattr(sys, "argv", ["campaign", "remote", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (2, "")
    assert said in shown.err


def test_what_is_sent_is_what_the_campaign_names(tmp_path: Path) -> None:
    from campaign.config import copy_template, load_campaign

    copy_template("quickstart", tmp_path / "q.yaml")
    (tmp_path / "secret.txt").write_text("not named by the campaign")
    files = files_of(load_campaign(tmp_path / "q.yaml"))
    assert sorted(files) == ["potentials/nacl_bmhtf.lmp", "q.yaml"]
    assert protocol.unpack_files(protocol.pack_files(files)) == files
    copy_template("ni-momt-32", tmp_path / "ni.yaml")
    assert "potentials/NiNb_2016.eam.fs" in files_of(load_campaign(tmp_path / "ni.yaml"))  # its lines name it


def test_a_folder_of_frames_is_not_sent(tmp_path: Path) -> None:
    from campaign.config import load_campaign

    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr/zarr.json").write_text("{}")
    (tmp_path / "toy.yaml").write_text(TOY.replace("sample: [", "sample: [{method: file, file: old.zarr}, "))
    with pytest.raises(InputError, match=r"'old.zarr': a Zarr store is a folder .*; export its frames"):
        files_of(load_campaign(tmp_path / "toy.yaml"))


def test_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert all_kept() == []
    Kept("nacl-2", ENDPOINT, submitted=2.0).write()
    Kept("nacl-1", ENDPOINT, submitted=1.0).write()
    assert [kept.run for kept in all_kept()] == ["nacl-1", "nacl-2"]
    with pytest.raises(InputError, match=r"run nacl-3: .*; did you mean 'nacl-"):
        submit(run="nacl-3")
    other = ENDPOINT.replace("4", "5")
    with pytest.raises(InputError, match=f"--endpoint: run nacl-1 is on endpoint {ENDPOINT}, got '{other}'"):
        submit(run="nacl-1", endpoint=other)
    (tmp_path / "campaign/remote/nacl-2.json").write_text("{")
    with pytest.raises(StoreError, match=r"nacl-2.json cannot be read .*; remove it"):
        read_kept("nacl-2")


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {},
        {"action": "exec", "protocol": 1},
        {"action": "status", "protocol": 1, "run": 5},
        {"action": "status", "protocol": 1, "run": "a", "extra": "b"},
        {"action": "submit", "protocol": 1, "run": "a", "site": "s", "files": {"a": 1}},
        {"action": "submit", "protocol": 1, "run": "a", "site": "s", "retry_quarantined": "yes"},
    ],
)
def test_what_is_no_request_is_refused(request_: object) -> None:
    with pytest.raises(InputError, match="this is no request of campaign remote"):
        protocol.read_request(request_)


def test_a_request_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"campaign 9.1 of what sent the request do not understand each other"):
        protocol.read_request({"protocol": 99, "version": "9.1"})


def test_the_function_alone_says_that_campaign_is_not_there(tmp_path: Path) -> None:
    """It is sent as its text: nothing of campaign is there when it starts."""
    from globus_compute_sdk.serialize import PureSourceTextInspect

    from campaign.remote.function import campaign_remote

    text = PureSourceTextInspect().serialize(campaign_remote).partition(":")[2]
    code = f"import sys; sys.modules['campaign'] = None\n{text}\nprint(campaign_remote({{}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "cannot run campaigns" in done.stdout
    assert "install campaign into the Python environment of the endpoint's workers" in done.stdout


@pytest.mark.parametrize("name", ["Client", "Executor"])
def test_the_stand_in_is_called_as_the_real_one_is(name: str) -> None:
    """Every argument that the stand-in takes, the SDK takes by the same name."""
    real, ours = getattr(globus_compute_sdk, name), getattr(stand_in, name)
    for method, code in vars(ours).items():
        if not inspect.isfunction(code) or (method.startswith("_") and method != "__init__"):
            continue
        there = list(inspect.signature(getattr(real, method)).parameters)
        here = list(inspect.signature(code).parameters)
        if method == "get_endpoint_status":  # given by position
            assert len(there) == len(here) == 2
            continue
        assert set(here) <= set(there), method
    if name == "Client":
        assert "raw_json" in dir(globus_sdk.ComputeAPIError)
