"""The house: its rooms in order, no circles, and the one path, counted."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "magmerge"
FLOORS = (
    ("core",),
    ("kernels",),
    ("linalg",),
    ("methods", "calibrators"),
    ("checkpoints",),
    ("data",),
    ("engine",),
    ("live", "report"),
    ("pipeline",),
    ("evaluation",),
    ("studies",),
    ("cli",),
)
"""From the ground up. A room imports only from those below it."""
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def module(file: Path) -> str:
    """A file's module, less the package's own name."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file) for file in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of magmerge that a tree imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("magmerge"):
            home = (node.module or "").partition("magmerge")[2].lstrip(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else home


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield module(file), node


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def test_every_module_has_a_room() -> None:
    assert {name.partition(".")[0] for name in MODULES} - {"", "__main__"} == set(HEIGHT)
    assert len(FLOORS) <= 12


@pytest.mark.parametrize("room", HEIGHT)
def test_no_arrow_points_up(room: str) -> None:
    up = [
        f"{module(file)} -> {name}"
        for file, tree in TREES.items()
        if module(file).partition(".")[0] == room
        for name in imported(tree)
        if name.partition(".")[0] not in (room, "")
        and HEIGHT[name.partition(".")[0]] >= HEIGHT[room]
    ]
    assert not up


def test_no_circle_among_files() -> None:
    """Whatever an import is for: types, a later call, a room's front."""
    arrows = {
        module(file): {name for name in imported(tree) if name != module(file)}
        for file, tree in TREES.items()
        if module(file)
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join((*trail, name))
        state[name] = 1
        for other in arrows.get(name, ()):
            visit(other, (*trail, name))
        state[name] = 2

    for name in arrows:
        visit(name, ())


CALLS = ("Staging", "lay_out", "cast_result", "check_distinct")


@pytest.mark.parametrize("name", CALLS)
def test_what_every_result_goes_through_is_called_in_one_place(name: str) -> None:
    """A suite's folder is no model: it is staged by its own room."""
    places = [
        f"{module(file)}:{node.lineno}"
        for file, tree in TREES.items()
        if module(file).partition(".")[0] in ("engine", "pipeline", "checkpoints", "live")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]
    assert len(places) == 1, places


def test_long_signatures_are_those_of_the_front_door() -> None:
    rooms = ("methods",)  # a method's parameters are its interface
    long = {
        f"{name}.{function.name}"
        for name, function in functions()
        if len(parameters(function)) > 7 and name.partition(".")[0] not in rooms
    }
    assert len(long) <= LONG, sorted(long)


LONG = 8
"""Functions of more than seven parameters, methods aside: 37 before there was one path."""
MACHINE = 11
"""Functions that take threads, memory, a device or progress by themselves: 101 before."""
IMPORTED = 96
"""Modules that a merge in memory imports: 173 before; 84 before kernels and digests came."""


def test_the_machine_is_handed_on_as_one_thing() -> None:
    own = {"threads", "memory", "device", "progress"}
    takers = [f"{name}.{f.name}" for name, f in functions() if own & set(parameters(f))]
    assert len(takers) <= MACHINE, sorted(takers)


def test_no_union_of_adapters_is_asked_for_outside_its_room() -> None:
    assert not [
        module(file)
        for file, tree in TREES.items()
        if "isinstance" in ast.unparse(tree)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "AdapterUnion" in ast.unparse(node)
        and ast.unparse(node.func) == "isinstance"
    ]


def test_a_merge_in_memory_imports_little() -> None:
    code = (
        "import sys, torch, magmerge\n"
        "base = {'a.weight': torch.randn(8, 8)}\n"
        "experts = [{'a.weight': base['a.weight'] + torch.randn(8, 8)} for _ in range(2)]\n"
        "magmerge.merge(base=base, experts=experts, method='average')\n"
        "print(len([name for name in sys.modules if name.startswith('magmerge')]))\n"
        "print(*[name for name in sys.modules if name.startswith('magmerge.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, names = done.stdout.splitlines()
    assert int(count) <= IMPORTED
    for foreign in ("live.", "report.", "data.", "evaluation", "studies", "methods.ties"):
        assert f"magmerge.{foreign}" not in names


def test_no_name_of_a_front_is_a_module_beside_it() -> None:
    """Python would give the module for the name, once that is loaded."""
    clashes = []
    for file, tree in TREES.items():
        if file.name == "__init__.py" and "__getattr__ = front" in file.read_text():
            names = ast.literal_eval(
                next(
                    node.value
                    for node in tree.body
                    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                )
            )
            clashes += [f"{module(file)}.{name}" for name in names
                        if f"{module(file)}.{name}" in MODULES]  # fmt: skip
    assert not clashes


def test_imports_are_at_the_top_but_for_torch_and_extras() -> None:
    inside = {
        f"{name}.{function.name}: {ast.unparse(node)}"
        for name, function in functions()
        if name.partition(".")[0] in ("core", "engine", "pipeline", "live", "data", "report")
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("magmerge")
    }
    assert not inside


def test_ties_is_understood_from_three_files() -> None:
    """Its own, and what stays and how it is combined."""
    own = set(imported(TREES[SOURCE / "methods" / "ties.py"]))
    read = {name for name in own if name.partition(".")[0] in ("methods", "linalg")}
    assert read == {"methods.combine", "methods.sparsify"}


OWN_TESTS = {"contracts", "faults", "front_door", "golden"}
"""What is tested through the front door, or of everything that is registered."""


def test_the_tests_mirror_the_rooms() -> None:
    folders = [path.parent for path in Path(__file__).parent.rglob("test_*.py")]
    rooms = {folder.relative_to(Path(__file__).parent) for folder in folders} - {Path()}
    assert not [
        str(room)
        for room in rooms
        if room.parts[0] not in OWN_TESTS and not (SOURCE / room).is_dir()
    ]
