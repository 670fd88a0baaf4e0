"""What layers are fed while a model runs: each is told to a listener before it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.errors import MagmergeError
from magmerge.live.coverage import Followed
from magmerge.live.layers import Call
from magmerge.live.masks import for_layer, masks_of
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

    def run(self, inputs: Inputs, listener: Listener, whose: str) -> Any:
        """The model's output; `whose` samples these are is for messages."""
        args, kwargs = placed(inputs, self._model)
        self._own.listener = listener
        self._own.masks = masks_of(self._model, args, kwargs)
        try:
            with torch.no_grad():
                return called(self._model, args, kwargs, whose)
        finally:
            self._own.listener = None

    def _hook(self, followed: Followed) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            listener = getattr(self._own, "listener", None)
            if listener is None:
                return
            self._own.listener = None
            try:
                masks = for_layer(followed.layer.name, self._own.masks)
                listener(followed, Call(args, kwargs, masks))
            finally:
                self._own.listener = listener

        return hook


def called(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], whose: str) -> Any:
    """The model's output; MagmergeError where it cannot be run on such inputs."""
    try:
        return model(*args, **kwargs)
    except MagmergeError:
        raise
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        raise MagmergeError(
            f"the {type(model).__name__} cannot be run on the samples of {whose}: "
            f"{type(error).__name__}: {told}",
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
