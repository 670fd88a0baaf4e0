"""What an evaluation found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from magmerge.checkpoints.output.own_files import check_document
from magmerge.core.lazy import Tabular
from magmerge.core.version import __version__
from magmerge.core.whole_file import write_whole

LOWER_IS_BETTER = frozenset(
    {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One model's score on one task, with its 95 % interval [low, high] over `count` rows.

    The interval is None where it is not known. `expert` is the score of the task's own expert, None
    if it is not known. `seconds` is the time of the model's own run, or its share of one pass.
    """

    task: str
    title: str
    metric: str
    score: float
    low: float | None
    high: float | None
    count: int
    expert: float | None
    seconds: float

    @property
    def relative(self) -> float | None:
        """The score over the expert's, for perplexity the expert's over the score."""
        if self.expert is None:
            return None
        lower = self.metric in LOWER_IS_BETTER
        above, below = (self.expert, self.score) if lower else (self.score, self.expert)
        return above / below if below else None

    def document(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        content = asdict(self)
        seconds = content.pop("seconds")
        return {**content, "relative": self.relative, "seconds": seconds}


@dataclass(frozen=True, slots=True)
class TaskNearness:
    """How near a model comes to a task's expert on `count` unlabelled rows of `split`; means.

    `error` is |f - f_k| / |f_k - f_0| of features (the base has 1, the expert 0), `cosine` that of
    the changes in features, `norm_ratio` |f - f_0| / |f_k - f_0|; `kl` is the divergence of the
    outputs, `agreement` the share of equal predictions; `base_kl` and `base_agreement` are the
    base's. None where the model has no such output.
    """

    task: str
    split: str
    count: int
    error: float | None
    cosine: float | None
    norm_ratio: float | None
    kl: float | None
    agreement: float | None
    base_kl: float | None
    base_agreement: float | None


@dataclass(frozen=True, slots=True)
class Scores(Tabular):
    """All scores of one model on one split of a suite; `seconds` is all that it took. `nearness`
    is what was measured without labels beside them.
    """

    tabled: ClassVar[str] = "magmerge.evaluation.result_tables:scores_table"
    suite: str
    split: str
    model: str
    tasks: tuple[TaskScore, ...]
    seconds: float
    nearness: tuple[TaskNearness, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean score over the tasks whose score is the better the higher; None without any.

        Of a task with several metrics, as harnesses have them, the first counts.
        """
        rising = [task for task in self.tasks if task.metric not in LOWER_IS_BETTER]
        first = {task.task: task.score for task in reversed(rising)}
        return _mean([first[name] for name in dict.fromkeys(task.task for task in rising)])

    @property
    def relative(self) -> float | None:
        """Mean relative score; None unless every task has one."""
        values = [task.relative for task in self.tasks]
        known = [value for value in values if value is not None]
        return _mean(known) if len(known) == len(values) else None

    def __getitem__(self, task: str) -> TaskScore:
        return next(row for row in self.tasks if row.task == task)

    def document(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {
            "magmerge": __version__,
            "suite": self.suite,
            "split": self.split,
            "model": self.model,
            "tasks": [task.document() for task in self.tasks],
            "mean": {"score": self.mean, "relative": self.relative},
            **({"nearness": [asdict(task) for task in self.nearness]} if self.nearness else {}),
            "seconds": self.seconds,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the document in one step; OutputError where the file exists or cannot be made."""
        return save_document(self.document(), path, overwrite=overwrite)


class ScoresList(Tabular, list[Scores]):
    """Scores of several models, one after the other."""

    tabled = "magmerge.evaluation.result_tables:models_table"


def save_document(content: Any, path: str | Path, *, overwrite: bool) -> Path:
    """Write scores, of one model or of several, as JSON."""
    target = Path(path)
    check_document(target, overwrite=overwrite)
    write_whole(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return target


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
