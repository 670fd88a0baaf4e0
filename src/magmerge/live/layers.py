"""Layers of a live model whose output is linear in what the merge changed, and that change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError

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
