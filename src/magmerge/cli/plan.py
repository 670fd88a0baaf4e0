"""magmerge plan: say what a merge would do."""

from __future__ import annotations

import magmerge
from magmerge.cli import options as o
from magmerge.cli.output import print_warning, show, show_json
from magmerge.core.errors import MagmergeWarning
from magmerge.report.terminal_tables import plain, plan_summary, plan_table


def command(options: o.Options) -> None:
    """Say what a merge would do, from headers alone, and find every structural fault."""
    keywords = o.merge_keywords(options)
    from magmerge.engine.plan import describe

    plan = magmerge.plan(**keywords)
    if options["json"]:
        show_json(describe(plan))
        return
    for warning in plan.warnings:
        print_warning(warning, MagmergeWarning)
    if options["verbose"]:
        show(plain(f"recipe {plan.digest}", "dim"))
    show(plan_table(plan), plan_summary(plan))
