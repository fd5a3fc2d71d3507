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


def copy_template(name: str, to: Path) -> list[Path]:
    """Write a campaign template, the data files it names and those that they name; return what was written.

    Raises
    ------
    InputError
        There is no such template, or a file that differs is in the way: nothing is written.
    """
    from campaign.config.data_files import named_files
    from campaign.config.load import load_campaign

    source = template_path(name)
    names = {source: to}
    loaded = load_campaign(source)
    for relative, path in loaded.files.items():
        place = to.parent / relative
        if path.resolve().is_relative_to(source.parent.resolve()):  # data files of CP2K's own stay where they are
            names[path] = place
        if relative in loaded.potentials:
            names |= {path.parent / other: place.parent / other for other in named_files(path)}
    blocked = [p for s, p in names.items() if p.exists() and (p == to or p.read_bytes() != s.read_bytes())]
    if blocked:
        raise InputError(*(f"{p}: this file is there already; remove it or name another with -o" for p in blocked))
    if not to.parent.is_dir():
        raise InputError(f"{to}: there is no folder {to.parent}; make it first")
    written = []
    for path, target in names.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            written.append(target)
    return written
