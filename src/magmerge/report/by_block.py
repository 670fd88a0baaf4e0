"""Calibrated layers by the blocks of their model, under the names that its users know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from magmerge.core.blocks import Blocks
from magmerge.core.stacks import block_of
from magmerge.report.account import LayerModule

OUTSIDE = "outside of blocks"


class BlockAccount(NamedTuple):
    """One block: how many layers of it were calibrated, their mean factor and its extremes, and the
    length of all that the merge changed in it, before and after.
    """

    name: str
    layers: int
    mean: float
    least: float
    greatest: float
    before: float | None
    after: float | None


def by_block(modules: Sequence[LayerModule]) -> tuple[BlockAccount, ...]:
    """The blocks in model order: IN04, MID, OUT08 of image models, model.layers 3 of others; none
    where all are in one.
    """
    known = Blocks(module.name for module in modules)
    pictured = bool(known.present - {"BASE"})
    groups: dict[str, list[LayerModule]] = {}
    for module in modules:
        block = block_of(module.name)
        name = known.block_of(module.name) if pictured else None
        if name is None and block is not None and block.stack:
            name = f"{block.stack} {block.number}"
        groups.setdefault(name or OUTSIDE, []).append(module)
    if len(groups) < 2:
        return ()
    return tuple(_account(name, group) for name, group in groups.items())


def _account(name: str, modules: Sequence[LayerModule]) -> BlockAccount:
    leads = [module.lead for module in modules]
    factors = [lead.xi for lead in leads if lead.xi is not None]
    least = [lead.xi_min for lead in leads if lead.xi_min is not None]
    greatest = [lead.xi_max for lead in leads if lead.xi_max is not None]
    return BlockAccount(
        name,
        len(modules),
        math.fsum(factor / len(factors) for factor in factors),
        min(least, default=min(factors)),
        max(greatest, default=max(factors)),
        _length([lead.norm_before for lead in leads]),
        _length([lead.norm_after for lead in leads]),
    )


def _length(norms: Sequence[float | None]) -> float | None:
    """The norm of layers together; None where one is not told."""
    known = [norm for norm in norms if norm is not None]
    length = math.hypot(*known)
    return length if len(known) == len(norms) and math.isfinite(length) else None
