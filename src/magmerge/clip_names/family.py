"""What a family of names is: tables from its names to the parts of a CLIP model.

A part has one name here, whatever the family: vision.patch, text.3.q.weight, ... Its shape is that
of Hugging Face: projections are [out, in], q, k and v are apart, embeddings have no leading ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Layout = Literal["plain", "turned", "token", "table"]
"""How a family stores a part: as it is; [in, out]; [1, 1, width]; [1, positions, width]."""
HALVES = ("vision", "text")
BUFFERS = frozenset(
    {"vision.position_ids", "text.position_ids", "text.mask", "resolution", "context", "vocabulary"}
)
"""Parts that a model computes from its configuration: no weights."""
BIAS = "vision.projection.bias"
"""What only timm's projection has. For the others it is zero."""
RANKS = {
    "scale": (0, 1),
    "vision.class": (1,),
    "vision.patch": (4,),
    "vision.positions": (2,),
    "vision.projection": (2,),
    "text.tokens": (2,),
    "text.positions": (2,),
    "text.projection": (2,),
}
"""How many dimensions a part outside the layers may have; buffers may have any."""
NORMS = ("norm1", "norm2", "pre", "post")


def ranks_of(part: str) -> tuple[int, ...] | None:
    """How many dimensions a part may have; None for any number."""
    if part in BUFFERS or part in RANKS:
        return RANKS.get(part)
    *_, module, kind = part.split(".")
    return (1,) if kind == "bias" or module in NORMS else (2,)


class Entry(NamedTuple):
    """What one stored tensor is: one part, or several below each other."""

    parts: tuple[str, ...]
    layout: Layout = "plain"


class Place(NamedTuple):
    """Where a part is stored: under which name, as which of several."""

    name: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Family:
    """`fixed` has the names outside the layers; a name may begin with {vision} or {text}, the
    prefix of a half. `layers` are the beginnings of a layer's names, `inside` what follows them.
    `variants` are the prefixes of both halves, None for one that is not there; the first is what
    is written. `anchors` are names, one of which every model of the family has.
    """

    name: str
    fixed: Mapping[str, Entry]
    layers: Mapping[str, str]
    inside: Mapping[str, Entry]
    variants: tuple[tuple[str | None, str | None], ...]
    anchors: tuple[str, ...]


def both(name: str, part: str) -> dict[str, Entry]:
    """A layer's weight and bias."""
    return {f"{name}.{kind}": Entry((f"{part}.{kind}",)) for kind in ("weight", "bias")}


class Naming:
    """One model's names: a family, the prefix of all its names, and the prefixes of its halves."""

    def __init__(self, family: Family, prefix: str = "", variant: int = 0) -> None:
        self.family = family
        self.prefix = prefix
        self.variant = variant
        prefixes = zip(HALVES, family.variants[variant], strict=True)
        known: dict[str, str] = {half: own for half, own in prefixes if own is not None}
        self._known = known
        self._fixed = {
            prefix + name.format_map(known): entry
            for name, entry in family.fixed.items()
            if _half_of(name) in (None, *known)
        }
        self._layers = {
            half: prefix + start.format_map(known)
            for half, start in family.layers.items()
            if half in known
        }
        self._places = {part: Place(n, e) for n, e in self._fixed.items() for part in e.parts}
        self._inside = {part: Place(n, e) for n, e in family.inside.items() for part in e.parts}

    def anchors(self) -> list[str]:
        """The names of which every model with these names has one."""
        anchors = self.family.anchors
        return [name.format_map(self._known) for name in anchors if _half_of(name) in self._known]

    def entry(self, name: str) -> Entry | None:
        """What the tensor of this name is; None if the family has no such name."""
        if name in self._fixed:
            return self._fixed[name]
        for half, start in self._layers.items():
            if not name.startswith(start):
                continue
            number, _, rest = name[len(start) :].partition(".")
            inner = self.family.inside.get(rest)
            if inner is not None and len(number) <= 4 and number.isascii() and number.isdigit():
                parts = tuple(f"{half}.{number}.{part}" for part in inner.parts)
                return Entry(parts, inner.layout)
        return None

    def place(self, part: str) -> Place | None:
        """Where the family stores a part; None if it has none such."""
        half, _, inner = part.partition(".")
        number, _, rest = inner.partition(".")
        if not number.isdigit():
            return self._places.get(part)
        found = self._inside.get(rest)
        if found is None or half not in self._layers:
            return None
        parts = tuple(f"{half}.{number}.{one}" for one in found.entry.parts)
        return Place(f"{self._layers[half]}{number}.{found.name}", Entry(parts, found.entry.layout))


def _half_of(name: str) -> str | None:
    return next((half for half in HALVES if f"{{{half}}}" in name), None)
