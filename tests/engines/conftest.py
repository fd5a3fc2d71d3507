"""What the tests of several models share: a small campaign file, and an interrupted training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = """campaign: small
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64}
sample: [{method: fake, frames: 8}]
select: {method: random, size: 4}
label: {engine: fake}
train:
  model: MODEL
  cutoff: 6.0
"""


@pytest.fixture
def campaign_with(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a campaign file with a model, and one more line of its section."""

    def write(model: str, line: str = "") -> Path:
        (tmp_path / "c.yaml").write_text(CAMPAIGN.replace("MODEL", model) + (f"  {line}\n" if line else ""))
        return tmp_path / "c.yaml"

    return write


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which a training, with a checkpoint after every step, is interrupted after one of them."""
    from campaign.engines import checkpoints

    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)

    @contextmanager
    def interrupted(after: int) -> Iterator[None]:
        save, written = checkpoints.Checkpoint.save, []

        def stopping(self: checkpoints.Checkpoint, state: Any) -> None:
            save(self, state)
            written.append(1)
            if len(written) == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.Checkpoint, "save", stopping)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted
