"""Names as a recipe maps them: patterns of an expert's own names, and what these become."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from magmerge.core.errors import Fault, printable, shortened
from magmerge.core.recipe import EVERY

OWN_NAMES = (
    "a pattern matches an expert's whole name, each * any run of characters; `magmerge inspect` "
    "lists the names"
)
APART = "give each of them a name of its own, or narrow the pattern"


class Renames:
    """A recipe's map of names: by expert, or under EVERY for all, each pattern with the new name.

    `faults` tells what is wrong with it once all experts have been through `names`.
    """

    def __init__(self, rename: Mapping[str, Mapping[str, str]]) -> None:
        self._rename = rename
        self._used: set[tuple[str, str]] = set()
        self._collisions: list[Fault] = []

    def names(self, expert: str, source: str, names: Collection[str]) -> dict[str, str]:
        """Every name of the expert, mapped by the first pattern that matches it, or as it was.

        Each * of a pattern is any run of characters, the same * of the new name what it was. An
        expert's own patterns come before those for all. Where two tensors would have one name, that
        is a fault, and no name is changed.
        """
        scopes = (expert, EVERY)
        patterns = [
            (scope, old, _pattern(old), new.split("*"))
            for scope in scopes
            for old, new in self._rename.get(scope, {}).items()
        ]
        mapped: dict[str, str] = {}
        owners: dict[str, list[str]] = {}
        for name in names:
            mapped[name] = name
            for scope, old, pattern, parts in patterns:
                match = pattern.fullmatch(name)
                if match is not None:
                    self._used.add((scope, old))
                    runs = [*match.groups(), ""]
                    mapped[name] = "".join(a + b for a, b in zip(parts, runs, strict=True))
                    break
            owners.setdefault(mapped[name], []).append(name)
        collisions = [
            Fault(f"{shortened(several)} of {source} would all be {printable(new)}", APART)
            for new, several in owners.items()
            if len(several) > 1
        ]
        self._collisions += collisions
        return {name: name for name in names} if collisions else mapped

    def faults(self) -> list[Fault]:
        """Collisions, and patterns that match no name that none before them matches."""
        return self._collisions + [
            Fault(
                f"rename: {old!r} matches no tensor of {'any expert' if scope == EVERY else scope}",
                OWN_NAMES,
            )
            for scope, patterns in self._rename.items()
            for old in patterns
            if (scope, old) not in self._used
        ]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, text.split("*"))))
