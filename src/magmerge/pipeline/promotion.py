"""The format that mergekit gives a result whose recipe says none: the widest of its models'."""

from __future__ import annotations

from pathlib import Path

from magmerge.checkpoints.loader import adapts, open_checkpoint
from magmerge.core.dtypes import FLOATS, width
from magmerge.core.errors import MagmergeError
from magmerge.core.recipe import ModelOutput, Recipe


def with_promoted_dtype(recipe: Recipe) -> Recipe:
    """The recipe with the widest format of its models as that of the output.

    The same recipe where one is said, where all models have the same, or where one of them is no
    whole model on this machine or has several formats itself: promotion is tensor by tensor then.
    """
    output = recipe.output
    if not isinstance(output, ModelOutput) or output.dtype is not None:
        return recipe
    formats: set[str] = set()
    for path in recipe.models.values():
        own = _formats(path)
        if len(own) != 1:
            return recipe
        formats |= own
    if len(formats) < 2:
        return recipe
    widest = max(formats, key=width)
    code = "F32" if width(widest) == 2 else widest
    return recipe.model_copy(update={"output": output.model_copy(update={"dtype": code})})


def _formats(path: str) -> set[str]:
    """The floating-point formats of a model's tensors; none where it cannot be told here."""
    try:
        if not Path(path).exists() or adapts(path):
            return set()
        specs = open_checkpoint(path).specs.values()
    except MagmergeError:
        # Opening the models for the merge tells what is wrong with it.
        return set()
    return {spec.dtype for spec in specs} & FLOATS
