"""A recipe as lines to read, and as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from magmerge.core.errors import CheckpointError
from magmerge.core.plain_yaml import yaml_of
from magmerge.report.account import FILE, MergeAccount
from magmerge.report.parameter_text import items_text
from magmerge.report.sentences import count_text, samples_text, short

Line = tuple[str, tuple[str, ...]]
"""What it is, and its one or several values."""

LABELS = {
    "method": "Merge",
    "merged": "Merged model",
    "calibrate": "Calibration",
    "samples": "Samples",
    "sampling": "Samples",
    "gate": "Gate",
    "bound": "Largest factor",
    "sensitive": "Sensitive layers",
    "base": "Base",
    "experts": "Experts",
    "skip": "Not calibrated",
    "ignore": "Taken from the base",
    "weights": "Weights read",
    "dtype": "Stored as",
    "output": "Output",
    "seed": "Seed",
}
SOURCES = "Samples from"
NAMES = frozenset([SOURCES]) | frozenset(
    LABELS[key] for key in ("sensitive", "base", "merged", "experts", "skip", "ignore")
)
"""Lines whose values are names and paths, not words."""
GATES = {
    (True, True): "on: sensitive layers may only shrink, all others only grow",
    (True, False): "on: layers may only grow",
    (False, True): "off, so the list of sensitive layers had no effect",
    (False, False): "off",
}


def recipe_lines(account: MergeAccount) -> list[Line]:
    """The recipe's keys in the order of their interest; those that say nothing are left out."""
    recipe = account.recipe
    lines: list[Line] = []
    for key in (*LABELS, *(key for key in recipe if key not in LABELS and key != "params")):
        values = _values(key, recipe, account)
        if key in ("samples", "sampling") and isinstance(recipe.get(key), Mapping):
            lines += _samples(recipe[key])
        elif key == "output" and isinstance(recipe.get(key), Mapping):
            lines += _output(recipe[key])
        elif values:
            lines.append((LABELS.get(key, key.replace("_", " ").capitalize()), values))
        if key == "calibrate" and account.samples:
            lines.append(("Samples seen", (samples_text(account.samples),)))
    return lines


def _output(value: Mapping[str, Any]) -> list[Line]:
    """The format that was asked for, and what an adapter has; the size of files says nothing."""
    quiet = ("kind", "dtype", "shard_size")
    settings = {
        name: entry
        for name, entry in value.items()
        if name not in quiet and entry not in (None, [])
    }
    label = "Adapter" if value.get("kind") == "adapter" else LABELS["output"]
    dtype = () if value.get("dtype") is None else (_text(value["dtype"]),)
    lines = ((LABELS["dtype"], dtype), (label, _entries(settings)))
    return [(label, texts) for label, texts in lines if texts]


def _samples(value: Mapping[str, Any]) -> list[Line]:
    """How many samples, drawn how; and where they are from."""
    settings = _entries({name: setting for name, setting in value.items() if name != "data"})
    data = value.get("data")
    sources = _entries(data) if isinstance(data, Mapping) else ()
    lines = (("Samples", settings), (SOURCES, sources))
    return [(label, values) for label, values in lines if values]


def _values(key: str, recipe: Mapping[str, Any], account: MergeAccount) -> tuple[str, ...]:
    value = recipe.get(key)
    if key == "gate" and account.calibrators:
        return (GATES[account.gated, bool(recipe.get("sensitive"))],)
    if value is None or value in ([], {}, "") or key == "gate":
        return ()
    if key == "bound" and not account.calibrators:
        return ()
    if key == "method":
        return (_call(value, recipe.get("params")),)
    if key == "calibrate" and isinstance(value, list | tuple):
        return tuple(
            _call(item.get("method"), item.get("params"))
            if isinstance(item, Mapping)
            else str(item)
            for item in value
        )
    if key == "chat_template":
        return (short(" ".join(str(value).split())),)
    if isinstance(value, Mapping):
        return _entries(value)
    if isinstance(value, list | tuple):
        return tuple(_slice(i) if isinstance(i, Mapping) else _text(i) for i in value)
    return (_text(value),)


def _slice(value: Mapping[str, Any]) -> str:
    """Which blocks of which model: maths 0 to 8, code 8 to 16."""
    layers = value.get("layers")
    texts = [
        f"{name} {' to '.join(map(_text, own)) if isinstance(own, list | tuple) else 'all'}"
        for name, own in (layers.items() if isinstance(layers, Mapping) else ())
    ]
    others = {name: entry for name, entry in value.items() if name != "layers"}
    return ", ".join([*texts, *_entries(others)])


def _entries(value: Mapping[Any, Any]) -> tuple[str, ...]:
    """Names with their texts one a line; settings in one line, and what lies deeper after them."""
    if all(isinstance(entry, str) for entry in value.values()):
        return tuple(f"{name}: {entry}" for name, entry in value.items())
    plain = [
        f"{name} {_text(entry)}"
        for name, entry in value.items()
        if entry is not None and not isinstance(entry, Mapping)
    ]
    deeper = [
        line for entry in value.values() if isinstance(entry, Mapping) for line in _entries(entry)
    ]
    return (*([", ".join(plain)] if plain else []), *deeper)


def _call(name: object, params: object) -> str:
    """A method with its parameters: wsc (target ellipsoid, granularity row)."""
    settings = params if isinstance(params, Mapping) else {}
    texts = [f"{key} {setting_text(value)}" for key, value in settings.items() if value is not None]
    return f"{name} ({', '.join(texts)})" if texts else str(name)


def setting_text(value: object) -> str:
    """A parameter's value; of one that varies by layer: 0 for vae, 0.3 for all others."""
    return items_text(value, _text)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def recipe_yaml(account: MergeAccount) -> str:
    """The recipe as `magmerge` reads it; CheckpointError where it holds what is no data."""
    try:
        text = yaml_of(dict(account.recipe), width=100)
    except (yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(
            "its recipe cannot be written as YAML",
            source=FILE,
            remedy=f"give a checkpoint that magmerge made; this one has "
            f"{count_text(len(account.recipe), 'key')} in its recipe",
        ) from error
    return str(text)
