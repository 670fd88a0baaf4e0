"""LoRA adapters: their formats and names, and as experts with a base or without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.checkpoints.adapters.adapter_expert import AdapterExpert
    from magmerge.checkpoints.adapters.adapter_loader import open_adapter
    from magmerge.checkpoints.adapters.union import adapters_alone

__all__ = ["AdapterExpert", "adapters_alone", "open_adapter"]

__getattr__ = front(
    __name__,
    {
        "AdapterExpert": "adapter_expert",
        "adapters_alone": "union",
        "open_adapter": "adapter_loader",
    },
)
