"""What the contract suites share: a run directory with real potentials, a sample task in its store, a worker."""

from pathlib import Path

import numpy as np
import pytest

from campaign.frames import Frames
from campaign.store.store import Store
from campaign.tasks import Context, Task, new_record
from campaign.worker import do_task

TEMPLATES = Path(__file__).parents[2] / "templates" / "potentials"


@pytest.fixture
def run_folder(tmp_path):
    """Return a function that makes a run directory with the two test potentials in it."""

    def make(name="run"):
        folder = tmp_path / name
        (folder / "potentials").mkdir(parents=True)
        argon = (TEMPLATES / "ar_lj.lmp").read_text()
        # An energy that jumps where a pair leaves the cutoff has no finite difference.
        argon = argon.replace("lj/cut 13.0", "lj/cut 8.0") + "pair_modify shift yes\n"
        salt = (TEMPLATES / "nacl_bmhtf.lmp").read_text()
        salt = salt.replace("pppm 1.0e-5", "pppm 1.0e-7") + "pair_modify shift yes table 0\n"
        (folder / "potentials/ar.lmp").write_text(argon)
        (folder / "potentials/nacl.lmp").write_text(salt)
        return folder

    return make


@pytest.fixture
def publish():
    """Return a function that publishes frames as the result of a sample task, whose id it returns."""

    def publish(folder, frames: Frames) -> str:
        task = Task("sample", "given", {"frames": len(frames), "sum": float(np.nansum(frames.positions))})
        frames = frames.with_(task=np.full(len(frames), task.number, dtype="uint64"))
        Store(folder / "run.zarr").publish(new_record(task, 0), dict(frames.arrays()))
        return task.id

    return publish


@pytest.fixture
def do():
    """Return a function that does a task as a worker would."""

    def do(folder, task: Task, attempt=0):
        return do_task(task, Context(folder, attempt=attempt))

    return do
