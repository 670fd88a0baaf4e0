"""Which name of one model is which of another's, by rules and by what is around all names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from magmerge.checkpoints.names.rules import kinds

OTHERWISE = "tensors are named otherwise than in"
"""What the note of a renaming says."""
DEEPEST = 4
"""Segments that a model's names may have before another's."""
MOST = 64
"""How many of such beginnings are tried, the most frequent ones. Each is held against all names."""
Names = Mapping[str, str]


class Pairs(NamedTuple):
    """The first model's names that the second has too, each with the second's name for it; and what
    kinds of renamings that takes.
    """

    names: dict[str, str]
    kinds: tuple[str, ...] = ()


def pair(own: Collection[str], theirs: Collection[str]) -> Pairs:
    """Every name of `own` that is one of `theirs` in another form, each of these once at most.

    Both are brought to new names by one kind of rule after the other; each is taken only if it
    makes more of them equal and no two of one model. So are segments before all names, which one of
    the two has. Where two choices of such segments are equally good, none is taken.
    """
    mine, its = {name: name for name in own}, {name: name for name in theirs}
    taken: dict[str, set[str]] = {}
    around: list[str] = []
    before = -1
    while _hits(mine, its) > before:
        before = _hits(mine, its)
        for kind in kinds():
            new, other = kind.renamed(mine), kind.renamed(its)
            if new is None or other is None:
                continue
            if kind.always or _hits(new, other) > _hits(mine, its):
                changed = {name for name in mine if new[name] != mine[name]}
                changed |= {name for name in its if other[name] != its[name]}
                taken.setdefault(kind.title, set()).update(changed)
                mine, its = new, other
        wrapped = _wrapped(mine, its)
        if wrapped is not None:
            prefix, mine = wrapped
            around.append(f"{prefix} before all names")
    back = {name: n for n, name in its.items()}
    names = {n: back[name] for n, name in mine.items() if name in back}
    moved = {old for old, new in names.items() if old != new}
    moved |= {names[old] for old in moved}
    told = [title for title, changed in taken.items() if changed & moved]
    return Pairs(names, (*told, *around))


def _hits(mine: Names, its: Names) -> int:
    return len(set(mine.values()) & set(its.values()))


def _wrapped(mine: Names, its: Names) -> tuple[str, dict[str, str]] | None:
    """The prefix that most of the names of either have more than the other's, and `mine` with it
    taken away or added where that makes a name of `its`; None if there is no one best, or where it
    does so for less than half of the names.
    """
    known, used = set(its.values()), set(mine.values())
    free = {name for name in mine.values() if name not in known}
    open_ = {name for name in known if name not in used}
    best: list[tuple[str, dict[str, str]]] = []
    often = Counter(prefix for names in (free, open_) for prefix in _prefixes(sorted(names)))
    for prefix, _ in often.most_common(MOST):
        inner = {name: name.removeprefix(prefix) for name in free if name.startswith(prefix)}
        outer = {name: f"{prefix}{name}" for name in free}
        for new in (inner, outer):
            landed = {old: name for old, name in new.items() if name in open_}
            if not landed or len(set(landed.values())) < len(landed):
                continue
            # A few names that happen to be there are no model that has a prefix.
            if 2 * len(landed) < min(len(new), len(open_)):
                continue
            if not best or len(landed) > len(best[0][1]):
                best = [(prefix, landed)]
            elif len(landed) == len(best[0][1]) and landed != best[0][1]:
                best.append((prefix, landed))
    if len(best) != 1:
        return None
    prefix, landed = best[0]
    return prefix, {key: landed.get(name, name) for key, name in mine.items()}


def _prefixes(names: Collection[str]) -> Iterator[str]:
    """The first segments of names."""
    for name in names:
        *segments, _ = name.split(".", DEEPEST)
        for count in range(1, len(segments) + 1):
            yield f"{'.'.join(segments[:count])}."
