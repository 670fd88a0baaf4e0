"""A method that somebody registered, tried on a few numbers: whether it may be cut as it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magmerge.core.errors import Fault
from magmerge.core.filters import varies
from magmerge.core.lazy import Tensor, torch
from magmerge.core.traits import Method
from magmerge.engine.memory import cut_of
from magmerge.engine.stages import Stages

ROWS, COLUMNS = 4, 48
TOLERANCE = 1e-5


def cut_faults(stages: Stages, experts: int) -> list[Fault]:
    """What speaks against the cut of a method, which is none of magmerge's own.

    A method that says that it takes entries or rows, and looks at more, would give results that
    depend on the memory that it is run in. Those with a survey are not tried: they may say what
    they need.
    """
    method = stages.method
    if method is None or method.survey is not None:
        return []
    if experts < 1 or any(map(varies, stages.keywords.values())):
        return []
    cut = cut_of(method, stages.keywords)
    if cut == "whole":
        return []
    generator = torch.Generator().manual_seed(0)
    layer = torch.randn(experts, ROWS, COLUMNS, generator=generator)
    base = torch.randn(ROWS, COLUMNS, generator=generator)
    half = ROWS // 2
    parts = [(layer[:, :half], base[:half], 0), (layer[:, half:], base[half:], half * COLUMNS)]
    if cut == "entries":
        parts = [(part.flatten(1), own.flatten(), start) for part, own, start in parts]
    whole = _applied(method, stages.keywords, layer, base, 0).flatten()
    joined = torch.cat([_applied(method, stages.keywords, *part).flatten() for part in parts])
    if torch.allclose(whole, joined, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return []
    return [
        Fault(
            f'{method.name} says cut="{cut}", but gives other results for parts of a layer than '
            "for the whole",
            'register it with cut="whole" (or "rows"), or with a survey of what it must know',
        )
    ]


def _applied(
    method: Method, keywords: Mapping[str, Any], layer: Tensor, base: Tensor, start: int
) -> Tensor:
    supplied: dict[str, Any] = {"seeds": list(range(len(layer)))} if method.random else {}
    supplied |= {"start": start} if "start" in method.supplied else {}
    supplied |= {"base": base} if "base" in method.supplied else {}
    return method.fn(layer.clone(), **{**keywords, **supplied})
