"""magmerge ablate: which expert hurts the others in a merge."""

from __future__ import annotations

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import parse_settings, sources_by_expert
from magmerge.report.terminal_tables import plain, table

NUMBERS = ("others, with it", "others, without", "error", "itself, with it", "itself, without")


def command(options: o.Options) -> None:
    """Merge without each expert in turn, and see whether the others come nearer to theirs."""
    params, _ = parse_settings(options["settings"], [], options["method"])
    keywords = o.without(options, "settings", "experts", "data", "seed", *o.PREPARATION)
    with progress_reporter() as progress:
        found = magmerge.ablate(
            **keywords,
            experts=o.experts_of(options),
            data=sources_by_expert(options["data"]),
            samples=o.sample_keywords(options),
            params=params,
            seed=options["seed"],
            progress=progress,
        )
    if options["json"]:
        show_json(found.document())
        return
    content = found.table
    rows = table("", *content.columns, numbers=NUMBERS)
    for row in content.rows:
        rows.add_row(*(plain(f"{x:.4g}" if isinstance(x, float) else str(x)) for x in row))
    show(rows, plain(""), plain(found.text, "bold"))
