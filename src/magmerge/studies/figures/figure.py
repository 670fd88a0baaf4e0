"""plot() and redraw(): a figure of a suite with its numbers, and the same figure once more."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magmerge.core.errors import (
    MagmergeWarning,
    OutputError,
    ParameterError,
    UnknownNameError,
    suggestion,
)
from magmerge.core.machine import CPU, DEFAULT_MEMORY, Machine, Progress
from magmerge.core.validation import read_sensitive
from magmerge.core.whole_file import check_free
from magmerge.evaluation.entries import WHOLE, task_names
from magmerge.evaluation.task_suite import Suite, open_suite
from magmerge.linalg.device import open_device
from magmerge.pipeline.merge import Gate
from magmerge.studies.figures.document import (
    KINDS,
    Document,
    FigureKind,
    read_document,
    write_document,
)
from magmerge.studies.figures.figure_file import check_figure, draw
from magmerge.studies.figures.figure_models import figure_inputs
from magmerge.studies.figures.figure_spec import FigureSpec, LayerOrder, with_defaults
from magmerge.studies.figures.numbers import Numbers
from magmerge.studies.figures.points import read_order, read_ranking
from magmerge.studies.figures.series import Listing, listing


@dataclass(frozen=True, slots=True)
class FigureResult:
    """A figure that was drawn: where it is, where its numbers are, and these.

    `seconds` is all the time that it took; `computed` how many points were not known yet.
    """

    path: Path
    data: Path
    document: Document
    computed: int
    seconds: float

    @property
    def table(self) -> Listing:
        """The numbers as a table of texts."""
        return listing(self.document)

    @property
    def layers(self) -> Listing:
        """The same with a row for each layer, where the figure shows layers."""
        return listing(self.document, layers=True)


def plot(
    kind: FigureKind,
    out: str | Path,
    *,
    suite: str | Path | Suite | None = None,
    base: str | Path | None = None,
    experts: Mapping[str, str | Path] | None = None,
    data: Any = None,
    methods: Sequence[str] = ("task_arithmetic",),
    params: Mapping[str, Mapping[str, Any]] | None = None,
    calibrate: Sequence[str] | None = None,
    values: Sequence[float] | None = None,
    samples: int = 8,
    seeds: int | None = None,
    split: str = WHOLE,
    tasks: Sequence[str] | None = None,
    gate: Gate = "on",
    sensitive: str | Path | Sequence[str] = (),
    alpha: int = 10,
    mode: str = "exact",
    dtype: str | None = None,
    device: str = CPU,
    threads: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    allow_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FigureResult:
    """Draw one of the figures of arXiv:2512.19320 for a suite, into an .svg, .png or .pdf file.

    `kind`: "samples", the mean score against the unlabelled samples per task; "lambda", against a
    factor on the merged task vector; "alpha", against the number of sensitive layers; "sensitivity"
    of each layer; "coefficients", each layer's factors. Base, experts and samples are those that
    the suite names; `experts` maps names to models, `data` these names to sources, or is one source
    for all. Samples are drawn from the calibration or the train split, never from test data.
    `methods` are merges, `calibrate` calibrations (default: all that the figure has), `params` the
    parameters of both by their names. `values` are the places of the horizontal axis; `samples` is
    the number per task where the figure does not go through it; each draw is repeated with `seeds`
    seeds. `sensitive` is a list of layers, or a file with one; for "sensitivity" and "alpha" it may
    be the file that `magmerge.sensitivity` wrote, and without it the layers are ranked here, in
    `mode`. The other arguments are those of `magmerge.evaluate` and `magmerge.calibrate`.

    All numbers go to a .json file beside the figure, after each point. Where it is there already,
    from the same models and settings, its points are kept and completed. Raises MagmergeError's
    children.
    """
    start = time.monotonic()
    if kind not in KINDS:
        raise UnknownNameError(f"there is no figure of {kind!r}", remedy=suggestion(kind, KINDS))
    request = FigureSpec(
        kind, tuple(methods), tuple(calibrate or ()), tuple(values or ()), samples, seeds, split,
        params=params or {}, gate=gate, dtype=dtype, alpha=alpha, mode=mode,
        machine=Machine(threads, memory, device, progress=progress),
    )  # fmt: skip
    request = with_defaults(request)
    figure, numbers = _outputs(out, sensitive, overwrite=overwrite)
    open_device(device)
    if kind == "sensitivity" and sensitive:
        document: Document = read_ranking(_file(sensitive), alpha)
        write_document(numbers, document)
        computed = 0
    else:
        if suite is None:
            raise ParameterError("no suite is given", remedy="name its file with --suite (suite=)")
        opened = suite if isinstance(suite, Suite) else open_suite(suite, allow_code=allow_code)
        inputs = figure_inputs(opened, base=base, experts=experts, data=data)
        request = replace(request, **_layers(kind, sensitive))
        if tasks is not None:
            listed = tuple(task_names(inputs.entry, tasks, str(suite)))
            request = replace(request, tasks=listed)
        document, computed = Numbers(request, inputs, numbers, overwrite).compute()
    draw(document, figure)
    if document.warnings:
        more = len(document.warnings) - 1
        others = f" ({more} more of its kind in {numbers})" if more else ""
        warnings.warn(f"{document.warnings[0]}{others}", MagmergeWarning, stacklevel=2)
    return FigureResult(figure, numbers, document, computed, time.monotonic() - start)


def redraw(numbers: str | Path, out: str | Path, *, overwrite: bool = False) -> FigureResult:
    """Draw a figure once more from its .json file, without computing anything."""
    start = time.monotonic()
    figure = Path(out)
    check_figure(figure, overwrite=overwrite)
    document = read_document(Path(numbers))
    draw(document, figure)
    return FigureResult(figure, Path(numbers), document, 0, time.monotonic() - start)


def _outputs(
    out: str | Path, sensitive: str | Path | Sequence[str], *, overwrite: bool
) -> tuple[Path, Path]:
    """The figure and the file of its numbers; OutputError where they cannot be written."""
    figure = Path(out)
    check_figure(figure, overwrite=overwrite)
    numbers = figure.with_suffix(".json")
    # What is there may be completed, which the maker decides.
    check_free(numbers, overwrite=True)
    if isinstance(sensitive, str | Path) and Path(sensitive).absolute() == numbers.absolute():
        raise OutputError(
            "the figure's numbers would replace the list of sensitive layers",
            source=numbers,
            remedy="give the figure another name",
        )
    return figure, numbers


def _file(sensitive: str | Path | Sequence[str]) -> Path:
    if not isinstance(sensitive, str | Path):
        raise ParameterError(
            "a list of names does not tell how sensitive layers are",
            remedy="give the file that `magmerge sensitivity` wrote",
        )
    return Path(sensitive)


def _layers(kind: FigureKind, sensitive: str | Path | Sequence[str]) -> dict[str, Any]:
    """Of a request, the sensitive layers; for alpha their order."""
    file = Path(sensitive) if isinstance(sensitive, str | Path) and str(sensitive) else None
    if not sensitive or kind == "sensitivity":
        return {}
    if kind != "alpha":
        return {"sensitive": read_sensitive(file) if file else tuple(sensitive)}  # type: ignore[arg-type]
    return {"order": read_order(file) if file else LayerOrder(tuple(sensitive), len(sensitive))}  # type: ignore[arg-type]
