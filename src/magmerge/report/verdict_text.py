"""A calibration's verdict in words and tables: better or not, by how much, where, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from magmerge.report.account import VerdictAccount

MEASURES = {
    "perplexity": "perplexity",
    "kl": "KL",
    "agreement": "agreement",
    "cosine": "cosine",
    "norm ratio": "norm ratio",
    "feature error": "error",
}
"""Measures in the order of a table, as its columns are called; NOTE says what they are."""
NOTE = (
    "KL (divergence) and agreement are of outputs, beside each expert on its own rows; cosine, "
    "norm ratio and error (0: the expert, 1: the base) are of the changes in features."
)
ROLES = {"base": "base", "merge": "merge", "calibrated": "calibrated", "expert": "experts"}
LOOK = (
    "next: read its answers beside the experts' (magmerge compare), and measure with labels where "
    "you have some (magmerge evaluate)"
)
LOWER = ("perplexity", "kl")


class VerdictTable(NamedTuple):
    """Columns and rows of texts; the first of a row is its name."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(verdict: VerdictAccount) -> str:
    """Better or not, in a few words."""
    if verdict.judge == "norms":
        return _lengths(verdict)
    if not verdict.models:
        return "Whether it helped is not known."
    if verdict.best == "base":
        return "The merge did not help: the base is better on these rows."
    if verdict.best == "merge":
        return "The calibration did not help: the merge is better without it."
    told = tuple(verdict.calibrated_to.get(name) for name in ("merge", "base"))
    if told == ("better", "better"):
        return "It helped: better than the merge, and than the base."
    if told[0] == "better":
        return "The calibration helped; merge and base are about as good."
    if told[1] == "better":
        return "The merge helped; the calibration made no clear difference."
    return "No clear difference."


def _lengths(verdict: VerdictAccount) -> str:
    """Whether lengths came nearer to the experts'. Records once told by counts of layers alone."""
    if verdict.best == "merge":
        return "Lengths went away from the experts'."
    counted = "better" if verdict.nearer > verdict.farther else "even"
    if verdict.calibrated_to.get("merge", counted) == "better":
        return "Lengths came nearer to the experts'; whether tasks gain is not measured."
    return "Lengths are about as they were; whether tasks gain is not measured."


def change_text(verdict: VerdictAccount) -> str:
    """By how much the calibration changed what is judged by; empty where that is not known."""
    own, before = (verdict.models.get(n, {}).get(verdict.judge) for n in ("calibrated", "merge"))
    if own is None or before is None or not before:
        return ""
    name = MEASURES.get(verdict.judge, verdict.judge)
    return f"{name} {_number(before)} to {_number(own)} ({100 * (own / before - 1):+.1f} %)"


def where_text(verdict: VerdictAccount) -> str:
    """The expert that gained most by the calibration, and the one that lost most."""
    sign = -1 if verdict.judge in LOWER else 1
    gains = {
        name: sign * (own - before)
        for name, models in verdict.experts.items()
        if (own := models.get("calibrated", {}).get(verdict.judge)) is not None
        and (before := models.get("merge", {}).get(verdict.judge)) is not None
    }
    if len(gains) < 2 or not any(gains.values()):
        return ""
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    told = [f"{best} gained most"] if gains[best] > 0 else []
    told += [f"{worst} lost most"] if gains[worst] < 0 else []
    return "; ".join(told)


def verdict_line(verdict: Mapping[str, Any] | None) -> list[str]:
    """The verdict in one line for the terminal, where there is one."""
    if not verdict:
        return []
    account = VerdictAccount.model_validate(dict(verdict))
    return [f"verdict: {headline(account)} {_sentence(account.text)}".rstrip()]


def by_model(verdict: VerdictAccount) -> VerdictTable | None:
    """Base, merge, calibrated and experts by every measure that is known."""
    return _table("model", {ROLES.get(k, k): v for k, v in verdict.models.items()}, tuple(ROLES))


def by_expert(verdict: VerdictAccount) -> VerdictTable | None:
    """What is judged by, and the agreement, on each expert's own rows."""
    measures = [verdict.judge, *(["agreement"] if verdict.judge != "agreement" else [])]
    rows = {
        f"{name} ({verdict.rows.get(name, 0)} rows)": {
            f"{MEASURES.get(measure, measure)}, {role}": models[role].get(measure)
            for measure in measures
            for role in ("base", "merge", "calibrated")
            if role in models
        }
        for name, models in verdict.experts.items()
    }
    return _table("expert", rows)


def _table(
    head: str, rows: Mapping[str, Mapping[str, float | None]], order: tuple[str, ...] = ()
) -> VerdictTable | None:
    names = dict.fromkeys(name for row in rows.values() for name in row)
    known = [n for n in names if any(row.get(n) is not None for row in rows.values())]
    known.sort(key=lambda name: [*MEASURES].index(name) if name in MEASURES else -1)
    if not known:
        return None
    places = {ROLES[name]: place for place, name in enumerate(order)}
    ordered = sorted(rows.items(), key=lambda row: places.get(row[0], len(places)))
    body = tuple((name, *(_number(row.get(n)) for n in known)) for name, row in ordered)
    return VerdictTable((head, *(MEASURES.get(name, name) for name in known)), body)


def lines_of(verdict: VerdictAccount) -> Iterator[str]:
    """What the page and the card say, sentence by sentence."""
    yield headline(verdict)
    if where := where_text(verdict):
        # An expert's name stays as it is.
        yield f"{where}."
    for text in (change_text(verdict), verdict.text, verdict.next or LOOK):
        if text:
            yield _sentence(text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
