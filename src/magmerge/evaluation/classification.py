"""Tasks of classes: features of the module, a head on them, the class of the greatest logit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magmerge.checkpoints import open_checkpoint
from magmerge.errors import CheckpointError, MagmergeError
from magmerge.evaluation.batches import Batch, forward
from magmerge.evaluation.entries import Features
from magmerge.samples import Inputs, Preparation, Rows, Texts, prepare

BATCH = 32


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are features @ weight.T + bias."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, "classes"]


@dataclass(frozen=True, slots=True)
class ClassBatch:
    """Rows of like length in one call of the module."""

    rows: tuple[int, ...]
    inputs: Inputs
    features: Features
    head: Head | None

    def measure(self, module: nn.Module) -> Tensor:
        """The predicted class of each row, and how many classes there are: [rows, 2]."""
        values = features_of(forward(module, self.inputs), self.inputs, self.features)
        logits = values if self.head is None else with_head(values, self.head)
        if logits.dim() != 2 or len(logits) != len(self.rows):
            raise MagmergeError(
                f"the model's output has shape {list(logits.shape)}, not one logit a class",
                source=type(module).__name__,
                remedy="name a head for the task, or a model class that ends in a classifier",
            )
        best = logits.argmax(dim=-1).cpu()
        return torch.stack([best, torch.full_like(best, logits.shape[-1])], dim=-1)


def class_batches(
    rows: Rows, folder: Path | None, options: Preparation, features: Features, head: Head | None
) -> tuple[Batch, ...]:
    """All rows in batches; texts of like length together, the long ones first."""
    order = list(range(len(rows)))
    if isinstance(rows.content, Texts):
        values = rows.content.values
        order.sort(key=lambda row: -len(values[row]))
        rows = replace(rows, content=Texts(tuple(values[row] for row in order)))
    found, start = [], 0
    for inputs in prepare(rows, folder, options, BATCH):
        stop = start + inputs.rows
        found.append(ClassBatch(tuple(order[start:stop]), inputs, features, head))
        start = stop
    return tuple(found)


def read_head(path: str) -> Head:
    """A head file: `weight` [classes, features] and, if there is one, `bias` [classes]."""
    checkpoint = open_checkpoint(path)
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    weight = shapes.get("weight", ())
    if len(weight) != 2 or shapes.get("bias", weight[:1]) != weight[:1]:
        raise CheckpointError(
            "it is no head: it holds "
            + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
            source=path,
            remedy="save weight [classes, features] and bias [classes]",
        )
    bias = checkpoint.read("bias").float() if "bias" in shapes else torch.zeros(weight[0])
    return Head(checkpoint.read("weight").float(), bias)


def with_head(
    features: Float[Tensor, "rows features"], head: Head
) -> Float[Tensor, "rows classes"]:
    """Logits in float32."""
    if features.dim() != 2 or features.shape[-1] != head.weight.shape[-1]:
        raise MagmergeError(
            f"the model gives features {list(features.shape[1:])}, the head takes "
            f"[{head.weight.shape[-1]}]",
            source="the suite",
            remedy="check features (mean, cls, pooler, output) and the model's class",
        )
    weight, bias = head.weight.to(features.device), head.bias.to(features.device)
    return torch.nn.functional.linear(features, weight, bias)


def features_of(output: Any, inputs: Inputs, wanted: Features) -> Tensor:
    """The wanted part of a module's output, in float32."""
    return READERS[wanted](output, inputs).float()


def _mean(output: Any, inputs: Inputs) -> Tensor:
    """Over the tokens that are no padding."""
    hidden = _hidden(output)
    mask: Tensor | None = inputs.kwargs.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.float().mean(dim=1)
    weights = mask.to(hidden.device).unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _first(output: Any, _inputs: Inputs) -> Tensor:
    return _hidden(output)[:, 0]


def _pooled(output: Any, _inputs: Inputs) -> Tensor:
    found = getattr(output, "pooler_output", None)
    if not isinstance(found, Tensor):
        raise _lacking(output, "pooler_output", "use features: mean or cls")
    return found.flatten(1)


def _plain(output: Any, _inputs: Inputs) -> Tensor:
    tensors = [getattr(output, "logits", output)]
    if not isinstance(tensors[0], Tensor):
        tensors = [one for one in _parts(output) if isinstance(one, Tensor)]
    if len(tensors) != 1:
        raise _lacking(output, "logits", "use features: mean, cls or pooler, with a head")
    found: Tensor = tensors[0]
    return found.flatten(1) if found.dim() > 2 and found.shape[2:].numel() == 1 else found


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, list | tuple) else []


def _hidden(output: Any) -> Tensor:
    found = getattr(output, "last_hidden_state", output)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise _lacking(output, "last_hidden_state", "set model: {class: AutoModel}")
    return found


def _lacking(output: Any, name: str, remedy: str) -> MagmergeError:
    return MagmergeError(
        f"the model's output, a {type(output).__name__}, has no {name}",
        source="the suite",
        remedy=remedy,
    )


READERS: Mapping[Features, Callable[[Any, Inputs], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "pooler": _pooled,
    "output": _plain,
}
