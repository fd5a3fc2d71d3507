from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from campaign.report.html import embed, render

Data = dict[str, Any]
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.shown = ""
        self._silent = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        self.fetched += re.findall(r"url\(([^)]*)\)", given.get("style") or "")
        if tag == "script":
            self.scripts.append(given)
        if tag in ("script", "style"):
            self._silent = tag

    def handle_endtag(self, tag: str) -> None:
        self._silent = "" if tag == self._silent else self._silent

    def handle_data(self, data: str) -> None:
        if self._silent == "style":
            self.fetched += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", data)
        elif not self._silent:
            self.shown += data + " "


def shown(data: Data) -> str:
    return " ".join(Page(render(data)).shown.split())


def test_opens_offline(data: Data) -> None:
    page = render(data)
    assert [url for url in Page(page).fetched if not url.startswith("#")] == []
    assert "default-src 'none'" in page
    assert "Plotly" in page


def test_verdict_first_with_numbers_and_limits(data: Data) -> None:
    text = shown(data)
    assert text.index("✓ Passed") < text.index("frames sampled") < text.index("Errors on held-out")
    assert "3 of 3 validations within their limits." in text
    assert "Force RMSE 71 meV/Å, limit 105 (20 % of the spread)" in text
    assert "Energy RMSE 2.3 meV/atom, limit 3" in text
    assert "RMSE 13 % lower, L4 norm 24 % lower" in text
    assert "Lost atoms: original 64 current 63." in text


def test_one_bad_validation_fails_the_verdict(data: Data) -> None:
    data["validation"][1].update({"pass": False, "reached": 2.1})
    data["validation"][1]["first_bad"] = {"time": 2.1, "criterion": "shortest distance", "frame": 105}
    text = shown(data)
    assert "✗ Failed 2 of 3 validations" in text
    assert "The first bad frame is 105, at 2.1 ps: shortest distance." in text


def test_learning_that_no_model_survived_is_no_pass(data: Data) -> None:
    rounds = [{"round": 1, "set": "rnd_stream", "frames": 6, "failed": 2, "walkers": 2, "added": 0, "refused": 0}]
    data["learning"] = {"note": "learn: every walker survived round 1", "held": True, "judged": "x", "rounds": rounds}
    text = shown(data)
    assert "✓ Passed" in text
    assert "✓ passed Learning every walker survived round 1" in text
    data["learning"] |= {"note": "learn: 2 of 2 walkers failed in round 1, and the rounds are spent", "held": False}
    text = shown(data)
    assert "✗ Not passed" in text
    assert "✗ failed Learning 2 of 2 walkers failed in round 1" in text
    data["learning"]["held"] = None  # it goes on
    assert "ed Learning" not in shown(data)


def test_sets_are_compared_with_their_sizes_and_the_judged_one_comes_first(data: Data) -> None:
    report = data["validation"][0]
    text = shown(data)
    assert "same size" not in text  # the sizes are not known
    assert "Force errors of rnd_stream against a random pick, trained the same way: " in text
    data["sizes"] = {"rnd_stream": 22, "random": 22, "learn-1": 30}
    assert "Force errors of rnd_stream (22 frames) against a random pick of the same size, trained" in shown(data)
    report["sets"]["learn-1"] = report["sets"]["rnd_stream"]
    report["set"] = "learn-1"
    assert "Force errors of learn-1 (30 frames) against a random pick of 22 frames: " in shown(data)
    report["set"] = "rnd_stream"  # what was learned could not be trained
    assert "Force errors of rnd_stream (22 frames) against" in shown(data)


def test_a_validation_that_could_not_be_done_is_not_a_pass(data: Data) -> None:
    data["status"]["stages"]["validate"].update(state="partial", failed=1)
    assert "✗ Not passed" in shown(data)


@pytest.mark.parametrize("state", ["running", "partial"])
def test_tests_that_are_still_to_come_are_no_pass(data: Data, state: str) -> None:
    """Three of nine are done, and all three held: of a run under way, or one that was interrupted."""
    data["status"]["stages"]["validate"].update(state=state, done=3, total=9)
    assert "Not finished 3 of 3 validations within their limits. Some still to be done." in shown(data)
    data["tests"] = {"asked": 5, "left": ["density", "rdf-4"], "over": False}
    text = shown(data)
    assert "Not finished 3 of 5 validations within their limits. 2 still to be done: density, rdf-4." in text
    assert "Passed" not in text
    data["validation"][2]["pass"] = False
    assert "✗ Failed 2 of 5 validations" in shown(data)


def test_a_test_that_was_left_out_in_silence_is_no_pass(data: Data) -> None:
    """No task failed: every held-out label was set aside, and the test was never planned."""
    data["tests"] = {"asked": 4, "left": ["errors-3"], "over": True}
    assert "✗ Not passed 3 of 4 validations within their limits. 1 could not be done: errors-3." in shown(data)


def test_what_nothing_is_asked_of_is_not_judged(data: Data) -> None:
    data["validation"][0]["pass"] = None
    text = shown(data)
    assert "✓ Passed 2 of 3 validations within their limits. Not judged, as nothing is asked: Held-out errors." in text
    assert "– not judged Held-out errors" in text
    data["validation"] = data["validation"][:1]
    assert "Not validated 0 of 1 validations" in shown(data)
    assert "Passed" not in shown(data)


def test_what_it_was_compared_with_is_named(data: Data) -> None:
    data["validation"][2]["compared_with"] = {"file": "potentials/nacl.lmp", "trained": True}
    text = shown(data)
    assert "The reference is potentials/nacl.lmp." in text
    assert "Compared with" not in text
    data["validation"][2]["compared_with"]["trained"] = False
    text = shown(data)
    assert "within their limits. Compared with potentials/nacl.lmp, which the labels are not made with." in text
    assert "The reference is potentials/nacl.lmp, which the labels are not made with." in text


@pytest.mark.parametrize("gone", ["status", "validation", "sampling", "selection", "training", "tasks", "about"])
def test_a_missing_part_is_a_sentence(data: Data, gone: str) -> None:
    whole = shown(data)
    del data[gone]
    without = shown(data)
    assert without != whole
    assert "Traceback" not in without
    data[gone] = {} if gone in ("status", "selection", "about") else []
    assert shown(data) == without  # empty and absent are the same to a reader


def test_nothing_yet() -> None:
    text = shown({})
    assert "Not validated No verdict: validation has not run yet." in text
    for sentence in (
        "Nothing has been sampled yet.",
        "No frame has been selected yet.",
        "No model has been trained yet.",
        "No task has run yet.",
    ):
        assert sentence in text


def test_gaps_in_every_part(data: Data) -> None:
    data["validation"] = [{"method": "errors", "pass": False, "sets": {"random": {}}}, {"method": "stability"}]
    data["validation"] += [{"method": "rdf", "pairs": {"Na-Cl": {}}}, {"method": "density", "pass": True}]
    data["sampling"] = [{"name": "momt", "momt": {"walkers": [{"number": 0}, {"steps": [None], "trips": [None]}]}}, {}]
    data["selection"] = {"method": "random", "novelty": [float("nan")] * 3, "chosen": [1, 7]}
    data["training"] = [{"name": "random/0", "epoch": [], "loss": [], "force_rmse": []}]
    data["status"] = {"campaign": "x", "state": "partial", "stages": {"sample": {"state": "running"}}}
    data["tasks"] = [{"task": "1", "stage": "odd", "state": "failed", "start": None, "seconds": None}]
    assert "Density" in shown(data)


def test_not_a_number_does_not_reach_the_page(data: Data) -> None:
    data["validation"][0]["sets"]["random"]["forces"]["rmse"] = float("inf")
    data["training"][0]["loss"][3] = float("nan")
    figures = re.search(r'id="figures">(.*?)</script>', render(data), re.DOTALL)
    assert figures is not None
    assert not re.search(r"NaN|Infinity", figures[1])


def test_hostile_text_is_shown_not_run(data: Data) -> None:
    data["status"]["campaign"] = HOSTILE
    data["status"]["failures"][0]["cause"] = HOSTILE + '" onmouseover="alert(1)'
    data["selection"]["method"] = HOSTILE
    data["sampling"][0]["name"] = HOSTILE
    data["sampling"][0]["momt"]["walkers"][0]["number"] = HOSTILE
    data["selection"]["refused"] = [{"frame": "0:1", "reason": HOSTILE}]
    data["about"] = {"campaign": HOSTILE, "file": "x: " + HOSTILE, "versions": {HOSTILE: HOSTILE}}
    data["training"][0]["name"] = HOSTILE
    data["tasks"][0].update(name=HOSTILE, stage=HOSTILE, host=HOSTILE)
    data["validation"][0]["sets"][HOSTILE] = data["validation"][0]["sets"].pop("rnd_stream")
    data["validation"][2]["pairs"][HOSTILE] = data["validation"][2]["pairs"].pop("Na-Cl")
    data["validation"][1]["criteria"][0]["name"] = HOSTILE
    page = render(data)
    assert HOSTILE not in page
    assert len(Page(page).scripts) == 3
    assert HOSTILE in Page(page).shown


def test_embedded_json_cannot_end_its_script() -> None:
    assert "<" not in embed({"a": "</script><!--"})


@pytest.mark.requires("chromium")
def test_a_browser_draws_every_figure(data: Data, tmp_path: Path) -> None:
    data["status"]["campaign"] = "<img src=x onerror=\"document.title='broken'\">"
    page = tmp_path / "report.html"
    page.write_text(render(data), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked = done.stdout.count("data-figure=")
    assert asked == 14
    assert len(re.findall(r'class="plot js-plotly-plot"', done.stdout)) == asked
    assert "CONSOLE" not in done.stderr
    assert "<title>broken" not in done.stdout
