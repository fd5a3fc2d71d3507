from __future__ import annotations

import io
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from campaign.report.live import LiveView, status_line, status_table

Data = dict[str, Any]


def console(width: int = 80, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def written(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.fixture
def status(data: Data) -> Data:
    found: Data = data["status"]
    found.update(state="running", eta=95.0)
    return found


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_log_gets_a_line_at_each_change_and_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, status: Data) -> None:
    screen = console()
    with clock(monkeypatch) as now, LiveView(screen) as view:
        for frames in range(100):  # 99 updates in 9.9 s: one line
            now[0] = 100 + frames / 10
            view.update({**status, "frames": frames})
        assert written(screen).count("\n") == 1
        status["stages"]["train"]["state"] = "running"
        view.update(status)
        assert written(screen).count("\n") == 2
        now[0] += 10
        view.update({**status, "frames": 500})
        view.update({**status, "frames": 501})
        assert written(screen).count("\n") == 3
    assert "\x1b" not in written(screen)


def test_no_color_is_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert LiveView(console(terminal=True)).plain


def test_line_says_all(status: Data) -> None:
    line = status_line(status)
    for part in ("sample 23/24 (1 failed)", "frames 2080 (12.4/s)", "selected 32", "loss 0.0041", "left 1 min 35 s"):
        assert part in line


@pytest.mark.parametrize("width", [30, 44, 80, 200])
def test_table_fits_the_terminal(status: Data, width: int) -> None:
    status["failures"] *= 9
    screen = console(width)
    screen.print(status_table(status))
    lines = written(screen).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "4 earlier failures" in " ".join(written(screen).split())


def test_table_of_eighty_columns_cuts_nothing(status: Data) -> None:
    screen = console(80)
    screen.print(status_table(status))
    text = written(screen)
    assert "…" not in text
    for part in ("✓ done", "! partial", "23/24", "1 failed", "Lost atoms: original 64 current 63."):
        assert part in text


def test_a_frame_without_a_label_is_named_with_its_cause_and_where_its_files_are(status: Data) -> None:
    known = {"task": "ab" * 8, "stage": "label", "cause": "SCF did not converge.", "frame": "0f" * 8 + ":7"}
    known |= {"folder": f"tasks/{known['task']}", "attempts": [{}, {}, {}]}
    status["failures"] = [known, {**known, "cause": f"It stopped (RUN/{known['folder']}/attempt-2)."}] * 4
    screen = console(200)
    screen.print(status_table(status, most=200))
    lines = [line for line in written(screen).splitlines() if line.startswith("✗ label")]
    assert len(lines) == 8
    assert lines[0].rstrip() == (
        f"✗ label {known['frame']}: SCF did not converge. (3 attempts, files in {known['folder']})"
    )
    assert lines[1].rstrip().endswith("attempt-2). (3 attempts)")  # the cause says where


def test_what_is_waited_for_is_told(status: Data) -> None:
    waits = {**status, "waits_for": "2 jobs in the\x1b queue"}
    assert status_line(waits).endswith(", waits: 2 jobs in the  queue")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(status_table(waits))
    assert "waits: 2 jobs in the  queue" in console.export_text()


def test_nothing_known_yet() -> None:
    screen = console()
    screen.print(status_table({}))
    assert "pending" in written(screen)
    assert status_line({}) == "campaign: pending, frames 0, selected 0, labelled 0"


def test_text_from_outside_cannot_drive_the_terminal(status: Data) -> None:
    status["campaign"] = "[red]x\x1b[2J"
    status["failures"][0]["cause"] = "bad\x1b]0;title\x07\nline"
    screen = console()
    screen.print(status_table(status))
    assert "\x1b" not in written(screen) + status_line(status)
    assert "[red]x" in written(screen)


def test_an_error_inside_the_view_passes_through(status: Data) -> None:
    def interrupted() -> None:
        with LiveView(console(terminal=True)) as view:
            view.update(status)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


PROGRAM = """
import time
from campaign.report.live import LiveView
status = {"campaign": "demo", "state": "running", "stages": {"sample": {"state": "running", "done": 0, "total": 40}}}
with LiveView() as view:
    for k in range(41):
        status["stages"]["sample"]["done"] = k
        view.update(status)
        time.sleep(0.01)
print("END")
time.sleep(30)
"""


@pytest.mark.requires("tmux")
def test_a_real_terminal_repaints_in_place(tmp_path: Path) -> None:
    script = tmp_path / "live.py"
    script.write_text(PROGRAM, encoding="utf-8")
    tmux = ["tmux", "-L", f"campaign-{tmp_path.name}", "-f", "/dev/null"]
    command = f"env -u NO_COLOR TERM=xterm-256color {shlex.quote(sys.executable)} {shlex.quote(str(script))}"
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
    try:
        for _ in range(100):
            time.sleep(0.1)
            shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
            if "END" in shown:
                break
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert shown.count("sample") == 1
    assert "40/40" in shown
