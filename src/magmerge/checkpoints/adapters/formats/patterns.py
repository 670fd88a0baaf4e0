"""PEFT's way of telling ranks and alphas: one for most modules, patterns for the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

AGAINST = frozenset(
    {
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "use_rslora",
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "target_parameters",
        "peft_type",
    }
)
"""Settings of an input that would contradict those made anew, or begin the training once more."""

Value = TypeVar("Value", int, float)


def fields(modules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """PEFT's settings for modules of these ranks and scales: alpha is scale times rank."""
    ranks = {name: rank for name, (rank, _) in modules.items()}
    alphas = {name: _number(rank * scale) for name, (rank, scale) in modules.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": sorted(modules),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _most_common(values: Mapping[str, Value]) -> Value:
    counts = Counter(values.values())
    return max(counts, key=lambda value: (counts[value], -value))


def _patterns(values: Mapping[str, Value], usual: Value) -> dict[str, Value]:
    """The values that are not the usual one, each by its module's name.

    PEFT takes the first pattern that matches a name or its end. Where the end of one name is
    another, patterns are tied to the start; older versions of PEFT do not know how to read those.
    """
    unusual = {name: values[name] for name in sorted(values) if values[name] != usual}
    plain = all(re.fullmatch(r"[\w.-]+", name) for name in unusual)
    if plain and not any(_meets_another(name, values, unusual) for name in values):
        return unusual
    return {f"^{re.escape(name)}": value for name, value in unusual.items()}


def _meets_another(name: str, values: Mapping[str, Value], unusual: Mapping[str, Value]) -> bool:
    """Whether the end of the name, after a dot, is a pattern of another value."""
    ends = [name[at + 1 :] for at, letter in enumerate(name) if letter == "."]
    return any(end in unusual and unusual[end] != values[name] for end in ends)
