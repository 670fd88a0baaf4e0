"""The program as typer knows it: its help, and what is said of a command line that is not plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from magmerge.cli.options import ModelText, Option, Options, bound, options_of, words_of
from magmerge.core.version import __version__
from magmerge.kernels.library_report import library_lines


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
        if hasattr(home, "FIGURES"):
            app.add_typer(group(verb, home.HELP, home.FIGURES), name=verb)
        else:
            app.command(verb)(command(verb, home.command))
    return app


def group(name: str, words: str, verbs: dict[str, Callable[[Options], None]]) -> typer.Typer:
    """A verb of several verbs, such as plot."""
    app = typer.Typer(
        help=words,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for own, verb in verbs.items():
        app.command(own)(command(f"{name} {own}", verb))
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


def command(name: str, verb: Callable[[Options], None]) -> Callable[..., None]:
    """A function of one mapping as the verb of this name, which typer can read."""
    return typer_function(options_of(name), verb, words_of(name))


def typer_function(
    options: Sequence[Option], verb: Callable[[Options], None], words: str
) -> Callable[..., None]:
    """A function of one mapping as a verb with these options, in the order of its help."""
    call = bound(options, verb)

    def function(**values: Any) -> None:
        call(values)

    function.__doc__ = words
    parameters = [_parameter(option) for option in options]
    function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return function


def _parameter(option: Option) -> Parameter:
    """The option as typer reads it from a function's signature."""
    info: Any = (
        typer.Argument(help=option.help)
        if option.argument
        else typer.Option(*option.spellings, help=option.help, rich_help_panel=option.panel)
    )
    kind = {ModelText: str, list[ModelText]: list[str]}.get(option.kind, option.kind)
    return Parameter(
        option.name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if option.default is ... else option.default,
        annotation=Annotated[kind | None if option.default is None else kind, info],
    )
