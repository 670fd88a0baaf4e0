"""The language suite whose skills overlap, so that the experts' task vectors are alike."""

from .packages import SUITES
from .skills import overlapping
from .smollm import make_suite
from .storing import Layout


def make() -> None:
    """Make the suite."""
    make_suite(Layout(SUITES / "language-overlap"), overlapping())
