"""The better of a merge and its calibration, where the recipe has that kept."""

from __future__ import annotations

from dataclasses import replace

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.recipe import Recipe
from magmerge.engine.job import Findings


def check_keep_best(recipe: Recipe) -> None:
    """ParameterError where nothing could tell which is the better one."""
    if recipe.keep_best and recipe.samples is None:
        raise ParameterError(
            "only a calibration from samples can tell which model is the best",
            source="keep_best",
            remedy="add --calibrate fsc --data NAME=FILE, or drop --keep-best (keep_best=)",
        )


def best_of(findings: Findings) -> Findings:
    """The findings with nothing of the calibration where the merge is better without it.

    MagmergeError where the base is better than both, or where no held-out rows have told.
    """
    verdict = findings.verdict
    best = verdict.get("best")
    if best == "calibrated":
        return findings
    if best == "merge":
        # Statistics were taken of the calibrated model.
        return replace(findings, left_out=True, statistics={}, uncovered=())
    if best == "base":
        raise MagmergeError(
            f"nothing was written: {verdict['text']}",
            source="--keep-best",
            remedy="use the base as it is, merge with a smaller lambda or by another method, or "
            "drop --keep-best (keep_best=) to have the calibrated merge all the same",
        )
    raise MagmergeError(
        str(verdict.get("text", "no calibration was measured")),
        source="--keep-best",
        remedy="drop --keep-best (keep_best=), or do what is said",
    )
