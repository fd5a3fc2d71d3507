"""What must hold in the section ``label`` beside its own keys: packages that are there, and where labels are kept."""

from __future__ import annotations

import os.path
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.fields import suggest
from campaign.config.labels import CALCULATOR_EXTRAS, PARAMETERS, Cached, texts_of
from campaign.config.view import View
from campaign.config.yaml_lines import Problem, show

if TYPE_CHECKING:
    from campaign.config.campaign_file import Campaign
    from campaign.config.load import Loaded


def check_label(view: View, folder: Path) -> Iterator[Problem]:
    """Yield what is wrong with the section ``label`` of a campaign file in ``folder``."""
    calculator = view.text("label", "calculator") if view.text("label", "engine") == "ase" else None
    if calculator in CALCULATOR_EXTRAS and find_spec(calculator) is None:
        what = f"this calculator is done by {calculator}, which is not installed"
        remedy = f"run pip install 'campaign[{CALCULATOR_EXTRAS[calculator]}]', or choose another calculator"
        yield view.problem(("label", "calculator"), what, calculator, remedy)
    if calculator in PARAMETERS:
        yield from _parameters(view, calculator)
    cache = view.text("label", "cache")
    if cache and (fault := cache_fault(cache, folder)):
        yield view.problem(("label", "cache"), fault[0], show(cache), fault[1])


def _parameters(view: View, calculator: str) -> Iterator[Problem]:
    """Yield arguments of an ASE calculator that it does not take from a campaign file, and texts that are paths."""
    known = PARAMETERS[calculator]
    rungs = [("ladder", k) for k in range(len(view.items("label", "ladder")))]
    for place in [("parameters",), *rungs]:
        for key, value in view.mapping("label", *place).items():
            here = ("label", *place, key)
            if key not in known:
                what = f"{calculator} takes no such argument from a campaign file"
                yield view.problem(here, what, show(value), suggest(key, known))
            elif any("/" in text for text in texts_of(value)):
                what = f"an argument of {calculator} names no file here"
                yield view.problem(here, what, show(value), "write a name without '/'")


def check_cache(loaded: Loaded[Campaign]) -> tuple[list[str], list[str]]:
    """Return whether labels can be kept where a campaign says: problems, and sentences on what is of less use.

    A matter of the machine at hand, so it is looked at before a run and not whenever the file is read. Nothing is left
    in the folder. One that is there and cannot be written may still be of use: for the labels in it.
    """
    label = loaded.spec.label
    if not isinstance(label, Cached) or label.cache is None:
        return [], []
    place = (loaded.folder / label.cache).resolve()
    try:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            return [], []
    except OSError as error:
        why = error.strerror or str(error)
    if os.path.isdir(place):
        return [], [f"label.cache: nothing can be written to {place} ({why}): labels in it are used, none are added."]
    remedy = "write a folder beside the campaign file, or the absolute path of one that you may write to"
    line = next((loaded.lines[k] for k in ("label.cache", "label") if k in loaded.lines), 1)
    problem = Problem(line, "label.cache", f"this folder cannot be made ({why})", show(label.cache), remedy)
    return [problem.text(loaded.path)], []


def cache_fault(written: str, folder: Path) -> tuple[str, str] | None:
    """Return what is wrong with the folder of a label cache, and the remedy.

    It is the one place outside the campaign's folder that a campaign may write to, because campaigns share it: then it
    is written as an absolute path, so that nobody gets there by mistake.
    """
    absolute = "write a folder beside the campaign file, or the absolute path of one that campaigns share"
    try:
        place = (folder / written).resolve()
        if not Path(written).is_absolute() and not place.is_relative_to(folder.resolve()):
            return "this folder is outside the campaign's own", absolute
        if place.exists() and not place.is_dir():
            return "labels are kept in a folder, and this is a file", absolute
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        return f"this folder cannot be used ({getattr(error, 'strerror', None) or error})", absolute
    return None
