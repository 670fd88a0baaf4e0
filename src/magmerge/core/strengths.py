"""A strength for each expert, as users of LoRAs write it: style.safetensors=0.8."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.core.errors import ParameterError
from magmerge.core.lazy import load

FORM = "write PATH=STRENGTH with a number, like style.safetensors=0.8"


NAME = re.compile(r"[\w.-]+")


def split_name(text: str) -> tuple[str | None, str]:
    """A model's name, where one stands before its path (maths=PATH), and the rest; None where the
    text is a path, or a path with its strength.
    """
    name, _, rest = text.partition("=")
    if not rest or os.path.lexists(text) or not NAME.fullmatch(name):
        return None, text
    try:
        float(rest)
    except ValueError:
        named = load("magmerge.core.model_strings:is_name")(rest)
        there = named or os.path.lexists(split_strength(rest)[0]) or not os.path.lexists(name)
        return (name, rest) if there else (None, text)
    return None, text


def split_strength(text: str) -> tuple[str, float | None]:
    """A model's path and its strength, None if none is said. A path that exists is no strength.

    ParameterError where what follows a path that exists is no number.
    """
    path, equals, number = text.rpartition("=")
    if not equals or not path or "\0" in text or os.path.lexists(text):
        return text, None
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if math.isfinite(strength):
        return path, strength
    if os.path.lexists(path):
        raise ParameterError(f"the strength {number!r} of {path} is no number", remedy=FORM)
    return text, None


def without_strengths(
    experts: Sequence[Any] | Mapping[str, Any], method: str | None, params: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, Any] | None]:
    """The experts without their strengths, and the method's parameters with them as weights.

    `experts` is a list of models or a mapping from names; what is no path has strength 1. They say
    how much of each is added, so lambda is 1 unless it is given.
    """
    listed = list(experts.values()) if isinstance(experts, Mapping) else list(experts)
    pairs = [_pair(model) for model in listed]
    if all(strength is None for _, strength in pairs):
        return experts, params
    models = [model for model, _ in pairs]
    if method is None:
        raise ParameterError(
            "strengths are given, and nothing is merged", remedy="name the models alone"
        )
    if (params or {}).get("weights") is not None:
        raise ParameterError(
            "strengths and weights are given, which are the same",
            remedy="drop --set weights (params), or the strengths",
        )
    weights = [1.0 if strength is None else strength for _, strength in pairs]
    more = {"lambda": 1.0} if method in ADDING else {}
    taken = {**more, **(params or {}), "weights": weights}
    if isinstance(experts, Mapping):
        return dict(zip(experts, models, strict=True)), taken
    return models, taken


ADDING = ("task_arithmetic", "ta")
"""Methods whose lambda is below 1 by default, and that add each expert by its weight."""


def _pair(model: Any) -> tuple[Any, float | None]:
    """A model and its strength; of a mapping with a path its own entry."""
    if isinstance(model, Mapping) and set(model) == {"path", "strength"}:
        strength = model["strength"]
        if type(strength) not in (int, float) or not math.isfinite(strength):
            told = f"the strength {strength!r} of {model['path']} is no number"
            raise ParameterError(
                told, remedy="write it like {path: style.safetensors, strength: 0.8}"
            )
        return model["path"], float(strength)
    if isinstance(model, str):
        return split_strength(model)
    if isinstance(model, Path):
        path, strength = split_strength(str(model))
        return (model, None) if strength is None else (Path(path), strength)
    return model, None
