"""Programs are started in one place, and end together with all that they started."""

import os
import sys
import threading
import time

import psutil
import pytest

from campaign.engines.process import run, start_detached
from campaign.errors import EngineError

MARK = "campaign-test-grandchild"


def grandchildren(folder):
    """Return the processes that work in a folder."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.status() != psutil.STATUS_ZOMBIE and p.cwd() == str(folder):
                found.append(p)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def gone(folder):
    deadline = time.time() + 5
    while grandchildren(folder) and time.time() < deadline:
        time.sleep(0.02)
    return not grandchildren(folder)


def test_output_is_returned_and_kept(tmp_path):
    assert run(["printf", "%s", "a $HOME; `b` | c"], tmp_path) == "a $HOME; `b` | c"  # no shell reads it
    assert (tmp_path / "stdout").read_text() == "a $HOME; `b` | c"
    assert (tmp_path / "stderr").read_text() == ""


def test_environment_is_added_to_the_present_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMPAIGN_TEST", "old")
    code = "import os; print(os.environ['CAMPAIGN_TEST'], os.environ['OMP_NUM_THREADS'], os.getcwd())"
    assert run([sys.executable, "-c", code], tmp_path, environment={"OMP_NUM_THREADS": "3"}).split() == [
        "old",
        "3",
        str(tmp_path),
    ]


def test_a_program_never_waits_for_input(tmp_path):
    assert run(["cat"], tmp_path, timeout=5) == ""


def test_a_timeout_ends_the_whole_tree(tmp_path):
    start = time.time()
    with pytest.raises(EngineError, match=r"sh was stopped after 0\.6 s; its files are in ") as caught:
        run(["sh", "-c", "sh -c 'sleep 60 & sleep 61' & echo started; sleep 62"], tmp_path, timeout=0.6)
    assert time.time() - start < 10
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "stdout").read_text() == "started\n"
    assert gone(tmp_path)


def test_what_a_program_leaves_behind_ends_with_it(tmp_path):
    assert run(["sh", "-c", "sleep 60 & echo done"], tmp_path) == "done\n"
    assert gone(tmp_path)


def test_an_interrupt_ends_the_tree(tmp_path, monkeypatch):
    import subprocess

    def interrupted(self, timeout=None):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "60"], tmp_path)
    assert gone(tmp_path)


def test_an_exit_code_comes_with_the_last_words(tmp_path):
    with pytest.raises(EngineError, match=r"sh ended with exit code 3: no such basis set \("):
        run(["sh", "-c", "echo fine; echo first >&2; echo 'no such basis set' >&2; echo >&2; exit 3"], tmp_path)
    with pytest.raises(EngineError, match=r"exit code 4: only here \("):
        run(["sh", "-c", "echo only here; exit 4"], tmp_path)
    with pytest.raises(EngineError, match="ended with signal 11"):
        run(["sh", "-c", "kill -SEGV $$"], tmp_path)


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(
        EngineError, match="mpiexec-of-nowhere was not found on this machine; correct the site's launch"
    ):
        run(["mpiexec-of-nowhere", "-n", "2"], tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_program_that_may_not_be_run_is_named(tmp_path):
    path = tmp_path / "cp2k.psmp"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(EngineError, match=r"cp2k\.psmp may not be run on this machine"):
        run([str(path)], tmp_path)


def test_a_missing_folder_is_not_a_missing_program(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(["true"], tmp_path / "nowhere")


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for away in (os.setsid, lambda: os.setpgid(0, 0)):  # as daemons do, and as the ranks of an MPI launcher are put
    if os.fork() == 0:
        away()
        time.sleep(60)
open("ready", "w").close()
time.sleep(60)
"""


def test_children_that_left_the_group_and_ignore_sigterm_end_with_a_timeout(tmp_path):
    start = time.time()
    with pytest.raises(EngineError, match="was stopped after"):
        run([sys.executable, "-c", STUBBORN], tmp_path, timeout=1.5)
    assert (tmp_path / "ready").exists()
    assert time.time() - start < 20
    assert gone(tmp_path)


def test_children_that_left_the_group_end_with_a_program_that_fails(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nraise SystemExit(3)"
    with pytest.raises(EngineError, match="exit code 3"):
        run([sys.executable, "-c", code], tmp_path)
    assert gone(tmp_path)


def test_children_that_left_the_group_end_with_a_program_that_ends_well(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('done')"
    assert run([sys.executable, "-c", code], tmp_path) == "done\n"
    assert gone(tmp_path)


def test_a_launcher_out_of_time_is_asked_first_so_that_it_can_end_its_ranks(tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    pathlib.Path('asked').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\ntime.sleep(60)"
    )
    with pytest.raises(EngineError, match="was stopped after"):
        run([sys.executable, "-c", code], tmp_path, timeout=1.5)
    assert (tmp_path / "asked").exists()


@pytest.mark.requires("mpirun.openmpi")
@pytest.mark.parametrize("timeout", [2.0, None])
def test_the_ranks_of_openmpi_end_with_their_launcher(tmp_path, timeout):
    """They have process groups of their own. Without a time limit the launcher itself is killed, by the system say."""
    code = "import os, time; open(f'rank-{os.getpid()}', 'w').close(); time.sleep(60)"
    command = ["mpirun.openmpi", "-n", "2", "--bind-to", "none", "--oversubscribe", sys.executable, "-c", code]
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if timeout is None:
        threading.Thread(target=kill_launcher, args=(tmp_path,), daemon=True).start()
    with pytest.raises(EngineError, match="was stopped after" if timeout else "signal 9"):
        run(command, tmp_path, timeout=timeout, environment=allow)
    assert gone(tmp_path)


def kill_launcher(folder):
    while len(list(folder.glob("rank-*"))) < 2:
        time.sleep(0.02)
    for process in grandchildren(folder):
        if process.name().startswith("mpirun"):
            process.kill()


def test_a_detached_program_has_a_session_and_an_environment_of_its_own(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os; print(os.getsid(0) == os.getpid(), os.getcwd(), min(os.environ))"
    pid = start_detached([sys.executable, "-c", code], tmp_path, log, {"AAA": "1"})
    assert os.waitpid(pid, 0)[1] == 0
    assert log.read_text() == f"before\nTrue {tmp_path} AAA\n"
