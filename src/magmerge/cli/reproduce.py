"""magmerge reproduce: a paper's pipeline, from published checkpoints to its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import log, progress_reporter, show, show_json
from magmerge.cli.settings import names, parse_settings
from magmerge.core.errors import ParameterError
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Run a paper's pipeline: find inputs, merge, calibrate, measure, and write its table."""
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
