"""Every kind of wrong campaign file: one message each, with the line, the key, the value and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from campaign.config import load_campaign, read_potential_header
from campaign.errors import InputError

GOOD = """\
campaign: nacl-rnd
seed: 1
system:
  structure: {prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}
  potential: {lammps: potentials/nacl.lmp}
sample:
  - method: npt
    temperature: [1100, 1700]
    walkers: 8
    steps: 20000
    every: 100
    prepare:
      - {temperature: 1800, time: 4}
select: {method: rnd_stream, size: 32}
label: {engine: lammps}
train: {model: schnet, members: 2}
validate:
  - {method: errors, held_out: 200}
  - {method: stability, temperature: 1400, time: 5}
  - {method: rdf, reference: potential}
"""

TEMPLATE = """&FORCE_EVAL
  &DFT
    &XC
      &XC_FUNCTIONAL PBE
      &END
    &END
  &END
  &SUBSYS
    &KIND Na
      BASIS_SET SZV
      POTENTIAL PBE
    &END
    &KIND Cl
      BASIS_SET SZV
      POTENTIAL PBE
    &END
  &END
&END
"""

POTENTIAL = "# elements: Na Cl\n# atom_style: charge\npair_style born/coul/long 8\n"


class Wrong(NamedTuple):
    """A change to the good file and the one message that it must give."""

    old: str
    new: str
    line: int
    key: str
    got: str
    remedy: str


GRID = (
    "  - method: npt\n    temperature: [1100, 1700]\n",
    "  - method: nvt_grid\n    volumes: {}\n    temperature{}\n",
)

CASES = {
    # Lists of points
    "no pressure": Wrong("every: 100", "pressure: []", 11, "sample[0].pressure", "[]", "such as [1, 1000]"),
    "pressure twice": Wrong(
        "every: 100", "pressure: [1, 2, 1]", 11, "sample[0].pressure", "[1, 2, 1]", "write each once"
    ),
    "pressure that is text": Wrong("every: 100", "pressure: high", 11, "sample[0].pressure", "'high'", "number"),
    "pressure of NVT": Wrong(
        "  - method: npt\n", "  - method: nvt\n    pressure: 2\n", 8, "sample[0].pressure", "2", "write 'method: npt'"
    ),
    "no volume": Wrong(GRID[0], GRID[1].format([], "s: [900]"), 8, "sample[0].volumes", "[]", "at least 1"),
    "volume of an atom": Wrong(
        GRID[0], GRID[1].format([1500, 22], "s: [900]"), 8, "sample[0].volumes[1]", "22", "the whole cell, between"
    ),
    "volume of a mole": Wrong(
        GRID[0], GRID[1].format([2.7e7], "s: [900]"), 8, "sample[0].volumes[0]", "27000000.0", "the whole cell, between"
    ),
    "temperature of a grid": Wrong(
        GRID[0],
        GRID[1].format([1500], "s: [900]\n    temperature: 900"),
        10,
        "sample[0].temperature",
        "900",
        "[T1, T2]",
    ),
    "temperature twice": Wrong(
        GRID[0], GRID[1].format([1500], "s: [900, 900]"), 9, "sample[0].temperatures", "[900, 900]", "write each once"
    ),
    # Keys and names
    "unknown top key": Wrong("seed:", "sede:", 2, "sede", "1", "'seed'"),
    "unknown nested key": Wrong("walkers: 8", "walker: 8", 9, "sample[0].walker", "8", "'walkers'"),
    "synonym": Wrong("every: 100", "stride: 100", 11, "sample[0].stride", "100", "'every'"),
    "key like nothing here": Wrong("seed: 1", "zzz: 1", 2, "zzz", "1", "campaign, seed"),
    "missing key": Wrong("    steps: 20000\n", "", 7, "sample[0].steps", "nothing", "steps: 200000"),
    "key written twice": Wrong("campaign: nacl-rnd", "seed: 2", 2, "seed", "seed", "keep one"),
    "bad campaign name": Wrong("nacl-rnd", "NaCl rnd", 1, "campaign", "'NaCl rnd'", "lower-case"),
    "name is a number": Wrong("nacl-rnd", "12", 1, "campaign", "12", "quotes"),
    "switch that is text": Wrong("members: 2", "wall: maybe", 16, "train.wall", "'maybe'", "true or false"),
    # Variants
    "misspelt method": Wrong("method: npt", "method: ntp", 7, "sample[0].method", "'ntp'", "'npt'"),
    "misspelt select": Wrong("rnd_stream", "rnd_steam", 14, "select.method", "'rnd_steam'", "'rnd_stream'"),
    "misspelt engine": Wrong("engine: lammps", "engine: lamps", 15, "label.engine", "'lamps'", "'lammps'"),
    "misspelt model": Wrong("model: schnet", "model: shcnet", 16, "train.model", "'shcnet'", "'schnet'"),
    "misspelt loss": Wrong("members: 2", "loss: {kind: l5}", 16, "train.loss.kind", "'l5'", "mse, huber, l4"),
    "misspelt device": Wrong("members: 2", "device: gpu", 16, "train.device", "'gpu'", "cpu, cuda"),
    "l_max of a model without": Wrong("members: 2", "l_max: 2", 16, "train.l_max", "2", "the keys here are"),
    "l_max too large": Wrong("schnet, members: 2", "so3net, l_max: 9", 16, "train.l_max", "9", "at most 6"),
    "patience of no epoch": Wrong("members: 2", "patience: 0", 16, "train.patience", "0", "at least 1"),
    "missing method": Wrong(
        "{method: rdf, reference: potential}", "{bins: 50}", 20, "validate[2].method", "nothing", "rdf"
    ),
    "misspelt word method": Wrong(
        "{method: rdf, reference: potential}",
        "{metod: rdf, reference: potential}",
        20,
        "validate[2].method",
        "nothing",
        "method: ...",
    ),
    "variant is text": Wrong("{engine: lammps}", "lammps", 15, "label", "'lammps'", "{engine:"),
    "misspelt prototype": Wrong(
        "rocksalt", "rock-salt", 4, "system.structure.prototype", "'rock-salt'", "did you mean 'rocksalt'"
    ),
    "misspelt choice": Wrong(
        "stability, ", "stability, ensemble: ntp, ", 19, "validate[1].ensemble", "'ntp'", "did you mean 'npt'"
    ),
    "no such calculator": Wrong(
        "engine: lammps", "engine: ase, calculator: etm", 15, "label.calculator", "'etm'", "did you mean 'emt'"
    ),
    # Not in this version
    "learn without dynamics": Wrong("select:", "learn: {rounds: 2}\nselect:", 14, "learn.md", "nothing", "add 'md:"),
    "learn from the model": Wrong(
        "{engine: lammps}",
        "{engine: pool}\nlearn: {md: {temperature: 9, time: 1}}",
        15,
        "label.engine",
        "pool",
        "lammps",
    ),
    "learn from one model": Wrong(
        ", members: 2}",
        "}\nlearn: {md: {temperature: 9, time: 1}}",
        17,
        "learn",
        "members: 1",
        "write 'members: 2'",
    ),
    "a stream that there is not": Wrong(
        "rnd_stream, size: 32}\nlabel: {engine: lammps}",
        "fps, size: 32}\nlabel: {engine: lammps}\nlearn: {novelty: rnd_stream, md: {temperature: 9, time: 1}}",
        16,
        "learn.novelty",
        "select.method: fps",
        "write 'novelty: rnd'",
    ),
    "a stream that was distilled": Wrong(
        "label: {engine: lammps}",
        "distill: {method: uq}\nlabel: {engine: lammps}\nlearn: {novelty: rnd_stream, md: {temperature: 9, time: 1}}",
        17,
        "learn.novelty",
        "distill",
        "write 'novelty: rnd'",
    ),
    "length of what does not go on": Wrong(
        "train: {model: schnet, members: 2}",
        "train: {model: schnet, members: 2}\nlearn: {warm_start: false, epochs: 9, md: {temperature: 9, time: 1}}",
        17,
        "learn.epochs",
        "9",
        "remove it, or 'warm_start: false'",
    ),
    "two lengths of what goes on": Wrong(
        "train: {model: schnet, members: 2}",
        "train: {model: schnet, members: 2}\nlearn: {steps: 99, epochs: 9, md: {temperature: 9, time: 1}}",
        17,
        "learn.steps",
        "99",
        "remove one of them",
    ),
    "guard of nve": Wrong(
        "time: 5}", "time: 5, guards: {energy: 0.1}}", 19, "validate[1].guards.energy", "0.1", "remove it"
    ),
    "guard that is none": Wrong(
        "time: 5}", "time: 5, guards: {volumes: 2}}", 19, "validate[1].guards.volumes", "2", "'volume'"
    ),
    "a run with two guards": Wrong(
        "time: 5}",
        "time: 5, guards: {volume: 3}}\n  - {method: stability, temperature: 1400, time: 5}",
        20,
        "validate[2].method",
        "the usual ones",
        "the same guards in both",
    ),
    "method of later": Wrong(
        "method: rnd_stream", "method: uq", 14, "select.method", "'uq'", "not available in campaign"
    ),
    # Labels
    "cp2k without a template": Wrong(
        "engine: lammps", "engine: cp2k", 15, "label.template", "nothing", "add 'template: cp2k/nacl_pbe.inp'"
    ),
    "template that is not there": Wrong(
        "engine: lammps",
        "engine: cp2k, template: my.inp",
        15,
        "label.template",
        "'my.inp'",
        "that folder holds salt.inp",
    ),
    "unknown rung": Wrong(
        "engine: lammps",
        "engine: cp2k, template: salt.inp, ladder: [template, more_step]",
        15,
        "label.ladder[1]",
        "'more_step'",
        "did you mean 'more_steps'?",
    ),
    "rung that is a number": Wrong(
        "engine: lammps",
        "engine: cp2k, template: salt.inp, ladder: [3]",
        15,
        "label.ladder[0]",
        "3",
        "SCF/MAX_SCF: 200",
    ),
    "no rung": Wrong(
        "engine: lammps", "engine: cp2k, template: salt.inp, ladder: []", 15, "label.ladder", "[]", "least 1"
    ),
    "restart that is text": Wrong(
        "engine: lammps",
        "engine: cp2k, template: salt.inp, ladder: [{SCF/MAX_SCF: 9, restart: always}]",
        15,
        "label.ladder[0]",
        "always",
        "true or false",
    ),
    "no time": Wrong(
        "engine: lammps", "engine: cp2k, template: salt.inp, timeout: 0", 15, "label.timeout", "0", "greater than 0"
    ),
    "half a rank": Wrong(
        "engine: lammps", "engine: cp2k, template: salt.inp, ranks: 0.5", 15, "label.ranks", "0.5", "without a fraction"
    ),
    "cache outside": Wrong(
        "engine: lammps", "engine: lammps, cache: ../shared", 15, "label.cache", "'../shared'", "the absolute path"
    ),
    "cache that is a file": Wrong(
        "engine: lammps",
        "engine: lammps, cache: potentials/nacl.lmp",
        15,
        "label.cache",
        "'potentials/nacl.lmp'",
        "a folder",
    ),
    "parameter that is not finite": Wrong(
        "engine: lammps",
        "engine: ase, calculator: lj, parameters: {rc: {b: .inf}}",
        15,
        "label.parameters.rc.b",
        ".inf",
        "write a finite number",
    ),
    "parameter that names a file to write": Wrong(
        "engine: lammps",
        "engine: ase, calculator: gpaw, parameters: {mode: lcao, txt: /home/me/.bashrc}",
        15,
        "label.parameters.txt",
        "'/home/me/.bashrc'",
        "write one of mode",
    ),
    "parameter of every calculator of ASE": Wrong(
        "engine: lammps",
        "engine: ase, calculator: emt, ladder: [{restart: /etc/x}]",
        15,
        "label.ladder[0].restart",
        "'/etc/x'",
        "asap_cutoff",
    ),
    "parameter that is a path": Wrong(
        "engine: lammps",
        "engine: ase, calculator: gpaw, parameters: {setups: {Na: ../../x}}",
        15,
        "label.parameters.setups",
        "'../../x'",
        "without '/'",
    ),
    "misspelt parameter": Wrong(
        "engine: lammps",
        "engine: ase, calculator: lj, parameters: {sgima: 3.4}",
        15,
        "label.parameters.sgima",
        "3.4",
        "did you mean 'sigma'",
    ),
    "calculator that is not installed": Wrong(
        "engine: lammps", "engine: ase, calculator: gpaw", 15, "label.calculator", "gpaw", "'campaign[gpaw]'"
    ),
    # Types
    "text for number": Wrong("walkers: 8", "walkers: many", 9, "sample[0].walkers", "'many'", "write a whole number"),
    "quoted number": Wrong("walkers: 8", 'walkers: "8"', 9, "sample[0].walkers", "'8'", "remove the quotes"),
    "bool for number": Wrong("walkers: 8", "walkers: true", 9, "sample[0].walkers", "true", "write a whole number"),
    "fraction for integer": Wrong("walkers: 8", "walkers: 8.5", 9, "sample[0].walkers", "8.5", "without a fraction"),
    "list for number": Wrong("walkers: 8", "walkers: [8]", 9, "sample[0].walkers", "[8]", "write a whole number"),
    "nothing for number": Wrong("walkers: 8", "walkers:", 9, "sample[0].walkers", "nothing", "remove the key"),
    "list for mapping": Wrong("{engine: lammps}", "[lammps]", 15, "label", "['lammps']", "{engine:"),
    "mapping for list": Wrong("elements: [Na, Cl]", "elements: NaCl", 4, "system.structure.elements", "'NaCl'", "[ ]"),
    "huge integer": Wrong("seed: 1", "seed: 99999999999999999999", 2, "seed", "99999999999999999999", "at most"),
    # Ranges
    "negative steps": Wrong("steps: 20000", "steps: -20000", 10, "sample[0].steps", "-20000", "at least 1"),
    "no walkers": Wrong("walkers: 8", "walkers: 0", 9, "sample[0].walkers", "0", "at least 1"),
    "negative seed": Wrong("seed: 1", "seed: -1", 2, "seed", "-1", "at least 0"),
    "zero lattice constant": Wrong("a: 5.64", "a: 0", 4, "system.structure.a", "0", "greater than 0"),
    "long time step": Wrong("every: 100", "timestep: 2", 11, "sample[0].timestep", "2", "at most 0.02"),
    "negative temperature": Wrong("[1100, 1700]", "-5", 8, "sample[0].temperature", "-5", "write one temperature in K"),
    "three temperatures": Wrong("[1100, 1700]", "[1, 2, 3]", 8, "sample[0].temperature", "[1, 2, 3]", "[1100, 1700]"),
    "share above one": Wrong("seed: 1", "max_failed: 20", 2, "max_failed", "20", "at most 1"),
    "short supercell": Wrong("[2, 2, 2]", "[2, 2]", 4, "system.structure.supercell", "[2, 2]", "add what is missing"),
    "long supercell": Wrong("[2, 2, 2]", "[2, 2, 2, 2]", 4, "system.structure.supercell", "[2, 2, 2, 2]", "at most 3"),
    # Between keys
    "steps not a multiple": Wrong("steps: 20000", "steps: 20030", 10, "sample[0].steps", "20030", "write 20000"),
    "one element of two": Wrong("[Na, Cl]", "[Na]", 4, "system.structure.elements", "['Na']", "write 2"),
    "c of a cubic cell": Wrong("a: 5.64", "a: 5.64, c: 6", 4, "system.structure.c", "6", "remove it"),
    "stage without label": Wrong("label: {engine: lammps}\n", "", 15, "train", "no 'label'", "add a section 'label'"),
    "rdf without stability": Wrong(
        "  - {method: stability, temperature: 1400, time: 5}\n",
        "",
        19,
        "validate[1].method",
        "no 'stability'",
        "before it",
    ),
    "selection larger than pool": Wrong("size: 32", "size: 3200", 18, "validate[0].held_out", "200", "select fewer"),
    "size zero": Wrong("size: 32", "size: 0", 14, "select.size", "0", "at least 1"),
    "one bound": Wrong("size: 32", "size: 32, energy: [-3]", 14, "select.energy", "[-3]", "the lower and the upper"),
    "bounds turned": Wrong("size: 32", "size: 32, volume: [9, 5]", 14, "select.volume", "[9, 5]", "the lower and"),
    "no force at all": Wrong("size: 32", "size: 32, max_force: 0", 14, "select.max_force", "0", "greater than 0"),
    "no descriptor": Wrong(
        "method: rnd_stream, size: 32",
        "method: force, size: 32, representation: {model: schnet}",
        14,
        "select.representation",
        "schnet",
        "the keys here are method, min_distance, max_force, energy, volume, size",
    ),
    "one bin": Wrong("method: rnd_stream,", "method: grid, bins: [1, 9],", 14, "select.bins[0]", "1", "at least 2"),
    "no such environments": Wrong(
        "method: rnd_stream,",
        "method: rematch, environments: {pooling: mean},",
        14,
        "select.environments.pooling",
        "mean",
        "the keys here are cutoff, n_max, l_max, sigma",
    ),
    "held out more than pool": Wrong(
        "held_out: 200", "held_out: 2000", 18, "validate[0].held_out", "2000", "held_out: 1568"
    ),
    "delta of another loss": Wrong(
        "members: 2", "loss: {kind: l4, delta: 0.2}", 16, "train.loss.delta", "0.2", "write 'kind: huber'"
    ),
    "patience as long as training": Wrong(
        "members: 2", "epochs: 20, patience: 20", 16, "train.patience", "20", "write less than 20"
    ),
    "patience as long as training by default": Wrong(
        "members: 2", "patience: 200", 16, "train.patience", "200", "write less than 200"
    ),
    "more processes than frames in a step": Wrong(
        "members: 2", "batch: 4, processes: 8", 16, "train.processes", "8", "write batch: 8 or more, or processes: 4"
    ),
    "more processes than frames in a step by default": Wrong(
        "members: 2", "processes: 2", 16, "train.processes", "2", "write batch: 2 or more, or processes: 1"
    ),
    "together in several processes": Wrong(
        "members: 2", "batch: 2, processes: 2, together: true", 16, "train.together", "true", "or 'processes'"
    ),
    "together for ANI": Wrong(
        "schnet, members: 2", "ani, members: 2, together: true", 16, "train.together", "true", "remove it"
    ),
    "together that is no switch": Wrong("members: 2", "together: gpu", 16, "train.together", "'gpu'", "true or false"),
    "length of a training given twice": Wrong(
        "label: {engine: lammps}",
        "label: {engine: pool}\ndistill: {method: uq, epochs: 3, steps: 900}",
        16,
        "distill.steps",
        "900",
        "remove one of them",
    ),
    "all weights zero, another kind": Wrong(
        "members: 2", "loss: {kind: l4, energy: 0, forces: 0, stress: 0}", 16, "train.loss", "kind", "weight above 0"
    ),
    "all weights zero": Wrong(
        "members: 2", "loss: {energy: 0, forces: 0, stress: 0}", 16, "train.loss", "{energy: 0", "weight above 0"
    ),
    # Physics and files
    "lattice constant of a galaxy": Wrong(
        "a: 5.64", "a: 5.7e102", 4, "system.structure.a", "5.7e+102", "write Å between"
    ),
    "no such element": Wrong("[Na, Cl]", "[Na, CL]", 4, "system.structure.elements[1]", "'CL'", "'Cl'"),
    "element not in potential": Wrong(
        "[Na, Cl]", "[K, Cl]", 5, "system.potential.lammps", "'potentials/nacl.lmp'", "with K in it"
    ),
    "missing file": Wrong("nacl.lmp", "nacl2.lmp", 5, "system.potential.lammps", "'potentials/nacl2.lmp'", "nacl.lmp"),
    "folder for file": Wrong(
        "potentials/nacl.lmp", "potentials", 5, "system.potential.lammps", "'potentials'", "path of a file"
    ),
    "path escape": Wrong(
        "potentials/nacl.lmp", "../secret.lmp", 5, "system.potential.lammps", "'../secret.lmp'", "copy the file"
    ),
    "absolute path": Wrong(
        "potentials/nacl.lmp", "/etc/passwd", 5, "system.potential.lammps", "'/etc/passwd'", "copy the file"
    ),
    "link out": Wrong("potentials/nacl.lmp", "link.lmp", 5, "system.potential.lammps", "'link.lmp'", "copy the file"),
    "name of the run's own file": Wrong(
        "potentials/nacl.lmp", "./Driver.lock", 5, "system.potential.lammps", "'./Driver.lock'", "rename Driver.lock"
    ),
    "name in the run's own folder": Wrong(
        "potentials/nacl.lmp", "x/../tasks/a", 5, "system.potential.lammps", "'x/../tasks/a'", "the folder tasks, or"
    ),
    "model in the run's own folder": Wrong(
        "method: npt", "method: md\n    model: models/a.pt", 8, "sample[0].model", "'models/a.pt'", "the folder models"
    ),
    "table of the run's own name": Wrong(
        "potentials/nacl.lmp", "own.lmp", 5, "system.potential.lammps", "'ledger.jsonl'", "rename ledger.jsonl"
    ),
    "data of a template of the run's own name": Wrong(
        "{engine: lammps}", "{engine: cp2k, template: own.cp2k}", 15, "label.template", "'Logs'", "rename Logs"
    ),
    "comment in a rung": Wrong(
        "engine: lammps",
        "engine: cp2k, template: salt.inp, ladder: [{SCF/MAX_SCF: 200 !x}]",
        15,
        "label.ladder[0]",
        "200 !x",
        "remove ! # @ & $",
    ),
    "line break in a section of a rung": Wrong(
        "engine: lammps",
        r'engine: cp2k, template: salt.inp, ladder: [{SCF/OT: {"A\n@INCLUDE x": T}}]',
        15,
        "label.ladder[0]",
        "INCLUDE",
        "what does not print",
    ),
    "headless potential": Wrong(
        "nacl.lmp", "bare.lmp", 5, "system.potential.lammps", "'bare.lmp'", "# elements: Na Cl"
    ),
    "foreign units": Wrong("nacl.lmp", "real.lmp", 5, "system.potential.lammps", "'units real'", "units metal"),
    "no cell in structure": Wrong(
        "{prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}",
        "{file: gas.xyz}",
        4,
        "system.structure.file",
        "'gas.xyz'",
        "Lattice=",
    ),
    "damaged structure": Wrong(
        "{prototype: rocksalt, elements: [Na, Cl], a: 5.64, supercell: [2, 2, 2]}",
        "{file: bad.xyz}",
        4,
        "system.structure.file",
        "'bad.xyz'",
        "check that ASE reads it",
    ),
    "no path at all": Wrong("potentials/nacl.lmp", "''", 5, "system.potential.lammps", "''", "write it (file"),
    # YAML
    "duplicate key": Wrong("seed: 1", "seed: 1\nseed: 2", 3, "seed", "here and on line 2", "keep one"),
    "tag": Wrong("seed: 1", "seed: !!python/name:os.system 1", 2, "seed", "python/name:os.system", "remove the tag"),
    "anchor": Wrong("seed: 1", "seed: &a 1", 2, "seed", "&a", "write the value out"),
    "alias": Wrong("seed: 1", "seed: *a", 2, "seed", "*a", "write the value out"),
    "nan": Wrong("a: 5.64", "a: .nan", 4, "system.structure.a", ".nan", "finite"),
    "bare nan": Wrong("a: 5.64", "a: nan", 4, "system.structure.a", "nan", "finite"),
    "infinity": Wrong("steps: 20000", "steps: .inf", 10, "sample[0].steps", ".inf", "finite"),
    "overflow": Wrong("a: 5.64", "a: 1e999", 4, "system.structure.a", "1e999", "finite"),
    "tab": Wrong("    walkers: 8", "\twalkers: 8", 9, "YAML", "walkers: 8", "indent with spaces"),
    "unclosed bracket": Wrong("[1100, 1700]", "[1100, 1700", 9, "YAML", "walkers: 8", "brackets"),
    "control character": Wrong("nacl-rnd", '"a\\0b"', 1, "campaign", "\\x00", "remove it"),
    "second document": Wrong("train:", "---\ntrain:", 16, "YAML", "'---'", "one document"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "potentials").mkdir(parents=True)
    (inside / "potentials/nacl.lmp").write_text(POTENTIAL)
    (inside / "potentials/bare.lmp").write_text("pair_style lj/cut 8\n")
    (inside / "potentials/real.lmp").write_text("# elements: Na Cl\nunits real\npair_style lj/cut 8\n")
    (inside / "salt.inp").write_text(TEMPLATE)
    (inside / "own.lmp").write_text(f"{POTENTIAL}pair_coeff * * ledger.jsonl Na Cl\n")
    (inside / "ledger.jsonl").write_text("a table\n")
    (inside / "own.cp2k").write_text(TEMPLATE.replace("&DFT", "&DFT\n    BASIS_SET_FILE_NAME Logs"))
    (inside / "Logs").write_text("Na SZV\n 1\nCl SZV\n 1\n")
    (inside / "BASIS_SET").write_text("Na SZV\n 1\nCl SZV\n 1\n")
    (inside / "POTENTIAL").write_text("Na PBE\n 1\nCl PBE\n 1\n")
    (inside / "gas.xyz").write_text("2\n\nNa 0 0 0\nCl 0 0 2\n")
    (inside / "bad.xyz").write_text("2\n\nNa 0 zero 0\n")
    (tmp_path / "secret.lmp").write_text(POTENTIAL)
    (inside / "link.lmp").symlink_to(tmp_path / "secret.lmp")
    return inside


def problems_of(folder: Path, text: str | bytes) -> list[str]:
    """Return the problems of a file with this text, without the file's name."""
    path = folder / "campaign.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_campaign(path)
    assert all(p.startswith(f"{path}:") for p in caught.value.problems)
    assert all("\n" not in p for p in caught.value.problems)
    return [p.removeprefix(f"{path}:") for p in caught.value.problems]


def test_the_good_file_is_good(folder: Path) -> None:
    path = folder / "campaign.yaml"
    path.write_text(GOOD)
    loaded = load_campaign(path)
    assert loaded.spec.stages == ("sample", "select", "label", "train", "validate")
    assert loaded.files == {"potentials/nacl.lmp": (folder / "potentials/nacl.lmp").resolve()}
    assert loaded.lines["sample[0].prepare[0].time"] == 13
    assert loaded.folder == folder


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_wrong_thing(folder: Path, case: Wrong) -> None:
    assert GOOD.count(case.old) >= 1
    problems = problems_of(folder, GOOD.replace(case.old, case.new, 1))
    named = [p for p in problems if p.startswith(f"{case.line}: {case.key}: ")]
    assert len(named) == 1, problems
    got, _, remedy = named[0].partition(", got ")[2].rpartition("; ")
    assert got == case.got if case.got.replace(".", "").lstrip("-").isdigit() else case.got in got
    assert case.remedy in remedy or case.remedy in named[0]
    assert remedy


NOT_INSTALLED = {"parameter that names a file to write", "parameter that is a path"}  # which is said too
ALONE = set(CASES) - {"key written twice", "misspelt word method", "second document"} - NOT_INSTALLED


@pytest.mark.parametrize("name", sorted(ALONE))
def test_nothing_else_is_said(folder: Path, name: str) -> None:
    case = CASES[name]
    assert len(problems_of(folder, GOOD.replace(case.old, case.new, 1))) == 1


@pytest.mark.parametrize(
    ("text", "line", "key", "remedy"),
    [
        (b"", 1, "file", "template"),
        (b"# nothing but a comment\n", 1, "file", "template"),
        (b"- a\n- list\n", 1, "file", "key: value"),
        (b"just text\n", 1, "file", "key: value"),
        (b"campaign: a\nseed: \xff\n", 2, "file", "UTF-8"),
        (b"campaign: a\nseed: \x07\n", 2, "YAML", "remove it"),
        (b'campaign: "\\Uffffffff"\n', 1, "YAML", "write the character"),
        (b"a: " + b"[" * 100 + b"]" * 100, 1, "a[0]", "remove some brackets"),
        (b"[" * 100_000, 1, "[0]", "remove some brackets"),
        (b"a: 1\n" * 100_000, 1, "file", "right file"),
        (b"seed: " + b"9" * 5000, 1, "seed", "finite"),
        (b"? [a, b]\n: 1\n", 1, "YAML", "key: value"),
    ],
    ids=[
        "empty",
        "only a comment",
        "list",
        "text",
        "not UTF-8",
        "bell",
        "no character",
        "deep",
        "very deep",
        "large",
        "endless number",
        "list as key",
    ],
)
def test_wrong_text(folder: Path, text: bytes, line: int, key: str, remedy: str) -> None:
    problem = problems_of(folder, text)[0]
    assert problem.startswith(f"{line}: {key}")
    assert ", got " in problem
    assert remedy in problem


@pytest.mark.parametrize(("method", "package"), [("fps", "skmatter"), ("rematch", "dscribe")])
def test_a_selector_whose_package_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    monkeypatch.setattr("campaign.config.stage_checks.find_spec", lambda name: None if name == package else name)
    (problem,) = problems_of(folder, GOOD.replace("rnd_stream", method))
    assert problem == (
        f"14: select.method: this selector is done by {package}, which is not installed, got {method}; "
        "run pip install 'campaign[select]', or choose another method"
    )


def test_what_learning_needs_and_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = "learn: {novelty: rematch, md: {temperature: 9, time: 1}}\nvalidate:"
    stream = learn.replace("rematch", "rnd_stream")
    for good in (learn, stream):
        (folder / "good.yaml").write_text(GOOD.replace("validate:", good))
        assert load_campaign(folder / "good.yaml").spec.learn.warm_start is None
    monkeypatch.setattr("campaign.config.learning_checks.find_spec", lambda name: None)
    (problem,) = problems_of(folder, GOOD.replace("validate:", learn))
    assert problem.startswith("17: learn.novelty: REMatch distances are computed by dscribe, which is not installed")


def test_a_fit_goes_on_from_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("campaign.config.training_checks.find_spec", lambda name: name)
    text = GOOD.replace("schnet, members: 2}", "gap, members: 2}\nlearn: {KEYS, md: {temperature: 9, time: 1}}")
    (problem,) = problems_of(folder, text.replace("KEYS", "warm_start: true"))
    assert problem.startswith("17: learn.warm_start: a model of gap is fitted at once")
    assert "write 'model: schnet'" in problem
    (problem,) = problems_of(folder, text.replace("KEYS", "rate: 0.1"))
    assert problem.startswith("17: learn.rate: this is of members that go on")
    assert problem.endswith("; remove it")


def test_aliases_do_not_explode(folder: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert any("aliases are not read" in p for p in problems_of(folder, bomb))


def test_six_mistakes_are_six_messages_in_order(folder: Path) -> None:
    text = GOOD.replace("seed: 1", "sede: 1").replace("Na, Cl", "Na, CL").replace("nacl.lmp", "none.lmp")
    text = (
        text.replace("steps: 20000", "steps: 20030")
        .replace("rnd_stream", "rdn_stream")
        .replace("members: 2", "members: 0")
    )
    problems = problems_of(folder, text)
    assert [p.split(": ")[0:2] for p in problems] == [
        ["2", "sede"],
        ["4", "system.structure.elements[1]"],
        ["5", "system.potential.lammps"],
        ["10", "sample[0].steps"],
        ["14", "select.method"],
        ["16", "train.members"],
    ]


def test_no_word_of_the_validator_shows(folder: Path) -> None:
    text = "campaign: [a]\nseed: x\nsystem: 3\nsample: {}\nselect: []\nlabel: {engine: {}}\n"
    text += "train: {model: schnet, loss: 3}\n"
    said = " ".join(problems_of(folder, text)).lower()
    for word in ("pydantic", "tuple", "validation error", "discriminator", "input should", "tag ", "@", "none", "dict"):
        assert word not in said


def test_missing_files_and_folders_are_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match=f"^{path}:1: file: "):
            load_campaign(path)


def test_files_lie_in_the_campaigns_folder(folder: Path) -> None:
    path = folder / "campaign.yaml"
    for written in (
        "../secret.lmp",
        "link.lmp",
        str(folder.parent / "secret.lmp"),
        str(folder / "potentials/nacl.lmp"),
    ):
        path.write_text(GOOD.replace("potentials/nacl.lmp", written))
        with pytest.raises(InputError, match=r"a campaign's files must lie in its folder, got .*; copy the file"):
            load_campaign(path)


def test_needs_a_potential(folder: Path) -> None:
    text = GOOD.replace("  potential: {lammps: potentials/nacl.lmp}\n", "")
    problems = problems_of(folder, text)
    assert [p.split(": ")[1] for p in problems] == [
        "sample[0].method",
        "label.engine",
        "validate[1].method",
        "validate[2].method",
    ]
    assert all("potential: {lammps: FILE}" in p for p in problems)


# --- what a potential file may hold

#: A line -> a word of what is said about it.
REFUSED = {
    "shell touch pwned": "'shell' is not a command of a potential",
    "  shell touch pwned": "'shell' is not a command",
    "include other.lmp": "'include' is not a command",
    "python f here 'print(1)'": "'python' is not a command",
    "plugin load evil.so": "'plugin' is not a command",
    "print 'x' file out": "'print' is not a command",
    "write_data out": "'write_data' is not a command",
    "jump SELF": "'jump' is not a command",
    "if 1 then 'shell touch pwned'": "'if' is not a command",
    '"shell" touch pwned': "is not a command",
    "${a} touch pwned": "is not a command",
    "atom_style charge": "# atom_style: charge",
    "set atom 1 x 0.0": "types of atoms",
    "set group mobile charge 1": "types of atoms",
    "variable a python f": "kind of variable",
    "variable a getenv HOME": "kind of variable",
    "variable a file secret": "kind of variable",
    "variable a string x$a": "kind of variable",
    "variable a equal $(1+1)": "computed in a line",
    "pair_modify shift $(1)": "computed in a line",
    "pair_coeff 1 1 `id`": "back quote",
    "pair_coeff 1 1 &": "continued",
    "pair_style python 5.0": "runs code of its own",
    "pair_style hybrid lj/cut 8 'python/x' 5.0": "runs code of its own",
    "pair_style mliap model mliappy net.pt descriptor sna d": "runs code of its own",
    "pair_style kim Some_Model": "runs code of its own",
    "pair_style ${style} 5.0": "without variables",
    "pair_coeff * * /etc/passwd Na Cl": "must lie in its folder",
    "pair_coeff * * ../../secret.lmp Na Cl": "must lie in its folder",
    "pair_coeff * * '../../secret.lmp' Na Cl": "must lie in its folder",
    "pair_coeff * * out.table Na Cl": "must lie in its folder",  # a link
    "pair_coeff * * ${a}${a}/secret.lmp Na Cl": "a whole word",
    "variable a string ..": "must lie in its folder",
}


@pytest.mark.parametrize("name", ["nacl.lmp", "nacl", "nacl.txt"])
@pytest.mark.parametrize("line", REFUSED)
def test_a_potential_does_nothing_but_set_itself_up(folder: Path, line: str, name: str) -> None:
    from campaign.engines.lammps_potential import load_potential

    path = folder / "potentials" / name
    path.write_text(POTENTIAL + line + "\n")
    (folder / "potentials/out.table").symlink_to(folder.parent / "secret.lmp")
    (problem,) = problems_of(folder, GOOD.replace("nacl.lmp", name))
    assert problem.startswith("5: system.potential.lammps: ")
    assert f"(line 4 of {name})" in problem
    assert REFUSED[line] in problem
    with pytest.raises(InputError, match=f"^{path}:4: potential: "):
        load_potential(path)


def test_the_lines_of_a_potential_are_taken(folder: Path) -> None:
    lines = """
units metal
set type 1 charge 1.0     # /etc/passwd `id` $(1) are a comment
set group all charge 0
variable r equal 2 /4+v_b
variable a string nacl.table
variable b index 1.0 2.0
pair_style hybrid/overlay lj/cut 8 coul/long 8.0
pair_coeff * * ${a} Na Cl
pair_coeff 1 1 lj/cut 1.0 $r
pair_coeff * * sub/nacl.table "Na" Cl
kspace_style pppm 1.0e-5
neigh_modify one 4000
"""
    (folder / "potentials/nacl.lmp").write_text(POTENTIAL + lines)
    (folder / "campaign.yaml").write_text(GOOD)
    load_campaign(folder / "campaign.yaml")


def test_the_potentials_of_the_templates_are_taken() -> None:
    potentials = sorted((Path(__file__).parents[2] / "templates/potentials").glob("*.lmp"))
    assert potentials
    for path in potentials:
        read_potential_header(path)


MOMT = """\
campaign: ni
system:
  structure: {prototype: fcc, elements: [Na], a: 3.52, supercell: [2, 2, 2]}
  potential: {lammps: potentials/nacl.lmp}
sample:
  - method: momt
    temperature: 2000
    temperatures: [900, 3500]
    window: [-4.75, -4.05]
    order: fcc
    steps: 20000
"""


def test_a_good_momt_file_is_good(folder: Path) -> None:
    path = folder / "campaign.yaml"
    path.write_text(MOMT)
    assert load_campaign(path).spec.sample[0].method == "momt"


@pytest.mark.parametrize(
    ("old", "new", "start", "remedy"),
    [
        ("[900, 3500]", "[3500, 900]", "8: sample[0].temperatures: ", "write [900, 3500]"),
        ("[900, 3500]", "[900, 900]", "8: sample[0].temperatures: ", "write two, such as"),
        ("temperature: 2000", "temperature: 600", "7: sample[0].temperature: ", "write one near melting, such as 2200"),
        ("temperature: 2000", "temperature: [1, 2]", "7: sample[0].temperature: ", "write a number"),
        ("[-4.75, -4.05]", "[-4.05, -4.75]", "9: sample[0].window: ", "write auto, or two enthalpies"),
        ("[-4.75, -4.05]", "[-4.75]", "9: sample[0].window: ", "write auto, or two enthalpies"),
        ("[-4.75, -4.05]", "[-150, -130]", "9: sample[0].window: ", "per atom (not of the cell)"),
        ("[-4.75, -4.05]", "[-4.30, -4.299]", "9: sample[0].window: ", "write auto"),
        ("a: 3.52", "a: 35.2", "3: system.structure.a: ", "write Å between"),
        ("a: 3.52", "a: 0.5", "3: system.structure.a: ", "write Å between"),
        ("[-4.75, -4.05]", "wide", "9: sample[0].window: ", "write auto, or two enthalpies"),
        ("order: fcc", "order: bcc", "10: sample[0].order: ", "take 16 or 54 atoms, or write order: none"),
        ("order: fcc", "order: hcp", "10: sample[0].order: ", "start from it, or write order: none"),
        ("order: fcc", "order: fc", "10: sample[0].order: ", "did you mean 'fcc'"),
        ("[2, 2, 2]", "[2, 2, 4]", None, ""),  # the structure's own lattice fits whatever it is repeated
        ("steps: 20000", "steps: 20020", "11: sample[0].steps: ", "write 20000"),
        ("order: fcc", "order: fcc\n    learn: {until: 30000}", "11: sample[0].learn.until: ", "multiple of 25000"),
        ("order: fcc", "order: fcc\n    learn: {until: 25000}", "11: sample[0].learn.until: ", "write fewer"),
        ("order: fcc", "order: fcc\n    learn: {bins: [1, 20]}", "11: sample[0].learn.bins", "2"),
        ("order: fcc", "order: fcc\n    learn: {untill: 5}", "11: sample[0].learn.untill: ", "did you mean 'until'"),
    ],
)
def test_wrong_momt(folder: Path, old: str, new: str, start: str | None, remedy: str) -> None:
    text = MOMT.replace(old, new, 1)
    if start is None:
        (folder / "campaign.yaml").write_text(text)
        assert load_campaign(folder / "campaign.yaml")
        return
    problems = problems_of(folder, text)
    assert len(problems) == 1, problems
    assert problems[0].startswith(start)
    assert remedy in problems[0]


def test_an_order_that_does_not_fit_a_longer_cell(folder: Path) -> None:
    text = MOMT.replace("[2, 2, 2]", "[2, 2, 4]").replace("order: fcc", "order: bcc")
    (problem,) = problems_of(folder, text)
    assert problem.startswith("10: sample[0].order: bcc fits a cubic cell only")
