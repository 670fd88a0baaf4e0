"""What layers are fed while a model runs: each is told to a listener before it computes.

With it goes which tokens are padding, as the attention masks of the call tell.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError
from magmerge.data.rows import Inputs
from magmerge.live.layers import Call, Layer

Listener = Callable[[Layer, Call], None]
CROSS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "multihead_attn")
"""Parts of paths of attention between decoder and encoder."""
OF_ENCODER = ("k", "v", "k_proj", "v_proj", "key", "value")
"""Layers in such attention that are fed with the encoder's tokens."""


class Observation:
    """Runs a model on inputs. While it does, each followed layer's calls go to the listener.

    Every thread that runs the model has a listener of its own. What a listener itself computes with
    the model's layers is not observed.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model, self._layers = model, layers
        self._own = threading.local()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it the layers are watched; afterwards no trace of that is left in the model."""
        with ExitStack() as stack:
            for layer in self._layers:
                hook = partial(self._tell, layer)
                handle = layer.module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def run(self, inputs: Inputs, listener: Listener, whose: str) -> Any:
        """The model's output; `whose` samples these are is for messages."""
        args, kwargs = placed(inputs, self._model)
        self._own.listener = listener
        self._own.masks = masks_of(self._model, args, kwargs)
        try:
            with torch.no_grad():
                return _output(self._model, args, kwargs, whose)
        finally:
            self._own.listener = None

    def _tell(
        self, layer: Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        listener = getattr(self._own, "listener", None)
        if listener is None:
            return
        self._own.listener = None
        try:
            listener(layer, Call(args, kwargs, for_layer(layer.name, self._own.masks)))
        finally:
            self._own.listener = listener


def run(model: nn.Module, inputs: Inputs, whose: str) -> Any:
    """The model's output on inputs wherever they are; `whose` they are is for messages."""
    return _output(model, *placed(inputs, model), whose)


def _output(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], whose: str) -> Any:
    """The model's output; MagmergeError where it cannot be run on such inputs."""
    try:
        return model(*args, **kwargs)
    except MagmergeError:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise MagmergeError(
            f"the {type(model).__name__} cannot be run on the samples of {whose}: "
            f"{type(error).__name__}: {text}",
            remedy="give inputs as the model's forward takes them: a tensor, a tuple, or a mapping "
            "from the names of its arguments",
        ) from error


def placed(inputs: Inputs, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs where the model is, and in its precision."""
    first = next(model.parameters(), None)
    if first is None:
        return inputs.args, dict(inputs.kwargs)
    where, dtype = first.device, first.dtype

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(where, dtype) if value.is_floating_point() else value.to(where)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(place, value))
        if isinstance(value, list | tuple):
            return type(value)(map(place, value))
        return {k: place(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return tuple(map(place, inputs.args)), {name: place(v) for name, v in inputs.kwargs.items()}


class Mask(NamedTuple):
    """A mask [batch, tokens], True for what counts, and whether it is the decoder's."""

    kept: Tensor
    decoder: bool


def masks_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Mask]:
    """The masks among a call's arguments, by their names, in mappings too.

    `...attention_mask` is 1, and `...key_padding_mask` 0, for what counts.
    """
    try:
        signature = inspect.signature(model.forward)
        named = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        named = dict(kwargs)
    return list(_masks(named))


def _masks(values: Mapping[str, Any]) -> Iterator[Mask]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _masks({str(key): part for key, part in value.items()})
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        decoder = name.startswith(("decoder", "tgt"))
        if name.endswith("attention_mask"):
            yield Mask(value.bool(), decoder)
        elif name.endswith("key_padding_mask") and not name.startswith("memory"):
            yield Mask(value == 0, decoder)


def for_layer(path: str, masks: Sequence[Mask]) -> list[Tensor]:
    """The masks in the order in which they may be those of the layer at `path`."""
    parts = path.split(".")
    crossing = any(word in part for part in parts for word in CROSS)
    decoder = "decoder" in parts and not (crossing and parts[-1] in OF_ENCODER)
    return [mask.kept for mask in sorted(masks, key=lambda mask: mask.decoder != decoder)]
