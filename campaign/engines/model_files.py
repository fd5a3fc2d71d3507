"""Exported model files: read by whatever wrote them. Nothing in a file is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from campaign.engines.models import Model
from campaign.errors import EngineError


def load_model_file(path: Path, device: str = "cpu") -> Model:
    """Return the model that an export wrote, on a device (``cpu`` or ``cuda``).

    Raises
    ------
    EngineError
        The file is no exported model, or of another version; or the model does not run on that device.
    MachineFault
        There is no such device.
    """
    model = _load(path)
    if device == "cpu":
        return model
    from campaign.engines.schnetpack import Potential

    if not isinstance(model, Potential):
        raise EngineError(f"The model of {path.name} runs on the CPU alone; write 'device: cpu'.")
    return model.to(device)


def _load(path: Path) -> Model:
    toy = _toy(path)
    if toy is not None:
        from campaign.engines.fake import ToyCrystal

        return ToyCrystal(float(toy["scale"]))
    from campaign.engines.gap import GAP, MODEL
    from campaign.engines.schnetpack import FORMATS, Potential, read_model

    return GAP.load(path) if read_model(path, FORMATS).get("model") == MODEL else Potential.load(path)


def species_of(model: Model) -> list[int] | None:
    """Return the atomic numbers that a model knows; None where it takes any."""
    known = getattr(model, "species", None)
    return None if known is None else [int(z) for z in known]


def _toy(path: Path) -> dict[str, Any] | None:
    """Return what is in the file of a toy model; None where it is none."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        found = json.loads(start) if start.startswith(b"{") else None
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); export the model again.") from error
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("model") == "fake" else None
