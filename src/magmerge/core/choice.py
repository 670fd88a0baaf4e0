"""`auto` as a method and as a calibrator: what it chooses among, and by what rules. All of it is
pure: from what was measured of weights or of outputs to a recipe that names what it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from magmerge.core.errors import MagmergeError, ParameterError, UnknownNameError
from magmerge.core.parameters import BOUND
from magmerge.core.recipe import Calibration, Recipe
from magmerge.core.validation import AUTO

LOW_RANK = 0.25
"""Share of its directions below which a task vector is one of low rank. Measured: adapters of rank
16 on MiniLM 0.05; fully fine-tuned experts 0.67 (text) and 0.79 (vision-efficientnet).
"""
ALIKE = 0.5
"""Mean cosine from which on experts learnt about the same: a sum would count that K times. Not
measured: in all suites it is below 0.04.
"""
BASE, AVERAGE, AS_IT_IS = BRAKES = ("base", "average", "no calibration")
"""The candidates that no other may be worse than: of merges, and of calibrations of one."""


class Evidence(NamedTuple):
    """What weights tell: how many experts there are; the mean share of its directions that holds
    99 % of a task vector's square; the mean cosine of two experts' task vectors; and the median of
    |D| / |W_0|, each over the `layers` matrices that were looked at.
    """

    experts: int
    directions: float
    cosine: float
    distance: float
    layers: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merge that may be chosen. Without a method it is the merge, or the method, of the recipe;
    calibrators have their defaults.
    """

    method: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    calibrate: tuple[str, ...] = ()
    sampled: bool = False

    @property
    def label(self) -> str:
        """What it is called: base, average, tsv_m + svc."""
        if self.params == {"lambda": 0.0}:
            return BASE
        first = [self.method] if self.method else []
        return " + ".join([*first, *self.calibrate]) or AS_IT_IS


KEPT = Candidate("task_arithmetic", {"lambda": 0.0})
"""The base as it is."""
MEAN = Candidate("average")
WHOLE = Candidate("task_arithmetic", {"lambda": 1.0})
"""The only expert as it is."""
DIRECTED = Candidate("tsv_m")
SHARED = Candidate("knots")
UNDISTURBED = Candidate("wudi", {"filter": "tikhonov", "ridge": 0.1})
SOLVED = Candidate("tsv_m", calibrate=("regression",))
FROM_SAMPLES = ("regression", "regression_samples")
SEEN = Candidate("tsv_m", calibrate=FROM_SAMPLES, sampled=True)
SEEN_AFTER = Candidate(calibrate=FROM_SAMPLES, sampled=True)
NOTHING = Candidate()
RAISED = Candidate(calibrate=("svc",))
MERGED = "model"
"""What a merge that is taken as it is is called in its recipe."""


def check_auto(recipe: Recipe) -> None:
    """Errors where nothing can be chosen: without a base, or beside what speaks of one choice."""
    name = "method" if recipe.method == AUTO else "calibrate"
    if recipe.base is None:
        raise MagmergeError(
            f"{name} auto compares merges with the base, and none is given",
            remedy="name the base with --base (base=, base: in a recipe), or name the "
            f"{name} itself: knots or tsv_m for adapters without a base",
        )
    if recipe.statistics:
        raise ParameterError(
            f"{name} auto looks at samples themselves, and statistics are given",
            remedy="give samples (--data), or name the calibration: --calibrate regmean",
        )
    if len(recipe.calibrate) > 1 and any(c.method == AUTO for c in recipe.calibrate):
        raise ParameterError(
            "calibrate auto chooses all of the calibration, and others are named beside it",
            remedy="leave it alone, or name every calibrator yourself",
        )
    if recipe.slices or recipe.moe is not None:
        raise ParameterError(
            f"{name} auto chooses one merge of whole models, and this recipe puts blocks together",
            remedy=f"name the {name}",
        )


def check_no_params(params: Mapping[str, Any]) -> None:
    """UnknownNameError for a parameter of auto, which has none."""
    for name in params:
        raise UnknownNameError(
            f"auto has no parameter {name!r}: it sets those of what it chooses",
            remedy=f"drop {name}, or name the method or calibrator that it is for",
        )


def by_weights(recipe: Recipe, evidence: Evidence) -> tuple[Candidate, str]:
    """What weights alone choose, and why."""
    if recipe.method not in (AUTO, None) or recipe.merged is not None:
        return _calibration_by_weights(recipe, evidence)
    told = (
        f"task vectors use {evidence.directions:.0%} of their directions, have a mean cosine of "
        f"{evidence.cosine:.2f} and are {evidence.distance:.1%} of the weights"
    )
    if not evidence.layers:
        return MEAN, "no matrix that all experts changed is large enough to tell anything"
    if evidence.experts == 1:
        return WHOLE, "there is one expert: it is taken in full"
    if evidence.cosine >= ALIKE:
        return MEAN, f"{told}: experts that learnt the same are averaged"
    if evidence.directions < LOW_RANK:
        return DIRECTED, f"{told}: of low rank, as adapters are"
    best = UNDISTURBED if _names_calibration(recipe) else SOLVED
    return best, f"{told}: of high rank, as fully fine-tuned experts are"


def _calibration_by_weights(recipe: Recipe, evidence: Evidence) -> tuple[Candidate, str]:
    """The same of a merge whose method is given, or that exists."""
    if recipe.method == "task_arithmetic" and evidence.experts > 1:
        return RAISED, "svc made task_arithmetic better wherever it was measured"
    what = recipe.method or "a merge that exists"
    return NOTHING, f"no calibration by weights alone is known to make {what} better here"


def candidates(recipe: Recipe, sampled: bool) -> tuple[Candidate, ...]:
    """All that may be chosen: by weights alone, or with samples; each once."""
    if recipe.method != AUTO:
        return (NOTHING, RAISED, SEEN_AFTER) if sampled else (NOTHING, RAISED)
    named = _names_calibration(recipe)
    if not sampled:
        return WHOLE, MEAN, DIRECTED, UNDISTURBED if named else SOLVED
    own = (KEPT, MEAN, DIRECTED, SHARED, WHOLE)
    return (*own, UNDISTURBED) if named else (*own, SOLVED, SEEN)


def _names_calibration(recipe: Recipe) -> bool:
    return any(c.method != AUTO for c in recipe.calibrate)


def fit(recipe: Recipe, sampled: bool, evidence: Evidence) -> tuple[Candidate, ...]:
    """Those of them that are compared on rows: what weights choose comes first."""
    first, _ = by_weights(recipe, evidence)
    every = [one for one in candidates(recipe, sampled) if one != first]
    if evidence.experts > 1:
        every = [one for one in every if one != WHOLE]
    return (first, *every)


def chosen(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe with its choice made; without its samples where nothing looks at them.

    A merge that exists and gets no calibration is taken as it is, as the only model of its recipe.
    """
    kept = tuple(c for c in recipe.calibrate if c.method != AUTO)
    if recipe.merged is not None and not candidate.calibrate:
        weights = recipe.weights
        if isinstance(weights, dict):
            weights = {MERGED: weights["merged"]} if "merged" in weights else None
        experts = {MERGED: recipe.merged}
        return Recipe(name=recipe.name, experts=experts, weights=weights, output=recipe.output)
    changes: dict[str, Any] = {}
    if recipe.method == AUTO:
        changes |= {"method": candidate.method, "params": dict(candidate.params)}
    if not kept:
        kept = tuple(Calibration(method=name) for name in candidate.calibrate)
        # Candidates are compared with the merge alone: the best is what is chosen.
        changes |= {"samples": recipe.samples if candidate.sampled else None, "keep_best": False}
    if not kept:
        changes |= {"skip": (), "sensitive": (), "gate": "on", "bound": BOUND}
    return recipe.model_copy(update={**changes, "calibrate": kept})


def nearest(losses: Mapping[str, Sequence[float]]) -> str:
    """The label of the candidate whose outputs are nearest the experts', from the losses of each on
    the same rows; the first is what weights choose.

    A candidate that is not finite on one of them is the farthest. Another takes the first's place
    only where it is nearer in the mean by more than the standard error of the difference. Where
    one of BRAKES is nearer in the mean than what was found so, the nearest of them is kept.
    """
    order = sorted(losses, key=lambda label: mean(losses[label]))
    first = next(iter(losses))
    best = next((label for label in order if _nearer(losses[label], losses[first])), first)
    brake = next((label for label in order if label in BRAKES), best)
    return brake if mean(losses[brake]) < mean(losses[best]) else best


def compared(losses: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The losses on those rows that tell something: where those of all BRAKES are finite."""
    brakes = [rows for label, rows in losses.items() if label in BRAKES]
    tell = [all(map(math.isfinite, row)) for row in zip(*brakes, strict=True)]
    return {
        label: [loss for loss, counts in zip(rows, tell, strict=True) if counts]
        for label, rows in losses.items()
    }


def mean(rows: Sequence[float]) -> float:
    """The mean of losses; infinity without any, and where one is not finite."""
    finite = all(map(math.isfinite, rows))
    return math.fsum(rows) / len(rows) if rows and finite else math.inf


def _nearer(rows: Sequence[float], than: Sequence[float]) -> bool:
    """Whether losses are lower by more than the standard error of their mean difference."""
    if mean(rows) == math.inf or mean(than) == math.inf:
        return mean(rows) < mean(than)
    gains = [other - own for own, other in zip(rows, than, strict=True)]
    gain = math.fsum(gains) / len(gains)
    if len(gains) == 1:
        return gain > 0
    spread = math.fsum((one - gain) ** 2 for one in gains) / (len(gains) - 1)
    return gain > math.sqrt(spread / len(gains))
