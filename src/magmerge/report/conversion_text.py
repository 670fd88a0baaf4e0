"""What a conversion did, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from magmerge.engine.conversion import Conversion, ModelConversion
from magmerge.report.terminal_tables import plain

LISTED = 8
"""How many classes or tensors a line names."""


def conversion_text(done: Conversion | ModelConversion) -> list[Text]:
    """What was read, what was passed over, and what was written."""
    if not isinstance(done, ModelConversion):
        return [plain(f"{done.modules} modules, {done.before} to {done.after}: wrote {done.path}")]
    lines = [f"read {done.source}: {done.holds}"]
    if done.passed:
        lines.append(f"passed over, as names only: {_listing(done.passed)}")
    for reason in dict.fromkeys(done.left_out.values()):
        named = {name: 1 for name, why in done.left_out.items() if why == reason}
        lines.append(f"left out, {reason}: {_listing(named)}")
    names = done.after if done.before == done.after else f"{done.before} to {done.after}"
    lines.append(f"{done.tensors} tensors, {names}: wrote {done.path}")
    return [plain(line) for line in lines]


def _listing(counts: Mapping[str, int]) -> str:
    """The first names, how often each occurs, and how many more there are."""
    names = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
    more = [f"{len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *more])
