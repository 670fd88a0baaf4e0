"""magmerge reproduce: a paper's pipeline, from published checkpoints to its table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli import options as o
from magmerge.cli.output import log, progress_reporter, show, show_json
from magmerge.errors import ParameterError


def command(
    pipeline: Annotated[
        str,
        typer.Argument(
            help="clip-b32, clip-b16, clip-l14, bert, glue, llama, or a YAML file of your own."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="Where all of it is kept. Default: magmerge-PIPELINE."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="A folder with the base and the experts."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A folder with a folder of data for each task."),
    ] = None,
    task: Annotated[
        list[str], typer.Option("--task", help="Only this task; repeat for more.")
    ] = [],
    methods: Annotated[
        str | None, typer.Option("--methods", help="Merge methods: average,ties,tsv_m.")
    ] = None,
    spaces: Annotated[
        str,
        typer.Option("--spaces", help="none, wsc, fsc, dsc, and the controls global, shuffled."),
    ] = "none,wsc,fsc,dsc",
    set: Annotated[
        list[str], typer.Option("--set", help="A method's parameter: ties.density=0.3; repeat.")
    ] = [],
    samples: Annotated[
        int, typer.Option("--samples", help="Unlabelled samples of each task, for fsc and dsc.")
    ] = 8,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Draws of samples; the table shows their spread.")
    ] = 1,
    alpha: Annotated[
        int, typer.Option("--alpha", help="How many sensitive layers; 0 for none.")
    ] = 10,
    generic: Annotated[
        str | None,
        typer.Option("--generic", help="A data source to find sensitive layers on, as --data."),
    ] = None,
    generic_samples: Annotated[
        int | None,
        typer.Option("--generic-samples", help="How many rows of it are looked at. Default: 256."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the merged models in OUT/models.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of forward passes: float32 or bfloat16.")
    ] = None,
    threads: o.Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Threads that decode images ahead.")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", help="For models that are measured at once.")
    ] = "8GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: o.Yes = False,
    json: o.Json = False,
) -> None:
    """Run a paper's pipeline: find inputs, merge, calibrate, measure, and write its table.

    It goes on where it was stopped.

    Example: magmerge reproduce clip-b32 --inputs CHECKPOINTS --data DATASETS
    """
    given = locals()
    import magmerge
    from magmerge.report.reproduction_table import estimate_text

    with _goes_on(), progress_reporter() as progress:
        try:
            found = magmerge.reproduce(
                given.pop("pipeline"),
                given.pop("out"),
                **_arguments(given),
                announce=lambda estimate: log().print(estimate_text(estimate), soft_wrap=True),
                progress=progress,
            )
        except KeyboardInterrupt:
            raise _Stopped from None
    _show(found, as_json=json)


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The options as `magmerge.reproduce` takes them."""
    renamed = {"task", "methods", "spaces", "set", "yes", "json"}
    methods = given["methods"]
    return {
        **{name: value for name, value in given.items() if name not in renamed},
        "tasks": given["task"] or None,
        "methods": None if methods is None else _listed(methods),
        "spaces": _listed(given["spaces"]),
        "params": _by_method(given["set"]),
        "overwrite": given["yes"],
    }


def _show(found: Any, *, as_json: bool) -> None:
    from magmerge.report.reproduction_table import reproduction_notes, reproduction_table
    from magmerge.report.tables import plain

    if as_json:
        show_json(found.document())
        return
    kept = ", ".join(sorted(path.name for path in found.folder.iterdir()))
    wrote = plain(f"wrote {found.folder}: {kept}", "dim")
    made, notes = reproduction_table(found), reproduction_notes(found)
    show(plain(""), plain(found.title, "bold"), made, plain(""), *notes, wrote)


@contextmanager
def _goes_on() -> Iterator[None]:
    """Say after an interruption that nothing is lost; exit code 130."""
    try:
        yield
    except _Stopped:
        log().print("stopped; what was measured is kept, and the same command goes on")
        raise typer.Exit(130) from None


class _Stopped(Exception):  # noqa: N818
    """The user wants no more."""


def _listed(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _by_method(settings: list[str]) -> dict[str, dict[str, Any]]:
    """Parameters by the method that they are for."""
    methods = [text.partition(".")[0] for text in settings]
    nobodys, found = o.parse_settings(settings, methods, "")
    if nobodys:
        raise ParameterError(
            f"--set {next(iter(nobodys))}: no method is named",
            remedy="write METHOD.NAME=VALUE, like --set ties.density=0.3",
        )
    return found
