"""magmerge.json: what a result was made of, by what, and what was done to each layer."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import safetensors
from pydantic_core import to_json

from magmerge.checkpoints.tensor_digests import list_digest, tensor_digest
from magmerge.core.lazy import torch
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import Recipe
from magmerge.core.types import LayerRecord, Uncovered
from magmerge.core.version import __version__


@dataclass(frozen=True, slots=True)
class Account:
    """What was done to layers and modules, what a reader should know, what was not measured."""

    records: Sequence[LayerRecord] = ()
    modules: Sequence[Any] = ()
    warnings: tuple[str, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def document(
    recipe: Recipe,
    inputs: Sequence[Mapping[str, Any]],
    account: Account,
    written: Mapping[str, Any],
) -> str:
    """The provenance as JSON. It has no time and no machine in it: equal runs give equal bytes.

    `written` tells the files beside it, of which a later run knows that they may be replaced, and
    the CRC-32 of each tensor's bytes.
    """
    content: dict[str, Any] = {
        "magmerge": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "inputs": list(inputs),
        **written,
        "versions": versions(),
        "warnings": list(account.warnings),
        "uncovered": [layer._asdict() for layer in account.uncovered],
        "layers": [],
    }
    if account.modules:
        content["modules"] = [_finite(asdict(module)) for module in account.modules]
    content |= dict(account.extra)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    # A line for each layer: models may have very many. No text holds a line's end before its key.
    layers = ",\n  ".join(map(_layer, account.records))
    return text.replace('\n "layers": []', f'\n "layers": [\n  {layers}\n ]', 1) if layers else text


def versions() -> dict[str, str]:
    """The libraries that decide the bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "safetensors": safetensors.__version__,
    }


def content_digest(model: Checkpoint) -> str:
    """The digest of a model in memory: that of its tensors, as of a file that holds them."""
    tensors = []
    for name, spec in model.specs.items():
        tensor = model.read(name).reshape(-1)
        data = tensor.view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
        tensors.append((spec, tensor_digest(data)))
    return list_digest(tensors)


def _layer(record: LayerRecord) -> str:
    """A layer's record in one line, with null for what is beyond the largest float."""
    return to_json(record, inf_nan_mode="null").decode()


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for a norm beyond the largest float."""
    return record | {
        key: None
        for key, value in record.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
