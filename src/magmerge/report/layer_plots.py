"""The report's plots: one mark for each layer and what it stands for, in model order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from magmerge.report.account import LayerModule, ModuleAccount
from magmerge.report.contrast import Encounter
from magmerge.report.sentences import factor_text, layer_text, name_of, norm_text, short
from magmerge.report.sheet import (
    EXPERT_SHAPES,
    Line,
    Mark,
    Marks,
    Plot,
    Point,
    Strokes,
    draw,
    expert_marks,
)

XI = Mark("xi, the layer's mean factor", "circle", "series-1")
SENSITIVE = Mark("xi of a sensitive layer", "down", "series-2")
FREE = Mark("before the gate, where it acted", "circle", "muted", filled=False)
BEFORE = Mark("before the calibration", "circle", "series-2", filled=False)
AFTER = Mark("after", "circle", "series-1")
MERGE = Mark("the plain merge", "circle", "series-2", filled=False)
RESULT = Mark("the result", "circle", "series-1")
INPUTS = "muted"
ROWS = "from the least to the greatest row"
APART = "they pull apart"
FLOOR = 0.1
"""A least row below this part of the greatest has its line end there."""


def xi_plot(modules: Sequence[LayerModule], label: str) -> Plot:
    """The factor of each layer, its extremes over the rows, and what it was before the gate."""
    plain, sensitive, free = list[Point](), list[Point](), list[Point]()
    rows = list[Line]()
    for place, module in enumerate(modules):
        lead, tip = module.lead, layer_text(module)
        if lead.xi is not None:
            (sensitive if lead.sensitive else plain).append(Point(place, lead.xi, tip))
        if lead.held and (lead.xi_free or 0) > 0:
            free.append(Point(place, lead.xi_free or 0, tip))
        if lead.xi_min is not None and lead.xi_max is not None and 0 < lead.xi_max > lead.xi_min:
            rows.append(Line(place, max(lead.xi_min, FLOOR * lead.xi_max), lead.xi_max))
    marks = [Marks(FREE, free, 0.75), Marks(XI, plain), Marks(SENSITIVE, sensitive)]
    names = [module.name for module in modules]
    return draw("xi", label, names, marks, [Strokes(rows, "whisker", 3.0, ROWS)])


def deviation_plot(modules: Sequence[LayerModule], label: str) -> Plot | None:
    """Length of the merged task vector over the experts', before and after; None if unknown."""
    before, after, lines = list[Point](), list[Point](), list[Line]()
    for place, module in enumerate(modules):
        lead = module.lead
        was, now = lead.deviation(lead.norm_before), lead.deviation(lead.norm_after)
        if was is not None and now is not None:
            tip = f"{short(module.name)}: {factor_text(was)} before, {factor_text(now)} after"
            before.append(Point(place, was, tip))
            after.append(Point(place, now, tip))
            lines.append(Line(place, was, now))
    if not lines:
        return None
    names = [module.name for module in modules]
    marks = [Marks(BEFORE, before, 0.9), Marks(AFTER, after)]
    return draw("deviation", label, names, marks, [Strokes(lines, "muted", 1.2)])


def pair_plot(pairs: Sequence[Encounter], names: tuple[str, str], label: str) -> Plot:
    """What two calibrators asked for in all before the gate, beside each other."""
    first, second = map(name_of, names)
    own, total = list[Point](), list[Point]()
    lines: dict[bool, list[Line]] = {False: [], True: []}
    for place, encounter in enumerate(pairs):
        tip = (
            f"{short(encounter.module.name)}: {first} {factor_text(encounter.own)}, {second} a "
            f"further {factor_text(encounter.further)}, in all {factor_text(encounter.total)}"
        )
        own.append(Point(place, encounter.own, tip))
        total.append(Point(place, encounter.total, tip))
        lines[encounter.apart].append(Line(place, encounter.own, encounter.total))
    marks = [
        Marks(Mark(first, "circle", "series-1"), own),
        Marks(Mark(f"{second}, in all", "square", "series-2"), total),
    ]
    strokes = [Strokes(lines[False], "whisker", 1.4), Strokes(lines[True], "ink", 1.8, APART)]
    return draw("pair", label, [encounter.module.name for encounter in pairs], marks, strokes)


def experts_plot(
    modules: Sequence[LayerModule], calibrator: str, names: tuple[str, ...], label: str, number: int
) -> Plot | None:
    """The factor that each expert's samples ask for, layer by layer; None if none is told.

    `number` tells the plots of several calibrators apart.
    """
    marks = expert_marks(names)
    alike = len({mark.shape for mark in marks}) < len(marks)
    step = 0.0 if alike else 0.7 / max(1, len(names))
    points: list[list[Point]] = [[] for _ in names]
    for place, module in enumerate(modules):
        factor = module.lead.factor_of(calibrator)
        for index, value in enumerate(factor.experts[: len(names)] if factor else ()):
            if value is not None and value > 0:
                tip = f"{short(module.name)}: {short(names[index])} {factor_text(value)}"
                shift = (index - (len(names) - 1) / 2) * step
                points[index].append(Point(place + shift, value, tip))
    if not any(points):
        return None
    scale = 1.0 if alike else 0.7
    series = [Marks(mark, own, scale) for mark, own in zip(marks, points, strict=True)]
    plot = draw(f"experts-{number}", label, [module.name for module in modules], series)
    return replace(plot, legend=(Mark("one expert each", "dash", "series-1"),)) if alike else plot


def norms_plot(modules: Sequence[ModuleAccount], names: Sequence[str], label: str) -> Plot | None:
    """Each module's norms, in units of the mean norm of the inputs' task vectors; None if unknown.

    One mark for each input, the plain merge and the result, and a line from merge to result.
    """
    known = [module for module in modules if module.mean is not None]
    if not known:
        return None
    marks = [
        Mark(short(name, 40), shape, INPUTS)
        for name, shape in zip(names, EXPERT_SHAPES[1:], strict=False)
    ]
    points: list[list[Point]] = [[] for _ in marks]
    merge, result, lines = list[Point](), list[Point](), list[Line]()
    for place, module in enumerate(known):
        for own, norm, mark in zip(points, module.norms, marks, strict=False):
            if (ratio := module.share(norm)) is not None:
                tip = f"{short(module.name)}: {mark.meaning} {norm_text(norm)}"
                own.append(Point(place, ratio, tip))
        was, now = module.share(module.merged), module.share(module.written)
        if was is not None and now is not None:
            now_text = f"{norm_text(module.merged)} merged, {norm_text(module.written)} now"
            tip = f"{short(module.name)}: {now_text}"
            merge.append(Point(place, was, tip))
            result.append(Point(place, now, tip))
            lines.append(Line(place, was, now))

    series = [Marks(mark, own, 0.7) for mark, own in zip(marks, points, strict=True)]
    series += [Marks(MERGE, merge, 0.9), Marks(RESULT, result)]
    strokes = [Strokes(lines, "whisker", 1.2)]
    return draw("norms", label, [module.name for module in known], series, strokes)
