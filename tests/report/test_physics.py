"""The sections on the physics: numbers with their errors, what is held and what is not, and nothing that breaks out."""

import re

import pytest

from campaign.report.html import render
from campaign.report.physics import lines, sections

HOSTILE = "<script>alert(1)</script>"


def row(name="Na", **changes):
    return {
        "name": name, "unit": "10^-8 m^2/s", "model": 1.118, "model_error": 0.0062, "reference": 1.052,
        "reference_error": 0.0081, "difference": 6.27, "error": 0.99, "limit": 10.0, "most": 10.0, "difference_in": "%",
        "ok": True, "short": False, **changes,
    }  # fmt: skip


RUN = {"ensemble": "npt", "temperature": 1400.0, "pressure": 1.0, "time": 100.0}
CURVE = {"time": [0.0, 1.0, 2.0], "model": [0.0, 6.0, 12.0], "reference": [0.0, 6.1, 12.4]}
DIFFUSION = {
    "method": "diffusion", "pass": True, "cause": "", "threshold": "10 %", "rows": [row(), row("Cl")], "run": RUN,
    "fit": [0.5, 5.0], "blocks": 5, "curves": {"Na": CURVE, "Cl": CURVE},
}  # fmt: skip
RELAXED = {
    "energy": -3.411, "volume": 16.4, "lengths": [4.05, 4.05, 4.05], "angles": [90.0] * 3, "bonds": {"Al-Al": 2.864},
    "steps": 12, "converged": True, "bound": True,
}  # fmt: skip
RELAX = {
    "method": "relax", "pass": False, "cause": "Al bcc: the model failed on it.", "length_in": "%",
    "order": {"model": ["Al fcc"], "reference": ["Al fcc", "Al bcc"]},
    "structures": [
        {"name": "Al fcc", "reference": RELAXED, "model": RELAXED | {"energy": -3.407}, "ok": True,
         "over_lowest": {"model": 0.0, "reference": 0.0}, "energy_difference": 0.0, "length_difference": 0.31,
         "angle_difference": 0.2},
        {"name": "Al bcc", "reference": RELAXED | {"energy": -3.309}, "model": None, "ok": False},
    ],
}  # fmt: skip
OVERLAP = {
    "method": "overlap", "pass": False, "cause": "The model goes where the reference does not.", "threshold": 0.8,
    "share": 0.5, "covered": 0.4, "limit": 0.1, "distance": "rematch", "run": RUN, "says": ["50 % of the frames"],
    "nearest": {"model": [0.1, 0.2], "reference": [0.05, 0.1]},
    "first": {"model": {"time": [0.0, 1.0], "distance": [0.1, 0.2]}, "reference": {"time": [0.0], "distance": [0.0]}},
}  # fmt: skip


def drawn(reports):
    made = {}
    found = sections(reports, lambda name, figure: made.setdefault(name, figure) and name)
    return found, made


def text_of(part):
    return [[text for text, _ in line] for line in part["rows"]]


def test_values_stand_with_their_errors_and_limits():
    (part,), made = drawn([DIFFUSION])
    assert text_of(part)[0] == [
        "Na", "1.1180 ± 0.0062", "1.0520 ± 0.0081", "10^-8 m^2/s", "6.27 ± 0.99 %", "10 %", "✓ yes",
    ]  # fmt: skip
    assert "NPT at 1400 K and 1 bar, 100 ps" in part["sentence"]
    assert "between 0.5 and 5 ps" in part["sentence"]
    assert len(made) == 2
    band = made["diffusion-0-0"]["layout"]["shapes"][0]
    assert (band["x0"], band["x1"]) == (0.5, 5.0)
    assert lines(DIFFUSION) == ["Na: off by 6.3(10) %, limit 10 %", "Cl: off by 6.3(10) %, limit 10 %"]


def test_too_short_and_over_the_limit_are_told_apart():
    rows = [row(ok=False, short=True), row("Cl", ok=False), row("K", ok=True, limit=None, most=None)]
    (part,), _ = drawn([DIFFUSION | {"pass": False, "rows": rows}])
    assert [line[-1] for line in text_of(part)] == ["? too short", "✗ no", "–"]
    assert lines(DIFFUSION | {"rows": rows})[0].endswith("too short to tell")
    assert len(lines(DIFFUSION | {"rows": rows})) == 2  # nothing is asked of the third


def test_relaxed_crystals_and_one_that_failed():
    (part,), _ = drawn([RELAX])
    found = text_of(part)
    assert found[0] == ["Al fcc", "reference", "-3.4110", "0.0", "4.050", "Al-Al 2.864", ""]
    assert found[1][2:] == ["-3.4070", "0.0", "4.050", "Al-Al 2.864", "✓ yes"]
    assert found[3][-1] == "✗ failed"
    assert {len(line) for line in found} == {len(part["head"])}
    assert lines(RELAX)[-1] == RELAX["cause"]


def test_the_page_opens_with_what_did_not_hold():
    page = render({"validation": [DIFFUSION, RELAX, OVERLAP, {"method": "rdf", "pass": False}]})
    shown = " ".join(re.sub("<[^>]*>", " ", page.split("<body")[1].split("<script")[0]).split())
    assert (
        "1 of 4 validations within their limits. Not within them: Relaxed crystals, Overlap, Structure, g(r)." in shown
    )
    assert shown.index("Not within them") < shown.index("Self-diffusion NPT")
    for whose, share in (("model", 50), ("reference", 40)):
        assert f"{share} % of the {whose}'s frames have a match, 80 % asked" in shown.replace("&#39;", "'")
    assert page.count('href="#overlap-2"') == 1


def test_two_of_a_kind_are_both_drawn_and_named_once_above():
    page = render({"validation": [DIFFUSION, DIFFUSION | {"rows": [row("K")]}]})
    assert 'id="diffusion-0"' in page
    assert 'id="diffusion-1"' in page
    assert '"diffusion-1-0"' in page
    assert 'href="#diffusion-1"' not in page


@pytest.mark.parametrize("method", ["density", "diffusion", "conductivity", "rerun", "overlap", "relax"])
@pytest.mark.parametrize("more", [{}, {"pass": False, "cause": HOSTILE, "says": [HOSTILE], "rows": [row(HOSTILE)]}])
def test_what_is_missing_or_hostile_does_no_harm(method, more):
    structures = [{**e, "name": HOSTILE} for e in RELAX["structures"]] if more else []
    page = render({"validation": [{"method": method, "pass": True, "structures": structures, **more}]})
    assert HOSTILE not in page
