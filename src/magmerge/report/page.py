"""report.html: what magmerge.json tells, for people. A pure function of its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.core.errors import CheckpointError, printable_lines
from magmerge.core.extras import needed
from magmerge.report import layer_plots, sentences, verdict_text
from magmerge.report.account import FILE, LayerModule, MergeAccount, modules_of, read_account
from magmerge.report.accuracy import score_tables
from magmerge.report.axis import common_stem
from magmerge.report.by_block import by_block, by_part, by_stage
from magmerge.report.contrast import Encounter, contrast_text, encounters, furthest_first
from magmerge.report.recipe_text import NAMES, recipe_lines, recipe_yaml
from magmerge.report.sheet import Plot
from magmerge.report.svg import PAGE_STYLE, drawing

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = Path(__file__).with_name("page.html.jinja")
SHOWN = 12
"""Rows of a table in the text; the rest is folded away."""


class Pair(NamedTuple):
    """The part on two calibrators: its plot, its sentences, the layers on which they disagree."""

    names: tuple[str, str]
    plot: Plot
    text: str
    apart: tuple[Encounter, ...]


def render(
    document: Mapping[str, Any], scores: Sequence[Mapping[str, Any]] = (), title: str | None = None
) -> str:
    """The report as one HTML page that needs nothing else: no network, no script, no other file.

    `document` is the content of magmerge.json; `scores` are results of `magmerge evaluate --json`,
    or tables {"columns", "rows", "caption"}. Equal input gives equal text. CheckpointError where
    the input is not what magmerge writes.
    """
    account = read_account(document)
    modules = modules_of(account.calibrated)
    try:
        with drawing():
            content = _content(account, modules, scores)
        head = title or sentences.title_of(account)
        return _template().render(title=head, account=account, modules=modules, **content)
    except RecursionError as error:
        raise CheckpointError(
            "nested too deeply", source=FILE, remedy="give a checkpoint that magmerge made"
        ) from error


def _content(
    account: MergeAccount, modules: tuple[LayerModule, ...], scores: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    visible = tuple(module for module in modules if sentences.drawable(module.lead))
    names = account.calibrators
    return {
        "verdict": [] if account.verdict is None else [*verdict_text.lines_of(account.verdict)],
        "verdict_tables": _verdict_tables(account),
        "summary": sentences.summary(account, modules),
        "lines": recipe_lines(account),
        "coded": NAMES,
        "yaml": recipe_yaml(account),
        "xi": layer_plots.xi_plot(visible, _label(account, "Factor xi of each layer"))
        if visible
        else None,
        "drawn": visible,
        "groupings": [
            (kind, groups)
            for kind, group in (("stage", by_stage), ("block", by_block), ("part", by_part))
            if (groups := group(modules))
        ],
        "blocks": common_stem([module.name for module in visible]),
        "undrawn": sentences.hidden_text(len(modules) - len(visible)),
        "extremes": sentences.extremes_text(visible),
        "deviation": layer_plots.deviation_plot(
            visible, _label(account, "Length of each merged task vector over the experts' mean")
        ),
        "pair": _pair(account, visible, (names[0], names[1])) if len(names) == 2 else None,
        "strips": [
            (name, plot)
            for place, name in enumerate(names)
            if (plot := _strip(account, visible, name, place))
        ],
        "norms": layer_plots.norms_plot(
            account.modules, account.experts, _label(account, "Norms of each adapter's modules")
        ),
        "tables": score_tables(scores),
        "rest": SHOWN,
        "calibrators": names,
        "words": sentences,
        "css": PAGE_STYLE,
    }


def _verdict_tables(account: MergeAccount) -> list[tuple[str, verdict_text.VerdictTable]]:
    """Models beside each other on held-out rows, and expert by expert, with their captions."""
    if account.verdict is None:
        return []
    tables = (
        (f"Models on held-out rows, without labels. {verdict_text.NOTE}", verdict_text.by_model),
        ("The same on each expert's own rows", verdict_text.by_expert),
    )
    drawn = ((caption, table(account.verdict)) for caption, table in tables)
    return [(caption, table) for caption, table in drawn if table is not None]


def _label(account: MergeAccount, what: str) -> str:
    """A plot in words, for those who cannot see it."""
    return f"{what}, in model order. {sentences.summary(account, modules_of(account.calibrated))}"


def _pair(
    account: MergeAccount, modules: tuple[LayerModule, ...], names: tuple[str, str]
) -> Pair | None:
    pairs = encounters(modules, names)
    if not pairs:
        return None
    text = contrast_text(pairs, names, gated=account.gated)
    label = f"What the two calibrators ask for before the gate, layer by layer. {text}"
    return Pair(names, layer_plots.pair_plot(pairs, names, label), text, furthest_first(pairs))


def _strip(
    account: MergeAccount, modules: tuple[LayerModule, ...], name: str, place: int
) -> Plot | None:
    layers = tuple(
        module
        for module in modules
        if any(factor.calibrator == name and factor.experts for factor in module.lead.factors)
    )
    if not layers or not account.experts:
        return None
    label = f"Factors that each expert's samples ask for by {name}, in model order"
    return layer_plots.experts_plot(layers, name, account.experts, label, place)


@cache
def _template() -> Template:
    jinja2, markup = needed("jinja2", "the report"), needed("markupsafe", "the report").Markup

    def clean(value: Any) -> Any:
        """Text without control characters: names inside files may be hostile."""
        bare = isinstance(value, str) and not isinstance(value, markup)
        return printable_lines(value) if bare else value

    environment = jinja2.Environment(
        autoescape=True,
        finalize=clean,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markup"] = markup
    template: Template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template
