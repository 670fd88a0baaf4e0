"""A model whose weights are in memory only while the block that they belong to runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from magmerge.live.lockstep import wait_at_door
from magmerge.live.units import Unit, units_of

Hook = Callable[..., None]


class Weights(Protocol):
    """Tensors by name, in float32, which are in memory from `bring` to `drop`."""

    def bring(self, names: Collection[str]) -> Mapping[str, Tensor]: ...

    def drop(self, names: Collection[str]) -> None: ...


class Offload:
    """Brings each block's parameters in before it runs, and puts them away after it.

    The model's parameters have no data of their own. `names` maps them to tensors of `weights`.
    Parameters that are in no block are brought in once, and stay. One that is away has no entries,
    so that whatever uses it outside its block fails. `finish` makes of each tensor what is used.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        weights: Weights,
        dtype: torch.dtype,
        where: str,
    ) -> None:
        self.dtype, self.device = dtype, torch.device(where)
        self._model, self._names, self._weights = model, names, weights
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.finish: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the model can be run."""
        units = [(unit, self._of(unit)) for unit in units_of(self._model)]
        inside = {id(p) for unit, _ in units for p in unit.module.parameters()}
        own = self._model.named_parameters()
        rest = [n for n, p in own if id(p) not in inside and n in self._names]
        for _, names in units:
            self._put_away(names)
        self._place(rest)
        self._buffers()
        with ExitStack() as stack:
            for unit, names in units:
                if names:
                    enter, leave = self._hooks(unit, names)
                    module = unit.module
                    stack.callback(module.register_forward_pre_hook(enter).remove)
                    left = module.register_forward_hook(leave, always_call=True)
                    stack.callback(left.remove)
            yield

    def _hooks(self, unit: Unit, names: Collection[str]) -> tuple[Hook, Hook]:
        users = self._users

        def enter(*_: Any) -> None:
            wait_at_door(unit.path)
            with self._lock:
                users[unit.path] += 1
                if users[unit.path] == 1:
                    self._place(names)

        def leave(*_: Any) -> None:
            with self._lock:
                users[unit.path] -= 1
                if users[unit.path] == 0:
                    self._put_away(names)

        return enter, leave

    def _put_away(self, names: Collection[str]) -> None:
        for name in names:
            _set(self._model, name, torch.empty(0, dtype=self.dtype, device=self.device))
        self._weights.drop([self._names[name] for name in names])

    def _of(self, unit: Unit) -> list[str]:
        """The parameters of a block that tensors are for, by their names in the model."""
        local = unit.module.named_parameters(remove_duplicate=False)
        names = [f"{unit.path}.{name}" for name, _ in local]
        return [name for name in names if name in self._names]

    def _place(self, names: Collection[str]) -> None:
        brought = self._weights.bring([self._names[name] for name in names])
        for name in names:
            tensor = self.finish(self._names[name], brought[self._names[name]])
            _set(self._model, name, tensor.to(self.device, self.dtype, copy=True))

    def _buffers(self) -> None:
        """Buffers are small: they are all there from the start."""
        own = {n: buffer for n, buffer in self._model.named_buffers() if n in self._names}
        stored = [self._names[name] for name in own]
        brought = self._weights.bring(stored)
        for name, buffer in own.items():
            buffer.copy_(brought[self._names[name]])
        self._weights.drop(stored)
        for module in self._model.modules():
            for name, local in module._buffers.items():
                if local is not None:
                    module._buffers[name] = local.to(self.device)


@contextmanager
def without_data(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's parameters are what they were, so that their shapes are known."""
    before = dict(model.named_parameters(remove_duplicate=False))
    try:
        yield
    finally:
        for name, parameter in before.items():
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._parameters[last] = parameter


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
