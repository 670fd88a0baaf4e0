"""The closing lines of a merge or a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.cli.output import result_document, show, show_json
from magmerge.dtypes import spoken_size
from magmerge.report.tables import plain, records_summary, records_table

if TYPE_CHECKING:
    from magmerge.result import Result


def show_result(result: Result, seconds: float, *, as_json: bool, verbose: bool) -> None:
    """Say what was done and where it is; with `verbose` a row for each layer."""
    if as_json:
        show_json(result_document(result))
        return
    if verbose:
        show(records_table(result.records))
    steps = [result.recipe.method or "calibration", *(c.method for c in result.recipe.calibrate)]
    show(
        plain(f"{' + '.join(steps)} of {len(result.recipe.experts)} experts", "bold"),
        plain(f"  {records_summary(result.records)}"),
        plain(f"  wrote {result.path} ({spoken_size(result.plan.disk)}) in {seconds:.1f} s"),
    )
