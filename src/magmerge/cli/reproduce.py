"""magmerge reproduce: a paper's pipeline, from published checkpoints to its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magmerge.cli import options as o
from magmerge.cli.output import log, progress_reporter, show, show_json
from magmerge.cli.settings import names, parse_settings
from magmerge.core.errors import ParameterError


@o.takes(
    o.Option(
        "pipeline",
        str,
        "clip-b32, clip-b16, clip-l14, bert, glue, llama, or a YAML file of your own.",
        argument=True,
    ),
    o.option("out", help="Where all of it is kept. Default: magmerge-PIPELINE.", default=None),
    o.Option("inputs", Path, "A folder with the base and the experts.", None),
    o.Option("data", Path, "A folder with a folder of data for each task.", None),
    o.option("tasks", help="Only this task; repeat for more."),
    o.Option("methods", str, "Merge methods: average,ties,tsv_m.", None),
    o.Option(
        "spaces", str, "none, wsc, fsc, dsc, and the controls global, shuffled.", "none,wsc,fsc,dsc"
    ),
    o.option("settings", help="A method's parameter: ties.density=0.3; repeat."),
    o.Option("samples", int, "Unlabelled samples of each task, for fsc and dsc.", 8),
    o.Option("seeds", int, "Draws of samples; the table shows their spread.", 1),
    o.Option("alpha", int, "How many sensitive layers; 0 for none.", 10),
    o.Option("generic", str, "A data source to find sensitive layers on, as --data.", None),
    o.Option("generic_samples", int, "How many rows of it are looked at. Default: 256.", None),
    o.Option("keep", bool, "Leave the merged models in OUT/models.", False),
    o.option("dtype", help="Of forward passes: float32 or bfloat16."),
    "threads",
    o.Option("workers", int, "Threads that decode images ahead.", None),
    o.option("memory", help="For models that are measured at once.", default="8GB"),
    "device",
    "allow_code",
    "overwrite",
    "json",
)
def command(options: o.Options) -> None:
    """Run a paper's pipeline: find inputs, merge, calibrate, measure, and write its table.

    It goes on where it was stopped.

    Example: magmerge reproduce clip-b32 --inputs CHECKPOINTS --data DATASETS
    """
    import magmerge
    from magmerge.studies.reproduction.run_estimate import estimate_text

    keywords = _keywords(options)
    note = "; what was measured is kept, and the same command goes on"
    with progress_reporter(lambda: note) as progress:
        reproduction = magmerge.reproduce(
            **keywords,
            announce=lambda estimate: log().print(estimate_text(estimate), soft_wrap=True),
            progress=progress,
        )
    _show(reproduction, as_json=options["json"])


def _keywords(options: o.Options) -> dict[str, Any]:
    """What `magmerge.reproduce` takes."""
    methods = options["methods"]
    return {
        **o.without(options, "settings", "pipeline"),
        "name": options["pipeline"],
        "tasks": options["tasks"] or None,
        "methods": None if methods is None else names(methods),
        "spaces": names(options["spaces"]),
        "params": _by_method(options["settings"]),
    }


def _by_method(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parameters by the method that they are for."""
    methods = [text.partition(".")[0] for text in settings]
    ownerless, params = parse_settings(settings, methods, "")
    if ownerless:
        raise ParameterError(
            f"--set {next(iter(ownerless))}: no method is named",
            remedy="write METHOD.NAME=VALUE, like --set ties.density=0.3",
        )
    return params


def _show(reproduction: Any, *, as_json: bool) -> None:
    from magmerge.report.terminal_tables import plain
    from magmerge.studies.reproduction.reproduction_table import (
        reproduction_notes,
        reproduction_table,
    )

    if as_json:
        show_json(reproduction.document())
        return
    files = ", ".join(sorted(path.name for path in reproduction.folder.iterdir()))
    wrote = plain(f"wrote {reproduction.folder}: {files}", "dim")
    table, notes = reproduction_table(reproduction), reproduction_notes(reproduction)
    show(plain(""), plain(reproduction.title, "bold"), table, plain(""), *notes, wrote)
