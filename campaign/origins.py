"""The set of another campaign that is to be transferred: found, checked against the campaign file, and noted.

Everything here is read; nothing is written into the other run, or into this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaign.config.data_files import TRANSFER_NOTE, Fault, find
from campaign.config.transfers import FILES
from campaign.config.yaml_lines import Problem, show
from campaign.engines.frame_format import WrongFrames
from campaign.errors import CampaignError, InputError, StoreError
from campaign.inputs import digests, read_files
from campaign.stages.board import Board, FrameSet
from campaign.stages.transfer_origin import Origin, of_file, of_run
from campaign.store.store import Store
from campaign.tasks import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from campaign.config import Campaign, Loaded
    from campaign.config.transfers import Transfer
    from campaign.flow import Flow
    from campaign.stages.sample_file import Source

    #: Returns what is finished in a run directory, running nothing (``pipeline.survey``).
    Survey = Callable[[Path], tuple[Flow, Campaign]]


class _Wrong(Exception):
    """What is wrong with a key of ``transfer``."""

    def __init__(self, key: str, what: str, got: str, remedy: str) -> None:
        super().__init__(what)
        self.key, self.what, self.got, self.remedy = key, what, got, remedy


def transfer_origin(
    loaded: Loaded[Campaign], survey: Survey, sources: Sequence[Source] = (), into: Path | None = None
) -> Origin | None:
    """Return a note of the frames that a campaign transfers; None where it transfers nothing.

    Parameters
    ----------
    loaded
        The campaign. Where it is a run directory's own, its note stands for the source, which need not be there.
    survey
        Looks a run directory through.
    sources
        Notes of the files of frames that it samples from.
    into
        The run directory that it would run in.

    Raises
    ------
    InputError
        The source is not there, has no such set, or one that does not go with the campaign file; on its lines.
    """
    spec = loaded.spec.transfer
    if spec is None:
        return None
    mine = _note(loaded.folder) if (loaded.folder / "run.zarr").is_dir() else None
    try:
        if mine is None or not mine.is_of(spec):
            mine = _look(loaded, spec, survey, into)
        _check_species(mine, spec)
        _check_lattice(mine, spec)
    except _Wrong as wrong:
        raise InputError(_problem(loaded, f"transfer.{wrong.key}", wrong).text(loaded.path)) from wrong
    problems = [p.text(loaded.path) for p in _short_pool(loaded, mine, sources)]
    if problems:
        raise InputError(*problems)
    return mine


def _problem(loaded: Loaded[Campaign], key: str, wrong: _Wrong) -> Problem:
    line = next((loaded.lines[k] for k in (key, "transfer") if k in loaded.lines), 1)
    return Problem(line, key, wrong.what, wrong.got, wrong.remedy)


def _note(folder: Path) -> Origin | None:
    try:
        return Origin.from_json(json.loads((folder / TRANSFER_NOTE).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):  # a note that is not there is made again
        return None


def note(origin: Origin | None) -> dict[str, bytes]:
    """Return the note as a data file of the run directory; nothing where there is none."""
    return {TRANSFER_NOTE: json.dumps(origin.to_json(), separators=(",", ":")).encode()} if origin else {}


def check_there(origin: Origin | None, missing: int) -> None:
    """Check that the source of which parts are still to be read is as it was.

    Raises
    ------
    InputError
        It changed or vanished.
    """
    fault = origin.fault() if origin is not None and missing else None
    if origin is not None and fault:
        raise InputError(
            f"transfer.from: {fault}, and {missing} of its {len(origin.parts)} parts are still to be read, got "
            f"'{origin.written}'; put it back as it was, or give campaign run with the campaign file to take what it "
            "holds now"
        )


# -- finding it --------------------------------------------------------------------------------------------------------


def _look(loaded: Loaded[Campaign], spec: Transfer, survey: Survey, into: Path | None) -> Origin:
    """Look the source through."""
    got = show(spec.source)
    if spec.is_file:
        path = find(spec.source, loaded.folder, copied=False)
        if isinstance(path, Fault):
            raise _Wrong("from", path.what, path.got, path.remedy)
        try:
            parts, species, digest = of_file(path, spec)
        except WrongFrames as error:
            raise _Wrong("from", error.what, error.got, error.remedy) from error
        except (StoreError, OSError) as error:
            raise _Wrong("from", f"the frames cannot be read ({error})", got, "name a file that can be read") from error
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        about = spec.origin or ""
        return Origin(
            spec.source, spec.set, about, spec.segment, str(path), path.name, stamp, digest, species, parts, {}
        )
    run = _run_directory(spec.source, loaded.folder)
    if into is not None and run == into.resolve():
        raise _Wrong("from", "this is the run directory of this campaign itself", got, "name another campaign's")
    if spec.origin:
        raise _Wrong("origin", "a run says itself where its frames come from", show(spec.origin), "remove it")
    try:
        flow, other = survey(run)
        chosen = _set(flow, other, spec, run)
        parts, species = of_run(Store(run / "run.zarr"), chosen, spec.segment)
        crystal = _crystal(run, other)
    except CampaignError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        what = f"this run cannot be looked at: its frames are of unknown provenance ({reason})"
        raise _Wrong("from", what, got, "name a run directory of campaign that is whole") from error
    return Origin(spec.source, spec.set, "", spec.segment, str(run), other.name, [], "", species, parts, crystal)


def _run_directory(written: str, folder: Path) -> Path:
    """Return the run directory of that path or, below ``runs``, of that name."""
    got = show(written)
    remedy = "write the path of a run directory, such as runs/ni-momt-32; 'campaign run' of its file makes it"
    places = [folder / written] + ([folder / "runs" / written] if len(Path(written).parts) == 1 else [])
    for place in places:
        try:
            path = place.resolve()
            if Path(written).is_absolute() or not path.is_relative_to(folder.resolve()):
                move = "put the campaign file into a folder above that run, and write its relative path"
                raise _Wrong("from", "a campaign's files must lie in its folder", got, move)
            if path.name == "run.zarr":
                path = path.parent
            if (path / "campaign.yaml").is_file() or (path / "run.zarr" / "campaign").is_dir():
                return path
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
            reason = getattr(error, "strerror", None) or error
            raise _Wrong("from", f"this folder cannot be read ({reason})", got, "check the path") from error
    if any(place.is_dir() for place in places):
        what = (
            "this folder is no run directory (it has neither campaign.yaml nor run.zarr): where its frames come from "
        )
        raise _Wrong("from", what + "is not known", got, remedy)
    if places[0].is_file():
        raise _Wrong("from", f"frames are transferred from a run or a file *{', *'.join(FILES)}", got, remedy)
    raise _Wrong("from", "there is no such run directory", got, remedy)


def _set(flow: Flow, other: Campaign, spec: Transfer, run: Path) -> list[str]:
    """Return the frames of the asked set of another run."""
    board = flow.board
    main = board.training()  # with what was learned
    chosen: FrameSet | None = main
    if spec.set in ("selected", "distilled"):
        first = next((s for s in board.sets.values() if s.train), None)
        chosen = board.source if spec.set == "selected" and other.distill else first
    if (spec.set == "selected" and not other.select) or (spec.set == "distilled" and not other.distill):
        chosen = None
    if (spec.set == "labelled" and not other.label) or chosen is None:
        what = f"campaign {other.name} has no {spec.set} set"
        have = [name for name, part in (("selected", other.select), ("distilled", other.distill)) if part]
        have = ["training", *have, *(["labelled"] if other.label else [])] if main else have
        raise _Wrong("set", what, spec.set, f"write one of {', '.join(have)}" if have else "name another run")
    finish = f"finish it first: campaign resume {run.name}"
    if not chosen.closed or (chosen is main and board.learning):
        what = f"the {spec.set} set of campaign {other.name} is not complete"
        got = f"{len(chosen.chosen)} of {chosen.size} frames" if not chosen.closed else "learning that has not ended"
        raise _Wrong("set", what, got, finish)
    frames = list(chosen.chosen)
    if spec.set == "labelled":
        if open_labels := sum(f not in board.labels for f in frames):
            what = f"the labelled set of campaign {other.name} is not complete"
            raise _Wrong("set", what, f"{open_labels} frames without a label yet", finish)
        frames = _labelled(board, chosen)
    if not frames:
        raise _Wrong("set", f"the {spec.set} set of campaign {other.name} is empty", "0 frames", "name another run")
    return frames


def _labelled(board: Board, chosen: FrameSet) -> list[str]:
    return [f for f in chosen.chosen if board.labels.get(f)]


def _crystal(run: Path, other: Campaign) -> dict[str, Json]:
    """Return the crystal and the potential of another run, by which its lattice constant is found; empty without.

    The potential is the one that its frames have their size from: it moved them, or they were scaled to its lattice.
    Frames that were scaled by a given factor have the size that this gave them, whatever lattice they have now.
    """
    from campaign.config import load_campaign

    if other.transfer is not None and other.transfer.scale != "lattice":
        before = _note(run)
        if before is None or not before.crystal or not Path(before.crystal["potential"]).is_file():
            return {}
        factors = np.broadcast_to(np.asarray(other.transfer.scale, dtype=float), (3,))
        return before.crystal | {"grown": before.grown * float(factors.prod())}
    structure: dict[str, Json] = other.system.structure.model_dump(mode="json")
    moved = other.transfer.potential if other.transfer else other.system.potential
    potential = moved or other.reference
    if potential is None or "prototype" not in structure:
        return {}
    digest = digests(read_files(load_campaign(run / "campaign.yaml")))[potential.lammps]
    return {"structure": structure, "potential": str(run / potential.lammps), "digest": digest}


# -- checking it -------------------------------------------------------------------------------------------------------


def _check_species(origin: Origin, spec: Transfer) -> None:
    written = show(dict(spec.species))
    missed = [s for s in origin.species if s not in spec.species]
    if missed:
        what = f"the frames of {origin.run} have {', '.join(missed)}, which the mapping leaves out"
        raise _Wrong("species", what, written, f"add '{missed[0]}: ...' ('{missed[0]}: {missed[0]}' keeps it)")
    strange = [s for s in spec.species if s not in origin.species]
    if strange:
        what = f"the frames of {origin.run} (elements {' '.join(origin.species)}) have no {', '.join(strange)}"
        raise _Wrong("species", what, written, f"remove {', '.join(strange)}")


def _check_lattice(origin: Origin, spec: Transfer) -> None:
    if spec.scale == "lattice" and not origin.crystal:
        what = "the lattice ratio needs the source's crystal and potential, and "
        what += f"of {origin.run} they are not known" if origin.is_run else "a file has none"
        raise _Wrong("scale", what, "'lattice'", "write a factor, such as 'scale: 1.15'")


def _short_pool(loaded: Loaded[Campaign], origin: Origin, sources: Sequence[Source]) -> Iterator[Problem]:
    """Yield a test that asks for more frames than the target's own pool has."""
    spec = loaded.spec
    assert spec.transfer is not None
    pool = sum(m.all_walkers * m.frames for m in spec.sample) + sum(s.frames for s in sources)
    size = origin.frames * (1 + (spec.transfer.strain.copies if spec.transfer.strain else 0))
    for k, test in enumerate(spec.validation):
        if test.method != "errors":
            continue
        others = size if test.against else 0
        if test.held_out + others > pool:
            key = f"validate[{k}].held_out"
            line = next((loaded.lines[i] for i in (key, f"validate[{k}]") if i in loaded.lines), 1)
            what = f"the target's pool has {pool} frames, and {others} of them are for a set to compare with"
            left = f"write held_out: {pool - others} or less" if pool > others else "leave out 'against'"
            yield Problem(line, key, what, str(test.held_out), f"{left}, or sample more")


def estimate(origin: Origin, loaded: Loaded[Campaign]) -> list[float]:
    """Return the factors along x, y and z as far as they are known before anything is run.

    For ``lattice`` those of the lattice constants that are written in both campaign files.
    """
    from campaign.engines.structures import build_structure
    from campaign.science.transfer import ratio

    spec = loaded.spec.transfer
    assert spec is not None
    if spec.scale != "lattice":
        return [float(f) for f in np.broadcast_to(np.asarray(spec.scale, dtype=float), (3,))]
    volumes = []
    for structure in (origin.crystal["structure"], loaded.spec.system.structure.model_dump(mode="json")):
        atoms = build_structure(structure, loaded.folder)
        volumes.append(atoms.get_volume() / len(atoms))
    return [float(f) for f in ratio(volumes[0] * origin.grown, volumes[1])]
