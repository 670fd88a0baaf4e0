"""Why a pickle is not read; and how much one file may make the reader do: a few bytes of a pickle
can ask for any amount.
"""

from __future__ import annotations

from collections import Counter

from magmerge.core.errors import printable

STATE = "save the model as safetensors, or its bare state_dict() with torch.save"
"""What to do about a file that holds more than tensors."""
AGAIN = "fetch or save this file once more: it is damaged, or no torch file"
LONGEST = 200
"""Characters of a file's own text that a message repeats."""
STEPS = 10_000_000
"""Opcodes of a file and arguments of its calls, at most. A training checkpoint of a large model has
some 100,000.
"""
MADE = 1_000_000
"""Containers, records and tensors that it may make."""
GROWTH, SPARE = 4, 1 << 16
"""The bytes that it may make by conversions: so many times its own size, and a few for small ones.
"""
NESTED = 3
"""Pickles within pickles."""


class RefusedError(Exception):
    """A pickle asks for what is not done, claims what is not there, or is none."""

    def __init__(self, problem: str, remedy: str = STATE) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)


class DamagedError(RefusedError):
    """A file that no program writes like this."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, AGAIN)


class EmptyError(RefusedError):
    """A state dictionary without tensors."""


def spoken(text: object) -> str:
    """A file's own text for a message: printable, and not too long.

    Of anything but text and plain numbers only the type is told: tuples in tuples take for ever to
    write out.
    """
    line = printable(_written(text)[: LONGEST + 1])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return str(value[: LONGEST + 1])
    texts = value.args if isinstance(value, Exception) else (value,)
    plain = all(text is None or isinstance(text, str | bytes | int | float) for text in texts)
    return str(value) if plain else f"a {type(value).__name__}"


class Budget:
    """What is left of all that, for a file and the pickles within it; and the names that it uses.

    `size` is the file's in bytes; `members` are the attributes of classes that it asks for.
    """

    def __init__(self, size: int) -> None:
        self.names: Counter[str] = Counter()
        self.depth = 0
        self.members = 0
        self._steps = STEPS
        self._made = MADE
        self._bytes = GROWTH * size + SPARE

    def step(self, count: int = 1) -> None:
        """One more opcode, or so many arguments that a call is given."""
        self._steps -= count
        if self._steps < 0:
            raise RefusedError(f"it has more than {STEPS:,} opcodes: no model needs so many")

    def make(self, entries: int = 0) -> None:
        """One more thing, made of so many entries that were there before."""
        self._made -= 1
        self._steps -= entries
        if self._made < 0 or self._steps < 0:
            raise RefusedError(f"it makes more than {MADE:,} objects: no model needs so many")

    def convert(self, size: int) -> None:
        """So many bytes more, that are not in the file."""
        self._bytes -= size
        if self._bytes < 0:
            raise RefusedError("it grows without limit when it is read")
