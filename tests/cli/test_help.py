"""The help of every verb, which is made from the table of options."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer

from magmerge.cli import VERBS as NAMES
from magmerge.cli import options, plot, typer_program
from magmerge.cli.options import Option
from tests.conftest import CommandLine

VERBS = {
    **{name: (name,) for name in NAMES if name != "plot"},
    **{f"plot {name}": ("plot", name) for name in plot.FIGURES},
}


@pytest.mark.parametrize("words", VERBS.values(), ids=list(VERBS))
def test_every_verb_has_help_with_its_own_words(
    magmerge_cli: CommandLine, words: tuple[str, ...]
) -> None:
    shown = magmerge_cli(*words, "--help")
    assert shown.code == 0
    assert f"magmerge {' '.join(words)} [OPTIONS]" in shown.out
    assert "--json" in shown.out


def test_the_help_of_every_verb_imports_no_torch() -> None:
    code = (
        "import sys\nfrom magmerge.cli import main\n"
        f"for words in {list(VERBS.values())}:\n"
        "    sys.argv = ['magmerge', *words, '--help']\n"
        "    try: main()\n    except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("False\n")


def test_a_command_is_called_with_its_options_by_name() -> None:
    seen: list[options.Options] = []

    words = Option("words", list[str], "Some.", [], "--word -w")
    verb = typer_program.typer_function([words, options.TABLE["threads"]], seen.append, "Say it.")
    small = typer.Typer()
    small.command()(verb)
    small(["-w", "a", "--word", "b"], standalone_mode=False)
    assert seen == [{"words": ["a", "b"], "threads": None}]
    assert list(inspect.signature(verb).parameters) == ["words", "threads"]
