"""What stands against a single point of a periodic frame in a CP2K template, or would hide whether it converged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from campaign.config.cp2k_ladder import DFT, is_on, k_points, smeared
from campaign.config.cp2k_tree import FALSE, Section
from campaign.config.data_files import Fault
from campaign.config.yaml_lines import show

#: A rule: the section's path, the keyword's names, what holds of its value, what is wrong otherwise, a remedy.
_Rule = tuple[tuple[str, ...], tuple[str, ...], Callable[[str], bool], str, str]

_RULES: tuple[_Rule, ...] = (
    (
        ("GLOBAL",),
        ("RUN_TYPE", "PROGRAM_NAME", "PROGRAM"),
        lambda v: v in ("ENERGY", "ENERGY_FORCE", "CP2K"),
        "campaign runs single points",
        "write ENERGY_FORCE, or remove this line",
    ),
    (
        ("FORCE_EVAL",),
        ("METHOD",),
        lambda v: v in ("QS", "QUICKSTEP"),
        "labels come from Quickstep",
        "write 'METHOD QS'",
    ),
    (
        (*DFT, "POISSON"),
        ("PERIODIC",),
        lambda v: v == "XYZ",
        "frames are periodic along all three cell vectors",
        "write 'PERIODIC XYZ'",
    ),
    (
        ("FORCE_EVAL", "SUBSYS", "CELL"),
        ("PERIODIC",),
        lambda v: v == "XYZ",
        "frames are periodic along all three cell vectors",
        "write 'PERIODIC XYZ'",
    ),
    (
        ("FORCE_EVAL", "SUBSYS", "CELL"),
        ("MULTIPLE_UNIT_CELL",),
        lambda v: v.split() == ["1"] * 3,
        "a frame is computed as it is",
        "remove this line",
    ),
    (
        (*DFT, "QS"),
        ("LS_SCF",),
        lambda v: v in FALSE,
        "of linear-scaling SCF campaign cannot see whether it converged",
        "remove this line",
    ),
    (
        (*DFT, "SCF"),
        ("IGNORE_CONVERGENCE_FAILURE",),
        lambda v: v in FALSE,
        "an unconverged result is never accepted",
        "remove this line",
    ),
    (
        ("FORCE_EVAL",),
        ("STRESS_TENSOR",),
        lambda v: v in ("ANALYTICAL", "NONE"),
        "labels take the whole stress tensor from one calculation, with the forces",
        "write 'STRESS_TENSOR ANALYTICAL', or remove this line",
    ),
)


def check_use(root: Section) -> Iterator[Fault]:
    """Yield what stands against a single point of a periodic frame, or would hide whether it converged."""
    force_eval = root.find("FORCE_EVAL")
    if root.find(*DFT) is None:
        line = force_eval.line if force_eval else 1
        yield Fault("a template has a section FORCE_EVAL with DFT in it", "none", "add &FORCE_EVAL and &DFT", line)
    for path, names, good, what, remedy in _RULES:
        section = root.find(*path) or Section("")
        for word in section.keywords:
            if word.name in names and not good(word.value.upper()):
                yield Fault(what, show(f"{section.name}/{word.text()}"), remedy, word.line)
    ot = root.find(*DFT, "SCF", "OT")
    if ot is not None and is_on(ot) and (smeared(root) or k_points(root)):
        what = f"with {'smearing' if smeared(root) else 'k-points'} there is no orbital transformation: CP2K stops"
        yield Fault(what, show("&OT"), "write &DIAGONALIZATION and &MIXING instead", ot.line)
