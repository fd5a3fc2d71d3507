"""Where a training stands, in a file: killed at any moment, it goes on from there as if nothing had been.

A checkpoint lies in the task's own folder while the task is worked on. It is written aside, flushed and renamed, so
there is a whole one or none, and it starts with a hash of the rest: a damaged one is told from a good one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds after which a training writes its checkpoint, at the next step; and epochs, if they come first.
SECONDS, EPOCHS = 30.0, 500

#: Name of the file in a task's folder.
NAME = "training.ckpt"

_FORMAT = 1
_HASH = 32


@dataclass(frozen=True)
class Execution:
    """How a training is carried out: nothing of it decides the weights.

    Attributes
    ----------
    checkpoint
        Where it writes how far it is, and looks for how far it was; None: nowhere.
    device
        ``cpu`` or ``cuda``.
    delay
        Seconds that a toy training takes.
    processes, launch
        Processes that train one model, and the site's command that launches them; ``{ranks}`` is their number.
    lines
        Where they write what they reach, a line an epoch.
    tensorboard
        Folder of the logs for TensorBoard; None: there are none.
    """

    checkpoint: Path | None = None
    device: str = "cpu"
    delay: float = 0.0
    processes: int = 1
    launch: tuple[str, ...] = ()
    lines: Path | None = None
    tensorboard: Path | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes
    ----------
    weights
        Arrays from which it is built again.
    summary
        What is told of it.
    history
        Of each epoch: ``epoch`` (from 1), ``loss`` and ``force_rmse`` (held-back frames, eV/Å).
    """

    weights: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class WarmStart:
    """What a training begins with in place of random weights: models that know some of its frames already.

    Attributes
    ----------
    weights
        Of each model, as ``Trained`` has them. Their scale and reference energies are kept: with others the same
        weights would be another potential.
    fresh
        For each block of frames (n,) bool: those that the models have not seen, one at least. The frames by which the
        best epoch is chosen are held back from these: of one it has seen a model knows too much.
    """

    weights: Sequence[Mapping[str, Any]]
    fresh: Sequence[Any]

    def digest(self) -> str:
        """Return what stands for it, 32 hex digits."""
        parts = {f"{k}.{name}": w[name] for k, w in enumerate(self.weights) for name in sorted(w)}
        parts |= {f"fresh.{k}": new for k, new in enumerate(self.fresh)}
        found = hashlib.blake2b(digest_size=16)
        for name, value in parts.items():
            found.update(f"{name} {value.dtype.str} {value.shape}".encode())
            found.update(value.tobytes())
        return found.hexdigest()


class Checkpoint:
    """The checkpoint of one training.

    Parameters
    ----------
    path
        The file; None keeps nothing.
    identity
        Names the training, by everything that decides its weights: what another one left is never continued.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._saved, self._since = time.monotonic(), 0

    def load(self) -> tuple[dict[str, Any] | None, str]:
        """Return the state to go on from, None for a training from its beginning, and a note where there was another.

        A file that is damaged or of another training stays, under another name; nothing in it is executed.
        """
        if self._path is None:
            return None, ""
        for aside in self._path.parent.glob(f".{self._path.name}.*"):
            aside.unlink(missing_ok=True)  # half of one, of a process that was killed
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{self._path.name} cannot be read ({error.strerror}); the training started anew."
        state, wrong = _read(content, self._identity)
        if state is not None:
            return state, ""
        kept = self._refuse()
        return None, f"{self._path.name} {wrong}; it is kept as {kept}, and the training started anew."

    def _refuse(self) -> str:
        assert self._path is not None
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.refused-{number}")).exists():
            number += 1
        with contextlib.suppress(OSError):
            self._path.rename(aside)
        return aside.name

    def due(self, epochs: int = 0) -> bool:
        """Tell whether to write one now; ``epochs`` have ended since this was last asked."""
        self._since += epochs
        late = time.monotonic() - self._saved >= SECONDS
        return self._path is not None and (late or self._since >= EPOCHS)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state: tensors, numbers and text, in dictionaries and lists.

        A file that cannot be written (no space) is left out: the training itself needs none.
        """
        import torch

        assert self._path is not None
        self._saved, self._since = time.monotonic(), 0
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "identity": self._identity, "state": dict(state)}, buffer)
        content = buffer.getvalue()
        aside = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            with aside.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def _read(content: bytes, identity: str) -> tuple[dict[str, Any] | None, str]:
    """Return the state in a file, or what is wrong with it."""
    import torch

    if hashlib.sha256(content[_HASH:]).digest() != content[:_HASH]:
        return None, "is damaged"
    try:
        data = torch.load(io.BytesIO(content[_HASH:]), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common type for what it cannot read, or refuses to execute
        return None, f"is no checkpoint ({type(error).__name__})"
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        return None, "is of another version"
    if data["identity"] != identity:
        return None, "is of another training (of other settings, frames or versions of the programs)"
    return data["state"], ""
