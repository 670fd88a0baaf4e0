"""A recipe's file, or the recipe beside a result, as recipes whose faults are told at once."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.checkpoints.loader import Model
from magmerge.checkpoints.open_files import READ_REMEDIES
from magmerge.checkpoints.output.layout import SUFFIX
from magmerge.checkpoints.output.own_files import RECIPE, RECORD
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    ParameterError,
    shortened,
    suggestion,
)
from magmerge.core.lazy import load
from magmerge.core.plain_yaml import documents_of, names_of, yaml_of
from magmerge.core.recipe import Recipe
from magmerge.engine.opening import EXPERT


def recipes_of(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    models: Mapping[str, Model],
    rules: str = "better",
) -> list[Recipe]:
    """One recipe or several, as they are given or from their file, of which all faults are told at
    once. `models` are those that the call has in place of paths; `rules` as in `read_recipes`.
    """
    if isinstance(recipe, str | Path):
        held = {key.removeprefix(EXPERT) for key in models}
        check = load("magmerge.core.recipe_check:check_text")
        try:
            recipes = read_recipes(recipe, rules)
        except MagmergeError:
            check(recipe_text(recipe), str(recipe), held)
            raise
        check_called(recipe, held)
        check_documents(recipes)
        check(recipe_text(recipe), str(recipe), held)
        return recipes
    recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    if not recipes or not all(isinstance(document, Recipe) for document in recipes):
        raise ParameterError(
            f"{recipe!r} is no recipe", remedy="give a Recipe, a list of such, or a file's path"
        )
    check_documents(recipes)
    return recipes


def read_recipes(path: str | Path, rules: str = "better") -> list[Recipe]:
    """The documents of a recipe's file, or of the recipe beside a result or its record;
    ParameterError, with key and remedy, where it is none.

    One of mergekit's is translated, by `rules` "mergekit" with its own choices where they are not
    the better ones; see docs/mergekit.md.
    """
    recipes = Recipe.all_from_yaml(recipe_text(path), str(path), rules)
    if rules == "mergekit":
        recipes = [*map(load("magmerge.pipeline.promotion:with_promoted_dtype"), recipes)]
    return recipes


def recipe_text(path: str | Path) -> str:
    """What a recipe's file holds; ParameterError where it cannot be read."""
    file = _file_of(path)
    try:
        text = file.read_text(encoding="utf-8")
        return _from_here(text, file) if _is_beside(file) else text
    except UnicodeDecodeError as error:
        raise ParameterError(
            "it is no UTF-8 text", source=file, remedy="save it as UTF-8"
        ) from error
    except OSError as error:
        near = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        told = suggestion(file.name, near) if near and not file.exists() else ""
        remedy = told if told.startswith("did you mean") else "check the path of the recipe"
        if error.errno == errno.EIO:
            remedy = READ_REMEDIES[errno.EIO]
        raise ParameterError(
            f"cannot be read: {error.strerror}", source=file, remedy=remedy
        ) from error


def check_called(path: str | Path, held: Container[str] = ()) -> None:
    """CheckpointError where models that the recipe beside a result calls are not where it says;
    `held` are those that a call has in place of their paths.
    """
    file, lost = _file_of(path), list[str]()
    if not _is_beside(file):
        return
    contents = documents_of(file.read_text(encoding="utf-8", errors="replace"))
    change = _change(file, contents, lost)
    for content in contents:
        experts = content.get("experts")
        named = experts if isinstance(experts, dict) else {}
        models = {"base": content.get("base"), "merged": content.get("merged"), **named}
        for name, model in models.items():
            if isinstance(model, str) and name not in held:
                change(model)
    if lost:
        told = shortened([*dict.fromkeys(lost)])
        raise CheckpointError(
            f"no such file or folder, as called from its folder: {told}",
            source=file,
            remedy="move the result and its inputs to where they lay to each other, or write into "
            f"{file.name} where the inputs are now",
        )


def _file_of(path: str | Path) -> Path:
    """The recipe's file that a file, a result or its record stands for."""
    file = Path(path)
    if file.is_dir():
        file = file / RECIPE
        if not file.exists():
            raise ParameterError(
                f"it is a folder without a recipe ({RECIPE})",
                source=path,
                remedy="name models with --base and --expert, or give a recipe's file",
            )
    elif file.name.endswith(RECORD):
        file = file.with_name(file.name.removesuffix(RECORD) + RECIPE)
    elif file.suffix == SUFFIX:
        file = file.with_name(f"{file.name.removesuffix(SUFFIX)}.{RECIPE}")
    return file


def _is_beside(file: Path) -> bool:
    """Whether a recipe lies beside a result, whose record tells that; any other is somebody's."""
    own = file.name == RECIPE or file.name.endswith(f".{RECIPE}")
    return own and file.with_name(file.name.removesuffix(RECIPE) + RECORD).is_file()


def _from_here(text: str, file: Path) -> str:
    """The recipe beside a result, whose paths are called from its folder, with those from here."""
    contents = documents_of(text)
    with_paths, change = load("magmerge.core.recipe_paths:with_paths"), _change(file, contents)
    rooted = [with_paths(content, change) for content in contents]
    return text if rooted == contents else "---\n".join(map(yaml_of, rooted))


def _change(
    file: Path, contents: Sequence[Mapping[str, Any]], lost: list[str] | None = None
) -> Callable[[str], str]:
    change: Callable[[str], str] = load("magmerge.core.recipe_paths:rooted_at")(
        file.parent, names_of(contents), lost
    )
    return change


def check_documents(recipes: Sequence[Recipe]) -> None:
    """ParameterError where a document's result cannot be named: by no name, or by one of two."""
    names = [recipe.name for recipe in recipes]
    for place, recipe in enumerate(recipes[:-1]):
        if not recipe.name:
            raise ParameterError(
                f"document {place + 1} has no name that others could call its result by",
                remedy="give it one: name: stage-1",
            )
        if names.index(recipe.name) != place:
            raise ParameterError(
                f"two documents are named {recipe.name!r}", remedy="give each a name of its own"
            )
        later = [path for document in recipes[place + 1 :] for path in document.models.values()]
        if recipe.name not in later:
            raise ParameterError(
                f"no document reads the result of {recipe.name!r}",
                remedy="name it as the base or an expert of a later one, or drop it",
            )
    for recipe in recipes:
        donor = getattr(recipe.output, "donor", None)
        if donor is not None and donor in names[:-1]:
            raise ParameterError(
                f"the donor {donor!r} is a document of this file",
                remedy="name the folder of a model; a result takes its base's config by itself",
            )
