"""The report's part on a merged adapter: norms of the inputs, the merge and the result."""

from __future__ import annotations

from collections.abc import Sequence

from magmerge.report.account import Module, ModuleAccount
from magmerge.report.marks import EXPERT_SHAPES, Mark
from magmerge.report.sheet import Line, Plot, Point, Sheet, draw
from magmerge.report.wording import factor_text, norm_text, short

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
    series: list[list[Point]] = [[] for _ in marks]
    merge, result, lines = list[Point](), list[Point](), list[Line]()
    for place, one in enumerate(told):
        for points, norm, mark in zip(series, one.norms, marks, strict=False):
            if (ratio := one.share(norm)) is not None:
                tip = f"{short(one.name)}: {mark.meaning} {norm_text(norm)}"
                points.append(Point(place, ratio, tip))
        was, now = one.share(one.merged), one.share(one.written)
        if was is not None and now is not None:
            tip = f"{short(one.name)}: {norm_text(one.merged)} merged, {norm_text(one.written)} now"
            merge.append(Point(place, was, tip))
            result.append(Point(place, now, tip))
            lines.append(Line(place, was, now))

    def paint(sheet: Sheet) -> None:
        sheet.join(lines, "whisker", 1.2)
        for mark, points in zip(marks, series, strict=True):
            sheet.put(mark, points, scale=0.7)
        sheet.put(MERGE, merge, scale=0.9)
        sheet.put(RESULT, result)

    values = [point.value for points in (*series, merge, result) for point in points]
    placed = [Module(one.name, ()) for one in told]
    return Plot(*draw("norms", label, placed, values, paint), (*marks, MERGE, RESULT))


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
