"""The options that verbs share, each declared once, and the keywords that they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli.settings import named_sources, numbers, parse_settings
from magmerge.core.errors import no_such_model

Options = Mapping[str, Any]
"""A verb's options by name, as they were typed or by default."""


@dataclass(frozen=True)
class Option:
    """An option of a verb, or an argument.

    `name` is its key in `Options`: the keyword that the front door knows it by. Without a `default`
    it must be typed; with None its type is `kind` or None. `flags` are what is typed, separated by
    spaces; without them they follow from the name.
    """

    name: str
    kind: Any
    help: str
    default: Any = ...
    flags: str = ""
    panel: str | None = None
    argument: bool = False

    def parameter(self) -> Parameter:
        """The option as typer reads it from a function's signature."""
        flags = self.flags.split() or [f"--{self.name.replace('_', '-')}"]
        info: Any = (
            typer.Argument(help=self.help)
            if self.argument
            else typer.Option(*flags, help=self.help, rich_help_panel=self.panel)
        )
        return Parameter(
            self.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if self.default is ... else self.default,
            annotation=Annotated[self.kind | None if self.default is None else self.kind, info],
        )


def in_panel(title: str, *options: Option) -> tuple[Option, ...]:
    """The options under a title of their own in the help."""
    return tuple(replace(item, panel=title) for item in options)


SAMPLING = "Calibration from samples (fsc, dsc)"

MODELS = (
    Option("out", Path, "A folder, or one file if it ends in .safetensors.", argument=True),
    Option(
        "base",
        Path,
        "The model that all experts were tuned from; adapters, average and slerp do without.",
        None,
    ),
    Option(
        "experts",
        list[Path],
        "A fine-tuned model, or a LoRA adapter; repeat for each.",
        flags="--expert",
    ),
)
METHOD = (
    Option("method", str, "How to merge; `magmerge methods` lists all.", "task_arithmetic"),
    Option(
        "settings",
        list[str],
        "A parameter, such as density=0.2, or wsc.target=sphere for a calibrator; for some "
        "layers only: lambda@vae=0; repeat.",
        [],
        flags="--set",
    ),
    Option("calibrate", list[str], "A calibrator, wsc for example; repeat to apply in turn.", []),
)
CALIBRATION = (
    Option(
        "gate", str, "on: sensitive layers may only shrink, others only grow. off: no bound.", "on"
    ),
    Option("sensitive", Path, "A file that lists the sensitive layers.", None),
    Option("skip", list[str], "Do not calibrate tensors of this name (wildcards); repeat.", []),
    Option(
        "ignore",
        list[str],
        "Take tensors of this name (wildcards) from the base, drop an expert's own; repeat.",
        [],
    ),
    Option("dtype", str, "Output format: float32, bfloat16, float16. Default: as the base.", None),
    Option("seed", int, "For methods that draw at random, and samples.", 0),
)

PREPARATION = in_panel(
    SAMPLING,
    Option("text_field", str, "The column that holds the text.", None),
    Option("max_length", int, "Tokens of a text, at most.", None),
    Option(
        "image_size",
        int,
        "Side of an image in pixels, where the model has no image processor.",
        None,
    ),
    Option("mean", str, "Of each colour: 0.5,0.5,0.5.", None),
    Option("std", str, "Of each colour: 0.5,0.5,0.5.", None),
    Option("split", str, "Of a data set; train by default.", None),
    Option("allow_test", bool, "Calibrate with the test split after all.", False),
)
SAMPLES = (Option("samples", int, "How many are drawn from each.", 8), *PREPARATION)
INPUTS = in_panel(
    SAMPLING,
    Option(
        "data",
        list[str],
        "NAME=SOURCE: unlabelled samples of an expert's task; SOURCE alone is for all.",
        [],
    ),
    *SAMPLES,
    Option(
        "order",
        str,
        "once: layers as merged. forward: each after those before it are calibrated.",
        "once",
    ),
    Option("precision", str, "Of the model's run: float32, bfloat16.", "float32"),
    Option("batchnorm", bool, "Take running statistics anew from the samples.", False),
    Option("offload", bool, "Run the model with one block in memory at a time.", False),
    Option("model", str, "The class in transformers that is run.", None, flags="--model-class"),
    Option(
        "build",
        str,
        "package.module:function that returns the module, where transformers has none.",
        None,
    ),
)
MACHINE = (
    Option("threads", int, "Pieces at work at once. Default: all cores.", None),
    Option("memory", str, "Most memory to use beyond the program itself: 500MB, 2GB, 8GiB.", "2GB"),
    Option("device", str, "Where to compute: cpu, or cuda, or cuda:1.", "cpu"),
)
ADAPTER = (
    Option(
        "rank",
        str,
        "Of adapters merged without a base: a number, auto (with --energy), or exact. "
        "Default: the largest rank of the inputs.",
        None,
    ),
    Option("energy", float, "Share of the squared norm that --rank auto keeps: 0.99.", None),
    Option(
        "naming",
        str,
        "How the merged adapter names its modules: peft, diffusers, kohya, ... Default: as "
        "the first expert.",
        None,
        flags="--format",
    ),
)
OUTPUT = (
    Option("shard_size", str, "Largest output file: 5GB is 5 * 1000^3, 5GiB 5 * 1024^3.", "5GB"),
    Option(
        "donor",
        Path,
        "Where config and tokenizer come from. Default: the base; for calibrate, MERGED.",
        None,
    ),
    Option("overwrite", bool, "Replace an output that exists.", False, flags="--yes -y"),
    Option("json", bool, "Print JSON for a program to read.", False),
    Option("verbose", bool, "Print a row for each layer.", False, flags="--verbose -v"),
)
KILLED = (Option("resume", bool, "Go on with what a killed run left at the output.", False),)
SUITE = (
    Option("tasks", list[str], "Only this task of the suite; repeat for more.", [], flags="--task"),
    Option("allow_code", bool, "Run the code that the suite or its task files name.", False),
)
TOPICS = (MODELS, METHOD, CALIBRATION, INPUTS, MACHINE, ADAPTER, OUTPUT, KILLED, SUITE)
TABLE = {item.name: item for topic in TOPICS for item in topic}


def option(name: str, **changes: Any) -> Option:
    """The shared option of this name, with changes for a verb."""
    return replace(TABLE[name], **changes)


def takes(*options: str | Option) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a function of one mapping a command with these options, in the order of its help."""
    parameters = [(TABLE[item] if isinstance(item, str) else item).parameter() for item in options]

    def decorate(verb: Callable[[Options], None]) -> Callable[..., None]:
        def command(**options: Any) -> None:
            check_models(options)
            verb(options)

        command.__doc__ = verb.__doc__
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


READ = ("base", "experts", "merged", "model", "checkpoint", "a", "b")
"""Options that name models which are read."""


def check_models(options: Options) -> None:
    """CheckpointError for a path of no model, before the libraries that read one are loaded."""
    for name in READ:
        value = options.get(name)
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and str(path) != "." and not os.path.lexists(path):
                raise no_such_model(path)


def without(options: Options, *names: str) -> dict[str, Any]:
    """The options but those of these names, and but `json` and `verbose`, which the verb reads."""
    return {k: value for k, value in options.items() if k not in {*names, "json", "verbose"}}


def merge_keywords(options: Options) -> dict[str, Any]:
    """What `magmerge.merge`, `plan` and `calibrate` take of the options of their verbs."""
    calibrators = options.get("calibrate", [])
    params, others = parse_settings(options["settings"], calibrators, options["method"])
    keywords = {
        **without(options, "settings", *(item.name for item in SAMPLES)),
        "params": params,
        "sensitive": options["sensitive"] or (),
        "data": named_sources(options["data"]),
        "samples": sample_keywords(options),
    }
    if "calibrate" in options:
        keywords["calibrate"] = [{"method": name, "params": others[name]} for name in calibrators]
    return keywords


def sample_keywords(options: Options) -> dict[str, Any]:
    """How samples are drawn and prepared: the items of `samples=`."""
    keywords = {name: options[name] for name in ("seed", *(item.name for item in SAMPLES))}
    for name in ("mean", "std"):
        if keywords[name] is not None:
            keywords[name] = numbers(f"--{name}", keywords[name], "0.5,0.5,0.5")
    return keywords
