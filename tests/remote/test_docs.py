"""What docs/remote.md tells people to write is what the two sides read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from campaign.remote.allowed import load_allowed
from campaign.remote.protocol import LARGEST, PROTOCOL, Submit, read_request

TEXT = (Path(__file__).parents[2] / "docs/remote.md").read_text()


def block(language: str, word: str) -> str:
    """Return the code of a language with a word in it."""
    return next(b for b in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if word in b)


def test_the_flow_sends_a_request() -> None:
    task = json.loads(block("json", "StartAt"))["States"]["Continue"]["Parameters"]["tasks"][0]
    found = read_request(task["kwargs"]["request"])
    assert isinstance(found, Submit)
    assert (found.run, found.site, found.protocol) == ("nacl-5f3a91c2", "perlmutter", PROTOCOL)
    for other in re.findall(r'`(\{"protocol": .*?\})`', TEXT):
        read_request(json.loads(other.replace("RUN", '"nacl-5f3a91c2"')))
    assert f"{LARGEST / 1e6:.0f} MB at most" in TEXT


def test_the_file_of_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "campaigns").mkdir()
    file = tmp_path / "remote.yaml"
    file.write_text(block("yaml", "sites:").replace("/scratch/me", str(tmp_path)).replace("# collection", "collection"))
    monkeypatch.setenv("CAMPAIGN_REMOTE", str(file))
    allowed = load_allowed()
    assert allowed.sites == {"perlmutter": "perlmutter", "mine": str(tmp_path / "mine.yaml")}
    assert (allowed.root, allowed.host) == (tmp_path / "campaigns", "perlmutter.nersc.gov")
    assert allowed.collection == "6c54cade-bde5-45c1-bdea-f4bd71dba2cc"


@pytest.mark.requires("globus_compute_endpoint")
def test_the_endpoints_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from globus_compute_endpoint.endpoint.config.utils import load_config_yaml

    engine = load_config_yaml(block("yaml", "GlobusComputeEngine")).engine
    assert {s.__name__ for s in engine.serde.allowed_deserializer_types} == {"PureSourceTextInspect", "JSONData"}
    assert engine.max_workers_per_node == 2
