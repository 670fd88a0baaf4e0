"""Options that several verbs share, and how their text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli.sampling import sampling_arguments
from magmerge.errors import ParameterError

Base = Annotated[
    Path | None,
    typer.Option(
        "--base", help="The model that all experts were tuned from; average and slerp do without."
    ),
]
Expert = Annotated[
    list[Path],
    typer.Option("--expert", help="A fine-tuned model or PEFT adapter; repeat for each."),
]
Out = Annotated[
    Path,
    typer.Argument(help="A folder, or one file if it ends in .safetensors.", show_default=False),
]
MergeMethod = Annotated[
    str, typer.Option("--method", help="How to merge; `magmerge methods` lists all.")
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="A parameter, such as density=0.2, or wsc.target=sphere for a calibrator; repeat.",
    ),
]
Calibrate = Annotated[
    list[str],
    typer.Option("--calibrate", help="A calibrator, wsc for example; repeat to apply in turn."),
]
Gate = Annotated[
    str,
    typer.Option(
        "--gate", help="on: sensitive layers may only shrink, others only grow. off: no bound."
    ),
]
Sensitive = Annotated[
    Path | None, typer.Option("--sensitive", help="A file that lists the sensitive layers.")
]
Skip = Annotated[
    list[str],
    typer.Option("--skip", help="Do not calibrate tensors of this name (wildcards); repeat."),
]
Ignore = Annotated[
    list[str],
    typer.Option(
        "--ignore",
        help="Take tensors of this name (wildcards) from the base, drop an expert's own; repeat.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Output format: float32, bfloat16, float16. Default: as the base."
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="For methods that draw at random, and samples.")]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Pieces at work at once. Default: all cores.")
]
Memory = Annotated[
    str,
    typer.Option(
        "--memory", help="Most memory to use beyond the program itself: 500MB, 2GB, 8GiB."
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, or cuda, or cuda:1.")]
ShardSize = Annotated[
    str,
    typer.Option("--shard-size", help="Largest output file: 5GB is 5 * 1000^3, 5GiB 5 * 1024^3."),
]
Donor = Annotated[
    Path | None,
    typer.Option(
        "--donor",
        help="Where config and tokenizer come from. Default: the base; for calibrate, MERGED.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a row for each layer.")]


PARTS_OF_DSC = ("wsc", "fsc")


def parse_settings(
    settings: Sequence[str], calibrators: Sequence[str], own: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`--set` texts to the parameters of `own`, and to those of each calibrator by its name.

    A value is read as YAML: 0.2, true, sphere, [0.5, 0.5].
    """
    import yaml

    params: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {name: {} for name in calibrators}
    for setting in settings:
        key, equals, text = setting.partition("=")
        owner, dot, name = key.strip().rpartition(".")
        if not equals or not name:
            raise ParameterError(
                f"--set {setting}: no value", remedy="write NAME=VALUE, like --set density=0.2"
            )
        try:
            value = _number(text) if _number(text) is not None else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ParameterError(
                f"--set {setting}: the value cannot be read",
                remedy="write a number, a word, or a list like [0.5, 0.5]",
            ) from error
        if not dot or owner == own:
            target = params
        elif owner in others:
            target = others[owner]
        elif owner in PARTS_OF_DSC and "dsc" in (own, *others):
            target, name = (params if own == "dsc" else others["dsc"]), f"{owner}.{name}"
        else:
            raise ParameterError(
                f"--set {setting}: {owner} is neither the method nor a calibrator of this run",
                remedy=f"add --calibrate {owner}, or drop this setting",
            )
        if name in target:
            raise ParameterError(f"--set {key} is given twice", remedy="give each parameter once")
        target[name] = value
    return params, others


def _number(text: str) -> float | None:
    """A number as people write it: YAML wants 1.0e-3 for 1e-3."""
    try:
        return float(text) if "e" in text.lower() and not text.strip().isalpha() else None
    except ValueError:
        return None


def merge_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `magmerge merge` and `magmerge plan` pass to the function of their name."""
    calibrators, method = given["calibrate"], given["method"]
    params, others = parse_settings(given["settings"], calibrators, method)
    return {
        "base": given["base"],
        "experts": given["expert"],
        "method": method,
        "params": params,
        "calibrate": [{"method": name, "params": others[name]} for name in calibrators],
        **shared_arguments(given),
    }


def shared_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that merging, planning and calibrating have in common."""
    return {
        **sampling_arguments(given),
        "seed": given["seed"],
        "gate": given["gate"],
        "sensitive": given["sensitive"] or (),
        "skip": given["skip"],
        "ignore": given["ignore"],
        "dtype": given["dtype"],
        "out": given["out"],
        "overwrite": given["yes"],
        "shard_size": given["shard_size"],
        "donor": given["donor"],
        "threads": given["threads"],
        "memory": given["memory"],
        "device": given["device"],
    }
