"""magmerge compare: models side by side on the same prompts."""

from __future__ import annotations

from pathlib import Path

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import sources_by_expert
from magmerge.core.errors import UsageError
from magmerge.core.whole_file import check_free
from magmerge.report.terminal_tables import plain, table

LEAST = 3


def command(options: o.Options) -> None:
    """Let base, experts and merged model answer the same prompts, side by side."""
    models = [str(model) for model in options["models"]]
    if len(models) < LEAST:
        raise UsageError(
            f"{len(models)} model{'' if len(models) == 1 else 's'} to compare",
            remedy="give BASE, one expert or more, and MERGED, in this order",
        )
    keywords = o.without(options, "models", "prompts", "out", "overwrite")
    prompts = sources_by_expert(options["prompts"], "--prompts")
    out = options["out"]
    if out is not None:
        check_free(Path(out), overwrite=options["overwrite"])
    with progress_reporter() as progress:
        found = magmerge.compare(
            models[0], models[1:-1], models[-1], prompts=prompts, progress=progress, **keywords
        )
    if out is not None:
        found.save(out, overwrite=options["overwrite"])
    if options["json"]:
        show_json(found.document())
        return
    rows = table("", "prompt", *found.models, "other than")
    for number, prompt in enumerate(found.prompts):
        others = ", ".join(found.differs(number))
        rows.add_row(*map(plain, (prompt, *found.answers[number])), plain(others, "yellow"))
    wrote = [plain(f"wrote {out}")] if out is not None else []
    show(rows, plain(""), plain(found.text, "bold"), *wrote)
