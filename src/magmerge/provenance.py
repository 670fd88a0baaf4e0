"""magmerge.json: what a result was made of, by what, and what was done to each layer."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import safetensors
import torch

from magmerge.recipe import Recipe
from magmerge.types import LayerRecord, Uncovered
from magmerge.version import __version__

FILE = "magmerge.json"


def document(
    recipe: Recipe,
    inputs: Sequence[dict[str, Any]],
    records: Sequence[LayerRecord],
    warnings: Sequence[str],
    uncovered: Sequence[Uncovered],
    modules: Sequence[Any] = (),
    files: Sequence[str] = (),
) -> str:
    """The provenance as JSON. It has no time and no machine in it: equal runs give equal bytes.

    `modules` are the records of an adapter's modules, as dataclasses. `files` are those written
    beside it, of which a later run knows that they may be replaced.
    """
    content = {
        "magmerge": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "inputs": list(inputs),
        **({"files": sorted(files)} if files else {}),
        "versions": versions(),
        "warnings": list(warnings),
        "uncovered": [one._asdict() for one in uncovered],
        "layers": [_finite(asdict(record)) for record in records],
    }
    if modules:
        content["modules"] = [_finite(asdict(module)) for module in modules]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """The libraries that decide the bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
    }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for a norm beyond the largest float."""
    return {
        key: [_finite(one) for one in value]
        if key == "factors"
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in record.items()
    }
