"""``campaign run --detach``: what is wrong is said before a job is asked for (with a batch system: ``tests/slurm``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from campaign.detach import detach
from campaign.errors import InputError, Locked
from campaign.store.rundir import RunDirectory

SITE = """\
site: s
executors: {cpu: {provider: slurm, cores: 4}}
stages: {default: cpu}
driver: {provider: slurm, walltime: 24:00:00, options: {account: <project>, qos: <qos>}}
"""


def test_options_of_the_drivers_job_that_are_not_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("campaign.plan.make_plan", lambda file, site: {})
    (tmp_path / "s.yaml").write_text(SITE)
    with pytest.raises(InputError) as caught:
        detach(tmp_path / "toy.yaml", str(tmp_path / "s.yaml"), tmp_path / "runs", None, False)
    assert [p.split(",")[0] for p in caught.value.problems] == [
        "site s: driver.options.account: it is not set",
        "site s: driver.options.qos: it is not set",
    ]
    assert not (tmp_path / "runs").exists()


TOY = """\
campaign: toy
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 2, frames: 20}]
select: {method: random, size: 4}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A campaign file beside a site file; nothing may be submitted."""

    def submit(*_: object) -> str:
        raise AssertionError("a job was submitted")

    monkeypatch.setattr("campaign.plan.make_plan", lambda file, site: {})
    monkeypatch.setattr("campaign.runtime.driver_job.submit_driver", submit)
    (tmp_path / "s.yaml").write_text(SITE.replace("<project>", "me").replace("<qos>", "long"))
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


@pytest.mark.parametrize(
    ("root", "until", "words"),
    [
        ("runs", "train", "--until: this campaign has no stage train; write one of sample, select."),
        ("my runs", None, "workers cannot be started in a folder with ' ' in its path; name another place"),
        ("50%", None, "workers cannot be started in a folder with '%' in its path"),
        ("{a}", None, "workers cannot be started in a folder with '{' '}' in its path"),
    ],
)
def test_what_the_driver_would_refuse_is_refused_before(toy: Path, root: str, until: str | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        detach(toy / "toy.yaml", str(toy / "s.yaml"), toy / root, until, False)
    (problem,) = caught.value.problems
    assert words in problem
    assert not (toy / root).exists()


def test_a_run_that_a_driver_is_at_work_on_gets_no_second_one(toy: Path) -> None:
    with RunDirectory(toy / "runs" / "toy"), pytest.raises(Locked, match=f"in use .* process {os.getpid()}; wait"):
        detach(toy / "toy.yaml", str(toy / "s.yaml"), toy / "runs", None, False)
