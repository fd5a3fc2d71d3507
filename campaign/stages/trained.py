"""Trained models as they lie in the store, and as files."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from campaign.engines.checkpoints import NAME, Execution, Trained, WarmStart
from campaign.engines.models import Model, build_model, train
from campaign.errors import MachineFault
from campaign.frames import Array, Frames
from campaign.store.store import Store
from campaign.tasks import Context, Json, Record, Task

#: Names of a published training's arrays: its weights, and its history (epoch, loss, force RMSE on held-back frames).
WEIGHTS, HISTORY = "weights.", "history"

#: Names of the arrays of a choice that say of which atoms the forces count: one entry an atom, atoms of each frame.
COUNTED, ATOMS = "counted", "atoms"


#: File of a training that has a line for each epoch, for the live view.
LINES = "epochs.jsonl"

#: Keys of a model in the campaign file that do not decide its weights, and what they are where nothing is written.
_EXTRA: dict[str, Json] = {"delay": 0.0, "device": "cpu", "together": None, "processes": 1, "tensorboard": False}


def execution_of(task: Task, context: Context) -> Execution:
    """Return how a task's training is carried out: its checkpoint in the task's folder, and its extras."""
    folder, extra = context.folder(task), _EXTRA | task.extra
    launch = context.launch.get("train") or context.launch.get("lammps") or []
    if extra["processes"] > 1 and not launch:
        raise MachineFault("The site has no launch command for train: add launch.train to the site file.")
    logs = context.run / "logs" / "tensorboard" / task.name.replace("/", "-") if extra["tensorboard"] else None
    return Execution(
        folder / NAME, extra["device"], extra["delay"], extra["processes"], tuple(launch), folder / LINES, logs
    )


def split_extra(spec: dict[str, Json]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return a model's keys of the campaign file that decide its weights, and those that do not.

    Of the latter only those that say something: not those that are as where nothing is written.
    """
    extra: dict[str, Json] = {k: spec[k] for k, usual in _EXTRA.items() if k in spec and spec[k] != usual}
    return {key: value for key, value in spec.items() if key not in _EXTRA}, extra


def train_watched(
    blocks: Sequence[Frames],
    counted: Sequence[Array] | None,
    spec: dict[str, Json],
    seed: int,
    folder: Path,
    execution: Execution,
    start: WarmStart | None = None,
) -> tuple[Model, dict[str, Array], dict[str, Json]]:
    """Train one model; each epoch leaves a line in ``folder`` for the live view.

    ``counted``, if it is not None, tells for each block (n, a) which atoms' forces count (``counted_of``); ``start`` is
    what it goes on from in place of random weights (``warm_start``). A training that was killed is
    continued from ``execution.checkpoint``, which is to be removed once the result is published.

    Returns
    -------
    tuple
        The model, what is published of it (``load_model`` reads it), and its summary, with its spec as ``model``.
    """
    history: list[dict[str, float]] = []
    with watched(folder, execution.tensorboard) as watch:

        def on_epoch(values: dict[str, float]) -> None:
            history.append(values)
            watch(values)

        weights, summary = train(blocks, spec, seed, on_epoch, execution, counted, start)
    return build_model(spec, weights), as_arrays(weights, history), {**summary, "model": spec}


def as_arrays(weights: Mapping[str, Array], history: Sequence[Mapping[str, float]]) -> dict[str, Array]:
    """Return what is published of a trained model."""
    arrays: dict[str, Array] = {WEIGHTS + name: value for name, value in weights.items()}
    rows = [[line["epoch"], line["loss"], line["force_rmse"]] for line in history]
    arrays[HISTORY] = np.array(rows, dtype="float64").reshape(-1, 3)
    return arrays


@contextlib.contextmanager
def watched(folder: Path, logs: Path | None = None) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield what writes an epoch as a line of ``folder`` and, if there is a folder for ``logs``, for TensorBoard.

    Both begin anew: a training that is continued tells its epochs again.
    """
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context((folder / LINES).open("w", buffering=1))
        board = None
        if logs is not None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(logs, ignore_errors=True)
            board = SummaryWriter(str(logs))
            stack.callback(board.close)

        def write(values: dict[str, float]) -> None:
            lines.write(json.dumps(values) + "\n")
            if board is not None:
                for name in ("loss", "force_rmse"):
                    board.add_scalar(name, values[name], int(values["epoch"]))

        yield write


def pack_members(found: Sequence[Trained]) -> tuple[dict[str, Array], list[dict[str, Json]]]:
    """Return what is published of members that were trained together, under their numbers, and their summaries."""
    arrays: dict[str, Array] = {}
    for k, member in enumerate(found):
        arrays |= {f"{k}.{name}": value for name, value in as_arrays(member.weights, member.history).items()}
    return arrays, [member.summary for member in found]


def take_member(
    store: Store, task: str, seed: Json, spec: dict[str, Json], folder: Path, execution: Execution
) -> tuple[Model, dict[str, Array], dict[str, Json]]:
    """Return, as ``train_watched``, the member of this seed from those that ``task`` trained together.

    Raises
    ------
    StoreError
        They are not there.
    """
    result = store.locate("train", task).record["result"]
    number = result["seeds"].index(seed)
    every = store.arrays("train", task)
    arrays = {k.removeprefix(f"{number}."): v for k, v in every.items() if k.startswith(f"{number}.")}
    with watched(folder, execution.tensorboard) as watch:
        for epoch, loss, rmse in arrays[HISTORY].tolist():
            watch({"epoch": int(epoch), "loss": loss, "force_rmse": rmse})
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    return build_model(spec, weights), arrays, {**result["members"][number], "model": spec}


def pack_counted(counted: Sequence[Array]) -> dict[str, Array]:
    """Return what is stored of the atoms whose forces count, frame by frame in the order in which they were chosen."""
    flat = np.concatenate([np.zeros(0, dtype=bool), *counted])
    return {COUNTED: flat.astype(np.uint8), ATOMS: np.array([len(c) for c in counted], dtype=np.int32)}


def counted_of(store: Store, choices: Sequence[str], blocks: Sequence[Frames]) -> list[Array] | None:
    """Return for each block (n, a) which atoms' forces count, as the tasks that chose the frames decided.

    All atoms of a frame that none of them chose count; None where there are no such tasks.
    """
    if not choices:
        return None
    known: dict[str, Array] = {}
    for task in choices:
        found = store.arrays("distill", task)
        parts = np.split(found[COUNTED].astype(bool), np.cumsum(found[ATOMS])[:-1])
        known |= dict(zip(store.locate("distill", task).record["result"]["chosen"], parts, strict=True))
    return [np.stack([known.get(f, np.ones(b.n_atoms, dtype=bool)) for f in b.ids]) for b in blocks]


def warm_start(store: Store, models: Sequence[str], labels: Sequence[str], blocks: Sequence[Frames]) -> WarmStart:
    """Return what a training goes on from.

    Parameters
    ----------
    store
        The store.
    models
        Finished trainings, on all of the frames but some.
    labels
        The labels of those: the fresh ones.
    blocks
        All frames.
    """
    fresh = {f for b in store.collect("label", [f"{task}:0" for task in labels]) for f in b.ids}
    return WarmStart([weights_of(store, m) for m in models], [np.array([f in fresh for f in b.ids]) for b in blocks])


def load_models(store: Store, tasks: Sequence[str], stage: str = "train") -> list[Model]:
    """Return finished models from the store."""
    return [load_model(store, task, stage) for task in tasks]


def load_model(store: Store, task: str, stage: str = "train") -> Model:
    """Return one finished model from the store."""
    summary: dict[str, Json] = store.locate(stage, task).record["result"]
    return build_model(summary["model"], weights_of(store, task, stage))


def weights_of(store: Store, task: str, stage: str = "train") -> dict[str, Array]:
    """Return the weights of one finished model: arrays, in which nothing can be executed."""
    arrays = store.arrays(stage, task)
    return {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}


def export_model(model: Model, path: Path) -> None:
    """Write a model, complete or not at all; it loads outside of campaign with ``weights_only``."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    model.export(aside)
    aside.rename(path)


def model_path(folder: Path, record: Record) -> Path:
    """Return where the model of a training lies, by its record: ``SET-MEMBER-TASK.pt``."""
    return folder / f"{record['name'].replace('/', '-')}-{record['task']}.pt"
