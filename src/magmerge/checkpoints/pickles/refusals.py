"""Why a pickle is not read."""

from __future__ import annotations

from magmerge.core.errors import printable

STATE = "save the model as safetensors, or its bare state_dict() with torch.save"
"""What to do about a file that holds more than tensors."""
AGAIN = "fetch or save this file once more: it is damaged, or no torch file"
LONGEST = 200
"""Characters of a file's own text that a message repeats."""


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
    shown = printable(_written(text)[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return str(value[: LONGEST + 1])
    told = value.args if isinstance(value, Exception) else (value,)
    plain = all(one is None or isinstance(one, str | bytes | int | float) for one in told)
    return str(value) if plain else f"a {type(value).__name__}"
