"""Options that several verbs share, and how their text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from magmerge.cli.sampling import sampling_arguments
from magmerge.errors import ParameterError

Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        help="The model that all experts were tuned from; adapters, average and slerp do without.",
    ),
]
Expert = Annotated[
    list[Path],
    typer.Option("--expert", help="A fine-tuned model, or a LoRA adapter; repeat for each."),
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
        help="A parameter, such as density=0.2, or wsc.target=sphere for a calibrator; for some "
        "layers only: lambda@vae=0; repeat.",
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
Rank = Annotated[
    str | None,
    typer.Option(
        "--rank",
        help="Of adapters merged without a base: a number, auto (with --energy), or exact. "
        "Default: the largest rank of the inputs.",
    ),
]
Energy = Annotated[
    float | None,
    typer.Option("--energy", help="Share of the squared norm that --rank auto keeps: 0.99."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="How the merged adapter names its modules: peft, diffusers, kohya, ... Default: as "
        "the first expert.",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the code that the suite or its task files name."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a row for each layer.")]


PARTS_OF_DSC = ("wsc", "fsc")


class _Setting(NamedTuple):
    """One `--set`: a parameter, its owner if that is said, and the layers that the value is for."""

    text: str
    owner: str
    name: str
    filter: str | None
    value: Any


def parse_settings(
    settings: Sequence[str], calibrators: Sequence[str], own: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`--set` texts to the parameters of `own`, and to those of each calibrator by its name.

    A value is read as YAML: 0.2, true, sphere, [0.5, 0.5]. NAME@FILTER=VALUE is an item of a
    parameter that varies by layer; a plain NAME=VALUE is the last item, wherever it stands.
    """
    given: dict[tuple[str, str], list[_Setting]] = {}
    for text in settings:
        setting = _parsed(text)
        given.setdefault(_place(setting, calibrators, own), []).append(setting)
    params: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {name: {} for name in calibrators}
    for (owner, name), values in given.items():
        (params if owner == own else others[owner])[name] = _joined(values)
    return params, others


def _parsed(text: str) -> _Setting:
    key, equals, value = text.partition("=")
    key, at, wanted = key.strip().partition("@")
    owner, _, name = key.rpartition(".")
    if not equals or not name:
        raise ParameterError(
            f"--set {text}: no value", remedy="write NAME=VALUE, like --set density=0.2"
        )
    if at and not wanted:
        raise ParameterError(
            f"--set {text}: no filter", remedy="write NAME@FILTER=VALUE, like --set lambda@vae=0"
        )
    return _Setting(text, owner, name, wanted or None, _value(text, value))


def _place(setting: _Setting, calibrators: Sequence[str], own: str) -> tuple[str, str]:
    """Whose parameter it is, and what that one calls it."""
    owner, name = setting.owner, setting.name
    if not owner or owner == own:
        return own, name
    if owner in calibrators:
        return owner, name
    if owner in PARTS_OF_DSC and "dsc" in (own, *calibrators):
        return "dsc", f"{owner}.{name}"
    raise ParameterError(
        f"--set {setting.text}: {owner} is neither the method nor a calibrator of this run",
        remedy=f"add --calibrate {owner}, or drop this setting",
    )


def _joined(settings: Sequence[_Setting]) -> Any:
    """A parameter's value, or its items with the plain one last."""
    plain = [setting for setting in settings if setting.filter is None]
    items = [{"filter": one.filter, "value": one.value} for one in settings if one.filter]
    if len(plain) > 1:
        raise ParameterError(
            f"--set {plain[1].text}: {plain[1].name} is given twice",
            remedy="give each parameter once",
        )
    if not items:
        return plain[0].value
    return [*items, *({"value": one.value} for one in plain)]


def _value(setting: str, text: str) -> Any:
    import yaml

    try:
        number = _number(text)
        return yaml.safe_load(text) if number is None else number
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"--set {setting}: the value cannot be read",
            remedy="write a number, a word, or a list like [0.5, 0.5]",
        ) from error


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
        "rank": given["rank"],
        "energy": given["energy"],
        "naming": given["format"],
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
