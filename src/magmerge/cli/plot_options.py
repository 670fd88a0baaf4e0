"""Options of the figures, and how their text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli.options import parse_settings
from magmerge.cli.sampling import named_sources
from magmerge.errors import ParameterError

SUITE = "Where base, experts and samples come from too"

Figure = Annotated[
    Path,
    typer.Argument(
        help="The figure: .svg, .png or .pdf. Its numbers go beside it, into a .json file.",
        show_default=False,
    ),
]
Suite = Annotated[Path, typer.Option("--suite", help=f"A suite file: tasks to measure. {SUITE}.")]
SuiteOrNone = Annotated[
    Path | None, typer.Option("--suite", help=f"A suite file. {SUITE}, without --sensitive.")
]
Base = Annotated[Path | None, typer.Option("--base", help="The base model. Default: the suite's.")]
Experts = Annotated[
    list[str],
    typer.Option("--expert", help="NAME=PATH or PATH; repeat for each. Default: the suite's."),
]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="NAME=SOURCE: unlabelled samples of an expert's task. Default: the calibration or "
        "train split that the suite names.",
    ),
]
Methods = Annotated[
    list[str], typer.Option("--method", help="A merge, ties for example; repeat for more.")
]
Calibrations = Annotated[
    list[str],
    typer.Option(
        "--calibrate", help="Only this calibration; repeat. Default: all that the figure has."
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", help="Unlabelled samples of each task, for FSC and DSC.")
]
Seeds = Annotated[int, typer.Option("--seeds", help="How often samples are drawn.")]
Split = Annotated[str, typer.Option("--split", help="Which split is measured.")]
Tasks = Annotated[
    list[str], typer.Option("--task", help="Measure only this task of the suite; repeat for more.")
]
Mode = Annotated[
    str,
    typer.Option(
        "--mode", help="Of a ranking that is computed: exact tries each layer, fast derives."
    ),
]
Ranking = Annotated[
    Path | None,
    typer.Option(
        "--sensitive", help="The file of `magmerge sensitivity`. Default: computed on the suite."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the measured models' forward pass: float32 or bfloat16."),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Replace a figure that exists, and numbers of other settings."
    ),
]


def numbers(option: str, text: str) -> list[float]:
    """Numbers between commas; ParameterError for what is none."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ParameterError(f"{option} {text}: no numbers", remedy=f"write {option} 1,5,10")
    return found


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `magmerge.plot` takes of the options that a figure has."""
    passed = (
        "suite",
        "base",
        "seeds",
        "split",
        "gate",
        "alpha",
        "mode",
        "dtype",
        "threads",
        "memory",
        "allow_code",
    )
    found = {name: given[name] for name in (*passed, "device", "values") if name in given}
    found |= {"overwrite": given["yes"], "sensitive": given["sensitive"] or ()}
    found["experts"] = _experts(given["expert"])
    found["data"] = named_sources(given["data"])
    if "values" not in given or isinstance(given["samples"], int):
        found["samples"] = given["samples"]
    if "task" in given:
        found["tasks"] = given["task"] or None
    if "method" in given:
        found |= {"methods": given["method"], "calibrate": given["calibrate"] or None}
        found["params"] = _params(given["settings"], given["method"], given["calibrate"])
    return found


def _experts(texts: Sequence[str]) -> dict[str, str] | None:
    """Experts by name: what stands before the equals sign, or the last part of the path."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name, text
        if not name or not path:
            raise ParameterError(f"--expert {text}", remedy="write NAME=PATH, or PATH")
        if name in named:
            raise ParameterError(
                f"two experts are called {name}", remedy="write --expert NAME=PATH for each"
            )
        named[name] = path
    return named or None


def _params(
    settings: Sequence[str], methods: Sequence[str], calibrations: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Parameters by the name of their method or calibrator; a bare one is for every method."""
    known = list(calibrations) or ["wsc", "fsc", "dsc"]
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        own = [text for text in settings if _owner(text) not in {*methods} - {method}]
        params, others = parse_settings(own, known, method)
        found |= {method: params, **others}
    return {name: params for name, params in found.items() if params}


def _owner(setting: str) -> str:
    """What stands before the dot of METHOD.NAME=VALUE."""
    key = setting.partition("=")[0].partition("@")[0]
    return key.strip().rpartition(".")[0]
