"""An extracted adapter for the terminal: how near it comes to the model, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from magmerge.dtypes import spoken_size, torch_name
from magmerge.report.tables import plain, table

if TYPE_CHECKING:
    from magmerge.engine.extraction import ExtractedModule
    from magmerge.engine.result import Extraction

WORST = 5
"""Modules that are shown if not all are asked for."""


def extraction_table(modules: Sequence[ExtractedModule], *, whole: bool) -> Table:
    """Modules, the farthest from the model first: rank, norm of the task vector, what is missed."""
    ranked = sorted(modules, key=lambda one: (-one.error, one.name))
    columns = ("rank", "|task vector|", "missed")
    title = "modules" if whole or len(ranked) <= WORST else "modules that miss most"
    made = table(title, "module", "shape", *columns, numbers=columns)
    for one in ranked if whole else ranked[:WORST]:
        made.add_row(
            plain(one.name),
            "x".join(map(str, one.shape)),
            str(one.rank),
            f"{one.norm:.4g}",
            f"{100 * one.error:.2f} %",
        )
    if len(ranked) > WORST and not whole:
        made.add_row(f"and {len(ranked) - WORST} more (-v)", "", "", "", "")
    return made


def extraction_lines(found: Extraction, seconds: float) -> list[Text]:
    """How many modules, of which ranks, and how much of the model's change the adapter misses."""
    ranks = [one.rank for one in found.modules]
    least, most = min(ranks), max(ranks)
    spread = f"rank {most}" if least == most else f"ranks {least} to {most}"
    count = f"{len(ranks)} module{'' if len(ranks) == 1 else 's'}"
    lines = [
        plain(f"{count}, {spread}, alpha = rank, {torch_name(found.dtype)}", "bold"),
        plain(f"  base + adapter misses {100 * found.error:.2f} % of the model's change (norm)"),
    ]
    if found.lost:
        few = f"{len(found.lost)} changed tensor{'' if len(found.lost) == 1 else 's'}"
        share = 100 * math.hypot(*(one.norm for one in found.lost)) / found.norm
        lines.append(plain(f"  {few} ({share:.2f} %) not in the adapter, counted as missed"))
    assert found.content is not None
    factors = [part for one in found.content.modules.values() for part in (one.up, one.down)]
    size = sum(part.numel() * part.element_size() for part in factors)
    return [*lines, plain(f"  wrote {found.path} ({spoken_size(size)}) in {seconds:.1f} s")]
