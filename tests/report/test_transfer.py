"""The report's section on a transfer: what was done in sentences, and the source of every frame."""

from __future__ import annotations

from typing import Any

from campaign.report.html import render
from campaign.report.transfer import MOST_FRAMES, transfer

SUMMARY: dict[str, Any] = {
    "run": "ni-<momt>",
    "store": "/runs/ni/run.zarr",
    "set": "distilled",
    "about": "",
    "frames": 300,
    "transferred": 598,
    "refused": 2,
    "species": {"Ni": "Al"},
    "factors": [1.15046] * 3,
    "scale": "lattice",
    "crystals": {
        "source": {"prototype": "fcc", "elements": ["Ni"], "lengths": [3.5162] * 3, "volume": 10.87, "energy": -4.876},
        "target": {"prototype": "fcc", "elements": ["Al"], "lengths": [4.0453] * 3, "volume": 16.55, "energy": -3.411},
    },
    "strain": {"size": 0.02, "copies": 1},
    "atoms": {"32": 200, "108": 100},
}
SOURCES = {f"{k:016x}:0": {"run": "ni", "frame": f"{k // 2:016x}:7", "copy": k % 2} for k in range(600)}


def test_what_was_done_stands_in_sentences() -> None:
    found = transfer({"transfer": SUMMARY, "sources": SOURCES})
    assert found is not None
    assert found["sentence"] == (
        "200 frames of 32 atoms and 100 frames of 108 atoms of the distilled set of ni-<momt> became 598 frames "
        "of this campaign: Ni is now Al. 2 more were refused."
    )
    assert found["scale"].startswith("Lengths were multiplied by 1.1505: the ratio of their lattice constants, ")
    assert found["strain"] == "Beside each frame stands a copy with random strains of at most 0.02."
    assert (len(found["rows"]), found["left_out"]) == (MOST_FRAMES, 600 - MOST_FRAMES)


def test_other_crystals_and_factors() -> None:
    bcc = SUMMARY["crystals"] | {"target": {**SUMMARY["crystals"]["target"], "prototype": "bcc"}}
    said = [
        transfer({"transfer": {**SUMMARY, **change}})["scale"]  # type: ignore[index]
        for change in (
            {"crystals": bcc},
            {"factors": [1.1, 1.1, 1.2], "scale": "given", "crystals": {}},
            {"factors": None},
        )
    ]
    assert "the cube root of their volumes' ratio" in said[0]
    assert said[1] == "Lengths along x, y and z were multiplied by 1.1, 1.1, 1.2, as the campaign file says."
    assert said[2] == "The factor on lengths is not known yet."
    assert transfer({}) is None


def test_the_page_shows_it_in_place_of_a_selection_and_escapes_names() -> None:
    page = render({"transfer": {"transfer": SUMMARY, "sources": SOURCES}, "selection": {"method": "transfer"}})
    assert '<h2 id="selection">Transfer</h2>' in page
    assert "ni-&lt;momt&gt;" in page
    assert "ni-<momt>" not in page
    assert "<td><code>0000000000000000:0</code></td><td><code>0000000000000000:7</code></td>" in page
    assert "400 more are in labels.json" in page
    assert "Nothing was sampled." in page
    assert '<h2 id="selection">Selection</h2>' in render({})
