"""How the text of options is read: settings, sources, numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from magmerge.core.errors import ParameterError
from magmerge.core.lazy import load

REGEX = re.compile(r"([^@=]+@/.+?/\s*)(=)(.*)", re.DOTALL)
PARTS_OF_DSC = ("wsc", "fsc")


class _Setting(NamedTuple):
    """One `--set`: a parameter, its owner if that is said, and the layers that the value is for."""

    text: str
    owner: str
    name: str
    filter: str | None
    value: Any


def parse_settings(
    settings: Sequence[str], calibrators: Sequence[str], own: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`--set` texts to the parameters of `own`, and to those of each calibrator by its name.

    A value is read as YAML: 0.2, true, sphere, [0.5, 0.5]. NAME@FILTER=VALUE is an item of a
    parameter that varies by layer; a plain NAME=VALUE is the last item, wherever it stands.
    """
    places: dict[tuple[str, str], list[_Setting]] = {}
    for text in settings:
        setting = _read(text)
        places.setdefault(_place(setting, calibrators, own), []).append(setting)
    params: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {name: {} for name in calibrators}
    for (owner, name), values in places.items():
        (params if owner == own else others[owner])[name] = _join(values)
    return params, others


def _read(text: str) -> _Setting:
    # A regular expression, between slashes, may hold any sign.
    regex = REGEX.match(text)
    key, equals, value = regex.groups() if regex else text.partition("=")
    key, at, layers = key.strip().partition("@")
    owner, _, name = key.rpartition(".")
    if not equals or not name:
        raise ParameterError(
            f"--set {text}: no value", remedy="write NAME=VALUE, like --set density=0.2"
        )
    if at and not layers:
        raise ParameterError(
            f"--set {text}: no filter", remedy="write NAME@FILTER=VALUE, like --set lambda@vae=0"
        )
    return _Setting(text, owner, name, layers or None, _value(text, value))


def _place(setting: _Setting, calibrators: Sequence[str], own: str) -> tuple[str, str]:
    """Whose parameter it is, and what that one calls it."""
    owner, name = setting.owner, setting.name
    if not owner or owner == own:
        return own, name
    if owner in calibrators:
        return owner, name
    if owner in PARTS_OF_DSC and "dsc" in (own, *calibrators):
        return "dsc", f"{owner}.{name}"
    raise ParameterError(
        f"--set {setting.text}: {owner} is neither the method nor a calibrator of this run",
        remedy=f"add --calibrate {owner}, or drop this setting",
    )


def _join(settings: Sequence[_Setting]) -> Any:
    """A parameter's value, or its items with the plain one last."""
    plain = [setting for setting in settings if setting.filter is None]
    items = [
        {"filter": setting.filter, "value": setting.value} for setting in settings if setting.filter
    ]
    if len(plain) > 1:
        raise ParameterError(
            f"--set {plain[1].text}: {plain[1].name} is given twice",
            remedy="give each parameter once",
        )
    if not items:
        return plain[0].value
    return [*items, *({"value": setting.value} for setting in plain)]


def _value(setting: str, text: str) -> Any:
    try:
        number = _number(text)
        return (
            yaml.load(text, load("magmerge.core.plain_yaml:PlainLoader"))
            if number is None
            else number
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"--set {setting}: the value cannot be read",
            remedy="write a number, a word, or a list like [0.5, 0.5]",
        ) from error


def _number(text: str) -> float | None:
    """A number as people write it: YAML wants 1.0e-3 for 1e-3."""
    try:
        return float(text) if "e" in text.lower() and not text.strip().isalpha() else None
    except ValueError:
        return None


def choices(texts: Sequence[str]) -> Any:
    """`--weights` texts: one word for all models, or one by each name; None without any."""
    named = dict(text.rpartition("=")[::2] for text in texts)
    if len(named) != len(texts) or ("" in named and len(named) > 1):
        raise ParameterError(
            f"--weights {' --weights '.join(texts)}: two of them speak of one model",
            remedy="write --weights ema for all models, or --weights NAME=ema for each",
        )
    return named.get("", named or None)


def sources_by_expert(texts: Sequence[str], option: str = "--data") -> Any:
    """Sources by expert, or the only one for all; None if none is given."""
    named: dict[str, str] = {}
    shared = []
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            shared.append(text)
            continue
        if not name or not source:
            raise ParameterError(f"{option} {text}", remedy="write NAME=SOURCE, or SOURCE for all")
        if name in named:
            raise ParameterError(
                f"{option} {name}= is given twice", remedy="give each expert one source"
            )
        named[name] = source
    if len(shared) > 1 or (shared and named):
        raise ParameterError(
            f"{option} {shared[0]} names no expert",
            remedy=f"write {option} NAME=SOURCE for each expert, or one {option} SOURCE for all",
        )
    return shared[0] if shared else named or None


def renames(texts: Sequence[str]) -> dict[str, str]:
    """Old names with new ones; ParameterError for what is no such pair, or is given twice."""
    named: dict[str, str] = {}
    for text in texts:
        old, _, new = text.partition("=")
        if not old or not new:
            raise ParameterError(f"--rename {text}", remedy="write OLD=NEW: 'encoder.*=model.*'")
        if old in named:
            raise ParameterError(f"--rename {old}= is given twice", remedy="give each name once")
        named[old] = new
    return named


TEXTS = (".jinja", ".jinja2", ".j2", ".txt")
"""How the names of files of text end."""


def text_or_file(text: str | None) -> str | None:
    """The text, or that of the file of this name; ParameterError where it cannot be read."""
    if text is not None and text.endswith(TEXTS) and not os.path.isfile(text):
        raise ParameterError("no such file", source=text, remedy="check the path of the text")
    if text is None or not os.path.isfile(text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"cannot be read: {error}", source=text, remedy="give a file of text, in UTF-8"
        ) from error


def numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """Numbers between commas; ParameterError for what is none."""
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values:
        raise ParameterError(f"{option} {text}: no numbers", remedy=f"write {option} {example}")
    return values


def names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
