"""A model whose weights are in memory only while the block that they belong to runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.live.units import Unit, units_of

Bring = Callable[[Collection[str]], Mapping[str, Tensor]]
"""From names of tensors to the tensors, in float32."""


class Offload:
    """Brings each block's parameters in before it runs, and puts them away after it.

    The model's parameters have no data of their own. `names` maps them to tensors, which `bring`
    gives and `drop` lets go. Parameters that are in no block are brought in once, and stay. One
    that is away has no entries, so that whatever uses it outside its block fails.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        bring: Bring,
        drop: Callable[[Collection[str]], None],
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self._model, self._names = model, names
        self._bring, self._drop = bring, drop
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()
        self.finish: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the model can be run."""
        units = units_of(self._model)
        inside = {id(p) for unit in units for p in unit.module.parameters()}
        rest = [
            (name, parameter)
            for name, parameter in self._model.named_parameters()
            if id(parameter) not in inside
        ]
        for unit in units:
            self._put_away(unit)
        self._place([name for name, _ in rest])
        self._buffers()
        handles = []
        for unit in units:
            if any(True for _ in unit.module.parameters()):
                handles.append(unit.module.register_forward_pre_hook(self._enter(unit)))
                handles.append(
                    unit.module.register_forward_hook(self._leave(unit), always_call=True)
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, unit: Unit) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            with self._lock:
                users = self._users.get(unit.path, 0)
                if users == 0:
                    self._place(self._of(unit))
                self._users[unit.path] = users + 1

        return hook

    def _leave(self, unit: Unit) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            with self._lock:
                self._users[unit.path] -= 1
                if self._users[unit.path] == 0:
                    self._put_away(unit)

        return hook

    def _put_away(self, unit: Unit) -> None:
        names = self._of(unit)
        for name in names:
            _set(self._model, name, torch.empty(0, dtype=self.dtype, device=self.device))
        self._drop([self._names[name] for name in names])

    def _of(self, unit: Unit) -> list[str]:
        """The parameters of a block, by their names in the model."""
        local = unit.module.named_parameters(remove_duplicate=False)
        return [f"{unit.path}.{name}" for name, _ in local]

    def _place(self, names: Collection[str]) -> None:
        brought = self._bring([self._names[name] for name in names])
        for name in names:
            tensor = self.finish(self._names[name], brought[self._names[name]])
            _set(self._model, name, tensor.to(self.device, self.dtype, copy=True))

    def _buffers(self) -> None:
        """Buffers are small: they are all there from the start."""
        own = dict(self._model.named_buffers())
        wanted = [name for name in own if name in self._names]
        brought = self._bring([self._names[name] for name in wanted])
        for name in wanted:
            own[name].copy_(brought[self._names[name]])
        self._drop([self._names[name] for name in wanted])
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
