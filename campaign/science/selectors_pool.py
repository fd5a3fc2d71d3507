"""Selectors that look at the whole pool again for each pick: the published ones, to compare with.

They keep the features of every frame until the end, 4 bytes each: about 1 kB a frame for a SchNet descriptor of 256
features, and 70 kB for REMatch (64 atoms of 275 SOAP features). A pool of 10^7 frames does not fit; ``rnd_stream`` is
for those.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from campaign.errors import InputError
from campaign.frames import Array
from campaign.science.rnd import rnd_order
from campaign.science.selection import Batch, Id, Offer, check_size, ended, frame_hash, judged


class _Pool:
    """Keeps what it is offered, and chooses at the end; the order of arrival does not matter. Scores are 0."""

    needs: ClassVar[frozenset[str]] = frozenset({"descriptors"})
    whole_pool: ClassVar[bool] = True
    measures_novelty: ClassVar[bool] = False
    lacks: ClassVar[str] = "its descriptor is not finite"

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = check_size(size), seed
        self._finished = False
        self._ids: list[Array] = []
        self._rows: list[Array] = []  # features, one row a frame, or one an atom
        self._lengths: list[Array] = []  # rows of each frame

    def features(self, batch: Batch) -> Array:
        """Return (n, rows of a frame, features)."""
        return batch.column("descriptors")[:, None]

    def pick(self, rows: Array, ends: Array, first: int) -> list[tuple[int, str]]:
        """Choose frames of the pool: frame k has the rows up to ``ends[k]``; return which and why, in order.

        ``first`` is a frame drawn by the seed, to begin with where the method does not say how to.
        """
        raise NotImplementedError

    def offer(self, batch: Batch) -> Offer:
        """See a block of frames; all that can be chosen wait."""
        n = len(batch)
        x = np.asarray(self.features(batch), dtype=np.float32) if n else np.zeros((0, 1, 1), dtype=np.float32)
        good = np.asarray(np.isfinite(x).all(axis=(1, 2)))
        if good.any():
            self._ids.append(batch.ids[good])
            self._rows.append(x[good].reshape(-1, x.shape[2]))
            self._lengths.append(np.full(int(good.sum()), x.shape[1], dtype=np.int64))
        return judged(np.zeros(n), good, good, self.lacks)

    def finish(self) -> Offer:
        """Choose; a second call chooses no more."""
        if self._finished or not self._ids:
            return ended([], [])
        self._finished = True
        ids, rows, lengths = self._arrays()
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        starts = np.cumsum(lengths) - lengths
        rows = rows[np.concatenate([np.arange(starts[k], starts[k] + lengths[k]) for k in order])]
        ids, ends = ids[order], np.cumsum(lengths[order])
        first = int(np.argmin(frame_hash(self.seed, ids[:, 0], ids[:, 1])))
        found = self.pick(rows, ends, first)
        chosen: list[Id] = [(int(ids[k, 0]), int(ids[k, 1])) for k, _ in found]
        return ended(chosen, [why for _, why in found], self.note(len(found), len(ids)))

    def note(self, chosen: int, pool: int) -> str:
        """Return what is to be said about the choice."""
        return ""

    def _arrays(self) -> tuple[Array, Array, Array]:
        if not self._ids:
            return np.zeros((0, 2), dtype=np.uint64), np.zeros((0, 1), dtype=np.float32), np.zeros(0, dtype=np.int64)
        return np.concatenate(self._ids), np.concatenate(self._rows), np.concatenate(self._lengths)

    def state(self) -> dict[str, Array]:
        """Return ``ids`` (m, 2) uint64, ``rows`` float32, their ``lengths`` (m,) and ``finished`` (1,)."""
        ids, rows, lengths = self._arrays()
        return {"ids": ids, "rows": rows, "lengths": lengths, "finished": np.array([self._finished], dtype=np.int64)}

    def load(self, state: dict[str, Array]) -> None:
        """Continue from ``state``."""
        there = len(state["ids"]) > 0
        self._ids = [np.array(state["ids"], dtype=np.uint64)] if there else []
        self._rows = [np.array(state["rows"], dtype=np.float32)] if there else []
        self._lengths = [np.array(state["lengths"], dtype=np.int64)] if there else []
        self._finished = bool(state["finished"][0])


class RNDBatch(_Pool):
    """Random network distillation as published: the most novel frame of the pool, then training, and again.

    Source: S. Tovey et al. (``rnd.rnd_batch``, which stretches the descriptors first). Every pick looks at the whole
    pool: ``size`` times it passes through the predictor (its targets are kept).

    Parameters
    ----------
    size, seed
        How many frames; the networks.
    """

    def pick(self, rows: Array, ends: Array, first: int) -> list[tuple[int, str]]:
        """Choose by ``rnd_batch``."""
        chosen, novelty = rnd_order(rows, self.size, self.seed)
        return [(int(k), f"novelty {v:.3g}, the largest of the pool") for k, v in zip(chosen, novelty, strict=True)]


class FPS(_Pool):
    """Farthest points: again and again the frame farthest from all that are chosen, by skmatter's ``FPS``.

    Distances are of descriptors of which each feature has zero mean and unit variance over the pool. The first frame
    is drawn by the seed. Time grows with size times pool: about 0.3 ms a pick for 1,000 frames of 256 features,
    which take 4 kB each while it chooses.

    Parameters
    ----------
    size, seed
        How many frames; the first of them.
    """

    def pick(self, rows: Array, ends: Array, first: int) -> list[tuple[int, str]]:
        """Choose by skmatter."""
        sample_selection = _extra("skmatter.sample_selection", "fps")
        x = rows.astype(np.float64)
        x -= x.mean(axis=0)
        deviation = np.sqrt((x**2).mean(axis=0))
        x /= np.where(deviation > 1e-6 * np.abs(x).max(axis=0, initial=1e-12), deviation, np.inf)
        size = min(self.size, len(x))
        chosen, away = [first], [np.inf]
        if size > 1:
            selector = sample_selection.FPS(initialize=first, n_to_select=size).fit(x)
            chosen = [int(k) for k in selector.selected_idx_]
            away = [float(d) for d in np.sqrt(np.maximum(selector.hausdorff_at_select_[chosen], 0.0))]
        distance = dict(zip(chosen, away, strict=True))
        # of frames that are all alike it may take one twice: those left are as good
        order = [*distance, *(k for k in range(len(x)) if k not in distance)][:size]
        return [(k, _far(distance.get(k, 0.0), "descriptors")) for k in order]


class REMatch(_Pool):
    """Greedily the frame least like any chosen one, by the REMatch kernel over SOAP environments (dscribe).

    Source: the active learner of the NPT thesis (ch. 13) compares each frame to the whole training set by this kernel
    K, and adds those that are like none of it; the distance is sqrt(2 - 2 K) (eq. 7.6). De et al., PCCP 18, 13754
    (2016). Slow: size times pool kernels of 0.1 to 0.4 ms each for 64 atoms.

    Parameters
    ----------
    size, seed
        How many frames; the first of them.
    gamma
        Regularisation of the best match (alpha in dscribe): to 0 the best match, large the average.
    threshold
        Stop where no frame is this far from all that are chosen; None goes on to ``size``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"environments"})
    lacks: ClassVar[str] = "its SOAP environments are not finite"

    def __init__(self, size: int, seed: int, gamma: float = 0.1, threshold: float | None = None) -> None:
        super().__init__(size, seed)
        self.gamma, self.threshold = gamma, threshold

    def features(self, batch: Batch) -> Array:
        """Return the environments."""
        return batch.column("environments")

    def pick(self, rows: Array, ends: Array, first: int) -> list[tuple[int, str]]:
        """Choose by dscribe's kernel."""
        kernels = _extra("dscribe.kernels", "rematch")
        kernel = kernels.REMatchKernel(alpha=self.gamma, metric="linear", normalize_kernel=True)
        x = rows.astype(np.float64)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
        frames = np.split(x, ends[:-1])
        own = np.array([self._like(kernel, a, a) for a in frames])
        away = np.full(len(frames), np.inf)
        found: list[tuple[int, str]] = []
        best = first
        while len(found) < min(self.size, len(frames)):
            if self.threshold is not None and away[best] < self.threshold:
                break
            found.append((best, _far(float(away[best]), "REMatch")))
            away[best] = -1.0
            for k in np.flatnonzero(away >= 0.0):
                like = self._like(kernel, frames[k], frames[best]) / np.sqrt(own[k] * own[best])
                away[k] = min(away[k], np.sqrt(max(0.0, 2.0 - 2.0 * like)))
            best = int(np.argmax(away))
        return found

    @staticmethod
    def _like(kernel: Any, a: Array, b: Array) -> float:
        """Return the kernel of two frames: dscribe's regularised match of the matrix of SOAP kernels."""
        return float(kernel.get_global_similarity(a @ b.T))

    def note(self, chosen: int, pool: int) -> str:
        """Say that the threshold ended the selection."""
        if chosen == min(self.size, pool):
            return ""
        return f"{chosen} frames were chosen, not {self.size}: every other is closer than {self.threshold:g} to them"


def _extra(module: str, method: str) -> Any:
    """Import a module of the packages that only some selectors need.

    Raises
    ------
    InputError
        It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise InputError(
            f"select.method: {method} needs the package {package}, which this Python has not; install it with: "
            "pip install 'campaign[select]'"
        ) from error


def _far(distance: float, what: str) -> str:
    return "drawn to begin with" if np.isinf(distance) else f"{distance:.3g} from the nearest chosen, by {what}"
