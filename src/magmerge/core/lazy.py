"""Names that are loaded at their first use, so that a merge imports only what it needs.

`torch`, `Tensor` and the shapes of jaxtyping stand for the real ones: a merge that is computed
without torch never imports it. An annotation of one of them is a string, which nobody evaluates but
the checks of shapes in the tests.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

__all__ = [
    "Float",
    "Int",
    "Shaped",
    "Tabular",
    "Tensor",
    "at_first_use_of_torch",
    "front",
    "load",
    "torch",
    "torch_is_loaded",
]


def front(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`, whose names live in the modules that `homes` tells."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def load(path: str) -> Any:
    """What "package.module:name" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class Tabular:
    """A result that is a table too, which is made when it is first asked for.

    `tabled` names the function from the result to its `core.tables.Table`; to_pandas(), to_csv()
    and to_latex() are that table's.
    """

    __slots__ = ()
    tabled: ClassVar[str]

    @property
    def table(self) -> Any:
        """The table of this result."""
        return load(self.tabled)(self)

    def to_pandas(self) -> Any:
        """The table as a DataFrame."""
        return self.table.to_pandas()

    def to_csv(self, *arguments: Any, **options: Any) -> str:
        """The table as CSV; see `Table.to_csv`."""
        text: str = self.table.to_csv(*arguments, **options)
        return text

    def to_latex(self, *arguments: Any, **options: Any) -> str:
        """The table for a paper; see `Table.to_latex`."""
        text: str = self.table.to_latex(*arguments, **options)
        return text

    def _repr_html_(self) -> str:
        text: str = self.table._repr_html_()
        return text

    def __str__(self) -> str:
        return str(self.table)


def torch_is_loaded() -> bool:
    """Whether torch is imported already, by whoever it was."""
    return "torch" in sys.modules


@contextmanager
def at_first_use_of_torch(call: Callable[[], None]) -> Iterator[None]:
    """Within it `call` is made in each thread that uses `torch` for its first time, before anything
    is computed there.
    """
    _Torch.waiting.append(call)
    try:
        yield
    finally:
        _Torch.waiting.remove(call)


class _Torch:
    """torch, imported when something of it is first asked for."""

    waiting: ClassVar[list[Callable[[], None]]] = []
    thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self.thread, "torch"):
            self.thread.torch = import_module("torch")
            for call in self.waiting:
                call()
        return getattr(self.thread.torch, name)


class _AnyTensor(type):
    """Nothing is a tensor before torch is loaded."""

    def __instancecheck__(cls, value: object) -> bool:
        return torch_is_loaded() and isinstance(value, import_module("torch").Tensor)

    def __subclasscheck__(cls, kind: type) -> bool:
        return torch_is_loaded() and issubclass(kind, import_module("torch").Tensor)


class _Shaped:
    """A class of jaxtyping's, such as Float: Float[Tensor, "rows columns"] checks shapes where
    jaxtyping is loaded, as the tests do, and is else any Tensor.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, item: tuple[Any, str]) -> Any:
        jaxtyping = sys.modules.get("jaxtyping")
        return item[0] if jaxtyping is None else getattr(jaxtyping, self._name)[item]


if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int, Shaped
    from torch import Tensor
else:
    torch = _Torch()
    Float, Int, Shaped = map(_Shaped, ("Float", "Int", "Shaped"))

    class Tensor(metaclass=_AnyTensor):
        """torch's Tensor, for annotations and isinstance."""
