"""CLIP's tensors under the names of Hugging Face, open_clip (OpenAI's own) and timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.checkpoints.clip.clip_checkpoint import aligned, in_family
    from magmerge.checkpoints.clip.families import family_of

__all__ = ["aligned", "family_of", "in_family"]

__getattr__ = front(
    __name__,
    {"aligned": "clip_checkpoint", "family_of": "families", "in_family": "clip_checkpoint"},
)
