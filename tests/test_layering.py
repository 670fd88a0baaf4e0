"""The house's rules, read from the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "magmerge"
FILES = sorted(SOURCE.rglob("*.py"))
PURE = {
    "core.errors",
    "core.fused",
    "core.journal",
    "core.lazy",
    "core.parameters",
    "core.registry",
    "core.traits",
    "core.types",
    "linalg",
    "methods",
    "calibrators",
}
LIGHT = {"jaxtyping", "annotated_types", "typing_extensions", "torch"}
STANDARD = {"__future__", "collections", "dataclasses", "math", "threading", "typing"}


def imports(file: Path) -> set[str]:
    """Absolute module names that a file imports; those of magmerge less their first part."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            found.add(node.module)
            if node.module == "magmerge":
                found |= {f"magmerge.{alias.name}" for alias in node.names}
    return found


def modules(file: Path) -> set[str]:
    """The modules of magmerge that a file imports from."""
    return {name for name in imports(file) if name.startswith("magmerge.")}


def room(name: str) -> list[Path]:
    return sorted((SOURCE / name).glob("*.py"))


@pytest.mark.parametrize("file", [*room("methods"), *room("calibrators")], ids=lambda f: f.name)
def test_the_mathematics_imports_only_mathematics(file: Path) -> None:
    allowed = tuple(f"magmerge.{name}" for name in PURE)
    assert all(name.startswith(allowed) for name in modules(file) - {"magmerge.core"})
    foreign = {name.split(".")[0] for name in imports(file)} - {"magmerge"}
    assert foreign <= LIGHT | STANDARD


@pytest.mark.parametrize("name", ["engine/layer", "linalg/draws", "engine/plan", "engine/stages"])
def test_the_middle_opens_no_files_and_draws_no_screens(name: str) -> None:
    foreign = {module.split(".")[0] for module in imports(SOURCE / f"{name}.py")}
    assert not foreign & {"os", "shutil", "rich", "typer", "safetensors", "transformers"}


@pytest.mark.parametrize("file", room("engine/executors"), ids=lambda f: f.name)
def test_executors_know_no_mathematics(file: Path) -> None:
    """Of magmerge nothing but how many threads there are, and whether torch has any."""
    assert modules(file) <= {"magmerge.core.lazy", "magmerge.core.machine"}


TABLES = (
    "table",
    "tables",
    "report",
    "plan",
    "result",
    "job",
    "demonstration",
    "reproduction",
    "estimate",
)
"""Modules of other rooms that the command line may name: what is printed, and its types."""


@pytest.mark.parametrize("file", room("cli"), ids=lambda f: f.name)
def test_the_command_line_calls_only_the_front_door(file: Path) -> None:
    foreign = {
        name for name in modules(file) if name.split(".")[1] not in ("cli", "report", "core")
    }
    assert all(name.rpartition(".")[2].rpartition("_")[2] in TABLES for name in foreign), foreign


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_files_are_short_and_typed(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 320
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{file.name}: {node.name} has no return type"
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 45, f"{file.name}: {node.name} has {length} lines"


def test_no_room_for_odds_and_ends() -> None:
    forbidden = {"utils", "helpers", "manager", "misc", "common"}
    assert not [file for file in FILES if file.stem in forbidden]
