"""Points of figures: scores, factors and sensitivities; what each of them is, and its measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.core.errors import ParameterError
from magmerge.core.validation import read_sensitive
from magmerge.core.version import __version__
from magmerge.engine.result import Result
from magmerge.evaluation.scores import Scores
from magmerge.evaluation.sensitivity import Sensitivity, sensitivity
from magmerge.report.account import LayerAccount, in_model_order, modules_of, parse, read_json
from magmerge.studies.figures.document import (
    NONE,
    CalibrationFactors,
    LayerFactor,
    LayerHarm,
    Ranking,
    ScorePoint,
    TaskNote,
)
from magmerge.studies.figures.figure_models import (
    FigureInputs,
    FigureModels,
    State,
    error_of,
    experts_of,
)
from magmerge.studies.figures.figure_spec import FigureSpec, LayerOrder, draws

TINY = 1e-9
"""Least value that a geometric mean takes."""


class PointPlace(NamedTuple):
    """One point to be measured; `at` and `seed` are None where they do not matter."""

    method: str
    calibration: str
    at: float | None
    seed: int | None


def places(request: FigureSpec) -> list[PointPlace]:
    """All points of a figure; those of one draw follow each other.

    A merge alone changes with lambda only. WSC changes with lambda, and with alpha; it draws
    nothing. FSC and DSC change with everything. At lambda 0 there is nothing to calibrate.
    """
    kind = request.kind
    alone = [name for name in request.calibrations if not draws(name)]
    hungry = [name for name in request.calibrations if draws(name)]
    points: list[PointPlace] = []
    for method in request.methods:
        if kind in ("samples", "alpha"):
            points.append(PointPlace(method, NONE, None, None))
        if kind in ("samples", "coefficients"):
            points += [PointPlace(method, name, None, None) for name in alone]
        for at in request.values or (None,):
            if kind == "lambda":
                points.append(PointPlace(method, NONE, at, None))
                if at == 0:
                    continue
            if kind in ("lambda", "alpha"):
                points += [PointPlace(method, name, at, None) for name in alone]
            points += [
                PointPlace(method, name, at, seed) for seed in request.draws for name in hungry
            ]
    return points


def weights(models: FigureModels, place: PointPlace, ranking: Sequence[str]) -> State:
    """The model of one point. `ranking`: layers from the most sensitive one on, for alpha."""
    kind, at = models.request.kind, place.at
    state: State = models.plain_merge(place.method)
    if kind == "lambda" and at is not None:
        state = models.scale(state, at)
    if place.calibration == NONE:
        return state
    samples = int(at) if kind == "samples" and at is not None else None
    sensitive = tuple(ranking[: int(at or 0)]) if kind == "alpha" else None
    return models.calibration(
        state, place.calibration, place.seed, samples=samples, sensitive=sensitive
    ).state_dict()


def score_points(
    models: FigureModels, missing: Sequence[PointPlace], ranking: Sequence[str]
) -> Iterator[tuple[ScorePoint, dict[str, Any]]]:
    """Each missing point in turn, and what was told of the tasks; those of one draw at once."""
    for _, members in groupby(missing, key=lambda place: (place.method, place.at, place.seed)):
        group = list(members)
        states = [weights(models, place, ranking) for place in group]
        for place, scores in zip(group, models.scores(states), strict=True):
            tasks = tuple(
                TaskNote(task=task.task, metric=task.metric, rows=task.count, title=task.title)
                for task in scores.tasks
            )
            facts = {"tasks": tasks, "error": error_of(scores), "experts": experts_of(scores)}
            yield point_of(place, scores), facts


def point_of(place: PointPlace, scores: Scores) -> ScorePoint:
    """The numbers of one point."""
    # Of several metrics of one task the first counts, as in the mean.
    by_task = {task.task: task.score for task in reversed(scores.tasks)}
    mean = scores.mean
    if mean is None:
        mean = math.exp(
            sum(math.log(max(score, TINY)) for score in by_task.values()) / len(by_task)
        )
    return ScorePoint(**place._asdict(), mean=mean, scores=by_task)


def factors(models: FigureModels, place: PointPlace) -> CalibrationFactors:
    """What one calibration finds for each layer."""
    method, calibration, _, seed = place
    result = models.calibration(models.plain_merge(method), calibration, seed)
    return CalibrationFactors(
        method=method, calibration=calibration, seed=seed, layers=layers_of(result)
    )


def layers_of(result: Result) -> tuple[LayerFactor, ...]:
    """Each calibrated layer's factor; a bias that follows its weight is not told twice."""
    ends = ("sensitive", "xi", "xi_free", "xi_min", "xi_max")
    keys = ("name", "kind", "calibrated_by", *ends)
    records = [
        LayerAccount(**{key: getattr(record, key) for key in keys})
        for record in result.records
        if record.calibrated_by
    ]
    return tuple(
        LayerFactor(layer=module.name, **{end: getattr(module.lead, end) for end in ends})
        for module in modules_of(in_model_order(records))
    )


def rank(inputs: FigureInputs, request: FigureSpec) -> Sensitivity:
    """The layers' sensitivity by the drift of the last features, on samples of all tasks."""
    inputs.check_samples()
    return sensitivity(
        base=inputs.base,
        experts=inputs.experts,
        data=[call for own in inputs.samples(request.samples, 0).values() for call in own],
        mode=request.mode,  # type: ignore[arg-type]
        alpha=request.alpha,
        model=inputs.entry.model.class_,
        build=inputs.entry.model.build,
        threads=request.machine.threads,
        device=request.machine.device,
        progress=request.machine.progress,
    )


def harms(ranking: Sensitivity) -> tuple[LayerHarm, ...]:
    """The same as a document holds it, in the order of the model."""
    return tuple(LayerHarm(layer=name, worse=worse) for name, worse in ranking.layers.items())


def order_of(layers: Sequence[LayerHarm]) -> LayerOrder:
    """The layers that do harm, worst first."""
    worst = sorted(layers, key=lambda layer: -layer.worse)
    return LayerOrder(tuple(layer.layer for layer in worst if layer.worse > 0), len(layers))


def with_worst(document: Ranking) -> Ranking:
    """With the `alpha` most sensitive layers listed."""
    worst = order_of(document.layers).layers
    return document.model_copy(update={"sensitive": worst[: document.alpha]})


def read_ranking(path: Path, alpha: int = 10) -> Ranking:
    """A file of `magmerge sensitivity` as a figure's numbers; MagmergeError for any other."""
    content = read_json(path)
    if not isinstance(content, dict) or "layers" not in content:
        raise ParameterError(
            "it does not tell each layer's sensitivity",
            source=path,
            remedy="give the file that `magmerge sensitivity` wrote",
        )
    facts = {key: content[key] for key in ("score", "mode", "factor", "layers") if key in content}
    facts |= {"magmerge": __version__, "kind": "sensitivity", "digest": "", "suite": ""}
    facts |= {"settings": {"sensitive": str(path)}, "alpha": alpha, "rows": content.get("samples")}
    return with_worst(parse(Ranking, facts, str(path)))


def read_order(path: Path) -> LayerOrder:
    """The layers' order from a ranking, or from any list that `--sensitive` takes."""
    listed = read_sensitive(path)
    if path.suffix == ".json" and "layers" in read_json(path):
        return order_of(read_ranking(path).layers)
    return LayerOrder(listed, len(listed))
