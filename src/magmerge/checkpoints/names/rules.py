"""Kinds of renamings as regular expressions, read from the table beside this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

LONGEST = 512
"""No tensor's name is longer; a hostile one costs no time."""
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Kind(NamedTuple):
    """One kind of renaming, from old names to new ones: what it is called, and its expressions with
    what stands in their place. `always`: it says nothing of the model that has such names.
    """

    title: str
    rules: tuple[tuple[re.Pattern[str], str], ...]
    always: bool = False

    def renamed(self, names: Mapping[str, str]) -> dict[str, str] | None:
        """The same keys with the new form of each value; None where two would have one name."""
        new = {key: self.new(name) for key, name in names.items()}
        return new if len(set(new.values())) == len(new) else None

    def new(self, name: str) -> str:
        """The new form of one name."""
        if len(name) > LONGEST:
            return name
        for pattern, new in self.rules:
            name = pattern.sub(new, name)
        return name


@cache
def kinds() -> tuple[Kind, ...]:
    """All kinds, in the order of the table."""
    content = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), _READER)
    return tuple(
        Kind(
            entry["kind"],
            tuple((re.compile(old), new) for old, new in entry["rules"]),
            entry.get("always", False),
        )
        for entry in content
    )


def unwrapped(name: str) -> str:
    """A name without the wrappers of training that are in it."""
    for kind in kinds():
        name = kind.new(name) if kind.always else name
    return name
