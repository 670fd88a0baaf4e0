"""Print the package's tree: rooms from the ground up, files with their docstrings' first lines.

.venv/bin/python -m scripts.package_tree         # as in docs/architecture.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "magmerge"
ROOMS = (
    "core", "kernels", "linalg", "methods", "calibrators", "checkpoints", "data", "engine", "live",
    "report", "pipeline", "evaluation", "studies", "cli",
)  # fmt: skip
"""From the ground up."""
WIDTH = 26


def tree() -> str:
    """A line for each room, folder and file: its name, and what it is for."""
    lines = ["src/magmerge/", f"  {'__init__.py':<{WIDTH - 2}}{_purpose(SOURCE / '__init__.py')}"]
    for room in ROOMS:
        lines += _folder(SOURCE / room, 1)
    return "\n".join(lines)


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", depth)
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            yield _line(file.name, file, depth + 1)
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        yield from _folder(inner, depth + 1)


def _line(name: str, file: Path, depth: int) -> str:
    indent = "  " * depth
    return f"{indent}{name:<{WIDTH - len(indent)}}{_purpose(file)}"


def _purpose(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    print(tree())
