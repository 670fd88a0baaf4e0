"""Layers of a live model whose output is linear in what the merge changed, and that change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from magmerge.errors import MagmergeError

CHUNK = 1 << 22
"""Entries of output that are computed at once where tokens do not depend on each other."""


class NotLinearError(MagmergeError):
    """A layer's output is no tensor, or does not change in proportion to its parameters."""


class Call(NamedTuple):
    """One call of a layer. `kept` [tokens, in the output's order] is False for padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    masks: Sequence[Tensor]


Deltas = Mapping[str, Tensor]
"""Changes of a layer's parameters, by their names in the module; others do not change."""


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

    def changes(self, call: Call, deltas: Deltas) -> Iterator[tuple[int, Tensor]]:
        """Parts and pieces [tokens, features] of the change in output that `deltas` make.

        In float32, without padding, and in the same pieces for any `deltas`.
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

    def changes(self, call: Call, deltas: Deltas) -> Iterator[tuple[int, Tensor]]:
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


class AffineLayer:
    """A module whose own forward is affine in its parameters: a norm, a convolution, a table.

    `features` is the axis of its output that norms are taken over. Its forward is called with the
    changes in the parameters' place, and again with zeros unless that is known to give zero.
    """

    parts = 1

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameters: Sequence[str],
        *,
        features: int = -1,
        homogeneous: bool = True,
    ) -> None:
        self.name, self.module, self.parameters = name, module, parameters
        self._features, self._homogeneous = features, homogeneous

    def rows(self, parameter: str) -> Tensor | int:  # noqa: ARG002
        return 0

    def changes(self, call: Call, deltas: Deltas) -> Iterator[tuple[int, Tensor]]:
        out = self._answer(call, deltas, 1.0)
        if not self._homogeneous:
            # Enlarged, so that a small change does not drown in what the layer gives without it.
            largest = max((float(delta.abs().max()) for delta in deltas.values()), default=0.0)
            scale = 1.0 if largest == 0 else 2.0 ** round(-torch.log2(torch.tensor(largest)).item())
            rest = self._answer(call, {}, 0.0)
            out = (self._answer(call, deltas, scale) - rest) / scale
            twice = (self._answer(call, deltas, 2 * scale) - rest) / (2 * scale)
            if not torch.allclose(out, twice, rtol=1e-3, atol=1e-3 * float(out.abs().max())):
                raise NotLinearError("its output does not change in proportion to its parameters")
        out = out.movedim(self._features, -1)
        tokens = out.reshape(-1, out.shape[-1])
        kept = kept_tokens(out.shape[:-1], call.masks)
        yield 0, tokens if kept is None else tokens[kept.to(tokens.device)]

    def _answer(self, call: Call, deltas: Deltas, scale: float) -> Tensor:
        """The output with `deltas` for the parameters, and zeros for all that are not in it."""
        changed = {
            name: _in_place_of(own, deltas.get(name), scale)
            for name, own in self.module.named_parameters(recurse=False)
        }
        stand_in = with_parameters(self.module, changed)
        keywords = dict(zip(call.kwargs, widened(call.kwargs.values()), strict=True))
        out = stand_in.forward(*widened(call.args), **keywords)
        if not isinstance(out, Tensor) or out.ndim < 2 or not out.is_floating_point():
            raise NotLinearError("its output is no tensor of features")
        return out.float()


Module = TypeVar("Module", bound=nn.Module)


def with_parameters(module: Module, parameters: Mapping[str, Tensor]) -> Module:
    """The same module with other parameters of its own; `module` itself is not touched."""
    stand_in = copy.copy(module)
    stand_in.__dict__["_parameters"] = {**module._parameters, **parameters}
    return stand_in


def _in_place_of(own: Tensor, delta: Tensor | None, scale: float) -> Tensor:
    if delta is None:
        return torch.zeros_like(own, dtype=torch.float32)
    return delta * scale


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
    """Which of the tokens, flattened from `shape`, are no padding; None if no mask is theirs."""
    for mask in masks:
        if tuple(shape[:2]) == tuple(mask.shape):
            rest = [1] * (len(shape) - 2)
            return mask.bool().reshape(*mask.shape, *rest).expand(*shape).reshape(-1)
        if len(shape) == 1 and shape[0] == mask.numel():
            return mask.bool().reshape(-1)
    return None


def is_turned(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _width(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    turned = is_turned(module) or isinstance(module, nn.Embedding)
    return weight.shape[1] if turned else weight.shape[0]
