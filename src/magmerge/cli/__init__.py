"""The command line: one file for each verb. Importing it does not import torch."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import typer

from magmerge.cli import options
from magmerge.cli.output import print_error, print_stopped, print_warning
from magmerge.core.errors import MagmergeError, MagmergeWarning, ParameterError
from magmerge.core.version import __version__
from magmerge.kernels.library_report import library_lines

VERBS = (
    *("merge", "calibrate", "plan", "convert", "extract", "inspect", "diff", "verify", "export"),
    *(
        "push",
        "sensitivity",
        "statistics",
        "evaluate",
        "compare",
        "ablate",
        "suite",
        "tune",
        "reproduce",
        "methods",
        "report",
    ),
    *("card", "demo", "clean", "plot"),
)
"""In the order of the help."""


def program_with(verbs: Sequence[str]) -> typer.Typer:
    """The program with these verbs. Each costs the import of its file."""
    app = typer.Typer(
        name="magmerge",
        help="Merge fine-tuned neural networks, then calibrate the magnitude of the change.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_root,
    )
    for verb in verbs:
        home = import_module(f"magmerge.cli.{verb}")
        if hasattr(home, "app"):
            app.add_typer(home.app, name=verb)
        else:
            app.command(verb)(options.command(verb, home.command))
    return app


def _version(context: typer.Context, version: bool) -> None:
    if version:
        typer.echo(f"magmerge {__version__}")
        for line in library_lines() if context.params.get("verbose") else ():
            typer.echo(line)
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, help="Print the version and exit."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", is_eager=True, help="With --version: what merges run on, and why."
    ),
) -> None:
    """Options of the program itself."""


STRENGTHS = ("--strength", "--weight", "--scale", "--multiplier", "--lora-scale", "--lora-weight")
"""What people type for a LoRA's strength, which stands with its path."""


def _check_strengths(words: list[str]) -> None:
    """ParameterError, with the line to type, for a strength that is an option of its own."""
    pairs = [word.partition("=") for word in words]
    values = [
        value if equals else (words[place + 1] if place + 1 < len(words) else "0.8")
        for place, (option, equals, value) in enumerate(pairs)
        if option in STRENGTHS
    ]
    if not values or words[0] not in ("merge", "plan"):
        return
    experts = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--expert"] or ["E"]
    strengths = [*values, *values[-1:] * len(experts)]
    line = " ".join(
        f"--expert {own}={value}" for own, value in zip(experts, strengths, strict=False)
    )
    option = next(option for option, _, _ in pairs if option in STRENGTHS)
    raise ParameterError(
        f"there is no option {option}: a strength stands with its expert", remedy=f"write {line}"
    )


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a user's mistake, 2 wrong usage, 130 stopped."""
    as_json = "--json" in sys.argv
    warnings.showwarning = lambda message, category, *_: print_warning(message, category)
    warnings.simplefilter("always", MagmergeWarning)
    try:
        words = sys.argv[1:]
        _check_strengths(words)
        # The help, and what is said of a verb that there is not, speak of all.
        program_with([verb for verb in VERBS if verb in words[:1]] or VERBS)()
    except BaseException as error:
        if _interrupted(error):
            print_stopped(as_json=as_json)
            sys.exit(130)
        told = _error_of(error)
        if told is None:
            raise
        print_error(told, as_json=as_json)
        sys.exit(1)


def _error_of(error: BaseException) -> MagmergeError | None:
    """What is said of an error; None for the end of the program, and for a fault of its own."""
    if isinstance(error, MagmergeError):
        return error
    if isinstance(error, UnicodeError):
        return MagmergeError(f"a name cannot be written here: {error}")
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe (head, less) has gone: no more output, and no complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    if isinstance(error, OSError):
        return MagmergeError(f"the system refuses: {error.strerror}", source=error.filename)
    return None


def _interrupted(end: BaseException | None) -> bool:
    """Whether an error is what somebody made of Ctrl-C."""
    while end is not None and not isinstance(end, KeyboardInterrupt):
        end = end.__cause__ or (None if end.__suppress_context__ else end.__context__)
    return end is not None


def program() -> NoReturn:
    """The installed program: `main` in a process of its own.

    Taking the interpreter down piece by piece takes time and does nothing for anybody.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
