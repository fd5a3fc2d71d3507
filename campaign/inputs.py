"""The data files a campaign names, and the hashes by which they enter the tasks' ids.

Most are small and are copied into the run directory. Files of frames are read in place: of them it has notes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config import read_potential_header
from campaign.config.data_files import FRAME_NOTES
from campaign.config.yaml_lines import Problem
from campaign.engines.frame_format import WrongFrames
from campaign.errors import EngineError, InputError, StoreError
from campaign.stages.sample_file import Source, look
from campaign.stages.validate_runs import too_short

if TYPE_CHECKING:
    from campaign.config import Campaign, Loaded
    from campaign.stages.board import Shard


def read_files(loaded: Loaded[Campaign]) -> dict[str, bytes]:
    """Return the content of every data file, those that a potential's lines name included, by relative path."""
    from campaign.engines.lammps_potential import named_files

    found = dict(loaded.files)
    for name in loaded.potentials:
        file = loaded.files[name]
        for other in named_files(file):
            found[str(Path(name).parent / other)] = file.parent / other
    return {name: file.read_bytes() for name, file in found.items()}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the hash of each data file; a potential's hash covers the files that its lines name."""
    every = {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in files.items()}
    return {name: _with_named(name, files[name], every) for name in files}


def _with_named(name: str, content: bytes, every: dict[str, str]) -> str:
    folder = Path(name).parent
    ends = {Path(other).name.encode() for other in every}  # a table has 10^5 words: few are looked at as paths
    words = {t for t in content.replace(b'"', b" ").split() if t.rpartition(b"/")[2] in ends}
    found = {str(folder / t.decode(errors="replace")) for t in words}  # a structure file names no other
    named = sorted(w for w in found if w in every and w != name)
    return "-".join([every[name], *(every[w][:8] for w in named)])


def label_methods(loaded: Loaded[Campaign]) -> list[str]:
    """Return the hash of what each rung of ``engine: cp2k`` computes, in the order of its ladder; none elsewhere.

    How a rung gets there does not enter (``cp2k_template.Template.method``), so that what is finished stays finished
    when a template is made to converge better.
    """
    from campaign.config.cp2k_template import read_template

    label = loaded.spec.label
    if label is None or label.engine != "cp2k":
        return []
    template = read_template(loaded.folder / label.template)
    return [template.method([rung])[0] for rung in label.ladder]


def with_shared_cache(loaded: Loaded[Campaign]) -> Loaded[Campaign]:
    """Return the campaign with the folder of its label cache written out: a run directory keeps using the same."""
    label = loaded.spec.label
    if label is None or label.engine == "pool" or label.cache is None:
        return loaded
    label = label.model_copy(update={"cache": str((loaded.folder / label.cache).resolve())})
    return replace(loaded, spec=loaded.spec.model_copy(update={"label": label}))


def frame_sources(loaded: Loaded[Campaign], known: Path | None = None, again: bool = False) -> list[Source]:
    """Return a note for each file of frames that a campaign samples from (``campaign.stages.sample_file``).

    Files are looked through and hashed, except those of which a run directory has a note that still holds.

    Parameters
    ----------
    loaded
        The campaign. Where it is a run directory's own, its notes stand for the files, which need not be there.
    known
        A run directory whose notes may be used too.
    again
        Look again through files of a run directory's own campaign whose time changed: the same content is taken as
        unchanged.

    Raises
    ------
    InputError
        With every file that cannot be read, and what in them cannot be taken, on the campaign file's lines.
    """
    entries = [(k, m) for k, m in enumerate(loaded.spec.sample) if m.method == "file"]
    if not entries:
        return []
    own = _notes(loaded.folder) if (loaded.folder / "run.zarr").is_dir() else []
    known_notes = _notes(known) if known is not None else []
    others = own + [n for n in known_notes if n.stamp]  # another run's store may hold more by now
    found: list[Source] = []
    problems: list[Problem] = []
    for entry, spec in entries:
        key = f"sample[{entry}].file"
        line = next((loaded.lines[k] for k in (key, f"sample[{entry}]") if k in loaded.lines), 1)
        mine = next((n for n in own if n.is_of(entry, spec)), None)
        place = next((n.path for n in own if n.file == spec.file), None) or str((loaded.folder / spec.file).resolve())
        same = mine or next((n for n in others if n.path == place and n.is_of(entry, spec)), None)
        try:
            if same is None or (same.fault() and (mine is None or (again and Path(place).exists()))):
                fresh = look(Path(place), entry, spec)
                same = mine if mine and (mine.digest, mine.shards) != (fresh.digest, fresh.shards) else fresh
            found.append(same)
            problems += _elements(loaded, same, line, key)
        except WrongFrames as error:
            if mine is None:
                problems.append(Problem(line, key, error.what, error.got, error.remedy))
            else:
                found.append(mine)
        except (StoreError, OSError) as error:
            what = f"the frames cannot be read ({error})".replace(".)", ")")
            problems.append(Problem(line, key, what, f"'{spec.file}'", "name a file that can be read"))
    if problems:
        raise InputError(*(p.text(loaded.path) for p in problems))
    _check_pool(loaded, found)
    return found


def read_in_place(loaded: Loaded[Campaign]) -> dict[str, Path]:
    """Return the files of frames that a campaign names and that are not copied, by path as written.

    The source of a transfer is one of them, except where it is another run.
    """
    spec = loaded.spec
    names = [m.file for m in spec.sample if m.method == "file"]
    names += [spec.transfer.source] if spec.transfer and spec.transfer.is_file else []
    return {name: loaded.folder / name for name in names}


def check_models(loaded: Loaded[Campaign]) -> list[str]:
    """Return what is wrong with model files that are sampled with, and with how long tests run, on the file's lines.

    A cutoff that is longer than half the cell needs no word: models see as many images as it reaches.
    """
    from ase.data import chemical_symbols

    from campaign.engines.model_files import load_model_file, species_of
    from campaign.engines.schnetpack import Potential
    from campaign.engines.structures import build_structure

    problems: list[Problem] = []
    for entry, spec in enumerate(loaded.spec.sample):
        if spec.method != "md":
            continue
        key = f"sample[{entry}].model"
        line = next((loaded.lines[k] for k in (key, f"sample[{entry}]") if k in loaded.lines), 1)
        try:
            model = load_model_file(loaded.files[spec.model])
        except EngineError as error:
            what = f"this is no model that campaign can run ({str(error).split(' (')[-1].split(')')[0]})"
            remedy = "name a file of RUN/models of a finished campaign"
            problems.append(Problem(line, key, what, f"'{spec.model}'", remedy))
            continue
        known = species_of(model)
        if spec.device != "cpu" and not isinstance(model, Potential):
            what, place = "this model runs on the CPU alone", f"sample[{entry}].device"
            problems.append(Problem(loaded.lines.get(place, line), place, what, spec.device, "write 'device: cpu'"))
        atoms = build_structure(loaded.spec.system.structure.model_dump(mode="json"), loaded.folder)
        absent = sorted(set(atoms.numbers.tolist()) - set(known if known is not None else atoms.numbers.tolist()))
        if absent:
            have = ", ".join(chemical_symbols[z] for z in known or [])
            lack = ", ".join(chemical_symbols[z] for z in absent)
            what = f"the structure has {lack}, which this model (trained on {have}) has not seen"
            remedy = f"name a model that was trained on {lack} too"
            problems.append(Problem(line, key, what, f"'{spec.model}'", remedy))
    for number, time, needed in too_short(loaded.spec.validation, loaded.spec.seed):
        key = f"validate[{number}]"
        what = "the run that this works on has no room for its blocks, each with the lags of its fit"
        remedy = f"give that run a time of {needed:.3g} or more, or write fewer 'blocks' or a shorter 'fit'"
        problems.append(Problem(loaded.lines.get(key, 1), key, what, f"a run of {time:g} ps", remedy))
    return [p.text(loaded.path) for p in problems]


def _notes(folder: Path) -> list[Source]:
    try:
        return [Source.from_json(n) for n in json.loads((folder / FRAME_NOTES).read_bytes())]
    except (OSError, ValueError, TypeError, KeyError):  # a note that is not there is made again
        return []


def notes(sources: Iterable[Source]) -> dict[str, bytes]:
    """Return the notes as a data file of the run directory; nothing where there are none."""
    found = [s.to_json() for s in sources]
    return {FRAME_NOTES: json.dumps(found, separators=(",", ":")).encode()} if found else {}


def _elements(loaded: Loaded[Campaign], source: Source, line: int, key: str) -> Iterator[Problem]:
    """Yield what the potential that labels has not of a file's elements."""
    spec = loaded.spec
    if spec.label is None or spec.label.engine != "lammps":
        return
    potential = spec.reference
    assert potential is not None  # the campaign file is refused without it
    known = read_potential_header(loaded.folder / potential.lammps).elements
    absent = ", ".join(e for e in source.species if e not in known)
    if absent:
        what = f"its frames have {absent}, which the potential that labels them (elements {' '.join(known)}) has not"
        yield Problem(line, key, what, f"'{source.file}'", f"label with a potential that has {absent}")


def _check_pool(loaded: Loaded[Campaign], sources: Sequence[Source]) -> None:
    """Check that the pool gives what is held out beside the selected: known once the files were looked through."""
    spec = loaded.spec
    size, least = spec.select.size if spec.select else 0, ""
    if spec.distill:
        some = spec.distill.size if spec.distill.method == "grid" else spec.distill.initial
        size, least = min(some, size) if spec.select else some, "at least " if spec.distill.method == "uq" else ""
    held_out = max((t.held_out for t in spec.validation if t.method == "errors"), default=0)
    frames = sum(m.all_walkers * m.frames for m in spec.sample) + sum(s.frames for s in sources)
    picks = size * max((1 + len(t.against) for t in spec.validation if t.method == "errors"), default=1)
    if held_out and held_out + picks > frames:
        k = next(i for i, t in enumerate(spec.validation) if t.method == "errors" and t.held_out == held_out)
        key = f"validate[{k}].held_out"
        what = f"the pool has {frames} frames and {least}{picks} of them are for training"
        left = f"write held_out: {frames - picks} or less" if frames > picks else "select fewer"
        problem = Problem(loaded.lines.get(key, 1), key, what, str(held_out), f"{left}, or sample more")
        raise InputError(problem.text(loaded.path))


def check_in_place(sources: Iterable[Source], shards: Iterable[Shard]) -> None:
    """Check that files of which shards are still to be read are as they were.

    Parameters
    ----------
    sources
        The notes.
    shards
        The board's.

    Raises
    ------
    InputError
        A file changed or vanished.
    """
    missing = Counter(
        s.task.params["entry"] for s in shards if s.state == "expected" and s.task.params.get("method") == "file"
    )
    problems = [
        f"sample[{s.entry}].file: {fault}, and {missing[s.entry]} of its {len(s.shards)} shards are still to be read, "
        f"got '{s.file}'; put the file back as it was, or give campaign run with the campaign file to take what it "
        "holds now as new frames"
        for s in sources
        if missing[s.entry] and (fault := s.fault())
    ]
    if problems:
        raise InputError(*problems)
