"""The pickle machine, on inert values: from opcodes to the object that they describe."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

from magmerge.checkpoints.pickled.budget import Budget
from magmerge.checkpoints.pickled.dangers import MEMBER, refuse_member
from magmerge.checkpoints.pickled.opcodes import HANDLERS
from magmerge.checkpoints.pickled.refusals import DamagedError, RefusedError, spoken


class Stream(Protocol):
    """Bytes that are read from the beginning on: a BytesIO, or a mapped file."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        ...

    def readline(self) -> bytes:
        """Up to the end of the line."""
        ...

    def tell(self) -> int:
        """How many were read."""
        ...


Persistent = Callable[[Any], Any]
"""From the id of what is stored outside the pickle to what stands for it."""


class Machine:
    """Reads one pickle from where the stream is, and leaves the stream behind it."""

    def __init__(self, stream: Stream, budget: Budget, persistent: Persistent) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget
        self.persistent = persistent
        self._stream = stream

    def load(self) -> Any:
        """The object that the pickle describes; RefusedError for anything that is no sound pickle
        of data.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):  # type: ignore[arg-type]
                self.budget.step()
                HANDLERS[opcode.name](self, argument)
            if self.budget.names[MEMBER] and not self.budget.members:
                raise refuse_member()
            return self.stack.pop()
        except RefusedError:
            raise
        except Exception as error:
            # A damaged pickle fails in as many ways as there are opcodes.
            raise DamagedError(
                f"it cannot be read: {type(error).__name__}: {spoken(error)}"
            ) from error

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items
