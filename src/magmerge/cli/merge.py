"""magmerge merge: merge experts, or carry out a recipe, and write the result."""

from __future__ import annotations

from typing import Any

from magmerge.cli import options as o
from magmerge.cli.merge_result import write_recipe, write_result
from magmerge.core.errors import ParameterError

WITH_RECIPE = frozenset(
    {"places", "threads", "memory", "device", "offload", "overwrite", "resume", "allow_code"}
    | {"rules"}
)
"""What is said beside a recipe: nothing of it decides the result, but how mergekit's are read."""


def command(options: o.Options) -> None:
    """Merge experts that share a base, and write an ordinary checkpoint."""
    *recipe, out = options["places"]
    if len(recipe) > 1:
        raise ParameterError(
            f"{len(options['places'])} places are given: {', '.join(map(str, options['places']))}",
            remedy="write magmerge merge OUT, or magmerge merge RECIPE.yaml OUT",
        )
    if recipe:
        check_alone(options)
        write_recipe(recipe[0], {**options, "out": out})
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


ONLY_HERE = frozenset({"places", "allow_code", "rules"})
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
        default = [] if name == "experts" else defaults.get(name)
        if name not in WITH_RECIPE and value != default and name not in ("json", "verbose"):
            flag = o.TABLE[name].flags.split() or [f"--{name.replace('_', '-')}"]
            raise ParameterError(
                f"{flag[0]} is given beside a recipe, which says that itself",
                remedy="write it into the recipe, or drop it",
            )
