"""Merging and calibrating for the verbs of these names, and what is said at the end."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, cast

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.dtypes import spoken_size
from magmerge.report.adapter_table import (
    adapter_lines,
    extraction_lines,
    extraction_table,
    modules_table,
)
from magmerge.report.terminal_tables import (
    check_lines,
    plain,
    records_summary,
    records_table,
    uncovered_lines,
)
from magmerge.report.verdict_text import verdict_line

if TYPE_CHECKING:
    from magmerge.core.recipe import Recipe
    from magmerge.engine.adapters.adapter_result import Extraction
    from magmerge.engine.result import Result


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 1 << 24
KEPT = 1 << 25


def write_result(verb: Literal["merge", "calibrate"], options: o.Options) -> None:
    """Merge or calibrate with a verb's options, and say what was done."""
    keywords = o.merge_keywords(options)
    _write(lambda progress: getattr(magmerge, verb)(**keywords, progress=progress), options)


def write_recipe(recipes: Sequence[Recipe], options: o.Options) -> None:
    """Carry the recipes of a file out, and say what was done."""
    machine = {name: options[name] for name in ("threads", "memory", "device", "offload")}
    machine["hub"] = "ranges" if options["stream"] else "whole"
    machine["sha256"] = options["sha256"]
    _write(
        lambda progress: magmerge.run(
            recipes,
            options["out"],
            machine=magmerge.Machine(**machine, progress=progress),
            live=magmerge.Live(build=options["allow_code"]),
            overwrite=options["overwrite"],
            resume=options["resume"],
        ),
        options,
    )


def _write(merge: Callable[[Callable[[str, int, int], None]], Result], options: o.Options) -> None:
    _return_memory_at_once()
    start = time.monotonic()
    with progress_reporter() as progress:
        result = merge(progress)
    if options["json"]:
        show_json(_document(result))
    else:
        _show(result, time.monotonic() - start, verbose=options["verbose"])


def _return_memory_at_once() -> None:
    """Let glibc keep the memory of pieces for reuse, and give that of whole layers back at once.

    By default it does neither reliably: it gives small blocks back, whose pages must then be made
    anew for every piece, and keeps large ones, beyond the plan's stated peak. This is a setting of
    the whole process, so only verbs of the command line make it.
    """
    # Only Linux has glibc; elsewhere there may be no library of no name.
    linux = sys.platform.startswith("linux")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if linux else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def _show(result: Result, seconds: float, *, verbose: bool) -> None:
    """Say what was done and where it is; with `verbose` a row for each layer."""
    if hasattr(result, "lost"):
        extraction = cast("Extraction", result)
        show(
            extraction_table(extraction.modules, whole=verbose),
            *extraction_lines(extraction, seconds),
        )
        return
    adapter = getattr(result, "modules", ())
    if verbose:
        experts = tuple(result.recipe.experts)
        show(modules_table(adapter, experts) if adapter else records_table(result.records))
    recipe = result.recipe
    steps = [recipe.method] if recipe.method else []
    if result.job.takes:
        steps = ["one model as it is"] if recipe.moe is None else ["a mixture"]
    steps += [calibration.method for calibration in recipe.calibrate]
    count = len(recipe.experts)
    head = f"{' + '.join(steps)} of " + (f"{recipe.merged} with " if recipe.merged else "")
    text = result.job.choice.get("text")
    lines = records_summary(result.plan, result.records, merged=recipe.method is not None)
    show(
        plain(f"{head}{count} expert{'s' if count > 1 else ''}", "bold"),
        *([plain(f"  {text}")] if text else ()),
        *(plain(f"  {line}") for line in lines.splitlines()),
        *(plain(f"  {line}") for line in (adapter_lines(cast("Any", result)) if adapter else ())),
        *(plain(f"  {line}") for line in check_lines(result.account.extra.get("check", {}))),
        *(plain(f"  {line}", "bold") for line in verdict_line(result.account.extra.get("verdict"))),
        *(plain(f"  {line}") for line in uncovered_lines(result.uncovered)),
        plain(f"  wrote {result.path} ({spoken_size(result.plan.disk)}) in {seconds:.1f} s"),
    )


def _document(result: Result) -> dict[str, Any]:
    """A result for a program to read."""
    modules = getattr(result, "modules", ())
    return {
        "path": None if result.path is None else str(result.path),
        "recipe": result.recipe.model_dump(mode="json"),
        "warnings": list(result.warnings),
        **{
            name: dict(told)
            for name in ("check", "verdict")
            if (told := result.account.extra.get(name))
        },
        **({"auto": dict(result.job.choice)} if result.job.choice else {}),
        "uncovered": [tensor._asdict() for tensor in result.uncovered],
        "layers": [asdict(record) for record in result.records],
        **({"modules": [asdict(module) for module in modules]} if modules else {}),
    }
