"""The demo's encoder at work: texts to features to accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from magmerge.demonstration.tasks import Task, settings
from magmerge.errors import MagmergeError, MissingExtraError
from magmerge.executors import local

BATCH = 25


class Encoder:
    """A sentence encoder whose weights can be exchanged; each task's texts are tokenised once."""

    def __init__(self, folder: Path, tasks: Sequence[Task]) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise MissingExtraError(
                "the demo needs transformers", remedy="pip install 'magmerge[demo]'"
            ) from error
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model = AutoModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._batches = {task.name: _batches(task, tokenizer) for task in tasks}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of `state`; every parameter must be in it."""
        missing, _ = self._model.load_state_dict(state, strict=False)
        if missing:
            raise MagmergeError(f"these weights are missing: {', '.join(missing)}")

    def accuracy(self, task: Task, threads: int) -> float:
        """The share of the task's texts whose label has the greatest logit.

        Batches run side by side, each in one thread, which is faster than threads inside each
        operation, and far faster on a machine that does other work.
        """
        jobs = (partial(self._right, task, *batch) for batch in self._batches[task.name])
        return sum(local.run(local.single(jobs), threads=threads)) / len(task.labels)

    @torch.inference_mode()
    def _right(self, task: Task, inputs: Mapping[str, Tensor], labels: Int[Tensor, "batch"]) -> int:
        logits = self._features(inputs) @ task.head.T
        return int((logits.argmax(dim=-1) == labels).sum())

    def _features(self, inputs: Mapping[str, Any]) -> Float[Tensor, "batch features"]:
        """Mean over the tokens that are no padding, normalised to length 1."""
        hidden = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1)


def _batches(task: Task, tokenizer: Any) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Batches of texts of like length in tokens, so that little is padding."""
    length = settings()["max_length"]
    tokens = tokenizer(list(task.texts), truncation=True, max_length=length)["input_ids"]
    order = sorted(range(len(task.texts)), key=lambda i: len(tokens[i]))
    batches = []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = tokenizer(
            [task.texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        batches.append((dict(inputs), torch.tensor([task.labels[i] for i in rows])))
    return batches
