"""Task ids: the same for the same result everywhere, another for anything that changes it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from campaign.tasks import Context, Task, new_record

TASK = Task("sample", "npt/walker 3", {"b": [1, 2.5], "a": {"x": "é", "y": None}}, ("00ff", "11ee"), version=2)


def test_id_is_16_hex_digits_and_a_uint64() -> None:
    assert len(TASK.id) == 16
    assert TASK.number == int(TASK.id, 16) < 2**64
    assert f"{TASK.number:016x}" == TASK.id


def test_id_is_the_same_in_every_process() -> None:
    code = "import json, sys; from campaign.tasks import Task; print(Task.from_json(json.load(sys.stdin)).id)"
    for seed in ("0", "1", "random"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(TASK.to_json()),
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == TASK.id


def test_id_never_changes_between_releases() -> None:
    """A finished run is continued by its ids: whoever changes how they are made must raise the schema."""
    assert Task("sample", "", {"steps": 100, "t": 300.0}, ("0123456789abcdef",)).id == "64384eab56589614"


@pytest.mark.parametrize(
    "change",
    [
        {"params": {**TASK.params, "c": 0}},
        {"params": {"b": [2.5, 1], "a": TASK.params["a"]}},
        {"inputs": ("11ee", "00ff")},
        {"inputs": ("00ff",)},
        {"inputs": ()},
        {"version": 3},
        {"stage": "label"},
    ],
)
def test_id_changes_with_what_decides_the_result(change: dict[str, object]) -> None:
    assert replace(TASK, **change).id != TASK.id


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"priority": 1},
        {"extra": {"potential": "a.lmp"}},
        {"params": {"a": {"y": None, "x": "é"}, "b": [1, 2.5]}},
    ],
)
def test_id_does_not_change_with_the_rest(change: dict[str, object]) -> None:
    assert replace(TASK, **change).id == TASK.id


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Task("sample", "", {"deep": [{"x": value}]}).id


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError):
        _ = Task("sample", "", {"path": Path("x")}).id


def test_tasks_and_contexts_cross_process_boundaries_as_json(tmp_path: Path) -> None:
    task = replace(TASK, extra={"delay": 0.1}, priority=1)
    back = Task.from_json(json.loads(json.dumps(task.to_json())))
    assert back == task
    assert back.id == task.id
    context = Context(tmp_path, {"lammps": ["mpiexec", "-n", "{ranks}"]}, attempt=2, token="abc")
    assert Context.from_json(json.loads(json.dumps(context.to_json()))) == context
    assert context.folder(task) == tmp_path / "tasks" / task.id
    assert context.folder(task).is_dir()


def test_record_is_json_and_names_its_task() -> None:
    record = new_record(TASK, 1)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["task"], record["stage"], record["attempt"], record["state"]) == (TASK.id, "sample", 1, "done")
