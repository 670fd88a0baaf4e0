"""Layers of a live model whose output is linear in what the merge changed, and that change."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError

TOLERANCE = 1e-3
"""Of the change: how far the output half way may be from the middle."""
CHUNK = 1 << 22
"""Entries of output that are computed at once where tokens do not depend on each other."""


FEATURES_LAST = (nn.LayerNorm, nn.RMSNorm)
"""Norms over the last axes of what they are given; in all else the features are the second axis."""


class NotLinearError(MagmergeError):
    """A layer's output is no tensor, or does not change in proportion to its parameters."""


class Call(NamedTuple):
    """One call of a layer; `masks`, [batch, tokens], are False for padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    masks: Sequence[Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensors that the layer is fed."""
        values = (*self.args, *self.kwargs.values())
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


Deltas = Mapping[str, Tensor]
"""Changes of a layer's parameters, by their names in the module; others do not change."""
Origin = Callable[[str], Tensor]
"""The base's weights of a layer's parameter, by its name in the module, in float32."""
Pieces = Iterator[tuple[int, Sequence[Tensor]]]
"""Parts of a layer, and pieces [tokens, features] of what each of several changes does there."""


class Layer:
    """A module, or some parameters of one, that have factors of their own.

    `name` is the module's path in the model; `tensors` are those of the checkpoint, by the names of
    its parameters in the module; `rows` is the part of the layer, with a factor of its own, that
    each output row belongs to, None where all are one part.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        tensors: Mapping[str, str],
        rows: Tensor | None = None,
    ) -> None:
        self.name, self.module, self.tensors, self._rows = name, module, tensors, rows

    def rows(self, _parameter: str, /) -> Tensor | int:
        """The part that each output row of a parameter belongs to, or the one all belong to."""
        return 0 if self._rows is None else self._rows

    def changes(self, call: Call, several: Sequence[Deltas], origin: Origin, /) -> Pieces:
        """The changes in output that each of `several` deltas makes, without padding.

        They change the same parameters. NotLinearError where a change in output is not in
        proportion to the deltas.
        """
        raise NotImplementedError


class TokenLayer(Layer):
    """A linear layer, a transposed one, or an embedding: every token is mapped on its own."""

    def changes(self, call: Call, several: Sequence[Deltas], _origin: Origin, /) -> Pieces:
        inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
        embeds = isinstance(self.module, nn.Embedding)
        if embeds:
            inputs = inputs.unsqueeze(-1)
        tokens = tokens_of(inputs, call.masks)
        axis = 1 if embeds or is_turned(self.module) else 0
        own: Any = self.module.weight
        size = max(1, CHUNK // own.shape[axis])
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            if embeds:
                outs = [deltas["weight"][piece[:, 0]] for deltas in several]
            else:
                tokens_here = piece.float()
                outs = [self._product(tokens_here, deltas) for deltas in several]
            yield from split(outs, self._rows)

    def _product(self, tokens: Tensor, deltas: Deltas) -> Tensor:
        weight, bias = deltas.get("weight"), deltas.get("bias")
        if weight is None:
            assert bias is not None
            return bias.expand(len(tokens), -1)
        matrix = weight if is_turned(self.module) else weight.T
        return tokens @ matrix if bias is None else torch.addmm(bias, tokens, matrix)


class KnownLayer(Layer):
    """A norm or a convolution of torch's own, whose forward is linear in its parameters.

    Its forward is called with the changes in the parameters' place.
    """

    def changes(self, call: Call, several: Sequence[Deltas], _origin: Origin, /) -> Pieces:
        yield 0, [tokens_of(self._answer(call, deltas), call.masks) for deltas in several]

    def _answer(self, call: Call, deltas: Deltas) -> Tensor:
        """The output [..., features] with these deltas for parameters."""
        own = self.module.named_parameters(recurse=False)
        changed = {
            name: deltas.get(name, torch.zeros_like(parameter, dtype=torch.float32))
            for name, parameter in own
        }
        stand_in = with_parameters(self.module, changed)
        buffers, keywords = self.module._buffers.items(), call.kwargs.items()
        stand_in.__dict__["_buffers"] = {name: _widened(value) for name, value in buffers}
        out: Tensor = stand_in.forward(
            *map(_widened, call.args), **{name: _widened(value) for name, value in keywords}
        )
        last = isinstance(self.module, FEATURES_LAST)
        module: Any = self.module
        return out.flatten(-len(module.normalized_shape)) if last else out.movedim(1, -1)


class TrialLayer(Layer):
    """A module whose output is computed, in float64, with the base's parameters and with changes.

    That what half of a change does is half of what the change does is tried on every call: on its
    first sample, and on all where that one by itself gives something else.
    """

    def changes(self, call: Call, several: Sequence[Deltas], origin: Origin, /) -> Pieces:
        base = {name: origin(name).double() for name in several[0]}
        inputs, first = _WideInputs(call), _WideInputs(_first_sample(call))
        before = self._answer(inputs, base)
        changes = [self._answer(inputs, _moved(base, deltas, 1.0)) - before for deltas in several]
        for deltas, change in zip(several, changes, strict=True):
            half = _moved(base, deltas, 0.5)
            with suppress(Exception):
                # What one sample alone does to a module is told by all of them.
                if self._is_middle(first, half, before[:1], change[:1]):
                    continue
            if not self._is_middle(inputs, half, before, change):
                raise NotLinearError("its output does not change in proportion to its parameters")
        axis = self._features(before)
        outs = [tokens_of(change.movedim(axis, -1), call.masks) for change in changes]
        yield from split(outs, self._rows)

    def _is_middle(
        self, inputs: _WideInputs, half: Mapping[str, Tensor], before: Tensor, change: Tensor
    ) -> bool:
        """Whether the output with half of a change is in the middle, as near as can be told."""
        middle = self._answer(inputs, half)
        if middle.shape != change.shape:
            return False
        bend = _greatest((middle - before).mul_(2).sub_(change)) / 2
        return bool(bend <= TOLERANCE * _greatest(change))

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


def _first_sample(call: Call) -> Call:
    """The call with the first row of all tensors that have as many as the first of them."""
    values = [*call.args, *call.kwargs.values()]
    rows = next((len(v) for v in values if isinstance(v, Tensor) and v.ndim > 1), 0)

    def first(value: Any) -> Any:
        own = isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
        return value[:1] if own else value

    kwargs = {name: first(value) for name, value in call.kwargs.items()}
    return Call(tuple(map(first, call.args)), kwargs, call.masks)


def _moved(base: Mapping[str, Tensor], deltas: Deltas, share: float) -> dict[str, Tensor]:
    """The base's parameters with a share of the changes."""
    return {name: base[name] + share * deltas[name] for name in deltas}


def _greatest(tensor: Tensor) -> Tensor:
    """The greatest magnitude; NaN where there is one."""
    greatest: Tensor = torch.linalg.vector_norm(tensor, torch.inf)
    return greatest


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


def tokens_of(out: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """[tokens, features] from a tensor whose last axis is features, without padding."""
    tokens = out.reshape(-1, out.shape[-1])
    kept = kept_tokens(out.shape[:-1], masks)
    return tokens if kept is None else tokens[kept.to(tokens.device)]


Module = TypeVar("Module", bound=nn.Module)


def with_parameters(module: Module, parameters: Mapping[str, Tensor]) -> Module:
    """The same module with other parameters of its own; `module` itself is not touched."""
    stand_in = copy.copy(module)
    stand_in.__dict__["_parameters"] = {**module._parameters, **parameters}
    return stand_in


def _widened(value: Any) -> Any:
    """A tensor of features in float32; any other value as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def split(outs: Sequence[Tensor], rows: Tensor | None) -> Pieces:
    """Each part's own columns of several [tokens, features]."""
    if rows is None:
        yield 0, outs
        return
    rows = rows.to(outs[0].device)
    for part in range(int(rows.max()) + 1):
        yield part, [out[:, rows == part] for out in outs]


def kept_tokens(shape: Sequence[int], masks: Sequence[Tensor]) -> Tensor | None:
    """Which of the tokens, flattened from `shape`, are no padding; None if no mask is theirs.

    The first mask that fits is theirs.
    """
    for mask in masks:
        if tuple(shape[:2]) == tuple(mask.shape):
            rest = [1] * (len(shape) - 2)
            return mask.reshape(*mask.shape, *rest).expand(*shape).reshape(-1)
        if len(shape) == 1 and shape[0] == mask.numel():
            return mask.reshape(-1)
    return None


def is_turned(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
