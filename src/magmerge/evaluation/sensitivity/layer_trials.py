"""Sensitivity by trying: a layer's task vector times a factor, and what is bad of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.data.rows import Inputs
from magmerge.evaluation.classification import Head, features_of, with_head
from magmerge.evaluation.entries import Features
from magmerge.live.calls import run
from magmerge.live.layers import Layer
from magmerge.live.units import RunRecord

CriterionName = Literal["drift", "loss", "accuracy"]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """One call of the model, and the labels of its rows where the score needs them."""

    inputs: Inputs
    labels: Int[Tensor, "rows"] | None = None


class Loss:
    """Cross entropy: of labels, or, without a head and labels, of each text's next tokens."""

    def __init__(self, head: Head | None, features: Features) -> None:
        self._head, self._features = head, features

    def rows(self, output: Any, batch: LabelledBatch, number: int) -> Tensor:  # noqa: ARG002
        logits = self.logits(output, batch)
        if batch.labels is None:
            return _next_tokens(logits, batch.inputs)
        return functional.cross_entropy(logits, batch.labels.to(logits.device), reduction="none")

    def logits(self, output: Any, batch: LabelledBatch) -> Tensor:
        """[rows, classes], or [rows, tokens, tokens of the vocabulary]."""
        if batch.labels is None:
            return _of_vocabulary(output, batch.inputs).float()
        values = features_of(output, batch.inputs, self._features)
        logits = values if self._head is None else with_head(values, self._head)
        if logits.ndim != 2:
            raise ParameterError(
                f"the model's output has shape {list(logits.shape)}, not one logit for each class",
                remedy="name a head (--head) and the features that it takes (--features)",
            )
        return logits.float()

    def overall(self, values: Tensor) -> float:
        return float(values.double().mean())


class Errors(Loss):
    """The share of rows whose greatest logit is not their label's."""

    def rows(self, output: Any, batch: LabelledBatch, number: int) -> Tensor:  # noqa: ARG002
        assert batch.labels is not None
        logits = self.logits(output, batch)
        return (logits.argmax(dim=-1) != batch.labels.to(logits.device)).float()


class Drift:
    """How far the model's last features move, as a share of their length; root of mean squares."""

    def __init__(self) -> None:
        self._reference: list[Tensor] = []

    def start(self, outputs: Sequence[Any], batches: Sequence[LabelledBatch]) -> None:
        """Measure from these outputs on."""
        calls = zip(outputs, batches, strict=True)
        self._reference = [kept_features(output, batch.inputs) for output, batch in calls]

    def rows(self, output: Any, batch: LabelledBatch, number: int) -> Tensor:
        """The square of the share."""
        features = kept_features(output, batch.inputs)
        known = self._reference[number].to(features.device)
        moved = (features - known).flatten(1).square().sum(1)
        return moved / known.flatten(1).square().sum(1).clamp(min=torch.finfo(moved.dtype).tiny)

    def overall(self, values: Tensor) -> float:
        return float(values.double().mean().sqrt())


Criterion: TypeAlias = Loss | Errors | Drift
"""How bad each row of a batch is, and all rows together; more is worse."""


def kept_features(output: Any, inputs: Inputs) -> Float[Tensor, "rows *rest"]:
    """The output's main tensor, with zeros where there is only padding."""
    features = main_tensor(output).float()
    mask = inputs.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and features.shape[:2] == mask.shape:
        kept = mask.to(features.device, features.dtype)
        return features * kept.reshape(*kept.shape, *[1] * (features.ndim - 2))
    return features


def main_tensor(output: Any) -> Tensor:
    """The logits, or the last hidden state, or the only or first tensor of an output."""
    for name in ("logits", "last_hidden_state"):
        tensor = getattr(output, name, None)
        if isinstance(tensor, Tensor):
            return tensor
    values = output.values() if isinstance(output, Mapping) else output
    for value in [values] if isinstance(values, Tensor) else values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return value
    raise MagmergeError(
        f"the model's output, a {type(output).__name__}, holds no tensor of features",
        remedy="give a model that returns its features or logits",
    )


def _of_vocabulary(output: Any, inputs: Inputs) -> Tensor:
    """A language model's logits, [rows, tokens, tokens of the vocabulary]."""
    ids = inputs.kwargs.get("input_ids")
    logits = getattr(output, "logits", output)
    if not isinstance(ids, Tensor) or not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ParameterError(
            "the loss needs labels: this is no language model's output",
            remedy="name the labels' column (--label-field), or score by drift",
        )
    return logits


def _next_tokens(logits: Tensor, inputs: Inputs) -> Tensor:
    """The mean cross entropy of each text's tokens, given those before them."""
    ids = inputs.kwargs["input_ids"].to(logits.device)
    mask = inputs.kwargs.get("attention_mask", torch.ones_like(ids)).to(logits.device)[:, 1:]
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    kept = losses.reshape(mask.shape) * mask
    means: Tensor = kept.sum(1) / mask.sum(1).clamp(min=1)
    return means


MergedDelta = Callable[[str], Tensor]
"""The merge's task vector of a tensor, by its name."""


class Trial(NamedTuple):
    """A live merge, the layers that are ranked on batches by a score, and each one's change."""

    model: nn.Module
    layers: Sequence[Layer]
    batches: Sequence[LabelledBatch]
    score: Criterion
    deltas: MergedDelta
    factor: float


def call(model: nn.Module, batch: LabelledBatch) -> Any:
    """The model's output."""
    return run(model, batch.inputs, "the generic data set")


def by_trial(trial: Trial, done: Callable[[object], None] | None = None) -> dict[str, float]:
    """By how much the score rises when a layer's task vector alone is multiplied by the factor.

    arXiv:2512.19320, the sensitive layers, with a factor of 1.1. Blocks before the changed one are
    not run again: they put out what they did.
    """
    outputs, memories = [], []
    for batch in trial.batches:
        memory = RunRecord()
        with memory.recording(trial.model), torch.no_grad():
            outputs.append(call(trial.model, batch))
        memories.append(memory)
    if isinstance(trial.score, Drift):
        trial.score.start(outputs, trial.batches)
    before = _overall(trial, outputs)
    harms = {}
    for layer in trial.layers:
        name = layer.name
        with _with_factor(layer, trial), torch.no_grad():
            changed = []
            for batch, memory in zip(trial.batches, memories, strict=True):
                with memory.resuming(trial.model, memory.first(name)):
                    changed.append(call(trial.model, batch))
        harms[name] = _overall(trial, changed) - before
        if done is not None:
            done(layer)
    return harms


def _overall(trial: Trial, outputs: Sequence[Any]) -> float:
    calls = enumerate(zip(outputs, trial.batches, strict=True))
    rows = [trial.score.rows(output, batch, number) for number, (output, batch) in calls]
    return trial.score.overall(torch.cat(rows))


@contextmanager
def _with_factor(layer: Layer, trial: Trial) -> Iterator[None]:
    """Within it the layer has `factor` times its task vector; afterwards the very same weights."""
    own: Mapping[str, nn.Parameter] = {
        local: layer.module.get_parameter(local) for local in layer.tensors
    }
    kept = {local: parameter.detach().clone() for local, parameter in own.items()}
    with torch.no_grad():
        for local, tensor in layer.tensors.items():
            own[local].add_(trial.deltas(tensor).to(own[local]), alpha=trial.factor - 1)
    try:
        yield
    finally:
        with torch.no_grad():
            for local, parameter in own.items():
                parameter.copy_(kept[local])
