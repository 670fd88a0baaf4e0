"""All that is wrong with the recipes of a file, at once: keys, values, names and missing models."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from magmerge.core import registry
from magmerge.core.choice import check_no_params
from magmerge.core.errors import (
    MagmergeError,
    ParameterError,
    RecipeError,
    no_such_model,
)
from magmerge.core.model_strings import is_id
from magmerge.core.plain_yaml import PlainLoader
from magmerge.core.recipe import Recipe
from magmerge.core.recipe_faults import faults_of
from magmerge.core.recipe_lines import Lines, line_of, lines_of
from magmerge.core.validation import AUTO, check_calibrations, check_parameters, check_rename

PLACES = ("base", "merged", "experts")
"""Keys under which models stand."""
Located = tuple[tuple[str, ...], MagmergeError]
"""Under which key of a document something is wrong, and what."""


def check_text(text: str, source: str, held: Container[str] = ()) -> None:
    """RecipeError where several things are wrong with a file of recipes; the error itself where it
    is one. Each tells its line. `held` are the models that a call has in place of their paths.
    Nothing is said of a file in another dialect, or that is no YAML.
    """
    try:
        contents = [one for one in yaml.load_all(text, PlainLoader) if one is not None]
        lines = lines_of(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if len(lines) != len(contents) or not all(isinstance(one, dict) for one in contents):
        return
    if "source_model" in text or any("merge_method" in content for content in contents):
        return
    names = {str(content.get("name")) for content in contents}
    located: list[tuple[int, MagmergeError]] = []
    for content, own in zip(contents, lines, strict=True):
        for path, error in _document(content, source, names):
            if not path or path[-1] not in held or path[0] not in PLACES:
                located.append((line_of(own, path) or 0, _at(error, source, own, path)))
    errors = [error for _, error in sorted(located, key=lambda pair: pair[0])]
    if len(errors) > 1:
        raise RecipeError(errors)
    if errors:
        raise errors[0]


def _document(content: dict[str, Any], source: str, names: set[str]) -> Iterator[Located]:
    """What is wrong with a document; what is wrong of itself is left out for all further checks."""
    left = dict(content)
    while True:
        try:
            recipe = Recipe.model_validate(left, context={"source": source})
            break
        except MagmergeError as error:
            cause = error.__cause__
            faults: list[Located] = [(_culprit(left, error), error)]
            if isinstance(cause, ValidationError):
                faults = faults_of(cause, source, Recipe.model_fields)
            yield from faults
            before = left
            for path, _ in faults:
                left = _without(left, path)
            if left == before:
                return
    yield from _names(recipe)
    for key, model in recipe.models.items():
        place = (key,) if key in PLACES and key not in recipe.experts else ("experts", key)
        if model not in names:
            yield from ((place, error) for error in _missing(model))


def _culprit(content: dict[str, Any], error: MagmergeError) -> tuple[str, ...]:
    """The key without which this error is not raised, by itself or in one that holds it."""
    inner = [(k, i) for k, value in content.items() if isinstance(value, dict) for i in value]
    for path in (*inner, *((key,) for key in content)):
        try:
            Recipe.model_validate(_without(content, path))
        except MagmergeError as other:
            if str(other.problem) == str(error.problem):
                continue
        return tuple(map(str, path))
    return ()


def _without(content: dict[str, Any], path: Sequence[Any]) -> dict[str, Any]:
    """The content without a key; without the one that holds it, where that is no mapping."""
    inner = content.get(path[0]) if path else None
    if len(path) > 1 and isinstance(inner, dict) and path[1] in inner:
        smaller = _without(inner, path[1:])
        return {**content, path[0]: smaller}
    return {key: value for key, value in content.items() if not path or key != path[0]}


def _names(recipe: Recipe) -> Iterator[Located]:
    """Unknown methods, calibrators and parameters, and values that these do not take."""
    if recipe.method is not None:
        yield from _method(recipe.method, recipe.params)
    for place, calibration in enumerate(recipe.calibrate):
        try:
            check_calibrations(calibration)
        except MagmergeError as error:
            yield ("calibrate", str(place)), error
    try:
        check_rename(recipe.rename, recipe.experts)
    except MagmergeError as error:
        yield ("rename",), error


def _method(name: str, params: Mapping[str, Any]) -> Iterator[Located]:
    if name == AUTO:
        yield from ((("params", key), error) for key, error in _of_auto(params))
        return
    try:
        method = registry.methods.get(name, besides=(AUTO,))
    except MagmergeError as error:
        yield ("method",), error
        return
    for key, value in params.items():
        try:
            check_parameters(method, {key: value})
        except MagmergeError as error:
            yield ("params", key), error


def _of_auto(params: Mapping[str, Any]) -> Iterator[tuple[str, MagmergeError]]:
    for key in params:
        try:
            check_no_params({key: None})
        except MagmergeError as error:
            yield key, error


def _missing(text: str) -> Iterator[MagmergeError]:
    """What is not there of a model. What was in memory, and what may be a name on the hub, is left
    to who opens it.
    """
    for part in [text] if os.path.lexists(text) else text.split("+"):
        name = part.partition("@")[0]
        if not part or os.path.lexists(part) or os.path.lexists(name):
            continue
        in_memory = part.startswith("a ") and part.endswith(" in memory")
        if in_memory or (is_id(name) and not Path(name).parent.is_dir()):
            continue
        yield no_such_model(Path(part))


def _at(error: MagmergeError, source: str, lines: Lines, path: tuple[str, ...]) -> MagmergeError:
    """The error with the line of its key; a missing model's path stands in what it says."""
    line = line_of(lines, path)
    place = source if line is None else f"{source}:{line}"
    told = error.source if error.source not in (None, source) else None
    problem = error.problem if told is None else f"{told}: {error.problem}"
    if type(error) is MagmergeError or isinstance(error, RecipeError):
        return ParameterError(problem, source=place, remedy=error.remedy)
    return type(error)(problem, source=place, remedy=error.remedy)
