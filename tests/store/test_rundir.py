"""The run directory: one driver at a time, nothing left running, self-contained."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.errors import CampaignError, InputError, Locked, StoreError
from campaign.store import groups, rundir
from campaign.store.rundir import RunDirectory, holder, open_existing
from campaign.tasks import TOKEN_VARIABLE, Task, new_record

HOLDER = """
import sys, time
from pathlib import Path
from campaign.store.rundir import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
print(run.token, flush=True)
time.sleep(60)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Hold ``tmp_path`` in another process."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_second_driver_is_refused(tmp_path: Path, driver: Any) -> None:
    process, _ = driver
    with pytest.raises(Locked) as refused:
        RunDirectory(tmp_path)
    assert socket.gethostname() in str(refused.value)
    assert f"process {process.pid};" in str(refused.value)
    assert process.poll() is None
    found = holder(tmp_path)
    assert found is not None
    assert (found["host"], found["pid"]) == (socket.gethostname(), process.pid)


def test_lock_is_free_after_sigkill_and_leftovers_are_ended(tmp_path: Path, driver: Any) -> None:
    process, token = driver
    environment = {**os.environ, TOKEN_VARIABLE: token}
    left = subprocess.Popen(["sleep", "60"], env=environment)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, TOKEN_VARIABLE: "another driver"})
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert holder(tmp_path) is None
        with RunDirectory(tmp_path) as run:
            left.wait(timeout=5)  # it would have slept for a minute
            assert other.poll() is None
            assert run.token != token
    finally:
        for child in (left, other):
            child.kill()
            child.wait()


def test_lock_is_given_back(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    for _ in range(2):
        with RunDirectory(tmp_path):
            found = holder(tmp_path)
            assert found is not None
            assert found["pid"] == os.getpid()
        assert holder(tmp_path) is None


@pytest.mark.parametrize("again", [True, False])
def test_a_run_directory_that_is_moved_away_ends_the_run(tmp_path: Path, again: bool) -> None:
    """Workers would make it anew where it was: half of the results here, the ledger there, and no lock."""
    record = new_record(Task("label", "a", {}), 0)
    with RunDirectory(tmp_path / "run") as run:
        run.keep([record])
        run._flushed = 0.0
        (tmp_path / "run").rename(tmp_path / "moved")
        if again:
            with RunDirectory(tmp_path / "run"):
                pass
        with pytest.raises(CampaignError, match="was moved or removed while this campaign was at work"):
            run.keep([record])
        run._unflushed.clear()


def test_what_was_left_aside_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "abc.1" / "positions").mkdir(parents=True)
    (tmp_path / "tmp" / "abc.1" / "positions" / "c.0").write_text("half")
    (tmp_path / "tmp" / "file").write_text("half")
    with RunDirectory(tmp_path) as run:
        assert list(run.store.aside.iterdir()) == []


FILES = {"start.extxyz": b"2\n\xff\xfe", "potentials/a.lmp": b"pair_style lj/cut 8\n"}


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in (*FILES, "campaign.yaml", "site.yaml")}


def test_inputs_are_restored_from_the_store_alone(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.write_inputs("campaign: é\n", "site: local\n", FILES)
    before = contents(tmp_path / "run")
    assert before == {**FILES, "campaign.yaml": "campaign: é\n".encode(), "site.yaml": b"site: local\n"}
    (tmp_path / "alone").mkdir()
    (tmp_path / "run" / "run.zarr").rename(tmp_path / "alone" / "run.zarr")
    assert open_existing(tmp_path / "alone" / "run.zarr") == (tmp_path / "alone").resolve()
    assert contents(tmp_path / "alone") == before
    assert open_existing(tmp_path / "alone") == (tmp_path / "alone").resolve()


def test_restoring_that_was_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``campaign.yaml`` is written last: where it is, the data files are."""
    with RunDirectory(tmp_path) as run:
        run.write_inputs("campaign: x\n", "site: local\n", FILES)
    wanted = contents(tmp_path)
    replace = rundir._replace
    for stop in range(4):
        for name in wanted:
            (tmp_path / name).unlink(missing_ok=True)
        left = [stop]

        def killed(path: Path, content: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(path, content)

        monkeypatch.setattr(rundir, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_existing(tmp_path)
        monkeypatch.setattr(rundir, "_replace", replace)
        open_existing(tmp_path)
        assert contents(tmp_path) == wanted


@pytest.mark.parametrize(
    "name", ["driver.lock", "ledger.jsonl", "run.zarr/zarr.json", "a/../Tasks/x", "models/a.pt", "campaign.yaml"]
)
def test_a_data_file_takes_the_place_of_nothing_that_is_the_runs_own(tmp_path: Path, name: str) -> None:
    with RunDirectory(tmp_path / "run") as run:
        before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
        with pytest.raises(InputError, match=r"would take the place of what the run directory has for itself"):
            run.write_inputs("campaign: x\n", "site: local\n", {**FILES, name: b"table of a potential"})
        with pytest.raises(InputError, match="would lie outside the run directory"):
            run.write_inputs("campaign: x\n", "site: local\n", {"../x": b""})
        assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
        with pytest.raises(Locked):
            RunDirectory(tmp_path / "run")
    stored = {name: base64.b64encode(b"bad").decode()}
    write_inputs(tmp_path / "other", {"spec": "a", "site": "b", "files": stored})
    with pytest.raises(InputError, match="would take the place"):
        open_existing(tmp_path / "other")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-the-run", "a/../../outside", "link/outside"])
def test_stored_file_outside_the_run_is_refused(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    stored = {"fine.lmp": base64.b64encode(b"fine").decode(), name: base64.b64encode(b"bad").decode()}
    write_inputs(run, {"spec": "a", "site": "b", "files": stored})
    (run / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="outside the run directory"):
        open_existing(run)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    assert {p.name for p in run.iterdir()} == {"run.zarr", "link"}


@pytest.mark.parametrize("attributes", [{}, {"spec": "a", "site": "b", "files": {"x": "not base64!"}}])
def test_inputs_that_are_not_campaigns_are_refused(tmp_path: Path, attributes: Any) -> None:
    write_inputs(tmp_path, attributes)
    with pytest.raises(InputError, match="does not hold a campaign's inputs"):
        open_existing(tmp_path)


def write_inputs(run: Path, attributes: Any) -> None:
    folder = run / "run.zarr" / "campaign"
    folder.mkdir(parents=True)
    meta = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / groups.META).write_text(json.dumps(meta))


@pytest.mark.parametrize("name", ["", "run.zarr", "nowhere"])
def test_no_campaign_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        open_existing(tmp_path / name)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre mounted with ``noflock`` has none: nothing would keep a second driver out."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with RunDirectory(tmp_path):
        pass
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert holder(tmp_path) is None
    with pytest.raises(StoreError, match=r"has no locks that keep a second driver out .* another one with --root"):
        RunDirectory(tmp_path)
