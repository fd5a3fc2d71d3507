"""The live view of a running campaign, and the table that ``campaign status`` prints.

Both draw the status dictionary and nothing else. On a terminal the view repaints in place; elsewhere (a log, a batch
job, ``NO_COLOR``) it writes a plain line at each change of a stage and at most every ten seconds between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from campaign.report.text import count, duration, number, significant

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable
    from rich.live import Live
    from rich.text import Text

Status = Mapping[str, Any]

#: Seconds between plain lines while no stage changes.
QUIET = 10.0
MOST_FAILURES = 5
#: State -> (mark, style). The mark carries the meaning where there is no colour.
MARKS = {
    "done": ("✓", "green"),
    "running": ("▶", "bold cyan"),
    "pending": ("·", "dim"),
    "partial": ("!", "yellow"),
    "interrupted": ("!", "yellow"),
    "stopped": ("◦", "cyan"),
    "failed": ("✗", "red"),
    "skipped": ("–", "dim"),
}


class LiveView:
    """Show a campaign's status while it runs, on stderr.

    Parameters
    ----------
    console
        Where to draw; stderr if None.

    Examples
    --------
    >>> with LiveView() as view:  # doctest: +SKIP
    ...     view.update(status)
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        dumb = self.console.is_dumb_terminal or bool(os.environ.get("NO_COLOR"))
        self.plain = not self.console.is_terminal or dumb
        self._live: Live | None = None
        self._shown: tuple[str, ...] | None = None
        self._line = ""
        self._next = 0.0

    def __enter__(self) -> Self:
        if not self.plain:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, status: Status) -> None:
        """Show ``status``; cheap enough to call several times a second."""
        if self._live is not None:
            self._live.update(status_table(status), refresh=True)
            return
        states = tuple(f"{name}={stage.get('state')}" for name, stage in _stages(status).items())
        shown = (str(status.get("state")), *states)
        now = time.monotonic()
        line = status_line(status)
        if line != self._line and (shown != self._shown or now >= self._next):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._shown, self._line, self._next = shown, line, now + QUIET


def status_line(status: Status) -> str:
    """Return the status as one plain line, for logs."""
    parts = [f"{printable(status.get('campaign', 'campaign'))}: {printable(status.get('state', 'pending'))}"]
    for name, stage in _stages(status).items():
        state = str(stage.get("state", "pending"))
        if state not in ("pending", "skipped"):
            failed = f" ({stage['failed']} failed)" if stage.get("failed") else ""
            parts.append(f"{name} {stage.get('done', 0)}/{stage.get('total') or '?'}{failed}")
    parts += [f"{label} {value}" for label, value in _figures(status)]
    if status.get("waits_for"):
        parts.append(f"waits: {printable(status['waits_for'])}")
    return ", ".join(parts).replace("\u2009", "")


def status_table(status: Status, most: int = MOST_FAILURES) -> ConsoleRenderable:
    """Return the status as a table with bars, the figures under it, and the ``most`` latest failures."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    state = str(status.get("state", "pending"))
    mark, style = MARKS.get(state, ("·", ""))
    head = Text(overflow="ellipsis", no_wrap=True)
    head.append(printable(status.get("campaign", "campaign")), style="bold")
    head.append(f"  {mark} {printable(state)}", style=style)

    table = Table.grid(padding=(0, 1), expand=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=8)
    table.add_column(min_width=4, max_width=24)  # the column that gives way on a narrow terminal
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    for name, stage in _stages(status).items():
        found = str(stage.get("state", "pending"))
        mark, style = MARKS.get(found, ("·", ""))
        done, total, failed = (int(number(stage.get(k)) or 0) for k in ("done", "total", "failed"))
        bar = ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), finished_style="green")
        table.add_row(
            Text(f"{mark} {printable(found)}", style=style),
            Text(printable(name)),
            Text("skipped", style="dim") if found == "skipped" else bar,
            Text("" if found == "skipped" else f"{done}/{total or '?'}"),
            Text(f"{failed} failed" if failed else "", style="red"),
        )
    figures = Text(overflow="fold")
    for k, (label, value) in enumerate(_figures(status)):
        figures.append("  ·  " if k else "", style="dim")
        figures.append(f"{label} ", style="dim").append(value)
    notes = [Text(f"note: {printable(note)}", overflow="fold") for note in status.get("notes") or []]
    if status.get("waits_for"):
        notes.append(Text(f"waits: {printable(status['waits_for'])}", style="yellow", overflow="fold"))
    return Group(head, table, figures, *notes, *_failures(status, most))


def printable(text: Any) -> str:
    """Return text on one line without control characters, which could redraw the terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def _failures(status: Status, most: int) -> list[Text]:
    """Return a line a failure, the newest ones; of a label the frame, and where its files are."""
    from rich.text import Text

    found = [f for f in status.get("failures") or [] if isinstance(f, Mapping)]
    lines = []
    if len(found) > most:
        lines.append(Text(f"{len(found) - most} earlier failures are in the run's ledger.", style="dim"))
    for failure in found[-most:]:
        line = Text(overflow="fold")
        what = printable(failure.get("frame") or failure.get("task", ""))
        line.append(f"✗ {printable(failure.get('stage', ''))} {what}: ", style="red")
        line.append(printable(failure.get("cause", "")))
        tries = len(failure.get("attempts") or [])
        more = [f"{tries} attempts"] if tries > 1 else []
        if failure.get("folder") and str(failure["folder"]) not in str(failure.get("cause")):
            more.append(f"files in {printable(failure['folder'])}")
        line.append(f" ({', '.join(more)})" if more else "", style="dim")
        lines.append(line)
    return lines


def _stages(status: Status) -> dict[str, Status]:
    return dict(status.get("stages") or {})


def _figures(status: Status) -> list[tuple[str, str]]:
    """Return (label, value) of the figures that are known."""
    rate = number(status.get("frames_per_second"))
    frames = count(status.get("frames") or 0) + (f" ({significant(rate)}/s)" if rate else "")
    out = [
        ("frames", frames),
        ("selected", count(status.get("selected") or 0)),
        ("labelled", count(status.get("labelled") or 0)),
    ]
    if number(status.get("refused")):
        out.append(("refused", count(status["refused"])))
    if number(status.get("loss")) is not None:
        out.append(("loss", significant(status["loss"])))
    if status.get("failures"):
        out.append(("failures", str(len(status["failures"]))))
    if number(status.get("seconds")) is not None:
        out.append(("time", duration(status["seconds"])))
    if number(status.get("eta")) is not None and status.get("state") == "running":
        out.append(("left", duration(status["eta"])))
    return out
