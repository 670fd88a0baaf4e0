"""What figures say in words: titles, what was measured, and how to read them."""

from __future__ import annotations

from magmerge.evaluation.scores import LOWER_IS_BETTER
from magmerge.figures.canvas import shown
from magmerge.figures.document import NONE, Coefficients, Curves, Document, Ranking
from magmerge.figures.palette import spoken_calibration

SCORES = {
    "drift": "relative change of the last features, %",
    "loss": "rise of the cross entropy",
    "accuracy": "rise of the share of errors, %",
}
PLACES = {
    "samples": "unlabelled samples per task",
    "lambda": "lambda, the factor on the merged task vector",
    "alpha": "alpha, the number of sensitive layers",
}
NUMBERED = 90
"""Layers up to which the ranks of sensitive ones are written."""


def title_of(document: Document) -> str:
    """What the figure shows."""
    if isinstance(document, Ranking):
        return "Sensitivity of each layer"
    if isinstance(document, Coefficients):
        names = " and ".join(shown(spoken_calibration(one), 20) for one in document.calibrations)
        return f"{names} factors of each layer"
    by = {"samples": "unlabelled samples per task", "lambda": "lambda", "alpha": "alpha"}
    return f"Mean {measure_of(document)} by {by[document.kind]}"


def measure_of(document: Curves) -> str:
    """The metric in the mean, if it is the only one; else score."""
    if not document.percent:
        return "perplexity"
    metrics = {one.metric for one in document.tasks if one.metric not in LOWER_IS_BETTER}
    return shown(metrics.pop(), 30) if len(metrics) == 1 else "score"


def axis_of(document: Curves) -> str:
    """What the vertical axis counts."""
    if not document.percent:
        return "perplexity, geometric mean over the tasks; the lower the better"
    left_out = any(one.metric in LOWER_IS_BETTER for one in document.tasks)
    return f"mean {measure_of(document)}, %" + (" (perplexity left out)" if left_out else "")


def subtitle_of(document: Document) -> str:
    """Suite, merge, split and rows."""
    suite = [f"suite {shown(document.suite)}"] if document.suite else []
    methods = [shown(document.methods[0])] if len(document.methods) == 1 else []
    if isinstance(document, Ranking):
        rows = [] if document.rows is None else [f"{document.rows} unlabelled samples"]
        return ", ".join([*suite, "average of the experts", *rows])
    if isinstance(document, Coefficients):
        return ", ".join([*suite, *methods])
    count, total = len(document.tasks), sum(one.rows for one in document.tasks)
    tasks = f"{count} task{'' if count == 1 else 's'} with {total:,} rows in all"
    return ", ".join([*suite, *methods, f"{shown(document.split)} split", tasks])


def notes_of(document: Document) -> list[str]:
    """How to read the figure, and what it does not tell."""
    if isinstance(document, Curves):
        return [*_lines(document), *_gate(document), *_certainty(document)]
    if isinstance(document, Ranking):
        marked = len(document.sensitive)
        times = f"{100 * (document.factor - 1):.0f} %"
        return [
            f"How much worse the average merge gets on unlabelled samples with {times} more of one "
            f"layer's change{f' ({shown(document.mode)} mode)' if document.mode else ''}.",
            f"Filled: the {marked} most sensitive layers"
            f"{', by rank' if len(document.layers) <= NUMBERED else ''}.",
        ]
    return [*_factor_notes(document), *_draws(document)]


def _lines(document: Curves) -> list[str]:
    notes = [f"{NONE}: the merge without calibration."]
    if document.kind == "lambda":
        notes.append("At lambda 1 it is the merge with the method's own settings.")
    if document.kind != "samples" and document.samples:
        notes.append(f"FSC and DSC see {_samples(document.samples)} of each task.")
    return notes + _draws(document)


def _samples(count: int) -> str:
    return f"{count} unlabelled sample{'' if count == 1 else 's'}"


def _draws(document: Curves | Coefficients) -> list[str]:
    drawn = any(one.seed is not None for one in document.points)
    if not drawn:
        return []
    if isinstance(document, Coefficients):
        seen = f", from {_samples(document.samples)} of each task" if document.samples else ""
        if document.seeds == 1:
            return [f"FSC: one draw{seen}."]
        return [f"FSC: mean of {document.seeds} draws{seen}."]
    if document.seeds == 1:
        return ["One draw of samples; no spread is known."]
    return [f"Line: mean of {document.seeds} draws of samples; band: least to greatest draw."]


def _gate(document: Curves) -> list[str]:
    if document.kind == "alpha":
        return ["The gate lets the alpha most sensitive layers only shrink, all others only grow."]
    if document.gate == "off":
        return ["No gate."]
    listed = len(document.sensitive)
    bound = f"the {listed} sensitive layers only shrink, all others" if listed else "layers"
    notes = [f"The gate lets {bound} only grow."]
    if document.kind == "lambda":
        notes.append(
            "So the lines are flat from below alone: what lambda makes too large stays so."
        )
    return notes


def _certainty(document: Curves) -> list[str]:
    notes = []
    if document.error is not None:
        notes.append(
            f"A mean's 95 % sampling error is about ±{100 * document.error:.1f} points; lines "
            "share their rows, so their differences are more certain."
        )
    if document.experts is not None and document.percent:
        notes.append(f"Experts, each on its own task: {100 * document.experts:.1f} %.")
    return notes


def _factor_notes(document: Coefficients) -> list[str]:
    notes = ["Factor on each layer's merged task vector; 1 changes nothing."]
    if document.gate == "on":
        listed = len(document.sensitive)
        bound = f"the {listed} sensitive layers only shrink and all others" if listed else "layers"
        notes.append(
            f"Filled: as applied; hollow: as asked for, where the gate, which lets {bound} only "
            "grow, did not give it."
        )
    else:
        notes.append("No gate: factors are applied as they are asked for.")
    return notes
