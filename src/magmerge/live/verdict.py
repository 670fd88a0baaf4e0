"""Did it help? Base, merge and calibrated model beside the experts, on rows that nothing was
calibrated with, and without labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magmerge.data.rows import Inputs
from magmerge.live.label_free import Answer, means
from magmerge.live.share_search import losses_of, measure_of

ERRORS = 2.0
"""Standard errors of a mean difference beyond which it is told as one."""
LEAST = 0.005
"""Share of the other loss that a difference must have: a smaller one is of no use."""
NAMES = {
    "perplexity": "perplexity",
    "kl": "divergence (KL) from the experts",
    "cosine": "cosine to the experts' changes",
}
"""What a model is judged by, as texts call it."""
WORDS = {"better": "better than", "worse": "worse than", "even": "about as good as"}
BETTER = {
    "merge": "the merge without the calibration is the better one: leave --calibrate out, or let "
    "--keep-best take it",
    "base": "the base is the better one on these rows: merge less of the experts (a smaller "
    "lambda), or by another method; with --keep-best nothing is written then",
}
"""What to do where another model than the calibrated one is the best."""


class Seen(NamedTuple):
    """What was seen of one model, row by row: the measures of `label_free` [rows, measures], and
    of a language model [rows, 2] the sum of its losses over the tokens of the row, and how many.
    """

    measures: Float[Tensor, "rows measures"]
    tokens: Float[Tensor, "rows two"]


def predicts_tokens(model: nn.Module) -> bool:
    """Whether the model's logits are of the token after each: it is a causal language model."""
    generates, config = getattr(model, "can_generate", None), getattr(model, "config", None)
    encodes = bool(getattr(config, "is_encoder_decoder", False))
    return callable(generates) and bool(generates()) and not encodes


def token_losses(answer: Answer | None, call: Inputs) -> Float[Tensor, "rows two"]:
    """The sum of -log p over the tokens of each row but the first, and their number, as float64.

    Padding does not count. Zeros where the logits are not of the tokens.
    """
    losses = torch.zeros(call.rows, 2, dtype=torch.float64)
    tokens, logits = call.kwargs.get("input_ids"), None if answer is None else answer.logits
    if not isinstance(tokens, Tensor) or logits is None or logits.shape[:-1] != tokens.shape:
        return losses
    mask = call.kwargs.get("attention_mask")
    kept = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    for row, (own, ids, known) in enumerate(zip(logits, tokens.cpu(), kept.cpu(), strict=True)):
        told = own[:-1].double().log_softmax(dim=-1).gather(-1, ids[1:, None]).squeeze(-1)
        counted = known[1:] & known[:-1]
        losses[row] = torch.stack([-told[counted].sum(), counted.sum().double()])
    return losses


def verdict_of(
    seen: Mapping[str, Seen], rows: Mapping[str, int], shared: Sequence[str] = ()
) -> dict[str, Any]:
    """What the record tells of a calibration, with a sentence for people.

    `seen` holds base, merge, calibrated and expert (each expert on its own rows), `rows` how many
    rows each expert has, in the order of the rows, and `shared` the experts whose only row the
    calibration has seen too.
    """
    judge = _judge(seen)
    losses = {name: _losses(one, judge) for name, one in seen.items()}
    result = {
        "merge": _compared(losses["calibrated"], losses["merge"]),
        "base": _compared(losses["calibrated"], losses["base"]),
        "merge to base": _compared(losses["merge"], losses["base"]),
    }
    best = "merge" if result["merge"] == "worse" else "calibrated"
    if result["base" if best == "calibrated" else "merge to base"] == "worse":
        best = "base"
    by_expert, first = {}, 0
    for name, count in rows.items():
        own = slice(first, first + count)
        by_expert[name] = {key: _told(_part(one, own)) for key, one in seen.items()}
        first += count
    models = {name: _told(one) for name, one in seen.items()}
    text = _text(judge, models, result, rows)
    if shared:
        text += f" (the one row of {', '.join(shared)} is in the calibration too)"
    return {
        "judge": judge,
        "rows": dict(rows),
        "best": best,
        "calibrated_to": {"merge": result["merge"], "base": result["base"]},
        "merge_to_base": result["merge to base"],
        "models": models,
        "experts": by_expert,
        "text": text,
        "next": BETTER.get(best, ""),
        "notes": [f"{text}: {BETTER[best]}"] if best in BETTER else [],
    }


def no_verdict(held: Mapping[str, Any]) -> dict[str, Any]:
    """What the record tells where nothing was looked at: there were no further rows, or no memory
    for what models make of them.
    """
    reason = "what models make of held-out rows does not fit into --memory"
    if not held:
        reason = "no source has further rows that can be read: give files with more of them"
    return {"text": f"whether the calibration helped is not known: {reason}"}


def _judge(seen: Mapping[str, Seen]) -> str:
    """Perplexity of a language model whose experts are better at it than the base, which plain
    texts of their tasks show and prompts alone may not; else what a check goes by.
    """
    base, expert = (_perplexity(seen[name]) for name in ("base", "expert"))
    if base is not None and expert is not None and expert < base:
        return "perplexity"
    return measure_of(seen["merge"].measures)


def _losses(seen: Seen, judge: str) -> Float[Tensor, "rows"]:
    if judge == "perplexity":
        return seen.tokens[:, 0] / seen.tokens[:, 1]
    return losses_of(seen.measures, judge)


def _compared(losses: Tensor, other: Tensor) -> str:
    """Whether losses are lower than others by more than chance and a trifle, or higher: better,
    worse, even.

    Rows count on which the other's are finite. A model that breaks on one of them is the worse.
    """
    known = other.isfinite()
    losses, other = losses[known], other[known]
    if not losses.isfinite().all():
        return "worse"
    difference = (other - losses).double()
    if not len(difference) or not difference.any():
        return "even"
    spread = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    if abs(mean) <= max(ERRORS * spread, LEAST * abs(float(other.mean()))):
        return "even"
    return "better" if mean > 0 else "worse"


def _part(seen: Seen, rows: slice) -> Seen:
    return Seen(seen.measures[rows], seen.tokens[rows])


def _perplexity(seen: Seen) -> float | None:
    """exp of the mean loss over all tokens; None without tokens, or beyond what a float holds."""
    total, count = seen.tokens.sum(dim=0).tolist()
    mean = total / count if count else math.nan
    return math.exp(mean) if mean < 700 else None


def _told(seen: Seen) -> dict[str, float | None]:
    """The means over the rows, and the perplexity of a language model."""
    told = means(seen.measures)
    perplexity = _perplexity(seen)
    return told if perplexity is None else {**told, "perplexity": perplexity}


def _text(
    judge: str,
    models: Mapping[str, Mapping[str, float | None]],
    result: Mapping[str, str],
    rows: Mapping[str, int],
) -> str:
    """One sentence: the values, and what they come to."""
    names = ("base", "merge", "calibrated", *(["expert"] if judge == "perplexity" else []))
    # Of the base no change is known, and so no cosine.
    known = {name: models[name].get(judge) for name in names}
    values = ", ".join(
        f"{value:.4g} {'experts' if name == 'expert' else name}"
        for name, value in known.items()
        if value is not None
    )
    total = sum(rows.values())
    told = {name: f"{WORDS[result[name]]} the {name}" for name in ("merge", "base")}
    conclusion = f"the calibrated model is {told['merge']} and {told['base']}"
    if result["merge"] == result["base"]:
        conclusion = f"the calibrated model is {WORDS[result['merge']]} the merge and the base"
    return (
        f"on {total} held-out row{'' if total == 1 else 's'} of {len(rows)} "
        f"expert{'' if len(rows) == 1 else 's'}: {NAMES[judge]} {values or 'unknown'}; {conclusion}"
    )
