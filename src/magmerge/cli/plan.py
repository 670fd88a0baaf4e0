"""magmerge plan: say what a merge would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import magmerge
from magmerge.cli import options as o
from magmerge.cli.merge import ONLY_HERE, check_alone, check_rules
from magmerge.cli.output import print_warning, show, show_json
from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.core.types import Plan
from magmerge.report.terminal_tables import plain, plan_summary, plan_table

RECIPES = (".yaml", ".yml")


def command(options: o.Options) -> None:
    """Say what a merge would do, from headers alone, and find every structural fault."""
    places: list[Path] = options["places"]
    recipe = next((place for place in places[:1] if place.suffix in RECIPES), None)
    if len(places) > 1 + (recipe is not None):
        raise ParameterError(
            f"{len(places)} places are given: {', '.join(map(str, places))}",
            remedy="write magmerge plan OUT, or magmerge plan RECIPE.yaml OUT",
        )
    out = places[-1] if places and places[-1] != recipe else None
    if recipe is not None:
        check_alone(options)
        _show(_plans(recipe, out, options), options)
        return
    check_rules(options)
    if not options["experts"]:
        raise ParameterError(
            "no expert is given",
            remedy="name each with --expert, or give a recipe: magmerge plan RECIPE.yaml",
        )
    keywords = {name: value for name, value in options.items() if name not in ONLY_HERE}
    _show([magmerge.plan(**o.merge_keywords({**keywords, "out": out}))], options)


def _plans(recipe: Path, out: Path | None, options: o.Options) -> Sequence[Plan]:
    machine = {name: options[name] for name in ("threads", "memory", "device", "offload")}
    return magmerge.plan_recipe(
        magmerge.read_recipes(recipe, options["rules"]),
        out,
        machine=magmerge.Machine(**machine),
        overwrite=options["overwrite"],
    )


def _show(plans: Sequence[Plan], options: o.Options) -> None:
    if options["json"]:
        from magmerge.engine.plan import describe

        documents = [describe(plan) for plan in plans]
        show_json(documents[0] if len(documents) == 1 else documents)
        return
    for plan in plans:
        for warning in plan.warnings:
            print_warning(warning, MagmergeWarning)
        if options["verbose"]:
            show(plain(f"recipe {plan.digest}", "dim"))
        show(plan_table(plan), plan_summary(plan))
