"""What was selected, and how new each frame was when it came by."""

from __future__ import annotations

from typing import Any

import numpy as np

from campaign.flow import Flow
from campaign.stages.board import FrameSet
from campaign.stages.distill import Distill
from campaign.stages.select import Select
from campaign.stages.transfer import Transfer
from campaign.store.store import Store
from campaign.tasks import Json

#: Points of the selection figure, beside the chosen frames.
NOVELTY_POINTS = 5000


def selection(flow: Flow, store: Store) -> dict[str, Json]:
    """Return the set that is labelled, and, of a selector that measures it, novelty along the stream, thinned."""
    distill, transfer, select = flow.stage(Distill), flow.stage(Transfer), flow.stage(Select)
    if distill is not None and distill.sets[0].chosen:  # what was selected before is neither labelled nor trained on
        source, found = flow.board.source, distill.sets[0]
        return _picked(found, found.name, len(source.chosen) if source is not None else flow.frames)
    if transfer is not None:
        return _picked(transfer.main, transfer.name, transfer.origin.frames)
    if select is None or not (select.stream or select.sets[0].chosen):
        return {}
    series, seen = _novelty(select, store, max(1, flow.frames // NOVELTY_POINTS))
    return _picked(select.sets[0], select.method, seen if select.stream else flow.frames) | series


def _picked(found: FrameSet, method: str, seen: int) -> dict[str, Json]:
    """Return what there is to say of every set of frames, picked out of ``seen`` frames."""
    return {
        "method": method,
        "novelty": [],
        "temperature": [],
        "chosen": [],
        "refused": found.refused,
        "note": found.note,
        "seen": seen,
        "picked": len(found.chosen),
    }


def _novelty(stage: Select, store: Store, step: int) -> tuple[dict[str, Json], int]:
    """Return every ``step``-th frame of the stream with all that were chosen, and the length of the stream."""
    wanted = set(stage.sets[0].chosen)
    novelty: list[float | None] = []
    temperature: list[float | None] = []
    chosen: list[int] = []
    seen = 0
    for task in stage.stream:
        if not stage.measures_novelty:
            place = store.locate("select", task)
            seen += place.stop - place.start
            continue
        part = store.arrays("select", task)
        if "novelty" not in part:
            continue
        ids = [f"{int(t):016x}:{int(i)}" for t, i in zip(part["task"], part["index"], strict=True)]
        for k, name in enumerate(ids):
            if name in wanted or (seen + k) % step == 0:
                if name in wanted:
                    chosen.append(len(novelty))
                novelty.append(_number(part["novelty"][k]))
                temperature.append(_number(part["temperature"][k]))
        seen += len(ids)
    return {"novelty": novelty, "temperature": temperature, "chosen": chosen}, seen


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
