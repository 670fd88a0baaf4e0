"""The text suite's tasks with weak experts of 40 steps, whose merges are long enough."""

from dataclasses import replace

from . import minilm
from .packages import SUITES
from .storing import Layout

STEPS = 40


def make() -> None:
    """Make the suite."""
    minilm.make(Layout(SUITES / "text-weak"), replace(minilm.RECIPE, steps=STEPS))
