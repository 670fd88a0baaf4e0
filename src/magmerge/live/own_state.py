"""What modules keep from one call to the next beside their parameters."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


class OwnState:
    """The attributes and buffers of a model's modules as they are now.

    `kept` tells whether a check has found that runs of the model change them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kept = False
        self._modules = list(model.modules())
        self._attributes = [_attributes(module) for module in self._modules]
        self._buffers = [
            {n: b if b is None else b.clone() for n, b in module._buffers.items()}
            for module in self._modules
        ]
        self._look()

    def check(self) -> bool:
        """Whether any is another by now; then all are what they were, as far as they can be."""
        if self._seen() == self._marks:
            return False
        self.kept = True
        rows = zip(self._modules, self._attributes, self._buffers, strict=True)
        for module, attributes, buffers in rows:
            for name in _attributes(module).keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.update({n: b if b is None else b.clone() for n, b in buffers.items()})
        self._look()
        return True

    def _look(self) -> None:
        """Mark what is there, and hold it: the next tensor could have a dropped one's identity."""
        self._held = [dict(module._buffers) for module in self._modules]
        self._marks = self._seen()

    def _seen(self) -> list[dict[str, Any]]:
        return [
            {name: _mark(value) for name, value in {**_attributes(m), **m._buffers}.items()}
            for m in self._modules
        ]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has beside what torch itself keeps in it."""
    own = module.__dict__.items()
    return {name: value for name, value in own if not name.startswith("_") and name != "forward"}


def _mark(value: Any) -> Any:
    """What tells a value from the one that takes its place, or from itself with more in it."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    return id(value), len(value) if isinstance(value, Sized) else 0
