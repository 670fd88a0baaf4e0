"""Tasks of classes and of numbers: features of the module, a head on them, the greatest logit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.data.inputs import prepare
from magmerge.data.pixels import Pixels, open_processor
from magmerge.data.rows import Images, Inputs, Picture, Preparation, Rows, Texts
from magmerge.evaluation.entries import Features
from magmerge.evaluation.runner import Batch, forward

BATCH = 32

Answer = Literal["classes", "values"]


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are features @ weight.T + bias.

    With a dense layer the features are first tanh(features @ dense.weight.T + dense.bias), as in
    RoBERTa's classifier.
    """

    weight: Float[Tensor, "classes inner"]
    bias: Float[Tensor, "classes"]
    dense: Head | None = None

    @property
    def width(self) -> int:
        """How many features it takes."""
        first = self.weight if self.dense is None else self.dense.weight
        return int(first.shape[-1])


class Reading(NamedTuple):
    """How an answer is read off a module's output: which part of it, the head on that, its kind."""

    features: Features
    head: Head | None
    answer: Answer

    def measure(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """The predicted class of each row and how many there are, [rows, 2], or its value."""
        values = features_of(forward(module, inputs), inputs, self.features)
        logits = values if self.head is None else with_head(values, self.head)
        return READINGS[self.answer](logits, inputs.rows, type(module).__name__)


def class_batches(
    rows: Rows, folder: Path | None, options: Preparation, reading: Reading
) -> tuple[Batch, ...]:
    """All rows in batches; texts of like length together, the long ones first.

    Images are decoded when a batch's inputs are asked for, all else is prepared now.
    """
    order, content = list(range(len(rows))), rows.content
    calls: list[tuple[int, Callable[[], Inputs]]]
    if isinstance(content, Images):
        pixels = open_processor(folder, options, rows.source)
        parts = [content.values[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        calls = [(len(part), partial(_decoded, part, pixels)) for part in parts]
    else:
        if isinstance(content, Texts):
            columns = [part for part in (content.values, content.pairs) if part is not None]
            # By length in letters, of a pair that of both texts.
            order.sort(key=lambda row: -sum(len(column[row]) for column in columns))
            rows = replace(
                rows, content=Texts(*(tuple(column[row] for row in order) for column in columns))
            )
        prepared = prepare(rows, folder, options, BATCH)
        calls = [(call.rows, partial(_same, call)) for call in prepared]
    left = iter(order)
    return tuple(
        Batch(tuple(islice(left, count)), inputs, reading.measure) for count, inputs in calls
    )


def _decoded(pictures: tuple[Picture, ...], pixels: Pixels) -> Inputs:
    return Inputs(*pixels(pictures), len(pictures))


def _same(inputs: Inputs) -> Inputs:
    return inputs


def read_head(path: str) -> Head:
    """A head file: `weight` [classes, features] and, if there is one, `bias` [classes].

    With `dense.weight` [inner, features] and perhaps `dense.bias` [inner] it has a dense layer, and
    `weight` is [classes, inner].
    """
    checkpoint = open_checkpoint(path)
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}

    def layer(prefix: str) -> Head | None:
        shape = shapes.get(f"{prefix}weight", ())
        if len(shape) != 2 or shapes.get(f"{prefix}bias", shape[:1]) != shape[:1]:
            return None
        there = f"{prefix}bias" in shapes
        bias = checkpoint.read(f"{prefix}bias").float() if there else torch.zeros(shape[0])
        return Head(checkpoint.read(f"{prefix}weight").float(), bias)

    last, deep = layer(""), any(name.startswith("dense.") for name in shapes)
    dense = layer("dense.") if deep else None
    if last is None or (deep and (dense is None or len(dense.bias) != last.width)):
        raise CheckpointError(
            "it is no head: it holds "
            + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
            source=path,
            remedy="save weight [classes, features] and bias [classes], and for a dense layer "
            "before them dense.weight and dense.bias",
        )
    return replace(last, dense=dense)


def with_head(
    features: Float[Tensor, "rows features"], head: Head
) -> Float[Tensor, "rows classes"]:
    """Logits in float32."""
    if features.dim() != 2 or features.shape[-1] != head.width:
        raise MagmergeError(
            f"the model gives features {list(features.shape[1:])}, the head takes [{head.width}]",
            source="the suite",
            remedy="check features (mean, cls, pooler, embeds, output) and the model's class",
        )
    if head.dense is not None:
        features = with_head(features, head.dense).tanh()
    weight, bias = head.weight.to(features.device), head.bias.to(features.device)
    return torch.nn.functional.linear(features, weight, bias)


def _classes(logits: Tensor, rows: int, model: str) -> Tensor:
    if logits.dim() != 2 or len(logits) != rows:
        remedy = "name a head for the task, or a model class that ends in a classifier"
        raise _misshapen(logits, "one logit a class", model, remedy)
    best = logits.argmax(dim=-1).cpu()
    return torch.stack([best, torch.full_like(best, logits.shape[-1])], dim=-1)


def _values(logits: Tensor, rows: int, model: str) -> Tensor:
    if logits.shape not in ((rows, 1), (rows,)):
        remedy = "name a head with one output for the task, or a model class that ends in one"
        raise _misshapen(logits, "one value a row", model, remedy)
    return logits.reshape(rows).cpu()


def _misshapen(logits: Tensor, what: str, model: str, remedy: str) -> MagmergeError:
    problem = f"the model's output has shape {list(logits.shape)}, not {what}"
    return MagmergeError(problem, source=model, remedy=remedy)


READINGS: Mapping[Answer, Callable[[Tensor, int, str], Tensor]] = {
    "classes": _classes,
    "values": _values,
}


def features_of(output: Any, inputs: Inputs, part: Features) -> Tensor:
    """A part of a module's output, in float32."""
    return READERS[part](output, inputs).float()


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
    tensor = getattr(output, "pooler_output", None)
    if not isinstance(tensor, Tensor):
        raise _lacking(output, "pooler_output", "use features: mean or cls")
    return tensor.flatten(1)


def _embeds(output: Any, _inputs: Inputs) -> Tensor:
    for name in ("image_embeds", "text_embeds"):
        tensor = getattr(output, name, None)
        if isinstance(tensor, Tensor):
            return tensor
    raise _lacking(output, "image_embeds", "set model: {class: CLIPVisionModelWithProjection}")


def _plain(output: Any, _inputs: Inputs) -> Tensor:
    tensors = [getattr(output, "logits", output)]
    if not isinstance(tensors[0], Tensor):
        parts = output.values() if isinstance(output, Mapping) else output
        sequence = isinstance(output, Mapping | list | tuple)
        tensors = [part for part in parts if isinstance(part, Tensor)] if sequence else []
    if len(tensors) != 1:
        raise _lacking(output, "logits", "use features: mean, cls or pooler, with a head")
    tensor: Tensor = tensors[0]
    return tensor.flatten(1) if tensor.dim() > 2 and tensor.shape[2:].numel() == 1 else tensor


def _hidden(output: Any) -> Tensor:
    tensor = getattr(output, "last_hidden_state", output)
    if not isinstance(tensor, Tensor) or tensor.dim() != 3:
        raise _lacking(output, "last_hidden_state", "set model: {class: AutoModel}")
    return tensor


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
    "embeds": _embeds,
    "output": _plain,
}
