"""Models at work: a checkpoint as a torch module, what its layers are fed, what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.live.estimation import estimate
    from magmerge.live.prompts import routers

__all__ = [
    "estimate",
    "routers",
]

__getattr__ = front(
    __name__,
    {
        "estimate": "estimation",
        "routers": "prompts",
    },
)
