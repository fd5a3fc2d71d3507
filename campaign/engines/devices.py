"""What networks run on: ``cpu`` or ``cuda``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from campaign.errors import EngineError


def require_device(device: str, key: str) -> None:
    """Raise ``EngineError`` where there is no such device; ``key`` of the campaign file asks for it."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise EngineError(
            f"{key} is {device}, and this worker sees no GPU; write 'device: cpu', or run on a site whose "
            "workers have GPUs, with a torch that was installed for them."
        )


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Sum in the same order every time: a GPU does not by itself, and dynamics must come again bitwise after a kill."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if device != "cpu" and not before:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses to multiply matrices
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if device != "cpu" and not before:
            torch.use_deterministic_algorithms(False)
