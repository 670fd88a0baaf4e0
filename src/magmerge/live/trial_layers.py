"""Layers of any class, whose parameters are tried: whether the output changes in proportion."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
"""Of the least change: how far the output with a part of each may be from where it should be."""
CACHED = 1 << 15
"""Entries that are compared at once, so that they stay in the cache."""


class TrialLayer(Layer):
    """A module whose output is computed, in float64, with the base's parameters and with changes.

    That it changes in proportion is tried on every call: with a half of the first change, a quarter
    of the second and so on, all at once, the output has that much of what each of them does. As
    their shares differ, two changes that are alike do not hide each other.
    """

    def changes(self, call: Call, several: Sequence[Deltas], origin: Origin, /) -> Pieces:
        base = {name: origin(name).double() for name in several[0]}
        inputs = _WideInputs(call)
        before = self._answer(inputs, base)
        changes = [self._answer(inputs, _moved(base, deltas, 1.0)) - before for deltas in several]
        shares = [0.5 ** (place + 1) for place in range(len(several))]
        part = dict(base)
        for deltas, share in zip(several, shares, strict=True):
            part = _moved(part, deltas, share)
        if not _is_sum(self._answer(inputs, part), before, changes, shares):
            raise NotLinearError("its output does not change in proportion to its parameters")
        axis = self._features(before)
        outs = [tokens_of(change.movedim(axis, -1), call.masks) for change in changes]
        yield from split(outs, self._rows)

    def _answer(self, inputs: _WideInputs, parameters: Mapping[str, Tensor]) -> Tensor:
        stand_in = _in_float64(self.module, parameters)
        args, kwargs = inputs.take()
        out = stand_in.forward(*args, **kwargs)
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


class _WideInputs:
    """What a module is called with, in float64; copied anew when it has written into it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._args, self._kwargs, self._versions = self._copies()

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the call had them."""
        if self._versions != _versions((self._args, self._kwargs)):
            self._args, self._kwargs, self._versions = self._copies()
        return self._args, self._kwargs

    def _copies(self) -> tuple[tuple[Any, ...], dict[str, Any], list[int]]:
        args, kwargs = _copied(self._call.args), _copied(dict(self._call.kwargs))
        return args, kwargs, _versions((args, kwargs))


def _versions(value: Any) -> list[int]:
    """How often each tensor was written to, of all in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return [value._version]
    parts = value.values() if isinstance(value, Mapping) else value
    nested = isinstance(value, Mapping | list | tuple)
    return [version for part in parts for version in _versions(part)] if nested else []


def _moved(base: Mapping[str, Tensor], deltas: Deltas, share: float) -> dict[str, Tensor]:
    """The base's parameters with a share of the changes."""
    return {name: base[name] + share * deltas[name] for name in deltas}


def _is_sum(
    out: Tensor, before: Tensor, changes: Sequence[Tensor], shares: Sequence[float]
) -> bool:
    """Whether `out` is `before` and a share of each change, as near as can be told. Changes of
    nothing but zeros have no say in how near that is.
    """
    if any(out.shape != other.shape for other in (before, *changes)):
        return False
    bend = 0.0
    flat = (torch.split(t.reshape(-1), CACHED) for t in (out, before, *changes))
    for own, origin, *parts in zip(*flat, strict=True):
        rest = own - origin
        for part, share in zip(parts, shares, strict=True):
            rest.sub_(part, alpha=share)
        greatest = _greatest(rest)
        # The negation is true of NaN as well.
        if not greatest <= bend:
            bend = greatest
    sizes = [size for size in map(_greatest, changes) if size != 0]
    return bend <= TOLERANCE * min(sizes, default=0.0)


def _greatest(tensor: Tensor) -> float:
    """The greatest magnitude; NaN where there is one."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))


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
