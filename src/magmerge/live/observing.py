"""What layers are fed while a model runs: each is told to a listener before it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.live.finding import Followed
from magmerge.live.layers import Call
from magmerge.samples.rows import Inputs

Listener = Callable[[Followed, Call], None]


class Observation:
    """Runs a model on inputs. While it does, each followed layer's calls go to the listener.

    Every thread that runs the model has a listener of its own. What a listener itself computes with
    the model's layers is not observed.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Followed]) -> None:
        self._model, self._layers = model, layers
        self._own = threading.local()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it the layers are watched; afterwards no trace of that is left in the model."""
        handles = [
            one.layer.module.register_forward_pre_hook(self._hook(one), with_kwargs=True)
            for one in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, inputs: Inputs, listener: Listener) -> Any:
        """The model's output."""
        args, kwargs = placed(inputs, self._model)
        self._own.listener, self._own.masks = listener, _masks(kwargs)
        try:
            with torch.no_grad():
                return self._model(*args, **kwargs)
        finally:
            self._own.listener = None

    def _hook(self, followed: Followed) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            listener = getattr(self._own, "listener", None)
            if listener is None:
                return
            self._own.listener = None
            try:
                listener(followed, Call(args, kwargs, self._own.masks))
            finally:
                self._own.listener = listener

        return hook


def placed(inputs: Inputs, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs where the model is, and in its precision."""
    first = next(model.parameters(), None)
    if first is None:
        return inputs.args, dict(inputs.kwargs)
    # Parameters that are still to come in say their precision, and one that is there the place.
    there = next((one for one in model.parameters() if not one.is_meta), None)
    where, dtype = torch.device("cpu") if there is None else there.device, first.dtype

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(where, dtype) if value.is_floating_point() else value.to(where)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(place, value))
        if isinstance(value, list | tuple):
            return type(value)(map(place, value))
        return {k: place(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return tuple(map(place, inputs.args)), {name: place(v) for name, v in inputs.kwargs.items()}


def _masks(kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Masks of padding, [batch, tokens]."""
    return [
        value
        for name, value in kwargs.items()
        if name.endswith("attention_mask") and isinstance(value, Tensor) and value.ndim == 2
    ]
