"""Modules of any kind, on trial: whether their output changes in proportion to their parameters."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.live.layers import (
    Call,
    Deltas,
    Layer,
    NotLinearError,
    Origin,
    Pieces,
    split,
    tokens_of,
)

TOLERANCE = 1e-3
"""Of the change: how far the output half way may be from the middle."""


class TrialLayer(Layer):
    """A module whose output is computed, in float64, with the base's parameters and with changes.

    That what half of a change does is half of what the change does is tried on every call.
    """

    def changes(self, call: Call, deltas: Deltas, origin: Origin, /) -> Pieces:
        base = {name: origin(name).double() for name in deltas}
        before, half, after = (
            self._answer(call, {name: base[name] + share * deltas[name] for name in deltas})
            for share in (0.0, 0.5, 1.0)
        )
        change = after - before
        bend = (half - (before + after) / 2).abs().max()
        if not bool(bend <= TOLERANCE * change.abs().max()):
            raise NotLinearError("its output does not change in proportion to its parameters")
        axis = self._features(after)
        yield from split(tokens_of(change.movedim(axis, -1), call.masks), self._rows)

    def _answer(self, call: Call, parameters: Mapping[str, Tensor]) -> Tensor:
        stand_in = _in_float64(self.module, parameters)
        out = stand_in.forward(
            *map(_copied, call.args), **{n: _copied(v) for n, v in call.kwargs.items()}
        )
        if not isinstance(out, Tensor) or out.ndim < 2 or not out.is_floating_point():
            raise NotLinearError("its output is no tensor of features")
        return out.double()

    def _features(self, out: Tensor) -> int:
        """The axis of the output that is features, as sizes and torch's own classes tell."""
        convolution = isinstance(self.module, nn.modules.conv._ConvNd)
        norm = isinstance(self.module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
        if convolution or norm or getattr(self.module, "data_format", "") == "channels_first":
            return 1
        sizes = {p.numel() for p in self.module.parameters(recurse=False) if p.numel() > 1}
        if out.ndim >= 4 and out.shape[1] in sizes and out.shape[-1] not in sizes:
            return 1
        return -1


def _in_float64(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A copy for one call: in float64, with these parameters of its own, and without hooks."""
    if any(name.endswith(("_orig", "_g", "_v")) for name in module._parameters):
        # The old ways of norming weights leave what they are computed from under these names.
        raise NotLinearError("its parameters are computed from others")
    try:
        stand_in = copy.copy(module)
    except RuntimeError as error:
        raise NotLinearError("its parameters are computed from others") from error
    state = stand_in.__dict__
    own = {**module._parameters, **parameters}
    state["_parameters"] = {name: _copied(value) for name, value in own.items()}
    state["_buffers"] = {name: _copied(value) for name, value in module._buffers.items()}
    state["_modules"] = {
        name: None if child is None else _in_float64(child, {})
        for name, child in module._modules.items()
    }
    state["_forward_hooks"], state["_forward_pre_hooks"] = OrderedDict(), OrderedDict()
    return stand_in


def _copied(value: Any) -> Any:
    """A tensor of its own memory, in float64 if it is of numbers that are not whole."""
    if isinstance(value, Tensor):
        return value.detach().to(torch.float64, copy=True) if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return {name: _copied(part) for name, part in value.items()} if type(value) is dict else value
