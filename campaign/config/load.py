"""Reading campaign and site files, and writing them out resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from campaign.config.campaign_file import NOT_YET, Campaign
from campaign.config.cp2k_checks import check_template
from campaign.config.fields import suggest
from campaign.config.file_checks import check_files
from campaign.config.label_checks import check_label
from campaign.config.learning_checks import check_learning
from campaign.config.momt_checks import check_momt
from campaign.config.problems import validate
from campaign.config.site_checks import check_site
from campaign.config.site_file import Site
from campaign.config.stage_checks import check_keys
from campaign.config.templates import site_names, site_path
from campaign.config.transfer_checks import check_transfer
from campaign.config.validation_checks import check_validations
from campaign.config.view import View
from campaign.config.yaml_lines import Problem, read_document, show, write
from campaign.errors import InputError

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A file that was read and found right.

    Attributes
    ----------
    spec
        The model.
    path
        The file.
    folder
        Its folder: relative paths in it start here.
    lines
        Line of every key path, such as ``sample[0].steps``.
    files
        Every data file the campaign names: path as written -> the file.
    """

    spec: T
    path: Path
    folder: Path
    lines: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def potentials(self) -> list[str]:
        """Those of the files that are LAMMPS potentials, which may name others."""
        spec = self.spec
        found = [getattr(getattr(spec, part, None), "potential", None) for part in ("system", "transfer", "label")]
        return [p.lammps for p in found if p is not None]


def load_campaign(path: Path) -> Loaded[Campaign]:
    """Read and check a campaign file and the data files it names.

    Parameters
    ----------
    path
        The YAML file. The data files it names lie in its folder.

    Raises
    ------
    InputError
        With every problem of the file, each a line ``FILE:LINE: path.to.key: what is wrong, got VALUE; remedy``.
    """
    path = Path(path)
    document = read_document(path)
    spec, problems = validate(Campaign, document, NOT_YET)
    view = View(document, problems)
    files: dict[str, Path] = {}
    if isinstance(document.data, dict):
        files, faults = check_files(view, path.parent)
        problems += faults
        problems += check_keys(View(document, problems))
        problems += check_learning(View(document, problems))
        problems += check_label(View(document, problems), path.parent)
        named, faults = check_template(View(document, problems), path.parent)
        files |= named
        problems += faults
        named, faults = check_validations(View(document, problems), path.parent)
        files |= named
        problems += faults
        problems += check_momt(View(document, problems), path.parent)
        problems += check_transfer(View(document, problems), files)
    if problems or not isinstance(spec, Campaign):
        raise _input_error(path, problems)
    return Loaded(spec, path, path.parent, document.lines, files)


def load_site(name_or_path: str) -> Site:
    """Read and check a site file, by the name of one that comes with campaign or by path.

    Raises
    ------
    InputError
        With every problem of the file, or if there is no such site.
    """
    path = find_site(name_or_path)
    document = read_document(path)
    spec, problems = validate(Site, document, {})
    if isinstance(document.data, dict):
        problems += check_site(View(document, problems))
    if problems or not isinstance(spec, Site):
        raise _input_error(path, problems)
    return spec


def find_site(name_or_path: str) -> Path:
    """Return the file of a site, by the name of one that comes with campaign or by path.

    Raises
    ------
    InputError
        There is no site of this name.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return Path(text)
    if text in site_names():
        return site_path(text)
    hint = suggest(text, site_names())
    raise InputError(f"site: there is no such site, got {show(text)}; {hint}, or the path of a site file")


def dump(model: BaseModel) -> str:
    """Return a campaign or site as YAML, every default written out; it reads back as an equal model."""
    return write(model.model_dump(mode="json", by_alias=True))


def _input_error(path: Path, problems: Iterable[Problem]) -> InputError:
    ordered = sorted(problems, key=lambda p: p.line)
    return InputError(*(p.text(path) for p in ordered))
