"""What must hold in the section ``sample`` beside each method's own keys, and of the size of the pool."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from campaign.config.campaign_file import MOMT, NPT
from campaign.config.validations import Errors
from campaign.config.view import View
from campaign.config.yaml_lines import Problem

#: Sampling methods that are molecular dynamics with system.potential.
DYNAMICS = ("npt", "nvt", "nvt_grid", "momt")

#: Those of ``DYNAMICS``, and the one with a trained model, which needs no potential.
ALL_DYNAMICS = (*DYNAMICS, "md")


def check_sampling(view: View) -> Iterator[Problem]:
    """Yield what does not hold between the keys of a sampling entry, and what the pool is too small for."""
    yield from _steps(view)
    yield from _sampling_lists(view)
    yield from _model_dynamics(view)
    yield from _pool_size(view)


def _steps(view: View) -> Iterator[Problem]:
    for i in range(len(view.items("sample"))):
        found = _md_frames(view, i)
        if found and found[0] % found[1]:
            steps, every = found
            better = int(max(1, round(steps / every)) * every)
            what = f"steps must be a multiple of every ({every:g})"
            yield view.problem(("sample", i, "steps"), what, steps, f"write {better}")


def _sampling_lists(view: View) -> Iterator[Problem]:
    """Check that no point of a sampling method comes twice, and that every volume has room for the atoms."""
    for i in range(len(view.items("sample"))):
        if view.text("sample", i, "method") not in (*DYNAMICS[:3], "md"):  # the two temperatures of MOMT are no points
            continue
        for name in ("pressure", "volumes", "temperatures"):
            found = view.items("sample", i, name)
            if len(set(map(repr, found))) < len(found):
                what = "a value comes twice: its walkers would be one point's"
                remedy = "write each once, and 'walkers' for more of them"
                yield view.problem(("sample", i, name), what, found, remedy)


def _model_dynamics(view: View) -> Iterator[Problem]:
    """Check what sampling with a model cannot do: several ranks a walker, lists and ramps that its ensemble has not."""
    for i in range(len(view.items("sample"))):
        place = ("sample", i)
        if view.text(*place, "method") != "md":
            continue
        if (view.number(*place, "ranks", default=1) or 1) > 1:
            what = "a model drives all atoms of a walker in one process"
            yield view.problem((*place, "ranks"), what, view.get(*place, "ranks"), "write 1")
        ensemble = view.text(*place, "ensemble")
        if ensemble in ("nvt", "nve") and view.items(*place, "pressure"):
            what = f"{ensemble} keeps the cell as it is"
            yield view.problem((*place, "pressure"), what, view.get(*place, "pressure"), "remove it")
        if ensemble == "nve" and view.items(*place, "temperature"):
            what = "nve has no thermostat that could follow a ramp"
            yield view.problem((*place, "temperature"), what, view.get(*place, "temperature"), "write one temperature")


def _pool_size(view: View) -> Iterator[Problem]:
    """Check that the pool has frames to hold out beside those that are selected.

    More frames to select than there are is no mistake: all are taken, and the plan and the status say so.
    """
    pool = 0.0
    for i in range(len(view.items("sample"))):
        found = _md_frames(view, i)
        frames = found[0] // found[1] if found else view.number("sample", i, "frames")
        walkers = view.number("sample", i, "walkers", default=1)
        if not frames or not walkers:
            return
        pool += frames * walkers * _points(view, i)
    size = view.number("select", "size")
    if not size or not pool:
        return
    for i in range(len(view.items("validate"))):
        held_out = view.number("validate", i, "held_out", default=Errors.model_fields["held_out"].default)
        if view.text("validate", i, "method") != "errors" or not held_out:
            continue
        picks = size * (1 + len(view.items("validate", i, "against")))
        if held_out + picks > pool:
            what = f"the sampling gives {pool:.0f} frames and {picks:.0f} of them are for training"
            left = f"write held_out: {pool - picks:.0f} or less" if pool > picks else "select fewer"
            yield view.problem(("validate", i, "held_out"), what, held_out, f"{left}, or sample more")


def _md_frames(view: View, i: int) -> tuple[float, float] | None:
    """Return (steps, every) of a sampling entry by molecular dynamics."""
    if view.text("sample", i, "method") not in ALL_DYNAMICS:
        return None
    steps = view.number("sample", i, "steps")
    kind = MOMT if view.text("sample", i, "method") == "momt" else NPT
    every = view.number("sample", i, "every", default=kind.model_fields["every"].default)
    return (steps, every) if steps and every else None


def _points(view: View, i: int) -> int:
    """Return at how many points (pressures; volumes and temperatures) a sampling entry has walkers."""
    lists = ("volumes", "temperatures") if view.text("sample", i, "method") == "nvt_grid" else ("pressure",)
    return int(np.prod([max(1, len(view.items("sample", i, name))) for name in lists]))
