"""magmerge plot: figures of a suite, each with all its numbers in a JSON file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import numbers, parse_settings, sources_by_expert
from magmerge.core.errors import ParameterError
from magmerge.report.terminal_tables import plain, table

HELP = "Draw a figure of a suite: scores by samples, lambda or alpha; layers."


def _redraw(options: o.Options) -> None:
    _show(magmerge.redraw(**o.without(options)), options)


def _plot(kind: Any, options: o.Options) -> None:
    """Call the front door with the options that a figure has."""
    keywords, file = _keywords(kind, options), options["out"].with_suffix(".json")

    def note() -> str:
        words = f"; the points so far are in {file}, and the same command goes on"
        return words if file.exists() else ""

    with progress_reporter(note) as progress:
        figure = magmerge.plot(kind, **keywords, progress=progress)
    _show(figure, options)


FIGURES = {
    **{
        kind: partial(_plot, kind)
        for kind in ("samples", "lambda", "alpha", "sensitivity", "coefficients")
    },
    "redraw": _redraw,
}
"""What is typed after `magmerge plot`, each a verb of its own."""


def _show(figure: Any, options: o.Options) -> None:
    if options["json"]:
        show_json({"path": str(figure.path), **figure.document.model_dump(mode="json")})
        return
    content = figure.layers if options.get("verbose") else figure.table
    rows = table("", *content.headings, numbers=content.headings[content.words :])
    for row in content.rows:
        rows.add_row(*map(plain, row))
    spent = f" in {figure.seconds:.1f} s" if figure.computed else ""
    show(rows, plain(f"wrote {figure.path}{spent}; its numbers are in {figure.data}", "bold"))


def _keywords(kind: str, options: o.Options) -> dict[str, Any]:
    """What `magmerge.plot` takes of the options that a figure has."""
    keywords = o.without(options, "settings")
    keywords["sensitive"] = options["sensitive"] or ()
    keywords["experts"] = _experts(options["experts"])
    keywords["data"] = sources_by_expert(options["data"])
    if "values" in options:
        flag = "--samples" if kind == "samples" else "--values"
        keywords["values"] = list(numbers(flag, options["values"], "1,5,10"))
    if "tasks" in options:
        keywords["tasks"] = options["tasks"] or None
    if "methods" in options:
        methods, calibrators = options["methods"], options["calibrate"]
        keywords["calibrate"] = calibrators or None
        keywords["params"] = _params(options["settings"], methods, calibrators)
    return keywords


def _experts(texts: Sequence[str]) -> dict[str, str] | None:
    """Experts by name: what stands before the equals sign, or the last part of the path."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name, text
        if not name or not path:
            raise ParameterError(f"--expert {text}", remedy="write NAME=PATH, or PATH")
        if name in named:
            raise ParameterError(
                f"two experts are called {name}", remedy="write --expert NAME=PATH for each"
            )
        named[name] = path
    return named or None


def _params(
    settings: Sequence[str], methods: Sequence[str], calibrations: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Parameters by the name of their method or calibrator; a bare one is for every method."""
    known = list(calibrations) or ["wsc", "fsc", "dsc"]
    named: dict[str, dict[str, Any]] = {}
    for method in methods:
        own = [text for text in settings if _owner(text) not in {*methods} - {method}]
        params, others = parse_settings(own, known, method)
        named |= {method: params, **others}
    return {name: params for name, params in named.items() if params}


def _owner(setting: str) -> str:
    """What stands before the dot of METHOD.NAME=VALUE."""
    key = setting.partition("=")[0].partition("@")[0]
    return key.strip().rpartition(".")[0]
