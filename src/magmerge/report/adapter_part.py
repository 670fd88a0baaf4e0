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


def module_rows(modules: Sequence[ModuleAccount], inputs: int) -> list[list[str]]:
    """The table's rows: module, shape, rank, each input's norm, merge, result, ratio, loss."""
    return [
        [
            module.name,
            "x".join(map(str, module.shape)),
            str(module.rank),
            *(norm_text(norm) for norm in module.norms[:inputs]),
            norm_text(module.merged),
            norm_text(module.written),
            factor_text(module.share(module.written)),
            "" if module.error is None else f"{PERCENT * module.error:.2f} %",
        ]
        for module in modules
    ]
