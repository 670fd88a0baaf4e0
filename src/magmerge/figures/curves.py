"""Points of the figures of scores: what each of them is, and its measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from magmerge.errors import ParameterError
from magmerge.evaluation.scores import Scores
from magmerge.figures.asking import Asked
from magmerge.figures.document import NONE, Point, TaskNote
from magmerge.figures.layered import Order
from magmerge.figures.measuring import Bench, State, draws

TINY = 1e-9
"""Least value that a geometric mean takes."""


class Place(NamedTuple):
    """One point to be measured; `at` and `seed` are None where they do not matter."""

    method: str
    calibration: str
    at: float | None
    seed: int | None


def places(asked: Asked) -> list[Place]:
    """All points of a figure; those of one draw follow each other.

    A merge alone changes with lambda only. WSC changes with lambda, and with alpha; it draws
    nothing. FSC and DSC change with everything. At lambda 0 there is nothing to calibrate.
    """
    kind = asked.kind
    alone = [one for one in asked.calibrations if not draws(one)]
    hungry = [one for one in asked.calibrations if draws(one)]
    found: list[Place] = []
    for method in asked.methods:
        if kind != "lambda":
            found.append(Place(method, NONE, None, None))
        if kind == "samples":
            found += [Place(method, name, None, None) for name in alone]
        for at in asked.values:
            if kind == "lambda":
                found.append(Place(method, NONE, at, None))
            if kind == "lambda" and at == 0:
                continue
            if kind != "samples":
                found += [Place(method, name, at, None) for name in alone]
            for seed in range(asked.seeds):
                found += [Place(method, name, at, seed) for name in hungry]
    return found


def weights(bench: Bench, asked: Asked, place: Place, ranking: Sequence[str]) -> State:
    """The model of one point. `ranking`: layers from the most sensitive one on, for alpha."""
    state: State = bench.merged(place.method)
    samples, sensitive = asked.samples, bench.how.sensitive
    if asked.kind == "lambda" and place.at is not None:
        state = bench.scaled(state, place.at)
    if asked.kind == "samples" and place.at is not None:
        samples = int(place.at)
    if asked.kind == "alpha":
        sensitive = tuple(ranking[: int(place.at or 0)])
    if place.calibration == NONE:
        return state
    return bench.calibrated(
        state, place.calibration, samples=samples, seed=place.seed or 0, sensitive=sensitive
    ).state_dict()


def measured(
    bench: Bench, asked: Asked, missing: Sequence[Place], ranking: Sequence[str]
) -> Iterator[tuple[Point, Scores]]:
    """Each missing point in turn, with all that its measuring told; those of one draw at once."""
    for _, members in groupby(missing, key=lambda place: (place.method, place.at, place.seed)):
        group = list(members)
        states = [weights(bench, asked, place, ranking) for place in group]
        for place, scores in zip(group, bench.scores(states), strict=True):
            yield point_of(place, scores), scores


def point_of(place: Place, scores: Scores) -> Point:
    """The numbers of one point."""
    # Of several metrics of one task the first counts, as in the mean.
    found = {one.task: one.score for one in reversed(scores.tasks)}
    mean = scores.mean
    if mean is None:
        mean = math.exp(sum(math.log(max(one, TINY)) for one in found.values()) / len(found))
    return Point(
        method=place.method,
        calibration=place.calibration,
        at=place.at,
        seed=place.seed,
        mean=mean,
        scores=found,
    )


def notes_of(scores: Scores) -> tuple[TaskNote, ...]:
    """The tasks that were measured."""
    return tuple(
        TaskNote(task=one.task, metric=one.metric, rows=one.count, title=one.title)
        for one in scores.tasks
    )


def check_alpha(values: Sequence[float], order: Order) -> None:
    """ParameterError where more layers are wanted than are ranked."""
    if values and max(values) > order.ranked:
        raise ParameterError(
            f"{max(values):g} sensitive layers are wanted, and {order.ranked} are ranked",
            remedy=f"give numbers up to {order.ranked}, or a longer list with --sensitive",
        )
