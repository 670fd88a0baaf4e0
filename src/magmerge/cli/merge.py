"""magmerge merge: merge experts, or carry out a recipe, and write the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import magmerge
from magmerge.cli import options as o
from magmerge.cli.merge_result import write_recipe, write_result
from magmerge.cli.output import log, show
from magmerge.cli.push import lines
from magmerge.cli.settings import parse_settings
from magmerge.core.errors import ParameterError
from magmerge.core.lazy import load

if TYPE_CHECKING:
    from magmerge.core.recipe import Recipe

MACHINE = ("threads", "memory", "device", "offload")
WITH_RECIPE = frozenset({"places", *MACHINE, "stream", "sha256", "overwrite", "resume"})
WITH_RECIPE |= {"allow_code", "push", "private", "rules"}
"""What is said beside a recipe: nothing of it decides the result, but how mergekit's are read."""


def command(options: o.Options) -> None:
    """Merge experts that share a base, and write an ordinary checkpoint."""
    *recipe, out = options["places"]
    repo = options["push"]
    if repo is None and options["private"]:
        raise ParameterError("--private speaks of --push", remedy="add --push ORG/NAME")
    if repo is not None:
        load("magmerge.checkpoints.hub.upload:check_upload")(repo, private=options["private"])
    _merge(recipe, out, options)
    if repo is not None:
        sent = magmerge.push(out, repo, private=options["private"])
        # The result itself is what a program reads.
        log().print(*lines(sent), sep="\n") if options["json"] else show(*lines(sent))


def _merge(recipe: list[Path], out: Path, options: o.Options) -> None:
    """The merge that a recipe or the options tell, written to `out`."""
    if len(recipe) > 1:
        raise ParameterError(
            f"{len(options['places'])} places are given: {', '.join(map(str, options['places']))}",
            remedy="write magmerge merge OUT, or magmerge merge RECIPE.yaml OUT",
        )
    if recipe:
        check_alone(options)
        write_recipe(recipe_of(recipe[0], options), {**options, "out": out})
        return
    if out.suffix in (".yaml", ".yml"):
        raise ParameterError(
            f"{out} is a recipe, and no output is given",
            remedy=f"name the output too: magmerge merge {out} OUT",
        )
    if not options["experts"]:
        raise ParameterError(
            "no expert is given",
            remedy="name each with --expert, or give a recipe: magmerge merge RECIPE.yaml OUT",
        )
    check_rules(options)
    keywords = {name: value for name, value in options.items() if name not in ONLY_HERE}
    write_result("merge", {**keywords, "out": out})


def recipe_of(path: Path, options: o.Options) -> Sequence[Recipe]:
    """The recipes of a file, or its one recipe with further experts."""
    recipes: list[Recipe] = load("magmerge.pipeline.recipe_files:recipes_of")(
        path, {}, options["rules"]
    )
    if not options["experts"]:
        return recipes
    if len(recipes) > 1:
        raise ParameterError(
            f"an expert is added, and {path} holds {len(recipes)} recipes",
            remedy="write the expert into a copy of the file",
        )
    params, _ = parse_settings(options["settings"], [], str(recipes[0].method))
    further: Recipe = load("magmerge.core.more_experts:with_experts")(
        recipes[0], list(map(str, options["experts"])), params
    )
    return [further]


ONLY_HERE = frozenset({"places", "allow_code", "push", "private", "rules"})
"""Options that the front door's verbs do not take."""


def check_rules(options: o.Options) -> None:
    """ParameterError for a way to read mergekit's recipes where there is none."""
    if options["rules"] != o.TABLE["rules"].default:
        raise ParameterError(
            "--as speaks of a recipe of mergekit's, and none is given",
            remedy="name it before the output: magmerge merge RECIPE.yml OUT --as mergekit",
        )


def check_alone(options: o.Options) -> None:
    """ParameterError for an option that the recipe has the say of."""
    defaults: dict[str, Any] = {name: item.default for name, item in o.TABLE.items()}
    for name, value in options.items():
        default = defaults.get(name)
        if name == "experts" or (name == "settings" and options["experts"]):
            continue
        if name not in WITH_RECIPE and value != default and name not in ("json", "verbose"):
            raise ParameterError(
                f"{o.TABLE[name].spellings[0]} is given beside a recipe, which has the say of that",
                remedy="write it into the recipe, or drop it",
            )
