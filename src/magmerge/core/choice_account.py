"""What is told of a choice that `auto` made: for the record, with a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.core.choice import BRAKES, Candidate, Evidence, mean


class Comparison(NamedTuple):
    """What candidates were compared by, the losses of each, as `nearest` has them, how many rows of
    each expert were kept aside, and why candidates were left out that could not be run.
    """

    measure: str
    losses: Mapping[str, Sequence[float]]
    rows: Mapping[str, int]
    left_out: Mapping[str, str]


def told(evidence: Evidence, winner: Candidate, reason: str) -> dict[str, Any]:
    """A choice by weights alone."""
    account = {"chosen": winner.label, "weights": evidence._asdict()}
    return {**account, "text": f"auto chose {winner.label} by weights alone: {reason}"}


def told_of_rows(
    evidence: Evidence, winner: Candidate, first: Candidate, reason: str, compared: Comparison
) -> dict[str, Any]:
    """A choice by rows kept aside; `first` is what weights alone choose."""
    means = {label: mean(own) for label, own in compared.losses.items()}
    return {
        **told(evidence, winner, reason),
        "by weights": first.label,
        "measure": compared.measure,
        "rows": dict(compared.rows),
        "candidates": [
            {"merge": label, "loss": loss if math.isfinite(loss) else None}
            for label, loss in means.items()
        ],
        "left out": dict(compared.left_out),
        "text": _sentence(winner, first, reason, compared, means),
    }


def _sentence(
    winner: Candidate,
    first: Candidate,
    reason: str,
    compared: Comparison,
    means: Mapping[str, float],
) -> str:
    if not any(compared.losses.values()):
        return (
            f"auto chose {winner.label} by weights alone: {reason}; the rows kept aside are too "
            "few, or the model's output has neither logits nor features, to compare candidates on"
        )
    others = ", ".join(
        f"{label} {spoken(loss)}" for label, loss in means.items() if label != winner.label
    )
    ending = ""
    if winner.label in BRAKES and winner != first:
        ending += "; nothing else came as near as what is kept"
    for label, why in compared.left_out.items():
        ending += f"; {label} is left out: {why}"
    return (
        f"auto chose {winner.label}: on {sum(compared.rows.values())} rows kept aside its "
        f"{compared.measure} to the experts is {spoken(means[winner.label])} ({others}); weights "
        f"alone would choose {first.label} ({reason}){ending}"
    )


def spoken(loss: float) -> str:
    """A loss in words."""
    return f"{loss:.3g}" if math.isfinite(loss) else "not finite"
