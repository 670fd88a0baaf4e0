"""Options of a calibration that looks at inputs: its samples, and the model that is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.errors import ParameterError

PANEL = "Calibration from samples (fsc, dsc)"

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="NAME=SOURCE: unlabelled samples of an expert's task; SOURCE alone is for all.",
        rich_help_panel=PANEL,
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", help="How many are drawn from each.", rich_help_panel=PANEL),
]
TextField = Annotated[
    str | None,
    typer.Option("--text-field", help="The column that holds the text.", rich_help_panel=PANEL),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Tokens of a text, at most.", rich_help_panel=PANEL),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        help="Side of an image in pixels, where the model has no image processor.",
        rich_help_panel=PANEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", help="Of each colour: 0.5,0.5,0.5.", rich_help_panel=PANEL),
]
Std = Annotated[
    str | None,
    typer.Option("--std", help="Of each colour: 0.5,0.5,0.5.", rich_help_panel=PANEL),
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Of a data set; train by default.", rich_help_panel=PANEL),
]
AllowTest = Annotated[
    bool,
    typer.Option(
        "--allow-test", help="Calibrate with the test split after all.", rich_help_panel=PANEL
    ),
]
Order = Annotated[
    str,
    typer.Option(
        "--order",
        help="once: layers as merged. forward: each after those before it are calibrated.",
        rich_help_panel=PANEL,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Of the model's run: float32, bfloat16.", rich_help_panel=PANEL
    ),
]
BatchNorm = Annotated[
    bool,
    typer.Option(
        "--batchnorm", help="Take running statistics anew from the samples.", rich_help_panel=PANEL
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload", help="Run the model with one block in memory at a time.", rich_help_panel=PANEL
    ),
]
ModelClass = Annotated[
    str | None,
    typer.Option(
        "--model-class", help="The class in transformers that is run.", rich_help_panel=PANEL
    ),
]
Build = Annotated[
    str | None,
    typer.Option(
        "--build",
        help="package.module:function that returns the module, where transformers has none.",
        rich_help_panel=PANEL,
    ),
]


def sampling_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `merge`, `plan` and `calibrate` pass on of these options."""
    return {
        "data": named_sources(given["data"]),
        "samples": sample_options(given),
        "order": given["order"],
        "precision": given["precision"],
        "batchnorm": given["batchnorm"],
        "offload": given["offload"],
        "model": given["model_class"],
        "build": given["build"],
    }


def sample_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """How samples are drawn and prepared."""
    return {
        "samples": given["samples"],
        "seed": given["seed"],
        "text_field": given["text_field"],
        "max_length": given["max_length"],
        "image_size": given["image_size"],
        "mean": _numbers("--mean", given["mean"]),
        "std": _numbers("--std", given["std"]),
        "split": given["split"],
        "allow_test": given["allow_test"],
    }


def named_sources(texts: Sequence[str]) -> Any:
    """Sources by expert, or the only one for all; None if none is given."""
    named: dict[str, str] = {}
    shared = []
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            shared.append(text)
            continue
        if not name or not source:
            raise ParameterError(f"--data {text}", remedy="write NAME=SOURCE, or SOURCE for all")
        if name in named:
            raise ParameterError(
                f"--data {name}= is given twice", remedy="give each expert one source"
            )
        named[name] = source
    if len(shared) > 1 or (shared and named):
        raise ParameterError(
            f"--data {shared[0]} names no expert",
            remedy="write --data NAME=SOURCE for each expert, or one --data SOURCE for all",
        )
    return shared[0] if shared else named or None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(
            f"{option} {text}: no numbers", remedy=f"write {option} 0.5,0.5,0.5"
        ) from None
