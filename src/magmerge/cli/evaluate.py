"""magmerge evaluate: measure models on the tasks of a suite, or of other evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import names

QUICK = o.in_panel(
    "Quick looks at language models",
    o.Option("perplexity", list[Path], "A file of texts; repeat.", []),
    o.Option("questions", list[Path], "A file of questions, choices and answers; repeat.", []),
    o.option("text_field", help="The column of the texts."),
    o.Option("question_field", str, "Its column.", "question"),
    o.Option("choices_field", str, "Their column.", "choices"),
    o.Option(
        "answer_field",
        str,
        "The column of the right choice's number, from 0, or its text.",
        "answer",
    ),
    o.option("max_length"),
    o.option("base", help="Where config and tokenizer are, if not in MODEL."),
)
HARNESS = o.in_panel(
    "lm-evaluation-harness",
    o.Option("lm_eval", str, "Its tasks, separated by commas.", None),
    o.Option(
        "lm_eval_include",
        Path,
        "A folder with your own task files; they can run code: add --allow-code.",
        None,
    ),
    o.Option("limit", int, "Rows of each task, at most.", None),
    o.Option("num_fewshot", int, "Examples before each row. Default: the task's.", None),
    o.Option("batch_size", int, "Rows in one call.", 8),
)


@o.takes(
    o.Option("model", list[Path], "Model folders or files; several are compared.", argument=True),
    o.Option("suite", Path, "A suite file: tasks with data and metrics.", None),
    o.Option("split", str, "Which split of the data.", "test"),
    "tasks",
    *QUICK,
    *HARNESS,
    o.option("dtype", help="Of the forward pass: float32 or bfloat16.", default="float32"),
    o.option("threads", help="Batches at work at once. Default: all cores."),
    o.Option("workers", int, "Threads that decode. Default: all cores.", None),
    o.option("memory", help="Of models that are live at once, at most."),
    "device",
    "allow_code",
    o.Option("out", Path, "Write the scores to this file, as JSON.", None),
    "overwrite",
    "json",
)
def command(options: o.Options) -> None:
    """Measure models on tasks: scores with 95 % intervals, and how near the experts they come.

    Example: magmerge evaluate MERGED --suite suite.yaml --split validation --out scores.json
    """
    if not any(options[name] for name in ("suite", "perplexity", "questions", "lm_eval")):
        raise typer.BadParameter("give one of --suite, --perplexity, --questions and --lm-eval")
    import magmerge

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
    keywords = o.without(options, "model", *columns, *(item.name for item in HARNESS))
    keywords["tasks"] = options["tasks"] or None
    keywords["columns"] = {name.removesuffix("_field"): options[name] for name in columns}
    if options["lm_eval"]:
        keywords["lm_eval"] = {
            "tasks": names(options["lm_eval"]),
            "include": options["lm_eval_include"],
            **{name: options[name] for name in ("limit", "num_fewshot", "batch_size")},
        }
    return keywords


def _show(rows: Sequence[Any], out: Path | None) -> None:
    from magmerge.evaluation.scores_table import (
        comparison_heading,
        comparison_table,
        scores_heading,
        scores_notes,
        scores_table,
    )
    from magmerge.report.terminal_tables import plain

    heading, table = scores_heading(rows[0]), scores_table(rows[0])
    if len(rows) > 1:
        heading, table = comparison_heading(rows), comparison_table(rows)
    notes = [plain(note, "dim") for note in scores_notes(rows[0])]
    seconds = sum(scores.seconds for scores in rows)
    spent = plain(f"{seconds:.1f} s in all" + (f"; wrote {out}" if out else ""))
    show(plain(""), heading, table, plain(""), *notes, spent)
