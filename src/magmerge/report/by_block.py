"""Calibrated layers by the blocks of their model, under the names that its users know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from magmerge.core.blocks import Blocks
from magmerge.core.stacks import block_of
from magmerge.report.account import LayerModule

OUTSIDE = "outside of blocks"
STAGES = {"IN": "down", "MID": "mid", "OUT": "up"}
"""What the blocks of image models begin with, and the stage that they are of."""
PART = 3
"""Words of a tensor's name, from its end, that tell its part, its ending among them."""
ENDS = ("weight", "bias")


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


def by_stage(modules: Sequence[LayerModule]) -> tuple[BlockAccount, ...]:
    """The way down, the middle and the way up of an image model; none of any other."""
    groups: dict[str, list[LayerModule]] = {name: [] for name in STAGES.values()}
    known = Blocks(module.name for module in modules)
    for module in modules if known.present - {"BASE"} else ():
        block = known.block_of(module.name) or ""
        stage = next((STAGES[head] for head in STAGES if block.startswith(head)), OUTSIDE)
        groups.setdefault(stage, []).append(module)
    told = {name: group for name, group in groups.items() if group}
    if len(told) < 2:
        return ()
    return tuple(_account(name, group) for name, group in told.items())


def by_part(modules: Sequence[LayerModule]) -> tuple[BlockAccount, ...]:
    """The parts that blocks have in common, such as self_attn.q_proj, each over all blocks; none
    where no part is in several blocks.
    """
    groups: dict[str, list[LayerModule]] = {}
    for module in modules:
        block = block_of(module.name)
        words = [word for word in (block.inner if block else "").split(".") if not word.isdigit()]
        part = ".".join(word for word in words[-PART:] if word not in ENDS)
        groups.setdefault(part or OUTSIDE, []).append(module)
    if not 2 <= len(groups) < len(modules):
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
