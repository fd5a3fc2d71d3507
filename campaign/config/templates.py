"""The campaign files and site files that come with campaign, in a checkout and in a wheel alike."""

from __future__ import annotations

from pathlib import Path

from campaign.config.fields import suggest
from campaign.errors import InputError


def _folder(name: str) -> Path:
    """Return the folder of the wheel (inside the package) or of the checkout (beside the package)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _described(folder: Path) -> dict[str, str]:
    """Return {name: first comment line} of the YAML files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            found[path.stem] = file.readline().lstrip("#").strip()
    return found


def template_names() -> dict[str, str]:
    """Return the campaign templates: name -> one line about each."""
    return _described(_folder("templates"))


def template_path(name: str) -> Path:
    """Return the file of a campaign template; the data files it names lie beside it.

    Raises
    ------
    InputError
        If there is no such template.
    """
    if name not in template_names():
        hint = suggest(name, template_names())
        raise InputError(f"template: there is no such template, got {name!r}; {hint}")
    return _folder("templates") / f"{name}.yaml"


def site_names() -> dict[str, str]:
    """Return the sites that come with campaign: name -> one line about each."""
    return _described(_folder("site_configs"))


def site_path(name: str) -> Path:
    """Return the file of a site that comes with campaign.

    Raises
    ------
    InputError
        If there is no such site.
    """
    if name not in site_names():
        raise InputError(f"site: there is no such site, got {name!r}; {suggest(name, site_names())}")
    return _folder("site_configs") / f"{name}.yaml"
