"""What a calibration by weights alone came to: lengths of task vectors beside the experts'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from magmerge.core.types import LayerRecord

AWAY_BY = 0.01
"""Mean change of the logarithm's distance from 0 that is told as going away, or coming nearer."""
UNKNOWN = "whether the tasks gain by it only samples tell (--calibrate fsc --data NAME=FILE)"
AWAY = (
    "the calibration takes lengths away from the experts': the merge without it may be the better "
    "one, which samples tell (--calibrate fsc --data NAME=FILE)"
)


def norm_verdict(records: Sequence[LayerRecord]) -> dict[str, Any]:
    """How far each calibrated layer's norm is from the experts' mean norm, before and after.

    `before` and `after` are geometric means of the quotient, `nearer` and `farther` count layers by
    the distance of its logarithm from 0. Empty where no layer has the three norms.
    """
    pairs = [pair for record in records if (pair := _quotients(record)) is not None]
    if not pairs:
        return {}
    before, after = ([math.log(pair[end]) for pair in pairs] for end in (0, 1))
    nearer = sum(abs(b) < abs(a) * (1 - 1e-6) for a, b in zip(before, after, strict=True))
    farther = sum(abs(b) > abs(a) * (1 + 1e-6) for a, b in zip(before, after, strict=True))
    growth = (math.fsum(map(abs, after)) - math.fsum(map(abs, before))) / len(pairs)
    away = growth > AWAY_BY
    first, last = (math.exp(math.fsum(logs) / len(logs)) for logs in (before, after))
    count = f"{len(pairs)} layer{'' if len(pairs) == 1 else 's'}"
    text = (
        f"by weights alone: the merge's change of {count} was {first:.3g} times as long as the "
        f"experts' and is {last:.3g} times as long now; {nearer} came nearer to 1, {farther} went "
        "away"
    )
    return {
        "judge": "norms",
        "layers": len(pairs),
        "before": first,
        "after": last,
        "nearer": nearer,
        "farther": farther,
        "best": "merge" if away else "calibrated",
        "calibrated_to": {"merge": "worse" if away else "better" if growth < -AWAY_BY else "even"},
        "text": text,
        "next": AWAY if away else UNKNOWN,
    }


def _quotients(record: LayerRecord) -> tuple[float, float] | None:
    """The norms of a calibrated layer before and after, over the experts'; None where one is not
    a positive number.
    """
    own = (record.norm_before, record.norm_after, record.norm_experts)
    if not record.calibrated_by or not all(n is not None and 0 < n < math.inf for n in own):
        return None
    before, after, experts = (float(norm or 0.0) for norm in own)
    return before / experts, after / experts
