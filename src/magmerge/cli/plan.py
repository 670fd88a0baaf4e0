"""magmerge plan: say what a merge would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.merge import MACHINE, ONLY_HERE, check_alone, check_rules, recipe_of
from magmerge.cli.output import print_warning, show, show_json
from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.report.plan_text import document_text
from magmerge.report.terminal_tables import plain, plan_table

if TYPE_CHECKING:
    from magmerge.engine.document_plan import PlannedDocument

TRIAL = 2.0
"""Seconds of a trial."""
RECIPES = (".yaml", ".yml")


def command(options: o.Options) -> None:
    """Say what a merge would do, from headers alone, and find every fault of recipe and models."""
    documents = _documents(options)
    if options["json"]:
        told = [_told(document) for document in documents]
        show_json(told[0] if len(told) == 1 else {"documents": told})
        return
    for document in documents:
        for warning in document.plan.warnings if document.plan is not None else ():
            print_warning(warning, MagmergeWarning)
        if options["verbose"] and document.plan is not None:
            show(plain(f"recipe {document.plan.digest}", "dim"))
        show(document_text(document))
        if document.plan is not None:
            show(plain(""), plan_table(document.plan))


def _documents(options: o.Options) -> list[PlannedDocument]:
    """The plan of a merge's options, or of each document of a recipe's file."""
    recipe = [path for path in options["places"][:1] if path.suffix in RECIPES]
    rest = options["places"][len(recipe) :]
    if len(rest) > 1:
        raise ParameterError(
            f"{len(rest)} outputs are given: {', '.join(map(str, rest))}",
            remedy="write magmerge plan RECIPE.yaml OUT, or magmerge plan --expert E OUT",
        )
    out, seconds = next(iter(rest), None), TRIAL if options["trial"] else 0.0
    if recipe:
        check_alone({key: value for key, value in options.items() if key != "trial"})
        machine = magmerge.Machine(**{name: options[name] for name in MACHINE})
        overwrite = options["overwrite"]
        return magmerge.plan_recipe(
            recipe_of(recipe[0], options),
            out,
            machine=machine,
            overwrite=overwrite,
            seconds=seconds,
        )
    check_rules(options)
    if not options["experts"]:
        raise ParameterError(
            "no expert is given",
            remedy="name each with --expert, or give a recipe: magmerge plan RECIPE.yaml",
        )
    keywords = {name: value for name, value in options.items() if name not in {*ONLY_HERE, "trial"}}
    merged = {**o.merge_keywords(keywords), "out": out}
    return [magmerge.plan_document(**merged, seconds=seconds)]


def _told(document: PlannedDocument) -> dict[str, Any]:
    """A document's plan for a program to read."""
    from magmerge.engine.plan import describe

    plan = {} if document.plan is None else describe(document.plan)
    return {
        "name": document.recipe.name,
        **plan,
        "inputs": [asdict(entry) for entry in document.inputs],
        "trial": None if document.trial is None else asdict(document.trial),
        **({"reason": document.reason} if document.plan is None else {}),
    }
