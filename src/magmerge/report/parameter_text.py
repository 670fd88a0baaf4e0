"""Values of parameters in words: numbers, points through the depth, items, entries of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from magmerge.core.filters import points_of, varies

Plain = Callable[[object], str]
"""How a value that holds no others is told."""


def value_text(value: object, plain: Plain) -> str:
    """A value: 0 to 1 for points, [0.3 for mlp, 0.5 for all others; 0.4] for those of experts."""
    points = points_of(value)
    if points is not None:
        return " to ".join(plain(point) for point in points)
    if isinstance(value, list | tuple) and any(
        varies(part) or points_of(part) is not None for part in value
    ):
        return f"[{'; '.join(items_text(part, plain) for part in value)}]"
    return plain(value)


def items_text(value: object, plain: Plain) -> str:
    """A value; of one that varies by layer: 0 for vae, 0.3 for all others."""
    if not varies(value):
        return value_text(value, plain)
    assert isinstance(value, list | tuple)
    alone = len(value) == 1
    items = [item if isinstance(item, Mapping) else {"value": item} for item in value]
    texts = [f"{value_text(i.get('value'), plain)} for {place_text(i, alone=alone)}" for i in items]
    return ", ".join(texts)


def place_text(item: Mapping[str, object], *, alone: bool = False) -> str:
    """Which tensors an item is for: mlp in layers 0 to 8; all others, or all if it is `alone`."""
    filter_, layers, stack = item.get("filter"), item.get("layers"), item.get("stack")
    words = [] if filter_ is None else [str(filter_)]
    if isinstance(layers, list | tuple):
        of = "" if stack is None else f" of {stack}"
        words.append(f"layers {' to '.join(map(str, layers))}{of}")
    return " in ".join(words) or ("all" if alone else "all others")
