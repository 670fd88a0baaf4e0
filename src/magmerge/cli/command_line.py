"""A plain command line as the options of its verb, without the library that draws help."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magmerge.cli.options import ModelText, Option

NUMBERS = {int: re.compile(r"[+-]?[0-9]+"), float: re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")}

EXPANDED = frozenset("*?~$%")
"""What typer expands on Windows, where the shell does not."""


def values_of(options: Sequence[Option], words: Sequence[str]) -> dict[str, Any] | None:
    """The value of each option as `words` say, or its default.

    None where they are not plainly so: a word that no option has, a value that is missing or of
    another kind, a call for help. Typer reads the same words then, and says what is wrong.
    """
    if os.name == "nt" and any(EXPANDED & set(word) for word in words):
        return None
    flags = {flag: option for option in options if not option.argument for flag in option.spellings}
    texts: dict[str, list[str]] = {}
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            arguments.append(word)
            continue
        flag, equals, text = word.partition("=")
        option = flags.get(flag)
        if option is None or (equals and (option.kind is bool or not flag.startswith("--"))):
            return None
        if not equals:
            text = "" if option.kind is bool else next(rest, "-")
        if text.startswith("-"):
            return None
        texts.setdefault(option.name, []).append(text)
    for option in options:
        if option.argument and arguments:
            count = len(arguments) if _is_list(option) else 1
            texts[option.name], arguments = arguments[:count], arguments[count:]
    try:
        values = {option.name: _value(option, texts.get(option.name)) for option in options}
    except ValueError:
        return None
    return None if arguments else values


def _is_list(option: Option) -> bool:
    return option.kind in (list[str], list[Path], list[ModelText])


def _value(option: Option, texts: list[str] | None) -> Any:
    """ValueError for a text that is of another kind, or for none where one must be typed."""
    if texts is None:
        if option.default is ...:
            raise ValueError
        return list(option.default) if isinstance(option.default, list) else option.default
    if option.kind is bool:
        return True
    if option.kind in NUMBERS and not NUMBERS[option.kind].fullmatch(texts[-1]):
        raise ValueError
    if _is_list(option):
        return [Path(text) if option.kind == list[Path] else text for text in texts]
    return texts[-1] if option.kind is ModelText else option.kind(texts[-1])
