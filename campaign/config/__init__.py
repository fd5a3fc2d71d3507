"""The campaign file and the site file: YAML in, frozen models out, every mistake named with its line.

Nothing is imported until it is asked for, so that ``import campaign.config`` costs nothing.

Reading: `load_campaign`, `load_site`, `check_together`, `dump`, `read_potential_header`, `read_structure`.
Lists: `template_names`, `template_path`, `site_names`, `site_path`.
Models: `Campaign` and its parts (``campaign_file``, ``selections``, ``labels``), `Site` and `Executor` (``site_file``).
Units: Å, eV, ps, K, bar.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from campaign.config.campaign_file import (
        NPT,
        NVT,
        STAGES,
        Campaign,
        FakeModel,
        FakeSample,
        FileSample,
        Loss,
        Prepare,
        Sample,
        SchNet,
        System,
        Train,
    )
    from campaign.config.data_files import PotentialHeader, read_potential_header, read_structure
    from campaign.config.labels import CALCULATORS, AseLabel, CP2KLabel, FakeLabel, Label, LammpsLabel, Potential
    from campaign.config.load import Loaded, dump, load_campaign, load_site
    from campaign.config.selections import Random, Representation, RNDStream, Select
    from campaign.config.site_checks import check_filled_in, check_together
    from campaign.config.site_file import Executor, Site
    from campaign.config.structures import Packing, Prototype, StructureFile
    from campaign.config.templates import copy_template, site_names, site_path, template_names, template_path
    from campaign.config.validations import RDF, Errors, Stability, Thresholds, Validate

_HOME = {
    "campaign_file": (
        "NPT NVT STAGES Campaign FakeModel FakeSample FileSample Loss MOMT Prepare Sample SchNet System Train"
    ),
    "data_files": "PotentialHeader read_potential_header read_structure",
    "labels": "CALCULATORS AseLabel CP2KLabel FakeLabel Label LammpsLabel Potential",
    "load": "Loaded dump load_campaign load_site",
    "selections": "Random Representation RNDStream Select",
    "site_checks": "check_filled_in check_together",
    "site_file": "Executor Site",
    "structures": "Packing Prototype StructureFile",
    "templates": "copy_template site_names site_path template_names template_path",
    "validations": "RDF Errors Stability Thresholds Validate",
}

__all__ = [
    "CALCULATORS",
    "NPT",
    "NVT",
    "RDF",
    "STAGES",
    "AseLabel",
    "CP2KLabel",
    "Campaign",
    "Errors",
    "Executor",
    "FakeLabel",
    "FakeModel",
    "FakeSample",
    "FileSample",
    "Label",
    "LammpsLabel",
    "Loaded",
    "Loss",
    "Packing",
    "Potential",
    "PotentialHeader",
    "Prepare",
    "Prototype",
    "RNDStream",
    "Random",
    "Representation",
    "Sample",
    "SchNet",
    "Select",
    "Site",
    "Stability",
    "StructureFile",
    "System",
    "Thresholds",
    "Train",
    "Validate",
    "check_filled_in",
    "check_together",
    "copy_template",
    "dump",
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
