"""Sensitivity without trying: derivatives of the score along every layer's task vector at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.evaluation.sensitivity.layer_trials import (
    Drift,
    LabelledBatch,
    Loss,
    MergedDelta,
    Trial,
    call,
    kept_features,
)
from magmerge.live.layers import Layer, with_parameters

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def by_derivative(
    trial: Trial, seed: int, done: Callable[[object], None] | None = None
) -> dict[str, float]:
    """What `by_trial` measures, to second order in factor - 1, from one run of each batch.

    With e_l a multiple of layer l's task vector that is added: score' e + 1/2 e^2 G. The loss has
    its derivative in e, row by row, by one backward pass; G is the mean square of that derivative
    for labels drawn from the model's own answer, another pass (Gauss-Newton). Drift has no first
    order: its square is e^2 |J D|^2 / |f|^2, and |J D|^2 the mean square of the derivative along a
    random direction of the features. Layers of other kinds than linear ones and convolutions are
    left out.
    """
    score, generator = trial.score, torch.Generator().manual_seed(seed)
    layers = [layer for layer in trial.layers if _is_linear(layer.module)]
    slopes: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    curves: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    foreign = set[str]()
    for number, batch in enumerate(trial.batches):
        rows = batch.inputs.rows
        with _with_shares(layers, trial.deltas, rows, foreign) as shares, torch.enable_grad():
            output = call(trial.model, batch)
            inputs = list(shares.values())
            if isinstance(score, Loss):
                losses = score.rows(output, batch, number)
                first = _gradients(losses, inputs, keep=True)
                drawn = _drawn_losses(score.logits(output, batch), batch, generator)
                second = _gradients(drawn, inputs, keep=False)
            else:
                first = [torch.zeros_like(share) for share in inputs]
                second = _gradients(_projection(output, batch, generator), inputs, keep=False)
        for name, gradient, other in zip(shares, first, second, strict=True):
            slopes[name].append(gradient)
            curves[name].append(other.square())
        if done is not None:
            done(batch)
    step, harms = trial.factor - 1, {}
    for name in [name for name in slopes if name not in foreign]:
        curvature = float(torch.cat(curves[name]).double().mean())
        if isinstance(score, Drift):
            harms[name] = abs(step) * curvature**0.5
        else:
            slope = float(torch.cat(slopes[name]).double().mean())
            harms[name] = step * slope + step**2 * curvature / 2
    return harms


def _is_linear(module: nn.Module) -> bool:
    """Whether a change of its weights changes its output by one of the output's shape."""
    return isinstance(module, LINEAR) or type(module).__name__ == "Conv1D"


@contextmanager
def _with_shares(
    layers: Sequence[Layer], deltas: MergedDelta, rows: int, foreign: set[str]
) -> Iterator[dict[str, Tensor]]:
    """Within it each layer adds, for every row, a share of its task vector's output: zero of it.

    The shares [rows], by the layers' names, are what derivatives are taken of. Layers whose output
    has no rows of the batch are put into `foreign`.
    """
    shares, handles = {}, []

    def adding(layer: Layer, share: Tensor) -> Callable[..., Tensor]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            if output.ndim < 2 or len(output) % len(share) or not len(output):
                foreign.add(layer.name)
                return output
            change = {
                local: deltas(layer.tensors[local]).to(parameter)
                if local in layer.tensors
                else torch.zeros_like(parameter)
                for local, parameter in module.named_parameters(recurse=False)
            }
            moved = with_parameters(module, change).forward(*args, **kwargs)
            # Some models hand all tokens of a batch to a layer as one row each.
            weights = share.repeat_interleave(len(moved) // len(share))
            extended: Tensor = output + weights.reshape(-1, *[1] * (moved.ndim - 1)) * moved
            return extended

        return hook

    for layer in layers:
        module = layer.module
        device = next(module.parameters()).device
        share = torch.zeros(rows, device=device, requires_grad=True)
        shares[layer.name] = share
        handles.append(module.register_forward_hook(adding(layer, share), with_kwargs=True))
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()


def _gradients(rows: Tensor, shares: Sequence[Tensor], *, keep: bool) -> list[Tensor]:
    """The derivative of each row's value along its own shares; zero for a layer not run."""
    gradients = torch.autograd.grad(rows.sum(), shares, retain_graph=keep, allow_unused=True)
    return [
        torch.zeros_like(share) if gradient is None else gradient.detach()
        for share, gradient in zip(shares, gradients, strict=True)
    ]


def _drawn_losses(logits: Tensor, batch: LabelledBatch, generator: torch.Generator) -> Tensor:
    """The loss of each row for labels, or next tokens, that are drawn from the model's answer.

    The loss of n tokens is their mean, whose curvature is the mean of theirs: the draws are
    independent, so the square of a sum over root n is that mean.
    """
    probabilities = logits.detach().softmax(-1)
    flat = probabilities.reshape(-1, probabilities.shape[-1]).cpu()
    drawn = torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:-1])
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), drawn.reshape(-1).to(logits.device), reduction="none"
    ).reshape(logits.shape[:-1])
    if batch.labels is not None:
        return losses
    mask = batch.inputs.kwargs.get("attention_mask", torch.ones(logits.shape[:2]))
    kept = mask.to(logits.device, losses.dtype)[:, 1:]
    means: Tensor = (losses[:, :-1] * kept).sum(1) / kept.sum(1).clamp(min=1).sqrt()
    return means


def _projection(output: Any, batch: LabelledBatch, generator: torch.Generator) -> Tensor:
    """Each row's features along a random direction, as a share of their length."""
    features = kept_features(output, batch.inputs).flatten(1)
    length = features.detach().square().sum(1).sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    direction = torch.randn(features.shape, generator=generator).to(features.device)
    return (features * direction).sum(1) / length
