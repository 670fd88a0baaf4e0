"""The closing lines of a merge or a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from magmerge.cli.output import result_document, show, show_json
from magmerge.dtypes import spoken_size
from magmerge.report.adapter_table import adapter_lines, modules_table
from magmerge.report.tables import plain, records_summary, records_table, uncovered_lines

if TYPE_CHECKING:
    from magmerge.engine.result import Result


def show_result(result: Result, seconds: float, *, as_json: bool, verbose: bool) -> None:
    """Say what was done and where it is; with `verbose` a row for each layer."""
    if as_json:
        show_json(result_document(result))
        return
    adapter = getattr(result, "modules", ())
    if verbose:
        experts = tuple(result.recipe.experts)
        show(modules_table(adapter, experts) if adapter else records_table(result.records))
    recipe = result.recipe
    steps = [recipe.method] if recipe.method else []
    steps += [calibration.method for calibration in recipe.calibrate]
    count = len(recipe.experts)
    head = f"{' + '.join(steps)} of " + (f"{recipe.merged} with " if recipe.merged else "")
    lines = records_summary(result.plan, result.records, merged=recipe.method is not None)
    show(
        plain(f"{head}{count} expert{'s' if count > 1 else ''}", "bold"),
        *(plain(f"  {line}") for line in lines.splitlines()),
        *(plain(f"  {line}") for line in (adapter_lines(cast("Any", result)) if adapter else ())),
        *(plain(f"  {line}") for line in uncovered_lines(result.uncovered)),
        plain(f"  wrote {result.path} ({spoken_size(result.plan.disk)}) in {seconds:.1f} s"),
    )
