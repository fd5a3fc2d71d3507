"""The campaign file and the site file: YAML in, frozen models out, every mistake named with its line.

Nothing is imported until it is asked for, so that ``import campaign.config`` costs nothing.

Reading: `load_campaign`, `load_site`, `find_site`, `check_together`, `dump`, `read_potential_header`, `read_structure`.
Lists: `template_names`, `template_path`, `site_names`, `site_path`.
Models: `Campaign` and its parts (``campaign_file``, ``selections``, ``labels``), `Site` and `Executor` (``site_file``).
Units: Å, eV, ps, K, bar.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from campaign.config.campaign_file import NPT, Campaign
    from campaign.config.data_files import read_potential_header, read_structure
    from campaign.config.labels import CALCULATORS, Potential
    from campaign.config.load import Loaded, dump, find_site, load_campaign, load_site
    from campaign.config.selections import RNDStream
    from campaign.config.site_checks import check_filled_in, check_together
    from campaign.config.site_file import Executor, Site
    from campaign.config.templates import copy_template, site_names, site_path, template_names, template_path
    from campaign.config.validations import Errors

_HOME = {
    "campaign_file": "NPT Campaign",
    "data_files": "read_potential_header read_structure",
    "labels": "CALCULATORS Potential",
    "load": "Loaded dump find_site load_campaign load_site",
    "selections": "RNDStream",
    "site_checks": "check_filled_in check_together",
    "site_file": "Executor Site",
    "templates": "copy_template site_names site_path template_names template_path",
    "validations": "Errors",
}

__all__ = [
    "CALCULATORS",
    "NPT",
    "Campaign",
    "Errors",
    "Executor",
    "Loaded",
    "Potential",
    "RNDStream",
    "Site",
    "check_filled_in",
    "check_together",
    "copy_template",
    "dump",
    "find_site",
    "load_campaign",
    "load_site",
    "read_potential_header",
    "read_structure",
    "site_names",
    "site_path",
    "template_names",
    "template_path",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
