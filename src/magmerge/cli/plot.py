"""magmerge plot: figures of a suite, each with all its numbers in a JSON file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from magmerge.cli import options as o
from magmerge.cli import plot_options as p
from magmerge.cli.output import log, progress_reporter, show, show_json

app = typer.Typer(
    help="Draw a figure of a suite: scores by samples, lambda or alpha; layers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("samples")
def samples_command(
    out: p.Figure,
    suite: p.Suite,
    method: p.Methods = ["task_arithmetic"],
    calibrate: p.Calibrations = [],
    samples: Annotated[
        str, typer.Option("--samples", help="Numbers per task, the horizontal axis.")
    ] = "1,5,10,20",
    seeds: p.Seeds = 5,
    base: p.Base = None,
    expert: p.Experts = [],
    data: p.Data = [],
    settings: o.Set = [],
    gate: o.Gate = "on",
    sensitive: o.Sensitive = None,
    split: p.Split = "test",
    task: p.Tasks = [],
    dtype: p.Dtype = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: p.Yes = False,
    json: o.Json = False,
) -> None:
    """Mean score by unlabelled samples per task: FSC and DSC beside the plain merge and WSC.

    Example: magmerge plot samples --suite suite.yaml --method ties samples.svg
    """
    _plot("samples", {**locals(), "values": p.numbers("--samples", samples)})


@app.command("lambda")
def lambda_command(
    out: p.Figure,
    suite: p.Suite,
    method: p.Methods = ["task_arithmetic"],
    calibrate: p.Calibrations = [],
    values: Annotated[
        str, typer.Option("--values", help="Factors on the merged task vector.")
    ] = "0.1,0.25,0.5,0.75,1,1.25,1.5,2",
    samples: p.Samples = 8,
    seeds: p.Seeds = 3,
    base: p.Base = None,
    expert: p.Experts = [],
    data: p.Data = [],
    settings: o.Set = [],
    gate: o.Gate = "on",
    sensitive: o.Sensitive = None,
    split: p.Split = "test",
    task: p.Tasks = [],
    dtype: p.Dtype = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: p.Yes = False,
    json: o.Json = False,
) -> None:
    """Mean score by lambda, with and without each calibration.

    Calibrations find the magnitude themselves, so that their lines are flat; with the gate on from
    below alone. Lambda is not chosen here: for that ask for --split validation.

    Example: magmerge plot lambda --suite suite.yaml --gate off lambda.svg
    """
    _plot("lambda", {**locals(), "values": p.numbers("--values", values)})


@app.command("alpha")
def alpha_command(
    out: p.Figure,
    suite: p.Suite,
    method: p.Methods = ["task_arithmetic"],
    calibrate: p.Calibrations = [],
    values: Annotated[
        str, typer.Option("--values", help="Numbers of sensitive layers.")
    ] = "0,5,10,20",
    samples: p.Samples = 8,
    seeds: p.Seeds = 3,
    mode: p.Mode = "exact",
    base: p.Base = None,
    expert: p.Experts = [],
    data: p.Data = [],
    settings: o.Set = [],
    sensitive: p.Ranking = None,
    split: p.Split = "test",
    task: p.Tasks = [],
    dtype: p.Dtype = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: p.Yes = False,
    json: o.Json = False,
) -> None:
    """Mean score by alpha, the number of sensitive layers, which the gate lets only shrink.

    Example: magmerge plot alpha --suite suite.yaml --sensitive layers.json alpha.svg
    """
    _plot("alpha", {**locals(), "values": p.numbers("--values", values)})


@app.command("sensitivity")
def sensitivity_command(
    out: p.Figure,
    suite: p.SuiteOrNone = None,
    alpha: Annotated[int, typer.Option("--alpha", help="How many layers are marked.")] = 10,
    samples: p.Samples = 8,
    mode: p.Mode = "exact",
    base: p.Base = None,
    expert: p.Experts = [],
    data: p.Data = [],
    sensitive: p.Ranking = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: p.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Each layer's sensitivity in the order of the model, from a file or computed on the suite.

    Example: magmerge plot sensitivity --sensitive layers.json sensitivity.svg
    """
    _plot("sensitivity", locals())


@app.command("coefficients")
def coefficients_command(
    out: p.Figure,
    suite: p.Suite,
    method: p.Methods = ["task_arithmetic"],
    calibrate: p.Calibrations = [],
    samples: p.Samples = 8,
    seeds: p.Seeds = 1,
    base: p.Base = None,
    expert: p.Experts = [],
    data: p.Data = [],
    settings: o.Set = [],
    gate: o.Gate = "on",
    sensitive: o.Sensitive = None,
    threads: o.Threads = None,
    memory: o.Memory = "2GB",
    device: o.Device = "cpu",
    allow_code: o.AllowCode = False,
    yes: p.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """The factors of WSC and FSC layer by layer, before and after the gate.

    Example: magmerge plot coefficients --suite suite.yaml --sensitive layers.json factors.svg
    """
    _plot("coefficients", locals())


@app.command("redraw")
def redraw_command(
    numbers: Annotated[Path, typer.Argument(help="The .json file beside a figure.")],
    out: p.Figure,
    yes: p.Yes = False,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw a figure once more from its numbers, without computing anything.

    Example: magmerge plot redraw samples.json samples.pdf
    """
    import magmerge

    _show(magmerge.redraw(numbers, out, overwrite=yes), {"json": json, "verbose": verbose})


def _plot(kind: Any, given: dict[str, Any]) -> None:
    """Call the front door with the options that a figure has."""
    arguments = p.arguments(given)
    import magmerge

    with _resumable(given["out"]), progress_reporter() as progress:
        try:
            found = magmerge.plot(kind, given["out"], **arguments, progress=progress)
        except KeyboardInterrupt:
            raise _Stopped from None
    _show(found, given)


class _Stopped(Exception):  # noqa: N818
    """The user wants no more."""


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say after an interruption that nothing is lost; exit code 130."""
    try:
        yield
    except _Stopped:
        numbers = out.with_suffix(".json")
        kept = f"; the points so far are in {numbers}, and the same command goes on"
        log().print(f"stopped{kept if numbers.exists() else ''}", markup=False)
        raise typer.Exit(130) from None


def _show(found: Any, given: dict[str, Any]) -> None:
    from magmerge.report.tables import plain, table

    if given["json"]:
        show_json({"path": str(found.path), **found.document.model_dump(mode="json")})
        return
    listed = found.layers if given.get("verbose") else found.table
    made = table("", *listed.headings, numbers=listed.headings[listed.words :])
    made.title = None
    for row in listed.rows:
        made.add_row(*map(plain, row))
    kept = f" in {found.seconds:.1f} s" if found.computed else ""
    show(made, plain(f"wrote {found.path}{kept}; its numbers are in {found.data}", "bold"))
