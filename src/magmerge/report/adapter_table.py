"""A merged adapter for the terminal: its ranks, what truncation lost, a row for each module."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from magmerge.dtypes import torch_name
from magmerge.errors import printable
from magmerge.report.tables import plain, table

if TYPE_CHECKING:
    from magmerge.engine.low_rank import ModuleRecord
    from magmerge.engine.result import AdapterResult


def modules_table(modules: Sequence[ModuleRecord], experts: Sequence[str]) -> Table:
    """Every module: its rank, norms of the adapters, the plain merge and the result; the loss."""
    columns = (*(f"|{name}|" for name in experts), "|merge|", "|result|", "lost")
    made = table("modules", "module", "shape", "rank", *columns, numbers=("rank", *columns))
    for one in modules:
        made.add_row(
            plain(one.name),
            "x".join(map(str, one.shape)),
            str(one.rank),
            *(f"{norm:.4g}" for norm in (*one.norms, one.merged, one.written)),
            f"{100 * one.error:.2f} %",
        )
    return made


def adapter_lines(result: AdapterResult) -> list[str]:
    """Ranks, alpha, format and what truncation lost, in words."""
    ranks = Counter(one.rank for one in result.modules)
    spread = (
        f"rank {next(iter(ranks))}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
    )
    lines = [f"{spread}{_why(result)}, alpha = rank, {torch_name(result.dtype)}"]
    worst = max(result.modules, key=lambda one: one.error, default=None)
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
    for one in modules:
        kept = one.merged**2
        full = kept / (1 - one.error**2) if one.error < 1 else kept
        lost += full - kept
        whole += full
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def _why(result: AdapterResult) -> str:
    asked = result.job.adapter_output
    rank = asked.rank
    if rank is None:
        return " (the largest of the inputs)"
    if asked.energy is not None:
        return f" (for {100 * asked.energy:g} % of the squared norm)"
    return " (all that the inputs span)" if rank == "exact" else ""
