"""CLIP's tensors under the names of Hugging Face, open_clip (OpenAI's own) and timm."""

from magmerge.checkpoints.clip.clip_checkpoint import ClipCheckpoint, aligned, in_family
from magmerge.checkpoints.clip.families import FAMILIES, family_of

__all__ = ["FAMILIES", "ClipCheckpoint", "aligned", "family_of", "in_family"]
