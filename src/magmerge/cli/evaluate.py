"""magmerge evaluate: measure models on the tasks of a suite, or of other evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import names
from magmerge.core.errors import UsageError
from magmerge.report.terminal_tables import plain

HARNESS = ("limit", "num_fewshot", "batch_size")


def command(options: o.Options) -> None:
    """Measure models on tasks: scores with 95 % intervals, and how near the experts they come."""
    if not any(options[name] for name in ("suite", "perplexity", "questions", "lm_eval")):
        raise UsageError(
            "nothing to measure is given",
            remedy="give one of --suite, --perplexity, --questions and --lm-eval",
        )
    keywords, models = _keywords(options), options["model"]
    with progress_reporter() as progress:
        scores = magmerge.evaluate(
            models if len(models) > 1 else models[0], **keywords, progress=progress
        )
    rows = scores if isinstance(scores, list) else [scores]
    if options["json"]:
        documents = [row.document() for row in rows]
        show_json(documents if len(documents) > 1 else documents[0])
    else:
        _show(rows, options["out"])


def _keywords(options: o.Options) -> dict[str, Any]:
    """What `magmerge.evaluate` takes beside the models."""
    columns = [f"{name}_field" for name in ("text", "question", "choices", "answer")]
    keywords = o.without(options, "model", *columns, "lm_eval", "lm_eval_include", *HARNESS)
    keywords["tasks"] = options["tasks"] or None
    keywords["columns"] = {name.removesuffix("_field"): options[name] for name in columns}
    if options["lm_eval"]:
        keywords["lm_eval"] = {
            "tasks": names(options["lm_eval"]),
            "include": options["lm_eval_include"],
            **{name: options[name] for name in HARNESS},
        }
    return keywords


def _show(rows: Sequence[Any], out: Path | None) -> None:
    from magmerge.evaluation.nearness_table import nearness_notes, nearness_table
    from magmerge.evaluation.scores_table import (
        comparison_heading,
        comparison_table,
        scores_heading,
        scores_notes,
        scores_table,
    )

    heading, table = scores_heading(rows[0]), scores_table(rows[0])
    if len(rows) > 1:
        heading, table = comparison_heading(rows), comparison_table(rows)
    notes = [plain(note, "dim") for note in scores_notes(rows[0])]
    seconds = sum(scores.seconds for scores in rows)
    spent = plain(f"{seconds:.1f} s in all" + (f"; wrote {out}" if out else ""))
    show(plain(""), heading, table, plain(""), *notes)
    if any(scores.nearness for scores in rows):
        told = [plain(note, "dim") for note in nearness_notes(rows)]
        show(plain(""), nearness_table(rows), plain(""), *told)
    show(spent)
