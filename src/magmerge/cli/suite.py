"""magmerge suite: write a named suite of tasks, for evaluate."""

from __future__ import annotations

from collections.abc import Sequence

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.core.errors import ParameterError
from magmerge.report.terminal_tables import plain


def command(options: o.Options) -> None:
    """Write a named suite: its tasks' data, class names and heads, ready for evaluate."""
    from magmerge.evaluation.scores_table import suite_table, suites_table

    if options["list"]:
        entries = magmerge.named_suites()
        show_json(entries) if options["json"] else show(suites_table(entries))
        return
    for name, word in (("name", "NAME"), ("out", "OUT"), ("base", "--base")):
        if options[name] is None:
            raise ParameterError(
                f"there is no {word}",
                remedy="write magmerge suite NAME OUT --base FOLDER; magmerge suite --list lists "
                "names",
            )
    keywords = o.without(options, "list")
    keywords |= {"tasks": options["tasks"] or None, "experts": _by_task(options["experts"])}
    with progress_reporter() as progress:
        suite = magmerge.suite(**keywords, progress=progress)
    if options["json"]:
        show_json(suite.document())
        return
    heads = f"; built {suite.built} heads anew" if suite.built else ""
    show(suite_table(suite), plain(f"wrote {suite.file}{heads}"))


def _by_task(texts: Sequence[str]) -> dict[str, str]:
    """TASK=PATH texts as a mapping."""
    paths: dict[str, str] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if not equals or not task.strip() or not path.strip() or task.strip() in paths:
            raise ParameterError(
                f"--expert {text}: {'given twice' if task.strip() in paths else 'no TASK=PATH'}",
                remedy="write --expert dtd=PATH, once for each task",
            )
        paths[task.strip()] = path.strip()
    return paths
