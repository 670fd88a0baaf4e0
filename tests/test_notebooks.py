"""Every notebook runs from its first cell to its last, and what its cells end with can be shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import quick_ones

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = """
import ast, json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
space, shown = {"__name__": "__main__"}, 0
for cell in cells:
    if cell["cell_type"] != "code":
        continue
    assert not cell["outputs"], "notebooks are kept without outputs"
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        shown += value is not None and bool(getattr(value, "_repr_html_", lambda: str(value))())
print("shown", shown)
"""


@pytest.mark.parametrize(
    "notebook",
    quick_ones(sorted(EXAMPLES.glob("*.ipynb")), lambda path: path.stem == "first_merge"),
    ids=lambda path: path.stem,
)
def test_notebook_runs(notebook: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, notebook.name],
        cwd=EXAMPLES, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split("shown ")[-1]) >= 2


def test_there_are_three() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.ipynb")}
    assert json.dumps(sorted(names)) == '["compare_methods", "first_merge", "repair_a_merge"]'
