"""Without labels: how near a model's features and outputs come to an expert's on the same rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from magmerge.data.rows import Inputs


class Answer(NamedTuple):
    """What a model makes of some rows; each part None where the model has it not.

    `features` are [rows, tokens, width], or without tokens; `logits` [rows, tokens, classes], or
    without tokens. `kept` [rows, tokens] is False for tokens that are padding, None: all count.
    """

    features: Float[Tensor, "rows *tokens width"] | None
    logits: Float[Tensor, "rows *tokens classes"] | None
    kept: Bool[Tensor, "rows tokens"] | None = None

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(part.numel() * part.element_size() for part in self if part is not None)


def feature_error(
    features: Float[Tensor, "rows width"],
    expert: Float[Tensor, "rows width"],
    base: Float[Tensor, "rows width"],
) -> Float[Tensor, "rows"]:
    """|f - f_k| / |f_k - f_0| of each row: 0 for the expert, 1 for the base; NaN where the expert's
    features are the base's.
    """
    apart = torch.linalg.vector_norm(features - expert, dim=-1)
    return _ratio(apart, torch.linalg.vector_norm(expert - base, dim=-1))


def change_cosine(
    features: Float[Tensor, "rows width"],
    expert: Float[Tensor, "rows width"],
    base: Float[Tensor, "rows width"],
) -> Float[Tensor, "rows"]:
    """Cosine of f - f_0 and f_k - f_0 of each row; NaN where one of them is zero."""
    own, other = features - base, expert - base
    norms = torch.linalg.vector_norm(own, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    return _ratio((own * other).sum(dim=-1), norms)


def change_ratio(
    features: Float[Tensor, "rows width"],
    expert: Float[Tensor, "rows width"],
    base: Float[Tensor, "rows width"],
) -> Float[Tensor, "rows"]:
    """|f - f_0| / |f_k - f_0| of each row: how far the features went of the expert's way."""
    own = torch.linalg.vector_norm(features - base, dim=-1)
    return _ratio(own, torch.linalg.vector_norm(expert - base, dim=-1))


def divergence(
    logits: Float[Tensor, "rows *tokens classes"], expert: Float[Tensor, "rows *tokens classes"]
) -> Float[Tensor, "rows *tokens"]:
    """Kullback-Leibler divergence from the expert's output to this one, in nats.

    A class that the expert gives no probability (a logit of minus infinity) adds nothing. A single
    number has no softmax; it counts as the mean of a normal distribution of variance one, so that
    the divergence is half the squared difference.
    """
    own, other = logits.double(), expert.double()
    if own.shape[-1] == 1:
        return (own - other).square().squeeze(-1) / 2
    own, other = own.log_softmax(dim=-1), other.log_softmax(dim=-1)
    likely = other.exp()
    return torch.where(likely == 0, 0.0, likely * (other - own)).sum(dim=-1)


def agreement(
    logits: Float[Tensor, "rows *tokens classes"], expert: Float[Tensor, "rows *tokens classes"]
) -> Float[Tensor, "rows *tokens"]:
    """1 where both predict the same class, else 0; NaN for a single number, which has no class."""
    if logits.shape[-1] == 1:
        return torch.full_like(logits[..., 0], torch.nan, dtype=torch.float64)
    return (logits.argmax(dim=-1) == expert.argmax(dim=-1)).double()


MEASURES = ("feature error", "cosine", "norm ratio", "kl", "agreement")
"""The columns of what `compare` gives."""


def compare(own: Answer, expert: Answer, base: Answer) -> Float[Tensor, "rows measures"]:
    """The measures of each row, in the order of MEASURES; NaN where one is not defined.

    All tokens of a row together are its features; of outputs the mean over its tokens is taken.
    """
    one = expert.features if expert.features is not None else expert.logits
    assert one is not None
    columns = [*unknown(len(one)).unbind(dim=1)]
    three = [a.features for a in (own, expert, base) if a.features is not None]
    if len(three) == len((own, expert, base)):
        flat = [_flat(features, expert.kept) for features in three]
        columns[:3] = [measure(*flat) for measure in (feature_error, change_cosine, change_ratio)]
    if own.logits is not None and expert.logits is not None:
        # Row by row: in float64 a large vocabulary takes much memory.
        both = [*zip(own.logits.unsqueeze(1), expert.logits.unsqueeze(1), strict=True)]
        columns[3:] = [
            _by_row(torch.cat([measure(*row) for row in both]), expert.kept)
            for measure in (divergence, agreement)
        ]
    return torch.stack(columns, dim=1)


def unknown(rows: int) -> Float[Tensor, "rows measures"]:
    """The measures of rows on which none is defined: NaN."""
    return torch.full((rows, len(MEASURES)), torch.nan, dtype=torch.float64)


def means(rows: Float[Tensor, "rows measures"]) -> dict[str, float | None]:
    """The mean of each measure over the rows where it is finite; None where it is on none."""
    values = rows.where(rows.isfinite(), torch.nan).nanmean(dim=0).tolist()
    return {
        name: None if math.isnan(value) else value
        for name, value in zip(MEASURES, values, strict=True)
    }


def answer_of(output: Any, inputs: Inputs) -> Answer | None:
    """The last features and the logits in a module's output, on the CPU; None where it has neither.

    Both are of floats, with a row for each sample. A plain tensor, or the first that is fit of a
    tuple or a list, is taken as features; one number a row as an output. The state of a model of
    images [rows, width, ...] counts as one row's features, whatever axes it has.
    """
    fit = partial(_by_sample, rows=inputs.rows)
    logits, features = fit(_part(output, "logits")), fit(_part(output, "last_hidden_state"))
    states = getattr(output, "hidden_states", None)
    if features is None and isinstance(states, Sequence) and states:
        features = fit(states[-1])
    if features is None and logits is None:
        parts = output if isinstance(output, tuple | list) else (output,)
        plain = next((part for each in parts if (part := fit(each)) is not None), None)
        number = plain is not None and plain.shape[1:] == (1,)
        logits, features = (plain, None) if number else (None, plain)
    if features is None and logits is None:
        return None
    mask, like = inputs.kwargs.get("attention_mask"), features if logits is None else logits
    assert like is not None
    fits = isinstance(mask, Tensor) and like.ndim == 3 and mask.shape == like.shape[:2]
    kept = mask.bool().cpu() if isinstance(mask, Tensor) and fits else None
    return Answer(_kept_here(features), _kept_here(logits), kept)


def with_states(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs, and a language model asked for its last features beside its logits."""
    named = inspect.signature(model.forward).parameters.values()
    takes = any(p.name == "output_hidden_states" or p.kind is p.VAR_KEYWORD for p in named)
    if not takes or getattr(model, "config", None) is None:
        return inputs
    return Inputs(inputs.args, {**inputs.kwargs, "output_hidden_states": True}, inputs.rows)


def _kept_here(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.detach().float().cpu()


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _by_sample(part: Any, rows: int) -> Tensor | None:
    """A tensor of floats with a row for each sample, [rows, ...], or [rows, 1] of a vector."""
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.shape[:1] != (rows,):
        return None
    return part.unsqueeze(1) if part.ndim == 1 else part


ENOUGH = 8
"""Rows below which CKA tells little, as few rows are much alike in any two models: on the suite
text it finds the average and TSV-M, 1.5 points better, about as near on 3 and on 4 rows.
"""


def pooled(answer: Answer) -> Float[Tensor, "rows width"] | None:
    """An answer's features of each row, in float64: of tokens the mean of those that are no
    padding. None where it has none.
    """
    features, kept = answer.features, answer.kept
    if features is None or features.ndim != 3:
        return None if features is None else features.double().flatten(1)
    weights = torch.ones(features.shape[:2]) if kept is None else kept
    weights = weights.to(torch.float64).unsqueeze(-1)
    return (features.double() * weights).sum(dim=1) / weights.sum(dim=1)


def alignment(own: Float[Tensor, "rows width"], expert: Float[Tensor, "rows width"]) -> float:
    """Linear CKA (arXiv:1905.00414): how alike two models order the same rows, from 0 to 1; neither
    length nor rotation of the features counts. NaN for fewer than ENOUGH rows, and where one model
    tells no rows apart.
    """
    grams = []
    for features in (own, expert):
        centred = features - features.mean(dim=0)
        grams.append(centred @ centred.T)
    norms = torch.linalg.matrix_norm(grams[0]) * torch.linalg.matrix_norm(grams[1])
    if len(own) < ENOUGH or not bool(norms > 0):
        return math.nan
    return float((grams[0] * grams[1]).sum() / norms)


def _flat(features: Tensor, kept: Tensor | None) -> Float[Tensor, "rows width"]:
    if kept is not None and features.ndim == 3:
        features = features * kept.unsqueeze(-1)
    return features.double().flatten(1)


def _by_row(values: Tensor, kept: Tensor | None) -> Float[Tensor, "rows"]:
    if values.ndim == 1:
        return values
    weights = torch.ones_like(values) if kept is None else kept.to(values)
    axes = tuple(range(1, values.ndim))
    return _ratio((values * weights).sum(dim=axes), weights.sum(dim=axes))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient; NaN where it is none."""
    return torch.where(below > 0, above / below, torch.nan).double()
