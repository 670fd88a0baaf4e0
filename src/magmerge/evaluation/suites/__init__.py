"""Named suites: the tasks of published experiments, made into folders that `evaluate` takes."""

from magmerge.evaluation.suites.definitions import named_suites
from magmerge.evaluation.suites.named_suite import NamedSuite, NamedTask, suite

__all__ = ["NamedSuite", "NamedTask", "named_suites", "suite"]
