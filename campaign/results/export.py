"""Frames of a run for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from campaign.errors import InputError
from campaign.flow import Flow
from campaign.frames import Frames
from campaign.stages import transferred
from campaign.stages.board import FrameSet
from campaign.stages.labelled import collect, references
from campaign.stages.transfer import Transfer
from campaign.stages.validate import Validate
from campaign.stages.verdicts import read_result
from campaign.store.store import Store


def export(flow: Flow, store: Store, what: str, to: Path) -> int:
    """Write frames to a file of another program.

    Parameters
    ----------
    flow
        A surveyed campaign.
    store
        Its store.
    what
        ``pool``, ``selected`` (the training set with the cheap potential's labels), ``labelled`` (the training set with
        its labels), ``rejected`` (refused by the selector or quarantined by the labeller, with the reason) or
        ``failed`` (the steps before a run with the model failed, energies and forces the model's).
    to
        ``*.extxyz``, ``*.db`` or ``*.zarr``; it must not exist.

    Returns
    -------
    int
        Number of frames.

    Raises
    ------
    InputError
        Nothing of that kind, an unknown format, or a file in the way.
    """
    from campaign.store.export import WRITERS

    writer = WRITERS.get(to.suffix)
    if writer is None:
        raise InputError(f"{to}: the format is taken from the name; write a name ending in {', '.join(WRITERS)}.")
    if to.exists():
        raise InputError(f"{to}: this file is there already; remove it or write another name.")
    if not to.parent.is_dir():
        raise InputError(f"{to}: there is no folder {to.parent}; make it first.")
    reasons: dict[str, str] = {}
    energies: dict[str, float] = {}
    blocks: Iterator[Frames]
    training = flow.board.training() or FrameSet("", 0, train=True)
    if what == "pool":
        blocks = store.stream("sample", [s.task.id for s in flow.board.shards if s.state == "ready"])
    elif what == "selected":
        blocks = iter(store.collect("sample", training.chosen))
    elif what == "labelled":
        labelled = collect(flow.board, store)
        energies, blocks = references(labelled), iter(labelled)
    elif what == "rejected":
        reasons = _rejected(flow)
        blocks = iter(store.collect("sample", list(reasons)))
    elif what == "failed":
        stage = flow.stage(Validate)
        runs = [run for run in (stage.runs() if stage else []) if read_result(store, run).get("before")]
        blocks = store.stream("validate", runs)
    else:
        raise InputError(f"WHAT: one of pool, selected, labelled, rejected, failed is needed, got {what!r}.")
    moved = flow.stage(Transfer)
    sources = {k: transferred.as_text(v) for k, v in transferred.origins(moved).items()} if moved else {}
    count = writer(blocks, to, reasons, energies, sources)
    if count == 0:
        raise InputError(f"There are no {what} frames yet; nothing was written. See campaign status.")
    return count


def _rejected(flow: Flow) -> dict[str, str]:
    """Return frame id to the reason why it was not used."""
    found = {r["frame"]: r["reason"] for s in flow.board.sets.values() for r in s.refused}
    for record in flow.failures:
        if record["stage"] == "label":
            found[record["name"].split("/", 1)[1]] = record["cause"]
    return found
