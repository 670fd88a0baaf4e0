"""Print README's tree: every file of the package with the first line of its docstring.

.venv/bin/python -m scripts.readme_tree
"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "magmerge"
WIDTH = 26


def tree() -> str:
    """Folders after the files beside them, each line a name and what it is for."""
    lines = ["src/magmerge/"]
    for file in _files(SOURCE):
        lines.append(_line(file, 1))
    for folder in sorted(path for path in SOURCE.iterdir() if (path / "__init__.py").is_file()):
        lines.append(f"  {folder.name + '/':<{WIDTH - 2}}{_purpose(folder / '__init__.py')}")
        lines += [_line(file, 2) for file in _files(folder) if file.name != "__init__.py"]
    return "\n".join(lines)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


def _line(file: Path, depth: int) -> str:
    indent = "  " * depth
    return f"{indent}{file.name:<{WIDTH - len(indent)}}{_purpose(file)}"


def _purpose(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    print(tree())
