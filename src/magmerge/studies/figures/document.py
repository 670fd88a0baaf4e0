"""What a figure's JSON file holds: every number of the figure, and what they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field

from magmerge.core.errors import CheckpointError
from magmerge.core.whole_file import write_whole
from magmerge.evaluation.scores import LOWER_IS_BETTER
from magmerge.report.account import FilePart, parse, read_json

FigureKind = Literal["samples", "sensitivity", "coefficients", "lambda", "alpha"]
KINDS: tuple[FigureKind, ...] = get_args(FigureKind)
CURVES: tuple[FigureKind, ...] = ("samples", "lambda", "alpha")
"""Figures of scores; the others are of layers."""
NONE = "none"
"""What a merge without calibration is called."""
REMEDY = "give the .json file that `magmerge plot` wrote beside a figure"

Bounded = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""A number that an axis can hold."""
Ratio = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
"""A number that a logarithmic axis can hold."""
Count = Annotated[int, Field(ge=0, le=10**9)]


class TaskNote(FilePart):
    """A task that was measured, and how many rows it has."""

    task: str
    metric: str
    rows: Count
    title: str = ""


class ScorePoint(FilePart):
    """One model's scores: a merge, calibrated or not, at one place of the horizontal axis.

    `at` is None where the place does not matter, `seed` where nothing is drawn. `mean` is the mean
    score; where all are the better the lower, as perplexities are, their geometric mean.
    """

    method: str
    calibration: str
    at: Bounded | None = None
    seed: Count | None = None
    mean: Bounded
    scores: dict[str, Bounded]

    @property
    def key(self) -> tuple[str, str, float | None, int | None]:
        """What tells it from the other points."""
        return self.method, self.calibration, self.at, self.seed


class FigureHead(FilePart):
    """What all figures have in common. `settings` is for readers, `digest` for going on."""

    magmerge: str
    kind: FigureKind
    digest: str
    suite: str
    settings: dict[str, Any] = Field(default_factory=dict)
    methods: tuple[str, ...] = ()
    samples: Count | None = None
    seeds: Annotated[int, Field(ge=1, le=10**6)] = 1
    gate: str = "on"
    sensitive: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Curves(FigureHead):
    """Mean scores against the samples per task, lambda, or alpha.

    `calibrations`, `values` and `seeds` are what the figure shows; there may be more points.
    `ranked`: how many layers alpha could count, of which `sensitive` do harm, the worst first.
    `error` is half the 95 % interval of one mean score, as far as the number of rows decides it;
    `experts` the mean score of the experts, each on its own task.
    """

    kind: Literal["samples", "lambda", "alpha"]
    split: str
    tasks: tuple[TaskNote, ...] = ()
    calibrations: tuple[str, ...] = ()
    values: tuple[Bounded, ...] = ()
    ranked: Count | None = None
    error: Bounded | None = None
    experts: Bounded | None = None
    points: tuple[ScorePoint, ...] = ()

    @property
    def percent(self) -> bool:
        """Whether the means are shares, and not perplexities or their like."""
        return not self.tasks or any(task.metric not in LOWER_IS_BETTER for task in self.tasks)


class LayerFactor(FilePart):
    """One layer's mean factor, after and before the gate, and its extremes over the rows."""

    layer: str
    sensitive: bool = False
    xi: Ratio | None
    xi_free: Ratio | None
    xi_min: Ratio | None = None
    xi_max: Ratio | None = None


class CalibrationFactors(FilePart):
    """What one calibration of one merge found for each layer, from one draw of samples."""

    method: str
    calibration: str
    seed: Count | None = None
    layers: tuple[LayerFactor, ...]

    @property
    def key(self) -> tuple[str, str, None, int | None]:
        """What tells it from the others, as a point's key does."""
        return self.method, self.calibration, None, self.seed


class Coefficients(FigureHead):
    """Factors of each layer, calibration by calibration."""

    kind: Literal["coefficients"]
    calibrations: tuple[str, ...] = ()
    points: tuple[CalibrationFactors, ...] = ()


class LayerHarm(FilePart):
    """By how much the score gets worse with 10 % more of a layer's change."""

    layer: str
    worse: Bounded


class Ranking(FigureHead):
    """The sensitivity of each layer, in the order of the model."""

    kind: Literal["sensitivity"]
    score: str = "drift"
    mode: str = ""
    factor: Bounded = 1.1
    alpha: Count = 10
    rows: Count | None = None
    layers: tuple[LayerHarm, ...] = ()


Document: TypeAlias = Curves | Coefficients | Ranking
SHAPES: Mapping[str, type[Curves] | type[Coefficients] | type[Ranking]] = {
    **dict.fromkeys(CURVES, Curves),
    "coefficients": Coefficients,
    "sensitivity": Ranking,
}


def read_document(path: Path) -> Document:
    """A figure's numbers; CheckpointError where the file is not as magmerge writes it."""
    try:
        content = read_json(path)
        kind = content.get("kind") if isinstance(content, dict) else None
        shape = SHAPES.get(kind) if isinstance(kind, str) else None
        if shape is None:
            raise CheckpointError("it holds no figure's numbers", source=path, remedy=REMEDY)
        return parse(shape, content, str(path))
    except CheckpointError as error:
        error.remedy = REMEDY
        raise


def write_document(path: Path, document: Document) -> None:
    """Write the numbers in one step; OutputError where that fails."""
    content = document.model_dump(mode="json")
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
