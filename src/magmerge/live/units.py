"""The blocks that a model runs through, one after the other: what can be kept, or moved, alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn

BLOCKS = (nn.ModuleList, nn.Sequential)


class Unit(NamedTuple):
    """A module that is called as a whole, and its path in the model."""

    path: str
    module: nn.Module


def units_of(model: nn.Module) -> list[Unit]:
    """The model in pieces: the items of its lists of blocks, and all that lies beside them.

    A module that holds a list of blocks is taken apart, and one that is never called as a whole;
    any other is one piece.
    """
    return list({id(unit.module): unit for unit in _units("", model)}.values())


def _units(path: str, module: nn.Module) -> Iterator[Unit]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, BLOCKS):
            for number, item in child.named_children():
                yield Unit(f"{inner}.{number}", item)
        elif any(isinstance(part, BLOCKS) for part in child.modules()) or _is_shelf(child):
            yield from _units(inner, child)
        else:
            yield Unit(inner, child)


def _is_shelf(module: nn.Module) -> bool:
    """Whether it only holds other modules, and has no forward of its own."""
    return type(module).forward is nn.Module.forward and any(module.children())


class RunRecord:
    """What each unit put out in one run of the model, call after call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def first(self, path: str) -> int:
        """The number of the first call of the unit that holds the module at `path`, or 0.

        0 too where the module is in no unit: then nothing before it is known.
        """
        for number, (unit, _) in enumerate(self.calls):
            if path == unit or path.startswith(f"{unit}."):
                return number
        return 0

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Within it the model's run is kept."""
        with ExitStack() as stack:
            for path, module in units_of(model):

                def keep(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
                    self.calls.append((path, copy.deepcopy(output)))

                stack.callback(module.register_forward_hook(keep).remove)
            yield

    @contextmanager
    def resuming(self, model: nn.Module, call: int) -> Iterator[None]:
        """Within it the model's run takes what its units put out before `call` from here."""
        numbers = itertools.count()

        def replay(forward: Callable[..., Any], path: str, /, *args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            if number >= call:
                return forward(*args, **kwargs)
            known, output = self.calls[number]
            assert known == path, "the model runs through its blocks in another order"
            # What comes after may change it in place.
            return copy.deepcopy(output)

        with ExitStack() as stack:
            for path, module in units_of(model):
                own = {name: value for name, value in module.__dict__.items() if name == "forward"}
                module.__dict__["forward"] = partial(replay, module.forward, path)
                stack.callback(module.__dict__.update, own)
                stack.callback(module.__dict__.pop, "forward")
            yield
