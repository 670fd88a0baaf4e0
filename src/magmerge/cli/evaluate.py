"""magmerge evaluate: measure models on the tasks of a suite, or of other evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json

QUICK = "Quick looks at language models"
HARNESS = "lm-evaluation-harness"


def command(
    model: Annotated[
        list[Path], typer.Argument(help="Model folders or files; several are compared.")
    ],
    suite: Annotated[
        Path | None, typer.Option("--suite", help="A suite file: tasks with data and metrics.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split of the data.")] = "test",
    task: Annotated[
        list[str], typer.Option("--task", help="Only this task of the suite; repeat for more.")
    ] = [],
    perplexity: Annotated[
        list[Path],
        typer.Option("--perplexity", help="A file of texts; repeat.", rich_help_panel=QUICK),
    ] = [],
    questions: Annotated[
        list[Path],
        typer.Option(
            "--questions",
            help="A file of questions, choices and answers; repeat.",
            rich_help_panel=QUICK,
        ),
    ] = [],
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", help="The column of the texts.", rich_help_panel=QUICK),
    ] = None,
    question_field: Annotated[
        str, typer.Option("--question-field", help="Its column.", rich_help_panel=QUICK)
    ] = "question",
    choices_field: Annotated[
        str, typer.Option("--choices-field", help="Their column.", rich_help_panel=QUICK)
    ] = "choices",
    answer_field: Annotated[
        str,
        typer.Option(
            "--answer-field",
            help="The column of the right choice's number, from 0, or its text.",
            rich_help_panel=QUICK,
        ),
    ] = "answer",
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="Tokens of a text, at most.", rich_help_panel=QUICK),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            help="Where config and tokenizer are, if not in MODEL.",
            rich_help_panel=QUICK,
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", help="Its tasks, separated by commas.", rich_help_panel=HARNESS),
    ] = None,
    lm_eval_include: Annotated[
        Path | None,
        typer.Option(
            "--lm-eval-include",
            help="A folder with your own task files; they can run code: add --allow-code.",
            rich_help_panel=HARNESS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Rows of each task, at most.", rich_help_panel=HARNESS),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            help="Examples before each row. Default: the task's.",
            rich_help_panel=HARNESS,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Rows in one call.", rich_help_panel=HARNESS)
    ] = 8,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the forward pass: float32 or bfloat16.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", help="Batches at work at once. Default: all cores.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Threads that decode. Default: all cores.")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", help="Of models that are live at once, at most.")
    ] = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the scores to this file, as JSON.")
    ] = None,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Measure models on tasks: scores with 95 % intervals, and how near the experts they come.

    Example: magmerge evaluate MERGED --suite suite.yaml --split validation --out scores.json
    """
    if not (suite or perplexity or questions or lm_eval):
        raise typer.BadParameter("give one of --suite, --perplexity, --questions and --lm-eval")
    import magmerge

    given = locals()
    with progress_reporter() as progress:
        wanted = list(model) if len(model) > 1 else model[0]
        scores = magmerge.evaluate(wanted, **_arguments(given), progress=progress)
    found = scores if isinstance(scores, list) else [scores]
    if json:
        documents = [one.document() for one in found]
        show_json(documents if len(documents) > 1 else documents[0])
    else:
        _show(found, out)


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `magmerge.evaluate` takes."""
    same = ("suite", "split", "perplexity", "questions", "max_length", "base", "dtype", "threads")
    found = {
        name: given[name] for name in (*same, "workers", "memory", "device", "allow_code", "out")
    }
    columns = {name: given[f"{name}_field"] for name in ("text", "question", "choices", "answer")}
    found |= {"tasks": given["task"] or None, "overwrite": given["yes"], "columns": columns}
    if given["lm_eval"]:
        names = [name.strip() for name in given["lm_eval"].split(",") if name.strip()]
        more = {name: given[name] for name in ("limit", "num_fewshot", "batch_size")}
        found["lm_eval"] = {"tasks": names, "include": given["lm_eval_include"], **more}
    return found


def _show(found: Sequence[Any], out: Path | None) -> None:
    from magmerge.report.scores_table import (
        comparison_heading,
        comparison_table,
        scores_heading,
        scores_notes,
        scores_table,
    )
    from magmerge.report.tables import plain

    heading, shown = scores_heading(found[0]), scores_table(found[0])
    if len(found) > 1:
        heading, shown = comparison_heading(found), comparison_table(found)
    notes = [plain(note, "dim") for note in scores_notes(found[0])]
    seconds = sum(scores.seconds for scores in found)
    spent = plain(f"{seconds:.1f} s in all" + (f"; wrote {out}" if out else ""))
    show(plain(""), heading, shown, plain(""), *notes, spent)
