"""Models at work: a checkpoint as a torch module, what its layers are fed, what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.live.estimate import estimate_findings

__all__ = [
    "estimate_findings",
]

__getattr__ = front(
    __name__,
    {
        "estimate_findings": "estimate",
    },
)
