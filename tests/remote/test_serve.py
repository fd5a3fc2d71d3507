"""What an endpoint does with requests that ``campaign remote`` would not send, or that come at the wrong time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.engines import process
from campaign.errors import InputError
from campaign.remote import inbox, serve
from campaign.remote.driver import Asked
from campaign.remote.protocol import PROTOCOL, pack_files

TOY = """\
campaign: NAME
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
  potential: {lammps: ar.lmp}
sample: [{method: fake, walkers: 1, frames: 2, segment: 2}]
"""
POTENTIAL = "# elements: Ar\npair_style eam/alloy\npair_coeff * * TABLE Ar\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The endpoint's folder for campaigns; drivers are not started, but said to have been: in ``started``."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "tiny.yaml").write_text(
        "site: tiny\nexecutors: {cpu: {provider: local, workers: 1}}\nstages: {default: cpu}\n"
    )
    (tmp_path / "remote.yaml").write_text(f"root: {root}\nsites: [tiny.yaml]\n")
    monkeypatch.setenv("CAMPAIGN_REMOTE", str(tmp_path / "remote.yaml"))
    return root


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path, dict[str, str]]]:
    """Command, folder and environment of each driver that would have been started."""
    found: list[tuple[list[str], Path, dict[str, str]]] = []

    def start(command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> int:
        found.append((command, folder, environment))
        return 2**22 + 1  # no process has this number

    monkeypatch.setattr(process, "start_detached", start)
    return found


def request(name: str = "toy", table: str = "ar.eam", more: str = "", **fields: Any) -> dict[str, Any]:
    """A request to run a campaign with a potential that names a table."""
    text = (TOY + more).replace("NAME", name)
    files = {"toy.yaml": text, "ar.lmp": POTENTIAL.replace("TABLE", table), table: "numbers"}
    packed = pack_files({k: v.encode() for k, v in {**files, **fields.pop("files", {})}.items()})
    whole = {"protocol": PROTOCOL, "action": "submit", "run": "toy-1", "site": "tiny", "file": "toy.yaml"}
    return {**whole, "files": packed, **fields}


def refused(asked: dict[str, Any]) -> str:
    answer = serve.answer(asked)
    assert answer.get("kind") == "input", answer
    return "\n".join(answer["problems"])


def test_nothing_in_the_runs_folder_is_imported_by_the_driver(root: Path, started: list[Any], monkeypatch: Any) -> None:
    """The run directory lies there under the campaign's name, with data files under theirs: a package, to Python."""
    monkeypatch.setenv("PYTHONPATH", ":/somewhere:.")
    assert serve.answer(request("parsl", "__init__.py"))["started"] is True
    ((command, folder, environment),) = started
    assert folder == root / "toy-1/_work"
    assert list(folder.iterdir()) == []
    assert command[1:4] == ["-P", "-m", "campaign.cli"]
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["PYTHONPATH"] == "/somewhere"


@pytest.mark.parametrize("table", ["driver.lock", "ledger.jsonl", "run.zarr/zarr.json", "frame_files.json", "LOGS/x"])
def test_no_file_takes_the_name_of_something_of_the_runs_own(root: Path, started: list[Any], table: str) -> None:
    assert "a run directory has something of this name of its own" in refused(request(table=table))
    assert list(root.iterdir()) == []
    assert started == []


def test_no_notes_of_frames_elsewhere_are_believed(root: Path, started: list[Any], tmp_path: Path) -> None:
    """A folder with notes and a store passes for a run directory, whose notes stand for files that it does not have."""
    files = {"frame_files.json": '[{"path": "/home/me/frames.extxyz"}]', "run.zarr/zarr.json": "{}"}
    text = TOY.replace("[{method: fake", "[{method: file, file: a.extxyz}, {method: fake")
    assert "of its own" in refused(request(files={**files, "toy.yaml": text.replace("NAME", "toy")}))


def test_labels_are_shared_in_one_folder(root: Path, started: list[Any]) -> None:
    label = "select: {method: random, size: 2}\nlabel: {engine: fake, cache: PLACE}\n"
    for place in (root / "toy-2" / "toy" / "run.zarr", root, "/tmp/labels", root / "_labels/../toy-2"):
        said = refused(request(more=label.replace("PLACE", str(place))))
        assert "toy.yaml:8: label.cache: campaigns that were sent share labels in one folder" in said
        assert f"write {root}/_labels" in said
    for place in (root / "_labels", root / "_labels" / "mine", "beside"):
        assert "started" in serve.answer(request(more=label.replace("PLACE", str(place)), run=f"toy-{len(started)}"))
    assert len(started) == 3
    assert "names that begin with _ are the endpoint's own" in refused(request(root="a/_labels"))


def test_another_run_of_the_machine_is_no_source(root: Path, started: list[Any]) -> None:
    text = TOY.partition("sample:")[0].replace("NAME", "toy")
    text += "transfer: {from: /home/me/runs/secret, species: {Ar: Ar}, scale: 1.0}\n"
    said = refused(request(files={"toy.yaml": text}))
    assert "toy.yaml:6: transfer.from: a campaign that was sent takes its frames from a file that is sent" in said


def test_only_the_request_that_made_a_folder_removes_it_and_only_while_it_holds_it(
    root: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "toy-1"

    @contextlib.contextmanager
    def busy(folder: Path) -> Iterator[None]:
        (folder / "toy").mkdir()
        raise InputError("run toy-1 is being submitted by another request; try again.")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(serve.driver, "alone", busy)
        assert "by another request" in refused(request())
    assert (folder / "toy").is_dir()

    real = serve.driver.alone

    @contextlib.contextmanager
    def overtaken(folder: Path) -> Iterator[None]:
        """Another request has started the run between the making of the folder and the lock."""
        with real(folder):
            Asked("toy", "tiny").write(folder)
            yield

    (folder / "toy").rmdir()
    (folder / "submit.lock").unlink(missing_ok=True)
    folder.rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(serve.driver, "alone", overtaken)
        assert "no such engine" in refused(request(more="label: {engine: shell}\n"))
    assert (folder / "run.json").exists()


def test_nothing_is_left_of_a_request_that_the_disk_refused(
    root: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(inbox.Path, "write_bytes", full)
        answer = serve.answer(request())
    assert answer["kind"] == "failed"
    assert "No space left on device" in answer["problems"][0]
    assert list(root.iterdir()) == []
    assert serve.answer(request())["started"] is True


@pytest.mark.parametrize("name", ["a b", "50%", "a{b}"])
def test_a_folder_in_which_no_worker_could_be_started_is_refused(root: Path, started: list[Any], name: str) -> None:
    """Otherwise the run would begin, and its driver end at once, or wait for ever."""
    assert "workers cannot be started in a folder with" in refused(request(root=name))
    assert list(root.iterdir()) == []
    assert started == []


def test_a_request_that_was_overtaken_changes_nothing(root: Path, started: list[Any]) -> None:
    """It was queued at Globus when its sender gave up, and is run after the one that was typed then."""
    new = request(sent=2000.0, files={"ar.eam": "new numbers"})
    assert serve.answer(new)["started"] is True
    assert serve.answer(new)["started"] is True  # made twice where the worker was lost: both may be taken
    said = refused(request(sent=1000.0))
    assert "a later request was answered already; this one, of 1970-01-01 00:16:40 UTC, came late" in said
    assert (root / "toy-1/_inputs/ar.eam").read_text() == "new numbers"
    assert len(started) == 2
    again = {"protocol": PROTOCOL, "action": "submit", "run": "toy-1", "site": "tiny"}
    assert serve.answer(again)["started"] is True  # of a flow, which says no time and sends no files
    assert "came late" in refused(request(sent=1999.0))
    assert "came late" in refused({**again, "sent": 1999.0})


def test_a_run_at_work_remembers_the_last_request_too(
    root: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve.answer(request(sent=1000.0))["started"] is True
    with monkeypatch.context() as patch:
        patch.setattr(serve.driver, "at_work", lambda folder, run: {"host": "n1", "pid": 1, "holds": True})
        assert serve.answer(request(sent=3000.0))["started"] is False
    assert "came late" in refused(request(sent=2000.0, files={"ar.eam": "old numbers"}))
    assert (root / "toy-1/_inputs/ar.eam").read_text() == "numbers"
