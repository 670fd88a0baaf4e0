"""An adapter on a base seen otherwise than it is stored: the ground of such views."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from magmerge.core.models import Checkpoint, Expert


class AdapterView:
    """An expert that is `adapter` in all that it does not say itself."""

    def __init__(self, adapter: Expert) -> None:
        self.adapter = adapter
        self.whole: Checkpoint | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "adapter":
            raise AttributeError(name)
        return getattr(self.adapter, name)

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:
        """Whether every factor is zero."""
        return self.adapter.changes_nothing(base, names)
