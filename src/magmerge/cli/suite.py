"""magmerge suite: write a named suite of tasks, for evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.errors import ParameterError


def command(
    name: Annotated[
        str | None,
        typer.Argument(help="A named suite, vision8 for example.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(help="The folder to write.", show_default=False)
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="A CLIP's folder for vision suites, an encoder's for text."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="A folder with a folder of data for each task. Default: the hub's data."
        ),
    ] = None,
    task: Annotated[
        list[str], typer.Option("--task", help="Only this task of the suite; repeat for more.")
    ] = [],
    expert: Annotated[
        list[str],
        typer.Option(
            "--expert", help="TASK=PATH: the task's expert; text suites take its head. Repeat."
        ),
    ] = [],
    projection: Annotated[
        str,
        typer.Option(
            "--projection",
            help="model: experts have CLIP's visual projection. base: bare vision encoders, which "
            "take the base's.",
        ),
    ] = "model",
    list_: Annotated[
        bool, typer.Option("--list", help="List the named suites and their tasks.")
    ] = False,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Write a named suite: its tasks' data, class names and heads, ready for evaluate.

    Example: magmerge suite vision8 SUITE --base clip-vit-base-patch32 --data DATA
    """
    import magmerge
    from magmerge.report.tables import plain, suite_table, suites_table

    if list_:
        entries = magmerge.named_suites()
        show_json(entries) if json else show(suites_table(entries))
        return
    if name is None or out is None or base is None:
        raise ParameterError(
            f"there is no {'NAME' if name is None else 'OUT' if out is None else '--base'}",
            remedy="write magmerge suite NAME OUT --base FOLDER; magmerge suite --list lists names",
        )
    with progress_reporter() as progress:
        found = magmerge.suite(
            name,
            out,
            base=base,
            data=data,
            tasks=task or None,
            experts=_by_task(expert),
            projection=projection,  # type: ignore[arg-type]
            overwrite=yes,
            progress=progress,
        )
    if json:
        show_json(found.document())
        return
    heads = f"; built {found.built} heads anew" if found.built else ""
    show(suite_table(found), plain(f"wrote {found.file}{heads}"))


def _by_task(texts: list[str]) -> dict[str, str]:
    """TASK=PATH texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if not equals or not task.strip() or not path.strip() or task.strip() in found:
            raise ParameterError(
                f"--expert {text}: {'given twice' if task.strip() in found else 'no TASK=PATH'}",
                remedy="write --expert dtd=PATH, once for each task",
            )
        found[task.strip()] = path.strip()
    return found
