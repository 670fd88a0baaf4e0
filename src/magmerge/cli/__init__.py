"""The command line: one file for each verb. Importing it does not import torch."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from magmerge.cli import options
from magmerge.cli.command_line import values_of
from magmerge.cli.output import print_error, print_stopped, print_warning
from magmerge.core.errors import MagmergeError, MagmergeWarning, ParameterError, UsageError
from magmerge.core.lazy import load

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
        _run(words)
    except BaseException as error:
        if _interrupted(error):
            print_stopped(as_json=as_json)
            sys.exit(130)
        told = _error_of(error)
        if told is None:
            raise
        print_error(told, as_json=as_json)
        sys.exit(2 if isinstance(told, UsageError) else 1)


def _run(words: list[str]) -> None:
    """The verb that `words` name; the help, and what is said of wrong usage, are typer's."""
    verbs = [verb for verb in VERBS if verb in words[:1]]
    home: Any = import_module(f"magmerge.cli.{verbs[0]}") if verbs else None
    if hasattr(home, "command"):
        declared = options.options_of(verbs[0])
        values = values_of(declared, words[1:])
        if values is not None:
            options.bound(declared, home.command)(values)
            return
    # The help, and what is said of a verb that there is not, speak of all; the version of none.
    spoken = verbs or (VERBS[:1] if words[:1] == ["--version"] else VERBS)
    load("magmerge.cli.typer_program:program_with")(spoken)()


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
