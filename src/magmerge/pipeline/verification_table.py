"""A verification as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.tables import Table

if TYPE_CHECKING:
    from magmerge.pipeline.verify import Verification


def verification_table(found: Verification) -> Table:
    """A row for each check: ok, not made, or its first fault."""
    rows = tuple(
        (
            check.name,
            "fault" if check.faults else "ok" if check.done else "not made",
            check.faults[0].text if check.faults else check.seen,
        )
        for check in found.checks
    )
    return Table(found.source, ("check", "state", "what was seen"), rows)
