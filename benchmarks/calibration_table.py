"""The Markdown tables of benchmarks/calibration.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TITLES = {
    "none": "none",
    "tuned": "tuned lambda",
    "wsc": "wsc",
    "fsc 1": "fsc, 1",
    "fsc 8": "fsc, 8",
    "dsc 8": "dsc, 8",
    "global": "global factor",
    "shuffled": "shuffled",
    "wsc list": "wsc, list",
    "fsc 8 list": "fsc, list",
    "dsc 8 list": "dsc, list",
}
Scores = Mapping[str, float]


def markdown(found: Mapping[str, Any]) -> str:
    """One table of mean accuracy, and one of perplexity if the suite has any."""
    lower = {name for name in found["rows"] if name.endswith("-perplexity")}
    accuracies = [name for name in found["rows"] if name not in lower]
    rows = found["rows"]
    parts = [
        f"### {found['suite']}: mean test accuracy over {len(accuracies)} tasks, in %",
        "",
        f"base {100 * _mean(accuracies)(found['base']):.1f}, "
        f"experts {100 * _mean(accuracies)(found['experts']):.1f}, each on its own task. "
        f"95 % sampling error of a mean: about ± {100 * _error(found, accuracies, rows):.1f}. "
        f"In brackets: least and greatest of {found['seeds']} seeds.",
        "",
        *_table(found, _mean(accuracies), lambda value: f"{100 * value:.1f}"),
    ]
    if lower:
        parts += [
            "",
            f"### {found['suite']}: perplexity, geometric mean over {len(lower)} tasks",
            "",
            f"base {_geometric(lower)(found['base']):.2f}, "
            f"experts {_geometric(lower)(found['experts']):.2f}",
            "",
            *_table(found, _geometric(lower), lambda value: f"{value:.2f}"),
        ]
    return "\n".join([*parts, ""])


def _table(
    found: Mapping[str, Any], mean: Callable[[Scores], float], spoken: Callable[[float], str]
) -> list[str]:
    lines = [
        "| merge | " + " | ".join(TITLES.values()) + " | xi of fsc, 8 | tuned factor |",
        "|---|" + "---|" * (len(TITLES) + 2),
    ]
    for method, about in found["methods"].items():
        cells = [_cell([mean(one) for one in about["scores"][v]], spoken) for v in TITLES]
        xi, best = about["mean xi"]["fsc 8"], about["tuned factor"]
        lines.append(f"| `{method}` | " + " | ".join(cells) + f" | {xi:.2f} | {best} |")
    return lines


def _cell(values: Sequence[float], spoken: Callable[[float], str]) -> str:
    centre = spoken(statistics.mean(values))
    low, high = spoken(min(values)), spoken(max(values))
    return centre if len(values) == 1 or low == high else f"{centre} [{low}, {high}]"


def _mean(names: Sequence[str]) -> Callable[[Scores], float]:
    return lambda scores: statistics.mean(scores[name] for name in names)


def _geometric(names: set[str]) -> Callable[[Scores], float]:
    return lambda scores: math.exp(statistics.mean(math.log(scores[n]) for n in sorted(names)))


def _error(found: Mapping[str, Any], names: Sequence[str], rows: Mapping[str, int]) -> float:
    """Half of a 95 % interval of the experts' mean accuracy, from the number of test rows."""
    experts = found["experts"]
    variance = sum(experts[name] * (1 - experts[name]) / rows[name] for name in names)
    return 1.96 * math.sqrt(variance) / len(names)
