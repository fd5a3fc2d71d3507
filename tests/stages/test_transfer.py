"""The stage of a transfer: whatever order its parts come in, whatever fails, the same set and the same labels."""

import hashlib
import json

import numpy as np
import pytest

from campaign.errors import MachineFault, StoreError
from campaign.frames import Frames
from campaign.stages import transfer_origin
from campaign.stages.transfer import far
from campaign.stages.transfer_origin import Origin, Part, divide, of_run
from campaign.store.store import Store
from campaign.tasks import Task, new_record

SYSTEM = {
    "structure": {"prototype": "fcc", "elements": ["Al"], "a": 4.05},
    "potential": {"lammps": "al.lmp"},
}
TRANSFER = {
    "system": SYSTEM,
    "select": None,
    "sample": [{"method": "fake", "walkers": 2, "frames": 20, "segment": 8}],
    "transfer": {"from": "runs/ni", "species": {"Ni": "Al"}},
    "validate": [{"method": "errors", "held_out": 5, "against": ["random"]}],
}


def ids(count, start=0):
    return [f"{start + k:016x}:0" for k in range(count)]


def origin(*sizes, a=3.52):
    parts = [Part(32, ids(n, 100 * k), []) for k, n in enumerate(sizes)]
    crystal = {"structure": {"prototype": "fcc", "elements": ["Ni"], "a": a}, "potential": "/ni/ni.lmp", "digest": "n"}
    return Origin("runs/ni", "training", "", 64, "/ni", "ni", [], "", ["Ni"], parts, crystal)


def chance(*words):
    return int(hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=6).hexdigest(), 16) / 2**48


def outcome(flow):
    board = flow.board
    sets = {n: (s.chosen, s.refused, s.closed, s.note) for n, s in board.sets.items()}
    return sets, dict(board.labels), dict(board.models)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("salt", range(6))
def test_the_order_of_the_workers_changes_nothing(drive, made_up, campaign, salt):
    def rule(task, tries):
        u = chance(salt, task.id)
        lost = task.stage == "transfer" and task.params["what"] == "frames" and u < 0.3
        return "failed" if salt and lost else "lost" if u > 0.9 and not tries else "done"

    spec, first = campaign(**TRANSFER), None
    for order in range(6):
        flow, _, _ = drive(made_up(order, rule), spec=spec, origin=origin(4, 3, 5, 2))
        found = outcome(flow)
        first = first or found
        assert found == first
        assert all(s.finished(flow.board) for s in flow.stages)
        assert list(flow.board.sets) == ["transfer", "random", "held_out"]
        stage = flow.stages[1]
        done = [task for task, _ in stage.parts]
        of_parts = [f.split(":")[0] for f in flow.board.sets["transfer"].chosen]
        assert sorted(of_parts, key=done.index) == of_parts  # in the order of the source
        assert flow.counts["transfer"].done + flow.counts["transfer"].failed == stage.total(flow.board) == 8
        assert len(flow.board.sets["random"].chosen) == len(flow.board.sets["transfer"].chosen)
        assert not set(flow.board.sets["held_out"].chosen) & set(flow.board.sets["random"].chosen)
    if salt == 0:
        refused = flow.board.sets["transfer"].refused
        assert len(flow.board.sets["transfer"].chosen) == 14 - len(refused)


@pytest.mark.usefixtures("quick")
def test_killed_anywhere_nothing_is_done_twice(drive, made_up, memory, campaign):
    spec, source = campaign(**TRANSFER), origin(4, 3, 5)
    whole, runner, _ = drive(made_up(0), spec=spec, origin=source)
    for stop in range(1, len(runner.order), 4):
        kept = memory()
        with pytest.raises(KeyboardInterrupt):
            drive(made_up(stop, stop=stop), kept, spec, source)
        again = made_up(1)
        flow, _, _ = drive(again, kept, spec, source)
        assert outcome(flow) == outcome(whole)
        done = [r["task"] for r in kept.lines if r["state"] == "done"]
        assert len(done) == len(set(done)) == len(runner.order)


def test_without_a_lattice_nothing_is_transferred_and_nothing_waits(drive, made_up, campaign):
    def rule(task, tries):
        return "failed" if task.params.get("what") == "lattice" else "done"

    flow, _, _ = drive(made_up(0, rule), spec=campaign(**TRANSFER), origin=origin(3))
    assert all(s.finished(flow.board) for s in flow.stages)
    assert not flow.board.sets["transfer"].chosen
    assert not any(r["stage"] in ("label", "train") and r["state"] == "done" for r in flow.failures)
    status = flow.status("x", [s.name for s in flow.stages], live=False)
    assert status["state"] == "partial"
    assert status["stages"]["transfer"] == {"state": "partial", "done": 0, "total": 2, "failed": 2}


def test_what_decides_the_frames_decides_the_ids_and_nothing_else(drive, made_up, campaign):
    def parts(changes=(), source=None, **more):
        spec = campaign(**TRANSFER, seed=more.pop("seed", 1))
        spec = spec.model_copy(update={"transfer": spec.transfer.model_copy(update=dict(changes))})
        flow, _, _ = drive(made_up(0), spec=spec, origin=source or origin(4, 3))
        return [task for task, _ in flow.stages[1].parts]

    first = parts()
    assert len(set(first)) == 2
    assert parts(seed=2) == first  # without strains nothing is random
    moved = Origin(**{**origin(4, 3).__dict__, "path": "/elsewhere", "run": "other", "chosen": "labelled"})
    assert parts(source=moved) == first
    assert parts(source=origin(4, 2))[0] == first[0]  # another last part leaves the first as it is
    assert not set(parts(source=origin(4, 3, a=3.6))) & set(first)
    assert not set(parts({"scale": 1.1})) & set(first)
    assert not set(parts({"min_distance": 0.6})) & set(first)


def test_one_campaign_to_itself_needs_one_lattice(drive, made_up, campaign):
    source = origin(3)
    spec = campaign(**TRANSFER)
    own = {"structure": spec.system.structure.model_dump(mode="json"), "potential": "/al.lmp", "digest": ""}
    source = Origin(**{**source.__dict__, "crystal": own})
    flow, _, _ = drive(made_up(0), spec=spec, origin=source)
    assert flow.stages[1].factors == [1.0] * 3
    assert flow.counts["transfer"].done == flow.stages[1].total(flow.board) == 4


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (None, ""),
        ([1.15] * 3, ""),
        ([1.33] * 3, ""),
        ([0.75] * 3, ""),
        ([1.34] * 3, "by 1.34, far from 1"),
        ([1.0, 1.0, 0.7], "by 0.7, far from 1"),
    ],
)
def test_a_factor_far_from_one_is_said_with_the_number(factors, said):
    found = far(factors)
    assert len(found) == bool(said)
    assert said in " ".join(found)


def test_parts_are_of_one_number_of_atoms_and_in_order():
    frames = [(4, "a"), (4, "b"), (4, "c"), (8, "d"), (4, "e"), (4, "f"), (4, "g"), (4, "h")]
    found = [(p.atoms, "".join(p.frames)) for p in divide(frames, 3)]
    assert found == [(4, "abc"), (8, "d"), (4, "efg"), (4, "h")]


def test_a_note_can_be_kept_as_json():
    source = origin(4, 3)
    assert Origin.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_frames_of_a_run_are_read_by_their_ids(tmp_path):
    path = tmp_path / "run.zarr"
    names = []
    for k, atoms in enumerate((4, 8)):
        task = Task("sample", f"npt/walker 0/segment {k}", {"k": k})
        rng = np.random.default_rng(k)
        numbers = rng.choice([28, 41], size=atoms)
        block = Frames.build(numbers, rng.uniform(size=(5, atoms, 3)), np.eye(3) * 9, task=task.number)
        Store(path).publish(new_record(task, 0), dict(block.arrays()))
        names += block.ids
    wanted = [names[3], names[0], names[7], names[9], names[4]]
    parts, species = of_run(Store(path), wanted, 64)
    assert [(p.atoms, p.frames) for p in parts] == [(4, wanted[:2]), (8, wanted[2:4]), (4, wanted[4:])]
    assert species == ["Nb", "Ni"]
    found = transfer_origin.read(str(path), [], wanted[:2], [])
    assert found.ids == wanted[:2]
    with pytest.raises(StoreError):
        of_run(Store(path), ["00000000000000ff:0"], 64)
    with pytest.raises(MachineFault, match="not there any more"):
        transfer_origin.read(str(tmp_path / "none/run.zarr"), [], wanted[:2], [])
    assert not (tmp_path / "none").exists()
