"""Image and video models in their authors' names and in diffusers': what part each tensor is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import yaml

from magmerge.checkpoints.names.rules import LONGEST, unwrapped
from magmerge.core.types import TensorSpec

_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SUFFIXES = ("weight", "bias")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
_BRACE = re.compile(r"\{[^}]*\}")


class Slot(NamedTuple):
    """A part of a model, by diffusers' name for it, and how many shares of a tensor's rows it has.

    Where diffusers has a tensor's halves in another order these are the parts: NAME@0 and NAME@1.
    """

    part: str
    share: int = 1


Slots = tuple[Slot, ...]
Counts = Mapping[str, int]
"""How many numbers follow the beginnings of names."""


class Layout(Protocol):
    """What the names of one kind of model mean, the authors' and diffusers'."""

    @property
    def kind(self) -> str:
        """What it is called."""
        ...

    def read(self, specs: Mapping[str, TensorSpec]) -> dict[str, Slots]:
        """The parts, one below the other, of each tensor whose name is known.

        All names are taken to be the authors', or all diffusers', whichever knows more of them.
        """
        ...


class Row(NamedTuple):
    """An authors' name of a module, or of one tensor, and what it holds."""

    own: str
    slots: Slots
    exact: bool


class Table:
    """A layout whose rows are data."""

    def __init__(
        self, kind: str, before: Sequence[str], rows: Sequence[Row], also: Sequence[Row] = ()
    ) -> None:
        self.kind = kind
        self.rows = rows
        self._also = also
        self._before = before

    def read(self, specs: Mapping[str, TensorSpec]) -> dict[str, Slots]:
        """The parts of each tensor, as `Layout` has it."""
        inner = {name: self._inner(name) for name in specs if len(name) <= LONGEST}
        counts = _counts(inner.values())
        readings = [
            {
                name: slots
                for name, bare in inner.items()
                if (slots := _tensor_slots(index, bare, counts)) is not None
            }
            for index in (self._theirs, self._own)
        ]
        return max(readings, key=len)

    def modules(self, names: Collection[str]) -> dict[str, Slots]:
        """The same of modules, whose names have _ for dots. What depends on how many blocks a model
        has is not known of them.
        """
        readings = [
            {name: slots for name in names if (slots := index.find(name, None)) is not None}
            for index in (self._flat_theirs, self._flat_own)
        ]
        return max(readings, key=len)

    def _inner(self, name: str) -> str:
        bare = unwrapped(name)
        return bare.removeprefix(next((b for b in self._before if bare.startswith(b)), ""))

    @cached_property
    def _own(self) -> _Index:
        return _Index(((row.own, row.slots, row.exact) for row in self.rows), ".")

    @cached_property
    def _theirs(self) -> _Index:
        return _Index(self._targets(), ".")

    @cached_property
    def _flat_own(self) -> _Index:
        return _Index(((row.own, row.slots, False) for row in self.rows if not row.exact), "_")

    @cached_property
    def _flat_theirs(self) -> _Index:
        return _Index((entry for entry in self._targets() if not entry[2]), "_")

    def _targets(self) -> Iterator[tuple[str, Slots, bool]]:
        """diffusers' names as rows of their own."""
        yield from self._also
        for row in self.rows:
            for slot in row.slots:
                name, half, _ = slot.part.partition("@")
                parts = (Slot(f"{name}@0"), Slot(f"{name}@1")) if half else (Slot(name),)
                yield name, parts, row.exact


class _Index:
    """Rows by what their names are without the numbers, their segments parted by `mark`."""

    def __init__(self, rows: Iterable[tuple[str, Slots, bool]], mark: str) -> None:
        self._mark = mark
        self._rows: dict[tuple[str, bool], list[tuple[list[str], Slots]]] = {}
        for name, slots, exact in rows:
            segments = name.replace(".", mark).split(mark)
            self._rows.setdefault((_bones(segments), exact), []).append((segments, slots))

    def find(self, name: str, counts: Counts | None, *, exact: bool = False) -> Slots | None:
        """What the name holds; None where it is not known. Without `counts` rows that depend on
        them are not.
        """
        segments = name.split(self._mark)
        for pattern, slots in self._rows.get((_bones(segments), exact), ()):
            if counts is None and ("$" in pattern or "~" in pattern):
                return None
            numbers = _numbers(pattern, segments, counts or {})
            if numbers is not None:
                return tuple(Slot(_filled(slot.part, numbers), slot.share) for slot in slots)
        return None


def _tensor_slots(index: _Index, name: str, counts: Counts) -> Slots | None:
    """The parts of a tensor: of its own name, or of its module's."""
    slots = index.find(name, counts, exact=True)
    module, _, last = name.rpartition(".")
    if slots is not None or last not in SUFFIXES:
        return slots
    slots = index.find(module, counts)
    return slots and tuple(Slot(_ended(slot.part, last), slot.share) for slot in slots)


def _ended(part: str, last: str) -> str:
    name, half, number = part.partition("@")
    return f"{name}.{last}{half}{number}"


def _bones(segments: Sequence[str]) -> str:
    return ".".join(
        "#" if segment in ("~", "$") or _NUMBER.fullmatch(segment) else segment
        for segment in segments
    )


def _numbers(pattern: Sequence[str], segments: Sequence[str], counts: Counts) -> list[str] | None:
    """What the pattern's numbers are; None where the name is not of this pattern."""
    numbers = []
    for place, (part, segment) in enumerate(zip(pattern, segments, strict=True)):
        if part not in ("#", "~", "$"):
            if part != segment:
                return None
            continue
        last = counts.get(".".join(segments[:place]), 0) - 1
        if part == "$" and int(segment) != last:
            return None
        numbers.append(str(last - int(segment)) if part == "~" else segment)
    return numbers


def _filled(part: str, numbers: Sequence[str]) -> str:
    left = iter(numbers)
    return re.sub(r"[#$]", lambda _: next(left), part)


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        segments = name.split(".")
        for place, segment in enumerate(segments):
            if _NUMBER.fullmatch(segment):
                start = ".".join(segments[:place])
                counts[start] = max(counts.get(start, 0), int(segment) + 1)
    return counts


@cache
def tables() -> Mapping[str, Table]:
    """The layouts that are data, by name."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return {
        name: Table(
            entry["kind"],
            entry["before"],
            [*_rows(entry["rows"].splitlines())],
            [*_rows(entry.get("also", "").splitlines())],
        )
        for name, entry in yaml.load(text, _READER).items()
    }


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        brace = _BRACE.search(line)
        if brace is not None:
            options = brace[0][1:-1].split(",")
            yield from _rows(line.replace(brace[0], option) for option in options)
            continue
        own, *parts = line.split()
        slots = [part.partition("*") for part in parts]
        yield Row(
            own.removeprefix("="),
            tuple(Slot(part, int(share or 1)) for part, _, share in slots),
            own.startswith("="),
        )
