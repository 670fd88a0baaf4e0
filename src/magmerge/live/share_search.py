"""How much of a calibration is kept: what brings the model nearest to its experts on other rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from magmerge.core.stacks import depths
from magmerge.data.halves import Halves
from magmerge.live.label_free import MEASURES, means

SHARES = (1.0, 0.5, 0.0)
"""How much of the logarithm of a layer's factor may be kept: all, half, nothing."""
GROUPS = 4
"""Into how many parts, by depth, the layers are put."""
WORDS = {1.0: "all", 0.5: "half (square roots)", 0.0: "nothing"}
VOID = (
    "the calibration was not checked, and all of it is kept: on samples kept aside the "
    "model's output has no finite logits or features that tell its experts from the base"
)
Shares = tuple[float, ...]
Losses = Callable[[Shares], Tensor]
"""From a share for each group to how far the model is from its experts, for each row."""


def groups_of(names: Collection[str]) -> list[list[str]]:
    """The tensors by their depth in the model, in at most GROUPS groups of which none is empty."""
    depth = depths(names)
    groups: list[list[str]] = [[] for _ in range(GROUPS)]
    for name in names:
        groups[min(int(GROUPS * depth[name]), GROUPS - 1)].append(name)
    return [group for group in groups if group]


def search(groups: int, losses: Losses) -> dict[Shares, Tensor]:
    """The losses of each choice of shares that was tried; the last is the one to keep.

    Rows count whose loss is finite without the calibration; a model that breaks on one of them is
    the farthest. Where no row counts all is kept.

    One share for all groups first: the nearest to the experts in the mean, of equal ones the
    larger. Then each group by itself, which takes another share only where the mean difference is
    larger than its standard error over the rows, so that chance does not choose.
    """
    every = {(share,) * groups: losses((share,) * groups) for share in SHARES}
    known = every[(0.0,) * groups].isfinite()

    def counted(rows: Tensor) -> Tensor:
        return rows[known].nan_to_num(nan=torch.inf, posinf=torch.inf)

    tried = {shares: counted(rows) for shares, rows in every.items()}
    best = min(tried, key=lambda shares: float(tried[shares].mean()))
    for group in range(groups) if groups > 1 else ():
        for share in SHARES:
            other = (*best[:group], share, *best[group + 1 :])
            if other not in tried:
                tried[other] = counted(losses(other))
            if _nearer(tried[other], tried[best]):
                best = other
    tried[best] = tried.pop(best)
    return tried


def _nearer(losses: Tensor, than: Tensor) -> bool:
    """Whether losses are lower by more than the standard error of their mean difference."""
    difference = (than - losses).double()
    spread = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return bool(difference.mean() > spread)


def checked(
    names: Collection[str], measures: Callable[[Mapping[str, float]], Tensor], halved: Halves
) -> tuple[dict[str, float], dict[str, Any]]:
    """Search how much each tensor keeps of its factors; that by tensor, and an account of it.

    `measures` gives those of label_free, [rows, measures], of the model with the shares it is told;
    it is told last those that are kept.
    """
    groups, found = groups_of(names), dict[Shares, Tensor]()

    def shares_of(choice: Shares) -> dict[str, float]:
        return {name: share for own, share in zip(groups, choice, strict=True) for name in own}

    none = (0.0,) * len(groups)
    found[none] = measures(shares_of(none))
    measure = measure_of(found[none])

    def losses(choice: Shares) -> Tensor:
        if choice not in found:
            found[choice] = measures(shares_of(choice))
        return losses_of(found[choice], measure)

    best = [*search(len(groups), losses)][-1]
    shares = shares_of(best)
    measures(shares)
    return shares, account_of(groups, found, best, halved)


def account_of(
    groups: Sequence[Sequence[str]], found: Mapping[Shares, Tensor], best: Shares, halved: Halves
) -> dict[str, Any]:
    """What the record tells of a check, with a sentence for people."""
    none = (0.0,) * len(best)
    measure = measure_of(found[none])
    rows = {name: sum(call.rows for call in calls) for name, calls in halved.aside.items()}
    means_of = {shares: means(rows) for shares, rows in found.items()}
    before, full, kept = (means_of[shares][measure] for shares in (none, (1.0,) * len(best), best))
    told = bool(losses_of(found[none], measure).isfinite().any())
    text = _sentence(measure, (before, full, kept), groups, best) if told else VOID
    notes = [text] if not told or set(best) != {1.0} else []
    if halved.shared:
        notes.append(
            f"the one sample of {', '.join(halved.shared)} both tells the factors and checks them: "
            "give two or more, so that the check sees others"
        )
    return {
        "measure": measure,
        "rows": rows,
        "shared": list(halved.shared),
        "before": before,
        "full": full,
        "kept": kept,
        "groups": [
            {"layers": len(own), "first": own[0], "last": own[-1], "share": share}
            for own, share in zip(groups, best, strict=True)
        ],
        "candidates": [{"shares": list(shares), **row} for shares, row in means_of.items()],
        "text": text,
        "notes": notes,
    }


def _sentence(
    measure: str,
    values: tuple[float | None, float | None, float | None],
    groups: Sequence[Sequence[str]],
    best: Shares,
) -> str:
    before, full, kept = ("unknown" if value is None else f"{value:.3g}" for value in values)
    head = f"on samples kept aside the {measure} to the experts was {before} before the calibration"
    if set(best) == {1.0}:
        return f"{head} and is {kept} after it: all of it is kept"
    if set(best) == {0.0}:
        return f"{head} and {full} after it: the calibration is left out"
    parts = ", ".join(
        f"{WORDS[share]} in {len(own)} tensors" for own, share in zip(groups, best, strict=True)
    )
    return (
        f"{head} and {full} after it: of the factors, by depth, is kept {parts}, which makes {kept}"
    )


def measure_of(rows: Tensor) -> str:
    """What candidates are compared by: the divergence of outputs where the model has logits, else
    the cosine of the changes in features.

    The feature error was the judge at first. It has a length in it, and ordered the merges of the
    suite lora-text the wrong way round (benchmarks.label_free), so it was dropped for the cosine
    after looking at that suite, which is no independent test of the cosine therefore. On the suite
    text it kept 1/2, 0, 0, 0 of FSC on the average (+0.2 +-0.9 points) and nothing on
    task_arithmetic (0.0). No run on a real suite has yet shown the check brake a merge that FSC
    harms.
    """
    has_logits = bool(rows[:, MEASURES.index("kl")].isfinite().any())
    return "kl" if has_logits else "cosine"


def losses_of(rows: Tensor, measure: str) -> Tensor:
    """How far a model is from its experts on each row by this measure: the less the nearer.

    NaN for a row that tells nothing: the expert leaves its features as they are, or something is
    not finite. One whose features this model leaves as the base has them has cosine 0.
    """
    column = rows[:, MEASURES.index(measure)]
    if measure == "kl":
        return column
    return 1 - column.where(rows[:, MEASURES.index("norm ratio")] != 0, 0.0)
