"""Errors of a recipe as pydantic finds them, in magmerge's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from magmerge.core.errors import MagmergeError, ParameterError, UnknownNameError, suggestion
from magmerge.core.plain_yaml import MARK, MarkError
from magmerge.core.recipe import LISTS, AdapterOutput, ModelOutput, Samples, Slice

FIELD_SYNTAX = {
    "experts": "a list of paths, or names with paths: {maths: PATH, code: PATH}",
    "calibrate": "a name, such as wsc, or a list of such",
    "params": "names with values: {density: 0.3}",
    "output": "fields with values: {dtype: bfloat16}",
    "samples": "fields with values: {data: {maths: PATH}, samples: 8}",
    "statistics": "a file for each expert: {maths: maths.statistics}",
    "rename": "old names with new ones: {'old.*': 'new.*'}, or such a map for each expert",
    "gate": "on or off",
    "bound": "a number from 1 on, or off",
    "weights": "ema or model, or either by a model's name: {maths: ema}",
    **dict.fromkeys(LISTS, "a name or a pattern, or a list of such"),
    "tokens": 'texts of tokens with sources: {"<|im_start|>": {source: chat, force: true}}',
    **dict.fromkeys(("seed", "pad_to_multiple_of"), "a whole number"),
    "slices": "a list of such: {layers: {base: [0, 8], maths: [0, 8]}}",
    "moe": "fields with values: {router: hidden, prompts: {maths: ['...']}}",
    "tokenizer": "base, union or an expert's name",
    "chat_template": "auto, a name like chatml, base or an expert's name, or a jinja text",
    **dict.fromkeys(("name", "base", "merged", "method"), "one word or path, in quotes if need be"),
}
"""How each field of a recipe is written."""


def explained(error: ValidationError, source: str, known: Mapping[str, Any]) -> MagmergeError:
    """A pydantic error as one of magmerge's own, which names the key; the first of several."""
    return faults_of(error, source, known)[0][1]


def faults_of(
    error: ValidationError, source: str, known: Mapping[str, Any]
) -> list[tuple[tuple[str, ...], MagmergeError]]:
    """Every fault that pydantic found, with the key that it lies under, in magmerge's own words."""
    located: dict[tuple[str, ...], MagmergeError] = {}
    # What a misspelt key stands for is missing too.
    for fault in sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden"):
        # The kind of an output is no key of the file, nor is the form of a value of several.
        forms = ("model", "adapter") if fault["loc"][:1] == ("output",) else ()
        parts = [str(part) for part in fault["loc"] if part not in forms]
        # An unknown key is the last part, whatever it is called.
        own = parts[-1:] if fault["type"] == "extra_forbidden" else []
        path = (*(part for part in parts[: len(parts) - len(own)] if "[" not in part), *own)
        # A value that may have several forms has a fault for each of them.
        located.setdefault(path, _told(fault, list(path), source, known))
    return list(located.items())


def _told(
    fault: Mapping[str, Any], path: list[str], source: str, known: Mapping[str, Any]
) -> MagmergeError:
    """One of pydantic's faults as an error."""
    if len(path) > 1 or (path and path[0] not in known and fault["type"] != "extra_forbidden"):
        parts: dict[str, type[BaseModel]] = {"output": ModelOutput, "samples": Samples}
        parts["slices"] = Slice
        if fault["loc"][:2] == ("output", "adapter"):
            parts["output"] = AdapterOutput
        known = parts[path[0]].model_fields if path[0] in parts else known
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        homes = {"output": (ModelOutput, AdapterOutput), "samples": (Samples,)}
        home = next((h for h, kinds in homes.items() if _has(kinds, path[-1])), None)
        remedy = suggestion(path[-1], known)
        if len(path) == 1 and home is not None:
            remedy = f"write it under {home}: {home}: {{{path[-1]}: ...}}"
        return UnknownNameError(f"unknown key {key!r}", source=source, remedy=remedy)
    field = path[0] if path else ""
    syntax = FIELD_SYNTAX.get(field)
    remedy = f"{field} is {syntax}" if syntax else f"known keys: {', '.join(known)}"
    problem = f"{key}: {fault['msg'].lower()}" if key else fault["msg"].lower()
    if not key and fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        problem = "it is no mapping from keys to values"
    return ParameterError(problem, source=source, remedy=remedy)


def not_read(error: Exception, source: str) -> ParameterError:
    """That a recipe's text is not YAML, or has marks where only the verb tune reads them."""
    if isinstance(error, MarkError):
        return ParameterError(
            f"this recipe has marks to search: {MARK} in line {error.line}",
            source=source,
            remedy=f"run magmerge tune {source} OUT, or write a value in the mark's place",
        )
    return ParameterError(f"not YAML: {error}", source=source, remedy="mend the line it names")


def _has(kinds: Sequence[type[BaseModel]], field: str) -> bool:
    return any(field in kind.model_fields for kind in kinds)
