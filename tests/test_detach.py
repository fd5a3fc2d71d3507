"""``campaign run --detach``: what is wrong is said before a job is asked for (with a batch system: ``tests/slurm``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.detach import detach
from campaign.errors import InputError

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
