"""Layers whose parameters a module uses by itself: attention of torch's own, fused experts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from magmerge.live.layers import (
    Call,
    Deltas,
    Layer,
    NotLinearError,
    Origin,
    Pieces,
    kept_tokens,
    tokens_of,
    with_parameters,
)

APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class AttentionLayer(Layer):
    """torch's MultiheadAttention: query, key and value, and the projection of what they give.

    Parts 0, 1 and 2 are thirds of in_proj (or q_proj_weight and its kin), part 3 is out_proj.
    """

    module: nn.MultiheadAttention

    def rows(self, parameter: str, /) -> Tensor | int:
        if parameter.startswith("out_proj."):
            return 3
        if parameter.startswith("in_proj"):
            return torch.arange(3).repeat_interleave(self.module.embed_dim)
        return APART.index(parameter)

    def changes(self, call: Call, several: Sequence[Deltas], _origin: Origin, /) -> Pieces:
        arguments = self._arguments(call)
        for part, role in enumerate(("query", "key", "value")):
            inputs = arguments[role].float()
            yield part, [self._linear(inputs, *_third(deltas, part), call) for deltas in several]
        if several[0].keys() & {"out_proj.weight", "out_proj.bias"}:
            context = self._context(call)
            yield (
                3,
                [
                    self._linear(
                        context, deltas.get("out_proj.weight"), deltas.get("out_proj.bias"), call
                    )
                    for deltas in several
                ],
            )

    def _arguments(self, call: Call) -> dict[str, Any]:
        """The call's arguments by name."""
        signature = inspect.signature(type(self.module).forward)
        return dict(
            list(signature.bind(self.module, *call.args, **call.kwargs).arguments.items())[1:]
        )

    def _linear(
        self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call
    ) -> Tensor:
        if inputs.ndim == 3 and not self.module.batch_first:
            inputs = inputs.transpose(0, 1)
        tokens = tokens_of(inputs, call.masks)
        if weight is None:
            return torch.zeros(len(tokens), self.module.embed_dim, device=tokens.device)
        return functional.linear(tokens, weight, bias)

    def _context(self, call: Call) -> Tensor:
        """What out_proj gets: the module's own output, with the identity in its place."""
        own, weight = self.module, self.module.out_proj.weight
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        projection = with_parameters(
            own.out_proj, {"weight": identity, "bias": identity.sum(0) * 0}
        )
        stand_in = copy.copy(own)
        stand_in.__dict__["_modules"] = {**own._modules, "out_proj": projection}
        out: Tensor = stand_in.forward(**{**self._arguments(call), "need_weights": False})[0]
        return out.float()


class MixtureLayer(Layer):
    """The fused experts of a mixture model, [experts, ...]: each expert is a part of its own.

    Parts 0 to E - 1 are the first matrices (gate and value), parts E to 2 E - 1 the second. Which
    tokens an expert gets is in the call: token features, chosen experts and their weights.
    """

    @property
    def _count(self) -> int:
        return int(self.module.gate_up_proj.shape[0])  # type: ignore[index]

    def rows(self, parameter: str, /) -> Tensor | int:
        first = 0 if parameter.startswith("gate_up_proj") else self._count
        return torch.arange(first, first + self._count)

    def changes(self, call: Call, several: Sequence[Deltas], _origin: Origin, /) -> Pieces:
        tokens, routes = _routing(call)
        kept = kept_tokens(tokens.shape[:-1], call.masks)
        for expert in range(self._count):
            hit = (routes == expert).any(dim=-1)
            if kept is not None:
                hit = hit & kept.to(hit.device)
            if not bool(hit.any()):
                continue
            inputs = tokens[hit].float()
            first, second = "gate_up_proj", "down_proj"
            yield expert, [self._linear(inputs, deltas, first, expert) for deltas in several]
            own = dict(self.module.named_parameters(recurse=False))
            inner = self.module._apply_gate(  # type: ignore[operator]
                self._linear(inputs, {n: p.float() for n, p in own.items()}, first, expert)
            )
            outs = [self._linear(inner, deltas, second, expert) for deltas in several]
            yield self._count + expert, outs

    def _linear(self, inputs: Tensor, deltas: Deltas, name: str, expert: int) -> Tensor:
        weight, bias = deltas.get(name), deltas.get(f"{name}_bias")
        own = getattr(self.module, name)
        if weight is None:
            width = own.shape[2] if self.module.is_transposed else own.shape[1]
            return torch.zeros(len(inputs), width, device=inputs.device)
        matrix = weight[expert] if self.module.is_transposed else weight[expert].T
        out = inputs @ matrix
        return out if bias is None else out + bias[expert]


def _third(deltas: Deltas, part: int) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of query, key or value."""
    weight, bias = deltas.get(APART[part]), deltas.get("in_proj_bias")
    if "in_proj_weight" in deltas:
        weight = deltas["in_proj_weight"].chunk(3)[part]
    return weight, None if bias is None else bias.chunk(3)[part]


def _routing(call: Call) -> tuple[Tensor, Tensor]:
    """Token features [tokens, features] and the experts chosen for each, [tokens, k]."""
    values: list[Any] = [*call.args, *call.kwargs.values()]
    tokens, routes = values[0], values[1] if len(values) > 1 else None
    if not isinstance(routes, Tensor) or routes.is_floating_point() or routes.ndim != 2:
        raise NotLinearError("its call does not tell which tokens go to which expert")
    return tokens.reshape(-1, tokens.shape[-1]), routes


def is_mixture(module: nn.Module) -> bool:
    """Whether it holds fused experts in the way that transformers' mixtures do."""
    return all(
        hasattr(module, name)
        for name in ("gate_up_proj", "down_proj", "_apply_gate", "is_transposed")
    ) and isinstance(module.gate_up_proj, nn.Parameter)
