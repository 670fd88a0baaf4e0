"""Models measured on the tasks of a suite: scores with intervals, beside the experts'."""

from magmerge.evaluation.evaluator import evaluate
from magmerge.evaluation.scores import Scores, TaskScore
from magmerge.evaluation.task_suite import Suite, open_suite

__all__ = ["Scores", "Suite", "TaskScore", "evaluate", "open_suite"]
