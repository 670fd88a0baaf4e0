"""The documents of a YAML file as recipes: magmerge's own, and mergekit's translated."""

from __future__ import annotations

import yaml

from magmerge.core.errors import ParameterError
from magmerge.core.lazy import load
from magmerge.core.plain_yaml import PlainLoader
from magmerge.core.recipe import Recipe


def recipes_of(text: str, source: str, rules: str) -> list[Recipe]:
    """Every document of a file. It is read as data: no tag in it makes an object.

    ParameterError for what is no YAML or holds no recipe; for one that is none as `Recipe` has it.
    """
    try:
        contents = list(yaml.load_all(text, PlainLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise load("magmerge.core.recipe_faults:not_read")(error, source) from error
    contents = [content for content in contents if content is not None]
    dialect = any(isinstance(part, dict) and "merge_method" in part for part in contents)
    if dialect or rules != "better":
        translated = load("magmerge.core.mergekit_dialect.translation:translated")
        recipes: list[Recipe] = translated(text, source, rules)
        return recipes
    if not contents:
        remedy = "write one: base, experts"
        raise ParameterError("it holds no recipe", source=source, remedy=remedy)
    if "source_model" in text:
        contents = load("magmerge.core.mergekit_moe:translated")(contents, source)
    return [Recipe.model_validate(content, context={"source": source}) for content in contents]
