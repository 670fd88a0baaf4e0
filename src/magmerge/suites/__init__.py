"""Named suites: the tasks of published experiments, made into folders that `evaluate` takes."""

from magmerge.suites.definitions import named_suites
from magmerge.suites.front import suite
from magmerge.suites.result import NamedSuite, NamedTask

__all__ = ["NamedSuite", "NamedTask", "named_suites", "suite"]
