"""Merged and extracted adapters for the terminal: ranks, what is lost, a row for each module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from magmerge.core.blocks import Blocks
from magmerge.core.dtypes import spoken_size, torch_name
from magmerge.core.errors import printable
from magmerge.report.terminal_tables import plain, table

if TYPE_CHECKING:
    from magmerge.engine.adapters.adapter_result import AdapterResult, Extraction
    from magmerge.engine.adapters.extraction import ExtractedModule
    from magmerge.engine.adapters.module_merge import ModuleRecord

WORST = 5
"""Modules that are shown if not all are asked for."""


def modules_table(modules: Sequence[ModuleRecord], experts: Sequence[str]) -> Table:
    """Every module: its rank, norms of the adapters, the plain merge and the result; the loss. In
    an image model its block too.
    """
    columns = (*(f"|{name}|" for name in experts), "|merge|", "|result|", "lost")
    blocks = Blocks(module.name for module in modules)
    own = ("block",) if blocks.present else ()
    rows = table("modules", "module", *own, "shape", "rank", *columns, numbers=("rank", *columns))
    for module in modules:
        rows.add_row(
            plain(module.name),
            *([blocks.block_of(module.name) or ""] if own else []),
            "x".join(map(str, module.shape)),
            str(module.rank),
            *(f"{norm:.4g}" for norm in (*module.norms, module.merged, module.written)),
            f"{100 * module.error:.2f} %",
        )
    return rows


def _ranks(modules: Sequence[ModuleRecord] | Sequence[ExtractedModule]) -> str:
    ranks = sorted({module.rank for module in modules})
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def adapter_lines(result: AdapterResult) -> list[str]:
    """Ranks, alpha, format and what truncation lost, in words."""
    lines = [f"{_ranks(result.modules)}{_why(result)}, alpha = rank, {torch_name(result.dtype)}"]
    worst = max(result.modules, key=lambda module: module.error, default=None)
    if worst is None or worst.error < 1e-6:
        return [*lines, "nothing was cut off"]
    share = 100 * whole_error(result.modules)
    lines.append(
        f"truncation cut off {share:.2f} % of the merge's norm in all, {100 * worst.error:.2f} % "
        f"in the worst module ({printable(worst.name)})"
    )
    return lines


def whole_error(modules: Sequence[ModuleRecord]) -> float:
    """What truncation lost of all modules together, relative to their norm."""
    lost = whole = 0.0
    for module in modules:
        kept = module.merged**2
        full = kept / (1 - module.error**2) if module.error < 1 else kept
        lost += full - kept
        whole += full
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def _why(result: AdapterResult) -> str:
    output = result.job.adapter_output
    rank = output.rank
    if rank is None:
        return " (the largest of the inputs)"
    if output.energy is not None:
        return f" (for {100 * output.energy:g} % of the squared norm)"
    return " (all that the inputs span)" if rank == "exact" else ""


def extraction_table(modules: Sequence[ExtractedModule], *, whole: bool) -> Table:
    """Modules, the farthest from the model first: rank, norm of the task vector, what is missed."""
    ranked = sorted(modules, key=lambda module: (-module.error, module.name))
    columns = ("rank", "|task vector|", "missed")
    title = "modules" if whole or len(ranked) <= WORST else "modules that miss most"
    rows = table(title, "module", "shape", *columns, numbers=columns)
    for module in ranked if whole else ranked[:WORST]:
        rows.add_row(
            plain(module.name),
            "x".join(map(str, module.shape)),
            str(module.rank),
            f"{module.norm:.4g}",
            f"{100 * module.error:.2f} %",
        )
    if len(ranked) > WORST and not whole:
        rows.add_row(f"and {len(ranked) - WORST} more (-v)", "", "", "", "")
    return rows


def extraction_lines(extraction: Extraction, seconds: float) -> list[Text]:
    """How many modules, of which ranks, and how much of the model's change the adapter misses."""
    modules = extraction.modules
    count = f"{len(modules)} module{'' if len(modules) == 1 else 's'}"
    lines = [
        plain(f"{count}, {_ranks(modules)}, alpha = rank, {torch_name(extraction.dtype)}", "bold"),
        plain(
            f"  base + adapter misses {100 * extraction.error:.2f} % of the model's change (norm)"
        ),
    ]
    if extraction.lost:
        few = f"{len(extraction.lost)} changed tensor{'' if len(extraction.lost) == 1 else 's'}"
        share = 100 * math.hypot(*(module.norm for module in extraction.lost)) / extraction.norm
        lines.append(plain(f"  {few} ({share:.2f} %) not in the adapter, counted as missed"))
    assert extraction.content is not None
    factors = [
        part for module in extraction.content.modules.values() for part in (module.up, module.down)
    ]
    size = sum(part.numel() * part.element_size() for part in factors)
    return [*lines, plain(f"  wrote {extraction.path} ({spoken_size(size)}) in {seconds:.1f} s")]
