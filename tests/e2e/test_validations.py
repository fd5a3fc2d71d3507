"""Every validation of a toy campaign, from its file to the report: what is planned is what the workers take."""

import json
from pathlib import Path

import pytest

from campaign.config import load_campaign, load_site
from campaign.pipeline import Options, report_of, run
from campaign.store.ledger import read_ledger

CAMPAIGN = """\
campaign: toy
seed: 1
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.0, supercell: [2, 2, 2]}
sample:
  - {method: fake, walkers: 1, frames: 40, segment: 20, displacement: 0.05, temperature: 200}
select: {method: rnd_stream, size: 8}
label: {engine: fake}
train: {model: fake, members: 2}
validate:
  - {method: errors, held_out: 10}
  - {method: stability, ensemble: npt, temperature: 200, pressure: 10000, time: 2}
  - {method: rdf, cutoff: 4.5, threshold: 0.5}
  - {method: density, temperatures: [200], pressure: 10000, time: 2, threshold: 0.3 g/cm^3}
  - {method: density, temperatures: [200], pressure: 10000, time: 2, reference: [9.0]}
  - {method: diffusion, fit: [0.1, 0.2], blocks: 3, threshold: 1e-7 m^2/s}
  - {method: rerun, frames: 10, threshold: {pressure: 1000 bar, energy: 5 meV/atom}}
  - {method: overlap, distance: schnet, cutoff: 4.0, frames: 20, threshold: 0.1}
  - {method: relax}
"""
PASS = {"errors", "stability", "rdf", "density", "rerun", "overlap"}
#: What a solid that only repels itself cannot pass, and what is given a wrong density, with the end of each cause.
FAIL = {
    "density-4": "200 K: the difference is over its limit.",
    "diffusion": "or test no diffusion of what is solid.",
    "relax": "and is no crystal to compare with.",
}


@pytest.mark.lammps
def test_every_validation_from_the_file_to_the_report(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CAMPAIGN)
    path = tmp_path / "run"
    status = run(load_campaign(tmp_path / "c.yaml"), load_site("local"), path, Options(inline=True))
    assert status["failures"] == []
    assert status["state"] == "done"
    found = {p.stem: json.loads(p.read_text()) for p in (path / "validation").glob("*.json")}
    assert set(found) == {*PASS, *FAIL}
    assert status["verdicts"] == {name: name in PASS for name in found}
    for name in PASS:
        assert found[name]["pass"], (name, found[name].get("cause"))
    for name, cause in FAIL.items():
        assert found[name]["pass"] is False
        assert found[name]["cause"].endswith(cause)
    records = [r for r in read_ledger(path / "ledger.jsonl") if r["stage"] == "validate"]
    names = [r["name"] for r in records]
    assert names.count("stability/segment 0") == 1  # all of them work on one run
    assert names.count("reference/segment 0") == 1
    assert len(names) == len(found) + 3
    assert [e["name"] for e in found["relax"]["structures"]] == ["Ar fcc", "Ar bcc", "Ar hcp"]
    page = report_of(path).read_text()
    assert "6 of 9 validations within their limits. Not within them: Density, Self-diffusion, Relaxed crystals." in page
    run(load_campaign(tmp_path / "c.yaml"), load_site("local"), path, Options(inline=True))
    assert [r for r in read_ledger(path / "ledger.jsonl") if r["stage"] == "validate"] == records
