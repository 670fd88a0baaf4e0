"""torch files and plain pickles, read without running anything that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.checkpoints.pickles.torch_pickle import open_torch

__all__ = ["open_torch"]

__getattr__ = front(__name__, {"open_torch": "torch_pickle"})
