"""Named suites: the tasks of published experiments, made into folders that `evaluate` takes."""

from magmerge.evaluation.suites.definitions import named_suites
from magmerge.evaluation.suites.front import suite
from magmerge.evaluation.suites.result import NamedSuite, NamedTask

__all__ = ["NamedSuite", "NamedTask", "named_suites", "suite"]
