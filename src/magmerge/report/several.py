"""Several results on one page: which is better, by what, and how they were made."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, NamedTuple

from magmerge.core.errors import printable
from magmerge.report.account import MergeAccount, read_account
from magmerge.report.sentences import factor_text, short, title_of
from magmerge.report.svg import PAGE_STYLE
from magmerge.report.verdict_text import LOWER, MEASURES, ROLES, headline

STYLE = """
.bar { display: block; height: 0.35rem; background: var(--series-1); margin-top: 0.25rem; }
td:has(.bar) { min-width: 7rem; }
td.text { white-space: normal; min-width: 12rem; }
.best { font-weight: 650; }
"""
WORDS = ("recipe", "verdict")
"""Columns of words."""


class Entry(NamedTuple):
    """One result: what it is called, and what its record tells."""

    name: str
    account: MergeAccount

    def value(self, role: str, measure: str) -> float | None:
        """What a model of its verdict came to, by a measure."""
        verdict = self.account.verdict
        return None if verdict is None else verdict.models.get(role, {}).get(measure)


def render_several(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of several magmerge.json, by the names of their results.

    CheckpointError where one is not what magmerge writes. Verdicts of the same experts on as many
    rows are put in order; others are told beside each other only.
    """
    entries = [Entry(name, read_account(document)) for name, document in documents.items()]
    judge = _judge(entries)
    order, lead = _ordered(entries, judge)
    parts = [_values(order, judge)] if judge else []
    parts += [_verdicts(order), _recipes(order)]
    title = f"{len(entries)} results"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="magmerge">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="eyebrow">magmerge · comparison</p>\n<h1>{title}</h1>\n'
        f'<p class="lead">{html.escape(printable(lead))}</p>\n</header>\n{"".join(parts)}'
        "</main>\n</body>\n</html>\n"
    )


def _judge(entries: list[Entry]) -> str:
    """What all are judged by: the same measure on as many rows of the same experts; else empty."""
    verdicts = [entry.account.verdict for entry in entries]
    told = {
        (verdict.judge, tuple(sorted(verdict.rows.items())))
        for verdict in verdicts
        if verdict is not None and verdict.models
    }
    every = all(verdict is not None and verdict.models for verdict in verdicts)
    return next(iter(told))[0] if every and len(told) == 1 else ""


def _ordered(entries: list[Entry], judge: str) -> tuple[list[Entry], str]:
    """The results, the best first, and a sentence on that."""
    if not judge:
        return entries, (
            "These results cannot be put in order: not all have a verdict by the same measure on "
            "as many held-out rows of the same experts. Measure them on one suite: magmerge "
            "evaluate A B C --suite suite.yaml."
        )
    sign = 1 if judge in LOWER else -1
    known = [e for e in entries if e.value("calibrated", judge) is not None]
    order = sorted(known, key=lambda e: sign * (e.value("calibrated", judge) or 0.0))
    order += [entry for entry in entries if entry not in known]
    best, name = order[0], MEASURES.get(judge, judge)
    value = best.value("calibrated", judge)
    return order, f"By {name} on held-out rows {best.name} is the best: {factor_text(value)}."


def _values(entries: list[Entry], judge: str) -> str:
    """A row for each result: base, merge and calibrated by the measure, with bars."""
    most = max(
        (abs(v) for e in entries for r in ROLES if (v := e.value(r, judge)) is not None),
        default=0.0,
    )
    rows = []
    for place, entry in enumerate(entries):
        cells = ""
        for role in ("base", "merge", "calibrated"):
            value = entry.value(role, judge)
            width = 100 * abs(value) / most if value is not None and most else 0
            bar = f'<span class="bar" style="width: {width:.1f}%"></span>'
            cells += f"<td>{'' if value is None else factor_text(value) + bar}</td>"
        mark = ' class="best"' if place == 0 else ""
        rows.append(f'<tr{mark}><th scope="row">{_text(entry.name)}</th>{cells}</tr>')
    name = MEASURES.get(judge, judge)
    better = "lower" if judge in LOWER else "higher"
    return _section(
        "measure", f"{name} on held-out rows ({better} is better)",
        ("result", "base", "merge", "calibrated"), rows,
    )  # fmt: skip


def _verdicts(entries: list[Entry]) -> str:
    rows = []
    for entry in entries:
        verdict = entry.account.verdict
        told = "No calibration, no verdict." if verdict is None else headline(verdict)
        rows.append(
            f'<tr><th scope="row">{_text(entry.name)}</th><td class="text">{_text(told)}</td></tr>'
        )
    return _section("verdicts", "Did it help?", ("result", "verdict"), rows)


def _recipes(entries: list[Entry]) -> str:
    rows = []
    for entry in entries:
        layers = [layer.xi for layer in entry.account.calibrated if layer.xi is not None]
        mean = factor_text(sum(layers) / len(layers)) if layers else ""
        rows.append(
            f'<tr><th scope="row">{_text(entry.name)}</th><td class="text">'
            f"{_text(title_of(entry.account))}</td><td>{mean}</td><td>{len(layers) or ''}</td></tr>"
        )
    return _section(
        "recipes", "How they were made", ("result", "recipe", "mean xi", "layers"), rows
    )


def _section(key: str, title: str, columns: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(
        f'<th scope="col"{" class=text" if name in WORDS else ""}>{_text(name)}</th>'
        for name in columns
    )
    return (
        f'<section aria-labelledby="{key}">\n<h2 id="{key}">{_text(title)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(title)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}\n</tbody>\n</table>\n</div>\n"
        "</section>\n"
    )


def _text(text: object) -> str:
    return html.escape(printable(short(str(text))))
