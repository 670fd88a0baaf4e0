"""What pure functions have to say of a layer beside their result: notes to whoever listens"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_open: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(text: str) -> None:
    """Give `text` to the innermost open listener; without one it is dropped."""
    notes = _open.get()
    if notes is not None:
        notes.append(text)


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list that fills with the notes made inside the block, in this thread or task only."""
    notes: list[str] = []
    token = _open.set(notes)
    try:
        yield notes
    finally:
        _open.reset(token)
