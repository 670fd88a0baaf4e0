"""What linear layers and convolutions multiply their matrix with: a row for each token or place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from magmerge.live.layers import Call, Layer, TokenLayer, tokens_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def not_solved_for(layer: Layer) -> str | None:
    """Why no matrix can be solved for from this layer's inputs; None where one can."""
    module, kind = layer.module, type(layer.module).__name__
    if isinstance(layer, TokenLayer) and not isinstance(module, nn.Embedding):
        return None
    if not isinstance(module, CONVOLUTIONS) or type(module).forward is not _own(module):
        return f"a {kind} is no linear layer, which alone is solved for"
    if module.groups > 1:
        return "a convolution of several groups is not solved for"
    if module.padding_mode != "zeros":
        return f"a convolution with padding_mode {module.padding_mode} is not solved for"
    return None


def _own(module: nn.Module) -> object:
    return next(kind.forward for kind in CONVOLUTIONS if isinstance(module, kind))


def fed_rows(layer: Layer, call: Call) -> Tensor:
    """[tokens, features] in float32, without padding; of a convolution the patches under its
    kernel, [places, channels * kernel], in the order of its weight.
    """
    inputs: Tensor = call.args[0] if call.args else next(iter(call.kwargs.values()))
    if isinstance(layer.module, CONVOLUTIONS):
        return tokens_of(patches(layer.module, inputs.float()), call.masks)
    return tokens_of(inputs, call.masks).float()


def patches(module: Any, inputs: Tensor) -> Tensor:
    """[batch, places, channels * kernel]: what each place of a convolution's output is made of."""
    whole = inputs if inputs.ndim == len(module.kernel_size) + 2 else inputs.unsqueeze(0)
    sides = [side for pair in _padding(module) for side in pair]
    padded = functional.pad(whole, sides)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, nn.Conv1d):
        padded = padded.unsqueeze(2)
        kernel, stride, dilation = ((1, *one) for one in (kernel, stride, dilation))
    unfolded = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    return unfolded.transpose(1, 2)


def _padding(module: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis, the last one first, as torch's pad takes them."""
    axes = list(zip(module.kernel_size, module.dilation, strict=True))
    if module.padding == "same":
        totals = [dilation * (size - 1) for size, dilation in axes]
        return [(total // 2, total - total // 2) for total in reversed(totals)]
    if module.padding == "valid":
        return [(0, 0)] * len(axes)
    return [(size, size) for size in reversed(module.padding)]
