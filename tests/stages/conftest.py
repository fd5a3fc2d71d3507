"""A campaign without workers: a runner that makes records up, in any order, with any failures."""

import hashlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from campaign.config import Campaign
from campaign.flow import Flow, History
from campaign.pipeline import stages_of
from campaign.stages.board import Board
from campaign.tasks import Context, new_record

FILE = {
    "campaign": "stages",
    "seed": 1,
    "max_failed": 1.0,
    "system": {"structure": {"prototype": "fcc", "elements": ["Ar"], "a": 5.3}},
    "sample": [
        {"method": "fake", "walkers": 2, "frames": 20, "segment": 8},
        {"method": "fake", "walkers": 1, "frames": 10, "segment": 5},
    ],
    "select": {"method": "rnd_stream", "size": 6},
    "label": {"engine": "fake"},
    "train": {"model": "fake", "members": 2},
    "validate": [
        {"method": "errors", "held_out": 5, "against": ["random"]},
        {"method": "stability", "temperature": 100, "time": 1},
        {"method": "rdf"},
        {"method": "stability", "temperature": 200, "time": 1, "ensemble": "nvt"},
        {"method": "rdf", "cutoff": 5.0},
        {"method": "rdf", "cutoff": 5.0},
    ],
}


def draw(task_id, *words):
    """Return a number in [0, 1) that only depends on the words."""
    text = "/".join([task_id, *map(str, words)])
    return int(hashlib.blake2b(text.encode(), digest_size=6).hexdigest(), 16) / 2**48


def result_of(task):
    """Return what the work of a task could have found: it depends on the task alone."""
    p = task.params
    if task.stage == "sample" and p["method"] == "novel":
        return novel(task)
    if task.stage == "sample" and "trained" in p:  # dynamics with a model: it fails more often than not
        cause = "It exploded." if draw(task.id, "explodes") < 0.6 else ""
        ended = (
            {"ended": {"0": cause}, "last": {"0": 7 + (p["first"] + p["frames"] // 2) * p["every"]}} if cause else {}
        )
        return {"frames": p["frames"] // 2 if cause else p["frames"], **ended}
    if task.stage == "sample":
        return {"frames": p.get("frames", 0)}
    if task.stage == "select" and p["method"] == "draw":
        pool = [f"{shard}:{i}" for shard in task.inputs for i in range(2)]
        pool = sorted((f for f in pool if f not in set(p["avoid"])), key=lambda f: draw(task.id, f))
        return {"chosen": pool[: p["size"]], "refused": [], "finished": True}
    if task.stage == "select":
        shard = "" if p["finish"] else task.inputs[-1]
        chosen = [f"{shard}:0"] if shard and draw(task.id, "picks") < 0.5 else []
        return {"chosen": chosen, "refused": [], "finished": p["finish"]}
    if task.stage == "distill":
        return distilled(task)
    if task.stage == "transfer":
        return moved(task)
    return {"method": p.get("method", ""), "pass": True}


def distilled(task):
    """Return what a step of a distillation could have found; frames of no pool will do."""
    p = task.params
    if p["what"] == "draw":
        return {"chosen": [f"{task.id}:{i}" for i in range(p["size"])], "refused": [], "finished": True}
    if p["what"] in ("first", "grid"):
        chosen = [f"{task.inputs[0]}:{i}" for i in range(p["size"])]
        return {"chosen": chosen, "refused": [], "finished": p["what"] == "grid", "note": ""}
    if p["what"] == "choose":
        chosen = [] if p["last"] else [f"{task.id}:{i}" for i in range(p["batch"])]
        figures = {"iteration": p["iteration"], "mae": draw(task.id, "mae")}
        return {"chosen": chosen, "refused": [], "finished": p["last"], "figures": figures, "note": "all spent"}
    return {}


def novel(task):
    """Return what the choice after a round of dynamics could have found."""
    p = task.params
    causes = [cause for _, _, _, cause in p["walkers"]]
    failed = sum(map(bool, causes))
    n = 0 if p["last"] or not failed else int(draw(task.id, "added") * (p["size"] + 1))
    figures = {"round": p["round"], "failed": failed, "walkers": len(causes)}
    figures |= {"causes": causes, "added": n, "novelty": [0.2, 0.1]}
    ends = [f"{segments[-1]}:0" if segments else "" for _, segments, _, _ in p["walkers"]]
    source = [{"task": task.id, "walker": 0, "step": k} for k in range(n)]
    return {"frames": n, "chosen": n, "ends": ends, "refused": [], "source": source, "figures": figures}


def moved(task):
    """Return what a step of a transfer could have found."""
    p = task.params
    if p["what"] == "draw":
        pool = sorted((f"{s}:{i}" for s in task.inputs for i in range(4)), key=lambda f: draw(task.id, f))
        return {"chosen": [f for f in pool if f not in p["avoid"]][: p["size"]], "refused": [], "finished": True}
    if p["what"] == "lattice":
        a = p["structure"]["a"]
        return {"prototype": "fcc", "elements": ["X"], "lengths": [a] * 3, "volume": a**3 / 4, "energy": -1.0}
    ids = [f"{task.id}:{k}" for k in range(len(p["frames"]))]
    refused = [{"frame": i, "reason": "too close"} for i in ids if draw(task.id, i) < 0.1]
    chosen = [i for i in ids if i not in {r["frame"] for r in refused}]
    return {"frames": len(ids), "chosen": chosen, "refused": refused, "factors": [1.1] * 3, "origins": p["frames"]}


class MadeUp:
    """A runner that answers in random order; what fails is decided by the task, not by the order.

    Parameters
    ----------
    order
        Seed of the order.
    failing
        (task, attempt) -> "done", "failed" or "lost" (the machine's fault).
    stop
        After how many records the driver is killed.
    """

    def __init__(self, order=0, failing=None, stop=None):
        self.random = random.Random(order)
        self.failing = failing or (lambda task, attempt: "done")
        self.stop = stop
        self.queue = []
        self.order = []  # ids as they were done
        self.tries = {}

    def submit(self, task, context):
        assert task.id not in {t.id for t, _ in self.queue}, f"{task.name} is in flight already"
        assert task.id not in self.order, f"{task.name} was done before"
        self.queue.append((task, context))

    def wait(self, seconds):
        if self.stop is not None and len(self.order) >= self.stop:
            raise KeyboardInterrupt
        records = []
        for _ in range(min(len(self.queue), self.random.randint(1, 3))):
            task, context = self.queue.pop(self.random.randrange(len(self.queue)))
            record = new_record(task, context.attempt)
            tries = self.tries[task.id] = self.tries.get(task.id, 0) + 1
            found = self.failing(task, tries - 1)
            if found == "done":
                record["result"] = result_of(task)
                self.order.append(task.id)
            else:
                record["state"], record["cause"] = "failed", f"{task.name} had to fail."
                record["transient"] = found == "lost"
            records.append(record)
        return records

    def close(self):
        pass


class Memory:
    """The part of a run directory that the loop writes to."""

    def __init__(self):
        self.path = Path("nowhere")
        self.lines = []
        self.quarantined = {}
        self.keep, self.flush, self.reached = self.lines.extend, lambda every: None, lambda task: 0.0
        self.store = SimpleNamespace(quarantine=lambda r: self.quarantined.__setitem__(r["task"], r))

    def history(self):
        """Return what the next driver finds."""
        done = {r["task"]: r for r in self.lines if r["state"] == "done"}
        attempts = {}
        for r in self.lines:
            if r["state"] == "failed" and not r["transient"]:
                attempts[r["task"]] = attempts.get(r["task"], 0) + 1
        return History(done, dict(self.quarantined), attempts)


@pytest.fixture
def quick(monkeypatch):
    """Let the loop's waits after a machine's fault take no time."""
    clock = SimpleNamespace(now=0.0)

    def time():
        clock.now += 30.0
        return clock.now

    monkeypatch.setattr("campaign.flow.time", SimpleNamespace(time=time))


@pytest.fixture
def campaign():
    """Return a function that builds a campaign, with top-level keys replaced (None: left out)."""

    def campaign(**changes):
        return Campaign.model_validate({k: v for k, v in (FILE | changes).items() if v is not None})

    return campaign


@pytest.fixture
def drive(campaign, tmp_path):
    """Return a function that runs the loop to its end; it gives the loop, the runner and the memory."""

    def drive(runner, memory=None, spec=None, origin=None):
        memory = memory or Memory()
        spec = spec or campaign()
        flow = Flow(stages_of(spec, {}, origin=origin), memory.history(), spec.max_failed)
        flow.run(runner, memory, Context(tmp_path), lambda: None)
        return flow, runner, memory

    return drive


@pytest.fixture
def board():
    """Return an empty board."""
    return Board()


@pytest.fixture
def made_up():
    """Return the runner's class."""
    return MadeUp


@pytest.fixture
def memory():
    """Return the memory's class."""
    return Memory


@pytest.fixture
def settle():
    """Return a function that gives a stage the record of a task."""

    def settle(stage, board, task, state="done", result=None):
        record = new_record(task, 0)
        record["state"] = state
        if state == "done":
            record["result"] = result_of(task) if result is None else result
        stage.commit(record, board)

    return settle
