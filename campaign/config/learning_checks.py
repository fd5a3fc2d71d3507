"""What must hold in the section ``learn`` beside its own keys, and of the guards of all dynamics with a model."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from campaign.config.learning import Guards
from campaign.config.view import Part, View, present
from campaign.config.yaml_lines import Problem, show

#: Models that have no weights to go on from: they are fitted at once.
FITTED = ("gap",)


def check_learning(view: View) -> Iterator[Problem]:
    """Yield what does not hold between ``learn`` and the other sections, and which guards have no meaning."""
    yield from _guards(view)
    if not present(view, "learn"):
        return
    if view.text("label", "engine") == "pool":
        what = "the frames that 'learn' adds come from dynamics with the model, and this would train it on itself"
        yield view.problem(
            ("label", "engine"), what, show("pool"), "name what labels new frames, such as lammps or cp2k"
        )
    yield from _novelty(view)
    yield from _warm_start(view)


def _novelty(view: View) -> Iterator[Problem]:
    """Check that what is asked for can be measured: an ensemble, a stream to continue, a package."""
    novelty = view.text("learn", "novelty") or "uq"
    key: tuple[Part, ...] = ("learn", "novelty") if view.get("learn", "novelty") is not None else ("learn",)
    members = view.number("train", "members", default=1.0)
    if novelty == "uq" and members is not None and members < 2:
        what = "'novelty: uq' is the disagreement of an ensemble, and there is one model"
        yield view.problem(
            key, what, f"members: {members:g}", "write 'members: 2' or more under train, or 'novelty: rnd'"
        )
    elif novelty == "rnd_stream":
        method = view.text("select", "method")
        what = "this goes on from what the selection's networks have learned"
        if not present(view, "select"):
            yield view.problem(key, what, "no 'select'", "write 'novelty: rnd', which learns the training set itself")
        elif method not in (None, "rnd_stream"):
            remedy = "write 'novelty: rnd', which learns the training set itself, or 'method: rnd_stream' under select"
            yield view.problem(key, what, f"select.method: {method}", remedy)
        elif present(view, "distill"):
            what += ", and they have learned frames that 'distill' leaves out"
            yield view.problem(key, what, "a section 'distill'", "write 'novelty: rnd'")
    elif novelty == "rematch" and find_spec("dscribe") is None:
        what = "REMatch distances are computed by dscribe, which is not installed"
        yield view.problem(key, what, novelty, "run pip install 'campaign[select]', or write 'novelty: rnd'")


def _warm_start(view: View) -> Iterator[Problem]:
    """Check that there is something to go on from, and that what is said of it has a use."""
    warm, model = view.get("learn", "warm_start"), view.text("train", "model")
    if warm is True and model in FITTED:
        what = f"a model of {model} is fitted at once, and has no weights to go on from"
        yield view.problem(("learn", "warm_start"), what, True, "remove it, or write 'model: schnet' under train")
    if view.number("learn", "steps") and view.number("learn", "epochs"):
        what = "the length of a training is given twice, in 'epochs' and in 'steps'"
        yield view.problem(("learn", "steps"), what, view.get("learn", "steps"), "remove one of them")
    for key in ("epochs", "steps", "rate"):
        if view.number("learn", key) and (warm is False or model in FITTED):
            what = "this is of members that go on from the round before, and these are trained anew"
            remedy = "remove it" if model in FITTED else "remove it, or 'warm_start: false'"
            yield view.problem(("learn", key), what, view.get("learn", key), remedy)


def _guards(view: View) -> Iterator[Problem]:
    """Refuse a guard that nothing would look at: of the total energy, which only nve keeps."""
    runs: list[tuple[Part, ...]] = [("learn", "md")]
    runs += [(part, i) for part in ("sample", "validate") for i in range(len(view.items(part)))]
    for run in runs:
        energy = view.get(*run, "guards", "energy")
        usual = Guards.model_fields["energy"].default  # a resolved file has it written out
        if energy not in (None, usual) and view.text(*run, "ensemble") != "nve":
            what = "the total energy is kept in nve only, and this run has a thermostat"
            yield view.problem((*run, "guards", "energy"), what, energy, "remove it")
