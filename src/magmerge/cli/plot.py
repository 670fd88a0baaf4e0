"""magmerge plot: figures of a suite, each with all its numbers in a JSON file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from magmerge.cli import options as o
from magmerge.cli.output import progress_reporter, show, show_json
from magmerge.cli.settings import named_sources, numbers, parse_settings
from magmerge.core.errors import ParameterError

app = typer.Typer(
    help="Draw a figure of a suite: scores by samples, lambda or alpha; layers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SOURCES = "Where base, experts and samples come from too"
FIGURE = o.option(
    "out", help="The figure: .svg, .png or .pdf. Its numbers go beside it, into a .json file."
)
SUITE = o.Option("suite", Path, f"A suite file: tasks to measure. {SOURCES}.")
MERGES = (
    FIGURE,
    SUITE,
    o.Option(
        "methods",
        list[str],
        "A merge, ties for example; repeat for more.",
        ["task_arithmetic"],
        "--method",
    ),
    o.option("calibrate", help="Only this calibration; repeat. Default: all that the figure has."),
)
AXIS = o.Option("values", str, "Numbers per task, the horizontal axis.", "1,5,10,20", "--samples")
FACTORS = o.Option(
    "values", str, "Factors on the merged task vector.", "0.1,0.25,0.5,0.75,1,1.25,1.5,2"
)
ALPHAS = o.Option("values", str, "Numbers of sensitive layers.", "0,5,10,20")
SAMPLES = o.Option("samples", int, "Unlabelled samples of each task, for FSC and DSC.", 8)
SEEDS = o.Option("seeds", int, "How often samples are drawn.", 3)
INPUTS = (
    o.option("base", help="The base model. Default: the suite's."),
    o.Option(
        "experts",
        list[str],
        "NAME=PATH or PATH; repeat for each. Default: the suite's.",
        [],
        "--expert",
    ),
    o.Option(
        "data",
        list[str],
        "NAME=SOURCE: unlabelled samples of an expert's task. Default: the calibration or train "
        "split that the suite names.",
        [],
    ),
)
MODE = o.Option(
    "mode", str, "Of a ranking that is computed: exact tries each layer, fast derives.", "exact"
)
RANKING = o.option(
    "sensitive", help="The file of `magmerge sensitivity`. Default: computed on the suite."
)
MEASURE = (
    o.Option("split", str, "Which split is measured.", "test"),
    o.option("tasks", help="Measure only this task of the suite; repeat for more."),
    o.option("dtype", help="Of the measured models' forward pass: float32 or bfloat16."),
)
YES = o.option("overwrite", help="Replace a figure that exists, and numbers of other settings.")
END = (*o.MACHINE, "allow_code", YES, "json")
GATE = ("settings", "gate", "sensitive")


@app.command("samples")
@o.takes(*MERGES, AXIS, replace(SEEDS, default=5), *INPUTS, *GATE, *MEASURE, *END)
def samples_command(options: o.Options) -> None:
    """Mean score by unlabelled samples per task: FSC and DSC beside the plain merge and WSC.

    Example: magmerge plot samples --suite suite.yaml --method ties samples.svg
    """
    _plot("samples", options)


@app.command("lambda")
@o.takes(*MERGES, FACTORS, SAMPLES, SEEDS, *INPUTS, *GATE, *MEASURE, *END)
def lambda_command(options: o.Options) -> None:
    """Mean score by lambda, with and without each calibration.

    Calibrations find the magnitude themselves, so that their lines are flat; with the gate on from
    below alone. Lambda is not chosen here: for that ask for --split validation.

    Example: magmerge plot lambda --suite suite.yaml --gate off lambda.svg
    """
    _plot("lambda", options)


@app.command("alpha")
@o.takes(*MERGES, ALPHAS, SAMPLES, SEEDS, MODE, *INPUTS, "settings", RANKING, *MEASURE, *END)
def alpha_command(options: o.Options) -> None:
    """Mean score by alpha, the number of sensitive layers, which the gate lets only shrink.

    Example: magmerge plot alpha --suite suite.yaml --sensitive layers.json alpha.svg
    """
    _plot("alpha", options)


@app.command("sensitivity")
@o.takes(
    FIGURE,
    replace(SUITE, help=f"A suite file. {SOURCES}, without --sensitive.", default=None),
    o.Option("alpha", int, "How many layers are marked.", 10),
    SAMPLES,
    MODE,
    *INPUTS,
    RANKING,
    *END,
    "verbose",
)
def sensitivity_command(options: o.Options) -> None:
    """Each layer's sensitivity in the order of the model, from a file or computed on the suite.

    Example: magmerge plot sensitivity --sensitive layers.json sensitivity.svg
    """
    _plot("sensitivity", options)


@app.command("coefficients")
@o.takes(*MERGES, SAMPLES, replace(SEEDS, default=1), *INPUTS, *GATE, *END, "verbose")
def coefficients_command(options: o.Options) -> None:
    """The factors of WSC and FSC layer by layer, before and after the gate.

    Example: magmerge plot coefficients --suite suite.yaml --sensitive layers.json factors.svg
    """
    _plot("coefficients", options)


@app.command("redraw")
@o.takes(
    o.Option("numbers", Path, "The .json file beside a figure.", argument=True),
    FIGURE,
    YES,
    "json",
    "verbose",
)
def redraw_command(options: o.Options) -> None:
    """Draw a figure once more from its numbers, without computing anything.

    Example: magmerge plot redraw samples.json samples.pdf
    """
    import magmerge

    _show(magmerge.redraw(**o.without(options)), options)


def _plot(kind: Any, options: o.Options) -> None:
    """Call the front door with the options that a figure has."""
    keywords, file = _keywords(kind, options), options["out"].with_suffix(".json")
    import magmerge

    def note() -> str:
        words = f"; the points so far are in {file}, and the same command goes on"
        return words if file.exists() else ""

    with progress_reporter(note) as progress:
        figure = magmerge.plot(kind, **keywords, progress=progress)
    _show(figure, options)


def _show(figure: Any, options: o.Options) -> None:
    from magmerge.report.terminal_tables import plain, table

    if options["json"]:
        show_json({"path": str(figure.path), **figure.document.model_dump(mode="json")})
        return
    content = figure.layers if options.get("verbose") else figure.table
    rows = table("", *content.headings, numbers=content.headings[content.words :])
    rows.title = None
    for row in content.rows:
        rows.add_row(*map(plain, row))
    spent = f" in {figure.seconds:.1f} s" if figure.computed else ""
    show(rows, plain(f"wrote {figure.path}{spent}; its numbers are in {figure.data}", "bold"))


def _keywords(kind: str, options: o.Options) -> dict[str, Any]:
    """What `magmerge.plot` takes of the options that a figure has."""
    keywords = o.without(options, "settings")
    keywords["sensitive"] = options["sensitive"] or ()
    keywords["experts"] = _experts(options["experts"])
    keywords["data"] = named_sources(options["data"])
    if "values" in options:
        flag = "--samples" if kind == "samples" else "--values"
        keywords["values"] = list(numbers(flag, options["values"], "1,5,10"))
    if "tasks" in options:
        keywords["tasks"] = options["tasks"] or None
    if "methods" in options:
        methods, calibrators = options["methods"], options["calibrate"]
        keywords["calibrate"] = calibrators or None
        keywords["params"] = _params(options["settings"], methods, calibrators)
    return keywords


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
    named: dict[str, dict[str, Any]] = {}
    for method in methods:
        own = [text for text in settings if _owner(text) not in {*methods} - {method}]
        params, others = parse_settings(own, known, method)
        named |= {method: params, **others}
    return {name: params for name, params in named.items() if params}


def _owner(setting: str) -> str:
    """What stands before the dot of METHOD.NAME=VALUE."""
    key = setting.partition("=")[0].partition("@")[0]
    return key.strip().rpartition(".")[0]
