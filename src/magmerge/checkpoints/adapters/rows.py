"""Rows of modules' task vectors, and modules that are put together of rows of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from magmerge.checkpoints.adapters.nouns import ModuleSpec


class Rows(NamedTuple):
    """Rows [start, stop) of a module's task vector; of no module: as many rows of zeros."""

    module: str | None
    start: int
    stop: int


def height(rows: Sequence[Rows]) -> int:
    """How many rows these are together."""
    return sum(part.stop - part.start for part in rows)


@dataclass(slots=True)
class Composition:
    """Each module of the new naming with its rows in order, and what could not be named."""

    rows: dict[str, tuple[Rows, ...]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, rows: Sequence[Rows]) -> None:
        """One module; a fault where another already has its name."""
        if name in self.rows:
            own, other = rows[0].module, self.rows[name][0].module
            self.faults.append(f"{own} and {other} are both {name}")
        else:
            self.rows[name] = tuple(rows)

    def rename(self, name: str, new: str | None, spec: ModuleSpec, reason: str = "") -> None:
        """A module that only gets another name; a fault where that is None."""
        if new is None:
            self.faults.append(f"{name}: {reason}" if reason else name)
        else:
            self.add(new, whole(name, spec))


def whole(name: str, spec: ModuleSpec) -> tuple[Rows, ...]:
    """All rows of one module."""
    return (Rows(name, 0, spec.shape[0]),)
