"""plot() and redraw(): a figure of a suite with its numbers, and the same figure once more."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge import registry
from magmerge.calibrators import COMPOSED
from magmerge.device import open_device
from magmerge.errors import (
    MagmergeWarning,
    OutputError,
    ParameterError,
    UnknownNameError,
    suggestion,
)
from magmerge.evaluation.entries import WHOLE, chosen_tasks
from magmerge.evaluation.suite import Suite, open_suite
from magmerge.figures import making as makers
from magmerge.figures.asking import asked
from magmerge.figures.canvas import check_figure
from magmerge.figures.document import CURVES, KINDS, Document, Kind, read_document
from magmerge.figures.drawing import draw
from magmerge.figures.ground import Ground, open_ground
from magmerge.figures.layered import Order, read_order
from magmerge.figures.listing import Listing, layers_listing, listing
from magmerge.figures.making import Making, ranking_of_file
from magmerge.figures.measuring import How
from magmerge.machine import CPU, Progress
from magmerge.machine import DEFAULT_MEMORY as DEFAULT
from magmerge.pipeline import Gate
from magmerge.validation import read_sensitive
from magmerge.whole_file import check_free

MAKERS: Mapping[Kind, Callable[[Making], tuple[Document, int]]] = {
    **dict.fromkeys(CURVES, makers.curves),
    "coefficients": makers.coefficients,
    "sensitivity": makers.ranking,
}


@dataclass(frozen=True, slots=True)
class Plotted:
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
        return layers_listing(self.document)


def plot(
    kind: Kind,
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
    memory: str | int = DEFAULT,
    allow_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Plotted:
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
    wanted = asked(
        kind, methods=methods, calibrate=calibrate, values=values, samples=samples, seeds=seeds
    )
    figure, numbers = _outputs(out, sensitive, overwrite=overwrite)
    _check(kind, gate, alpha)
    open_device(device)
    if kind == "sensitivity" and sensitive:
        document: Document = ranking_of_file(_file(sensitive), numbers, alpha)
        draw(document, figure)
        return Plotted(figure, numbers, document, 0, time.monotonic() - start)
    ground = _ground(suite, base, experts, data, allow_code=allow_code)
    how = How(
        split=split,
        tasks=None if tasks is None else tuple(chosen_tasks(ground.entry, tasks, str(suite))),
        params=_by_own_name(params or {}),
        gate=gate,
        sensitive=() if kind in ("sensitivity", "alpha") else _names(sensitive),
        dtype=dtype,
        device=device,
        threads=threads,
        memory=memory,
    )
    order = _order(sensitive) if kind == "alpha" and sensitive else None
    making = Making(wanted, ground, how, numbers, order, alpha, mode, overwrite, progress)
    document, computed = MAKERS[kind](making)
    draw(document, figure)
    _tell(document, numbers)
    return Plotted(figure, numbers, document, computed, time.monotonic() - start)


def redraw(numbers: str | Path, out: str | Path, *, overwrite: bool = False) -> Plotted:
    """Draw a figure once more from its .json file, without computing anything."""
    start = time.monotonic()
    figure = Path(out)
    check_figure(figure, overwrite=overwrite)
    document = read_document(Path(numbers))
    draw(document, figure)
    return Plotted(figure, Path(numbers), document, 0, time.monotonic() - start)


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


def _check(kind: Kind, gate: str, alpha: int) -> None:
    if gate not in ("on", "off"):
        raise ParameterError(f"the gate is {gate!r}", remedy="it is on or off")
    if kind == "alpha" and gate == "off":
        raise ParameterError(
            "without a gate it does not matter which layers are sensitive",
            remedy="leave the gate on for a figure of alpha",
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int) or alpha < 1:
        raise ParameterError(f"alpha is {alpha}", remedy="name one layer or more")


def _ground(
    suite: str | Path | Suite | None,
    base: str | Path | None,
    experts: Mapping[str, str | Path] | None,
    data: Any,
    *,
    allow_code: bool,
) -> Ground:
    if suite is None:
        raise ParameterError("no suite is given", remedy="name its file with --suite (suite=)")
    opened = suite if isinstance(suite, Suite) else open_suite(suite, allow_code=allow_code)
    return open_ground(opened, base=base, experts=experts, data=data)


def _by_own_name(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parameters by the names that the registry has for methods; calibrators have no other."""
    calibrators = {*COMPOSED, *(one.name for one in registry.calibrators)}
    return {
        name if name in calibrators else registry.methods.get(name).name: dict(own)
        for name, own in params.items()
    }


def _file(sensitive: str | Path | Sequence[str]) -> Path:
    if not isinstance(sensitive, str | Path):
        raise ParameterError(
            "a list of names does not tell how sensitive layers are",
            remedy="give the file that `magmerge sensitivity` wrote",
        )
    return Path(sensitive)


def _names(sensitive: str | Path | Sequence[str]) -> tuple[str, ...]:
    if isinstance(sensitive, str | Path):
        return read_sensitive(Path(sensitive)) if str(sensitive) else ()
    return tuple(sensitive)


def _order(sensitive: str | Path | Sequence[str]) -> Order:
    if isinstance(sensitive, str | Path):
        return read_order(Path(sensitive))
    return Order(tuple(sensitive), len(sensitive))


def _tell(document: Document, numbers: Path) -> None:
    """One warning for all that the calibrations warned of."""
    if document.warnings:
        more = len(document.warnings) - 1
        others = f" ({more} more of its kind in {numbers})" if more else ""
        warnings.warn(f"{document.warnings[0]}{others}", MagmergeWarning, stacklevel=3)
