"""Layers of a live model whose output is linear in what the merge changed, and that change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from magmerge.errors import MagmergeError

CHUNK = 1 << 22
"""Entries of output that are computed at once where tokens do not depend on each other."""


class NotLinearError(MagmergeError):
    """A layer's output is no tensor, or does not change in proportion to its parameters."""


class Call(NamedTuple):
    """One call of a layer; `masks`, [batch, tokens], are False for padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    masks: Sequence[Tensor]


Deltas = Mapping[str, Tensor]
"""Changes of a layer's parameters, by their names in the module; others do not change."""
Origin = Callable[[str], Tensor]
"""The base's weights of a layer's parameter, by its name in the module, in float32."""


class Layer(Protocol):
    """A module, or some parameters of one, that have factors of their own."""

    @property
    def name(self) -> str:
        """The module's path in the model."""
        ...

    @property
    def module(self) -> nn.Module:
        """What is called."""
        ...

    @property
    def parameters(self) -> Sequence[str]:
        """The parameters whose changes it answers to, by their paths in `module`."""
        ...

    @property
    def parts(self) -> int:
        """How many factors it has."""
        ...

    def rows(self, parameter: str) -> Tensor | int:
        """The part that each output row of a parameter belongs to, or the one all belong to."""
        ...

    def changes(self, call: Call, deltas: Deltas, origin: Origin) -> Iterator[tuple[int, Tensor]]:
        """Parts and pieces [tokens, features] of the change in output that `deltas` make.

        Without padding, and in the same pieces for any `deltas`. NotLinearError where the change
        is not in proportion to `deltas`.
        """
        ...


class TokenLayer:
    """A linear layer, a transposed one, or an embedding: every token is mapped on its own."""

    def __init__(
        self, name: str, module: nn.Module, parameters: Sequence[str], rows: Tensor | None
    ) -> None:
        self.name, self.module, self.parameters = name, module, parameters
        self._rows = rows
        self.parts = 1 if rows is None else int(rows.max()) + 1

    def rows(self, parameter: str) -> Tensor | int:  # noqa: ARG002
        return 0 if self._rows is None else self._rows

    def changes(
        self,
        call: Call,
        deltas: Deltas,
        origin: Origin,  # noqa: ARG002
    ) -> Iterator[tuple[int, Tensor]]:
        inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
        looked_up = isinstance(self.module, nn.Embedding)
        tokens = inputs.reshape(-1) if looked_up else inputs.reshape(-1, inputs.shape[-1])
        kept = kept_tokens(inputs.shape if looked_up else inputs.shape[:-1], call.masks)
        if kept is not None:
            tokens = tokens[kept.to(tokens.device)]
        weight, bias = deltas.get("weight"), deltas.get("bias")
        size = max(1, CHUNK // _width(self.module))
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            if looked_up:
                assert weight is not None
                out = weight[piece]
            else:
                out = self._product(piece.float(), weight, bias)
            yield from split(out, self._rows)

    def _product(self, tokens: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            assert bias is not None
            return bias.expand(len(tokens), -1)
        matrix = weight if is_turned(self.module) else weight.T
        return tokens @ matrix if bias is None else torch.addmm(bias, tokens, matrix)


class KnownLayer:
    """A norm or a convolution of torch's own, whose forward is linear in its parameters.

    Its forward is called with the changes in the parameters' place. `features` is how many axes of
    its output at the end are features; 0 where they are the second axis.
    """

    parts = 1

    def __init__(
        self, name: str, module: nn.Module, parameters: Sequence[str], *, features: int
    ) -> None:
        self.name, self.module, self.parameters = name, module, parameters
        self._features = features

    def rows(self, parameter: str) -> Tensor | int:  # noqa: ARG002
        return 0

    def changes(
        self,
        call: Call,
        deltas: Deltas,
        origin: Origin,  # noqa: ARG002
    ) -> Iterator[tuple[int, Tensor]]:
        own = self.module.named_parameters(recurse=False)
        changed = {
            name: deltas.get(name, torch.zeros_like(parameter, dtype=torch.float32))
            for name, parameter in own
        }
        stand_in = with_parameters(self.module, changed)
        buffers = self.module._buffers
        stand_in.__dict__["_buffers"] = dict(zip(buffers, widened(buffers.values()), strict=True))
        keywords = dict(zip(call.kwargs, widened(call.kwargs.values()), strict=True))
        out = stand_in.forward(*widened(call.args), **keywords)
        out = out.movedim(1, -1) if self._features == 0 else out.flatten(-self._features)
        yield 0, tokens_of(out, call.masks)


def tokens_of(out: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """[tokens, features] from an output whose last axis is features, without padding."""
    tokens = out.reshape(-1, out.shape[-1])
    kept = kept_tokens(out.shape[:-1], masks)
    return tokens if kept is None else tokens[kept.to(tokens.device)]


Module = TypeVar("Module", bound=nn.Module)


def with_parameters(module: Module, parameters: Mapping[str, Tensor]) -> Module:
    """The same module with other parameters of its own; `module` itself is not touched."""
    stand_in = copy.copy(module)
    stand_in.__dict__["_parameters"] = {**module._parameters, **parameters}
    return stand_in


def widened(values: Any) -> tuple[Any, ...]:
    """The values, with tensors of features in float32."""
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in values
    )


def split(out: Tensor, rows: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Each part's own columns of [tokens, features]."""
    if rows is None:
        yield 0, out
        return
    rows = rows.to(out.device)
    for part in range(int(rows.max()) + 1):
        yield part, out[:, rows == part]


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


def _width(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    turned = is_turned(module) or isinstance(module, nn.Embedding)
    return weight.shape[1] if turned else weight.shape[0]
