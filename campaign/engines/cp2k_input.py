"""CP2K's input of one frame: the template with the rung's settings, the cell, the coordinates and what is printed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.config.cp2k_files import data_lines
from campaign.config.cp2k_ladder import DFT, Rung
from campaign.config.cp2k_ladder import choose as choose
from campaign.config.cp2k_ladder import resolve as resolve
from campaign.config.cp2k_template import Template
from campaign.config.cp2k_template import read_template as read_template
from campaign.config.cp2k_tree import Line, Section, unquoted
from campaign.errors import EngineError

if TYPE_CHECKING:
    from ase import Atoms

#: CP2K's files begin with it.
PROJECT = "frame"
#: The last wavefunction of a calculation: at Gamma, and with k-points.
WAVEFUNCTIONS = (f"{PROJECT}-RESTART.wfn", f"{PROJECT}-RESTART.kp")


def render(template: Template, atoms: Atoms, rung: Rung, folder: Path, restart: Path | None = None) -> str:
    """Return the input of a single point.

    Parameters
    ----------
    template
        The template.
    atoms
        The frame: Å.
    rung
        What this attempt changes.
    folder
        Where CP2K will run: data files beside the template are named from there.
    restart
        A wavefunction to start from.

    Raises
    ------
    EngineError
        The template has no KIND for an element of the frame.
    """
    root = template.with_rung(rung.settings)
    root.sections.sort(key=lambda s: s.name != "GLOBAL")
    _set_run(root)
    _set_frame(root, atoms, template)
    _set_files(root, template, folder)
    if restart is not None:
        dft = root.made(*DFT)
        dft.put("WFN_RESTART_FILE_NAME", os.path.relpath(restart, folder), "RESTART_FILE_NAME")
        dft.made("SCF").put("SCF_GUESS", "RESTART")
    # the data files' content is part of the method: a finished output belongs to the input that names the same one
    method = template.physics(template.with_rung(rung.settings))
    return "\n".join([f"# {template.path.name}, rung {rung.name}, method {method}", *root.write(), ""])


def _set_run(root: Section) -> None:
    """Set what is run and what is printed: everything that ``cp2k_output`` reads and checks."""
    run = root.made("GLOBAL")
    run.put("PROJECT", PROJECT, "PROJECT_NAME")
    run.put("RUN_TYPE", "ENERGY_FORCE", "PROGRAM_NAME", "PROGRAM")
    run.put("PRINT_LEVEL", "MEDIUM", "IOLEVEL")
    run.drop("PRINT")
    root.sections = [s for s in root.sections if s.name in ("GLOBAL", "FORCE_EVAL")]
    run.sections.append(Section("PRINT", keywords=[Line("PHYSCON", "T")]))
    force_eval = root.made("FORCE_EVAL")
    force_eval.put("METHOD", "QS")
    force_eval.put("STRESS_TENSOR", "ANALYTICAL")
    force_eval.drop("PRINT")
    force_eval.sections.append(
        Section(
            "PRINT",
            sections=[
                Section("FORCES", "ON", keywords=[Line("NDIGITS", "14")]),
                Section("STRESS_TENSOR", "ON"),
            ],
        )
    )
    scf = root.made(*DFT, "SCF")
    scf.drop("PRINT")
    wavefunction = Section("RESTART", "ON", keywords=[Line("BACKUP_COPIES", "0")])
    wavefunction.sections.append(Section("EACH", keywords=[Line("QS_SCF", "0")]))
    scf.sections.append(Section("PRINT", sections=[wavefunction, Section("RESTART_HISTORY", "OFF")]))


def _set_frame(root: Section, atoms: Atoms, template: Template) -> None:
    subsys = root.made("FORCE_EVAL", "SUBSYS")
    subsys.drop("CELL", "COORD")
    cell = Section("CELL")
    for name, vector in zip("ABC", atoms.cell.array, strict=True):
        cell.put(name, " ".join(f"{x:.17g}" for x in vector))
    cell.put("PERIODIC", "XYZ")
    every = template.kinds
    names = {}
    for symbol in sorted(set(atoms.get_chemical_symbols())):
        names[symbol] = every.get(symbol, symbol if "DEFAULT" in every or not every else "")
        if not names[symbol]:
            raise EngineError(
                f"The template {template.path.name} has no KIND for {symbol}; add '&KIND {symbol}' to it."
            )
    rows = zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)
    lines = [Line(names[s], " ".join(f"{x:.17g}" for x in position)) for s, position in rows]
    subsys.sections[:0] = [cell, Section("COORD", keywords=lines)]


def _set_files(root: Section, template: Template, folder: Path) -> None:
    """Name data files that lie beside the template from where CP2K runs; it finds the others itself."""
    beside = template.path.parent.resolve()
    for data in list(data_lines(root)):
        path = template.data.get(unquoted(data.line.value))
        if path is None or not path.resolve().is_relative_to(beside):
            continue
        name = os.path.relpath(path.resolve(), folder.resolve())
        if data.written:
            data.line.value = name
        else:  # a copy of the file that CP2K would take from its own folder
            root.made(*data.path).put(data.line.name, name)
