"""The heads of sequence classifiers, cut off so that only their encoders are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.kinds import read_config
from magmerge.core.errors import CheckpointError, MagmergeError, ParameterError
from magmerge.core.models import Checkpoint
from magmerge.evaluation.entries import Features
from magmerge.evaluation.suites.definitions import TextTask, order_of

PLAIN = {"weight": "classifier.weight", "bias": "classifier.bias"}
DEEP = {
    "dense.weight": "classifier.dense.weight",
    "dense.bias": "classifier.dense.bias",
    "weight": "classifier.out_proj.weight",
    "bias": "classifier.out_proj.bias",
}
POOLER = "pooler.dense.weight"
_NUMBERED = re.compile(r"LABEL_(\d+)")


class CutHead(NamedTuple):
    """A head file's tensors, with the rows in the task's order of classes.

    `features` is what of the encoder's output the head takes; `note` what a reader should know;
    `whole` whether a bare encoder of the expert's kind finds all its tensors there.
    """

    tensors: dict[str, Tensor]
    features: Features
    note: str | None
    whole: bool


def cut_head(name: str, task: TextTask, expert: Path) -> CutHead:
    """The head of the task's expert.

    BERT's is one layer on the pooled output, and its pooler belongs to the encoder; RoBERTa's is a
    dense layer, tanh and a last layer on the first token. CheckpointError for any other, and where
    the order of its labels cannot be told.
    """
    if not expert.is_dir():
        raise ParameterError(
            "it is no folder", source=expert, remedy="give the expert's folder with its config.json"
        )
    config, checkpoint = read_config(expert), open_checkpoint(expert)
    features: Features
    pooled = any(spec.endswith(POOLER) for spec in checkpoint.specs)
    if config.get("model_type") == "bert" and PLAIN["weight"] in checkpoint.specs and pooled:
        names, features = PLAIN, "pooler"
    elif DEEP["weight"] in checkpoint.specs and DEEP["dense.weight"] in checkpoint.specs:
        names, features = DEEP, "cls"
    else:
        raise CheckpointError(
            f"no head that can be cut off: a {config.get('model_type', 'model')} without "
            f"{PLAIN['weight']} after a pooler, and without {DEEP['weight']} after a dense layer",
            source=expert,
            remedy=f"give a BertForSequenceClassification or a RobertaForSequenceClassification as "
            f"the expert of {name}",
        )
    tensors = _read(checkpoint, names)
    rows, note = _order(task, config, len(tensors["weight"]), expert)
    tensors |= {key: tensors[key][list(rows)].clone() for key in ("weight", "bias")}
    return CutHead(tensors, features, note, pooled)


def _read(checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The head's tensors in float32; a bias that is not there is zero."""
    there = {own: stored for own, stored in names.items() if stored in checkpoint.specs}
    tensors = {own: checkpoint.read(stored).float() for own, stored in there.items()}
    for own in [key for key in names if key.endswith("bias") and key not in tensors]:
        tensors[own] = torch.zeros(len(tensors[f"{own.removesuffix('bias')}weight"]))
    if tensors["weight"].dim() != 2 or tensors["bias"].shape != tensors["weight"].shape[:1]:
        shapes = ", ".join(f"{names[key]} {list(tensor.shape)}" for key, tensor in tensors.items())
        raise CheckpointError(
            f"its head does not fit together: {shapes}",
            source=checkpoint.source,
            remedy="save the expert anew with save_pretrained",
        )
    return tensors


def _order(
    task: TextTask, config: Mapping[str, Any], rows: int, expert: Path
) -> tuple[tuple[int, ...], str | None]:
    """The head's row of each of the task's classes, and a note where they had to be assumed."""
    count = max(len(task.classes), 1)
    if rows != count:
        raise ParameterError(
            f"its head has {rows} rows, and the task {'has' if task.classes else 'needs'} {count}",
            source=expert,
            remedy="check that this is the task's own expert",
        )
    if not task.classes:
        return (0,), None
    names = _labels(config, rows)
    if names is None or all(_NUMBERED.fullmatch(label) for label in names):
        if names is not None and names != [f"LABEL_{i}" for i in range(rows)]:
            raise _untold(expert, "its numbered labels are not in order")
        return tuple(range(rows)), (
            f"{expert}: its config does not name its labels; its head's rows are taken to be "
            f"{', '.join(task.classes)} in this order, as the data set numbers them"
        )
    try:
        return order_of(names, task, expert), None
    except MagmergeError as error:
        raise _untold(expert, error.problem) from error


def _labels(config: Mapping[str, Any], rows: int) -> list[str] | None:
    """The names of id2label in the order of their numbers; None where there are none."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    ordered = [names.get(str(row)) for row in range(rows)]
    if len(names) != rows or not all(isinstance(label, str) for label in ordered):
        return ["?"] * rows
    return [str(label) for label in ordered]


def _untold(expert: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"the order of its labels cannot be told: {problem}",
        source=expert / "config.json",
        remedy="name the task's classes in id2label, each at the number of its row of the head",
    )
