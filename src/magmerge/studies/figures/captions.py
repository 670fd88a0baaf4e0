"""What figures say in words: titles, what was measured, how to read them, and parts of layers."""

from __future__ import annotations

import re

from magmerge.evaluation.scores import LOWER_IS_BETTER
from magmerge.studies.figures.document import NONE, Coefficients, Curves, Document, Ranking

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
LONGEST = 60
"""Letters of a name from a file that are shown."""


def short_name(text: str, longest: int = LONGEST) -> str:
    """A name from a file, or its beginning."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def label_of(calibration: str) -> str:
    """What a figure calls a calibration."""
    return (
        calibration.upper() if calibration in ("wsc", "fsc", "dsc") else short_name(calibration, 20)
    )


def title_of(document: Document) -> str:
    """What the figure shows."""
    if isinstance(document, Ranking):
        return "Sensitivity of each layer"
    if isinstance(document, Coefficients):
        return f"{' and '.join(map(label_of, document.calibrations))} factors of each layer"
    return f"Mean {_measure(document)} by {PLACES[document.kind].partition(',')[0]}"


def _measure(document: Curves) -> str:
    """The metric in the mean, if it is the only one; else score."""
    if not document.percent:
        return "perplexity"
    metrics = {task.metric for task in document.tasks if task.metric not in LOWER_IS_BETTER}
    return short_name(metrics.pop(), 30) if len(metrics) == 1 else "score"


def axis_of(document: Document) -> str:
    """What the vertical axis counts."""
    if isinstance(document, Ranking):
        return SCORES.get(document.score, short_name(document.score))
    if isinstance(document, Coefficients):
        return "factor xi, logarithmic"
    if not document.percent:
        return "perplexity, geometric mean over the tasks; the lower the better"
    left_out = any(task.metric in LOWER_IS_BETTER for task in document.tasks)
    return f"mean {_measure(document)}, %" + (" (perplexity left out)" if left_out else "")


def subtitle_of(document: Document) -> str:
    """Suite, merge, split and rows."""
    parts = [f"suite {short_name(document.suite)}"] if document.suite else []
    if isinstance(document, Ranking):
        parts += ["average of the experts"]
        parts += [] if document.rows is None else [f"{document.rows} unlabelled samples"]
        return ", ".join(parts)
    parts += [short_name(document.methods[0])] if len(document.methods) == 1 else []
    if isinstance(document, Curves):
        count, total = len(document.tasks), sum(task.rows for task in document.tasks)
        tasks = f"{count} task{'' if count == 1 else 's'} with {total:,} rows in all"
        parts += [f"{short_name(document.split)} split", tasks]
    return ", ".join(parts)


def notes_of(document: Document) -> str:
    """How to read the figure, and what it does not tell."""
    if isinstance(document, Ranking):
        mode = f" ({short_name(document.mode)} mode)" if document.mode else ""
        ranks = ", by rank" if len(document.layers) <= NUMBERED else ""
        return (
            "How much worse the average merge gets on unlabelled samples with "
            f"{100 * (document.factor - 1):.0f} % more of one layer's change{mode}. "
            f"Filled: the {len(document.sensitive)} most sensitive layers{ranks}."
        )
    notes = _curve_notes(document) if isinstance(document, Curves) else _factor_notes(document)
    return " ".join(note for note in notes if note)


def _curve_notes(document: Curves) -> list[str]:
    notes = [f"{NONE}: the merge without calibration."]
    if document.kind == "lambda":
        notes.append("At lambda 1 it is the merge with the method's own settings.")
    if document.kind != "samples" and document.samples:
        notes.append(f"FSC and DSC see {_samples(document.samples)} of each task.")
    if any(point.seed is not None for point in document.points):
        notes.append(
            "One draw of samples; no spread is known."
            if document.seeds == 1
            else f"Line: mean of {document.seeds} draws of samples; band: least to greatest draw."
        )
    if document.kind == "alpha":
        bound = "the alpha most sensitive layers only shrink, all others"
    else:
        bound = _bound(len(document.sensitive), ", all others")
    notes.append("No gate." if document.gate == "off" else f"The gate lets {bound} only grow.")
    if document.kind == "lambda" and document.gate != "off":
        notes.append(
            "So the lines are flat from below alone: what lambda makes too large stays so."
        )
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
        notes.append(
            "Filled: as applied; hollow: as asked for, where the gate, which lets "
            f"{_bound(len(document.sensitive), ' and all others')} only grow, did not give it."
        )
    else:
        notes.append("No gate: factors are applied as they are asked for.")
    if any(point.seed is not None for point in document.points):
        draws = "one draw" if document.seeds == 1 else f"mean of {document.seeds} draws"
        seen = f", from {_samples(document.samples)} of each task" if document.samples else ""
        notes.append(f"FSC: {draws}{seen}.")
    return notes


def _bound(listed: int, others: str) -> str:
    return f"the {listed} sensitive layers only shrink{others}" if listed else "layers"


def _samples(count: int) -> str:
    return f"{count} unlabelled sample{'' if count == 1 else 's'}"


ATTENTION = ("attention q", "attention k", "attention v")
ALL_IN_ONE, OUT = "attention q, k, v in one", "attention out"
PARTS = (*ATTENTION, ALL_IN_ONE, OUT, "mlp", "norm", "other")

_WORDS = re.compile(r"[._]")
_QKV = {"in_proj", "in_proj_weight", "c_attn", "query_key_value", "qkv", "qkv_proj", "wqkv"}
_WHOLE = {**dict.fromkeys(_QKV, ALL_IN_ONE), "attn_out": OUT, "to_out": OUT}
"""Names of modules that are told as they are."""
_OWN = {
    name: part
    for letter, word, part in zip("qkv", ("query", "key", "value"), ATTENTION, strict=True)
    for name in (letter, word, f"w{letter}")
}
_ATTENTION = frozenset({"attention", "attn", "attentions", "selfattention", "encdecattention"})
_MLP = frozenset({"mlp", "ffn", "ff", "feedforward", "intermediate", "experts", "densereludense"})
_MLP_OWN = frozenset({"fc", "fc1", "fc2", "lin1", "lin2", "wi", "gate", "up", "down"})
_NORM = frozenset({"norm", "layernorm", "ln", "bn", "batchnorm", "rmsnorm"})
_OUT = frozenset({"o", "out", "dense", "wo", "output"})
_PROJECTIONS = ({"proj"}, {"c", "proj"})


def part_of(name: str) -> str:
    """A layer's part: `name` is that of the module or of its weight.

    A module in a block of BERT's naming that is neither of the attention nor a norm is its MLP.
    """
    path = name.removesuffix(".weight").removesuffix(".bias").lower().split(".")
    steps = [step for step in path if step and not step.isdigit()]
    last = steps[-1] if steps else ""
    for step in reversed(steps):
        if step in _WHOLE:
            return _WHOLE[step]
    words = [word for step in steps for word in _WORDS.split(step)]
    own = set(_WORDS.split(last))
    if _numberless(own) & _NORM:
        return "norm"
    parts = [_OWN[word] for word in _WORDS.split(last) if word in _OWN]
    inside = set(words) & _ATTENTION
    if parts and (inside or len(own) > 1 or last.startswith("w")):
        return parts[0]
    if inside and (own & _OUT or own in _PROJECTIONS):
        return OUT
    if own & {"o", "out"} and "proj" in own:
        return OUT
    if own & _MLP_OWN or set(words) & _MLP or steps[-2:] == ["output", "dense"]:
        return "mlp"
    return "other"


def _numberless(words: set[str]) -> set[str]:
    """norm1 as norm, for example."""
    return {word.rstrip("0123456789") for word in words}
