"""The report's part on a merged adapter: norms of the inputs, the merge and the result."""

from __future__ import annotations

from collections.abc import Sequence

from magmerge.report.account import ModuleAccount
from magmerge.report.marks import EXPERT_SHAPES, Mark
from magmerge.report.sentences import factor_text, norm_text, short
from magmerge.report.sheet import Line, Marks, Plot, Point, Strokes, draw

MERGE = Mark("the plain merge", "circle", "series-2", filled=False)
RESULT = Mark("the result", "circle", "series-1")
INPUTS = "muted"
PERCENT = 100.0


def norms_plot(modules: Sequence[ModuleAccount], names: Sequence[str], label: str) -> Plot | None:
    """Each module's norms, in units of the mean norm of the inputs' task vectors; None if unknown.

    One mark for each input, the plain merge and the result, and a line from merge to result.
    """
    told = [one for one in modules if one.mean is not None]
    if not told:
        return None
    marks = [
        Mark(short(name, 40), shape, INPUTS)
        for name, shape in zip(names, EXPERT_SHAPES[1:], strict=False)
    ]
    points: list[list[Point]] = [[] for _ in marks]
    merge, result, lines = list[Point](), list[Point](), list[Line]()
    for place, one in enumerate(told):
        for own, norm, mark in zip(points, one.norms, marks, strict=False):
            if (ratio := one.share(norm)) is not None:
                tip = f"{short(one.name)}: {mark.meaning} {norm_text(norm)}"
                own.append(Point(place, ratio, tip))
        was, now = one.share(one.merged), one.share(one.written)
        if was is not None and now is not None:
            tip = f"{short(one.name)}: {norm_text(one.merged)} merged, {norm_text(one.written)} now"
            merge.append(Point(place, was, tip))
            result.append(Point(place, now, tip))
            lines.append(Line(place, was, now))

    series = [Marks(mark, own, 0.7) for mark, own in zip(marks, points, strict=True)]
    series += [Marks(MERGE, merge, 0.9), Marks(RESULT, result)]
    strokes = [Strokes(lines, "whisker", 1.2)]
    return draw("norms", label, [one.name for one in told], series, strokes)


def module_rows(modules: Sequence[ModuleAccount], inputs: int) -> list[list[str]]:
    """The table's rows: module, shape, rank, each input's norm, merge, result, ratio, loss."""
    return [
        [
            one.name,
            "x".join(map(str, one.shape)),
            str(one.rank),
            *(norm_text(norm) for norm in one.norms[:inputs]),
            norm_text(one.merged),
            norm_text(one.written),
            factor_text(one.share(one.written)),
            "" if one.error is None else f"{PERCENT * one.error:.2f} %",
        ]
        for one in modules
    ]
