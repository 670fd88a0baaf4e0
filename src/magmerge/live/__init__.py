"""Models at work: a checkpoint as a torch module, what its layers are fed, what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.live.measurement import estimate

__all__ = [
    "estimate",
]

__getattr__ = front(
    __name__,
    {
        "estimate": "measurement",
    },
)
