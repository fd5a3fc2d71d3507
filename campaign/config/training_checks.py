"""What must hold in the section ``train`` beside its own keys: weights, packages, processes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from campaign.config.campaign_file import ANI, Loss, SchNet
from campaign.config.view import View
from campaign.config.yaml_lines import Problem

#: Passes over the training set where none are written.
EPOCHS = float(SchNet.model_fields["epochs"].default)

#: The packages behind a ``train.model`` that the rest does without, and how to get them: torchani asks for a Zarr of
#: before version 3, which it does not use here.
TRAINERS = {
    "ani": (("torchani",), "pip install --no-deps 'torchani>=2.9'"),
    "gap": (("quippy", "f90wrap"), "pip install 'campaign[gap]'"),
}


def check_training(view: View) -> Iterator[Problem]:
    """Yield what does not hold between the keys of ``train``, and the packages that its model lacks."""
    loss = view.mapping("train", "loss")
    weights = [name for name in Loss.model_fields if name not in ("kind", "delta")]
    if all(loss.get(n) == 0 for n in weights):
        yield view.problem(("train", "loss"), "every weight is zero", loss, "give at least one a weight above 0")
    kind = view.text("train", "loss", "kind") or "mse"
    usual = Loss.model_fields["delta"].default  # a resolved file has it written out
    if view.get("train", "loss", "delta") not in (None, usual) and kind in ("mse", "l4"):
        what = f"'delta' is of 'kind: huber', and this loss is {kind}"
        yield view.problem(("train", "loss", "delta"), what, loss["delta"], "remove it, or write 'kind: huber'")
    patience, epochs = view.number("train", "patience"), view.number("train", "epochs", default=EPOCHS)
    if patience and epochs and patience >= epochs:
        what = f"training has {epochs:g} epochs and could never end early"
        yield view.problem(("train", "patience"), what, patience, f"write less than {epochs:g}, or remove it")
    yield from _trainer(view)
    yield from _processes(view)


def _trainer(view: View) -> Iterator[Problem]:
    """Check what only some models need: their package, and an inner cutoff that is one."""
    model = view.text("train", "model") or ""
    packages, install = TRAINERS.get(model, ((), ""))
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        what = f"this model needs {absent[0]}, which is not installed"
        yield view.problem(("train", "model"), what, model, f"run {install}, or write 'model: schnet'")
    if model == "ani":
        inner, outer = (
            view.number("train", k, default=ANI.model_fields[k].default) for k in ("angular_cutoff", "cutoff")
        )
        if inner and outer and inner >= outer:
            what = f"angles are of neighbours within the cutoff of {outer:g} Å"
            key = "angular_cutoff" if view.get("train", "angular_cutoff") is not None else "cutoff"
            remedy = f"write less than {outer:g}" if key == "angular_cutoff" else f"write more than {inner:g}"
            yield view.problem(("train", key), what, view.get("train", key), remedy)


def _processes(view: View) -> Iterator[Problem]:
    """Check that each process of a training has a frame in every step, and one model at a time."""
    if view.get("train", "together") is True and view.text("train", "model") == "ani":
        what = "models of this kind are trained one by one"
        yield view.problem(("train", "together"), what, True, "remove it")
    batch, processes = view.number("train", "batch", default=1), view.number("train", "processes", default=1)
    if not batch or not processes or processes == 1:
        return
    if processes > batch:
        what = f"a step has {batch:g} frame{'s' if batch > 1 else ''}, and each process takes some of them"
        remedy = f"write batch: {processes:g} or more, or processes: {batch:g}"
        yield view.problem(("train", "processes"), what, processes, remedy)
    if view.get("train", "together") is True:
        what = "members that are trained together are trained in one process"
        yield view.problem(("train", "together"), what, True, "remove it, or 'processes'")
