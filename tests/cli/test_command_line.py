"""Plain command lines are read as typer reads them, and whatever else is left to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from magmerge.cli import typer_program
from magmerge.cli.command_line import values_of
from magmerge.cli.options import options_of

PLAIN = (
    "merge --base b --expert e --expert f=0.8 --method ties --set density=0.2 out",
    "merge recipe.yaml out -y --json --threads=2 --memory 1GB --verbose",
    "merge out --expert a --energy 0.5 --samples 3 --sensitive list.txt --sensitive l2",
    "plan --expert a --trial",
    "calibrate m --base b --expert e --method wsc out",
    "evaluate m n --suite s.yaml --task a --task b",
    "clean",
    "clean here --yes",
    "methods --json",
    "report folder --scores a.json --scores b.json",
    "inspect model",
    "demo",
)
ELSE = (
    "merge --help",
    "merge -h",
    "merge out --nothing",
    "merge --threads two out",
    "merge --threads",
    "merge --json=1 out",
    "merge -yv out",
    "merge -- out",
    "merge --base -x out",
    "merge --set -1 out",
    "calibrate out",
    "clean a b",
    "inspect",
)


def of_typer(verb: str, words: list[str]) -> dict[str, Any]:
    """What typer makes of the same words."""
    seen: list[Any] = []
    app = typer.Typer()
    app.command()(typer_program.typer_function(options_of(verb), seen.append, "Say it."))
    app(words, standalone_mode=False)
    return dict(seen[0])


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_line_is_read_as_by_typer(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magmerge.cli.options.check_models", lambda *_: None)
    verb, *words = line.split()
    values = values_of(options_of(verb), words)
    expected = of_typer(verb, words)
    assert values == expected
    assert list(map(type, values.values())) == list(map(type, expected.values()))


@pytest.mark.parametrize("line", ELSE)
def test_what_is_not_plain_is_left_to_typer(line: str) -> None:
    verb, *words = line.split()
    assert values_of(options_of(verb), words) is None


def test_a_verb_on_a_plain_line_imports_no_typer(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom magmerge.cli import main\n"
        f"sys.argv = ['magmerge', 'clean', {str(tmp_path)!r}]\nmain()\n"
        "print('typer' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("False\n")
