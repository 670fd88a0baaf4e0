"""Verbs and their options as options.yaml declares them, and the keywords that they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from magmerge.cli.settings import (
    choices,
    numbers,
    parse_settings,
    renames,
    sources_by_expert,
    text_or_file,
)
from magmerge.core.errors import ParameterError, no_such_model
from magmerge.core.lazy import load
from magmerge.core.model_strings import parse
from magmerge.core.strengths import split_name, split_strength

Options = Mapping[str, Any]
"""A verb's options by name, as they were typed or by default."""


@dataclass(frozen=True)
class Option:
    """An option of a verb, or an argument.

    `name` is its key in `Options`: the keyword that the front door knows it by. Without a `default`
    it must be typed; with None its type is `kind` or None. `flags` are what is typed, separated by
    spaces; without them they follow from the name.
    """

    name: str
    kind: Any
    help: str
    default: Any = ...
    flags: str = ""
    panel: str | None = None
    argument: bool = False

    @property
    def spellings(self) -> list[str]:
        """What is typed for it."""
        return self.flags.split() or [f"--{self.name.replace('_', '-')}"]


class ModelText(str):
    """What names a model: a path, or a name of the hub, as it was typed."""


KINDS = {
    **{"model": ModelText, "models": list[ModelText]},
    **{"text": str, "int": int, "float": float, "flag": bool, "path": Path},
    **{"texts": list[str], "paths": list[Path]},
}
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTENT = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), _READER)


def _read(name: str, entry: Mapping[str, Any], shared: Option | None = None) -> Option:
    """An option as the file declares it, in what it does not say as `shared` is."""
    changes = {key: value for key, value in entry.items() if key not in KINDS}
    for kind in entry.keys() & KINDS.keys():
        default = ... if entry[kind] == "required" else entry[kind]
        changes |= {"kind": KINDS[kind], "default": default}
        if kind == "path" and isinstance(default, str):
            changes["default"] = Path(default)
    return replace(shared, **changes) if shared else Option(name, **changes)


def _options(items: Iterable[Any]) -> Iterator[Option]:
    """A verb's options in their order."""
    for item in items:
        if isinstance(item, str):
            yield TABLE[item]
        elif isinstance(item, list):
            yield from _options(item)
        else:
            yield from (_read(name, entry, TABLE.get(name)) for name, entry in item.items())


TABLE = {
    name: _read(name, entry)
    for topic in _CONTENT["shared"].values()
    for name, entry in topic.items()
}
"""The options that verbs share, by name."""
PREPARATION: tuple[str, ...] = ("samples", *_CONTENT["shared"]["preparation"])
"""Options of how samples are drawn and prepared."""


def options_of(verb: str) -> list[Option]:
    """A verb's options, in the order of its help."""
    return list(_options(_CONTENT["verbs"][verb]["options"]))


def words_of(verb: str) -> str:
    """What the help says of a verb."""
    return str(_CONTENT["verbs"][verb]["help"])


def bound(options: Sequence[Option], verb: Callable[[Options], None]) -> Callable[[Options], None]:
    """The verb of one mapping, after a look at whether there is what its models and recipe name."""
    models = [option.name for option in options if option.kind in (ModelText, list[ModelText])]
    models.sort(key=lambda name: name != "base")
    recipes = [option.name for option in options if option.name == "recipe"]

    def call(values: Options) -> None:
        for name in models:
            check_models(name, values[name])
        for name in recipes:
            check_recipe(values[name])
        verb(values)

    return call


def check_models(name: str, value: str | list[str] | None) -> None:
    """CheckpointError for what names no model, before the libraries that read one are loaded."""
    for text in value if isinstance(value, list) else [value]:
        if text is not None:
            bare = split_strength(split_name(text)[1])[0] if name == "experts" else text
            parse(bare)


def check_recipe(path: Path | None) -> None:
    """The same of a recipe's file."""
    if path is not None and not os.path.lexists(path):
        raise no_such_model(path)


def without(options: Options, *names: str) -> dict[str, Any]:
    """The options but those of these names, and but `json` and `verbose`, which the verb reads."""
    return {k: value for k, value in options.items() if k not in {*names, "json", "verbose"}}


def merge_keywords(options: Options) -> dict[str, Any]:
    """What `magmerge.merge`, `plan` and `calibrate` take of the options of their verbs."""
    calibrators = options.get("calibrate", [])
    params, others = parse_settings(options["settings"], calibrators, options["method"])
    keywords = {
        **without(options, "settings", "no_bound", *PREPARATION),
        "bound": _bound(options),
        "params": params,
        "sensitive": options["sensitive"] or (),
        "rename": renames(options["rename"]),
        "weights": choices(options["weights"]),
        "data": sources_by_expert(options["data"]),
        "statistics": sources_by_expert(options.get("statistics", []), "--statistics"),
        "samples": sample_keywords(options),
    }
    keywords["experts"] = experts_of(options)
    if "chat_template" in options:
        keywords["chat_template"] = text_or_file(options["chat_template"])
    if "calibrate" in options:
        keywords["calibrate"] = [{"method": name, "params": others[name]} for name in calibrators]
    return keywords


def _bound(options: Options) -> Any:
    """The greatest factor, or off; ParameterError where both are typed."""
    bound, off = options["bound"], options["no_bound"]
    if off and bound != TABLE["bound"].default:
        raise ParameterError("--bound and --no-bound are both given", remedy="drop one of them")
    return "off" if off else bound


def experts_of(options: Options) -> Any:
    """The experts as they were typed, by their names where any has one."""
    experts = options["experts"]
    if not any(split_name(str(path))[0] for path in experts):
        return experts
    return dict(load("magmerge.core.more_experts:experts_named")(list(map(str, experts))))


def sample_keywords(options: Options) -> dict[str, Any]:
    """How samples are drawn and prepared: the items of `samples=`."""
    keywords = {name: options[name] for name in ("seed", *PREPARATION)}
    for name in ("mean", "std"):
        if keywords[name] is not None:
            keywords[name] = numbers(f"--{name}", keywords[name], "0.5,0.5,0.5")
    return keywords
