"""Where a recipe of mergekit's is done otherwise here: each difference has a name and a reason."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from magmerge.core.errors import ParameterError, suggestion

Rules = Literal["better", "mergekit"]


class Rule(NamedTuple):
    """What is done here, and what `--as mergekit` does: None where that is the same."""

    better: str
    mergekit: str | None = None


RULES = {
    "ties-count": Rule(
        "a share of entries is rounded up, as in TIES' code, where mergekit cuts it off",
        "the count of entries is rounded down",
    ),
    "vote": Rule(
        "each model has one vote on a sign, as in TIES' paper, where mergekit weighs the votes",
        "votes on a sign are weighted, and a tie is a plus",
    ),
    "rescale": Rule(
        "what stays is divided by its chance to stay, as in the paper, so that the mean is kept, "
        "where mergekit matches the sum of magnitudes",
        "what stays is scaled to the sum of magnitudes",
    ),
    "energy": Rule(
        "models are weighed by their energy, as in SCE's paper, where mergekit weighs them alike "
        "below a mean square of 1e-6, which most fine-tunes are",
        "models are weighed alike below a mean square of 1e-6",
    ),
    "unlisted-base": Rule(
        "base_model is not among the models, so it gives config and tokenizer, and is not merged, "
        "where mergekit merges it as one more model",
        "base_model is merged as one more model",
    ),
    "patterns": Rule(
        "a filter with * or ? or between slashes is a pattern for names, where mergekit looks for "
        "these letters and never finds them",
        "a filter with * or ? or between slashes takes no tensor",
    ),
    "draws": Rule("random draws depend on seed, tensor and place; mergekit's cannot be repeated"),
    "arithmetic": Rule(
        "models are read as they are stored, merged in float32 and rounded once, where mergekit "
        "rounds them to dtype first, and computes most methods in it"
    ),
    "format": Rule(
        "without dtype the result has the base's format, and what differs from it is told, where "
        "mergekit takes the widest of the models'",
        "without dtype the result has the widest of the models' formats",
    ),
    "last-slice": Rule(
        "final norm and head are merged of all models of the last slice, where mergekit loses "
        "those that are more than the first slice has"
    ),
    "guessed": Rule(
        "what stands behind the blocks is the last slice's, where mergekit, of an architecture "
        "that it has to guess, takes it from the first"
    ),
    "negative-weights": Rule(
        "a model of negative weight counts with its task vector turned round, where mergekit "
        "divides by the sum of the signed weights"
    ),
    "tokens": Rule(
        "a token's row is merged of the models that have it, where mergekit gives the others a "
        "row in its place"
    ),
    "padding": Rule("rows of padding are zeros, where mergekit takes the mean of all rows"),
    "rest": Rule(
        "tensors that no filter takes get a default, where mergekit stops when there are any"
    ),
    "no-effect": Rule("some parameters have no effect, as in mergekit"),
    "clipped": Rule("a density above 1 keeps everything, as 1 does"),
}
"""By name. Those without a second sentence hold in both ways. A recipe alone does not tell whether
`format` and `guessed` apply: what opens the models tells formats.
"""


def check_rules(rules: str) -> None:
    """ParameterError for what is no way to read a recipe of mergekit's."""
    if rules not in get_args(Rules):
        raise ParameterError(
            f"recipes of mergekit's are not read as {rules!r}",
            remedy=suggestion(rules, get_args(Rules)),
        )


def told(name: str, rules: Rules, detail: str = "") -> tuple[str, ...]:
    """The note of a rule that applies; none where mergekit's own choice is taken."""
    rule = RULES[name]
    if rule.mergekit is None:
        return (f"mergekit's recipe, rule {name}: {rule.better}{detail}",)
    back = "; for mergekit's way: --as mergekit"
    return (f"mergekit's recipe, rule {name}: {rule.better}{detail}{back}",) * (rules == "better")
